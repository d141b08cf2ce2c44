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
    if isinstance(counts, list):
        if sum(counts) != own[0] * own[1]:
            raise ValueError(f"the RLE's counts sum to {sum(counts)}, its size {own} has {own[0] * own[1]} pixels")
        packed = coco.frPyObjects({"size": list(own), "counts": counts}, *own)
    else:
        packed = {"size": list(own), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco.decode(packed).astype(bool)


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
