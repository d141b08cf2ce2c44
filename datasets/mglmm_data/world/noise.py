"""Ready-made noise: tiles that wrap, the same seen as a floor in perspective, and crops of both at any size."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

TILE = 512  # side of a tile, px
FLOOR = 256  # rows of a floor, from the horizon to the viewer
REFERENCE = 192  # the picture size, px, at which a tile's pixel is a picture's pixel


@lru_cache(maxsize=1)
def _tiles() -> dict[str, np.ndarray]:
    """Wrapping noise, float32[TILE, TILE] of zero mean and unit deviation."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((TILE, TILE)).astype(np.float32)
    wide = cv2.copyMakeBorder(white, 96, 96, 96, 96, cv2.BORDER_WRAP)

    def unit(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray((values - values.mean()) / values.std(), dtype=np.float32)

    def blur(sx: float, sy: float) -> np.ndarray:
        return unit(cv2.GaussianBlur(wide, (0, 0), sigmaX=sx, sigmaY=sy)[96:-96, 96:-96])

    fine, soft, large = blur(0.7, 0.7), blur(3, 3), blur(14, 14)
    rows = np.arange(TILE, dtype=np.float32)[:, None] * (2 * np.pi * 40 / TILE)
    drops = (white > 3.0).astype(np.float32)
    rain = cv2.filter2D(drops, -1, np.eye(9, dtype=np.float32)[:, ::-1], borderType=cv2.BORDER_REFLECT)
    return {
        "fine": fine,
        "soft": soft,
        "large": large,
        "blade": unit(0.85 * blur(0.7, 2.4) + 0.35 * large + 0.25 * fine),
        "wave": unit(blur(7.0, 0.9) + 0.5 * blur(3.0, 0.7)),
        "ripple": unit(np.sin(rows + 1.6 * soft + 2.2 * large) + 0.45 * fine),
        "mixed": unit(0.6 * fine + 0.5 * soft + 0.6 * large),
        "cloud": unit(0.9 * blur(26, 10) + 0.42 * blur(9, 5) + 0.2 * soft),
        "rain": np.minimum(rain, 1.0),
    }


@lru_cache(maxsize=16)
def _floor(name: str) -> np.ndarray:
    """float32[FLOOR, TILE]: a tile lying on the ground, fine at the horizon (row 0) and coarse near the viewer."""
    t = (np.arange(FLOOR, dtype=np.float32) + 0.5) / FLOOR
    scale = 0.3 + 1.1 * t
    u = (np.arange(TILE, dtype=np.float32)[None, :] - TILE / 2) / scale[:, None]
    v = np.broadcast_to((130 * np.log(scale) / 1.1)[:, None], u.shape)
    tile = _tiles()[name]
    return cv2.remap(tile, np.mod(u, TILE), np.mod(v, TILE).astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)


def tile(name: str, offset: int, rows: int, size: int) -> np.ndarray:
    """float32[rows, size]: the first rows of a square crop of a tile, stretched from REFERENCE to `size`."""
    x, y = offset % (TILE - REFERENCE), (offset // TILE) % (TILE - REFERENCE)
    if size == REFERENCE:
        return _tiles()[name][y : y + rows, x : x + size]
    crop = _tiles()[name][y : y + REFERENCE, x : x + REFERENCE]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)[:rows]


def floor(name: str, offset: int, rows: int, size: int) -> np.ndarray:
    """float32[rows, size]: a floor filling the rows between horizon and the picture's lower edge."""
    x = offset % (TILE - REFERENCE)
    crop = _floor(name)[:, x : x + REFERENCE]
    return cv2.resize(crop, (size, max(rows, 1)), interpolation=cv2.INTER_LINEAR)
