"""Read everything once before training does: what is there, what is wrong, and which pictures are in two splits.

A sample is judged by reading it as training would; sources that know `on_error` are made with `count`, so that what is
wrong in their files is listed whole instead of one at a time.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks
from mglmm_data.drop import Dropping
from mglmm_data.reading import id_of, read_sample
from mglmm_data.registry import Source, default_of, make_tolerant_source, resolved
from mglmm_data.sample import Region, Sample
from mglmm_data.world.source import World

DRAWN = 64
"""Samples looked at of a source that draws its pictures and never ends."""
CHUNK = 16
"""Samples that a process takes at once."""
NUM_SHOWN = 3
SPLITS = ("", "train", "val", "test")
"""Splits that a source can say it is; a picture in two of them is told of in the later one."""

SPLIT_WORD = re.compile(r"(?<![a-z])(train(?:ing|val)?|val(?:id(?:ation)?)?|test(?:ing|[abc])?|held(?:out)?)(?![a-z])")
"""How a split is called in names and paths: `instances_val2017`, `testA`, `training`; not `valley` or `latest`."""

Progress = Callable[[str, int, int], None]
"""Called with (source, samples done, samples in all)."""

KINDS = (
    ("missing file", r"does not exist|is missing|is not there|no such file|has no image .*\.(\*|jpg)"),
    ("unreadable file", r"truncated|damaged|not an image|\(0 bytes\)|may not be read|cannot be read|holds no image"),
    ("empty mask", r"covers no pixel|all black|no white pixel|mask is empty"),
    ("outside the image", r"outside the image|leaves the image|not inside the image|lies outside"),
    ("another size", r"\(height, width\)|of size|of another size"),
)
"""Kind of a problem -> how its sentence is recognised; all others are malformed annotations."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `index` is the sample's number in its source, None where it is no sample yet."""

    source: str
    kind: str
    problem: str
    index: int | None = None
    id: str = ""
    file: str = ""


@dataclass
class Found:
    """What one source holds, counted."""

    source: str
    split: str = ""  # see `split_of`
    samples: int = 0
    looked_at: int = 0
    regions: Counter[str] = field(default_factory=Counter)  # by kind: mask, box, point, scribble
    categories: Counter[str] = field(default_factory=Counter)  # labels of regions
    tasks: Counter[str] = field(default_factory=Counter)  # of conversations
    skipped: Counter[str] = field(default_factory=Counter)  # what the reader leaves out by rule, as it counts it
    joined: Counter[str] = field(default_factory=Counter)  # label -> instances that are one region of many
    phrases: int = 0
    images: dict[str, str] = field(default_factory=dict)  # digest of the pixels -> file or id
    holders: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # digest -> (index, id) of its samples
    dropped: list[str] = field(default_factory=list)  # what the source's list names, a sentence each
    problems: list[Problem] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # samples that can be read, to be drawn

    def add(self, other: Found) -> None:
        """Take in what another process found in the same source."""
        self.looked_at += other.looked_at
        self.phrases += other.phrases
        self.images.update(other.images)
        for digest, samples in other.holders.items():
            self.holders.setdefault(digest, []).extend(samples)
        self.problems += other.problems
        self.shown += other.shown
        for name in ("regions", "categories", "tasks", "joined"):
            getattr(self, name).update(getattr(other, name))


@dataclass
class Report:
    """What `check` found; `sources` are the sources themselves, to draw samples from."""

    found: dict[str, Found]
    sources: dict[str, Source]
    leaks: list[Problem]

    @property
    def problems(self) -> list[Problem]:
        return [problem for found in self.found.values() for problem in found.problems] + self.leaks

    def to_json(self) -> dict[str, Any]:
        """Everything counted, as plain values."""
        sources = {}
        for name, found in self.found.items():
            row = {key: value for key, value in vars(found).items() if key not in ("source", "shown", "holders")}
            sources[name] = row | {"images": len(found.images), "problems": len(found.problems)}
        return {"sources": sources, "problems": [asdict(problem) for problem in self.problems]}


