"""The one result: a text, its grounded phrases, the image they are grounded in, and what had to be said beside it.

Text is clean (no `<p>`, `[SEG]` or coordinates); phrases are character spans of it. Geometry is in pixels of the image
as loaded. An answer without any phrase is an ordinary answer: everything here works on it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import supervision
    from PIL import Image

    from mglmm_data.sample import Box, Region

PICTURES = (".png", ".jpg", ".jpeg")
PAGES = (".html", ".htm")
REPORTS = (".json", ".md", ".txt", ".png")
"""Suffixes that `Report.save` knows; .png is the reliability plot."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One grounded thing: a mask, a box, or both.

    Attributes:
        mask: bool[H, W], image px; None where only a box was asked for.
        box: x1, y1, x2, y2, image px, x2 and y2 exclusive.
        score: 0..1, of the kind `Answer.score_kind` names.

    """

    mask: np.ndarray | None
    box: Box | None
    score: float

    @property
    def bounds(self) -> Box | None:
        """The box, or else the tight box of the mask, px; None for an empty mask."""
        from mglmm_data.masks import box_of

        return self.box if self.box is not None or self.mask is None else box_of(self.mask)


@dataclass(frozen=True, eq=False)
class Phrase:
    """Characters `span` of the answer's text and the instances they name, in reading order."""

    text: str
    span: tuple[int, int]
    instances: tuple[Instance, ...]

    @property
    def mask(self) -> np.ndarray | None:
        """bool[H, W]: the union of the instances' masks; None when no instance has one."""
        masks = [instance.mask for instance in self.instances if instance.mask is not None]
        return np.logical_or.reduce(masks) if masks else None

    @property
    def score(self) -> float:
        """Mean of the instances' scores; 0 without instances."""
        return float(np.mean([instance.score for instance in self.instances])) if self.instances else 0.0


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model said about an image.

    Attributes:
        text: clean text.
        phrases: grounded spans of `text`, in order, not overlapping.
        image: uint8[H, W, 3] RGB, as loaded.
        notes: one sentence each about what was done to the input or went wrong with the output.
        truncated: the token limit cut the answer.
        score_kind: `mask_x_text` (mean probability inside the mask times that of the words) or `probability` (that
            the instance is right, see `mglmm.confidence`). Where boxes were spelt it is always the first; a box has
            the probability of its words alone.
        prompt: the question, clean text.

    Raises:
        ValueError: the image is not uint8 RGB, a mask is not bool of the image's size, a span is not the phrase's text.

    """

    text: str
    phrases: tuple[Phrase, ...]
    image: np.ndarray
    notes: tuple[str, ...] = ()
    truncated: bool = False
    score_kind: str = "mask_x_text"
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"image is {self.image.dtype}{self.image.shape}; expected uint8[H, W, 3]")
        end = 0
        for phrase in self.phrases:
            start, stop = phrase.span
            if not end <= start <= stop <= len(self.text):
                raise ValueError(f"span {start}:{stop} of {phrase.text!r} is out of order or leaves {self.text!r}")
            if self.text[start:stop] != phrase.text:
                raise ValueError(f"span {start}:{stop} is {self.text[start:stop]!r}, the phrase says {phrase.text!r}")
            end = stop
            for instance in phrase.instances:
                mask = instance.mask
                if mask is not None and (mask.shape != self.image.shape[:2] or mask.dtype != np.bool_):
                    raise ValueError(
                        f"the mask of {phrase.text!r} is {mask.dtype}{mask.shape}; expected bool{self.image.shape[:2]}"
                    )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), px."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    @property
    def pieces(self) -> list[tuple[str, int | None]]:
        """The text cut at the phrases: (piece, index of its phrase, or None for the text between)."""
        out: list[tuple[str, int | None]] = []
        end = 0
        for index, phrase in enumerate(self.phrases):
            start, stop = phrase.span
            if start > end:
                out.append((self.text[end:start], None))
            out.append((phrase.text, index))
            end = stop
        if end < len(self.text):
            out.append((self.text[end:], None))
        return out

    def plot(self, regions: Sequence[Region] = ()) -> Image.Image:
        """The image with numbered, coloured masks, and the caption whose phrases wear the same colours."""
        from mglmm.draw import draw_answer

        return draw_answer(self, regions)

    def save(self, path: str | Path, regions: Sequence[Region] = ()) -> Path:
        """Write a picture, a page or the json, chosen by the suffix; a file that is there is replaced in one step.

        Raises:
            ValueError: the suffix is none of .png, .jpg, .jpeg, .html, .htm, .json.

        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in PICTURES:
            import io

            buffer = io.BytesIO()
            self.plot(regions).save(buffer, "PNG" if suffix == ".png" else "JPEG", **_PICTURE_OPTIONS[suffix == ".png"])
            content = buffer.getvalue()
        elif suffix in PAGES:
            from mglmm.page import answer_page

            content = answer_page([("", self)], "Grounded answer", [regions]).encode("utf-8")
        elif suffix == ".json":
            content = json.dumps(self.to_json(), ensure_ascii=False, indent=1).encode("utf-8")
        else:
            raise ValueError(
                f"cannot save an answer as {path.name!r}: the suffix {suffix!r} is not one of .png, .jpg (picture), "
                ".html (page), .json (data)"
            )
        write_atomically(path, content)
        return path

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels, masks as COCO RLE; `from_json` reads it back."""
        from mglmm.export import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], image: np.ndarray) -> Answer:
        """Read what `to_json` wrote, with the image, uint8[H, W, 3], it was about.

        Raises:
            ValueError: a key is missing, or the image is of another size.

        """
        from mglmm.export import from_json

        return from_json(data, image)

    def to_coco(self, *, file_name: str = "image.jpg", image_id: int = 1) -> dict[str, Any]:
        """COCO instances json: images, categories, annotations with RLE; overlapping masks stay as they are."""
        from mglmm.export import to_coco

        return to_coco(self, file_name=file_name, image_id=image_id)

    def to_labelme(
        self, *, image_path: str = "image.jpg", shapes: Literal["polygon", "mask"] = "polygon", embed: bool = False
    ) -> dict[str, Any]:
        """Labelme 5 json; `shapes="mask"` keeps holes, `embed` puts the image into the json."""
        from mglmm.export import to_labelme

        return to_labelme(self, image_path=image_path, shapes=shapes, embed=embed)

    def to_label_studio(self, *, image_url: str = "image.jpg", model_version: str = "mglmm") -> dict[str, Any]:
        """A Label Studio task with this answer as its prediction (brush masks, rectangles in percent)."""
        from mglmm.export import to_label_studio

        return to_label_studio(self, image_url=image_url, model_version=model_version)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections`, one row an instance, phrases in `data["phrase"]`."""
        from mglmm.export import to_supervision

        return to_supervision(self)


_PICTURE_OPTIONS: dict[bool, dict[str, Any]] = {
    True: {"compress_level": 4},
    False: {"quality": 92, "subsampling": 0},
}


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and move it there: a full disk or a crash leaves the old file as it was.

    Raises:
        OSError: it could not be written; the message names the file and the way out.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "; the file that was there is intact" if path.is_file() else ""
        raise OSError(
            f"could not write {path}: {error.strerror or error}{kept}; free some space or choose another folder"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
