"""Light on a scene: shadows and reflections under the things, the glow of lamps, weather, and the finished picture.

Canvases are planar, float32[3, H, W] of RGB 0..255, changed in place.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from mglmm_data.world import noise
from mglmm_data.world.pen import Sketch, solid
from mglmm_data.world.stuff import TONES, Backdrop

_STRENGTH = {"blue": 0.42, "gray": 0.2, "orange": 0.4, "pink": 0.34, "purple": 0.3, "black": 0.3}


def shadows(canvas: np.ndarray, backdrop: Backdrop, standing: list[tuple[Sketch, float]]) -> None:
    """Darken the ground where things on it keep the light away; each comes with half its width, px.

    A sun that is seen stands behind the things: their shadows fall towards the viewer.
    """
    size = canvas.shape[1]
    zoom = size / noise.REFERENCE
    edge = int(backdrop.horizon * size)
    cast = np.zeros((size, size), np.uint8)
    contact = np.zeros((size, size), np.uint8)
    squash = -0.28 if backdrop.sun is not None else 0.2
    lean = -0.5 * backdrop.light
    level = 255 if backdrop.sky not in ("gray", "black") else 150
    for sketch, half in standing:
        fx, fy = sketch.foot[0] - sketch.x, sketch.foot[1] - sketch.y - 0.03 * sketch.height
        down = sketch.foot[1] - 0.03 * sketch.height - squash * fy
        move = np.array([[1, -lean, sketch.foot[0] - fx + lean * fy], [0, squash, down]])
        cast = cv2.max(cast, cv2.warpAffine(solid(sketch.ids), move, (size, size), flags=cv2.INTER_LINEAR))
        center = (round(sketch.foot[0] * 16), round((sketch.foot[1] - 0.3) * 16))
        axes = (round(half * 0.8 * 16), max(16, round(half * 0.13 * 16)))
        cv2.ellipse(contact, center, axes, 0, 0, 360, 130, -1, cv2.LINE_8, 4)
    width = 2 * round(1.5 * zoom) + 1
    cast = cv2.blur(cv2.convertScaleAbs(cast, alpha=level / 255), (width, width))
    both = cv2.max(cast, cv2.blur(contact, (width, width)))
    keep = 1 - both[edge:].astype(np.float32) * (_STRENGTH[backdrop.sky] / 255)
    canvas[:, edge:] *= keep


def fog(canvas: np.ndarray, backdrop: Backdrop) -> None:
    """Pale air around the horizon, if that is the weather; before the things are laid on, which keep their colours."""
    if backdrop.weather != "fog":
        return
    size = canvas.shape[1]
    air = np.array(TONES["sky", backdrop.sky], np.float32) * 0.6 + 90
    y = ((np.arange(size) + 0.5) / size).astype(np.float32)
    thick = (0.45 * np.exp(-(((y - backdrop.horizon) / 0.16) ** 2)))[None, :, None]
    canvas += (air[:, None, None] - canvas) * thick


def reflection(canvas: np.ndarray, water: np.ndarray, sketch: Sketch, rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Mirror a thing that floats, paler and squashed, in the `water` (bool[H, W]) below it."""
    size = canvas.shape[1]
    depth = max(2, round(0.5 * sketch.height))
    width = alpha.shape[1]
    x0, x1 = max(sketch.x, 0), min(sketch.x + width, size)
    y0 = min(round(sketch.foot[1] - 0.05 * sketch.height), size)
    y1 = min(y0 + depth, size)
    if y1 <= y0 or x1 <= x0:
        return
    waves = 0.85 + 0.15 * np.cos(np.arange(depth, dtype=np.float32) * 2.1 * noise.REFERENCE / size)
    fade = (np.linspace(0.5, 0.12, depth, dtype=np.float32) * waves)[:, None]
    cols = slice(x0 - sketch.x, x1 - sketch.x)
    through = cv2.resize(alpha[::-1], (width, depth), interpolation=cv2.INTER_LINEAR)
    through = (through * fade)[: y1 - y0, cols] * water[y0:y1, x0:x1]
    for channel in range(3):
        mirrored = cv2.resize(rgb[channel, ::-1], (width, depth), interpolation=cv2.INTER_LINEAR)[: y1 - y0, cols]
        plane = canvas[channel, y0:y1, x0:x1]
        plane += mirrored * fade[: y1 - y0] * water[y0:y1, x0:x1] - plane * through


def glow(canvas: np.ndarray, backdrop: Backdrop, bulbs: list[tuple[float, float, float]]) -> None:
    """Warm light around bulbs (x, y, radius, px) when it is dark."""
    if backdrop.sky not in ("black", "purple") or not bulbs:
        return
    size = canvas.shape[1]
    for x, y, radius in bulbs:
        x0, x1 = max(int(x - 3 * radius), 0), min(int(x + 3 * radius) + 1, size)
        y0, y1 = max(int(y - 3 * radius), 0), min(int(y + 3 * radius) + 1, size)
        dx = (np.arange(x0, x1, dtype=np.float32) - x)[None, :] / radius
        dy = (np.arange(y0, y1, dtype=np.float32) - y)[:, None] / radius
        warm = np.exp(-(dx * dx + dy * dy))
        for channel, amount in enumerate((52.0, 40.0, 16.0)):
            canvas[channel, y0:y1, x0:x1] += amount * warm


def develop(canvas: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """Weather, colour of the light, vignette and grain: float32[3, H, W] to uint8[H, W, 3]."""
    size = canvas.shape[1]
    if backdrop.weather == "rain":
        canvas += (215 - canvas) * (noise.tile("rain", backdrop.offsets[5], size, size) * 0.28)
    elif backdrop.weather == "snow":
        flakes = np.clip(noise.tile("fine", backdrop.offsets[5], size, size) - 2.2, 0, 0.8)
        canvas += (252 - canvas) * flakes
    lens = _vignette(size)
    dust = noise.tile("fine", backdrop.offsets[6], size, size) * 1.8
    out = np.empty((size, size, 3), np.uint8)
    for channel, gain in enumerate(backdrop.gain):
        plane = canvas[channel]
        plane *= lens * np.float32(gain)
        plane += dust
        out[:, :, channel] = np.clip(plane, 0, 255, out=plane)
    return out


@lru_cache(maxsize=8)
def _vignette(size: int) -> np.ndarray:
    """float32[size, size], about 1 in the middle, a little less in the corners."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return 1.02 - 0.07 * (axis[:, None] ** 2 + axis[None, :] ** 2)
