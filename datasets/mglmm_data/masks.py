"""Masks in and out: polygons, COCO RLE and label maps become bool arrays, and back.

A mask is `bool[H, W]` in pixels of the image as loaded. Parts of one annotation are joined by logical or:
summing overlapping polygons gives 2 where they overlap, a bug of several published readers.
Source of the RLE format: pycocotools (cocodataset/cocoapi, `maskApi.c`).
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

import cv2
import numpy as np
import pycocotools.mask

coco: Any = pycocotools.mask  # its type stubs know fewer forms of masks than it takes
Size = tuple[int, int]
"""(H, W), px."""
CV_TYPES = (np.uint8, np.uint16, np.int32)
"""Of label maps that cv2 transposes, several times as fast as numpy."""
FARTHEST = 1e6
"""px; a polygon's number beyond this is damage, and more than pycocotools' 32 bits can hold at its scale."""
CONTINUED = bytes(code + 48 for code in range(64) if code & 0x20)
"""Signs of compressed counts behind which the same number goes on."""


class Rle(TypedDict):
    """COCO run-length encoding, compressed: `counts` is text, column-major."""

    size: list[int]
    counts: str


class Sound(dict[str, Any]):
    """An `Rle` that needs no check again: its counts fill its size, and no run but the first is empty."""


def _sound(raw: Any) -> Rle:
    """What pycocotools made, or what is checked."""
    return cast(Rle, Sound(size=[int(side) for side in raw["size"]], counts=raw["counts"].decode("ascii")))


def encode(mask: np.ndarray) -> Rle:
    """`bool[H, W]` to compressed COCO RLE."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape (H, W), not {mask.shape}")
    # cv2 transposes eight times as fast as numpy, and pycocotools wants columns.
    return _sound(coco.encode(cv2.transpose(np.ascontiguousarray(mask, dtype=np.uint8)).T))


def decode(rle: Rle | dict[str, Any], size: Size | None = None) -> np.ndarray:
    """COCO RLE (compressed, or a plain list of counts) to `bool[H, W]`.

    Raises:
        ValueError: `size` is given and the RLE is of another size, or its counts do not fill its own size.
    """
    return _drawn(packed(rle, size))


def _drawn(rle: Rle) -> np.ndarray:
    """`bool[H, W]`, row by row in memory, of an RLE that is checked; only the columns that it covers are decoded."""
    left, _, columns, _ = (int(side) for side in coco.toBbox(rle))
    mask = np.zeros(rle["size"], np.uint8)
    if columns:
        mask[:, left : left + columns] = cv2.transpose(coco.decode(_cut(rle, left, left + columns)).T)
    return mask.view(bool)


def _cut(rle: Rle, left: int, right: int) -> Rle:
    """Columns left:right of a mask that has no pixel beside them: its first run is shorter, and its last if that is 0s.

    Runs from the fourth on are stored as differences to the one two before, which is never the first or the last.
    """
    (height, width), codes = rle["size"], rle["counts"].encode("ascii")
    begin, end, tail = 0, len(codes), b""
    while codes[begin] in CONTINUED:
        begin += 1
    head = _sign(_number(codes[: begin + 1]) - height * left)
    if len(codes.translate(None, CONTINUED)) % 2:
        end -= 1
        while codes[end - 1] in CONTINUED:
            end -= 1
        tail = _sign(_number(codes[end:]) - height * (width - right))
    counts = head + codes[begin + 1 : end] + tail
    return Rle(size=[height, right - left], counts=counts.decode("ascii"))


def _number(codes: bytes) -> int:
    """One number of compressed counts: 5 bits a sign, the lowest first, the last one's highest bit being its sign."""
    number = sum((code - 48 & 0x1F) << 5 * place for place, code in enumerate(codes))
    return number - (1 << 5 * len(codes) if codes[-1] - 48 & 0x10 else 0)


