"""The json of COCO-style annotations as columns, each record checked as far as the json alone allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from mglmm_data.index import Records, walk
from mglmm_data.masks import FARTHEST, Size
from mglmm_data.reading import (
    COCO_2014,
    SLACK,
    WRONG_TYPE,
    Problems,
    shown,
    take,
    take_crowd,
    take_id,
    take_line,
    take_size,
)

CROWD, EMPTY = 1, 2
"""Bits of an annotation's state."""
ANNOTATION = ("id", "image_id", "category_id")
ids_of = itemgetter(*ANNOTATION)
NUMBERS, ALL_IDS = frozenset((int, float)), frozenset((int, str))
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
"""Of an image in LVIS's form: categories that annotators looked for in vain, and those not marked exhaustively."""


class Shape(NamedTuple):
    """What can be said of an annotation's geometry without drawing it.

    `near` are, over its polygons, the largest least x and y; `far` the smallest greatest ones: a polygon is outside of
    the image where these are, so that it covers no pixel. One that is no wider than `SLACK` may lie that far outside,
    by the rounding of its file, and counts so much nearer. `span` is the box around all its polygons, `box` the json's
    own; both x1, y1, x2, y2.
    """

    rle_size: tuple[int, ...] | None
    near: tuple[float, float] | None
    far: tuple[float, float] | None
    span: tuple[float, float, float, float] | None
    box: tuple[float, float, float, float] | None

    def check(self, size: Size) -> None:
        """Against the image's size (H, W)."""
        height, width = size
        if self.rle_size is not None and self.rle_size != size:
            raise ValueError(f"its RLE is of size {list(self.rle_size)}, its image of {[*size]} (height, width)")
        if self.near and self.far and not _touches(*self.near, *self.far, size):
            raise ValueError(f"a polygon lies outside the image of {width}x{height} px")
        if self.box:
            x1, y1, x2, y2 = self.box
            out = max(-x1, -y1, x2 - width, y2 - height)
            if out > SLACK:
                raise ValueError(
                    f"its box {self.box} (x1, y1, x2, y2) leaves the image of {width}x{height} px by {out:g}"
                )

    def is_cut(self, size: Size) -> bool:
        """Whether a polygon reaches out of the image (H, W), whose edge cuts it, by more than rounding."""
        if self.span is None:
            return False
        x1, y1, x2, y2 = self.span
        return max(-x1, -y1, x2 - size[1], y2 - size[0]) > SLACK

    @classmethod
    def of(cls, annotation: Mapping[str, Any]) -> Shape:
        """From `segmentation` and `bbox`.

        Raises:
            ValueError: they are of a wrong type, or a polygon has an odd or short list.
        """
        segmentation, box = annotation["segmentation"], annotation.get("bbox")
        rle_size = nearest = far = span = None
        if isinstance(segmentation, dict):
            size = segmentation.get("size")
            if not isinstance(size, list):
                raise ValueError(f"its RLE's size is {shown(size)}; expected [height, width]")
            rle_size = tuple(size)
            if not segmentation.get("counts"):
                raise ValueError("its RLE has no counts")
        elif isinstance(segmentation, list):
            for polygon in segmentation:
                _check_polygon(polygon)
            if segmentation:
                left, right, x1, x2 = _reach(segmentation, 0)
                top, bottom, y1, y2 = _reach(segmentation, 1)
                nearest, far, span = (left, top), (right, bottom), (x1, y1, x2, y2)
        else:
            raise ValueError(f"its segmentation is {type(segmentation).__name__}, not polygons or an RLE")
        if box is not None:
            if not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
                raise ValueError(f"its bbox is {shown(box)}; expected four numbers x, y, width, height")
            if max(map(abs, box)) > FARTHEST:
                raise ValueError(f"its bbox is {shown(box)}; no picture is as large")
            if box[2] < 0 or box[3] < 0:
                raise ValueError(f"its bbox {box} has a negative side; expected x, y, width, height")
            box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        return cls(rle_size, nearest, far, span, box)


def _touches(x1: float, y1: float, x2: float, y2: float, size: Size) -> bool:
    return x1 < size[1] and y1 < size[0] and x2 > 0 and y2 > 0


def _reach(polygons: Sequence[Sequence[float]], axis: int) -> tuple[float, float, float, float]:
    """Along one axis, the largest least and the smallest greatest coordinate of polygons, and where all lie between."""
    near, far, first, last = -math.inf, math.inf, math.inf, -math.inf
    for polygon in polygons:
        line = polygon[axis::2]
        least, most = min(line), max(line)
        if least < -FARTHEST or most > FARTHEST:
            raise ValueError(f"a polygon holds {shown(max(line, key=abs))}, far outside")
        if least < first:
            first = least
        if most > last:
            last = most
        if most - least <= SLACK:
            least, most = least - SLACK, most + SLACK
        if least > near:
            near = least
        if most < far:
            far = most
    return near, far, first, last


