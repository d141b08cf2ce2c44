"""The one record every dataset turns into: an image, regions of it, and conversations about it.

Text is clean: no `<p>`, `[SEG]` or coordinates; where a phrase is grounded or a region is spoken of stands in character
spans beside it. Geometry is in pixels of the image as loaded. What markers a model wants is its format's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np

from mglmm_data import masks
from mglmm_data.masks import Rle, Size

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in px; x2 and y2 are exclusive."""
Point = tuple[float, float]
"""x, y in px."""

POINT_RADIUS = 0.015
"""A point or a scribble is drawn as a disc of this share of the image's longer side (at least 2 px)."""


def check_text(text: str, what: str) -> None:
    """Raise where a text holds half of a character (json may: `"\\ud800"`), which no file and no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} holds {text[error.start]!r}, half of a character; correct the text") from None


@dataclass(frozen=True)
class Region:
    """A part of the image: exactly one of mask (COCO RLE), box, point or scribble; original pixels.

    Raises:
        ValueError: none or several geometries are given, or the geometry lies outside the image.
    """

    size: Size
    rle: Rle | None = None
    box: Box | None = None
    point: Point | None = None
    scribble: tuple[Point, ...] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("rle", "box", "point", "scribble") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a region has exactly one of mask (rle), box, point, scribble; got {given or 'none'}")
        check_text(self.label, "a region's label")
        height, width = self.size
        if self.rle is not None and tuple(self.rle["size"]) != tuple(self.size):
            raise ValueError(f"the mask is {tuple(self.rle['size'])}, the image {tuple(self.size)} (height, width)")
        if self.box is not None:
            x1, y1, x2, y2 = self.box
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(
                    f"box {self.box} is not inside the image of {width}x{height} px; "
                    "give x1, y1, x2, y2 with 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height"
                )
        for x, y in self.scribble or ((self.point,) if self.point else ()):
            if not (0 <= x <= width and 0 <= y <= height):
                raise ValueError(f"point ({x}, {y}) is outside the image of {width}x{height} px; give x, y in pixels")
        if self.scribble is not None and len(self.scribble) < 2:
            raise ValueError(f"a scribble needs at least 2 points; got {len(self.scribble)}")

    @classmethod
    def of_mask(cls, mask: np.ndarray, label: str = "") -> Region:
        """From `bool[H, W]`."""
        return cls(size=(int(mask.shape[0]), int(mask.shape[1])), rle=masks.encode(mask), label=label)

    @property
    def kind(self) -> Literal["mask", "box", "point", "scribble"]:
        if self.rle is not None:
            return "mask"
        return "box" if self.box is not None else "point" if self.point is not None else "scribble"

    @cached_property
    def mask(self) -> np.ndarray:
        """`bool[H, W]`: the mask, the filled box, or the point or scribble drawn with `POINT_RADIUS`."""
        if self.rle is not None:
            return masks.decode(self.rle)
        height, width = self.size
        canvas = np.zeros(self.size, np.uint8)
        if self.box is not None:
            x1, y1, x2, y2 = self.box
            left, top = min(int(x1), width - 1), min(int(y1), height - 1)
            canvas[top : max(round(y2), top + 1), left : max(round(x2), left + 1)] = 1
            return canvas.astype(bool)
        radius = max(2, round(POINT_RADIUS * max(self.size)))
        points = [self.point] if self.point is not None else list(self.scribble or ())
        pixels = [(min(int(x), width - 1), min(int(y), height - 1)) for x, y in points]
        for start, end in zip(pixels, pixels[1:] or pixels, strict=False):
            cv2.line(canvas, start, end, 1, thickness=2 * radius)
        for pixel in pixels:
            cv2.circle(canvas, pixel, radius, 1, thickness=-1)
        return canvas.astype(bool)

    @cached_property
    def bounds(self) -> Box | None:
        """Tight box of the region, px; None when a mask is empty."""
        if self.box is not None:
            return self.box
        return masks.bounds_of(masks.packed(self.rle)) if self.rle is not None else masks.box_of(self.mask)


@dataclass(frozen=True)
class Grounding:
    """Characters `start:end` of a turn's text are grounded in one or several regions, in reading order.

    `start == end` is a mask without words at its place, as in LISA's `It is [SEG].`
    """

    start: int
    end: int
    regions: tuple[int, ...]


@dataclass(frozen=True)
class Mention:
    """Characters `start:end` of a user's text speak of a given region."""

    start: int
    end: int
    region: int