def _sign(number: int) -> bytes:
    """As `_number` reads it."""
    codes = bytearray()
    while not -16 <= number < 16:
        codes.append((number & 0x1F | 0x20) + 48)
        number >>= 5
    codes.append((number & 0x1F) + 48)
    return bytes(codes)


def packed(rle: Any, size: Size | None = None) -> Rle:
    """COCO RLE (counts as text, bytes or a plain list) as compressed RLE, checked; its pixels are not drawn.

    Raises:
        ValueError: a field is missing or of a wrong type, or as in `decode`.
    """
    if isinstance(rle, Sound) and (size is None or tuple(rle["size"]) == tuple(size)):
        return cast(Rle, rle)
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError(f"an RLE is an object with size and counts, not {rle!r:.60}")
    try:
        height, width = (int(side) for side in rle["size"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"the RLE's size is {rle['size']!r:.60}; give [height, width]") from error
    if height < 1 or width < 1:
        raise ValueError(f"the RLE is of size {(height, width)}; each side has at least 1 pixel")
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"the RLE is of size {(height, width)}, the image of {tuple(size)} (height, width)")
    counts = rle["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            raise ValueError("the RLE's counts hold something else than whole numbers from 0 on")
        if sum(counts) != height * width:
            raise ValueError(
                f"the RLE's counts sum to {sum(counts)}, its size {(height, width)} has {height * width} pixels"
            )
        raw = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    elif isinstance(counts, (str, bytes)):
        raw = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
    else:
        raise ValueError(f"the RLE's counts are {type(counts).__name__}; give text or a list of runs")
    if check_counts(raw, (height, width)):
        raw = coco.encode(coco.decode({"size": [height, width], "counts": raw}))["counts"]
    return _sound({"size": [height, width], "counts": raw})


def check_counts(counts: bytes, size: Size) -> bool:
    """Refuse compressed counts that do not fill their size: pycocotools leaves the rest of the mask uninitialised.

    Returns:
        Whether a run but the first is empty: the same mask may be told with fewer, and only then has a right box.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 0x20) == 0)
    runs: np.ndarray | None = None
    broken = not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1
    if not broken:
        starts = np.concatenate([[0], ends[:-1] + 1])
        places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
        broken = places.max() > 6
        if not broken:
            runs = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
            runs -= np.where(codes[ends] & 0x10, 1 << (5 * (places[ends] + 1)), 0)
            for first in (1, 2):  # from the fourth on, a run is stored as the difference to the one two before
                runs[first::2] = np.cumsum(runs[first::2])
            broken = bool(runs.min() < 0 or runs.sum() != size[0] * size[1])
    if broken or runs is None:
        raise ValueError(f"the RLE's counts do not fill its size {size}: it is damaged or of another size")
    return bool((runs[1:] == 0).any())


def from_polygons(polygons: list[list[float]], size: Size) -> np.ndarray:
    """Polygons `[x1, y1, x2, y2, ...]` (px) to one `bool[H, W]`, joined by logical or.

    Raises:
        ValueError: a polygon has an odd number of coordinates or fewer than three points.
    """
    return _drawn(rle_of_polygons(polygons, size))


def rle_of_polygons(polygons: list[list[float]], size: Size) -> Rle:
    """As `from_polygons`, to RLE, which costs no pixels."""
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(value, (int, float)) for value in polygon):
            raise ValueError(f"a polygon is a list of numbers; this one is {polygon!r:.60}")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon needs at least 3 points (6 numbers, in pairs); this one has {len(polygon)} numbers"
            )
        if not np.isfinite(polygon).all() or max(map(abs, polygon)) > FARTHEST:
            raise ValueError(f"a polygon holds {max(polygon, key=lambda v: abs(v) if v == v else np.inf)}, far outside")
    if not polygons:
        return encode(np.zeros(size, bool))
    return _sound(coco.merge(coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], *size)))


def from_segmentation(segmentation: Any, size: Size) -> np.ndarray:
    """Whatever COCO's `segmentation` field holds (polygons, RLE, uncompressed RLE) to `bool[H, W]`."""
    return _drawn(rle_of_segmentation(segmentation, size))


def rle_of_segmentation(segmentation: Any, size: Size) -> Rle:
    """As `from_segmentation`, to RLE; a list of RLEs (RefCLEF) is joined.

    Raises:
        ValueError: it is neither, or as in `packed` and `from_polygons`.
    """
    if isinstance(segmentation, dict):
        return packed(segmentation, size)
    if isinstance(segmentation, list):
        if segmentation and all(isinstance(item, dict) for item in segmentation):
            return merged([packed(item, size) for item in segmentation], size)
        return rle_of_polygons(segmentation, size)
    raise ValueError(f"segmentation is a {type(segmentation).__name__}; expected polygons (a list) or an RLE (a dict)")


def rles_of_labels(labels: np.ndarray) -> dict[int, Rle]:
    """Every value of a label map `int[H, W]` and its mask, from one pass over the pixels."""
    height, width = labels.shape
    flat = (cv2.transpose(labels) if labels.dtype in CV_TYPES else np.ascontiguousarray(labels.T)).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    order = np.argsort(values, kind="stable")
    firsts = np.flatnonzero(np.diff(values[order], prepend=values[order[0]]))
    found = {}
    for runs in np.split(order, firsts):
        counts = np.empty(2 * len(runs) + 1, np.int64)  # of others and of this value, in turn
        counts[1::2] = ends[runs] - starts[runs]
        counts[0:-1:2] = starts[runs]
        counts[2:-1:2] -= ends[runs[:-1]]
        counts[-1] = flat.size - ends[runs[-1]]
        counts = counts if counts[-1] else counts[:-1]  # pycocotools stores no empty run at the end
        raw = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        found[int(values[runs[0]])] = _sound({"size": [height, width], "counts": raw["counts"]})
    return found


def to_polygons(mask: np.ndarray) -> list[list[float]]:
    """`bool[H, W]` as COCO polygons along the pixels' edges, px; `from_polygons` gives exactly the same mask back.

    One polygon for each connected piece; a hole is cut out by a path that is walked there and back.
    """
    # Doubled, a pixel's two sides fall on different samples; (c + 1) // 2 brings them to the pixel's two edges.
    fine = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    lines, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners((line.reshape(-1, 2) + 1) // 2) for line in lines]
    polygons = []
    family: Any = tree[0] if len(rings) else ()  # of each ring: next, previous, first hole, outer ring; -1 for none
    for number, (_, _, hole, outer) in enumerate(family):
        if outer >= 0:
            continue
        path = rings[number]
        while hole >= 0:
            path = np.concatenate([path, path[:1], rings[hole], rings[hole][:1], path[:1]])
            hole = family[hole][0]
        polygons.append(path.reshape(-1).astype(float).tolist())
    return polygons


def _corners(line: np.ndarray) -> np.ndarray:
    """A closed line, int[N, 2], without points that repeat the one before."""
    return line[(line != np.roll(line, 1, axis=0)).any(1)]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Tight box x1, y1, x2, y2 in px (x2, y2 exclusive); None for an empty mask."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)


def bounds_of(rle: Rle) -> tuple[float, float, float, float] | None:
    """As `box_of`, from RLE, without its pixels."""
    x, y, width, height = (float(value) for value in coco.toBbox(rle))
    return (x, y, x + width, y + height) if width and height else None


def area_of(rle: Rle) -> int:
    """Pixels in the mask."""
    return int(coco.area(rle))


def merged(rles: list[Rle], size: Size) -> Rle:
    """Logical or of masks in RLE; none give an empty one."""
    if not rles:
        return encode(np.zeros(size, bool))
    checked = [packed(rle, size) for rle in rles]
    return _sound(coco.merge(checked)) if len(checked) > 1 else checked[0]


def union(masks: list[np.ndarray], size: Size) -> np.ndarray:
    """Logical or of `bool[H, W]` masks; empty input gives an empty mask."""
    out = np.zeros(size, bool)
    for mask in masks:
        out |= mask
    return out
