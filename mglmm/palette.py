"""Colours for phrases: as far from each other as possible, bright enough to see, the same for a number everywhere.

Colours are picked in OKLab, where distance is close to perceived difference (B. Ottosson, "A perceptual color space
for image processing", 2020): ten chosen by eye, then by farthest-point sampling. Colour k is the same however many
are asked for.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]
"""Red, green, blue, 0..255."""

WHITE: Color = (255, 255, 255)
BLACK: Color = (17, 17, 20)

FIRST: tuple[Color, ...] = (
    (255, 59, 92),
    (47, 123, 255),
    (25, 185, 84),
    (255, 180, 0),
    (155, 77, 255),
    (0, 194, 224),
    (255, 115, 26),
    (255, 95, 196),
    (160, 205, 12),
    (0, 158, 140),
)
"""The first ten, which most answers stay within."""

_AXES = np.array([0.8, 1.0, 1.0])  # lightness separates less than hue under a half-transparent fill

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(rgb: np.ndarray) -> np.ndarray:
    """SRGB 0..1 to linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """float[N, 3] sRGB 0..1 to OKLab."""
    return np.cbrt(_linear(rgb) @ _TO_LMS.T) @ _TO_LAB.T


def _srgb(lab: np.ndarray) -> np.ndarray:
    """float[N, 3] OKLab to sRGB, outside 0..1 where the screen cannot show it."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    positive = np.maximum(linear, 0.0)
    encoded = np.where(positive <= 0.0031308, 12.92 * positive, 1.055 * positive ** (1 / 2.4) - 0.055)
    return np.where(linear < 0, linear, encoded)


@lru_cache(maxsize=1)
def _candidates() -> np.ndarray:
    """float[N, 3]: vivid displayable colours in OKLab, from fairly dark to fairly light."""
    lightness, chroma, hue = np.meshgrid(
        np.linspace(0.56, 0.86, 6), np.linspace(0.11, 0.26, 6), np.arange(0, 360, 9) * np.pi / 180, indexing="ij"
    )
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    rgb = _srgb(lab)
    return lab[((rgb >= 0) & (rgb <= 1)).all(1)]


@lru_cache(maxsize=8)
def palette(num_colors: int) -> tuple[Color, ...]:
    """The first `num_colors` colours; colour k is the same however many are asked for."""
    lab = _candidates()
    picked = list(_oklab(np.array(FIRST) / 255))
    gap = np.min([np.linalg.norm((lab - color) * _AXES, axis=1) for color in picked], axis=0)
    for _ in range(len(picked), min(num_colors, len(lab))):
        best = int(gap.argmax())
        picked.append(lab[best])
        gap = np.minimum(gap, np.linalg.norm((lab - lab[best]) * _AXES, axis=1))
    colors = [_as_color(row) for row in (_srgb(np.array(picked)) * 255).round().clip(0, 255)]
    return tuple(colors[index % len(colors)] for index in range(num_colors))


def luminance(color: Color) -> float:
    """Relative luminance of WCAG 2, 0..1."""
    return float(_linear(np.array(color) / 255) @ np.array([0.2126, 0.7152, 0.0722]))


def ink_on(color: Color) -> Color:
    """White where it stands out by 3:1 (WCAG 2's minimum for bold text), near-black on lighter colours."""
    return WHITE if 1.05 / (luminance(color) + 0.05) >= 3 else BLACK


def mix(color: Color, other: Color, share: float) -> Color:
    """`share` of `other` in `color`, 0..1."""
    return _as_color(np.array(color) * (1 - share) + np.array(other) * share)


def _as_color(row: np.ndarray) -> Color:
    red, green, blue = (round(float(value)) for value in row)
    return red, green, blue
