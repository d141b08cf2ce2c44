"""A backdrop on canvas: every region with the texture of what it is.

Edges are analytic (a signed distance turned into coverage), so that picture and region ids agree at every size.
The canvas is planar, float32[3, H, W] of RGB 0..255 at noon; light comes later.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mglmm_data.world import noise, sky
from mglmm_data.world.sky import HEAVENS
from mglmm_data.world.stuff import NUM_KNOTS, Backdrop, Layer

Canvas = np.ndarray


@dataclass(frozen=True, eq=False)
class _Spot:
    """The rows in which a region is painted: x float32[1, W] and y float32[rows, 1], centres of pixels in 0..1.

    `depth` float32[rows, W] is the signed distance into the region, `t` float32[rows, 1] runs from 0 at the horizon
    to 1 at the lower edge; `first` is the first row.
    """

    layer: Layer
    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    t: np.ndarray
    first: int
    size: int
    offset: int
    backdrop: Backdrop

    def tile(self, name: str) -> np.ndarray:
        """float32[rows, W]: upright noise."""
        return noise.tile(name, self.offset, len(self.y), self.size)

    def floor(self, name: str) -> np.ndarray:
        """float32[rows, W]: noise lying on the ground."""
        edge = min(int(self.backdrop.horizon * self.size), self.first)
        return noise.floor(name, self.offset, self.size - edge, self.size)[self.first - edge :][: len(self.y)]


def profile(values: np.ndarray, size: int) -> np.ndarray:
    """float32[size]: an edge's y at the centre of every pixel column."""
    x = (np.arange(size) + 0.5) / size * (NUM_KNOTS - 1)
    return np.interp(x, np.arange(NUM_KNOTS), values).astype(np.float32)


def _rows(layer: Layer, size: int) -> tuple[int, int]:
    """The rows a region can reach, [first, end)."""
    if layer.kind == "lane":
        top, bottom = layer.numbers[5], 1.0
    elif layer.kind == "pond":
        top, bottom = (layer.numbers[1] + 1.35 * side * layer.numbers[3] for side in (-1, 1))
    else:
        assert layer.top is not None
        top = float(layer.top.min())
        bottom = float(layer.bottom.max()) if layer.kind == "band" and layer.bottom is not None else 1.0
    return max(0, int(top * size) - 2), min(size, int(bottom * size) + 3)


