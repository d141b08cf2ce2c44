"""Text on a picture: words, rounded pills and chips, wrapped into a panel.

Everything is drawn by OpenCV with the font it carries (Rubik and a CJK one, several weights), so a picture is the same
on every machine and a prompt may be in any script. Canvases are uint8[H, W, 3] RGB and drawn in place; sizes are px.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from mglmm.palette import BLACK, WHITE, Color, ink_on, mix

PAPER: Color = WHITE
SOFT_INK: Color = (104, 108, 118)
BUBBLE: Color = (240, 242, 246)
REGULAR, MEDIUM, BOLD = 400, 500, 700

SPACE = 0.3  # width of a space, em; the font's own is a little narrow between pills

_SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
_CJK = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"  # a line may break after each of these
_WORDS = re.compile(rf"\n|[^\S\n]+|[{_CJK}]|[^\s{_CJK}]+")


@dataclass(frozen=True)
class Piece:
    """A stretch of text in one dress: plain, a pill (`color`), or a pill in outline (`hollow`: nothing was drawn)."""

    text: str
    color: Color | None = None
    chip: str = ""
    hollow: bool = False


@dataclass
class _Word:
    text: str
    piece: int
    width: float
    first: bool  # of its piece: carries the chip
    last: bool = False  # of its piece
    x: float = 0.0


@lru_cache(maxsize=1)
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


@lru_cache(maxsize=4096)
def text_width(text: str, size: int, weight: int = REGULAR) -> int:
    """Advance of one line of text, px."""
    if text == " ":
        return round(SPACE * size)
    return max(cv2.getTextSize((0, 0), text, (0, 0), _font(), size, weight)[2] - 1, 0) if text else 0


def put_text(canvas: np.ndarray, text: str, x: float, baseline: float, size: int, color: Color, weight: int) -> None:
    """One line of text from (x, baseline), `size` px to the em."""
    cv2.putText(canvas, text, (round(x), round(baseline)), color, _font(), size, weight)


def _fixed(points: np.ndarray) -> np.ndarray:
    """float[N, 2] px to OpenCV's fixed point, int32[N, 1, 2]."""
    return np.round(points * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)


def rounded(
    x1: float, y1: float, x2: float, y2: float, radius: float, left: bool = True, right: bool = True
) -> np.ndarray:
    """float[N, 2]: outline of a rectangle whose left and right corners are rounded where asked, px."""
    radius = min(radius, (x2 - x1) / 2, (y2 - y1) / 2)
    corners = (
        (x2 - radius, y1 + radius, -90, right, (x2, y1)),
        (x2 - radius, y2 - radius, 0, right, (x2, y2)),
        (x1 + radius, y2 - radius, 90, left, (x1, y2)),
        (x1 + radius, y1 + radius, 180, left, (x1, y1)),
    )
    points: list[np.ndarray] = []
    for cx, cy, start, bent, sharp in corners:
        angles = np.radians(start + np.arange(0, 91, 10))
        arc = np.stack([cx + radius * np.cos(angles), cy + radius * np.sin(angles)], -1)
        points.append(arc if bent else np.array([sharp], float))
    return np.concatenate(points)


def fill(canvas: np.ndarray, outline: np.ndarray, color: Color) -> None:
    """Fill the polygon float[N, 2], px, with smooth edges."""
    cv2.fillPoly(canvas, [_fixed(outline - 0.5)], color, cv2.LINE_AA, _SHIFT)


