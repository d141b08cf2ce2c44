"""COCO-style json: instances with captions, and part categories (Car Parts), as samples.

Reads polygons, uncompressed and compressed RLE. What is wrong in a json is an error at construction that names the
file and the annotation; what only the pixels can tell (an image of another size, a mask that does not decode) is one
when a sample is read.
Source of the format: cocodataset.org/#format-data; `path` and `_background_` come from COCO Annotator's exports.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.images import load_image
from mglmm_data.masks import Size
from mglmm_data.sample import Region, Sample
from mglmm_data.telling import Kind, Named, Split, Teller, check_tasks, make_split, near, reading_order

KINDS_OF: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str, "height": int, "width": int},
    "categories": {"id": (int, str), "name": str},
    "annotations": {"image_id": (int, str)},
}
"""What the entries of a json must hold, by list."""
FOLDERS = ("", "JPEGImages", "images")
"""Where below the image root a file is looked for, before the json's own `path`."""


@dataclass(frozen=True)
class Picture:
    """One image of the json: its file, its size (H, W) as the json has it, its annotations by name, its captions."""

    id: Any
    path: Path
    size: Size
    annotations: dict[str, list[dict[str, Any]]]
    captions: tuple[str, ...]


class CocoSource:
    """A COCO-style json and its images as a `Source`.

    Args:
        json_path: the annotations (`images`, `categories`, `annotations`).
        image_root: the folder of the images; by default the json's own. `JPEGImages/` and `images/` in it, and the
            json's `path`, are tried.
        kind: `instances`, where each annotation is an object; or `parts` of one object, where a category is one region,
            all its annotations joined (Car Parts has two wheels in one annotation in some images and in two in others).
        captions: a captions json of the same images; its other images are ignored.
        skip_categories: names that are no target.
        rename: category name -> the words to use, e.g. `{"wheel": "wheels"}`; two with the same words become one, and
            names that are not here lose their underscores.
        split: which images belong; `validation_share`, `seed`, `part` (train, validation, all).
        object_name: what the parts belong to.
        tasks: task -> weight, of fine (parts) or panoptic (instances), referring, absent, caption; each kind has
            its default.
        turns: questions drawn for each image.
        max_regions: where a category has more instances than this in an image, they are joined into one region.
        mirror: for the augmentation: mirroring swaps left and right in the text ("swap"), or is not done here ("off").

    Raises:
        ValueError: the json is damaged, an image is missing, an annotation is malformed or points nowhere.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_root: str | Path | None = None,
        *,
        kind: Kind = "instances",
        captions: str | Path | None = None,
        skip_categories: Sequence[str] = ("_background_",),
        rename: Mapping[str, str] | None = None,
        split: Split | Mapping[str, Any] | None = None,
        object_name: str = "object",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
    ) -> None:
        if kind not in ("instances", "parts"):
            raise ValueError(f"kind is {kind!r}{near(kind, ('instances', 'parts'))}")
        self.kind, self.seed, self.mirror, self.max_regions = kind, seed, mirror, max_regions
        self.json_path = Path(json_path)
        self.image_root = Path(image_root) if image_root is not None else self.json_path.parent
        data = _read(self.json_path, ("images", "categories", "annotations"))
        for name in (rename or {}).keys() | set(skip_categories) - {"_background_"}:
            known = [category["name"] for category in data["categories"]]
            if name not in known:
                raise ValueError(f"{self.json_path} has no category {name!r} to skip or rename{near(name, known)}")
        skipped = {category["id"] for category in data["categories"] if category["name"] in skip_categories}
        self._names: dict[int, str] = {
            category["id"]: (rename or {}).get(category["name"]) or wording.readable(category["name"])
            for category in data["categories"]
            if category["id"] not in skipped
        }
        self._check_names(data["categories"])
        self.skipped: Counter[str] = Counter()
        """What the json has that is no target, counted: crowd, no mask, skipped category, image without a question."""
        grouped = self._group(data, skipped)
        told = _captions(Path(captions)) if captions else {}
        self._teller = Teller(
            kind=kind,
            names=self.names,
            tasks=check_tasks(tasks, kind, captions is not None, turns),
            turns=turns,
            object_name=object_name,
        )
        chosen = make_split(split)(image["file_name"] for image in data["images"])
        self._pictures: list[Picture] = []
        for image in sorted(data["images"], key=lambda image: image["file_name"]):
            if image["file_name"] not in chosen:
                continue
            items, captions_here = grouped[image["id"]], told.get(image["id"], ())
            if not self._teller.subjects(self._expected(items), captions_here):
                self.skipped["image without a question"] += 1
                continue
            size = (int(image["height"]), int(image["width"]))
            self._pictures.append(Picture(image["id"], self._find(image), size, items, captions_here))
        if not self._pictures:
            raise ValueError(f"{self.json_path} has no image to ask about with this split and these tasks; change them")

    def _check_names(self, categories: Sequence[Mapping[str, Any]]) -> None:
        """Each category has an id of its own, and a name that is at least one word."""
        known: set[Any] = set()
        for category in categories:
            key, name = category["id"], str(category["name"])
            if key in known:
                raise ValueError(f"{self.json_path}: category id {key} is there twice; ids must be unique")
            known.add(key)
            if not self._names.get(key, name).split():
                raise ValueError(
                    f"{self.json_path}: category {key} is called {name!r}, which is no word; rename or skip it"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Every category as words, in the json's order."""
        return tuple(dict.fromkeys(self._names.values()))

    def __len__(self) -> int:
        return len(self._pictures)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with questions drawn by (seed, index, epoch).

        `Region.label` is the category as words. `meta`: source, image_id, file, notes, mirror, names, and
        crowd_regions, the indices of regions that are crowds: no target, and not to be counted as invented.

        Raises:
            ValueError: the image is damaged or of another size than the json says, or a mask does not decode.
        """
        picture = self._pictures[index]
        loaded = load_image(picture.path)
        if loaded.size != picture.size:
            raise ValueError(
                f"{self.json_path}: image {picture.id} is {picture.size} (height, width) in the json, "
                f"{picture.path} is {loaded.size}; use the images that were annotated"
            )
        regions: list[Region] = []
        named: list[Named] = []
        notes = list(loaded.notes)
        crowds: list[int] = []
        for label, items in picture.annotations.items():
            found = [(item, self._mask(item, picture.size)) for item in items]
            for annotation, mask in found:
                if not mask.any():
                    notes.append(f"annotation {annotation['id']} ({label}) covers no pixel; left out")
                elif annotation.get("iscrowd"):
                    crowds.append(len(regions))
                    regions.append(Region.of_mask(mask, label))
            shown = [mask for annotation, mask in found if mask.any() and not annotation.get("iscrowd")]
            complete = len(shown) == len(found)
            if shown and (self.kind == "parts" or len(shown) > self.max_regions):
                complete = self.kind == "parts"
                shown = [masks.union(shown, picture.size)]
            new = [Region.of_mask(mask, label) for mask in shown]
            named.append(Named(label, tuple(range(len(regions), len(regions) + len(new))), complete))
            regions += [new[i] for i in reading_order(new)]
        rng = np.random.default_rng([self.seed, index, epoch])
        return Sample(
            image=loaded.pixels,
            regions=tuple(regions),
            conversations=self._teller.tell(named, picture.captions, rng),
            id=f"{self.json_path.stem}/{picture.id}",
            meta={
                "source": "coco",
                "image_id": picture.id,
                "file": str(picture.path),
                "notes": tuple(notes),
                "mirror": self.mirror,
                "names": self.names,
                "crowd_regions": tuple(crowds),
            },
        )

    def _expected(self, grouped: Mapping[str, list[dict[str, Any]]]) -> list[Named]:
        """What `sample` will find in an image, without decoding a mask (region indices are stand-ins)."""
        named: list[Named] = []
        for name, items in grouped.items():
            shown = sum(not item.get("iscrowd") for item in items)
            complete = self.kind == "parts" or (shown == len(items) and shown <= self.max_regions)
            named.append(Named(name, tuple(range(shown)), complete))
        return named

    def _mask(self, annotation: Mapping[str, Any], size: Size) -> np.ndarray:
        try:
            return masks.from_segmentation(annotation["segmentation"], size)
        except ValueError as error:
            raise self._wrong(annotation, str(error)) from error

    def _wrong(self, annotation: Mapping[str, Any], what: str) -> ValueError:
        return ValueError(f"{self.json_path}: annotation {annotation.get('id')}: {what}; correct or remove it")

    def _group(self, data: Mapping[str, Any], skipped: set[int]) -> dict[Any, dict[str, list[dict[str, Any]]]]:
        """image id -> name (in the json's order) -> its annotations, each checked as far as the json alone allows."""
        sizes: dict[Any, Size] = {}
        for image in data["images"]:
            if image["id"] in sizes:
                raise ValueError(f"{self.json_path}: image id {image['id']} is there twice; ids must be unique")
            sizes[image["id"]] = (int(image["height"]), int(image["width"]))
        grouped: dict[Any, dict[str, list[dict[str, Any]]]] = {image: {} for image in sizes}
        for annotation in data["annotations"]:
            for key in ("id", "image_id", "category_id", "segmentation"):
                if key not in annotation:
                    raise self._wrong(annotation, f"has no {key!r}")
            image, category = annotation["image_id"], annotation["category_id"]
            if not isinstance(category, (int, str)):
                raise self._wrong(annotation, f"its category_id is {category!r}, not a number or a text")
            if image not in sizes:
                raise self._wrong(annotation, f"is on image id {image}, which is not among the images")
            if category in skipped:
                self.skipped["skipped category"] += 1
                continue
            if category not in self._names:
                raise self._wrong(annotation, f"has category id {category}, which is not among the categories")
            self._check_segmentation(annotation, sizes[image])
            if annotation.get("iscrowd"):
                self.skipped["crowd"] += 1
            elif not annotation["segmentation"]:
                self.skipped["no mask"] += 1
            grouped[image].setdefault(self._names[category], []).append(annotation)
        return {image: {name: items[name] for name in self.names if name in items} for image, items in grouped.items()}

    def _check_segmentation(self, annotation: Mapping[str, Any], size: Size) -> None:
        """The shape of a polygon or RLE, without drawing it; `masks` checks again what it draws."""
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            if not isinstance(segmentation.get("counts"), (str, list)):
                raise self._wrong(annotation, f"its RLE has the counts {segmentation.get('counts')!r}")
            if segmentation.get("size") != list(size):
                found = segmentation.get("size")
                raise self._wrong(annotation, f"its RLE is of size {found}, its image of {list(size)} (height, width)")
        elif isinstance(segmentation, list):
            for polygon in segmentation:
                if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                    found = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
                    raise self._wrong(annotation, f"a polygon has {found}, it needs 6 or more, in pairs x, y")
                for axis, values, side in (("x", polygon[0::2], size[1]), ("y", polygon[1::2], size[0])):
                    if not all(isinstance(value, (int, float)) for value in values):
                        raise self._wrong(annotation, f"a polygon's {axis} are {values}, not all numbers")
                    if max(values) <= 0 or min(values) >= side:
                        raise self._wrong(
                            annotation,
                            f"a polygon lies outside of the image: its {axis} go from {min(values)} to {max(values)}, "
                            f"the image is {size[1]}x{size[0]} px",
                        )
        else:
            raise self._wrong(annotation, f"its segmentation is {type(segmentation).__name__}, not polygons or an RLE")

    def _find(self, image: Mapping[str, Any]) -> Path:
        tried = [self.image_root / folder / image["file_name"] for folder in FOLDERS]
        if image.get("path"):
            tried.append(self.image_root / str(image["path"]).lstrip("/"))
        for path in tried:
            if path.is_file():
                return path
        paths = ", ".join(str(path) for path in dict.fromkeys(tried))
        raise ValueError(
            f"{self.json_path}: image {image['id']} is missing; tried {paths}; set image_root to its folder"
        )


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the annotations") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as json ({error}); export or download it again") from error
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise ValueError(f"{path} has no list {', '.join(missing)}; a COCO-style json has {', '.join(keys)}")
    for key in keys:
        for place, item in enumerate(data[key]):
            if not isinstance(item, dict):
                raise ValueError(f"{path}: {key}[{place}] is {item!r}, not an object of keys and values; correct it")
            for name, kind in KINDS_OF.get(key, {}).items():
                if not isinstance(item.get(name), kind) or item.get(name) == "":
                    found = repr(item[name]) if name in item else "not there"
                    raise ValueError(f"{path}: {key}[{place}]: {name!r} is {found}; correct it")
    return data


def _captions(path: Path) -> dict[Any, tuple[str, ...]]:
    """image id -> captions, in one line each."""
    told: dict[Any, list[str]] = {}
    for annotation in _read(path, ("annotations",))["annotations"]:
        if "caption" not in annotation or "image_id" not in annotation:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has no caption or image_id; give a captions json"
            )
        if text := " ".join(str(annotation["caption"]).split()):
            told.setdefault(annotation["image_id"], []).append(text)
    return {image: tuple(texts) for image, texts in told.items()}
