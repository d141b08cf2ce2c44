"""Captions of whole images: COCO, NoCaps, Flickr30k (token file, or Karpathy's json).

Sources of the formats: cocodataset.org/#format-data (captions); nocaps.org (COCO's format, `domain` at an image);
Flickr30k's `results_20130124.token` (`NAME.jpg#0<tab>caption`); Karpathy & Fei-Fei's `dataset_flickr30k.json` and
`dataset_coco.json` (`images[].filename, split, sentences[].raw`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mglmm_data import wording
from mglmm_data.index import walk
from mglmm_data.masks import Size
from mglmm_data.reading import (
    OnError,
    Packed,
    Pictures,
    Problems,
    load_picture,
    name_in,
    read_lines,
    take,
    take_id,
    take_line,
    take_size,
)
from mglmm_data.sample import Conversation, Sample, Turn
from mglmm_data.telling import near

Told = tuple[Any, str, Size | None, str, list[str]]
"""Image id, file name, (H, W) as the file has it, split or domain ("" where there is none), captions."""


class CaptionSource:
    """A file of captions and the images as a `Source`; the form is read off the file.

    Args:
        path: COCO's or NoCaps' json, Karpathy's json, or Flickr30k's token file.
        image_root: the folder of the images, or several.
        subset: only images of this `split` (Karpathy) or `domain` (NoCaps: in-domain, near-domain, out-domain).
        only: a text file of image names, one a line, with or without `.jpg` (Flickr30k's train.txt, val.txt, test.txt).
        per: `image`, where (seed, index, epoch) draws the caption; or `caption`, where each caption is a sample.
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: the file is damaged, a record is malformed, an image is missing, or nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        subset: str | None = None,
        only: str | Path | None = None,
        per: Literal["image", "caption"] = "image",
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        if per not in ("image", "caption"):
            raise ValueError(f"per is {per!r}{near(per, ('image', 'caption'))}")
        self.path, self.per, self.seed, self.mirror = Path(path), per, seed, mirror
        self.problems = Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What the file has that is no sample and no problem: images without a caption, of another subset."""
        told = list(read_captions(self.path, self.problems))
        if subset is not None and subset not in (known := {item[3] for item in told}):
            raise ValueError(f"{self.path} has no subset {subset!r}{near(subset, known - {''})}")
        wanted = None if only is None else {line.strip().removesuffix(".jpg") for _, line in read_lines(only)}
        pictures, kept = Pictures(image_root), []
        for item in told:
            identity, name, size, part, captions = item
            if (subset is not None and part != subset) or (wanted is not None and Path(name).stem not in wanted):
                self.skipped["image of another subset"] += 1
            elif not captions:
                self.skipped["image without a caption"] += 1
            else:
                with self.problems.at(f"{self.path}: image {identity}"):
                    kept.append((identity, pictures.find(name), size, part, captions))
        self._packed = Packed(kept)
        owners = range(len(kept)) if per == "image" else (i for i, item in enumerate(kept) for _ in item[4])
        self._owner = np.fromiter(owners, np.int32)
        self._first = np.searchsorted(self._owner, np.arange(len(kept)))
        if not kept:
            read = f"{len(told)} were read{self.problems.why}"
            raise ValueError(f"{self.path} has no image with a caption under these options; {read}")

    def __len__(self) -> int:
        return len(self._owner)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{self._packed[int(self._owner[index])][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, asked for a caption. `meta["references"]` are all its captions.

        Raises:
            ValueError: the image is damaged, or of another size than the file says.
        """
        owner = int(self._owner[index])
        identity, path, size, part, captions = self._packed[owner]
        rng = np.random.default_rng([self.seed, index, epoch])
        question = str(rng.choice(wording.QUESTIONS["caption"]))
        which = int(rng.integers(len(captions))) if self.per == "image" else index - int(self._first[owner])
        loaded = load_picture(path, size, f"{self.path}: image {identity}")
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=(),
            conversations=(
                Conversation((Turn("user", question), Turn("assistant", captions[which])), task="caption", kind=part),
            ),
            id=self.id_of(index),
            meta={
                "source": "captions",
                "image_id": identity,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "references": tuple(captions),
                "subset": part,
            },
        )


def read_captions(path: str | Path, problems: Problems) -> Iterator[Told]:
    """Every image of a caption file with its captions, in the file's order; none is looked for on disk."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        yield from _token_file(path, problems)
        return
    data: dict[str, list[Any]] = {"images": [], "annotations": []}
    lists: set[str] = set()
    for key, _, _, record in walk(path, problems, lists):
        if key in data:
            if key not in lists:
                raise ValueError(f"{path}: {key!r} is {type(record).__name__}; expected a list")
            data[key].append(record)
    if "images" not in lists:
        raise ValueError(f"{path} has no list 'images'; give COCO's, NoCaps' or Karpathy's json, or a token file")
    if any(isinstance(image, dict) and "sentences" in image for image in data["images"]):
        yield from _karpathy(path, data["images"], problems)
    else:
        yield from _coco(path, data["images"], data["annotations"], problems)


def _coco(path: Path, records: list[Any], annotations: list[Any], problems: Problems) -> Iterator[Told]:
    images: dict[int | str, Told] = {}
    for number, image in enumerate(records):
        with problems.at(f"{path}: image {name_in(image, number)}"):
            identity = take_id(image, "id")
            if identity in images:
                raise ValueError("its id is there twice; ids must be unique")
            name = take(image, "file_name", str)
            images[identity] = (identity, name, take_size(image), str(image.get("domain", "")), [])
    for number, annotation in enumerate(annotations):
        with problems.at(f"{path}: annotation {name_in(annotation, number)}"):
            caption, image = take_line(annotation, "caption"), take_id(annotation, "image_id")
            if image not in images:
                raise ValueError(f"is on image id {image}, which is not among the images")
            images[image][4].append(caption)
    yield from images.values()


def _karpathy(path: Path, images: list[Any], problems: Problems) -> Iterator[Told]:
    for number, image in enumerate(images):
        with problems.at(f"{path}: image {name_in(image, number)}"):
            name = take(image, "filename", str)
            folder = image.get("filepath", "")
            captions = [take_line(sentence, "raw") for sentence in take(image, "sentences", list)]
            found = (name, f"{folder}/{name}" if folder else name, None, take(image, "split", str), captions)
            yield found


def _token_file(path: Path, problems: Problems) -> Iterator[Told]:
    told: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        with problems.at(f"{path}: line {number}"):
            name, tab, caption = line.partition("\t")
            name, mark, count = name.strip().rpartition("#")
            if not tab or not mark or not count.isdigit():
                raise ValueError(f"is {line[:60]!r}; expected NAME.jpg#0, a tab, and the caption")
            told.setdefault(name, []).append(take_line({"caption": caption}, "caption"))
    for name, captions in told.items():
        yield Path(name).stem, name, None, "", captions
