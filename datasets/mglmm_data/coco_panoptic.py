"""COCO panoptic: every pixel of a photograph belongs to one segment, a thing or stuff of 133 categories.

The PNG's colour is the segment's id (R + 256 G + 65536 B; 0 is void), the json's `segments_info` its category. The
detection form, which panopticapi's converter writes and MGLMM reads, has an RLE for each segment; it is read as well.
Names are put into words as COCO-Stuff's are: `wall-other-merged` is `wall`.
Source: Kirillov et al., Panoptic Segmentation, arXiv:1801.00868; cocodataset/panopticapi.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mglmm_data import masks
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.cocostuff import NAMES, WIDE, in_words
from mglmm_data.images import load_photo
from mglmm_data.index import Records, Strings, walk
from mglmm_data.labelmap import read_colors
from mglmm_data.masks import Rle, Size
from mglmm_data.reading import Pictures, Problems, take, take_crowd, take_id, take_line, take_size

TASKS = {"panoptic": 2.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}
FIRST_STUFF = 92
"""The detection form does not say what is a thing; COCO's things have ids up to 90."""
VAGUE = {in_words(name) for name in NAMES if name.endswith("-other")} - {"sky"} | WIDE | {"rug", "dirt", "rock"}
VOID = 0
"""Code of the pixels without a segment."""


