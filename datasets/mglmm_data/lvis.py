"""LVIS: 1203 categories on COCO photographs, annotated as a federation.

What is not annotated may still be there: only `neg_category_ids` are known to be absent from an image, and of
`not_exhaustive_category_ids` not each instance is marked. So absent targets come from the first, and nothing is asked
about all of the second.
Source: Gupta et al., LVIS, arXiv:1908.03195, section 3; lvisdataset.org.
"""

from __future__ import annotations

from collections.abc import Sequence

from mglmm_data import wording
from mglmm_data.coco import CocoSource

TASKS = {"panoptic": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}


class LvisSource(CocoSource):
    """`lvis_v1_{train,val}.json` and COCO's photographs as a `Source`.

    Args:
        json_path: the annotations.
        image_root: the folder of the images, or the one above `train2017/` and `val2017/`; `coco_url` tells which.
        split, tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.
    """

    source = "lvis"
    federated = True
    defaults = {"tasks": TASKS}

    def naming(self, categories: Sequence[str]) -> list[tuple[str, str]]:
        """`mouse_(computer_equipment)` is a mouse; `bow_(weapon)` keeps its addition, there are other bows."""
        return [(name, "") for name in wording.bare(categories)]
