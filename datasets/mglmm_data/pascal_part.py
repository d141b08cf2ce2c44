"""PASCAL-Part: parts of the objects of PASCAL VOC 2010, in the COCO-style json that LISA and VLPart use.

Every category is a part, `aeroplane:left_wing`. The json marks no whole objects and not all parts of every object, so
nothing is asked that supposes them (`panoptic`, boxes and masks of the object).
Source: Chen et al., Detect What You Can, arXiv:1406.2031; LISA's layout `vlpart/pascal_part/train.json`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mglmm_data.coco import CocoSource
from mglmm_data.paco import part_names

TASKS = {"fine": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}


class PascalPartSource(CocoSource):
    """`train.json` and the photographs of VOC 2010 as a `Source`.

    Args:
        json_path: the annotations.
        image_root: the photographs; by default `VOCdevkit/VOC2010/JPEGImages` beside the json.
        split, tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.
    """

    source = "pascal_part"
    images = "VOCdevkit/VOC2010/JPEGImages"
    defaults = {"kind": "objects", "tasks": TASKS}

    def naming(self, categories: Sequence[str]) -> list[tuple[str, str]]:
        """`aeroplane:left_wing` is `left wing of the aeroplane`, a part of `aeroplane`."""
        return part_names(categories)