def _check_polygon(polygon: Any) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        found = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
        raise ValueError(f"a polygon has {found}, it needs 6 or more, in pairs x, y")
    if not NUMBERS.issuperset(map(type, polygon)):
        wrong = next(value for value in polygon if type(value) not in NUMBERS)
        raise ValueError(f"a polygon holds {shown(wrong)}; expected numbers")


class Table:
    """A json as columns: what is needed to choose images, and where the rest stands.

    `more` takes the records of further lists, and those of `annotations` once more.
    """

    def __init__(self, path: Path, problems: Problems, more: Mapping[str, Callable[[Any], None]]) -> None:
        self.categories: dict[Any, str] = {}
        self.ids: list[Any] = []
        self.images: list[tuple[str, Size, list[str], int]] = []
        """File name, (H, W), other places of the file below the root, and how many categories are known absent."""
        self.places: dict[Any, int] = {}
        self.rows: list[tuple[Any, Any, Any, int, Shape]] = []
        """Of each annotation: id, image id, category id, state, shape."""
        readers = {"images": self._image, "categories": self._category, "annotations": self._annotation}
        lists: set[str] = set()
        walked = walk(path, problems, lists)
        first = next(walked, None)
        self.annotations, self.image_records = Records(path), Records(path)
        for key, start, end, record in chain([first] if first else [], walked):
            if key in lists:
                try:
                    if key in more:
                        more[key](record)
                    if key in readers:
                        readers[key](record, start, end)
                except (ValueError, *WRONG_TYPE) as error:
                    # The sentence is made only where it is needed: there are many records.
                    name = record.get("id", f"at byte {start}") if isinstance(record, dict) else f"at byte {start}"
                    problems.take(f"{path}: {'category' if key == 'categories' else key[:-1]} {name}", error)
        if absent := [key for key in readers if key not in lists]:
            raise ValueError(f"{path} has no list {', '.join(absent)}; a COCO-style json has {', '.join(readers)}")

    def _image(self, record: Any, start: int, end: int) -> None:
        name, others = take_id(record, "id"), []
        if isinstance(url := record.get("coco_url"), str):
            others += ["/".join(url.split("/")[-2:]), url.split("/")[-1]]
        file = take(record, "file_name", str) if "file_name" in record or not others else others[0]
        size = take_size(record)
        if name in self.places:
            raise ValueError("its id is there twice; ids must be unique")
        if COCO_2014.match(file):
            others.append(COCO_2014.sub("", file))
        if record.get("path"):
            others.append(take(record, "path", str).lstrip("/"))
        if not file:
            raise ValueError("its 'file_name' is empty")
        for key in FEDERATED:
            if not ALL_IDS.issuperset(map(type, take(record, key, list) if record.get(key) is not None else ())):
                raise ValueError(f"its {key!r} is {shown(record[key])}; expected ids of categories")
        negative = record.get("neg_category_ids")
        self.places[name] = len(self.images)
        self.ids.append(name)
        self.images.append((file, size, others, len(negative or ())))
        self.image_records.append(start, end)

    def _category(self, record: Any, start: int, end: int) -> None:
        name = take_id(record, "id")
        if name in self.categories:
            raise ValueError("its id is there twice; ids must be unique")
        self.categories[name] = take_line(record, "name")

    def _annotation(self, record: Any, start: int, end: int) -> None:
        try:
            name, image, category = ids_of(record)
        except (KeyError, TypeError):
            name = image = category = None
        if not type(name) is type(image) is type(category) is int:
            name, image, category = (take_id(record, key) for key in ANNOTATION)
        if "segmentation" not in record:
            raise ValueError("has no 'segmentation'")
        state = (CROWD if take_crowd(record) else 0) | (0 if record["segmentation"] else EMPTY)
        self.rows.append((name, image, category, state, Shape.of(record)))
        self.annotations.append(start, end)


def read_captions(path: Path, places: Mapping[Any, int], problems: Problems) -> list[list[str]]:
    """The captions of each image, in one line each."""
    told: list[list[str]] = [[] for _ in places]
    lists: set[str] = set()
    for key, _, _, record in walk(path, problems, lists):
        if key != "annotations":
            continue
        name = record.get("id") if isinstance(record, dict) else record
        if not isinstance(record, dict) or "caption" not in record or "image_id" not in record:
            with problems.at(f"{path}: annotation {name}"):
                raise ValueError("has no caption or image_id; give a captions json")
            continue
        with problems.at(f"{path}: annotation {name}"):
            text = " ".join(take(record, "caption", str).split())
            place = places.get(take_id(record, "image_id"))
            if text and place is not None:
                told[place].append(text)
    if "annotations" not in lists:
        raise ValueError(f"{path} has no list annotations; a COCO-style captions json has one")
    return told
