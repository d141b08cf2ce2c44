"""WebDataset shards: tar files, here or at any fsspec URL, in which the files of a sample lie side by side.

    shards/000000.tar   0000000.json (a line of our JSONL)   0000000.jpg   0000001.json ...
    shards/index.json   the shards, and for each where its samples lie; written by us

Where `index.json` is absent, each shard is scanned once and what was found is kept in `$XDG_CACHE_HOME/mglmm/shards`:
a tar file names its members only one behind the other, so that at a URL a scan reads all of it.

Source of the format: webdataset/webdataset, README.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mglmm_data.jsonl import dump_line, portable
from mglmm_data.lines import to_record
from mglmm_data.reading import Problems
from mglmm_data.sample import Sample

INDEX, KIND = "index.json", "mglmm-shard-index-v1"
"""The name of our index, and what stands in it; other programs write files of that name, too."""
SCAN = 2
"""Goes into the name of what is kept; one more wherever a scan finds or refuses more than before."""
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

    def span(self, number: int) -> tuple[int, int]:
        """First byte of a sample, and the byte behind it; the files of a sample lie side by side."""
        json_at, json_size, picture_at, picture_size = (int(value) for value in self.places[number])
        return min(json_at, picture_at), max(json_at + json_size, picture_at + picture_size)


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
    """The tar files meant by a path or URL: a folder, one file, or a pattern with `*`, `{000000..000009}` or `{a,b}`.

    Raises:
        ValueError: there is none.
    """
    found: list[str] = []
    for text in expand(str(where)):
        if "{" in str(where) and "*" not in text:
            found.append(text)
        elif is_url(text):
            import fsspec

            files, path = fsspec.core.url_to_fs(text)
            pattern = path if "*" in path or path.endswith(".tar") else f"{path.rstrip('/')}/*.tar"
            found += [files.unstrip_protocol(name) for name in sorted(files.glob(pattern))]
        else:
            path = Path(text)
            folder, pattern = (path, "*.tar") if path.is_dir() else (path.parent, path.name)
            found += [str(name) for name in sorted(folder.glob(pattern))]
    if not found:
        raise ValueError(f"{where} holds no shard (*.tar); give a folder, a file, or a pattern with * or {{0..9}}")
    return found


def is_pattern(text: str) -> bool:
    """Whether a text names shards by a pattern."""
    return ".tar" in text and ("*" in text or "{" in text)


def expand(text: str) -> list[str]:
    """`a{00..02}.tar` and `a{x,y}.tar` as the texts that they stand for; several braces are multiplied out.

    Raises:
        ValueError: what stands in braces is neither.
    """
    head, brace, rest = text.partition("{")
    if not brace:
        return [text]
    span, _, tail = rest.partition("}")
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", span):
        first, last = found.groups()
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif "," in span:
        values = span.split(",")
    else:
        raise ValueError(f"{text}: {{{span}}} is no range of shards; write it as {{000000..000009}} or {{a,b}}")
    return [f"{head}{value}{end}" for value in values for end in expand(tail)]


def read_shards(where: str | Path, problems: Problems) -> list[Shard]:
    """All shards of a place with their samples, from `index.json` where there is one that fits, else by a scan.

    Args:
        problems: takes shards that are damaged, and samples without json or picture, which are then left out.

    Raises:
        ValueError: there is no shard, or one has such a problem.
    """
    urls = list_shards(where)
    known: dict[str, Any] = {}
    for folder in {url.rpartition("/")[0] for url in urls}:
        try:
            with open_file(f"{folder}/{INDEX}" if folder else INDEX) as file:
                index = json.load(file)
        except ValueError:
            continue  # none, or no json: the shards themselves say what is in them
        if isinstance(index, dict) and index.get("__kind__") == KIND:
            known |= {f"{folder}/{entry['url']}": entry for entry in index["shardlist"]}
    shards = []
    for url in urls:
        entry = known.get(url, {})
        if not is_url(url) and entry and (not Path(url).is_file() or entry["filesize"] != Path(url).stat().st_size):
            entry = {}  # the shard was written again since, or is gone
        places = np.array(entry.get("places", ()), np.int64).reshape(-1, 4)
        try:
            shards.append(Shard(url, places) if len(places) else scan(url, problems))
        except ValueError as error:  # it names the shard
            if problems.on_error == "fail":
                raise
            problems.found.append(str(error))
    return shards


def scan(url: str, problems: Problems) -> Shard:
    """Where the samples of a shard lie, from its headers; a sound one that has not changed is not scanned again.

    Raises:
        ValueError: the file is damaged, or a sample lacks its json or its picture.
    """
    kept, before = _kept(url), len(problems.found)
    try:
        return Shard(url, np.load(kept, allow_pickle=False))
    except FileNotFoundError:
        shard = _scan(url, problems)
    if len(problems.found) > before:
        return shard
    with contextlib.suppress(PermissionError):  # where nothing can be kept, the next start scans again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:  # several processes may write it
            np.save(file, shard.places)
        os.replace(file.name, kept)
    return shard


def _kept(url: str) -> Path:
    """The file that keeps what a scan found: of this address, size and time of change."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        if is_url(url):
            import fsspec

            files, name = fsspec.core.url_to_fs(url)
            facts = sorted((key, str(value)) for key, value in files.info(name).items())
        else:
            status = os.stat(url)
            facts = [os.path.realpath(url), status.st_size, status.st_mtime_ns]
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be read ({error}); check the address of the shards") from error
    digest = hashlib.blake2b(repr((SCAN, url, facts)).encode(), digest_size=16).hexdigest()
    return home / "mglmm" / "shards" / f"{digest}.npy"


