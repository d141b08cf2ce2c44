"""Visual Genome: regions with descriptions, named objects with attributes, relations between objects; all are boxes.

    ROOT/image_data.json            [{image_id, width, height, ...}]
    ROOT/region_descriptions.json   [{id, regions: [{region_id, x, y, width, height, phrase}]}]
    ROOT/objects.json               [{image_id, objects: [{object_id, x, y, w, h, names}]}]
    ROOT/attributes.json            [{image_id, attributes: [{object_id, x, y, w, h, names, attributes?}]}]
    ROOT/relationships.json         [{image_id, relationships: [{relationship_id, predicate, subject, object}]}]
    VG_100K/ID.jpg, VG_100K_2/ID.jpg

Source: Krishna et al. 2017, arXiv:1602.07332; homes.cs.washington.edu/~ranjay/visualgenome (version 1.4; 1.2 alike).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import check_turns
from mglmm_data.asking import check_weights, draw, given, question, told
from mglmm_data.index import Records, walk
from mglmm_data.masks import Size
from mglmm_data.reading import (
    OnError,
    Packed,
    Pictures,
    Problems,
    load_picture,
    name_in,
    read_box,
    take,
    take_line,
    take_size,
    with_both_halves,
)
from mglmm_data.sample import Conversation, Region, Sample, compose
from mglmm_data.world import templates

FILES = {"describe": "regions", "locate": "regions", "name": "objects", "relate": "relations"}
"""Task -> which file it reads."""
IDS = ("region_id", "object_id", "relationship_id", "image_id", "id")
RELATE = (
    "How is {r1} related to {r2}?",
    "What is the relationship between {r1} and {r2}?",
    "Say what {r1} has to do with {r2}.",
)
DESCRIBE = ("Describe {r} in a few words.", "What do you see in {r}?", "Give a short caption of {r}.", "What is {r}?")


class VisualGenome:
    """The folder as above and the images as a `Source`; a sample is an image, its regions are boxes or points.

    Args:
        root: the folder of the json files; only those that the tasks need are read.
        image_root: the folder of the images, or several; VG_100K and VG_100K_2 in it or beside it are found.
        tasks: task -> weight, of describe (region to text), locate (text to box), name (object to name), relate (two
            regions to a relation, both grounded).
        turns: questions drawn for each image; None for all of them, in order (evaluation).
        point_share: how often a given region is the point in the middle of its box.
        clip_boxes: cut boxes at the border, counted; off, a box that leaves its image by more than 1 px is an error.
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: a file is missing or damaged, a record is malformed, an image or its size is missing.
    """

    def __init__(
        self,
        root: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        tasks: Mapping[str, float] | None = None,
        turns: int | None = 3,
        point_share: float = 0.0,
        clip_boxes: bool = False,
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        self.root, self.turns, self.seed, self.mirror = Path(root), check_turns(turns), seed, mirror
        self.tasks, self.point_share = check_weights(tasks, tuple(FILES)), point_share
        self.annotations = Annotations(root, {FILES[task] for task in self.tasks}, clip_boxes, Problems(on_error))
        self.problems, self.skipped = self.annotations.problems, self.annotations.skipped
        pictures, kept = Pictures(with_both_halves(image_root)), []
        for image in self.annotations.images():
            with self.problems.at(f"{self.root}: image {image}"):
                kept.append((image, pictures.find(f"{image}.jpg"), self.annotations.size(image)))
        self._packed = Packed(kept)
        if not kept:
            raise ValueError(f"{self.root} has no annotated image for these tasks{self.problems.why}")

    def __len__(self) -> int:
        return len(self._packed)

    def id_of(self, index: int) -> str:
        return f"visual_genome/{self._packed[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with questions drawn by (seed, index, epoch).

        Raises:
            ValueError: the image is damaged, or of another size than `image_data.json` says; or a file has changed.
        """
        image, path, (height, width) = self._packed[index]
        size = (height, width)
        loaded = load_picture(path, size, f"{self.root}: image {image}")
        rng = np.random.default_rng([self.seed, index, epoch])
        subjects = {task: self.annotations.of(FILES[task], image) for task in self.tasks}
        regions, conversations = ask_about(subjects, self.tasks, self.turns, size, self.point_share, rng)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=regions,
            conversations=conversations,
            id=self.id_of(index),
            meta={
                "source": "visual_genome",
                "image_id": image,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
            },
        )


