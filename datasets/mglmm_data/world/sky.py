"""The sky of a backdrop: its gradient, sun or moon, stars and clouds."""

from __future__ import annotations

import numpy as np

from mglmm_data.world import noise
from mglmm_data.world.stuff import Backdrop

# Zenith and horizon of each sky.
HEAVENS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "blue": ((70, 142, 226), (198, 228, 246)),
    "gray": ((142, 150, 162), (206, 210, 214)),
    "orange": ((236, 132, 78), (255, 216, 142)),
    "pink": ((222, 146, 190), (255, 218, 208)),
    "purple": ((92, 72, 150), (204, 148, 192)),
    "black": ((9, 11, 30), (46, 50, 88)),
}


def paint(canvas: np.ndarray, backdrop: Backdrop, size: int) -> None:
    """Gradient, sun or moon, stars and clouds, in place, down to the horizon; canvas is float32[3, H, W]."""
    rows = min(size, int((backdrop.horizon + 0.02) * size) + 3)  # hills may dip below the horizon
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = axis[None, :], axis[:rows, None]
    zenith, low = HEAVENS[backdrop.sky]
    t = np.clip(y / backdrop.horizon, 0, 1) ** 1.2
    for channel in range(3):
        canvas[channel, :rows] = zenith[channel] + (low[channel] - zenith[channel]) * t
    night = backdrop.sky == "black"
    if night or backdrop.sky == "purple":
        _stars(canvas, backdrop, size, 60 if night else 14)
    if backdrop.sun is not None:
        sx, sy, radius = backdrop.sun
        far = np.sqrt((x - sx) ** 2 + (y - sy) ** 2)
        disc = np.clip((radius - far) * size + 0.5, 0, 1)
        if night:
            bite = np.sqrt((x - sx - 0.45 * radius) ** 2 + (y - sy + 0.2 * radius) ** 2)
            disc = disc * np.clip((bite - 0.85 * radius) * size + 0.5, 0.08, 1)
        glow = (0.35 if night else 0.6) * np.exp(-np.maximum(far - radius, 0) / (0.05 if night else 0.1))
        tint = (226, 230, 240) if night else (255, 246, 206)
        alpha = np.maximum(disc, glow * (0.5 if night else 1.0))
        for channel in range(3):
            canvas[channel, :rows] += (tint[channel] - canvas[channel, :rows]) * alpha
    if backdrop.clouds > 0.25:
        _clouds(canvas, backdrop, rows, size, y)


def _stars(canvas: np.ndarray, backdrop: Backdrop, size: int, count: int) -> None:
    spread = max(1, round(size / noise.REFERENCE))
    for x, y, bright in backdrop.stars[:count]:
        row, col = int(y * backdrop.horizon * size), int(x * size)
        canvas[:, row : row + spread, col : col + spread] += 40 + 150 * bright**2


def _clouds(canvas: np.ndarray, backdrop: Backdrop, rows: int, size: int, y: np.ndarray) -> None:
    drop = max(1, round(5 * size / noise.REFERENCE))
    tall = noise.tile("cloud", backdrop.offsets[7], rows + drop, size)
    thick = tall[drop:]
    level = 1.1 - 1.1 * backdrop.clouds
    cover = np.clip((thick - level) * 1.3, 0, 0.92) * np.clip(1.15 - 0.7 * y / backdrop.horizon, 0, 1)
    belly = np.clip(0.2 + 0.55 * (tall[:-drop] - thick), 0, 0.55)  # thicker above than here: in its own shade
    zenith, low = HEAVENS[backdrop.sky]
    peak = 0.12 if backdrop.sky == "black" else 0.8
    for channel in range(3):
        bright = low[channel] + (255 - low[channel]) * peak
        shade = bright + (0.5 * zenith[channel] + 0.5 * low[channel] - bright) * belly
        plane = canvas[channel, :rows]
        plane += (shade - plane) * cover
