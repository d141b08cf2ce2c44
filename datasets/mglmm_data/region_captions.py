"""Boxes with a text each, in COCO's form: Visual Genome as GLaMM and GPT4RoI train on it, and every set like it.

`images`: `id, file_name, height, width`; `annotations`: `image_id, bbox` (x, y, w, h in px) and `caption`. In MDETR's
files (RefCOCO, GLaMM's `RefCoco_Reg`) the text is the image's own `caption`, and an image is there once for each.
Source: mbzuai-oryx/groundingLMM, `docs/datasets.md` (visual_genome/train.json); ashkamath/mdetr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.annotation import check_turns
from mglmm_data.asking import check_weights
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
    take_id,
    take_line,
    take_list,
    take_size,
    with_both_halves,
)
from mglmm_data.sample import Box, Sample
from mglmm_data.visual_genome import ask_about

Place = tuple[int, int]
"""First byte of a record in the json, and the one behind it."""


class RegionCaptions:
    """A json as above and the images as a `Source`; a sample is a picture with all its regions.

    Args:
        path: the json.
        image_root: the folder of the images, or several.
        tasks: task -> weight, of describe (region to text) and locate (text to box).
        turns: questions drawn for each image; None for all of them, in order (evaluation).
        point_share: how often a given region is the point in the middle of its box.
        clip_boxes: cut boxes at the border, counted; off, a box that leaves its image by more than 1 px is an error.
        min_side: boxes with a side below this many px are left out, and counted (GLaMM leaves out those below 1).
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: the json is damaged, a record is malformed, an image is missing, or nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        tasks: Mapping[str, float] | None = None,
        turns: int | None = 3,
        point_share: float = 0.0,
        clip_boxes: bool = False,
        min_side: float = 1.0,
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        self.path, self.turns, self.seed, self.mirror = Path(path), check_turns(turns), seed, mirror
        self.tasks, self.point_share = check_weights(tasks or {"describe": 1.0}, ("describe", "locate")), point_share
        self.clip, self.min_side, self.problems = clip_boxes, min_side, Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What is repaired or left out by an option, counted: boxes cut at the border, boxes below `min_side`."""
        self._pictures = Pictures(with_both_halves(image_root))
        self._images: dict[int | str, tuple[tuple[str, Size], Place, str]] = {}
        self._places: dict[tuple[str, Size], list[Place]] = {}
        counts: Counter[str] = Counter()
        lists: set[str] = set()
        later: list[tuple[Any, int, Place]] = []
        for key, start, end, record in walk(self.path, self.problems, lists):
            if key == "images" and key in lists:
                self._image(record, counts[key], (start, end))
            elif key == "annotations" and key in lists:
                if "images" in lists:
                    self._annotation(record, counts[key], (start, end))
                else:
                    later.append((record, counts[key], (start, end)))
            counts[key] += 1
        for key in ("images", "annotations"):
            take_list(dict.fromkeys(sorted(lists), []), key, self.path)
        for record in later:
            self._annotation(*record)
        if not self._places:
            raise ValueError(f"{self.path} has no region with a text{self.problems.why}")
        self._records, packed = Records(self.path), []
        for (file, size), places in self._places.items():
            packed.append([file, size, len(self._records), len(self._records) + len(places)])
            for place in places:
                self._records.append(*place)
        self._packed = Packed(packed)
        del self._pictures, self._images, self._places

    def _image(self, record: Any, number: int, place: Place) -> None:
        with self.problems.at(f"{self.path}: image {name_in(record, number)}"):
            identity, size = take_id(record, "id"), take_size(record)
            if identity in self._images:
                raise ValueError("its id is there twice; ids must be unique")
            caption = take_line(record, "caption") if "caption" in record else ""
            file = self._pictures.find(take(record, "file_name", str))
            self._images[identity] = ((file, size), place, caption)

    def _annotation(self, record: Any, number: int, place: Place) -> None:
        with self.problems.at(f"{self.path}: annotation {name_in(record, number)}"):
            image = take_id(record, "image_id")
            if image not in self._images:
                raise ValueError(f"is on image id {image}, which is not among the images that could be used")
            picture, of, caption = self._images[image]
            own = "caption" in record or not caption
            if own:
                take_line(record, "caption")
            _, cut = self._box(record, picture[1])
            if min(record["bbox"][2:]) < self.min_side:
                self.skipped[f"box below {self.min_side:g} px"] += 1
                return
            self.skipped["box cut at the border"] += cut
            self._places.setdefault(picture, []).extend([place] if own else [place, of])

    def _box(self, record: Any, size: Size) -> tuple[Box, bool]:
        try:
            return read_box(take(record, "bbox", list), size, "xywh", clip=self.clip)
        except ValueError as error:
            hint = "" if self.clip or "leaves" not in str(error) else " (clip_boxes: true cuts such boxes)"
            raise ValueError(f"{error}{hint}") from error

    def __len__(self) -> int:
        return len(self._packed)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{Path(self._packed[index][0]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The picture at `index` with questions drawn by (seed, index, epoch); `Region.label` is a region's text.

        Raises:
            ValueError: the image is damaged, or of another size than the json says; or the json has changed since.
        """
        file, (height, width), first, last = self._packed[index]
        size, records = (height, width), iter(self._records[first:last])
        told: list[Any] = []
        for record in records:  # one without a text is followed by its image, which has it
            holder = record if "caption" in record else next(records)
            told.append([self._box(record, size)[0], take_line(holder, "caption")])
        loaded = load_picture(file, size, f"{self.path}: image {Path(file).name}")
        rng = np.random.default_rng([self.seed, index, epoch])
        subjects = dict.fromkeys(self.tasks, told)
        regions, conversations = ask_about(
            subjects, self.tasks, self.turns, size, self.point_share, rng, as_written=True
        )
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=regions,
            conversations=conversations,
            id=self.id_of(index),
            meta={
                "source": "region_captions",
                "file": file,
                "notes": loaded.notes,
                "mirror": self.mirror,
            },
        )
