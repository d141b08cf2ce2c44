"""PACO-LVIS: objects and their parts on COCO photographs, a federation as LVIS is.

A category is an object (`trash_can`) or a part of one (`mouse_(computer_equipment):scroll_wheel`); what stands in
parentheses is left out, as LISA does. An object's parts are told of it: `scroll wheel of the mouse`.
Source: Ramanathan et al., PACO, arXiv:2301.01795; LISA's layout `vlpart/paco/annotations/paco_lvis_v1_train.json`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mglmm_data import wording
from mglmm_data.coco import CocoSource


class PacoSource(CocoSource):
    """`paco_lvis_v1_{train,val}.json` and COCO's photographs as a `Source`.

    Args:
        json_path: the annotations.
        image_root: the folder above `train2017/`, which the json's file names begin with.
        split, tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.
    """

    source = "paco_lvis"
    federated = True
    defaults = {"kind": "objects"}

    def naming(self, categories: Sequence[str]) -> list[tuple[str, str]]:
        """`bench:seat` is `seat of the bench`, a part of `bench`."""
        return part_names(categories)


def part_names(categories: Sequence[str]) -> list[tuple[str, str]]:
    """Names such as `object:part` as words, each with its object ("" for an object itself)."""
    owners = list(dict.fromkeys(name.partition(":")[0] for name in categories))
    words = dict(zip(owners, wording.bare(owners), strict=True))
    named = []
    for name in categories:
        owner, colon, part = name.partition(":")
        of = words[owner]
        named.append((wording.part_of(wording.readable(part), of), of) if colon else (of, ""))
    return named
