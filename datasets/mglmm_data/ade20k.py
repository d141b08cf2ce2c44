"""ADE20K twice: the scene-parsing benchmark (150 classes, one label map an image), and the full release with parts.

`Ade20kSource`: a pixel holds the class 1..150, 0 is anything else. `Ade20kFullSource`: each image has a json (latin-1)
whose objects have an own mask picture (255 visible, 128 hidden by others), a part level, and the object they are part
of; `_seg.png` and `_parts_N.png` are the same masks laid over each other.
Source: Zhou et al., ADE20K, IJCV 2019; CSAILVision/sceneparsing (objectInfo150), CSAILVision/ADE20K.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mglmm_data import masks, wording
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.images import load_photo
from mglmm_data.index import Strings
from mglmm_data.labelmap import LabelMaps, first_folder, pair, read_labels
from mglmm_data.reading import Problems, name_in, named, take, take_line

NAMES = tuple(
    """wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,
plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,
bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,
grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,coffee table,
toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,arcade machine,hovel,
bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,
land,bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,
swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,
animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,
plate,monitor,bulletin board,shower,radiator,glass,clock,flag""".replace("\n", "").split(",")
)
"""In the order of objectInfo150, the first of its words; 0 in a label map is none of them."""
VAGUE = frozenset(("base", "case", "plant", "seat", "water", "land", "earth", "food", "animal", "apparel", "plaything"))
SPLITS = {"train": "training", "val": "validation", "test": "testing"}
VISIBLE = 255
STUFF = frozenset(
    """wall,building,sky,floor,ceiling,road,grass,sidewalk,earth,mountain,water,house,sea,rug,field,sand,skyscraper,
grandstand,path,runway,stairway,river,bridge,hill,hovel,tower,dirt track,land,escalator,stage,conveyer belt,
swimming pool,waterfall,lake,pier""".replace("\n", "").split(",")
) - {"building", "house", "skyscraper", "rug", "bridge", "tower", "hovel", "stage", "escalator", "pier"}
"""objectInfo150's stuff, without what people count."""


class Ade20kSource(LabelMaps):
    """The scene-parsing benchmark (ADEChallengeData2016; LISA's `ade20k/`) as a `Source`.

    Args:
        root: the folder with `images/` and `annotations/`, with `training/` and `validation/` in them or without.
        split: training or validation (or `train`, `val`).
        tasks, turns, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: a folder is missing, or an image or a label map is without the other.
    """

    source = "ade20k"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "training",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        split = SPLITS.get(split, split)
        images = first_folder(root, (f"images/{split}", "images"), "photographs")
        labels = first_folder(root, (f"annotations/{split}", "annotations"), "label maps")
        problems = Problems(on_error)
        super().__init__(
            pair(images, labels, problems),
            dict(enumerate(NAMES, 1)),
            ignore=(0,),
            problems=problems,
            vague=VAGUE,
            tasks=tasks,
            turns=turns,
            seed=seed,
            mirror=mirror,
        )


class Ade20kFullSource(Annotated):
    """The full release (ADE20K_2021_17_01) as a `Source`: objects, and the parts of objects on every level.

    Args:
        root: the folder `ADE20K_2021_17_01`, or one below it.
        split: training or validation; null for all below `root`.
        tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: no annotation is below `root`, or one is malformed.
    """

    source = "ade20k_full"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        part = f"{os.sep}{SPLITS.get(split, split)}{os.sep}" if split is not None else ""
        paths = sorted(str(path) for path in Path(root).rglob("*.json") if part in str(path))
        if not paths:
            raise ValueError(f"no annotation (*.json) of split {split} below {root}; give the folder ADE20K_2021_17_01")
        problems, names, kept = Problems(on_error), dict[str, None](), []
        for path in paths:
            with problems.at(path):
                objects = _objects(path)
                names |= dict.fromkeys(_name(one, objects) for one in objects)
                if not Path(path).with_suffix(".jpg").is_file():
                    raise ValueError(f"its image {Path(path).with_suffix('.jpg')} is missing")
                kept.append(path)
        self._paths = Strings(kept)
        super().__init__(
            kind="objects",
            names=list(names),
            tasks=tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            vague=VAGUE,
            mirror=mirror,
        )

    def __len__(self) -> int:
        return len(self._paths)

    def id_of(self, index: int) -> str:
        return f"ade20k_full/{Path(self._paths[index]).stem}"

    def scene(self, index: int) -> Scene:
        """The visible masks of an image's objects and parts; what is hidden wholly is left out."""
        path = Path(self._paths[index])
        loaded = load_photo(path.with_suffix(".jpg"))
        with named(str(path)):
            objects = _objects(path)
            items, notes = [], list[str]()
            for one in objects:
                values = read_labels(_mask_path(path, one), loaded.size)
                mask = values == VISIBLE
                owner = _owner(one, objects)
                of = _word(owner) if owner else ""
                name, stuff = _name(one, objects), not of and _word(one) in STUFF
                record = f"object {one['id']}"
                hidden = bool(values.any() and not mask.any())
                notes += [f"{record} ({name}) is hidden wholly; left out"] * hidden
                items.append(Item(name, masks.encode(mask), of=of, record=record, stuff=stuff, hidden=hidden))
        return Scene(loaded, items, notes=notes)


def _objects(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a json, each checked; the files are latin-1.

    Raises:
        ValueError: the file is no json, a field is missing or of another type, or a part's object is not there.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="latin-1"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as json ({error}); download it again") from error
    objects = take(take(data, "annotation", dict), "object", list)
    known: set[int] = set()
    for number, one in enumerate(objects):
        try:
            known.add(take(one, "id", int))
            take_line(one, "name")
            if not _word(one):
                raise ValueError(f"its 'name' is {one['name']!r}, which begins with no word")
            take(one, "instance_mask", str)
            if take(take(one, "parts", dict), "ispartof", object) != []:
                take(one["parts"], "ispartof", int)
        except ValueError as error:
            raise ValueError(f"object {name_in(one, number)}: {error}") from error
    for one in objects:
        if (owner := one["parts"]["ispartof"]) != [] and owner not in known:
            raise ValueError(f"object {one['id']}: is part of {owner}, which is not among the objects")
    return objects


def _owner(one: Mapping[str, Any], objects: list[dict[str, Any]]) -> dict[str, Any] | None:
    number = one["parts"]["ispartof"]
    return None if number == [] else next(other for other in objects if other["id"] == number)


def _word(one: Mapping[str, Any]) -> str:
    """The first of an object's words: `car, auto, automobile` is a car."""
    return wording.readable(one["name"].split(",")[0])


def _name(one: Mapping[str, Any], objects: list[dict[str, Any]]) -> str:
    owner = _owner(one, objects)
    return wording.part_of(_word(one), _word(owner)) if owner else _word(one)


def _mask_path(path: Path, one: Mapping[str, Any]) -> Path:
    name = one["instance_mask"]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"object {one['id']} names the mask {name!r}, which leaves {path.parent}")
    return path.parent / name
