"""Geometry as text. One codec for now: Ferret's integers of a thousandth (arXiv:2310.07704, section 3.1)."""

from __future__ import annotations

import re

from mglmm_data.masks import Size
from mglmm_data.sample import Box

BOX_TEXT = re.compile(r" ?\[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]")
STEPS = 1000


def box_to_text(box: Box, size: Size) -> str:
    """x1, y1, x2, y2 in px to ` [x1, y1, x2, y2]`, integers 0..999: thousandths of width and height, rounded down."""
    height, width = size
    scaled = [int(value / side * STEPS) for value, side in zip(box, (width, height, width, height), strict=True)]
    return " [" + ", ".join(str(min(max(value, 0), STEPS - 1)) for value in scaled) + "]"


def box_from_text(numbers: tuple[int, ...], size: Size) -> Box | None:
    """Four integers to px, at the middle of their cell; None when the box is empty or out of range."""
    height, width = size
    if any(number >= STEPS for number in numbers):
        return None
    sides = (width, height, width, height)
    x1, y1, x2, y2 = ((number + 0.5) / STEPS * side for number, side in zip(numbers, sides, strict=True))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
