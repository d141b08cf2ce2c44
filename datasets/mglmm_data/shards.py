"""WebDataset shards: tar files, here or at any fsspec URL, in which the files of a sample lie side by side.

    shards/000000.tar   0000000.json (a line of our JSONL)   0000000.jpg   0000001.json ...
    shards/index.json   the shards, and for each where its samples lie; written by us, made by a scan where it is absent

Source of the format: webdataset/webdataset, README.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mglmm_data.images import FORMATS, LoadedImage, load_image
from mglmm_data.jsonl import dump_line, portable
from mglmm_data.lines import to_record
from mglmm_data.sample import Sample

INDEX = "index.json"
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
PER_SHARD = 1000
"""Samples in a shard that we write."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A tar file and where its samples lie: int64[N, 4], offset and size of the json and of the picture."""

    url: str
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def open_file(path: str) -> IO[bytes]:
    """A file here or, through fsspec, anywhere; it can be sought in.

    Raises:
        ValueError: it is not there, cannot be read, or its protocol needs a package that is not installed.
    """
    try:
        if not is_url(path):
            return open(path, "rb")
        import fsspec

        files, name = fsspec.core.url_to_fs(path)
        return files.open(name, "rb")
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); check the address of the shards") from error


def list_shards(where: str | Path) -> list[str]:
    """The tar files meant by a path or URL: a folder, one file, or a pattern with `*` or `{000000..000009}`.

    Raises:
        ValueError: there is none.
    """
    text = str(where)
    found: list[str] = []
    if "{" in text:
        head, _, rest = text.partition("{")
        span, _, tail = rest.partition("}")
        first, dots, last = span.partition("..")
        if not dots or not first.isdecimal() or not last.isdecimal():
            raise ValueError(f"{text}: {{{span}}} is no range of shards; write it as {{000000..000009}}")
        found = [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
    elif is_url(text):
        import fsspec

        files, path = fsspec.core.url_to_fs(text)
        pattern = path if "*" in path or path.endswith(".tar") else f"{path.rstrip('/')}/*.tar"
        found = [files.unstrip_protocol(name) for name in sorted(files.glob(pattern))]
    else:
        path = Path(text)
        folder, pattern = (path, "*.tar") if path.is_dir() else (path.parent, path.name)
        found = [str(name) for name in sorted(folder.glob(pattern))]
    if not found:
        raise ValueError(f"{text} holds no shard (*.tar); give a folder, a file, or a pattern with * or {{0..9}}")
    return found


def read_shards(where: str | Path) -> list[Shard]:
    """All shards of a place with their samples, from `index.json` where there is one that fits, else by a scan.

    Raises:
        ValueError: there is no shard, or one is damaged.
    """
    urls = list_shards(where)
    known: dict[str, Any] = {}
    for folder in {url.rpartition("/")[0] for url in urls}:
        try:
            with open_file(f"{folder}/{INDEX}" if folder else INDEX) as file:
                known |= {f"{folder}/{entry['url']}": entry for entry in json.load(file)["shardlist"]}
        except ValueError:
            continue  # none, or not ours: the shards themselves say what is in them
    shards = []
    for url in urls:
        entry = known.get(url, {})
        if not is_url(url) and entry.get("filesize") != Path(url).stat().st_size:
            entry = {}  # the shard was written again since
        places = np.array(entry.get("places", ()), np.int64).reshape(-1, 4)
        shards.append(Shard(url, places) if len(places) else scan(url))
    return shards


def scan(url: str) -> Shard:
    """Read the headers of a tar file; the contents are passed over.

    Raises:
        ValueError: the file is damaged, or a sample lacks its json or its picture.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open_file(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, slash, name = member.name.rpartition("/")
                    stem, dot, suffix = name.partition(".")
                    kind = "json" if suffix == "json" else "picture" if f".{suffix.lower()}" in PICTURES else ""
                    if kind:
                        samples.setdefault(f"{folder}{slash}{stem}", {})[kind] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{url} is no tar file, or damaged ({error}); copy or write it again") from error
    for key, parts in samples.items():
        for kind in ("json", "picture"):
            if kind not in parts:
                raise ValueError(f"{url}: sample {key!r} has no {kind}; a sample is KEY.json and KEY.jpg or KEY.png")
    places = [[*parts["json"], *parts["picture"]] for parts in samples.values()]
    return Shard(url, np.array(places, np.int64).reshape(-1, 4))


def read_pieces(file: IO[bytes], shard: Shard, number: int) -> tuple[bytes, bytes]:
    """The bytes of a sample's json and picture.

    Raises:
        ValueError: the file ends before them.
    """
    json_at, json_size, picture_at, picture_size = (int(value) for value in shard.places[number])
    pieces = []
    for at, size in ((json_at, json_size), (picture_at, picture_size)):
        file.seek(at)
        pieces.append(file.read(size))
        if len(pieces[-1]) != size:
            raise ValueError(f"{shard.url} ends inside sample {number}; copy or write it again")
    return pieces[0], pieces[1]


def load_bytes(content: bytes, name: str) -> LoadedImage:
    """A picture from the bytes of its file, as `load_image` has it."""
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except OSError as error:
        raise ValueError(f"its picture {name!r} is not an image that can be read ({error})") from error
    with opened:
        return load_image(opened)


def write_shards(samples: Iterable[tuple[Sample, bytes, str]], out: Path, per_shard: int = PER_SHARD) -> list[Path]:
    """Write (sample, bytes of its picture, suffix) into shards of `per_shard` samples, and `index.json` beside them."""
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    tar: tarfile.TarFile | None = None
    try:
        for number, (sample, picture, suffix) in enumerate(samples):
            if number % per_shard == 0:
                if tar is not None:
                    tar.close()
                paths.append(out / f"{number // per_shard:06d}.tar")
                tar = tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            assert tar is not None
            key = f"{number:09d}"
            line = dump_line(to_record(portable(sample), f"{key}{suffix}")).encode("utf-8")
            for name, content in ((f"{key}.json", line), (f"{key}{suffix}", picture)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    finally:
        if tar is not None:
            tar.close()
    entries = []
    for path in paths:
        shard = scan(str(path))
        entry = {"url": path.name, "nsamples": len(shard), "filesize": path.stat().st_size}
        entries.append({**entry, "places": shard.places.tolist()})
    index = {"__kind__": "mglmm-shard-index-v1", "shardlist": entries}
    (out / INDEX).write_text(json.dumps(index, separators=(",", ":")) + "\n", encoding="utf-8")
    return paths
