"""Instructions with locations in the form of Ferret's GRIT, as `grit_build.py` writes them or as others have them.

A record: `{id, image, image_w, image_h, conversations: [{from, value}], box_x1y1x2y2, masks?, words?, dataset?}`, in a
json list or one a line. `<bbox_location2>` in turn t stands for `box_x1y1x2y2[t][2]` (px of the image) and
`masks[t][2]` (COCO RLE). A location in a question is a region that the user gives, as a point or a box half and half;
in an answer it grounds the words before it. `words[t][k]` says which; without it they go back to the nearest article.
Source: `train.py` of apple/ml-ferret; facts as in shared/reference/grounding_systems.md, section 3.7.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks
from mglmm_data.annotation import check_segmentation
from mglmm_data.benchmarks import OPENERS, phrase_start
from mglmm_data.masks import Size
from mglmm_data.reading import (
    OnError,
    Packed,
    Pictures,
    Problems,
    load_picture,
    named,
    read_box,
    read_jsonl,
    shown,
    stream_json,
    take,
    take_id,
)
from mglmm_data.sample import Conversation, Grounding, Mention, Region, Sample, Turn

PLACES = re.compile(r"(?:\s*<bbox_location\d+>)+")
NUMBER = re.compile(r"<bbox_location(\d+)>")
IMAGE = re.compile(r"\s*<image>\s*")
SPEAKERS = ("human", "gpt")
POINTERS = OPENERS | {"object", "objects", "region", "regions", "area", "areas", "place", "point", "box"}
"""With these words a question's own name of a place begins; after others, `this region` is put in."""


