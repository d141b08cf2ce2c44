"""Fashionpedia: garments, their parts and decorations, with attributes.

COCO-style, without boxes and with `attribute_ids` in each annotation and a list `attributes`; category ids begin at 0.
The attributes of a garment are told when somebody points at it: `a skirt, mini (length), plain (pattern).`
Source: Jia et al., Fashionpedia, arXiv:2004.12276; fashionpedia.github.io.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mglmm_data import wording
from mglmm_data.coco import CocoSource
from mglmm_data.coco_table import CROWD, Table
from mglmm_data.reading import take, take_id

TASKS = {"panoptic": 1.0, "referring": 2.0, "absent": 1.0, "region": 2.0, "box": 1.0}


class FashionpediaSource(CocoSource):
    """`instances_attributes_{train,val}2020.json` and its photographs as a `Source`.

    Args:
        json_path: the annotations.
        image_root: the photographs; by default the json's folder.
        split, tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: as `CocoSource`, or an annotation has an attribute that is not among the attributes.
    """

    source = "fashionpedia"
    defaults = {"tasks": TASKS}

    def naming(self, categories: Sequence[str]) -> list[tuple[str, str]]:
        """The first of several words: `shirt, blouse` is a shirt."""
        return [(name, "") for name in wording.bare(categories)]

    def detail(self, annotation: Mapping[str, Any]) -> str:
        """The attributes of an annotation, in its order."""
        return ", ".join(self._attributes[name] for name in annotation.get("attribute_ids") or ())

    def further(self) -> Mapping[str, Callable[[Any], None]]:
        """Attributes by id, and the ids that annotations have."""
        self._attributes: dict[Any, str] = {}
        self._used: set[Any] = set()
        return {"attributes": self._attribute, "annotations": self._look}

    def _attribute(self, record: Any) -> None:
        self._attributes[take_id(record, "id")] = wording.readable(take(record, "name", str))

    def _look(self, record: Any) -> None:
        if isinstance(record, dict) and record.get("attribute_ids") is not None:
            self._used.update(take_id({"attribute": one}, "attribute") for one in take(record, "attribute_ids", list))

    def _place(self, table: Table, kept: Sequence[bool]) -> tuple[array, list[dict[int, list[int]]]]:
        """Without annotations that have an attribute which is not there; the records are read again only for these."""
        owner, counts = super()._place(table, kept)
        unknown = self._used - self._attributes.keys()
        for number, record in enumerate(table.annotations if unknown else ()):
            if owner[number] >= 0 and (wrong := unknown.intersection(record.get("attribute_ids") or ())):
                with self.problems.at(f"{self.json_path}: annotation {record['id']}"):
                    raise ValueError(f"has attribute id {min(wrong, key=str)}, which is not among the attributes")
                count = counts[owner[number]][self._category[number]]
                count[0] -= not table.rows[number][3] & CROWD
                count[1] -= 1
                owner[number] = -1
        return owner, counts
