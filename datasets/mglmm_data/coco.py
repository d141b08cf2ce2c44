"""COCO-style json: instances with captions, and part categories (Car Parts), as samples.

Reads polygons, uncompressed and compressed RLE. What is wrong in a json is an error at construction that names the
file and the annotation; what only the pixels can tell (an image of another size, a mask that does not decode) is one
when a sample is read. The json stays on disk (`mglmm_data.index`).
Source of the format: cocodataset.org/#format-data; `path` and `_background_` come from COCO Annotator's exports.
"""

from __future__ import annotations

import gc
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mglmm_data import masks, wording
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.coco_table import CROWD, Table, read_captions
from mglmm_data.images import load_photo
from mglmm_data.index import Groups, Strings
from mglmm_data.reading import Problems
from mglmm_data.telling import SERVED, Kind, Named, Split, make_split, near

FOLDERS = ("", "JPEGImages", "images")
"""Where below the image root a file is looked for, before the json's own `path`."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without garbage collection, which would look through every row made so far, again and again, and find nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class CocoSource(Annotated):
    """A COCO-style json and its images as a `Source`.

    Args:
        json_path: the annotations (`images`, `categories`, `annotations`).
        image_root: the folder of the images; by default the json's own. `JPEGImages/` and `images/` in it, and the
            json's `path` and the end of its `coco_url`, are tried.
        kind: `instances` (the default), where each annotation is an object; or `parts` of one object, where a category
            is one region, all its annotations joined (Car Parts has two wheels in one annotation in some images and in
            two in others).
        captions: a captions json of the same images; its other images are ignored.
        skip_categories: names that are no target.
        rename: category name -> the words to use, e.g. `{"wheel": "wheels"}`; two with the same words become one, and
            names that are not here lose their underscores.
        split: which images belong; `validation_share`, `seed`, `part` (train, validation, all).
        object_name: what the parts belong to.
        tasks: task -> weight, of `telling.SERVED` for the kind; each kind has its default.
        turns: questions drawn for each image.
        max_regions: where a category has more instances than this in an image, they are joined into one region.
        mirror: for the augmentation: mirroring swaps left and right in the text ("swap"), or is not done here ("off").
        on_error: `fail` at a bad annotation, or `count`: leave it out and list it in `problems.found`.

    Raises:
        ValueError: the json is damaged, an image is missing, an annotation is malformed or points nowhere.
    """

    source = "coco"
    federated = False
    """Only what is annotated is known: a category may be there and not be marked (LVIS, PACO)."""
    images = ""
    """Where the images lie, from the json's folder, where nobody says it."""
    defaults: Mapping[str, Any] = {}
    """What a data set of this form takes for `kind`, `tasks`, `rename` and `object_name` where nobody says it."""

    def __init__(
        self,
        json_path: str | Path,
        image_root: str | Path | None = None,
        *,
        kind: Kind | None = None,
        captions: str | Path | None = None,
        skip_categories: Sequence[str] = ("_background_",),
        rename: Mapping[str, str] | None = None,
        split: Split | Mapping[str, Any] | None = None,
        object_name: str | None = None,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        kind = kind or self.defaults.get("kind", "instances")
        rename = self.defaults.get("rename") if rename is None else rename
        tasks = self.defaults.get("tasks") if tasks is None else tasks
        object_name = object_name or str(self.defaults.get("object_name", "object"))
        if kind not in SERVED:
            raise ValueError(f"kind is {kind!r}{near(kind, SERVED)}")
        self.json_path = Path(json_path)
        self.image_root = Path(image_root) if image_root is not None else self.json_path.parent / self.images
        self._listed: dict[str, frozenset[str]] = {}
        problems = Problems(on_error)
        with undisturbed():
            table = Table(self.json_path, problems, self.further())
        names = renamed(list(table.categories.values()), self.naming(list(table.categories.values())), rename or {})
        for name in (rename or {}).keys() | set(skip_categories) - {"_background_"}:
            if name not in table.categories.values():
                known = table.categories.values()
                raise ValueError(f"{self.json_path} has no category {name!r} to skip or rename{near(name, known)}")
        kept = [name not in skip_categories for name in table.categories.values()]
        for (key, name), (words, _), keep in zip(table.categories.items(), names, kept, strict=True):
            if keep and not words.split():
                raise ValueError(
                    f"{self.json_path}: category {key} is called {name!r}, which is no word; rename or skip it"
                )
        super().__init__(
            kind=kind,
            names=[name for (name, _), keep in zip(names, kept, strict=True) if keep],
            tasks=tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            object_name=object_name,
            mirror=mirror,
            has_captions=captions is not None,
        )
        self._named, self._records, self._image_records = names, table.annotations, table.image_records
        self._category = array("i", [-1]) * len(table.annotations)
        with undisturbed():
            owner, counts = self._place(table, kept)
            told = read_captions(Path(captions), table.places, problems) if captions else None
            self._keep(table, owner, counts, told, make_split(split))

    def further(self) -> Mapping[str, Callable[[Any], None]]:
        """What takes the records of further lists of the json, by list; for `annotations`, once more."""
        return {}

    def naming(self, categories: Sequence[str]) -> list[tuple[str, str]]:
        """For each category, its words, and the object whose part it is ("" for an object)."""
        return [(wording.readable(name), "") for name in categories]

    def detail(self, annotation: Mapping[str, Any]) -> str:
        """Words about an annotation, for the answer that names its region."""
        return ""

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        return f"{self.json_path.stem}/{self._image_records[int(self._images[index])]['id']}"

    def scene(self, index: int) -> Scene:
        """The image at `index` and its annotations, read from disk."""
        image = self._image_records[int(self._images[index])]
        loaded = load_photo(self._files[index])
        size = (int(image["height"]), int(image["width"]))
        if loaded.size != size:
            raise ValueError(
                f"{self.json_path}: image {image['id']} is {size} (height, width) in the json, "
                f"{loaded.path} is {loaded.size}; use the images that were annotated"
            )
        numbers = self._by_image[index]
        items = []
        for number, annotation in zip(numbers, self._records.many(numbers), strict=True):
            name, of = self._named[self._category[number]]
            record = f"annotation {annotation['id']}"
            try:
                rle = masks.rle_of_segmentation(annotation["segmentation"], size)
            except ValueError as error:
                raise ValueError(f"{self.json_path}: {record}: {error}; correct or remove it") from error
            crowd = bool(annotation.get("iscrowd"))
            items.append(Item(name, rle, crowd, of, self.detail(annotation), record))
        incomplete, absent = self._federated(image)
        captions = self._captions[slice(*self._told[index : index + 2])] if self._captions is not None else ()
        return Scene(
            image=loaded,
            items=items,
            captions=captions,
            incomplete=incomplete,
            absent=absent,
            meta={"image_id": image["id"]},
        )

    def _federated(self, image: Mapping[str, Any]) -> tuple[list[str], list[str] | None]:
        """Names of which not each instance is marked, and names that are known not to be there."""
        if not self.federated:
            return [], None
        incomplete, absent = (
            [self._named[self._ids[i]][0] for i in image.get(key) or () if i in self._ids]
            for key in ("not_exhaustive_category_ids", "neg_category_ids")
        )
        return incomplete, list(dict.fromkeys(absent))

    def _place(self, table: Table, kept: Sequence[bool]) -> tuple[array, list[dict[int, list[int]]]]:
        """The image of each annotation (-1: left out), and for each image: category -> [targets, annotations]."""
        self._ids = {category: place for place, category in enumerate(table.categories)}
        owner = array("i", [-1]) * len(table.annotations)
        counts: list[dict[int, list[int]]] = [{} for _ in table.images]
        for number, (name, image, category, state, shape) in enumerate(table.rows):
            try:
                if image not in table.places:
                    raise ValueError(f"is on image id {image}, which is not among the images")
                if category not in self._ids:
                    raise ValueError(f"has category id {category}, which is not among the categories")
                place, which = table.places[image], self._ids[category]
                shape.check(table.images[place][1])
            except ValueError as error:
                self.problems.take(f"{self.json_path}: annotation {name}", error)
                continue
            if not kept[which]:
                self.skipped["skipped category"] += 1
                continue
            if shape.is_cut(table.images[place][1]):
                self.skipped["what polygons have outside of their image"] += 1
            if state:
                self.skipped["crowd" if state & CROWD else "no mask"] += 1
            self._category[number] = which
            owner[number] = place
            count = counts[place].setdefault(which, [0, 0])
            count[0] += not state & CROWD
            count[1] += 1
        return owner, counts

    def _keep(
        self,
        table: Table,
        owner: array,
        counts: Sequence[Mapping[int, Sequence[int]]],
        told: Sequence[Sequence[str]] | None,
        split: Split,
    ) -> None:
        """Choose the images of the split about which there is something to ask, and find their files."""
        chosen = split(file for file, *_ in table.images)
        self._files, self._images = Strings(), array("i")
        self._captions, self._told = (Strings() if told is not None else None), array("q", [0])
        place_of = array("i", [-1]) * len(table.images)
        for place in sorted(range(len(table.images)), key=lambda place: table.images[place][0]):
            file, _, others, absent = table.images[place]
            if file not in chosen:
                continue
            captions = told[place] if told is not None else ()
            named = self._expected(counts[place])
            if not self.federated:
                here = {item.name: item.of for item in named}
                absent = len(self._order.keys() - self.unsure(here) - here.keys())
            if not self._teller.asks(named, num_captions=len(captions), num_absent=absent):
                self.skipped["image without a question"] += 1
                continue
            if path := self._find(table.ids[place], [file, *others]):
                place_of[place] = len(self._images)
                self._files.append(path)
                self._images.append(place)
                if self._captions is not None:
                    self._captions.extend(captions)
                    self._told.append(len(self._captions))
        if not self._images:
            why = self.problems.why or "; change them"
            raise ValueError(f"{self.json_path} has no image to ask about with this split and these tasks{why}")
        self._by_image = Groups([place_of[place] if place >= 0 else -1 for place in owner], len(self._images))

    def _expected(self, counts: Mapping[int, Sequence[int]]) -> list[Named]:
        """What `sample` will find in an image, without decoding a mask (region indices are stand-ins)."""
        grouped: dict[tuple[str, str], list[int]] = {}
        for which, (targets, every) in counts.items():
            count = grouped.setdefault(self._named[which], [0, 0])
            count[0] += targets
            count[1] += every
        wider = self.wider(name for name, _ in grouped)
        return [
            Named(
                name,
                tuple(range(targets)),
                self.kind == "parts" or (targets == every <= self.max_regions and name not in wider),
                of,
            )
            for (name, of), (targets, every) in grouped.items()
        ]

    def _find(self, image: Any, names: Sequence[str]) -> str:
        """The path of an image's file; "" where it is missing and missing files are counted."""
        tried: list[str] = []
        what = "missing"
        for name in names:
            for folder in FOLDERS if name == names[0] else ("",):
                path = os.path.normpath(os.path.join(self.image_root, folder, name))
                if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
                    what = f"missing: its file {name!r} leaves the folder {self.image_root}"
                    continue
                parent, file = os.path.split(path)
                if parent not in self._listed:
                    self._listed[parent] = frozenset(os.listdir(parent) if os.path.isdir(parent) else ())
                if file in self._listed[parent]:
                    return path
                tried.append(path)
        paths = ", ".join(dict.fromkeys(tried)) or "nothing"
        message = f"{self.json_path}: image {image} is {what}; tried {paths}; set image_root to its folder"
        if self.problems.on_error == "fail":
            raise ValueError(message)
        self.problems.found.append(message)
        return ""


def renamed(
    categories: Sequence[str], names: Sequence[tuple[str, str]], rename: Mapping[str, str]
) -> list[tuple[str, str]]:
    """The words of categories and their objects with a user's own; an object's are those of its parts, too."""
    new = {words: rename[key] for key, (words, of) in zip(categories, names, strict=True) if key in rename and not of}
    found = []
    for key, (words, of) in zip(categories, names, strict=True):
        if of and of in new:
            words = wording.part_of(words.removesuffix(wording.part_of("", of)), new[of])
        found.append((rename.get(key) or words, new.get(of, of)))
    return found