class GritSource:
    """A file of such records and the images as a `Source`; a sample is a record.

    Args:
        path: a json list, or a jsonl.
        image_root: the folder of the images, or several.
        point_share: how often a given region is a point: the middle of its box, or of its mask the pixel next to that.
        clip_boxes: cut boxes at the border, counted; off, a box that leaves its image by more than 1 px is an error.
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: the file is damaged, a record is malformed (a location without a box too), an image is missing.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        point_share: float = 0.5,
        clip_boxes: bool = False,
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        if not 0 <= point_share <= 1:
            raise ValueError(f"point_share is {point_share}; give a share between 0 and 1, e.g. 0.5 as Ferret")
        self.path, self.point_share, self.seed, self.mirror = Path(path), point_share, seed, mirror
        self.clip, self.problems = clip_boxes, Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What is repaired, counted: boxes cut at the border."""
        self._packed = Packed(self._records(Pictures(image_root)))
        if not len(self._packed):
            raise ValueError(f"{self.path} has no record that could be used{self.problems.why}")

    def _records(self, pictures: Pictures) -> Iterator[Any]:
        lines = self.path.suffix.lower() == ".jsonl"
        every = read_jsonl(self.path, self.problems) if lines else enumerate(stream_json(self.path))
        for number, record in every:
            identity = record.get("id", f"number {number}") if isinstance(record, dict) else f"number {number}"
            with self.problems.at(f"{self.path}: record {identity}"):
                size = (take(record, "image_h", int), take(record, "image_w", int))
                turns = self._read(record, size)
                name = pictures.find(take(record, "image", str))
                yield take_id(record, "id"), name, size, str(record.get("dataset", "")), turns

    def _read(self, record: Any, size: Size) -> list[Any]:
        """Of each turn its pieces, `text` or `[words, [k, ...]]`, its boxes, and its masks ([] for none)."""
        told = take(record, "conversations", list)
        if not told or len(told) % 2:
            raise ValueError(f"has {len(told)} turns; every question has an answer")
        boxes = _by_turn(record, "box_x1y1x2y2", len(told))
        rles, words = _by_turn(record, "masks", len(told)), _by_turn(record, "words", len(told))
        turns = []
        for number, turn in enumerate(told):
            if take(turn, "from", str) != SPEAKERS[number % 2]:
                raise ValueError(f"turn {number} is from {turn['from']!r}; human and gpt take turns, human begins")
            text = IMAGE.sub(" ", take(turn, "value", str)).strip()
            read = []
            for box in boxes[number]:
                found, cut = read_box(box, size, "xyxy", clip=self.clip)
                self.skipped["box cut at the border"] += cut
                read.append(found)
            for rle in rles[number]:
                if not isinstance(rle, dict) or rle.get("size") != [*size]:
                    raise ValueError(f"turn {number} has a mask that is no RLE of size {size} (height, width)")
                check_segmentation(rle, size)
            if rles[number] and len(rles[number]) != len(read):
                raise ValueError(f"turn {number} has {len(read)} boxes and {len(rles[number])} masks")
            turns.append([_pieces(text, len(read), words[number], number), read, rles[number]])
        return turns

    def __len__(self) -> int:
        return len(self._packed)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{self._packed[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The record at `index`; whether its given regions are points or boxes is drawn by (seed, index, epoch).

        Raises:
            ValueError: the image is damaged or of another size than the record says, or a mask does not decode.
        """
        identity, path, (height, width), dataset, told = self._packed[index]
        size, where = (height, width), f"{self.path}: record {identity}"
        loaded = load_picture(path, size, where)
        rng = np.random.default_rng([self.seed, index, epoch])
        regions: list[Region] = []
        turns = []
        for number, (pieces, boxes, rles) in enumerate(told):
            text, spans = "", []
            for piece in pieces:
                words, places = (piece, []) if isinstance(piece, str) else piece
                with named(where):
                    new = [
                        self._region(boxes[k], rles[k] if rles else None, size, number % 2 == 0, rng) for k in places
                    ]
                if new:
                    spans.append((len(text), len(text) + len(words), range(len(regions), len(regions) + len(new))))
                regions += new
                text += words
            if number % 2:
                phrases = tuple(Grounding(start, end, tuple(found)) for start, end, found in spans)
                turns.append(Turn("assistant", text, phrases, grounding="box"))
            else:
                turns.append(Turn("user", text, mentions=tuple(Mention(s, e, found[0]) for s, e, found in spans)))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=(Conversation(tuple(turns), task="grit", kind=dataset),),
            id=self.id_of(index),
            meta={
                "source": "grit",
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
            },
        )

    def _region(self, box: Any, rle: Any, size: Size, given: bool, rng: np.random.Generator) -> Region:
        if not given or rng.random() >= self.point_share:
            return Region(size, box=tuple(box))
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if rle is not None:
            rows, columns = np.nonzero(masks.decode(rle, size))
            if len(rows):
                nearest = int(np.argmin((columns + 0.5 - middle[0]) ** 2 + (rows + 0.5 - middle[1]) ** 2))
                middle = float(columns[nearest] + 0.5), float(rows[nearest] + 0.5)
        return Region(size, point=middle)


def _by_turn(record: Any, key: str, count: int) -> list[list[Any]]:
    """A field with a list for each turn; one that is not there, or null for a turn, is empty."""
    values = record.get(key) or [[]] * count
    if not isinstance(values, list) or len(values) != count or not all(isinstance(v or [], list) for v in values):
        raise ValueError(f"its {key!r} has not a list for each of its {count} turns")
    return [value or [] for value in values]


def _pieces(text: str, num_boxes: int, words: list[Any], turn: int) -> list[Any]:
    """Text and `[words, [k, ...]]` in reading order; in a question each place speaks of one region."""
    pieces: list[Any] = []
    at = 0
    for run in PLACES.finditer(text):
        numbers = [int(number) for number in NUMBER.findall(run.group())]
        if wrong := [number for number in numbers if number >= num_boxes]:
            raise ValueError(f"turn {turn} speaks of <bbox_location{wrong[0]}>; it has {num_boxes} boxes, from 0")
        before = text[at : run.start()]
        said = words[numbers[0]] if numbers[0] < len(words) else ""
        if not isinstance(said, str):
            raise ValueError(f"turn {turn} has the words {shown(said)}; expected text")
        if said and not before.endswith(said):
            raise ValueError(f"turn {turn}: <bbox_location{numbers[0]}> does not stand behind its words {said!r}")
        start = len(before) - len(said) if said else phrase_start(before)
        if not said and not turn % 2 and start is not None and before[start:].split()[0].lower() not in POINTERS:
            start = None  # "Is <bbox_location0> safe?": the word before is no name of the place
        if start is None:
            if turn % 2:
                raise ValueError(f"turn {turn}: <bbox_location{numbers[0]}> stands behind no word; an answer names it")
            front = before + (" " if before and not before.endswith(" ") else "")
            pieces += [front, ["this region" if front else "This region", numbers[:1]]]
        else:
            pieces += [before[:start], [before[start:], numbers if turn % 2 else numbers[:1]]]
        for number in () if turn % 2 else numbers[1:]:
            pieces += [" and ", ["this region", [number]]]
        at = run.end()
    return [piece for piece in [*pieces, text[at:]] if piece]
