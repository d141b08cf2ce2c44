"""Masks in and out: polygons, COCO RLE and label maps become bool arrays, and back.

A mask is `bool[H, W]` in pixels of the image as loaded. Parts of one annotation are joined by logical or:
summing overlapping polygons gives 2 where they overlap, a bug of several published readers.
Source of the RLE format: pycocotools (cocodataset/cocoapi, `maskApi.c`).
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import pycocotools.mask

coco: Any = pycocotools.mask  # its type stubs know fewer forms of masks than it takes
Size = tuple[int, int]
"""(H, W), px."""


REACH = 100_000
"""px; beyond it, and for NaN, pycocotools reads and writes where it must not."""


class Rle(TypedDict):
    """COCO run-length encoding, compressed: `counts` is text, column-major."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """`bool[H, W]` to compressed COCO RLE."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape (H, W), not {mask.shape}")
    raw = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in raw["size"]], counts=raw["counts"].decode("ascii"))


def decode(rle: Rle | dict[str, Any], size: Size | None = None) -> np.ndarray:
    """COCO RLE (compressed, or a plain list of counts) to `bool[H, W]`.

    Raises:
        ValueError: `size` is given and the RLE is of another size, or its counts do not fill its own size.
    """
    own = (int(rle["size"][0]), int(rle["size"][1]))
    if size is not None and own != tuple(size):
        raise ValueError(f"the RLE is of size {own}, the image of {tuple(size)} (height, width)")
    counts = rle["counts"]
    packed: dict[str, Any] = {"size": list(own), "counts": counts}
    if isinstance(counts, list):
        if any(not isinstance(count, int) or count < 0 for count in counts):
            raise ValueError("the RLE's counts are not all whole numbers from 0; export it again")
        covered = sum(counts)
        packed = packed if covered != own[0] * own[1] else coco.frPyObjects(packed, *own)
    else:
        packed["counts"] = counts.encode("ascii") if isinstance(counts, str) else counts
        covered = _covered(packed["counts"])
    if covered != own[0] * own[1]:
        raise ValueError(f"the RLE's counts sum to {covered}, its size {own} has {own[0] * own[1]} pixels")
    return coco.decode(packed).astype(bool)


def _covered(counts: bytes) -> int:
    """Pixels that compressed counts cover; pycocotools leaves those that they do not cover as memory had them.

    Source: `rleFrString` in `maskApi.c`: 5 bits a letter, bit 5 says that more follow, each run but the first three
    is a difference to the last but one.
    """
    letters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((letters & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)[: len(letters)] if len(ends) else letters
    if not len(ends) or ends[-1] != len(letters) - 1:
        raise ValueError("the RLE's counts end in the middle of a number; export it again")
    values = np.add.reduceat((letters & 31) << (5 * place), starts)
    values -= np.where(letters[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return int(runs.sum())


def from_polygons(polygons: list[list[float]], size: Size) -> np.ndarray:
    """Polygons `[x1, y1, x2, y2, ...]` (px) to one `bool[H, W]`, joined by logical or.

    Raises:
        ValueError: a polygon has an odd number of coordinates or fewer than three points.
    """
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon needs at least 3 points (6 numbers, in pairs); this one has {len(polygon)} numbers"
            )
        if not all(isinstance(value, (int, float)) and -REACH < value < REACH for value in polygon):
            raise ValueError(f"a polygon's coordinates are not all numbers between -{REACH:,} and {REACH:,} px")
    if not polygons:
        return np.zeros(size, bool)
    rles = coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], *size)
    return coco.decode(coco.merge(rles)).astype(bool)


def from_segmentation(segmentation: Any, size: Size) -> np.ndarray:
    """Whatever COCO's `segmentation` field holds (polygons, RLE, uncompressed RLE) to `bool[H, W]`."""
    if isinstance(segmentation, dict):
        return decode(segmentation, size)
    if isinstance(segmentation, list):
        return from_polygons(segmentation, size)
    raise ValueError(f"segmentation is a {type(segmentation).__name__}; expected polygons (a list) or an RLE (a dict)")


def from_label_map(labels: np.ndarray, value: int) -> np.ndarray:
    """Pixels of a label map `int[H, W]` that hold `value`, as `bool[H, W]`."""
    return labels == value


def to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outer contours of `bool[H, W]` as COCO polygons, px; holes are lost, pieces below 3 points too."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour.reshape(-1).astype(float).tolist() for contour in contours if len(contour) >= 3]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Tight box x1, y1, x2, y2 in px (x2, y2 exclusive); None for an empty mask."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)


def union(masks: list[np.ndarray], size: Size) -> np.ndarray:
    """Logical or of `bool[H, W]` masks; empty input gives an empty mask."""
    out = np.zeros(size, bool)
    for mask in masks:
        out |= mask
    return out
