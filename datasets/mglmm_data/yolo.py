"""YOLO polygons: a text file for each photograph, a line for each object: `class x1 y1 x2 y2 ...`, in shares of 0..1.

A line of five numbers is a box (`class cx cy w h`), and becomes a rectangle only if `boxes` says so: a box marks more
than its object. A photograph without a file has no objects. Converters join the pieces of an object by thin bridges,
which stay. Source: docs.ultralytics.com/datasets/segment; COCO's 80 names in the order of its contiguous ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from mglmm_data import masks, wording
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.cocostuff import NAMES as STUFF
from mglmm_data.images import load_photo
from mglmm_data.index import Strings
from mglmm_data.labelmap import PICTURES, first_folder
from mglmm_data.reading import Problems, read_lines, read_text, shown

UNUSED = ("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender")
NAMES = tuple(name for name in STUFF[:90] if name not in UNUSED)
"""COCO's 80 things: of its 90 ids, those that were annotated."""
TASKS = {"panoptic": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}
EDGE = 0.01
"""So far a share may leave 0..1 by rounding; it is drawn as it is, and cut at the border."""


class YoloSource(Annotated):
    """`images/SPLIT/*` and `labels/SPLIT/*.txt` as a `Source`.

    Args:
        root: the folder with `images/` and `labels/`.
        split: their subfolder; by default the only one there, or none.
        names: the classes in order, or `coco` for COCO's 80; by default those of `data.yaml` (or another yaml beside
            `images/`) or of `classes.txt`, and COCO's where the folder's name begins with `coco`.
        boxes: read lines of five numbers as boxes, drawn as rectangles; else they are an error.
        tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: a folder or the names are missing, a label file has no photograph, or a line is malformed.
    """

    source = "yolo"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        names: Sequence[str] | Literal["coco"] | None = None,
        boxes: bool = False,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        problems = Problems(on_error)
        images = first_folder(root, ("images",), "photographs")
        inner = sorted(path.name for path in images.iterdir() if path.is_dir())
        if split is None and len(inner) > 1:
            raise ValueError(f"{images} has several splits: {', '.join(inner)}; set split to one of them")
        split = split if split is not None else (inner[0] if inner else "")
        images, labels = first_folder(root, (f"images/{split}",), "photographs"), Path(root) / "labels" / split
        if not labels.is_dir():
            raise ValueError(f"no folder of labels {labels}; YOLO's labels/ mirrors its images/")
        if isinstance(names, str) and names != "coco":
            raise ValueError(f"names is {names!r}; give a list of names, or coco for COCO's 80")
        classes = _classes(Path(root)) if names is None else NAMES if names == "coco" else names
        self._boxes, self._words = boxes, tuple(wording.readable(name) for name in classes)
        pictures = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in PICTURES}
        for path in sorted(labels.glob("*.txt")):
            with problems.at(str(path)):
                if path.stem not in pictures:
                    raise ValueError(f"has no photograph {path.stem}.* in {images}")
        self._images, self._labels = Strings(), Strings()
        if not pictures:
            raise ValueError(f"{images} holds no photograph ({', '.join(PICTURES)}); check the path")
        for stem, picture in pictures.items():
            path = labels / f"{stem}.txt"
            try:
                lines = list(read_lines(path)) if path.is_file() else []
            except ValueError as error:
                problems.take(str(picture), error)
                continue
            self._objects(path, lines, problems)
            self._images.append(str(picture))
            self._labels.append(str(path) if path.is_file() else "")
        if not self._images:
            raise ValueError(f"no file in {labels} can be read{problems.why}")
        super().__init__(
            kind="instances",
            names=self._words,
            tasks=TASKS if tasks is None else tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            mirror=mirror,
        )
        if bare := sum(not path for path in self._labels):
            self.skipped["image without labels"] = bare

    def __len__(self) -> int:
        return len(self._images)

    def id_of(self, index: int) -> str:
        return f"yolo/{Path(self._images[index]).stem}"

    def scene(self, index: int) -> Scene:
        """The polygons of a file, scaled to its photograph."""
        loaded, path = load_photo(self._images[index]), self._labels[index]
        height, width = loaded.size
        found = self._objects(Path(path), read_lines(path), Problems(self.problems.on_error)) if path else []
        items = []
        for number, name, shares in found:
            scaled = [value * (height if place % 2 else width) for place, value in enumerate(shares)]
            items.append(Item(name, masks.rle_of_polygons([scaled], loaded.size), record=f"line {number}"))
        return Scene(loaded, items)

    def _objects(
        self, path: Path, lines: Iterable[tuple[int, str]], problems: Problems
    ) -> list[tuple[int, str, list[float]]]:
        """Line number, words and polygon of each object."""
        found = []
        for number, line in lines:
            with problems.at(f"{path}: line {number}"):
                try:
                    values = [float(word) for word in line.split()]
                except ValueError as error:
                    raise ValueError(f"holds something that is no number ({error})") from error
                kind, shares = values[0], values[1:]
                if not 0 <= kind < len(self._words) or kind != int(kind):
                    raise ValueError(f"has class {line.split()[0]}; there are {len(self._words)} names, from 0 on")
                if not all(-EDGE <= share <= 1 + EDGE for share in shares):
                    wrong = next(share for share in shares if not -EDGE <= share <= 1 + EDGE)
                    raise ValueError(f"holds {wrong}; coordinates are shares of the image, 0 to 1")
                if len(shares) == 4 and self._boxes:
                    x, y, w, h = shares
                    shares = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x + w / 2, y + h / 2, x - w / 2, y + h / 2]
                if len(shares) < 6 or len(shares) % 2:
                    way = "; for boxes set boxes: true" if len(shares) == 4 else ""
                    raise ValueError(f"has {len(shares)} coordinates; a polygon needs 6 or more, in pairs x, y{way}")
                found.append((number, self._words[int(kind)], shares))
        return found


def _classes(root: Path) -> Sequence[str]:
    """The names of a set's classes, where the set says them.

    Raises:
        ValueError: it does not, or not as a list or as `0: name`, `1: name`, ...
    """
    for path in sorted(root.glob("*.y*ml"), key=lambda path: (path.name != "data.yaml", path.name)):
        try:
            said = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no yaml ({error}); correct it") from error
        found = said.get("names") if isinstance(said, dict) else None
        if isinstance(found, dict) and sorted(found) == list(range(len(found))):
            found = [found[number] for number in range(len(found))]
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
        if found is not None:
            raise ValueError(f"{path}: its 'names' is {shown(found)}; expected [cat, dog] or 0: cat, 1: dog")
    if (root / "classes.txt").is_file():
        return [line.strip() for _, line in read_lines(root / "classes.txt")]
    if root.name.startswith("coco"):
        return NAMES
    raise ValueError(
        f"{root} does not say what its classes are called; put a data.yaml (names: [cat, dog]) or a classes.txt there, "
        "or set names: [cat, dog] in the source (names: coco for COCO's 80)"
    )
