"""Your own folder of images and masks, with no json to write.

    ROOT/images/NAME.jpg              (or any format `load_image` reads)
    ROOT/masks/NAME/<phrase>.png      white is in, black is out; same size as the image
    ROOT/masks/NAME/<phrase>.1.png    several instances of one phrase are numbered
    ROOT/masks/NAME/<phrase>.2.png

The phrase is the file's name, underscores standing for spaces: `red_mug.png` is "red mug".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.images import load_image, load_photo
from mglmm_data.masks import Size
from mglmm_data.reading import OnError, Problems
from mglmm_data.sample import Region, Sample
from mglmm_data.telling import Kind, Named, Split, Teller, check_tasks, make_split, near, reading_order
from mglmm_data.wording import readable

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"))
WHITE = 128
"""A mask's pixel is in from this grey level on; softer edges are cut here."""


class FolderSource:
    """A folder as above as a `Source`; options as in `CocoSource`.

    Raises:
        ValueError: a folder is missing or empty; with `on_error: fail` also: masks have no image, or an image has no
            folder of masks.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        kind: Kind = "instances",
        split: Split | Mapping[str, Any] | None = None,
        object_name: str = "object",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        if kind not in ("instances", "parts"):
            raise ValueError(f"kind is {kind!r}{near(kind, ('instances', 'parts'))}")
        self.root, self.seed, self.mirror = Path(root), seed, mirror
        self.problems = Problems(on_error)
        for name in ("images", "masks"):
            if not (self.root / name).is_dir():
                raise ValueError(
                    f"{self.root / name} is not a folder; put pictures in images/NAME.jpg, masks in masks/NAME/"
                )
        images: dict[str, Path] = {}
        for path in sorted((self.root / "images").iterdir()):
            if path.suffix.lower() in SUFFIXES:
                with self.problems.at(str(path)):
                    if path.stem in images:
                        raise ValueError(f"{images[path.stem]} has the same folder of masks; rename one of them")
                    images[path.stem] = path
        if not images:
            raise ValueError(
                f"{self.root / 'images'} holds no image; put pictures in it ({', '.join(sorted(SUFFIXES))})"
            )
        for folder in sorted((self.root / "masks").iterdir()):
            with self.problems.at(str(self.root)):
                if folder.is_dir() and folder.name not in images:
                    raise ValueError(f"{folder} has no image {self.root / 'images' / folder.name}.*: masks without it")
        everything: dict[str, dict[str, list[Path]]] = {}
        for name in images:
            with self.problems.at(str(self.root)):
                everything[name] = self._masks_of(name)
        images = {name: path for name, path in images.items() if name in everything}
        self.names = tuple(sorted({phrase for phrases in everything.values() for phrase in phrases}))
        self._teller = Teller(
            kind=kind,
            names=self.names,
            tasks=check_tasks(tasks, kind, False, turns),
            turns=turns,
            object_name=object_name,
        )
        chosen = make_split(split)(images)
        self._pictures: list[tuple[Path, dict[str, list[Path]]]] = []
        for name, path in images.items():
            named = [Named(phrase, tuple(range(len(files)))) for phrase, files in everything[name].items()]
            if name in chosen and self._teller.subjects(named, (), with_regions=True):
                self._pictures.append((path, everything[name]))
        if not self._pictures:
            raise ValueError(f"{self.root} has no image to ask about with this split and these tasks; change them")

    def _masks_of(self, name: str) -> dict[str, list[Path]]:
        """phrase -> its mask files, for one image."""
        folder = self.root / "masks" / name
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not there; put this image's masks in it, or leave it empty if there are none"
            )
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*.png")):
            phrase, dot, number = path.stem.rpartition(".")
            words = readable(phrase if dot and number.isdigit() else path.stem)
            if not words:
                raise ValueError(f"{path} has no phrase in its name; name it after what it shows, e.g. red_mug.png")
            found.setdefault(words, []).append(path)
        return found

    def __len__(self) -> int:
        return len(self._pictures)

    def id_of(self, index: int) -> str:
        return f"{self.root.name}/{self._pictures[index][0].stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with questions drawn by (seed, index, epoch); `Region.label` is the phrase.

        Raises:
            ValueError: an image or a mask is damaged, a mask is empty, not black and white, or of another size.
        """
        path, files = self._pictures[index]
        loaded = load_photo(path)
        regions: list[Region] = []
        named: list[Named] = []
        for phrase, masks in files.items():
            new = [Region.of_mask(read_mask(mask, loaded.size), phrase) for mask in masks]
            named.append(Named(phrase, tuple(range(len(regions), len(regions) + len(new)))))
            regions += [new[i] for i in reading_order(new)]
        rng = np.random.default_rng([self.seed, index, epoch])
        conversations = self._teller.tell(named, (), rng, regions=regions)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=conversations,
            id=self.id_of(index),
            meta={
                "source": "folder",
                "file": str(path),
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": self.names,
                "crowd_regions": (),
            },
        )


def read_mask(path: Path, size: Size) -> np.ndarray:
    """A black and white picture as `bool[H, W]`.

    Raises:
        ValueError: it is damaged, of another size than `size` (H, W), all black, or grey where it should be white.
    """
    loaded = load_image(path)
    if loaded.size != size:
        raise ValueError(
            f"{path} is {loaded.size}, its image {size} (height, width); draw the mask on the image itself"
        )
    if any("transparency" in note for note in loaded.notes):
        raise ValueError(f"{path} has transparency; save the mask without, white (255) is in, black (0) is out")
    brightest = int(loaded.pixels.max())
    if brightest == 0:
        raise ValueError(f"{path} is all black: nothing is in it; remove it")
    if brightest < WHITE:
        raise ValueError(
            f"{path} has no white pixel (the brightest is {brightest}); white (255) is in, black (0) is out"
        )
    return loaded.pixels.max(axis=2) >= WHITE
