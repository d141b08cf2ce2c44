"""COCO-Stuff: 171 classes of things and stuff on COCO's photographs, one label map an image.

A pixel holds the class's id less one (0 is person, 181 wood), 255 is unlabelled. The names are the published ones put
into words: `wall-brick` is a brick wall, `sky-other` the sky. LISA and GLaMM leave every name with a hyphen out.
Source: Caesar et al., COCO-Stuff, arXiv:1612.03716; its `labels.txt` and `stuffthingmaps_trainval2017.zip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mglmm_data.labelmap import LabelMaps, first_folder, pair
from mglmm_data.reading import Problems

NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,street sign,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,hat,backpack,umbrella,shoe,eye glasses,
handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,
tennis racket,bottle,plate,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,
pizza,donut,cake,chair,couch,potted plant,bed,mirror,dining table,window,desk,toilet,door,tv,laptop,mouse,remote,
keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,blender,book,clock,vase,scissors,teddy bear,hair drier,
toothbrush,hair brush,banner,blanket,branch,bridge,building-other,bush,cabinet,cage,cardboard,carpet,ceiling-other,
ceiling-tile,cloth,clothes,clouds,counter,cupboard,curtain,desk-stuff,dirt,door-stuff,fence,floor-marble,floor-other,
floor-stone,floor-tile,floor-wood,flower,fog,food-other,fruit,furniture-other,grass,gravel,ground-other,hill,house,
leaves,light,mat,metal,mirror-stuff,moss,mountain,mud,napkin,net,paper,pavement,pillow,plant-other,plastic,platform,
playingfield,railing,railroad,river,road,rock,roof,rug,salad,sand,sea,shelf,sky-other,skyscraper,snow,solid-other,
stairs,stone,straw,structural-other,table,tent,textile-other,towel,tree,vegetable,wall-brick,wall-concrete,wall-other,
wall-panel,wall-stone,wall-tile,wall-wood,water-other,waterdrops,window-blind,window-other,wood""".replace(
        "\n", ""
    ).split(",")
)
"""In the order of the label maps; ids are one more."""
WORDS = {
    "window-blind": "window blind", "waterdrops": "water drops", "playingfield": "playing field",
    "solid-other": "solid material", "structural-other": "structure", "textile-other": "textile",
    "wall-panel": "wall panel", "wall-wood": "wooden wall", "floor-wood": "wooden floor",
    "ceiling-tile": "tiled ceiling", "floor-tile": "tiled floor", "wall-tile": "tiled wall",
}  # fmt: skip
"""Names that do not come out right by turning them round."""
WIDE = frozenset(("fruit", "vegetable", "metal", "plastic", "cloth", "wood", "stone", "paper", "clothes", "table"))
"""Names of materials and groups, which other names may cover; with all `-other` names, never said not to be there."""
NEVER_MARKED = frozenset(("street sign", "hat", "shoe", "eye glasses", "plate", "blender", "hair brush"))
"""Things of COCO's list that nobody annotated; mirror, window, desk and door are, as stuff."""
UNLABELLED = 255


def in_words(name: str) -> str:
    """`sky-other` is `sky`, `desk-stuff` `desk`, `wall-brick` `brick wall`; panoptic names lose their `-merged`."""
    name = name.removesuffix("-merged")
    if name in WORDS:
        return WORDS[name]
    head, hyphen, kind = name.partition("-")
    return head if kind in ("other", "stuff") else f"{kind} {head}" if hyphen else name


class CocoStuffSource(LabelMaps):
    """`{train,val}2017/*.png` and COCO's photographs as a `Source`.

    Args:
        root: the folder of the label maps, or the one above `train2017/` and `val2017/`.
        image_root: COCO's photographs; by default looked for beside `root` (`coco/train2017`, `coco_2017/train2017`).
        split: `train` or `val`.
        tasks, turns, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: a folder is missing, or a label map has no image.
    """

    source = "cocostuff"

    def __init__(
        self,
        root: str | Path,
        image_root: str | Path | None = None,
        *,
        split: str = "train",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        year = f"{split.removesuffix('2017')}2017"
        labels = first_folder(root, (year, f"stuffthingmaps/{year}", f"pixelmaps/{year}", "."), "label maps")
        beside = [f"{up}{name}/{year}" for up in ("", "../", "../../") for name in ("coco", "coco_2017", "images")]
        images = Path(image_root) if image_root is not None else first_folder(root, beside, "photographs")
        if (images / year).is_dir():
            images = images / year
        problems = Problems(on_error)
        super().__init__(
            pair(images, labels, problems, extra_images=True),
            {place: in_words(name) for place, name in enumerate(NAMES)},
            ignore=(UNLABELLED,),
            problems=problems,
            vague={in_words(name) for name in NAMES if name.endswith("-other")} - {"sky"} | WIDE | NEVER_MARKED,
            tasks=tasks,
            turns=turns,
            seed=seed,
            mirror=mirror,
        )
