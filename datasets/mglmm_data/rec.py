"""REC: the box of an expression, in the two forms that grounding models are trained and scored with.

* MDETR's json (`finetune_refcoco_train.json`; Ferret, Shikra, Groma): a COCO-style object whose `images` each hold one
  expression as `caption`, and whose `annotations` hold its `bbox` (x, y, w, h in px) and `tokens_positive`.
* MiniGPT-v2's json (`refcoco_val.json`): a list of `{img_id, sents, bbox, height, width}`; the photograph is `img_id`
  without the number of the object at its end.

Source: ashkamath/mdetr; Vision-CAIR/MiniGPT-4, `eval_scripts/eval_ref.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.annotation import above, check_turns, choose, refer
from mglmm_data.index import walk
from mglmm_data.masks import Size
from mglmm_data.reading import Packed, Pictures, Problems, load_picture, read_box, take, take_id, take_line, take_size
from mglmm_data.refer import COCO_FOLDERS, named
from mglmm_data.sample import Box, Region, Sample

MIN_SIDE = 32
"""px: MDETR's readers leave smaller images out (GLaMM and MGLMM `_filter_images`)."""
Row = tuple[str, Size, Box, str]
"""Image file, (H, W), box, expression."""


class RecSource:
    """Expressions and their boxes; a sample is an image with up to `turns` of its expressions, answered by boxes.

    Args:
        path: a json of either form.
        image_root: folder of the photographs, COCO's train2014; by default looked for beside the json as in LISA's,
            GLaMM's and MGLMM's layouts.
        turns: expressions drawn for each image; null asks all of them, in the file's order.
        min_side: smaller images are left out, and counted in `skipped`.

    Raises:
        ValueError: the json is of neither form or damaged, an image is missing, or (with on_error: fail) a record is
            malformed or its box not in its image.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        *,
        turns: int | None = 3,
        min_side: int = MIN_SIDE,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.path, self.seed, self.mirror, self.min_side = Path(path), seed, mirror, min_side
        self.turns, self.problems = check_turns(turns), Problems(on_error)
        self.skipped: Counter[str] = Counter()
        self.pictures = Pictures(image_root or above(self.path, COCO_FOLDERS, "folder of COCO's train2014"))
        grouped: dict[tuple[str, Size], list[Any]] = {}
        for file, size, box, expression in self._rows():
            grouped.setdefault((file, size), []).append([box, expression])
        if not grouped and not self.problems.found:
            raise ValueError(f"{self.path} holds no expression; give MDETR's or MiniGPT-v2's json")
        self._entries = Packed([file, size, items] for (file, size), items in grouped.items())

    def _rows(self) -> Iterator[Row]:
        images: dict[Any, tuple[str, Size, str]] = {}
        told: set[Any] = set()
        for key, start, _, record in walk(self.path, self.problems):
            name = {"images": "image", "annotations": "annotation"}.get(key, "row")
            with self.problems.at(f"{self.path}: {name} {named(record, 'id', f'at byte {start}')}"):
                row = None
                if key == "images":
                    caption = " ".join(take_line(record, "caption").split())
                    images[take_id(record, "id")] = (
                        take(record, "file_name", str),
                        take_size(record),
                        caption,
                    )
                elif key == "annotations":
                    row = self._mdetr(record, images)
                    told.add(record["image_id"])
                elif key == "":
                    row = self._minigpt(record)
                if row is not None:
                    self.pictures.find(row[0])
                    yield row
        for image in images.keys() - told:
            with self.problems.at(f"{self.path}: image {image}"):
                raise ValueError("has no annotation, so its expression has no box")

    def _mdetr(self, record: Any, images: dict[Any, tuple[str, Size, str]]) -> Row | None:
        image = take_id(record, "image_id")
        if image not in images:
            raise ValueError(f"is on image id {image}, which is not among the images before it")
        file, size, caption = images[image]
        box, _ = read_box(take(record, "bbox", list), size, "xywh")
        return self._kept(file, size, box, caption)

    def _minigpt(self, record: Any) -> Row | None:
        size = take_size(record)
        box, _ = read_box(take(record, "bbox", list), size, "xywh")
        stem, under, number = take(record, "img_id", str).rpartition("_")
        if not under or not number.isdigit() or not stem:
            raise ValueError(f"its 'img_id' is {record['img_id']!r}; expected an image's name and an object's number")
        return self._kept(f"{stem}.jpg", size, box, take_line(record, "sents"))

    def _kept(self, file: str, size: Size, box: Box, expression: str) -> Row | None:
        if min(size) < self.min_side:
            self.skipped[f"image below {self.min_side} px"] += 1
            return None
        return file, size, box, expression

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{Path(self._entries[index][0]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with expressions drawn by (seed, index, epoch); a region is the box of one of them.

        Raises:
            ValueError: the image is damaged or of another size.
        """
        file, size, items = self._entries[index]
        path = self.pictures.find(file)
        loaded = load_picture(path, (size[0], size[1]), f"{self.path}: image {file}")
        rng = np.random.default_rng([self.seed, index, epoch])
        chosen = choose(items, self.turns, rng)
        boxes = list(dict.fromkeys(tuple(box) for box, _ in chosen))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(Region(size=loaded.size, box=box) for box in boxes),
            conversations=tuple(
                refer(text, (boxes.index(tuple(box)),), rng, wordings="box", task="box") for box, text in chosen
            ),
            id=self.id_of(index),
            meta={
                "source": "rec",
                "image_id": Path(file).stem,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            },
        )