def stroke(canvas: np.ndarray, line: np.ndarray, color: Color, width: float, closed: bool = True) -> None:
    """Draw the line float[N, 2], px, with smooth edges."""
    cv2.polylines(canvas, [_fixed(line - 0.5)], closed, color, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def badge_size(text: str, size: int) -> tuple[float, float]:
    """Width and height of a badge with `text` of `size` px."""
    height = 1.45 * size
    return max(height, text_width(text, size, BOLD) + 0.8 * size), height


def badge(canvas: np.ndarray, text: str, x: float, y: float, size: int, color: Color, ring: Color) -> None:
    """A filled pill with a ring and `text`, centred on (x, y)."""
    width, height = badge_size(text, size)
    edge = max(1.0, 0.11 * size)
    for grow, shade in ((edge, ring), (0.0, color)):
        half_w, half_h = width / 2 + grow, height / 2 + grow
        fill(canvas, rounded(x - half_w, y - half_h, x + half_w, y + half_h, half_h), shade)
    put_text(canvas, text, x - text_width(text, size, BOLD) / 2, y + 0.355 * size, size, ink_on(color), BOLD)


def _words(pieces: Sequence[Piece], size: int, weight: int, room: float) -> list[list[_Word]]:
    """Chunks of words that no line break may part; a chunk of one new-line or one space is a break."""
    chunks: list[list[_Word]] = []
    open_chunk = False
    for index, piece in enumerate(pieces):
        own_weight = MEDIUM if piece.color else weight
        first = True
        for match in _WORDS.findall(piece.text) or [""]:
            for text in _bits(match, size, own_weight, room) if match.strip() else [match if match == "\n" else " "]:
                if piece.color is not None and not text.strip():
                    text = " "
                word = _Word(text if match else "", index, text_width(text, size, own_weight) if match else 0, first)
                if first and piece.color is not None:
                    word.width += _lead(piece, size)
                first = False
                breaks = bool(match) and not text.strip()
                if breaks or not open_chunk or (len(text) == 1 and ord(text) >= 0x2E80):
                    chunks.append([word])
                else:
                    chunks[-1].append(word)
                open_chunk = not breaks
        chunks[-1][-1].last = True
    return chunks


def _bits(word: str, size: int, weight: int, room: float) -> list[str]:
    """The word, cut where it would not fit on a line of its own."""
    room = max(room - 4 * size, 2 * size)
    bits, start = [], 0
    for end in range(1, len(word) + 1):
        if end - start > 1 and text_width(word[start:end], size, weight) > room:
            bits.append(word[start : end - 1])
            start = end - 1
    return [*bits, word[start:]]


def _lead(piece: Piece, size: int) -> float:
    """Room for the chip before the first word of a pill, px."""
    if not piece.text:
        return badge_size(piece.chip, round(0.8 * size))[0] - 0.5 * size
    return (text_width(piece.chip, round(0.78 * size), BOLD) + 0.95 * size) if piece.chip else 0.0


class Paragraph:
    """Pieces of text wrapped to `width` px; `height` is known before anything is drawn."""

    def __init__(self, pieces: Sequence[Piece], width: float, size: int, weight: int = REGULAR, color: Color = BLACK):
        self.pieces, self.size, self.weight, self.color = list(pieces), size, weight, color
        self.pad = 0.42 * size
        self.step = round(1.72 * size) if any(piece.color for piece in pieces) else round(1.42 * size)
        self.lines: list[list[_Word]] = [[]]
        x, edge = 0.0, width - self.pad
        for chunk in _words(self.pieces, size, weight, width):
            if chunk[0].text == "\n":
                self.lines.append([])
                x = 0.0
                continue
            need = sum(word.width + self._gaps(word) for word in chunk)
            blank = len(chunk) == 1 and chunk[0].text == " "
            if x > 0 and x + need > edge:
                self.lines.append([])
                x = 0.0
            if blank and x == 0:
                continue
            for word in chunk:
                extra = self._gaps(word)
                if x > 0 and x + word.width + extra > edge and not blank:
                    self.lines.append([])
                    x = 0.0
                pill = self.pieces[word.piece].color is not None
                opens = pill and not (self.lines[-1] and self.lines[-1][-1].piece == word.piece)
                after = bool(self.lines[-1]) and self._pill_before(word)
                x += (self.pad if opens else 0.0) + (self.pad if after else 0.0)
                word.x = x
                self.lines[-1].append(word)
                x += word.width
        self.height = self.step * len(self.lines)

    def _gaps(self, word: _Word) -> float:
        return self.pad if word.first and self.pieces[word.piece].color is not None else 0.0

    def _pill_before(self, word: _Word) -> bool:
        last = self.lines[-1][-1]
        return last.piece != word.piece and self.pieces[last.piece].color is not None

    def draw(self, canvas: np.ndarray, x: float, y: float) -> None:
        """Draw with the upper left corner at (x, y)."""
        size = self.size
        for number, line in enumerate(self.lines):
            middle = y + (number + 0.5) * self.step
            baseline = middle + 0.355 * size
            while line and line[-1].text == " ":
                line.pop()
            for run in _runs(line):
                piece = self.pieces[run[0].piece]
                if piece.color is None:
                    for word in run:
                        put_text(canvas, word.text, x + word.x, baseline, size, self.color, self.weight)
                    continue
                self._pill(canvas, piece, run, x, middle)

    def _pill(self, canvas: np.ndarray, piece: Piece, run: list[_Word], x: float, middle: float) -> None:
        size, color = self.size, piece.color or BLACK
        if not piece.text:
            small = round(0.8 * size)
            at = x + run[0].x - self.pad + 0.17 * size + badge_size(piece.chip, small)[0] / 2
            badge(canvas, piece.chip, at, middle, small, color, BLACK if color == WHITE else WHITE)
            return
        left, right = x + run[0].x - self.pad, x + run[-1].x + run[-1].width + self.pad
        half = 0.74 * size
        outline = rounded(left, middle - half, right, middle + half, half, left=run[0].first, right=run[-1].last)
        ink = BLACK if piece.hollow else ink_on(color)
        fill(canvas, outline, mix(color, PAPER, 0.88) if piece.hollow else color)
        if piece.hollow:
            stroke(canvas, outline, color, max(1, 0.07 * size))
        for word in run:
            start = x + word.x
            if word.first and piece.chip:
                small = round(0.78 * size)
                width = max(text_width(piece.chip, small, BOLD) + 0.55 * size, 1.12 * size)
                at = start - 0.12 * size
                chip = rounded(at, middle - 0.56 * size, at + width, middle + 0.56 * size, size)
                fill(canvas, chip, color if piece.hollow else ink)
                number = at + (width - text_width(piece.chip, small, BOLD)) / 2
                number_ink = ink_on(color) if piece.hollow else _readable(color, ink)
                put_text(canvas, piece.chip, number, middle + 0.355 * small, small, number_ink, BOLD)
                start += _lead(piece, size)
            put_text(canvas, word.text, start, middle + 0.355 * size, size, ink, MEDIUM)


def _readable(color: Color, ground: Color) -> Color:
    """`color`, darkened on white where it is too light to be read."""
    return mix(color, BLACK, 0.15) if ground == WHITE else color


def _runs(line: list[_Word]) -> list[list[_Word]]:
    """Neighbours on a line that belong to one piece."""
    runs: list[list[_Word]] = []
    for word in line:
        if runs and runs[-1][-1].piece == word.piece:
            runs[-1].append(word)
        else:
            runs.append([word])
    return runs
