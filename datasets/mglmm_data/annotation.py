"""What the referring and grounded-caption readers share: segmentations of every form, spans in a caption, layouts.

A segmentation is checked when a source is made (`check_segmentation`, without drawing it) and joined when its sample is
read (`region_of`). A caption's spans are repaired in one place (`ground`), and what was repaired is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.masks import Rle, Size
from mglmm_data.reading import is_number, shown
from mglmm_data.sample import Conversation, Grounding, Region, Turn, compose

T = TypeVar("T")
ANY_SIZE = (1 << 30, 1 << 30)
"""Polygons of a file that does not say how large its images are: what is outside is seen when one is drawn."""
MARKS = " \t\r\n\"'.,;:"
"""What a question's own words do not end with: `Segment the dog..` reads wrong."""


def check_segmentation(segmentation: Any, size: Size | None) -> bool:
    """Whether there is anything to draw: polygons, an RLE, or a list of RLEs (RefCLEF) for an image of `size` (H, W).

    A size of None is not known yet; an RLE is then checked against its own.

    Raises:
        ValueError: another type, a polygon with an odd or short list or a number that is not finite, one that lies
            outside the image, or an RLE of another size.
    """
    if segmentation is None:
        raise ValueError("its segmentation is null; expected polygons or an RLE")
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    for part in parts:
        if isinstance(part, dict):
            _check_rle(part, size or own_size(part))
        elif isinstance(part, list):
            _check_polygon(part, size or ANY_SIZE)
        else:
            raise ValueError(f"its segmentation holds {shown(part)}; expected polygons (lists) or an RLE (an object)")
    return bool(parts)


def own_size(rle: Mapping[str, Any]) -> Size:
    """The size (H, W) that an RLE says."""
    size = rle.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"its mask is {shown(rle)}; expected an RLE with a 'size' of [height, width]")
    return size[0], size[1]


def _check_rle(rle: dict[str, Any], size: Size) -> None:
    found, counts = rle.get("size"), rle.get("counts")
    if not isinstance(found, (list, tuple)) or [*found] != [*size]:
        raise ValueError(f"its RLE is of size {found}, its image of {list(size)} (height, width)")
    if isinstance(counts, list):
        if any(isinstance(run, bool) or not isinstance(run, int) or run < 0 for run in counts):
            raise ValueError("its RLE's counts hold something else than whole numbers from 0 on")
    elif not isinstance(counts, (str, bytes)) or not counts:
        raise ValueError(f"its RLE's counts are {shown(counts)}; expected text or a list of runs")


def _all_numbers(values: list[Any]) -> bool:
    """As `reading.is_number` of each, in a fraction of its time."""
    try:
        return {int, float}.issuperset(map(type, values)) and math.isfinite(sum(values))
    except OverflowError:
        return False


def _check_polygon(polygon: list[Any], size: Size) -> None:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, it needs 6 or more, in pairs x, y")
    if not _all_numbers(polygon):
        wrong = next(value for value in polygon if not is_number(value))
        raise ValueError(f"a polygon holds {shown(wrong)}; expected finite numbers")
    xs, ys = polygon[::2], polygon[1::2]
    if max(xs) < 0 or max(ys) < 0 or min(xs) > size[1] or min(ys) > size[0]:
        raise ValueError(f"a polygon lies outside the image of {size[1]}x{size[0]} px: {shown(polygon)}")


def rle_of(segmentation: Any, size: Size) -> Rle:
    """All parts of a segmentation joined by logical or, as RLE: nothing is drawn; their sum is 2 where they overlap.

    Raises:
        ValueError: as `check_segmentation`, or an RLE is damaged.
    """
    check_segmentation(segmentation, size)
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    polygons = [part for part in parts if isinstance(part, list)]
    rles = [masks.packed(part, size) for part in parts if isinstance(part, dict)]
    return masks.merged([*rles, *([masks.rle_of_polygons(polygons, size)] if polygons else [])], size)


def region_of(segmentation: Any, size: Size, label: str = "") -> Region:
    """A segmentation as a region.

    Raises:
        ValueError: as `rle_of`, or it covers no pixel.
    """
    rle = rle_of(segmentation, size)
    if not masks.area_of(rle):
        raise ValueError("its mask covers no pixel")
    return Region(size=size, rle=rle, label=label)


JOINTS = frozenset(
    (
        "",
        "a",
        "an",
        "the",
        "and",
        "or",
        "of",
        "with",
        "in",
        "on",
        "at",
        "to",
        "by",
        "from",
        "near",
        "next",
        "his",
        "her",
    )
) | {
    "its",
    "their",
    "is",
    "are",
    "that",
    "which",
    "for",
    "as",
    "wearing",
    "holding",
    "behind",
    "beside",
    "under",
    "over",
}
"""Words that a phrase does not end with, where it is cut before a phrase inside it."""


@dataclass
class Span:
    """Characters `start:end` of a caption, and the regions they speak of."""

    start: int
    end: int
    regions: tuple[int, ...]


@dataclass
class Grounded:
    """A caption with its phrases; `notes` say which spans were moved, shortened or left out."""

    text: str
    phrases: tuple[Grounding, ...]
    notes: list[str] = field(default_factory=list)


