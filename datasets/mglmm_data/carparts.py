"""Car Parts: 18 parts of a car on each photograph, in a COCO-style json of COCO Annotator.

Two wheels are one annotation in some images and two in others, so they are one region named `wheels`.
Source: github.com/dsmlr/Car-Parts-Segmentation, `trainingset/annotations.json`.
"""

from __future__ import annotations

from mglmm_data.coco import CocoSource


class CarPartsSource(CocoSource):
    """The json and `JPEGImages/` beside it as a `Source`: `CocoSource` of kind `parts`, of a car.

    Args:
        json_path, image_root, split, tasks, turns, seed, mirror, on_error: as in `CocoSource`.
    """

    source = "carparts"
    defaults = {"kind": "parts", "object_name": "car", "rename": {"wheel": "wheels"}}
