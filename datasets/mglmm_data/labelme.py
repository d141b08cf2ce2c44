"""labelme json: one file beside each photograph, with shapes that somebody drew and named.

Shapes are polygons, rectangles (two corners), circles (centre and a point on it), and masks (a PNG in base64, placed
by its corners); lines and points mark no area and are counted in `skipped`. Shapes of one label and `group_id` are one
object. A photograph may stand in the json itself (`imageData`).
Source: wkentaro/labelme, `labelme/_label_file.py` and `utils/shape.py`, version 5.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mglmm_data import masks, wording
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.images import LoadedImage, load_content, load_photo
from mglmm_data.index import Strings
from mglmm_data.masks import Rle, Size
from mglmm_data.reading import Problems, is_number, named, read_json, shown, take, take_line

TASKS = {"panoptic": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0}
IGNORED = ("__ignore__", "_background_")
OUTLINES = ("line", "linestrip", "point", "points")
CIRCLE_STEPS = 64


class LabelmeSource(Annotated):
    """A folder of labelme files as a `Source`.

    Args:
        root: the folder; every `*.json` in it that has `shapes`.
        image_root: the photographs, if they are not beside the json.
        skip_labels: labels that are no target.
        tasks, turns, max_regions, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: there is no labelme file, one is malformed, or a photograph is missing.
    """

    source = "labelme"

    def __init__(
        self,
        root: str | Path,
        image_root: str | Path | None = None,
        *,
        skip_labels: Sequence[str] = IGNORED,
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        max_regions: int = 10,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        problems, names = Problems(on_error), dict[str, None]()
        self._image_root, self._skip = image_root, frozenset(skip_labels)
        self._paths, lines = Strings(), 0
        for path in sorted(Path(root).glob("*.json")):
            with problems.at(str(path)):
                data = read_json(path, dict)
                shapes = take(data, "shapes", list)
                here = [self._check(number, shape) for number, shape in enumerate(shapes)]
                if not data.get("imageData") and not self._image(path, data).is_file():
                    raise ValueError(f"its image {self._image(path, data)} is missing; set image_root to its folder")
                names |= dict.fromkeys(name for name in here if name)
                lines += sum(not name for name in here)
                self._paths.append(str(path))
        if not self._paths:
            raise ValueError(f"{root} has no labelme file (*.json with shapes) that can be used; check the path")
        super().__init__(
            kind="instances",
            names=sorted(names),
            tasks=TASKS if tasks is None else tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            max_regions=max_regions,
            mirror=mirror,
        )
        if lines:
            self.skipped["line, point or skipped label"] = lines

    def __len__(self) -> int:
        return len(self._paths)

    def id_of(self, index: int) -> str:
        return f"labelme/{Path(self._paths[index]).stem}"

    def scene(self, index: int) -> Scene:
        """The objects of a file: its shapes, joined where they share label and group."""
        path = Path(self._paths[index])
        data = read_json(path, dict)
        loaded = self._load(path, data)
        size = (data.get("imageHeight") or loaded.size[0], data.get("imageWidth") or loaded.size[1])
        if size != loaded.size:
            raise ValueError(f"{path} is for an image of {size} (height, width), {loaded.path} is {loaded.size}")
        grouped: dict[Any, list[Rle]] = {}
        for number, shape in enumerate(data["shapes"]):
            if name := self._check(number, shape):
                group = shape.get("group_id")
                key = (name, number if group is None else f"group {group}")
                with named(f"{path}: shape {number} ({name})"):
                    grouped.setdefault(key, []).append(shape_rle(shape, loaded.size))
        items = [
            Item(name, masks.merged(rles, loaded.size), record=f"shape {number}")
            for (name, number), rles in grouped.items()
        ]
        return Scene(loaded, items)

    def _check(self, number: int, shape: Any) -> str:
        """The words of a shape; "" where it is no target."""
        try:
            label = take_line(shape, "label")
            words = wording.readable(label).replace("/", " ")
            if label not in self._skip and not words.split():
                raise ValueError(f"its label is {label!r}, which is no word; rename it, or name it in skip_labels")
            points = take(shape, "points", list)
            kind = shape.get("shape_type") or "polygon"
            if kind not in ("polygon", "rectangle", "circle", "mask", *OUTLINES):
                raise ValueError(
                    f"its shape_type is {shown(kind)}; known: polygon, rectangle, circle, mask, lines, points"
                )
            for point in points:
                if not isinstance(point, list) or len(point) != 2:
                    raise ValueError(f"a point is {shown(point)}; expected [x, y]")
                for value in point:
                    if not is_number(value):
                        raise ValueError(f"a point holds {shown(value)}; expected finite numbers")
            least = {"polygon": 3, "rectangle": 2, "circle": 2}.get(kind, 1)
            if len(points) < least:
                raise ValueError(f"a {kind} has {len(points)} points; it needs {least}")
        except ValueError as error:
            raise ValueError(f"shape {number}: {error}") from error
        return "" if kind in OUTLINES or label in self._skip else words

    def _image(self, path: Path, data: Mapping[str, Any]) -> Path:
        name = take(dict(data), "imagePath", str).replace("\\", "/")
        if self._image_root is not None:
            return Path(self._image_root) / Path(name).name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"its imagePath {name!r} leaves {path.parent}; set image_root to the folder of the images")
        return path.parent / name

    def _load(self, path: Path, data: Mapping[str, Any]) -> LoadedImage:
        if not data.get("imageData"):
            return load_photo(self._image(path, data))
        try:
            content = base64.b64decode(data["imageData"], validate=True)
            return replace(load_content(content, "the picture"), path=str(path))
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its imageData is damaged ({error}); save the file again") from error


def shape_rle(shape: Mapping[str, Any], size: Size) -> Rle:
    """The pixels of a shape.

    Raises:
        ValueError: it lies outside the image, or its mask is damaged.
    """
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float)
    if (points.max(0) < 0).any() or points.min(0)[0] > size[1] or points.min(0)[1] > size[0]:
        raise ValueError(f"it lies outside the image of {size[1]}x{size[0]} px")
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(0), points.max(0)  # two corners, or four as X-AnyLabeling writes them
        points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    elif kind == "circle":
        turn = np.linspace(0, 2 * np.pi, CIRCLE_STEPS, endpoint=False)
        points = points[0] + np.linalg.norm(points[1] - points[0]) * np.stack([np.cos(turn), np.sin(turn)], 1)
    elif kind == "mask":
        return _pasted(shape, points, size)
    return masks.rle_of_polygons([points.reshape(-1).tolist()], size)


def _pasted(shape: Mapping[str, Any], points: np.ndarray, size: Size) -> Rle:
    try:
        png = base64.b64decode(take(dict(shape), "mask", str), validate=True)
        part = np.asarray(Image.open(io.BytesIO(png)).convert("L")) > 0
    except (OSError, binascii.Error) as error:
        raise ValueError(f"its mask is damaged ({error})") from error
    left, top = points.min(0).round().astype(int)
    height, width = part.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"its mask of {width}x{height} px at {left}, {top} leaves the image of {size[1]}x{size[0]} px")
    whole = np.zeros(size, bool)
    whole[top : top + height, left : left + width] = part
    return masks.encode(whole)