def ask_about(
    subjects: Mapping[str, list[Any]],
    tasks: Mapping[str, float],
    turns: int | None,
    size: Size,
    point_share: float,
    rng: np.random.Generator,
    *,
    as_written: bool = False,
) -> tuple[tuple[Region, ...], tuple[Conversation, ...]]:
    """Questions about boxes with texts: regions in an image of `size` (H, W), and a conversation for each question.

    Args:
        subjects: task -> what it may ask about: `[box, text]`, for relate `[name, box, predicate, name, box]`.
        tasks, turns, point_share: as in `VisualGenome`.
        as_written: descriptions stay to the letter; else they end with a full stop.
    """
    regions: list[Region] = []
    conversations: list[Conversation] = []
    for task, subject in draw(subjects, tasks, turns, rng):
        regions += _regions(task, subject, size, point_share, rng)
        conversations.append(_tell(task, subject, len(regions), rng, as_written))
    return tuple(regions), tuple(conversations)


def _regions(task: str, subject: Any, size: Size, point_share: float, rng: np.random.Generator) -> list[Region]:
    if task == "locate":
        return [Region(size, box=tuple(subject[0]), label=subject[1])]
    if task == "relate":
        name, box, _, other, there = subject
        return [Region(size, box=tuple(box), label=name), Region(size, box=tuple(there), label=other)]
    return [given(tuple(subject[0]), size, point_share, rng, subject[1])]


def _tell(task: str, subject: Any, count: int, rng: np.random.Generator, as_written: bool) -> Conversation:
    """A conversation about the last of `count` regions (the last two for a relation)."""
    last = count - 1
    if task == "relate":
        name, _, predicate, other, _ = subject
        pieces = compose(
            (wording.definite(name), (last - 1,)), f" {predicate} ", (wording.definite(other), (last,)), "."
        )
        return told(question(RELATE, rng, (last - 1, last)), *pieces, task=task)
    if task == "locate":
        words = subject[1].rstrip(" .")
        return told(question(templates.FIND_BOX, rng, x=words), *compose((words, (last,)), "."), task=task)
    wordings = DESCRIBE if task == "describe" else templates.NAME_THING
    text = subject[1] if task == "describe" else wording.definite(subject[1])
    answer = text if as_written and task == "describe" else text.rstrip(" .") + "."
    return told(question(wordings, rng, (last,)), answer, task=task)