class CocoPanopticSource(Annotated):
    """`panoptic_{train,val}2017.json`, its PNGs and COCO's photographs as a `Source`.

    Args:
        json_path: the annotations, in the panoptic form or in the detection form.
        image_root: the photographs.
        png_root: the PNGs; by default the folder of the json's name beside it or above it. Not for the detection form.
        tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: the json is damaged, a file is missing, or a segment has an unknown category or a bad field.
    """

    source = "coco_panoptic"

    def __init__(
        self,
        json_path: str | Path,
        image_root: str | Path,
        png_root: str | Path | None = None,
        *,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.json_path, problems = Path(json_path), Problems(on_error)
        self._png_root = Path(png_root) if png_root is not None else None
        table = _Table(self.json_path, problems)
        self._categories, self._records = table.categories, table.records
        super().__init__(
            kind="instances",
            names=[words for words, _ in table.categories.values()],
            tasks=TASKS if tasks is None else tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            vague=VAGUE,
            mirror=mirror,
        )
        pictures = Pictures(image_root)
        self._files, self._images, self._sizes, rows, ends = (
            Strings(),
            array("q"),
            array("i"),
            array("i"),
            array("i", [0]),
        )
        for image, numbers in table.rows.items():
            with problems.at(f"{json_path}: annotation of image {image}"):
                if image not in table.images:
                    raise ValueError(f"is on image id {image}, which is not among the images")
                name, size = table.images[image]
                path = pictures.find(name)
                self._files.append(path)
                self._sizes.extend(size)
                rows.extend(numbers)
                ends.append(len(rows))
        self._rows, self._ends = rows, ends
        if bare := len(table.images.keys() - table.rows.keys()):
            self.skipped["image without annotation"] = bare
        if not self._files:
            raise ValueError(f"{json_path} has no annotated image that can be used{problems.why}")

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        (first,) = self._records.many(self._rows[self._ends[index] : self._ends[index] + 1])
        return f"{self.json_path.stem}/{first['image_id']}"

    def scene(self, index: int) -> Scene:
        """The segments of an image; crowds are no targets."""
        records = self._records.many(self._rows[self._ends[index] : self._ends[index + 1]])
        loaded, (height, width) = load_photo(self._files[index]), self._sizes[2 * index : 2 * index + 2]
        image = records[0]["image_id"]
        if loaded.size != (height, width):
            raise ValueError(
                f"{self.json_path}: image {image} is {(height, width)} (height, width) in the json, "
                f"{loaded.path} is {loaded.size}; use the images that were annotated"
            )
        if "segments_info" in records[0]:
            path = below(self._png_folder(), records[0]["file_name"])
            found, void = segments(path, records[0]["segments_info"], loaded.size)
        else:
            found, void = [], None
            for record in records:
                try:
                    found.append((record, masks.packed(record["segmentation"], loaded.size)))
                except ValueError as error:
                    raise ValueError(f"{self.json_path}: annotation {record.get('id')}: {error}; correct it") from error
        items = []
        for segment, rle in found:
            name, is_thing = self._categories[segment["category_id"]]
            record = f"segment {segment['id']}"
            items.append(Item(name, rle, bool(segment.get("iscrowd")), record=record, stuff=not is_thing))
        return Scene(loaded, items, meta={"image_id": image}, ignored=void)

    def _png_folder(self) -> Path:
        stem = self.json_path.stem
        ways = [self.json_path.parent / stem, self.json_path.parent.parent / stem]
        folder = self._png_root or next((way for way in ways if way.is_dir()), None)
        if folder is None:
            raise ValueError(f"no folder of PNGs for {self.json_path}; tried {', '.join(map(str, ways))}; set png_root")
        return folder


class _Table:
    """The json's images, categories, and which records belong to which image."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.categories: dict[Any, tuple[str, bool]] = {}
        """id -> words, and whether it is a thing."""
        self.images: dict[Any, tuple[str, Size]] = {}
        self.rows: dict[Any, list[int]] = {}
        self.records, lists = Records(path), set[str]()
        used: list[tuple[Any, ...]] = []
        for key, start, end, record in walk(path, problems, lists):
            number = record.get("id", record.get("image_id")) if isinstance(record, dict) else record
            with problems.at(f"{path}: {key} {number}"):
                if key == "categories":
                    words = in_words(take_line(record, "name"))
                    category = take_id(record, "id")
                    is_thing = isinstance(category, int) and category < FIRST_STUFF
                    self.categories[category] = (words, bool(record.get("isthing", is_thing)))
                elif key == "images":
                    self.images[take_id(record, "id")] = (take(record, "file_name", str), take_size(record))
                elif key == "annotations":
                    image, known = take_id(record, "image_id"), _check(record)
                    self.rows.setdefault(image, []).append(len(self.records))
                    self.records.append(start, end)
                    used.append((image, number, *known))
        if missing := [key for key in ("images", "annotations", "categories") if key not in lists]:
            raise ValueError(f"{path} has no list {', '.join(missing)}; a panoptic json has all of them")
        for row, (image, number, *categories) in enumerate(used):
            with problems.at(f"{path}: annotations {number}"):
                for category in categories:
                    if category not in self.categories:
                        self.rows[image].remove(row)
                        raise ValueError(f"has category id {category}, which is not among the categories")
        self.rows = {image: numbers for image, numbers in self.rows.items() if numbers}


def _check(record: Any) -> list[Any]:
    """The categories of an annotation of either form.

    Raises:
        ValueError: a field is missing or of another type.
    """
    if "segments_info" not in record:
        take(record, "segmentation", dict)
        take_id(record, "id")
        take_crowd(record)
        return [take_id(record, "category_id")]
    take(record, "file_name", str)
    numbers = [take(segment, "id", int) for segment in take(record, "segments_info", list)]
    if len(set(numbers)) < len(numbers):
        raise ValueError("has a segment id twice; ids must be unique")
    for segment in record["segments_info"]:
        take_crowd(segment)
    return [take_id(segment, "category_id") for segment in record["segments_info"]]


def segments(
    path: Path, infos: Sequence[Mapping[str, Any]], size: Size
) -> tuple[list[tuple[Mapping[str, Any], Rle]], Rle | None]:
    """The masks of the segments in a panoptic PNG, and that of what is void (code 0), if anything is.

    Raises:
        ValueError: the PNG is missing, damaged or of another size; a segment has no pixel, or pixels no segment.
    """
    colors = cv2.cvtColor(np.ascontiguousarray(read_colors(path, size)), cv2.COLOR_RGB2RGBA)  # alpha is 255
    codes = colors.view("<i4")[..., 0] & 0xFFFFFF  # R + 256 G + 65536 B
    rles, found = masks.rles_of_labels(codes), []
    for info in infos:
        if info["id"] not in rles:
            raise ValueError(
                f"{path} has no pixel of segment {info['id']} (category {info['category_id']}); correct it"
            )
        found.append((info, rles[info["id"]]))
    if stray := sorted(rles.keys() - {VOID, *(info["id"] for info in infos)}):
        raise ValueError(
            f"{path} has segment {stray[0]}, which is not in the json's segments_info; correct one of them"
        )
    return found, rles.get(VOID)


def below(folder: Path, name: str) -> Path:
    """A file in a folder, which its name must not leave."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"file {name!r} leaves {folder}; give a path inside it")
    return folder / name
