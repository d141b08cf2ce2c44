"""The plain JSONL form of `Sample`: one json object a line, described by `sample.schema.json`.

    mine/samples.jsonl     {"image": "images/0001.jpg", "regions": [{"label": "red mug", "box": [10, 20, 90, 120]}]}
    mine/images/0001.jpg

The file stays on disk: of each sample only the place of its line is held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.images import load_photo
from mglmm_data.lines import from_record
from mglmm_data.reading import OnError, Pictures, Problems
from mglmm_data.record import SampleRecord, parse_record, schema
from mglmm_data.sample import Sample
from mglmm_data.telling import Kind, Named, Teller, check_tasks, near, reading_order

SCHEMA = Path(__file__).with_name("sample.schema.json")
LOCAL = ("file", "empty_masks", "joined")
"""Keys of `meta` that are true only where the sample was read."""
TOLD = re.compile(rb'"conversations"\s*:\s*\[')


class JsonlSource:
    """A JSONL file of samples as a `Source`.

    Args:
        path: the file, or a folder with `samples.jsonl`.
        image_root: the folder that the paths of pictures count from; by default the file's own.
        kind, tasks, turns, object_name, seed: for lines without conversations, how questions are drawn from the labels,
            as in `CocoSource`.
        mirror: for the augmentation, where a line's `meta` does not say it: mirroring swaps left and right in the text
            ("swap"), or is not done ("off"); by default "swap" for drawn questions, "off" for written ones.
        on_error: a line that is malformed is an error (`fail`), or left out and kept in `problems.found` (`count`).

    Raises:
        ValueError: the file is missing or empty; with `on_error: fail` also what is wrong with the first bad line that
            has to be read for its labels (the others are read, and refused, when their sample is asked for).
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        *,
        kind: Kind = "instances",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        object_name: str = "object",
        seed: int = 0,
        mirror: str | None = None,
        on_error: OnError = "fail",
    ) -> None:
        if kind not in ("instances", "parts"):
            raise ValueError(f"kind is {kind!r}{near(kind, ('instances', 'parts'))}")
        self.path = Path(path) / "samples.jsonl" if Path(path).is_dir() else Path(path)
        self.seed, self.kind, self.mirror = seed, kind, mirror
        self.problems = Problems(on_error)
        self._pictures = Pictures(image_root if image_root is not None else self.path.parent)
        self._lines, labels = self._index()
        if not len(self._lines):
            raise ValueError(f"{self.path} holds no sample; write one json object a line")
        self.names = tuple(sorted(labels or ()))
        self._teller = None
        if labels is not None:
            self._teller = Teller(
                kind=kind,
                names=self.names,
                tasks=check_tasks(tasks, kind, False, turns),
                turns=turns,
                object_name=object_name,
            )

    def _index(self) -> tuple[np.ndarray, frozenset[str] | None]:
        """int64[N, 2], offset in the file and number of each line; labels of lines without conversations, if any."""
        places: list[tuple[int, int]] = []
        labels: set[str] = set()
        is_silent, offset = False, 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    begin, offset = offset, offset + len(line)
                    if not line.strip():
                        continue
                    if self.problems.on_error == "fail" and _is_told(line):
                        places.append((begin, number))
                        continue
                    with self.problems.at(f"{self.path}: line {number}"):
                        record = parse_record(line)
                        if record.conversations is None:
                            is_silent = True
                            labels.update(region.label for region in record.regions if region.label)
                        places.append((begin, number))
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read ({error.strerror}); check the path of the samples") from error
        return np.array(places, np.int64).reshape(-1, 2), frozenset(labels) if is_silent else None

    def __len__(self) -> int:
        return len(self._lines)

    def id_of(self, index: int) -> str:
        """The `id` of a line; of one without, or that is not of the format, the file and its number."""
        try:
            return self._name(self.record(index)[0], index)
        except ValueError:  # the sample tells, when it is asked for
            return f"{self.path.stem}/{index}"

    def record(self, index: int) -> tuple[SampleRecord, str]:
        """A line as a record, and its place ("FILE: line 7") for messages.

        Raises:
            ValueError: the line is not of the format.
        """
        offset, number = (int(value) for value in self._lines[index])
        where = f"{self.path}: line {number}"
        with self.path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return parse_record(line), where
        except ValueError as error:
            raise ValueError(f"{where}: {error}; see {SCHEMA.name}") from None

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a line; `meta` is the line's own, with the picture's `file` and `notes`.

        Raises:
            ValueError: the line is not of the format, or its picture is missing, damaged or of another size.
        """
        record, where = self.record(index)
        try:
            loaded = load_photo(self._pictures.find(record.image))
            sample = from_record(record, loaded, self.path.parent)
            if record.conversations is None:
                assert self._teller is not None, "lines without conversations were seen when the file was indexed"
                sample = tell_of_labels(sample, self._teller, np.random.default_rng([self.seed, index, epoch]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        mirror = self.mirror or ("swap" if record.conversations is None else "off")
        meta = {"source": "jsonl", "mirror": mirror, **sample.meta, "file": loaded.path}
        meta["notes"] = tuple(dict.fromkeys([*sample.meta.get("notes", ()), *loaded.notes]))
        return replace(sample, id=self._name(record, index), meta=meta)

    def _name(self, record: SampleRecord, index: int) -> str:
        return record.id or f"{self.path.stem}/{index}"


def _is_told(line: bytes) -> bool:
    """Whether a line has conversations for sure, without parsing it; `meta` may hold a key of that name."""
    return line.count(b'"conversations"') == 1 and TOLD.search(line.partition(b'"meta"')[0]) is not None


def tell_of_labels(sample: Sample, teller: Teller, rng: np.random.Generator) -> Sample:
    """The sample with questions drawn from its labels, in their order; equal labels are one phrase, in reading order.

    Crowds are no targets and leave their names incomplete; what is to be ignored and what is empty is not spoken of.
    """
    crowds, ignored = (set(sample.meta.get(key, ())) for key in ("crowd_regions", "ignore_regions"))
    named: dict[str, list[int]] = {}
    for number in reading_order(sample.regions):
        region = sample.regions[number]
        if region.label and number not in ignored:
            here = named.setdefault(region.label, [])
            if number not in crowds and region.bounds is not None:
                here.append(number)
    unclear = {sample.regions[number].label for number in crowds}
    place = {name: number for number, name in enumerate(teller.names)}
    ordered = sorted(named, key=lambda name: (place.get(name, len(place)), name))
    regions = list(sample.regions)
    told = teller.tell(
        [Named(name, tuple(named[name]), name not in unclear) for name in ordered], (), rng, regions=regions
    )
    meta = {"names": teller.names, "crowd_regions": (), **sample.meta}
    return replace(sample, regions=tuple(regions), conversations=told, meta=meta)


def write_schema(path: Path = SCHEMA) -> None:
    """Write the JSON Schema; a test holds the file that ships to it."""
    path.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


def portable(sample: Sample) -> Sample:
    """A sample that says nothing of where its picture lay on this machine, nor of masks that it has not any more."""
    return replace(sample, meta={key: value for key, value in sample.meta.items() if key not in LOCAL})


def dump_line(record: Mapping[str, Any]) -> str:
    """A record as one line of json.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