class Annotations:
    """Visual Genome's records by image, checked once and read again when asked for; `kinds` are keys of `LAYOUT`.

    A region is `[box, phrase]`, an object `[box, name, attributes]`, a relation `[name, box, predicate, name, box]`
    (subject first); boxes are x1, y1, x2, y2 in px.
    """

    def __init__(self, root: str | Path, kinds: set[str], clip: bool, problems: Problems) -> None:
        self.root, self.clip, self.problems = Path(root), clip, problems
        self.skipped: Counter[str] = Counter()
        """What is repaired or no problem, counted: boxes cut at the border, relations and objects without a name."""
        self._rows, self._sizes = dict[int, int](), array("q")
        for number, _, _, record in self._read("image_data.json"):
            with self.problems.at(f"{self.root / 'image_data.json'}: image {name_in(record, number, *IDS)}"):
                image = take(record, "image_id" if "image_id" in record else "id", int)
                self._sizes.extend(array("q", take_size(record)))
                self._rows[image] = len(self._sizes) // 2 - 1
        self._found = {kind: self._gather(kind) for kind in sorted(kinds)}

    def images(self) -> list[int]:
        """Ids of the images with at least one record, in ascending order."""
        found = [places for places, _ in self._found.values()]
        return sorted(image for image, row in self._rows.items() if any(places[row] >= 0 for places in found))

    def size(self, image: int) -> Size:
        """(H, W), px."""
        row = self._rows[image]
        return self._sizes[2 * row], self._sizes[2 * row + 1]

    def of(self, kind: str, image: int) -> list[Any]:
        """The records of an image, in the file's order, without those that were found wrong."""
        places, records = self._found[kind]
        place = places[self._rows[image]]
        return list(self._items(kind, image, records[place], Problems("count"), Counter())) if place >= 0 else []

    def _read(self, file: str) -> Iterator[tuple[int, int, int, Any]]:
        """Number, first byte, end and content of each record of a file, which is a list."""
        path = self.root / file
        for number, (key, start, end, record) in enumerate(walk(path, self.problems)):
            if key:
                raise ValueError(f"{path} holds an object at its top, with {key!r}; expected a list of records")
            yield number, start, end, record

    def _gather(self, kind: str) -> tuple[array, Records]:
        """Where among the kind's records each image's is (-1: it has none), and the records."""
        file, key, _ = LAYOUT[kind]
        path, places = self.root / file, array("i", [-1]) * (len(self._sizes) // 2)
        records = Records(path)
        seen = set[int]()
        for number, start, end, record in self._read(file):
            image = None
            with self.problems.at(f"{path}: image {name_in(record, number, *IDS)}"):
                take(record, key, list)
                name = take(record, "image_id" if "image_id" in record else "id", int)
                if name not in self._rows:
                    raise ValueError("is not in image_data.json")
                if name in seen:
                    raise ValueError("is there twice")
                seen.add(name)
                image = name
            if image is not None and list(self._items(kind, image, record, self.problems, self.skipped)):
                places[self._rows[image]] = len(records)
                records.append(start, end)
        return places, records

    def _items(
        self, kind: str, image: int, record: Any, problems: Problems, skipped: Counter[str]
    ) -> Iterator[list[Any]]:
        """What an image's record holds; `problems` takes what is wrong and `skipped` what is no problem."""
        file, key, convert = LAYOUT[kind]
        path, size = self.root / file, self.size(image)
        for place, item in enumerate(record[key]):
            with problems.at(f"{path}: image {image}: {key[:-1]} {name_in(item, place, *IDS)}"):
                if (found := convert(self, item, size, skipped)) is not None:
                    yield found

    def _box(self, record: Any, size: Size, skipped: Counter[str], width: str = "w", height: str = "h") -> list[float]:
        values = tuple(take(record, name, float) for name in ("x", "y", width, height))
        try:
            box, cut = read_box(values, size, "xywh", clip=self.clip)
        except ValueError as error:
            hint = "" if self.clip or "leaves" not in str(error) else " (clip_boxes: true cuts such boxes)"
            raise ValueError(f"{error}{hint}") from error
        skipped["box cut at the border"] += cut
        return [*box]

    def _region(self, item: Any, size: Size, skipped: Counter[str]) -> list[Any]:
        return [self._box(item, size, skipped, "width", "height"), take_line(item, "phrase")]

    def _object(self, item: Any, size: Size, skipped: Counter[str]) -> list[Any] | None:
        box = self._box(item, size, skipped)
        if not (name := name_of(item)):
            skipped["object without a name"] += 1
            return None
        attributes = take(item, "attributes", list) if "attributes" in item else []
        return [box, name, [str(one).strip().lower() for one in attributes if str(one).strip()]]

    def _relation(self, item: Any, size: Size, skipped: Counter[str]) -> list[Any] | None:
        ends = [take(item, end, dict) for end in ("subject", "object")]
        predicate = " ".join(take(item, "predicate", str).lower().split())
        names, boxes = [name_of(end) for end in ends], [self._box(end, size, skipped) for end in ends]
        if not predicate or not all(names):
            skipped["relation without a name"] += 1
            return None
        return [names[0], boxes[0], predicate, names[1], boxes[1]]


LAYOUT: dict[str, tuple[str, str, Callable[[Annotations, Any, Size, Counter[str]], list[Any] | None]]] = {
    "regions": ("region_descriptions.json", "regions", Annotations._region),
    "objects": ("objects.json", "objects", Annotations._object),
    "attributes": ("attributes.json", "attributes", Annotations._object),
    "relations": ("relationships.json", "relationships", Annotations._relation),
}


def name_of(record: Any) -> str:
    """An object's first name as words; version 1.2 has `name` where 1.4 has `names`. "" where it has none."""
    names = take(record, "names", list) if "names" in record else [take(record, "name", str)]
    if names and not isinstance(names[0], str):
        raise ValueError(f"its first name is {names[0]!r}; expected text")
    return wording.readable(names[0].lower()) if names else ""
