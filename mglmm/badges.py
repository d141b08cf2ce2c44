"""Where the numbers go: inside their mask where it is widest, beside it when it is small, never on each other.

`Board` works in px of a small map of the picture (the frame's map); `spots_of` goes there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mglmm.caption import badge_size
from mglmm.outline import Frame, Shape
from mglmm_data.sample import Region

POINT_REACH = 8.5  # radius of the mark at a point that the user gave, units of `Frame.unit`
CROWDED = 0.4  # a badge that would hide more of its mask than this share goes beside it


@dataclass(frozen=True)
class Spot:
    """Where a badge sits, and the point of its mask a leader line goes to (None: it sits on its mask)."""

    x: float
    y: float
    anchor: tuple[float, float] | None = None


def widest(mask: np.ndarray) -> tuple[float, float, float]:
    """x, y and radius of a roomy place in bool[H, W], not far from its centre; (0, 0, 0) if it is empty."""
    if not mask.any():
        return 0.0, 0.0, 0.0
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, cols = np.nonzero(depth >= 0.8 * depth.max())
    all_rows, all_cols = np.nonzero(mask)
    near = np.hypot(rows - all_rows.mean(), cols - all_cols.mean()) - 2.0 * depth[rows, cols]
    best = int(near.argmin())
    return float(cols[best]) + 0.5, float(rows[best]) + 0.5, float(depth[rows[best], cols[best]])


class Board:
    """Places badges one after the other on a map of (H, W) px and remembers what is taken."""

    def __init__(self, size: tuple[int, int]):
        self.taken = np.zeros(size, bool)
        self.weight = np.zeros(size, np.float32)  # what it costs to cover a pixel: small masks are dear

    def protect(self, mask: np.ndarray) -> None:
        """Make bool[H, W] a place that badges of others should not cover, the more so the smaller it is."""
        area = int(mask.sum())
        if area:
            self.weight[mask] += min(1.0, (0.02 * mask.size / area) ** 0.5)

    def on_mask(self, mask: np.ndarray, others: np.ndarray, badge: tuple[float, float]) -> Spot:
        """A spot for the badge (width, height) of `mask`; `others` are the smaller masks inside or over it."""
        need = max(badge) / 2
        for free in (mask & ~others & ~self.taken, mask & ~self.taken):
            x, y, radius = widest(free)
            if radius >= need and badge[0] * badge[1] <= CROWDED * free.sum():
                return self._take(x, y, badge, None)
        x, y, _ = widest(mask)
        rows, cols = np.nonzero(mask)
        return self.beside((x, y), (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1), badge)

    def beside(
        self, anchor: tuple[float, float], box: tuple[float, float, float, float], badge: tuple[float, float]
    ) -> Spot:
        """The cheapest spot around `box` (x1, y1, x2, y2), with a leader line to `anchor`."""
        x1, y1, x2, y2 = (float(value) for value in box)
        half_w, half_h = badge[0] / 2, badge[1] / 2
        height, width = self.taken.shape
        best, best_cost = anchor, float("inf")
        for away in (0.25, 1.0, 2.2):
            gap = away * badge[1]
            left, right, top, bottom = x1 - half_w - gap, x2 + half_w + gap, y1 - half_h - gap, y2 + half_h + gap
            xs, ys = np.linspace(left, right, 5), np.linspace(top, bottom, 5)
            ring = [(x, y) for x in xs for y in ys if x in (left, right) or y in (top, bottom)]
            for x, y in ring:
                x, y = np.clip(x, half_w + 1, width - half_w - 1), np.clip(y, half_h + 1, height - half_h - 1)
                rows, cols = self._window(float(x), float(y), badge)
                cost = 40.0 * float(self.taken[rows, cols].mean()) + 6.0 * float(self.weight[rows, cols].mean())
                cost += 1.2 * float(np.hypot(x - anchor[0], y - anchor[1])) / badge[1]
                if cost < best_cost:
                    best, best_cost = (float(x), float(y)), cost
        return self._take(*best, badge, anchor)

    def _window(self, x: float, y: float, badge: tuple[float, float]) -> tuple[slice, slice]:
        half_w, half_h = badge[0] / 2 + 1, badge[1] / 2 + 1
        return (
            slice(max(int(y - half_h), 0), max(int(np.ceil(y + half_h)), 1)),
            slice(max(int(x - half_w), 0), max(int(np.ceil(x + half_w)), 1)),
        )

    def _take(self, x: float, y: float, badge: tuple[float, float], anchor: tuple[float, float] | None) -> Spot:
        height, width = self.taken.shape
        x = float(np.clip(x, min(badge[0] / 2 + 1, width / 2), max(width - badge[0] / 2 - 1, width / 2)))
        y = float(np.clip(y, min(badge[1] / 2 + 1, height / 2), max(height - badge[1] / 2 - 1, height / 2)))
        self.taken[self._window(x, y, badge)] = True
        return Spot(x, y, anchor)


def letter(index: int) -> str:
    """A, B, ... Z, AA: the name of given region `index`."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(65 + index % 26)


def spots_of(
    frame: Frame, shapes: Sequence[Sequence[Shape]], regions: Sequence[Region], size: int
) -> tuple[list[list[Spot]], list[Spot]]:
    """Where the numbers of shapes and the letters of regions go, px of the picture; `size` is the letters', px."""
    factor = frame.map_scale
    board = Board(frame.map_shape)
    for shape in (one for items in shapes for one in items):
        board.protect(shape.small)

    def small(text: str) -> tuple[float, float]:
        width, height = badge_size(text, size)
        return (width + 0.25 * size) * factor, (height + 0.25 * size) * factor

    def back(spot: Spot) -> Spot:
        anchor = (spot.anchor[0] / factor, spot.anchor[1] / factor) if spot.anchor else None
        return Spot(spot.x / factor, spot.y / factor, anchor)

    letters: list[Spot] = []
    for index, region in enumerate(regions):
        x, y = _handle(region)
        reach = POINT_REACH * frame.unit * factor if region.kind == "point" else 1.0
        x, y = x * frame.scale * factor, y * frame.scale * factor
        letters.append(back(board.beside((x, y), (x - reach, y - reach, x + reach, y + reach), small(letter(index)))))

    order = sorted(
        ((items[k].area, i, k) for i, items in enumerate(shapes) for k in range(len(items))), key=lambda item: item[0]
    )
    spots = [[Spot(0, 0)] * len(items) for items in shapes]
    smaller = np.zeros(frame.map_shape, bool)
    for _, i, k in order:
        need = small(str(i + 1))
        if shapes[i][k].is_mask and shapes[i][k].small.any():
            spots[i][k] = back(board.on_mask(shapes[i][k].small, smaller, need))
            smaller |= shapes[i][k].small
        else:
            x1, y1, x2, y2 = (value * factor for value in shapes[i][k].bounds)
            spot = board.beside((x1, y1), (x1, y1, min(x1 + need[0], x2), min(y1 + need[1], y2)), need)
            spots[i][k] = back(Spot(spot.x, spot.y, None))
    return spots, letters


def _handle(region: Region) -> tuple[float, float]:
    """The point of a region that its letter is tied to, image px."""
    if region.point is not None:
        return region.point
    if region.scribble is not None:
        return region.scribble[0]
    if region.box is not None:
        return region.box[:2]
    rows, cols = np.nonzero(region.mask)
    return (float(np.median(cols[rows == rows[0]])), float(rows[0])) if len(rows) else (0.0, 0.0)
