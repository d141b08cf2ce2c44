"""Car Parts: 18 parts of a car on each photograph, in a COCO-style json of COCO Annotator.

Two wheels are one annotation in some images and two in others, so they are one region named `wheels`.
Source: github.com/dsmlr/Car-Parts-Segmentation, `trainingset/annotations.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mglmm_data.coco import CocoSource
from mglmm_data.telling import Split


class CarPartsSource(CocoSource):
    """The json and `JPEGImages/` beside it as a `Source`: `CocoSource` of kind `parts`, of a car.

    Args:
        json_path, image_root, split, tasks, turns, seed, mirror, on_error: as in `CocoSource`.
    """

    source = "carparts"

    def __init__(
        self,
        json_path: str | Path,
        image_root: str | Path | None = None,
        *,
        split: Split | Mapping[str, Any] | None = None,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        super().__init__(
            json_path,
            image_root,
            kind="parts",
            object_name="car",
            rename={"wheel": "wheels"},
            split=split,
            tasks=tasks,
            turns=turns,
            seed=seed,
            mirror=mirror,
            on_error=on_error,
        )
