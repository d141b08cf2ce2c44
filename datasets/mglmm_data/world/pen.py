"""The pen that things are drawn with, and how a drawing becomes a lit sprite.

A shape lives in its own frame: y is 0 at the ground and 1 at the top, x is 0 in the middle, both in units of the
thing's height. It is painted into a supersampled canvas of colour + part id and brought down once, so that picture
and ids agree to half a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mglmm_data.world.vocabulary import PARTS

Rgb = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

SUPERSAMPLING = 3  # odd: the middle of a block of canvas pixels is the middle of a pixel


@dataclass(frozen=True)
class Look:
    """What a thing looks like wherever it stands: part -> RGB, six numbers 0..1 that vary its form, its facing."""

    category: str
    rgb: dict[str, Rgb]
    form: tuple[float, ...]
    flip: bool


@dataclass(frozen=True, eq=False)
class Sketch:
    """A thing drawn at a place, not lit yet: `canvas` uint8[s h, s w, 4] of RGB + id, `ids` uint8[h, w].

    `ids` is 0 outside, else 1 + index in `PARTS[category]`; (x, y) is the top left pixel in the picture;
    `foot` the thing's x, y there; `height` in px.
    """

    x: int
    y: int
    canvas: np.ndarray
    ids: np.ndarray
    foot: tuple[float, float]
    height: float


@dataclass(frozen=True, eq=False)
class Sprite:
    """A lit drawing: `rgb` float32[3, h, w] of 0..255, premultiplied by `alpha` float32[h, w] of 0..1."""

    x: int
    y: int
    rgb: np.ndarray
    alpha: np.ndarray
    ids: np.ndarray


class Pen:
    """Draws named parts in a thing's own frame; `tint` lightens (> 1) or darkens (< 1) the part's colour."""

    def __init__(self, look: Look, canvas: np.ndarray, scale: float, x: float, y: float) -> None:
        self.canvas = canvas
        self.scale = scale
        self.x = x
        self.y = y
        self.side = -1.0 if look.flip else 1.0
        self.form = look.form
        self._ink = {part: (*look.rgb[part], i + 1) for i, part in enumerate(PARTS[look.category])}

    def _color(self, part: str, tint: float) -> tuple[float, float, float, float]:
        r, g, b, i = self._ink[part]
        if tint > 1.0:
            k = (tint - 1.0) * (0.35 + 0.65 * max(r, g, b) / 255)  # a highlight must not turn black to gray
            return (r + (255 - r) * k, g + (255 - g) * k, b + (255 - b) * k, i)
        return (r * tint, g * tint, b * tint, i)

    def _place(self, points: Points) -> np.ndarray:
        """Points of the own frame in sixteenths of a canvas pixel, int32[n, 2]."""
        kx, ky = self.side * self.scale * 16, -self.scale * 16
        ox, oy = self.x * 16, self.y * 16
        return np.array([(round(ox + kx * px), round(oy + ky * py)) for px, py in points], np.int32)

    def poly(self, part: str, points: Points, tint: float = 1.0) -> None:
        cv2.fillPoly(self.canvas, [self._place(points)], self._color(part, tint), cv2.LINE_8, 4)

    def rect(self, part: str, x0: float, y0: float, x1: float, y1: float, tint: float = 1.0) -> None:
        """Upright, and at least a pixel of the picture wide, so that thin poles do not vanish."""
        thin = (SUPERSAMPLING + 0.1) / self.scale - (x1 - x0)
        if thin > 0:
            x0, x1 = x0 - thin / 2, x1 + thin / 2
        self.poly(part, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), tint)

    def oval(self, part: str, x: float, y: float, rx: float, ry: float, tint: float = 1.0, tilt: float = 0.0) -> None:
        """`tilt` turns the oval counter-clockwise, degrees."""
        px, py = (int(v) for v in self._place(((x, y),))[0])
        axes = (max(1, round(rx * self.scale * 16)), max(1, round(ry * self.scale * 16)))
        color = self._color(part, tint)
        cv2.ellipse(self.canvas, (px, py), axes, -tilt * self.side, 0, 360, color, -1, cv2.LINE_8, 4)

    def line(self, part: str, points: Points, width: float, tint: float = 1.0) -> None:
        thick = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, [self._place(points)], False, self._color(part, tint), thick, cv2.LINE_8, 4)


def solid(ids: np.ndarray) -> np.ndarray:
    """uint8, 255 where an id is not 0."""
    return cv2.threshold(ids, 0, 255, cv2.THRESH_BINARY)[1]


def lit(sketch: Sketch, light: float) -> Sprite:
    """Bring a sketch down to pixels, with light from a side (-1 left .. 1 right), soft edges and outlines."""
    s = SUPERSAMPLING
    h, w = sketch.ids.shape
    part = np.ascontiguousarray(sketch.canvas[:, :, 3])
    reach = max(1, round(0.03 * sketch.height * s))
    dx = reach if light > 0 else -reach
    wide = cv2.copyMakeBorder(part, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    rows, cols = part.shape

    def neighbour(across: int, down: int) -> np.ndarray:
        return wide[reach + down : reach + down + rows, reach + across : reach + across + cols]

    bright = cv2.compare(part, neighbour(dx, -reach), cv2.CMP_NE)
    dark = cv2.compare(part, neighbour(-dx, reach), cv2.CMP_NE)
    relief = cv2.blur(cv2.addWeighted(bright, 0.5, dark, -0.5, 128), (2 * reach + 1, 2 * reach + 1))
    outline = solid(cv2.morphologyEx(part, cv2.MORPH_GRADIENT, _CROSS))
    relief = cv2.subtract(relief, cv2.convertScaleAbs(outline, alpha=0.3))
    down = cv2.resize(cv2.merge([relief, solid(part)]), (w, h), interpolation=cv2.INTER_AREA)
    rgb = cv2.resize(sketch.canvas[:, :, :3], (w, h), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    alpha = down[:, :, 1]
    across = (np.arange(w, dtype=np.float32) / max(w - 1, 1) - 0.5)[None, :] * (0.2 * light)
    fall = (0.5 - np.arange(h, dtype=np.float32) / max(h - 1, 1))[:, None] * 0.16
    shade = 1.0 + across + fall + (down[:, :, 0].astype(np.float32) - 128.0) * (0.30 / 64)
    return Sprite(sketch.x, sketch.y, np.minimum(rgb * shade, alpha), alpha.astype(np.float32) * (1 / 255), sketch.ids)


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
