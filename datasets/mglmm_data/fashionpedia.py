"""Fashionpedia: garments, their parts and decorations, with attributes.

COCO-style, without boxes and with `attribute_ids` in each annotation and a list `attributes`; category ids begin at 0.
The attributes of a garment are told when somebody points at it: `a skirt, mini (length), plain (pattern).`
Source: Jia et al., Fashionpedia, arXiv:2004.12276; fashionpedia.github.io.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mglmm_data import wording
from mglmm_data.coco import CocoSource
from mglmm_data.index import text_of
from mglmm_data.reading import Problems, take, take_id

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

    def naming(self, categories: Sequence[str], rename: Mapping[str, str]) -> list[tuple[str, str]]:
        """The first of several words: `shirt, blouse` is a shirt."""
        return [(name, "") for name in wording.bare(categories)]

    def detail(self, annotation: Mapping[str, Any]) -> str:
        """The attributes of an annotation, in its order."""
        return ", ".join(self._attributes[name] for name in annotation.get("attribute_ids") or ())

    def further(self) -> Mapping[str, Callable[[Any], None]]:
        """Attributes by id, and an annotation that has each."""
        self._attributes: dict[Any, str] = {}
        self._used: dict[Any, Any] = {}
        return {"attributes": self._attribute, "annotations": self._look}

    def _attribute(self, record: Any) -> None:
        self._attributes[take_id(record, "id")] = wording.readable(text_of(take(record, "name", str)))

    def _look(self, record: Any) -> None:
        if isinstance(record, dict) and record.get("attribute_ids") is not None:
            self._used.update(dict.fromkeys(take(record, "attribute_ids", list), record.get("id")))

    def check_further(self, problems: Problems) -> None:
        """No annotation may have an attribute that is not there."""
        for attribute in [one for one in self._used if one not in self._attributes]:
            with problems.at(f"{self.json_path}: annotation {self._used[attribute]}"):
                raise ValueError(f"has attribute id {attribute}, which is not among the attributes")
            self._attributes[attribute] = "something else"