def _scan(url: str, problems: Problems) -> Shard:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open_file(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    kind = "json" if suffix == "json" else "picture" if f".{suffix.lower()}" in PICTURES else ""
                    if kind:
                        samples.setdefault(f"{folder}{slash}{stem}", {})[kind] = (member.offset_data, member.size)
            file.seek(tar.offset)  # where tarfile saw no further header: it takes any damage for the end
            end = file.read(tarfile.RECORDSIZE)
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise tarfile.ReadError(f"no end of the archive at byte {tar.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"{url} is no tar file, cut off or damaged ({error}); copy or write it again") from error
    places = []
    for key, parts in samples.items():
        with problems.at(f"{url}: sample {key!r}"):
            for kind in ("json", "picture"):
                if kind not in parts:
                    raise ValueError(f"has no {kind}; a sample is KEY.json and KEY.jpg or KEY.png")
            places.append([*parts["json"], *parts["picture"]])
    return Shard(url, np.array(places, np.int64).reshape(-1, 4))


Pieces = tuple[bytes, bytes]
"""The bytes of a sample's json and of its picture."""


def read_pieces(shard: Shard, number: int) -> Pieces:
    """The pieces of one sample; at a URL in one request, for no more than these bytes.

    Raises:
        ValueError: the shard cannot be read, or ends before them.
    """
    if is_url(shard.url):
        (found,) = fetch_pieces([(shard, number)])
        if isinstance(found, ValueError):
            raise found
        return found
    begin, end = shard.span(number)
    with open_file(shard.url) as file:
        file.seek(begin)
        return _cut(shard, number, file.read(end - begin))


def fetch_pieces(wanted: Sequence[tuple[Shard, int]]) -> list[Pieces | ValueError]:
    """The pieces of samples at URLs, asked for side by side where the file system can; or what went wrong with each."""
    import fsspec

    opened = [fsspec.core.url_to_fs(shard.url) for shard, _ in wanted]
    out: list[Pieces | ValueError | None] = [None] * len(wanted)
    for files in {id(files): files for files, _ in opened}.values():
        own = [place for place, (other, _) in enumerate(opened) if other is files]
        spans = [wanted[place][0].span(wanted[place][1]) for place in own]
        begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
        found = files.cat_ranges([opened[place][1] for place in own], begins, ends, on_error="return")
        for place, content in zip(own, found, strict=True):
            shard, number = wanted[place]
            try:
                if isinstance(content, Exception):
                    raise ValueError(f"{shard.url} cannot be read ({content}); check the address of the shards")
                out[place] = _cut(shard, number, content)
            except ValueError as error:
                out[place] = error
    return [each for each in out if each is not None]


def _cut(shard: Shard, number: int, content: bytes) -> Pieces:
    begin, end = shard.span(number)
    if len(content) > end - begin:
        raise ValueError(f"{shard.url} comes whole where a part is asked for: its server knows no ranges; copy it here")
    if len(content) < end - begin:
        raise ValueError(f"{shard.url} ends inside sample {number}; copy or write it again")
    json_at, json_size, picture_at, picture_size = (int(value) for value in shard.places[number])
    json_at, picture_at = json_at - begin, picture_at - begin
    return content[json_at : json_at + json_size], content[picture_at : picture_at + picture_size]


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
        shard = _scan(str(path), Problems())
        entry = {"url": path.name, "nsamples": len(shard), "filesize": path.stat().st_size}
        entries.append({**entry, "places": shard.places.tolist()})
    index = {"__kind__": KIND, "shardlist": entries}
    (out / INDEX).write_text(json.dumps(index, separators=(",", ":")) + "\n", encoding="utf-8")
    return paths
