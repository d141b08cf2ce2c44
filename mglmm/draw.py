"""An answer as one picture: numbered, coloured masks, and the caption whose phrases wear the same colours.

Line widths, letters and numbers follow the size of the picture, so that 200 px and 4,000 px read alike; small images
are enlarged first. Masks are filled from large to small, each pixel in the colour of the smallest mask that holds it,
and every contour is drawn whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mglmm.answer import Answer, Instance
from mglmm.badges import POINT_REACH, letter, spots_of
from mglmm.caption import (
    BOLD,
    BUBBLE,
    MEDIUM,
    PAPER,
    SOFT_INK,
    Paragraph,
    Piece,
    badge,
    fill,
    rounded,
    stroke,
)
from mglmm.outline import MIN_WIDTH, Frame, Layer, Shape, layers_of, shapes_of
from mglmm.palette import BLACK, WHITE, Color, mix, palette
from mglmm_data.sample import Region

LONG_TEXT = 600  # characters, from which the letters are a little smaller
CUT_NOTE = "the answer was cut off at the token limit"


def prompt_pieces(prompt: str, num_regions: int) -> list[tuple[str, int | None]]:
    """The prompt cut at its `[region k]`: (text, region index or None); one that was not given stays text."""
    out: list[tuple[str, int | None]] = []
    for part in re.split(r"(\[region \d+\])", prompt):
        found = re.fullmatch(r"\[region (\d+)\]", part)
        index = int(found[1]) if found else None
        if part:
            out.append((part, index if index is not None and index < num_regions else None))
    return out


def notes_of(answer: Answer) -> list[str]:
    """What is said in small print below an answer."""
    return [*([CUT_NOTE] if answer.truncated else []), *answer.notes]


def _fills(picture: np.ndarray, layers: Sequence[Layer], colors: Sequence[Color]) -> np.ndarray:
    """Tint every mask (and, faintly, every box), the smallest on top."""
    height, width = picture.shape[:2]
    tint, cover = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    for layer in layers:
        shape, color, strength = layer.shape, colors[layer.phrase], round(255 * layer.opacity)
        if shape.is_mask:
            solid, at = Image.fromarray(shape.alpha), shape.offset
            place = (at[0], at[1], at[0] + solid.width, at[1] + solid.height)
            tint.paste(color, place, solid.point(lambda value: 255 if value else 0))
            cover.paste(strength, place, solid)
        else:
            x1, y1, x2, y2 = (round(value) for value in shape.bounds)
            tint.paste(color, (x1, y1, x2, y2))
            cover.paste(strength, (x1, y1, x2, y2))
    return np.array(Image.composite(tint, Image.fromarray(picture), cover))


def _lines(canvas: np.ndarray, layer: Layer, color: Color, unit: float) -> None:
    """The contour in its colour between two thin dark edges, so that it stands out on any ground."""
    shape = layer.shape
    width = max(1.0, min(2.4 * unit, 0.16 * np.sqrt(shape.area))) + (3.4 * unit if layer.whole else 0.0)
    for line in shape.outlines:
        stroke(canvas, line, mix(color, BLACK, 0.72), width + max(1.0, 1.3 * unit))
    for line in shape.outlines:
        stroke(canvas, line, color, width)


def _dashes(canvas: np.ndarray, line: np.ndarray, unit: float, closed: bool) -> None:
    """A white line with black dashes: what the user gave, not what the model said."""
    points = np.concatenate([line, line[:1]]) if closed else line
    width, dash = max(1.5, 2.4 * unit), 9.0 * unit
    stroke(canvas, points, BLACK, width + max(1.0, 1.6 * unit), closed=False)
    stroke(canvas, points, WHITE, width, closed=False)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    for start in np.arange(0.0, along[-1], 2 * dash):
        where = np.linspace(start, min(start + dash, along[-1]), 8)
        piece = np.stack([np.interp(where, along, points[:, axis]) for axis in (0, 1)], -1)
        stroke(canvas, piece, BLACK, width, closed=False)


def _region(canvas: np.ndarray, region: Region, frame: Frame) -> None:
    unit = frame.unit
    if region.point is not None:
        x, y = region.point[0] * frame.scale, region.point[1] * frame.scale
        for radius, color in ((POINT_REACH, BLACK), (7.0, WHITE), (4.4, BLACK), (2.2, WHITE)):
            reach = radius * unit
            fill(canvas, rounded(x - reach, y - reach, x + reach, y + reach, reach), color)
    elif region.scribble is not None:
        _dashes(canvas, np.array(region.scribble) * frame.scale, unit, closed=False)
    else:
        shape = Shape(frame, region.mask if region.kind == "mask" else None, region.box)
        for line in shape.outlines:
            _dashes(canvas, line, unit, closed=True)


def draw_picture(answer: Answer, regions: Sequence[Region] = ()) -> np.ndarray:
    """uint8[h, w, 3]: the image, enlarged where it is small, with masks, boxes, regions, numbers and letters."""
    for index, region in enumerate(regions):
        if tuple(region.size) != answer.size:
            raise ValueError(
                f"region {index} is for an image of {tuple(region.size)}, this one is {answer.size} (H, W)"
            )
    frame = Frame(answer.size)
    colors = palette(len(answer.phrases))
    shapes = shapes_of(answer, frame)
    layers = layers_of(frame, shapes)
    canvas = _fills(frame.enlarge(answer.image), layers, colors)
    for layer in layers:
        _lines(canvas, layer, colors[layer.phrase], frame.unit)
    for region in regions:
        _region(canvas, region, frame)
    size = max(12, round(13.5 * frame.unit))
    spots, letters = spots_of(frame, shapes, regions, size)
    numbered = [(str(i + 1), spot, colors[i], WHITE) for i, items in enumerate(spots) for spot in items] + [
        (letter(i), spot, WHITE, BLACK) for i, spot in enumerate(letters)
    ]
    for _, spot, color, ring in numbered:
        if spot.anchor is not None:
            line = np.array([spot.anchor, (spot.x, spot.y)])
            stroke(canvas, line, ring, 3.2 * frame.unit, closed=False)
            stroke(canvas, line, color, 1.6 * frame.unit, closed=False)
            if color != WHITE:  # a letter's line ends at the mark of its own region
                (x, y), reach = spot.anchor, 2.6 * frame.unit
                fill(canvas, rounded(x - reach, y - reach, x + reach, y + reach, reach), ring)
    for text, spot, color, ring in numbered:
        badge(canvas, text, spot.x, spot.y, size, color, ring)
    return canvas


class _Panel:
    """The question in a bubble, the answer with its pills, the notes in small print."""

    def __init__(self, answer: Answer, num_regions: int, width: int, unit: float):
        size = max(14, round((17 if len(answer.text) < LONG_TEXT else 14) * unit))
        self.margin = round(0.95 * size)
        room = width - 2 * self.margin
        colors, drawable = palette(len(answer.phrases)), [_is_drawable(phrase.instances) for phrase in answer.phrases]
        asked = [
            Piece("" if index is not None else text, WHITE if index is not None else None, letter(index or 0))
            for text, index in prompt_pieces(answer.prompt.strip(), num_regions)
        ]
        said = [
            Piece(text) if index is None else Piece(text, colors[index], str(index + 1), not drawable[index])
            for text, index in answer.pieces
        ]
        small = max(11, round(0.74 * size))
        self.question = Paragraph(asked, room - 1.2 * size, round(0.92 * size), MEDIUM) if asked else None
        plain = Paragraph(said, room, size) if answer.text.strip() else None
        self.reply = plain or Paragraph([Piece("(no text)")], room, size, color=SOFT_INK)
        self.notes = [Paragraph([Piece(f"Note: {note}")], room, small, color=SOFT_INK) for note in notes_of(answer)]
        self.gap = round(0.5 * size)
        self.inset = 0.6 * size
        blocks = [self.question.height + 2 * self.gap if self.question else 0, self.reply.height]
        self.height = round(2 * self.margin + sum(blocks) + sum(n.height for n in self.notes))
        self.height += self.gap * (bool(self.question) + bool(self.notes))

    def draw(self, canvas: np.ndarray, x: int, y: int, width: int) -> None:
        x, y = x + self.margin, y + self.margin
        if self.question:
            bottom = y + self.question.height + 2 * self.gap
            bubble = rounded(x, y, x + width - 2 * self.margin, bottom, self.inset)
            fill(canvas, bubble, BUBBLE)
            self.question.draw(canvas, x + self.inset, y + self.gap)
            y = bottom + self.gap
        self.reply.draw(canvas, x, y)
        y += self.reply.height + self.gap
        for note in self.notes:
            note.draw(canvas, x, y)
            y += note.height


def _is_drawable(instances: Sequence[Instance]) -> bool:
    return any(bool(item.mask.any()) if item.mask is not None else item.box is not None for item in instances)


def draw_answer(answer: Answer, regions: Sequence[Region] = ()) -> Image.Image:
    """The picture with the caption below it, or beside it when the image is tall.

    Args:
        answer: with or without phrases, masks or boxes.
        regions: what the user pointed at; drawn dashed and lettered A, B, ... as `[region 0]`, `[region 1]`.

    Raises:
        ValueError: a region is for an image of another size.

    """
    picture = draw_picture(answer, regions)
    height, width = picture.shape[:2]
    unit = Frame(answer.size).unit
    if height > 1.3 * width:
        side = max(round(0.85 * width), round(380 * max(unit, 1.0)))
        panel = _Panel(answer, len(regions), side, unit)
        page = np.full((max(height, panel.height), width + side, 3), PAPER, np.uint8)
        page[:height, :width] = picture
        panel.draw(page, width, 0, side)
    else:
        full = max(width, MIN_WIDTH)
        panel = _Panel(answer, len(regions), full, unit)
        page = np.full((height + panel.height, full, 3), PAPER, np.uint8)
        left = (full - width) // 2
        page[:height, left : left + width] = picture
        panel.draw(page, 0, height, full)
    return Image.fromarray(page)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Titled pictures side by side, `columns` in a row, all of one width.

    Raises:
        ValueError: there is no picture, or fewer than one column.

    """
    if not pictures or columns < 1:
        raise ValueError(f"a contact sheet needs pictures and columns; got {len(pictures)} pictures, {columns} columns")
    width = int(np.clip(np.median([picture.width for _, picture in pictures]), 200, 900))
    size, gap = max(14, round(width / 34)), max(12, width // 30)
    titles = [Paragraph([Piece(title)], width, size, BOLD) for title, _ in pictures]
    cells = [
        picture.convert("RGB").resize(
            (width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS
        )
        for _, picture in pictures
    ]
    columns = min(columns, len(cells))
    heights = [title.height + gap // 2 + cell.height for title, cell in zip(titles, cells, strict=True)]
    rows = [max(heights[start : start + columns]) for start in range(0, len(cells), columns)]
    ground = mix(PAPER, BLACK, 0.07)
    sheet = np.full((sum(rows) + gap * (len(rows) + 1), columns * (width + gap) + gap, 3), ground, np.uint8)
    y = gap
    for row, row_height in enumerate(rows):
        for column, index in enumerate(range(row * columns, min((row + 1) * columns, len(cells)))):
            x = gap + column * (width + gap)
            titles[index].draw(sheet, x, y)
            top = y + titles[index].height + gap // 2
            sheet[top : top + cells[index].height, x : x + width] = np.array(cells[index])
        y += row_height + gap
    return Image.fromarray(sheet)
