"""The files of GranDf, form by form, as captions with their marked phrases: what `GranDfSource` reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mglmm_data.annotation import unquoted
from mglmm_data.index import Records, walk
from mglmm_data.masks import Size
from mglmm_data.reading import (
    Problems,
    name_in,
    read_json,
    shown,
    take,
    take_id,
    take_list,
    take_size,
)

MIN_SIDE = 32
"""px: smaller images of Flickr's file are left out, and captions of fewer than three words (GLaMM and MGLMM)."""
MIN_WORDS = 3
NOWHERE = [-1, -1]
"""The characters of a phrase that is not in its caption."""
Way = tuple[int | str, ...]
"""The number of a record in the file, and the keys that lead to a segmentation, or to a list of them, in it."""
Mark = tuple[str, int, int, list[Any], Way]
"""A phrase, its characters start and end in the caption, its segmentations, and where they stand in the file."""


@dataclass
class Told:
    """A record of any form: its name, image file, size if the file has it, caption, and marks."""

    name: str
    file: str
    size: Size | None
    caption: str
    marks: list[Mark] = field(default_factory=list)


class Form(Protocol):
    """Reads the records of one form."""

    def __call__(self, path: Path, store: Records, problems: Problems, skipped: Counter[str]) -> Iterator[Told]: ...


def read_groundings(path: Path, store: Records, problems: Problems, skipped: Counter[str]) -> Iterator[Told]:
    """GranDf HA and OpenPSG: `groundings: {phrase: {token_positives: [start, end], rle_masks}}`."""
    for number, (_, begin, stop, record) in enumerate(walk(path, problems)):
        with problems.at(f"{path}: record number {number}"):
            raw = take(record, "caption", str)
            caption, cut = unquoted(raw)
            marks: list[Mark] = []
            for phrase, item in take(record, "groundings", dict).items():
                where = take(item, "token_positives", list)
                if len(where) != 2 or not all(isinstance(at, int) and not isinstance(at, bool) for at in where):
                    raise ValueError(f"its phrase {phrase!r} has the token_positives {where}; expected [start, end]")
                if where == NOWHERE:
                    skipped["phrase that is not in its caption"] += 1  # and its masks with it: they stay together
                    continue
                way = (len(store), "groundings", phrase, "rle_masks")
                marks.append((phrase, where[0], where[1], take(item, "rle_masks", list), way))
            shift = shift_of(raw, caption, cut, [mark[:3] for mark in marks])
            marks = [(phrase, start + shift, end + shift, found, way) for phrase, start, end, found, way in marks]
            store.append(begin, stop)
            yield Told(f"record number {number}", take(record, "file_name", str), None, caption, marks)


def shift_of(raw: str, caption: str, cut: int, spans: Iterable[tuple[str | None, int, int]]) -> int:
    """What to add to offsets: they count from the caption's first character, or else from what came off before it.

    Args:
        cut: how many characters came off.
        spans: phrase, start, end; where no phrase is given, it is taken for whole words.
    """
    spans = [*spans] if cut else []

    def fits(text: str) -> int:
        return sum(
            _is_whole(text, start, end) if phrase is None else text[start:end].lower() == phrase.lower()
            for phrase, start, end in spans
        )

    return -cut if fits(raw) > fits(caption) else 0


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether characters `start:end` lie in the text, without a blank around them or a part of a word."""
    piece = text[start:end]
    cuts = [text[max(at - 1, 0) : at + 1] for at in (start, end)]
    return 0 <= start < end <= len(text) and piece == piece.strip() and not any(re.match(r"\w\w", two) for two in cuts)


def read_refcocog(path: Path, store: Records, problems: Problems, skipped: Counter[str]) -> Iterator[Told]:
    """RefCOCOg GCG: `{id: {img_file_name, caption, refs: [{sentence, segmentation}]}}`, without offsets."""
    for number, (_, begin, stop, record) in enumerate(walk(path, problems)):
        with problems.at(f"{path}: record number {number}"):
            if not isinstance(record, dict) or len(record) != 1:
                raise ValueError(f"is {shown(record)}; expected an object with one id")
            ((name, item),) = record.items()
            caption, _ = unquoted(" ".join(take(item, "caption", str).split()))
            marks: list[Mark] = []
            seen: Counter[str] = Counter()
            for place, ref in enumerate(take(item, "refs", list)):
                phrase = " ".join(take(ref, "sentence", str).split())
                found = find_phrase(caption, phrase, seen[phrase.lower()])
                seen[phrase.lower()] += 1
                if found is None:
                    skipped["phrase that is not in its caption"] += 1
                    continue
                way = (len(store), name, "refs", place, "segmentation")
                marks.append((phrase, *found, [take(ref, "segmentation", object)], way))
            store.append(begin, stop)
            size = take_size(item) if {"height", "width"} <= item.keys() else None
            yield Told(f"image {name}", take(item, "img_file_name", str), size, caption, marks)


def find_phrase(caption: str, phrase: str, number: int = 0, begin: int = 0) -> tuple[int, int] | None:
    """The characters of a phrase's occurrence `number` (the last where there are fewer), as words, in any case."""
    if not phrase:
        return None
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    found = [*re.finditer(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE)]
    found = [match for match in found if match.start() >= begin] or found
    return found[min(number, len(found) - 1)].span() if found else None