@dataclass(frozen=True)
class Turn:
    """One utterance. `phrases` ground an answer; `mentions` point a question at given regions.

    A question may have phrases, too: what it names, for `losses.named`.
    `grounding` says how the phrases come out: as masks (`[SEG]`) or as boxes (coordinates in the text).
    """

    role: Literal["user", "assistant"]
    text: str
    phrases: tuple[Grounding, ...] = ()
    mentions: tuple[Mention, ...] = ()
    grounding: Literal["mask", "box"] = "mask"

    def __post_init__(self) -> None:
        check_text(self.text, f"what the {self.role} says")
        end = 0
        for span in sorted([*self.phrases, *self.mentions], key=lambda item: item.start):
            piece = self.text[span.start : span.end]
            letters = int(isinstance(span, Mention))  # a mention needs words; a mask may stand without (`It is [SEG].`)
            if not (end <= span.start <= span.end - letters <= len(self.text) - letters):
                raise ValueError(f"span {span.start}:{span.end} overlaps another or leaves the text {self.text!r}")
            if piece != piece.strip():
                raise ValueError(f"span {span.start}:{span.end} ({piece!r}) begins or ends with white space")
            end = span.end
        for phrase in self.phrases:
            if not phrase.regions:
                raise ValueError(f"phrase {self.text[phrase.start : phrase.end]!r} has no region; leave it ungrounded")

    @property
    def regions(self) -> tuple[int, ...]:
        """The regions it points at, those that are mentioned first; one may be there twice."""
        grounded = (region for phrase in self.phrases for region in phrase.regions)
        return (*(mention.region for mention in self.mentions), *grounded)


@dataclass(frozen=True)
class Conversation:
    """Turns that see each other. `task` names what is asked (`referring`, `panoptic`, ...), `kind` a subtype of it."""

    turns: tuple[Turn, ...]
    task: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
            raise ValueError(f"turns alternate user, assistant and end with an answer; got {roles}")


@dataclass(frozen=True, eq=False)
class Sample:
    """An image, `uint8[H, W, 3]` RGB, with regions and conversations about it; conversations do not see each other.

    A picture that was decoded smaller than it is (`images.as_large_as`) says so in `full_size`, its own (H, W): `size`
    and the regions are in pixels of that.

    Raises:
        ValueError: a turn points at a region that is not there, or a region is of another size than the image.
    """

    image: np.ndarray
    regions: tuple[Region, ...]
    conversations: tuple[Conversation, ...]
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    full_size: Size | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"{self.id}: image is {self.image.dtype}{self.image.shape}; expected uint8[H, W, 3]")
        for index, region in enumerate(self.regions):
            if tuple(region.size) != self.size:
                raise ValueError(f"{self.id}: region {index} is for an image of {region.size}, this one is {self.size}")
        for conversation in self.conversations:
            for turn in conversation.turns:
                for region in turn.regions:
                    if not 0 <= region < len(self.regions):
                        raise ValueError(f"{self.id}: {turn.text!r} points at region {region} of {len(self.regions)}")

    @property
    def size(self) -> Size:
        """(H, W) of the picture as it lies in its file, px."""
        return self.full_size or (int(self.image.shape[0]), int(self.image.shape[1]))


def compose(*pieces: str | tuple[str, tuple[int, ...]]) -> tuple[str, tuple[Grounding, ...]]:
    """Join text and grounded pieces: `compose("There is ", ("a dog", (0,)), ".")` gives the text and its spans."""
    text, spans = "", []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            spans.append(Grounding(len(text), len(text) + len(piece[0]), tuple(piece[1])))
            text += piece[0]
    return text, tuple(spans)