def check(
    specs: Mapping[str, Mapping[str, Any]],
    *,
    processes: int | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Read every sample of every source.

    Args:
        specs: name -> spec, as in a training stage.
        processes: how many read; None: one a core. 1 reads in this process.
        limit: look at so many samples of each source, spread over it; None: at all of them.
        on_progress: who is told how far it is.

    Raises:
        ValueError: `processes` or `limit` is below 1, or there is no source.
    """
    if not specs:
        raise ValueError("there is no source to check; name a config with sources, or a folder with data in it")
    for name, value in (("processes", processes), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    report = Report({name: Found(name) for name in specs}, {}, [])
    for name, spec in specs.items():
        found = report.found[name]
        try:
            source = report.sources[name] = make_tolerant_source(spec, "count", name)
        except (ValueError, OSError) as error:
            found.problems.append(Problem(name, kind_of(str(error)), str(error)))
            continue
        found.samples, found.split = len(source), split_of(name, resolved(spec))
        found.skipped.update(getattr(source, "skipped", {}))
        found.dropped += getattr(source, "dropped", ())
        told = getattr(getattr(source, "problems", None), "found", ())
        found.problems += [Problem(name, kind_of(text), text) for text in told]
    for part in _parts(report.sources, processes or os.cpu_count() or 1, limit):
        found = report.found[part.source]
        found.add(part)
        if on_progress is not None:
            on_progress(part.source, found.looked_at, min(found.samples, _most(report.sources[part.source], limit)))
    for name, found in report.found.items():
        found.shown = spread(len(found.shown), NUM_SHOWN, sorted(found.shown))
        found.problems.sort(key=lambda problem: -1 if problem.index is None else problem.index)
        report.leaks += leaks(name, report.found)
    return report


def _most(source: Source, limit: int | None) -> int:
    whole = source.inner if isinstance(source, Dropping) else source
    most = DRAWN if isinstance(whole, World) else len(source)
    return most if limit is None else min(most, limit)


def spread(length: int, count: int, values: Sequence[int] | None = None) -> list[int]:
    """At most `count` numbers below `length`, evenly spread; or those of `values` at these places."""
    count = min(length, count)
    places = [number * length // count for number in range(count)]
    return [values[place] for place in places] if values is not None else places


def kind_of(text: str) -> str:
    """The kind of a problem by its sentence, see `KINDS`."""
    return next((kind for kind, words in KINDS if re.search(words, text, re.IGNORECASE)), "malformed annotation")


_SOURCES: dict[str, Source] = {}
"""The sources that the processes read; set before they are forked, so that none has to build them again."""


def _parts(sources: dict[str, Source], processes: int, limit: int | None) -> Iterator[Found]:
    """What was found in each chunk of samples, in no particular order of sources."""
    jobs: list[tuple[str, list[int]]] = []
    for name, source in sources.items():
        numbers = spread(len(source), _most(source, limit))
        jobs += [(name, numbers[start : start + CHUNK]) for start in range(0, len(numbers), CHUNK)]
    _SOURCES.clear()
    _SOURCES.update(sources)
    if processes == 1 or len(jobs) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_look, jobs)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_alone) as pool:
        yield from pool.map(_look, jobs)


def _alone() -> None:
    import cv2

    cv2.setNumThreads(0)


def _look(job: tuple[str, list[int]]) -> Found:
    name, numbers = job
    found = Found(name)
    for index in numbers:
        found.looked_at += 1
        try:
            sample = read_sample(_SOURCES[name], index)
        except (ValueError, OSError) as error:
            found.problems.append(Problem(name, kind_of(str(error)), str(error), index, id_of(_SOURCES[name], index)))
            continue
        look_at(sample, index, found)
    return found


def look_at(sample: Sample, index: int, found: Found) -> None:
    """Count what a sample holds, and what is wrong with it although it can be read."""
    file = str(sample.meta.get("file", ""))
    digest = _digest(sample.image)
    found.images.setdefault(digest, file or sample.id)
    found.holders.setdefault(digest, []).append((index, sample.id))
    found.shown.append(index)

    def complain(kind: str, text: str) -> None:
        found.problems.append(Problem(found.source, kind, text, index, sample.id, file))

    if not sample.conversations:
        complain("no question", f"{sample.id}: nothing is asked about it; give it conversations, or take it out")
    found.joined.update(sample.meta.get("joined", {}))
    for record in sample.meta.get("empty_masks", ()):
        complain("empty mask", f"{sample.id}: {record} covers no pixel; correct or remove it")
    empty: set[int] = set()
    ignored = set(sample.meta.get("ignore_regions", ()))
    for number, region in enumerate(sample.regions):
        if number in ignored:  # no annotation of its own
            continue
        found.regions[region.kind] += 1
        if region.label:
            found.categories[region.label] += 1
        try:
            if _is_empty(region):
                empty.add(number)
                complain("empty mask", f"{sample.id}: the mask of region {number} ({region.label!r}) covers no pixel")
        except ValueError as error:
            complain("malformed annotation", f"{sample.id}: region {number}: {error}")
    used: set[int] = {*ignored, *sample.meta.get("crowd_regions", ()), *sample.meta.get("unasked_regions", ())}
    for conversation in sample.conversations:
        found.tasks[conversation.task or "(no task)"] += 1
        for turn in conversation.turns:
            used.update(turn.regions)
            for phrase in turn.phrases:
                found.phrases += turn.role == "assistant"
                if empty.issuperset(phrase.regions):
                    words = turn.text[phrase.start : phrase.end]
                    complain("phrase without a mask", f"{sample.id}: all masks of the phrase {words!r} are empty")
    for number, region in enumerate(sample.regions):
        if not region.label and number not in used:
            complain("mask without a phrase", f"{sample.id}: region {number} has no label and no phrase names it")


def _is_empty(region: Region) -> bool:
    if region.rle is None:
        return False
    return masks.area_of(masks.packed(region.rle, region.size)) == 0


def _digest(image: np.ndarray) -> str:
    """Of the pixels, which are the same in a file, a shard and a json."""
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=12).hexdigest()


def split_of(name: str, spec: Mapping[str, Any]) -> str:
    """`train`, `val`, `test`, or nothing where a source does not say which part of its data it is.

    Its `split` says so, or what its type takes for it; else its name, else its files and the folders that they are in;
    the folder of the pictures last: RefCOCO's val is in train2014.
    """
    split = spec.get("split", spec.get("part", default_of(spec, "split")))
    said = str(split.get("part", "")) if isinstance(split, Mapping) else str(split or "")
    paths = {key: Path(value).parts for key, value in spec.items() if isinstance(value, (str, Path)) and key != "type"}
    pictures = paths.pop("image_root", ())
    places = [parts[-back] for back in (1, 2) for parts in paths.values() if len(parts) >= back]
    for words in (said,) if said else (name, *places, *pictures[-1:]):
        if found := SPLIT_WORD.search(words.lower()):
            return {"tr": "train", "te": "test", "he": "val", "va": "val"}[found[1][:2]]
    return ""


def leaks(name: str, found: Mapping[str, Found]) -> list[Problem]:
    """Samples of the source `name` whose pictures are, pixel by pixel, in sources of an earlier split, too."""
    split = found[name].split
    where: dict[str, list[str]] = {}
    for other, theirs in ((other, each.split) for other, each in found.items()):
        if 0 < SPLITS.index(theirs) < SPLITS.index(split):
            for digest in found[name].images.keys() & found[other].images.keys():
                where.setdefault(digest, []).append(f"{other} ({theirs})")
    out = []
    for digest, others in where.items():
        file = found[name].images[digest]
        text = f"{file} of {name} ({split}) is the same picture as in {', '.join(others)}; leave it out of one"
        for index, identity in found[name].holders[digest]:
            out.append(Problem(name, "in two splits", text, index, identity, file))
    return sorted(out, key=lambda problem: (problem.file, problem.index or 0))
