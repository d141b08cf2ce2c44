"""Label maps: a picture whose pixels are class numbers, beside its photograph; what the semantic readers share."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mglmm_data import masks
from mglmm_data.annotated import Annotated, Item, Scene
from mglmm_data.images import MAX_PIXELS, MAX_SIDE, load_photo
from mglmm_data.index import Strings
from mglmm_data.masks import Rle, Size
from mglmm_data.reading import Problems

MODES = ("L", "P", "1", "I;16", "I")
PNG, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
RGB = (b"\x08\x02", b"\x08\x06")
"""What stands in the header of a PNG of 8 bits a channel, without and with alpha."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif")


def read_labels(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A label map as its numbers, `uint8|uint16|int32[H, W]`; palettes are not applied.

    Raises:
        ValueError: the file is missing, damaged, in colour, or of another size than `size` (H, W).
    """
    try:
        with Image.open(path) as opened:
            if opened.mode not in MODES:
                raise ValueError(f"{path} is {opened.mode}, not L, P or I;16 (one number a pixel); it is no label map")
            check_sides(opened.size, str(path))
            labels = np.asarray(opened)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the folder of the label maps") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture that can be read; copy or download it again") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} says that it is larger than any picture ({error}); download it again") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); copy or download it again") from error
    check_size(labels.shape[:2], size, path)
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


def read_colors(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A PNG whose colours are codes, `uint8[H, W, 3]` RGB, without any conversion.

    OpenCV decodes it in five sixths of Pillow's time; what it refuses, Pillow reads or puts into words.

    Raises:
        ValueError: as in `read_labels`; here the mode must be RGB.
    """
    try:
        content = Path(path).read_bytes()
        plain = content.startswith(PNG) and content[24:26] in RGB and content.endswith(PNG_END)
        if plain:
            check_sides((int.from_bytes(content[16:20]), int.from_bytes(content[20:24])), str(path))
        if plain and (read := cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)) is not None:
            colors = cv2.cvtColor(read, cv2.COLOR_BGR2RGB if read.shape[2] == 3 else cv2.COLOR_BGRA2RGB)
        else:
            with Image.open(io.BytesIO(content)) as opened:
                if opened.mode not in ("RGB", "RGBA"):
                    raise ValueError(f"{path} is {opened.mode}, not RGB; its colours are the codes")
                check_sides(opened.size, str(path))
                colors = np.asarray(opened)[..., :3]
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the folder of the annotation's pictures") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture that can be read; copy or download it again") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} says that it is larger than any picture ({error}); download it again") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); copy or download it again") from error
    check_size(colors.shape[:2], size, path)
    return colors


def check_sides(size: tuple[int, int], path: str) -> None:
    """Raise where a map says that it is larger (W, H) than any picture that is read, before it is decoded."""
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{path} is {size[0]}x{size[1]} px, larger than any picture that is read; download it again")


def check_size(found: Sequence[int], size: Size | None, path: str | Path) -> None:
    """Raise where a map's size (H, W) is not its image's."""
    if size is not None and tuple(found) != tuple(size):
        raise ValueError(f"{path} is {tuple(found)} (height, width), its image {tuple(size)}; they belong together")


def first_folder(root: str | Path, ways: Sequence[str], what: str) -> Path:
    """The first of several folders below `root` that is there: layouts differ.

    Raises:
        ValueError: none is there; all that were tried are named.
    """
    for way in ways:
        if (folder := Path(root) / way).is_dir():
            return folder
    tried = ", ".join(os.path.normpath(Path(root) / way) for way in ways)
    raise ValueError(f"no folder of {what} below {root}; tried {tried}; give its path")


def pair(images: Path, labels: Path, problems: Problems, *, extra_images: bool = False) -> list[tuple[str, str]]:
    """(image, label map) of each label map in a folder, by the name without its ending, sorted.

    Args:
        extra_images: images without a label map are no mistake (a folder that several data sets share).

    Raises:
        ValueError: a label map has no image or an image no label map, or there is no label map.
    """
    pictures: dict[str, str] = {}
    for name in sorted(os.listdir(images)):
        stem, ending = os.path.splitext(name)
        if ending.lower() in PICTURES:
            pictures.setdefault(stem, name)
    maps = {os.path.splitext(name)[0]: name for name in sorted(os.listdir(labels)) if name.lower().endswith(".png")}
    if not maps:
        raise ValueError(f"{labels} holds no label map (*.png); check the path")
    for stem in maps.keys() - pictures.keys():
        with problems.at(str(labels / maps[stem])):
            raise ValueError(f"has no image {stem}.jpg in {images}")
    for stem in () if extra_images else pictures.keys() - maps.keys():
        with problems.at(str(images / pictures[stem])):
            raise ValueError(f"has no label map {stem}.png in {labels}")
    return [(str(images / pictures[stem]), str(labels / maps[stem])) for stem in sorted(maps) if stem in pictures]


class LabelMaps(Annotated):
    """Photographs with label maps as a `Source`: each class in an image is one region, and what
    is to be ignored one without a name.

    Args:
        pairs: (image, label map) of each sample.
        classes: number -> words.
        ignore: numbers that mean nothing (unlabelled, border); any other is an error when its sample is read.
        vague, tasks, turns, seed, mirror: as in `Annotated`.
    """

    source = "labelmap"

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        classes: Mapping[int, str],
        *,
        ignore: Collection[int],
        problems: Problems,
        vague: Collection[str] = (),
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
    ) -> None:
        super().__init__(
            kind="classes",
            names=list(classes.values()),
            tasks=tasks,
            turns=turns,
            seed=seed,
            problems=problems,
            vague=vague,
            mirror=mirror,
        )
        if not pairs:
            raise ValueError(f"no image with a label map is left{problems.why}")
        self._images = Strings(image for image, _ in pairs)
        self._labels = Strings(labels for _, labels in pairs)
        self._classes, self._ignore = dict(classes), frozenset(ignore)

    def __len__(self) -> int:
        return len(self._images)

    def id_of(self, index: int) -> str:
        return f"{self.source}/{Path(self._labels[index]).stem}"

    def scene(self, index: int) -> Scene:
        """The classes of a label map, each as one mask; what is to be ignored is one more, without a name."""
        loaded = load_photo(self._images[index])
        labels = read_labels(self._labels[index], loaded.size)
        rles = masks.rles_of_labels(labels)
        return Scene(loaded, self._items(rles, self._labels[index]), ignored=self._unknown(rles, loaded.size))

    def _unknown(self, rles: Mapping[int, Rle], size: Size) -> Rle | None:
        """What is to be ignored of a label map."""
        unknown = [rle for value, rle in rles.items() if value in self._ignore]
        return masks.merged(unknown, size) if unknown else None

    def _items(self, rles: Mapping[int, Rle], path: str) -> list[Item]:
        items = []
        for value, rle in sorted(rles.items()):
            if value in self._ignore:
                continue
            if value not in self._classes:
                raise ValueError(
                    f"{path}: label {value} is no class (known: {min(self._classes)} to {max(self._classes)}, ignored: "
                    f"{', '.join(map(str, sorted(self._ignore)))}); correct the map, or use the one for these classes"
                )
            items.append(Item(self._classes[value], rle, stuff=True))
        return items
