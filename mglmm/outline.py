"""Masks and boxes at the size they are drawn: small images enlarged, edges without pixel stairs, outlines as lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from mglmm.answer import Answer
from mglmm.caption import rounded
from mglmm_data import masks
from mglmm_data.sample import Box

MIN_WIDTH = 480
MAX_SIDE = 4096
MAP = 420


@dataclass(frozen=True)
class Frame:
    """From image pixels to the picture's: `scale`, a whole number when it enlarges."""

    size: tuple[int, int]  # (H, W) of the image, px

    @cached_property
    def scale(self) -> float:
        height, width = self.size
        if max(height, width) > MAX_SIDE:
            return MAX_SIDE / max(height, width)
        return float(max(1, min(-(-MIN_WIDTH // width), 2 * MIN_WIDTH // height)))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the picture, px."""
        return max(1, round(self.size[0] * self.scale)), max(1, round(self.size[1] * self.scale))

    @property
    def unit(self) -> float:
        """What is 1 px in a picture of 640x640, px."""
        return max(MIN_WIDTH, float(np.sqrt(self.shape[0] * self.shape[1]))) / 640

    @property
    def map_scale(self) -> float:
        """Px of the frame's map, on which places are looked for, to 1 px of the picture."""
        return min(1.0, MAP / max(self.shape))

    @property
    def map_shape(self) -> tuple[int, int]:
        """(h, w) of the frame's map, px."""
        return max(1, round(self.shape[0] * self.map_scale)), max(1, round(self.shape[1] * self.map_scale))

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        """uint8[H, W, 3] at the picture's size."""
        if self.scale == 1:
            return image.copy()
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        return np.ascontiguousarray(cv2.resize(image, self.shape[::-1], interpolation=how))


class Shape:
    """A mask or a box at the picture's size."""

    def __init__(self, frame: Frame, mask: np.ndarray | None, box: Box | None):
        self.frame, self.box = frame, box
        bounds = masks.box_of(mask) if mask is not None else box
        self.is_mask = mask is not None
        self.empty = bounds is None
        if bounds is None:
            return
        scale = frame.scale
        self.bounds: Box = (bounds[0] * scale, bounds[1] * scale, bounds[2] * scale, bounds[3] * scale)
        if mask is None:
            self.area = (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]) * scale**2
            return
        self.area = float(mask.sum()) * scale**2
        pad = 2
        self.left, self.top = max(int(bounds[0]) - pad, 0), max(int(bounds[1]) - pad, 0)
        crop = mask[self.top : int(bounds[3]) + pad, self.left : int(bounds[2]) + pad]
        self.alpha = _soft(crop, scale)

    @cached_property
    def offset(self) -> tuple[int, int]:
        """(x, y) of `alpha` in the picture, px."""
        return round(self.left * self.frame.scale), round(self.top * self.frame.scale)

    @cached_property
    def outlines(self) -> list[np.ndarray]:
        """Closed lines float[N, 2] around the mask and its holes, or the box, px of the picture."""
        if self.empty:
            return []
        if not self.is_mask:
            return [rounded(*self.bounds, radius=0, left=False, right=False)]
        solid = np.pad((self.alpha > 127).astype(np.uint8), 1)
        lines, _ = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        origin = np.array(self.offset) - 0.5  # the pad moved it by 1, a pixel's centre is at 0.5
        return [_smooth(line.reshape(-1, 2).astype(float)) + origin for line in lines]

    @cached_property
    def small(self) -> np.ndarray:
        """bool[h, w]: the shape, filled, on the frame's map."""
        out = np.zeros(self.frame.map_shape, np.uint8)
        lines = [
            np.round(line * self.frame.map_scale - 0.5).astype(np.int32).reshape(-1, 1, 2) for line in self.outlines
        ]
        cv2.drawContours(out, lines, -1, 1, -1)
        return out.astype(bool)


def _soft(crop: np.ndarray, scale: float) -> np.ndarray:
    """bool[h, w] enlarged to uint8 0..255 with smooth edges."""
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    solid = crop.astype(np.float32)
    if scale < 1:
        return (cv2.resize(solid, size, interpolation=cv2.INTER_AREA) * 255).astype(np.uint8)
    padded = np.pad(solid, 1, mode="edge")
    large = cv2.resize(padded, (size[0] + 2 * int(scale), size[1] + 2 * int(scale)), interpolation=cv2.INTER_LINEAR)
    inner = cv2.GaussianBlur(large, (0, 0), 0.35 * min(scale, 8.0))[int(scale) : -int(scale), int(scale) : -int(scale)]
    return (np.clip((inner - 0.42) * 1.4 * scale + 0.5, 0, 1) * 255).astype(np.uint8)


def _smooth(line: np.ndarray) -> np.ndarray:
    """Take the pixel stairs out of a closed line float[N, 2]."""
    if len(line) < 16:
        return line
    weights = np.array([1, 2, 3, 2, 1]) / 9
    wrapped = np.concatenate([line[-2:], line, line[:2]])
    return np.stack([np.convolve(wrapped[:, axis], weights, "valid") for axis in (0, 1)], -1)


def shapes_of(answer: Answer, frame: Frame) -> list[list[Shape]]:
    """For every phrase, the shapes of its instances that can be drawn."""
    drawn = [[Shape(frame, item.mask, item.box) for item in phrase.instances] for phrase in answer.phrases]
    return [[item for item in items if not item.empty] for items in drawn]


@dataclass(frozen=True)
class Layer:
    """One shape in the order of drawing.

    Attributes:
        phrase: index of its phrase.
        opacity: of its fill, 0..1; the less of the image is left bare, the lighter are all fills.
        whole: smaller shapes cover most of it (a car with its parts), so its own line must show beside theirs.

    """

    shape: Shape
    phrase: int
    opacity: float
    whole: bool


def layers_of(frame: Frame, shapes: list[list[Shape]]) -> list[Layer]:
    """All shapes, large ones first."""
    flat = sorted(((shape, i) for i, items in enumerate(shapes) for shape in items), key=lambda item: item[0].area)
    covered = np.zeros(frame.map_shape, bool)
    wholes: list[bool] = []
    for shape, _ in flat:
        wholes.append(shape.is_mask and bool((covered & shape.small).sum() > 0.6 * shape.small.sum()))
        if shape.is_mask:
            covered |= shape.small
    bare = 1 - 0.48 * float(covered.mean())
    num_pixels = frame.shape[0] * frame.shape[1]
    layers = []
    for (shape, phrase), whole in zip(flat, wholes, strict=True):
        opacity = (0.52 - 0.2 * min(1.0, 4 * shape.area / num_pixels)) * bare if shape.is_mask else 0.1
        layers.append(Layer(shape, phrase, opacity, whole))
    return layers[::-1]
