"""Fashionpedia: garments, their parts and decorations, with attributes.

COCO-style, without boxes and with `attribute_ids` in each annotation and a list `attributes`; category ids begin at 0.
The attributes of a garment are told when somebody points at it: `a skirt, mini (length), plain (pattern).`
Source: Jia et al., Fashionpedia, arXiv:2004.12276; fashionpedia.github.io.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mglmm_data import wording
from mglmm_data.coco import CocoSource
from mglmm_data.index import text_of, walk
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

    def read_more(self, problems: Problems) -> None:
        """Attributes by id; and no annotation may have one that is not there."""
        self._attributes: dict[Any, str] = {}
        used: dict[Any, Any] = {}
        for key, _, _, record in walk(self.json_path, Problems("count")):  # what is damaged was told by the first pass
            if key == "attributes":
                name = take_id(record, "id") if isinstance(record, dict) else record
                with problems.at(f"{self.json_path}: attribute {name}"):
                    self._attributes[name] = wording.readable(text_of(take(record, "name", str)))
            elif key == "annotations" and isinstance(record, dict) and isinstance(record.get("attribute_ids"), list):
                used.update(dict.fromkeys(record["attribute_ids"], record.get("id")))
        for attribute in [one for one in used if one not in self._attributes]:
            with problems.at(f"{self.json_path}: annotation {used[attribute]}"):
                raise ValueError(f"has attribute id {attribute}, which is not among the attributes")
            self._attributes[attribute] = "something else"