def read_flickr(path: Path, store: Records, problems: Problems, skipped: Counter[str]) -> Iterator[Told]:
    """Flickr GCG: a COCO-style object with `caption`s of images, `tokens_positive` and `sam_mask` of annotations."""
    images: dict[Any, Told] = {}
    written: dict[Any, str] = {}  # captions with the blanks that offsets may count from
    for key, start, stop, record in walk(path, problems):
        name = record.get("id", f"at byte {start}") if isinstance(record, dict) else f"at byte {start}"
        with problems.at(f"{path}: {key.rstrip('s')} {name}"):
            if key == "images":
                caption, image = take(record, "caption", str), take_id(record, "id")
                file, size = take(record, "file_name", str), take_size(record)
                images[image], written[image] = Told(f"image {name}", file, size, caption.strip()), caption
            elif key == "annotations":
                image = take_id(record, "image_id")
                if image not in images:
                    raise ValueError(f"is on image id {image}, which is not among the images before it")
                if not take(record, "area", float) or not all(take(record, "bbox", list)[2:]):
                    skipped["annotation without an area"] += 1
                    continue
                spans = take(record, "tokens_positive", list)
                if len(spans) != 1 or not isinstance(spans[0], list) or len(spans[0]) != 2:
                    raise ValueError(f"its 'tokens_positive' is {shown(spans)}; expected [[start, end]]")
                begin, end = (take({"offset": value}, "offset", int) for value in spans[0])
                mask = take(record, "sam_mask", dict)
                images[image].marks.append(("", begin, end, [mask], (len(store), "sam_mask")))
                store.append(start, stop)
    for image, told in images.items():
        raw, caption = written[image], told.caption
        cut = len(raw) - len(raw.lstrip())
        shift = shift_of(raw, caption, cut, [(None, start, end) for _, start, end, _, _ in told.marks])
        told.marks = [
            (caption[start + shift : end + shift], start + shift, end + shift, found, way)
            for _, start, end, found, way in told.marks
        ]
        if told.size is not None and min(told.size) < MIN_SIDE:
            skipped[f"image below {MIN_SIDE} px"] += 1
        elif len(told.caption.split()) < MIN_WORDS:
            skipped[f"caption of fewer than {MIN_WORDS} words"] += 1
        else:
            yield told


def read_pair(path: Path, store: Records, problems: Problems, skipped: Counter[str]) -> Iterator[Told]:
    """The evaluation pair: captions with `labels`, and masks in the labels' order, each by image."""
    found: dict[Any, list[Any]] = {}
    for key, start, stop, record in walk(store.path, problems):
        with problems.at(f"{store.path}: {key.rstrip('s')} at byte {start}"):
            if key == "annotations":
                mask = take(record, "segmentation", dict)
                found.setdefault(take_id(record, "image_id"), []).append((mask, (len(store), "segmentation")))
                store.append(start, stop)
    data, files = read_json(path, dict), dict[Any, str]()
    for number, record in enumerate(take_list(data, "images", path)):
        with problems.at(f"{path}: image {name_in(record, number)}"):
            name = take_id(record, "id")
            files[name] = take(record, "file_name", str) if "file_name" in record else f"{name}.jpg"
    for number, record in enumerate(take_list(data, "annotations", path)):
        with problems.at(f"{path}: annotation number {number}"):
            image, labels = take_id(record, "image_id"), take(record, "labels", list)
            if image not in files:
                raise ValueError(f"is on image id {image}, which is not among the images")
            caption, _ = unquoted(" ".join(take(record, "caption", str).split()))
            pieces = found.get(image, [])
            if len(pieces) != len(labels):
                raise ValueError(
                    f"has {len(labels)} labels, {store.path.name} has {len(pieces)} masks of image {image}"
                )
            marks: list[Mark] = []
            cursor = 0
            for label, (mask, way) in zip(labels, pieces, strict=True):
                where = find_phrase(caption, take({"label": label}, "label", str), 0, cursor)
                if where is None:
                    skipped["phrase that is not in its caption"] += 1  # its mask counts all the same
                start, end = where or NOWHERE
                cursor = end if where else cursor
                marks.append((label, start, end, [mask], way))
            yield Told(f"image {image}", files[image], None, caption, marks)


def masks_of_pair(path: Path) -> Path:
    """The masks' json that belongs to an evaluation's captions."""
    if "_caption_gt" not in path.name:
        raise ValueError(f"{path} is not named ..._caption_gt.json; its masks are looked for in ..._mask_gt.json")
    return path.with_name(path.name.replace("_caption_gt", "_mask_gt"))


FORMS: dict[str, Form] = {
    "ha": read_groundings,
    "psg": read_groundings,
    "refcocog": read_refcocog,
    "flickr": read_flickr,
    "eval": read_pair,
}