def ground(text: str, spans: Iterable[Span]) -> Grounded:
    """Spans of a caption as phrases that begin and end with a word and do not overlap, each with its own regions.

    Equal spans become one phrase of all their regions. Where one lies inside another or they overlap, the earlier ends
    where the later begins; where both begin together, the longer stays, and takes the shorter's regions if they are
    the same.

    Raises:
        ValueError: a span leaves the text, or holds nothing but white space.
    """
    notes: list[str] = []
    merged: dict[tuple[int, int], tuple[int, ...]] = {}
    for span in spans:
        if not 0 <= span.start < span.end <= len(text):
            raise ValueError(f"its span {span.start}:{span.end} leaves the text of {len(text)} characters {text!r}")
        piece = text[span.start : span.end]
        if not piece.strip():
            raise ValueError(f"its span {span.start}:{span.end} of {text!r} is white space")
        start = span.start + len(piece) - len(piece.lstrip())
        where = (start, start + len(piece.strip()))
        merged[where] = tuple(dict.fromkeys((*merged.get(where, ()), *span.regions)))
    kept: list[Span] = []
    for (start, end), regions in sorted(merged.items(), key=lambda item: (item[0][0], -item[0][1])):
        last = kept[-1] if kept else None
        if last is not None and start < last.end:
            shorter = _without_joint(text[last.start : start])
            if start == last.start or not shorter:
                if set(regions) != set(last.regions):
                    notes.append(f"{text[start:end]!r} begins with {text[last.start : last.end]!r}; left out")
                continue
            if set(regions) == set(last.regions) and end <= last.end:
                continue
            notes.append(f"{text[last.start : last.end]!r} overlaps {text[start:end]!r}; ends before it")
            last.end = last.start + len(shorter)
        kept.append(Span(start, end, regions))
    return Grounded(text, tuple(Grounding(span.start, span.end, span.regions) for span in kept), notes)


def _without_joint(words: str) -> str:
    """`a man with a` without what leads on to the words that were cut off."""
    kept = words.split(" ")
    while kept and kept[-1].strip(MARKS).lower() in JOINTS:
        kept.pop()
    return " ".join(kept).rstrip(MARKS)


def unquoted(caption: str) -> tuple[str, int]:
    """A caption without the quotation marks and blanks around it (GranDf, MGSC), and how many characters came off."""
    text = caption.strip().strip('"').strip()
    return text, caption.find(text) if text else 0


def choose(items: Sequence[T], count: int | None, rng: np.random.Generator) -> list[T]:
    """`count` of the items in an order that `rng` draws; all of them as they are for None (evaluation)."""
    if count is None:
        return list(items)
    return [items[i] for i in rng.permutation(len(items))[:count]]


def check_turns(turns: int | None) -> int | None:
    """The number of questions of a sample; None for every one, in the file's order."""
    if turns is not None and turns < 1:
        raise ValueError(f"turns is {turns}; at least 1 question is asked about an image, or null for every one")
    return turns


def unasked(count: int, conversations: Iterable[Conversation]) -> tuple[int, ...]:
    """Which of `count` regions these conversations do not speak of: questions are drawn, and others would."""
    used = {region for conversation in conversations for turn in conversation.turns for region in turn.regions}
    return tuple(number for number in range(count) if number not in used)


def asked(wordings: Sequence[str], rng: np.random.Generator, **words: str) -> str:
    """One of the wordings, filled in."""
    return wordings[int(rng.integers(len(wordings)))].format(**words)


def refer(
    expression: str,
    regions: tuple[int, ...],
    rng: np.random.Generator,
    *,
    wordings: str = "one",
    task: str = "referring",
) -> Conversation:
    """A conversation about an expression: where its targets are, or that there is none.

    Args:
        wordings: a key of `wording.QUESTIONS`; "box" is answered with boxes, others with masks.
    """
    words = expression.rstrip(MARKS) or expression
    text, phrases = compose((words, regions), ".") if regions else (wording.not_there(words), ())
    answer = Turn("assistant", text, phrases, grounding="box" if wordings == "box" else "mask")
    kind = "several" if len(regions) > 1 else "one" if regions else "none"
    question = Turn("user", asked(wording.QUESTIONS[wordings], rng, x=words))
    return Conversation((question, answer), task=task, kind=kind)


def locate(root: str | Path, ways: Sequence[str], what: str, there: Callable[[Path], bool] = Path.exists) -> Path:
    """The first of several places below `root` that is there: LISA's, GLaMM's and MGLMM's layouts differ.

    Raises:
        ValueError: none is there; all that were tried are named.
    """
    for way in ways:
        if there(path := Path(root) / way):
            return path
    tried = ", ".join(str(Path(root) / way) for way in ways)
    raise ValueError(f"no {what} below {root}; tried {tried}; give its path")


def folders(root: str | Path, ways: Sequence[str], what: str) -> list[Path]:
    """Every one of the folders below `root` that is there.

    Raises:
        ValueError: none is there.
    """
    if found := [Path(root) / way for way in ways if (Path(root) / way).is_dir()]:
        return found
    raise ValueError(f"no {what} below {root}; tried {', '.join(ways)}; give image_root")


def above(path: Path, ways: Sequence[str], what: str) -> list[Path]:
    """The folders of `ways` that are there, seen from the nearest of the four folders above a file that has any.

    Raises:
        ValueError: none is there.
    """
    for parent in list(path.absolute().parents)[:4]:
        if found := [parent / way for way in ways if (parent / way).is_dir()]:
            return found
    raise ValueError(f"no {what} beside {path}; tried {', '.join(ways)} in the folders above it; give image_root")
