"""PASCAL VOC segmentation: 20 classes, objects apart, 255 at their borders and where it is hard to tell.

`SegmentationClass/` holds class numbers, `SegmentationObject/` object numbers, both as palette PNG; the numbers are
what counts, not the colours. Also what `labelme2voc` writes: then `class_names.txt` names the classes.
Source: Everingham et al., IJCV 2010, host.robots.ox.ac.uk/pascal/VOC.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.images import load_photo
from mglmm_data.index import Strings
from mglmm_data.labelmap import first_folder, pair, read_labels
from mglmm_data.reading import Problems, read_lines

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
BORDER = 255
JOINED = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
TASKS = {"panoptic": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}


class VocSource(Annotated):
    """A `VOCdevkit/VOC2012`-like folder as a `Source`.

    Args:
        root: the folder with `JPEGImages/`, `SegmentationClass/`, and `SegmentationObject/` if there are objects.
        split: a list in `ImageSets/Segmentation/` (train, val, trainval); null for every label map.
        tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: a folder, the list or a file is missing.
    """

    source = "voc"

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
        names, problems = class_names(Path(root)), Problems(on_error)
        labels = first_folder(root, ("SegmentationClass", "SegmentationClassPNG"), "class maps")
        pairs = pair(first_folder(root, ("JPEGImages",), "photographs"), labels, problems, extra_images=True)
        if split is not None:
            listing = Path(root) / "ImageSets" / "Segmentation" / f"{split}.txt"
            stems, known = (
                {line.strip(): number for number, line in read_lines(listing)},
                {Path(b).stem for _, b in pairs},
            )
            for stem in [stem for stem in stems if stem not in known]:
                with problems.at(f"{listing}: line {stems[stem]}"):
                    raise ValueError(f"names {stem}, which has no label map in {labels}")
            pairs = [one for one in pairs if Path(one[1]).stem in stems]
        objects = [labels.with_name(f"SegmentationObject{end}") for end in ("", "PNG")]
        folder = next((path for path in objects if path.is_dir()), None)
        super().__init__(
            kind="classes" if folder is None else "instances",
            names=names[1:],
            tasks=tasks if tasks is not None or folder is None else TASKS,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            mirror=mirror,
        )
        self._classes = names
        self._images, self._labels = Strings(a for a, _ in pairs), Strings(b for _, b in pairs)
        self._objects = Strings(str(folder / Path(b).name) for _, b in pairs) if folder is not None else None

    def __len__(self) -> int:
        return len(self._images)

    def id_of(self, index: int) -> str:
        return f"voc/{Path(self._labels[index]).stem}"

    def scene(self, index: int) -> Scene:
        """The objects of an image; where two touch, and at their borders, 255 belongs to none."""
        loaded, path = load_photo(self._images[index]), self._labels[index]
        labels = read_labels(path, loaded.size)
        objects = read_labels(self._objects[index], loaded.size) if self._objects is not None else labels
        items = []
        for number, rle in sorted(masks.rles_of_labels(objects).items()):
            if number in (0, BORDER):
                continue
            mask = objects == number
            inside = np.bincount(labels[mask])
            inside[BORDER:] = 0
            value = int(inside.argmax())
            if not 0 < value < len(self._classes) or inside.sum() > inside[value]:
                found = ", ".join(map(str, np.flatnonzero(inside)))
                raise ValueError(
                    f"{path}: object {number} has class {found} of {len(self._classes) - 1}; correct the maps"
                )
            items.append(Item(self._classes[value], rle, record=f"object {number}"))
        border = labels == BORDER
        return Scene(loaded, items, ignored=masks.encode(border) if border.any() else None)


def class_names(root: Path) -> tuple[str, ...]:
    """The classes by number, from `class_names.txt` (labelme) or VOC's own."""
    path = root / "class_names.txt"
    if not path.is_file():
        return NAMES
    names = [wording.readable(line) for _, line in read_lines(path)]
    names = [JOINED.get(name, name.replace("/", " ")) for name in names]
    return tuple(name for name in names if name != "ignore")