def _depth(layer: Layer, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """float32[rows, W]: signed distance into the region, in units of the side."""
    if layer.kind == "lane":
        far, near, bend, thin, wide, start = layer.numbers
        t = (y - start) / (1 - start)
        center = far + (near - far) * t + bend * t * (1 - t)
        assert layer.top is not None
        return np.minimum(thin + (wide - thin) * t - np.abs(x - center), y - profile(layer.top, size)[None, :])
    if layer.kind == "pond":
        cx, cy, rx, ry, wobble, phase = layer.numbers
        dx, dy = (x - cx) / rx, (y - cy) / ry
        edge = 1 + wobble * np.sin(3 * dx + phase) + 0.5 * wobble * np.sin(5 * dy + 4 * dx - phase)
        return ((edge - np.sqrt(dx * dx + dy * dy)) * ry).astype(np.float32)
    assert layer.top is not None
    inside = y - profile(layer.top, size)[None, :]
    if layer.kind == "band":
        assert layer.bottom is not None
        inside = np.minimum(inside, profile(layer.bottom, size)[None, :] - y)
    return inside


def paint(backdrop: Backdrop, size: int) -> tuple[Canvas, np.ndarray]:
    """Render the plan.

    Returns:
        float32[3, size, size] RGB 0..255 before the scene's light, and uint8[size, size] of layer indices.
    """
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    canvas = np.zeros((3, size, size), np.float32)
    sky.paint(canvas, backdrop, size)
    leaves = np.zeros((size, size), np.uint8)
    for index, layer in enumerate(backdrop.layers):
        if layer.kind == "all":
            continue
        first, end = _rows(layer, size)
        x, y = axis[None, :], axis[first:end, None]
        depth = _depth(layer, x, y, size)
        t = np.clip((y - backdrop.horizon) / (1 - backdrop.horizon), 0, 1)
        spot = _Spot(layer, x, y, depth, t, first, size, backdrop.offsets[index], backdrop)
        tone, accents = _PAINTERS[layer.name](spot)
        cover = np.clip(depth * size + 0.5, 0, 1)
        for channel in range(3):
            plane = canvas[channel, first:end]
            fill = layer.rgb[channel] * tone
            for rgb, amount in accents:
                fill += (rgb[channel] - fill) * amount
            fill -= plane
            fill *= cover
            plane += fill
        leaves[first:end][cover >= 0.5] = index
    return canvas, leaves


Accent = tuple[tuple[float, float, float], np.ndarray]
"""A colour, and how much of it where: float32, 0..1, broadcastable to [rows, W]."""
Fill = tuple[np.ndarray, list[Accent]]
"""Brightness of the region's own colour, float32[rows, W], and what is laid over it."""
_WHITE = (250.0, 251.0, 252.0)


def _haze(spot: _Spot, amount: float, reach: float) -> Accent:
    """The horizon's air over what is far."""
    r, g, b = HEAVENS[spot.backdrop.sky][1]
    return (r, g, b), amount * np.clip(1 - spot.t / reach, 0, 1)


def _mountain(spot: _Spot) -> Fill:
    top = spot.layer.top
    assert top is not None
    edge = profile(top, spot.size)
    slope = cv2.GaussianBlur(np.gradient(edge)[None, :] * spot.size, (0, 0), 1.5 * spot.size / noise.REFERENCE)
    rough = spot.tile("mixed")
    lean = np.tanh(1.4 * slope + 0.7 * spot.tile("soft"))
    tone = 1 + 0.05 * rough - 0.17 * spot.backdrop.light * lean
    accents: list[Accent] = []
    if spot.backdrop.snowline > 0:
        high, low = float(edge.min()), spot.backdrop.horizon
        line = high + (low - high) * spot.backdrop.snowline
        snow = np.clip((line - spot.y + 0.018 * rough) * 45, 0, 0.92)
        accents.append(((246.0, 248.0, 252.0), snow * (0.86 - 0.14 * spot.backdrop.light * lean)))
    sunk = np.clip((spot.y - float(edge.min())) / max(spot.backdrop.horizon - float(edge.min()), 1e-3), 0, 1)
    r, g, b = HEAVENS[spot.backdrop.sky][1]
    accents.append(((r, g, b), 0.4 * sunk**2))
    return tone.astype(np.float32), accents


def _forest(spot: _Spot) -> Fill:
    assert spot.layer.top is not None
    rim = np.exp(-np.maximum(spot.depth, 0) / 0.012)
    row = spot.y - profile(np.roll(spot.layer.top, 41) + 0.035, spot.size)[None, :]  # a nearer row of the same trees
    rim += np.where(row > 0, np.exp(-np.maximum(row, 0) / 0.015), 0)
    tone = 0.88 + 0.1 * spot.tile("soft") + 0.05 * spot.tile("fine") + 0.3 * rim - 1.6 * np.clip(spot.depth, 0, 0.12)
    return tone, [_haze(spot, 0.12, 1.0)]


def _grass(spot: _Spot) -> Fill:
    tone = 1.04 + 0.07 * spot.floor("blade") + 0.04 * spot.tile("large") - 0.1 * spot.t
    return tone, [_haze(spot, 0.3, 0.3)]


def _sand(spot: _Spot) -> Fill:
    tone = 1.02 + 0.035 * spot.floor("ripple") + 0.02 * spot.tile("fine") + 0.02 * spot.tile("large")
    return tone, [_haze(spot, 0.25, 0.3)]


def _snow(spot: _Spot) -> Fill:
    drift = spot.floor("large")
    sparkle = np.clip(spot.tile("fine") - 2.1, 0, 1)
    return 1 + 0.02 * drift, [((150.0, 180.0, 226.0), np.clip(0.1 - 0.09 * drift, 0, 0.3)), (_WHITE, sparkle)]


def _dirt(spot: _Spot) -> Fill:
    fine = spot.floor("fine")
    tone = 1 + 0.06 * spot.floor("mixed") - 0.13 * np.clip(fine - 1.6, 0, 1) + 0.1 * np.clip(-fine - 1.9, 0, 1)
    if spot.layer.kind == "lane":
        rut = np.abs(np.abs(_across(spot)) - 0.5)
        tone -= 0.12 * np.clip(1 - rut * 6, 0, 1)
    return tone, [_haze(spot, 0.25, 0.3)]


def _field(spot: _Spot) -> Fill:
    """Rows of crop that run to a vanishing point."""
    depth = np.maximum(spot.y - spot.backdrop.horizon, 0) + 0.05
    lead = (spot.x - 0.3 - 0.4 * (spot.offset % 97) / 97) / depth
    fade = np.clip(depth * 5 - 0.3, 0, 1)
    tone = 1.02 + 0.075 * spot.floor("blade") + 0.1 * fade * np.sin(12 * lead)
    return tone, [_haze(spot, 0.3, 0.3)]


def _pavement(spot: _Spot) -> Fill:
    """Slabs with joints, in perspective."""
    depth = np.maximum(spot.y - spot.backdrop.horizon, 0) + 0.12
    u, v = (spot.x - 0.5) / depth * 1.6, 1.35 / depth
    row = np.floor(v)
    pixel = 1.2 / spot.size
    joint_u = np.clip(1.3 - np.abs((u + 0.5 * (row % 2) + 0.5) % 1 - 0.5) * depth / 1.6 / pixel, 0, 1)
    joint_v = np.clip(1.3 - np.abs((v + 0.5) % 1 - 0.5) * depth * depth / 1.35 / pixel, 0, 1)
    slab = np.sin(row * 12.9 + np.floor(u + 0.5 * (row % 2) + 0.5) * 78.2)
    fade = np.clip(depth * 4 - 0.7, 0, 1)
    tone = 1 + 0.02 * spot.tile("fine") + 0.035 * slab * fade - 0.17 * fade * np.maximum(joint_u, joint_v)
    return tone.astype(np.float32), [_haze(spot, 0.2, 0.3)]


def _across(spot: _Spot) -> np.ndarray:
    """float32[rows, W]: where a pixel lies across a lane or a band, -1 .. 1."""
    layer = spot.layer
    if layer.kind == "lane":
        far, near, bend, thin, wide, start = layer.numbers
        t = (spot.y - start) / (1 - start)
        return (spot.x - far - (near - far) * t - bend * t * (1 - t)) / np.maximum(thin + (wide - thin) * t, 1e-3)
    assert layer.top is not None and layer.bottom is not None
    top, bottom = profile(layer.top, spot.size)[None, :], profile(layer.bottom, spot.size)[None, :]
    return (2 * spot.y - top - bottom) / (bottom - top)


def _road(spot: _Spot) -> Fill:
    across = _across(spot)
    tone = 1 + 0.05 * spot.floor("fine") - 0.05 * np.clip(1 - np.abs(np.abs(across) - 0.5) * 5, 0, 1)
    if spot.layer.kind == "lane":
        start = spot.layer.numbers[5]
        t = np.clip((spot.y - start) / (1 - start), 0, 1)
        dash = np.clip(3 * np.sin(9 * np.log(t + 0.08)) + 0.5, 0, 1)
        fade = np.clip(t * 5, 0, 1)
        sharp = 1.0 + 24 * t
    else:
        dash = np.clip(6 * np.sin(38 * spot.x + spot.offset % 6) + 0.5, 0, 1)
        fade, sharp = np.float32(0.9), np.float32(14.0)
    middle = np.clip((0.05 - np.abs(across)) * sharp + 0.5, 0, 1) * dash
    sides = np.clip((0.035 - np.abs(np.abs(across) - 0.88)) * sharp + 0.5, 0, 1)
    return tone, [((236.0, 234.0, 222.0), (fade * 0.85 * np.maximum(middle, sides)).astype(np.float32))]


def _water(spot: _Spot) -> Fill:
    wave = spot.floor("wave")
    tone = 0.98 + 0.07 * wave - 0.1 * spot.t
    accents: list[Accent] = [_haze(spot, 0.5, 0.5), (_WHITE, np.clip(wave - 1.7, 0, 0.5))]
    if spot.backdrop.sun is not None and spot.layer.kind == "below":
        glitter = np.exp(-(((spot.x - spot.backdrop.sun[0]) / 0.07) ** 2)) * np.clip(0.25 + 0.4 * wave, 0, 0.75)
        accents.append(((255.0, 244.0, 214.0), glitter))
    shore = spot.depth
    if spot.layer.bottom is not None:
        shore = profile(spot.layer.bottom, spot.size)[None, :] - spot.y
    foam = np.clip(1.2 - np.abs(shore + 0.002 * wave) / 0.007, 0, 0.75)
    accents.append((_WHITE, foam))
    return tone, accents


_PAINTERS = {
    "mountain": _mountain,
    "forest": _forest,
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "dirt": _dirt,
    "field": _field,
    "pavement": _pavement,
    "road": _road,
    "water": _water,
}
