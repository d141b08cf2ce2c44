"""Geometry as text. One codec for now: Ferret's integers of a thousandth (arXiv:2310.07704, section 3.1)."""

from __future__ import annotations

import re

from mglmm_data.masks import Size
from mglmm_data.sample import Box

BOX_TEXT = re.compile(r" ?\[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]")
BOX_LETTERS = "0123456789,[] "
"""What boxes are spelt with."""
BOX_BEGUN = re.compile(r" (\[((\d{1,3}, ){0,3}\d{0,3}|(\d{1,3}, ){0,2}\d{1,3},|(\d{1,3}, ){3}\d{1,3}\])?)?")
"""The beginnings of a box, and whole boxes."""
BOX_PENDING = re.compile(r"\s*(\[[\d, ]*)?")
"""Text behind a phrase that may still become a box."""
BOX_LENGTH = 21
"""Letters of the longest box: what must be left of a budget when one begins."""
STEPS = 1000


def box_to_text(box: Box, size: Size) -> str:
    """x1, y1, x2, y2 in px to ` [x1, y1, x2, y2]`, integers 0..999: thousandths of width and height, rounded down."""
    height, width = size
    scaled = [int(value / side * STEPS) for value, side in zip(box, (width, height, width, height), strict=True)]
    return " [" + ", ".join(str(min(max(value, 0), STEPS - 1)) for value in scaled) + "]"


def box_from_text(numbers: tuple[int, ...], size: Size) -> Box | None:
    """Four integers to px, at the middle of their cells; None when the box is empty or out of range.

    A box thinner than a cell, whose two numbers are equal, is that cell.
    """
    height, width = size
    left, top, right, bottom = numbers
    if max(numbers) >= STEPS or left > right or top > bottom:
        return None
    x, y = (0.0 if left == right else 0.5), (0.0 if top == bottom else 0.5)
    return (
        (left + x) / STEPS * width,
        (top + y) / STEPS * height,
        (right + 1 - x) / STEPS * width,
        (bottom + 1 - y) / STEPS * height,
    )
