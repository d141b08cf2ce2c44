"""The way between clean text with spans and marked tokens; prompt formats are data, in `templates.py`.

Spans become `<p> phrase </p> [SEG]...` (masks) or `<p> phrase </p> [x1, y1, x2, y2]` (boxes). A blank before a phrase
moves inside its `<p>`, so that words keep the token they have in running text; `read_answer` moves it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mglmm.codecs import BOX_TEXT, box_from_text, box_to_text
from mglmm.pieces import Tokens as Tokens
from mglmm.pieces import joined
from mglmm.templates import FAMILIES as FAMILIES
from mglmm.templates import FORMATS as FORMATS
from mglmm.templates import PromptFormat as PromptFormat
from mglmm.templates import prompt_format as prompt_format
from mglmm.tokens import LiteralTokenizer, SpecialIds
from mglmm_data.masks import Size
from mglmm_data.sample import Box, Region, Turn


def write_prefix(out: Tokens, form: PromptFormat, literal: LiteralTokenizer, ids: SpecialIds, num_image: int) -> None:
    """What all conversations of an image share; in legacy formats it ends with the image.

    Raises:
        ValueError: the tokenizer lacks a token that the format puts around images.
    """
    out.mark([ids.bos], strips=False)
    out.text(form.before_image, literal)
    around = [[around_id(token, form, literal)] if token else [] for token in (form.image_start, form.image_end)]
    out.mark([*around[0], *[ids.image] * num_image, *around[1]], strips=form.image_start is not None)
    if form.pieces == "own":
        out.text(form.after_image, literal)


def around_id(token: str, form: PromptFormat, literal: LiteralTokenizer) -> int:
    """The id of a token that stands beside images."""
    if token not in literal.special:
        raise ValueError(f"the tokenizer has no {token}, which the prompt format {form.name!r} puts beside images")
    return literal.special[token]


def write_question(
    out: Tokens, turn: Turn, form: PromptFormat, literal: LiteralTokenizer, ids: SpecialIds, first: bool
) -> None:
    """A user turn up to where the answer begins; a `<region>` follows (or replaces) the words that mention a region."""
    text, at = form.first_user if first else form.user, 0
    if first and form.pieces == "legacy":
        text = form.after_image + text
    for mention in sorted(turn.mentions, key=lambda item: item.start):
        end = mention.end if form.mention == "after" else mention.start
        name_all(out, turn, at, end, text, literal)
        out.text(text + turn.text[at:end], literal)
        out.mark([ids.region])
        out.given.append(mention.region)
        text, at = "", mention.end
    name_all(out, turn, at, len(turn.text), text, literal)
    out.text(text + turn.text[at:] + form.assistant, literal)


def name_all(out: Tokens, turn: Turn, start: int, end: int, before: str, literal: LiteralTokenizer) -> None:
    """Record the names in `text[start:end]` of a turn; the next piece is `before` and this text.

    A name of several regions is left out: one state points at one box.
    """
    for phrase in turn.phrases:
        if start < phrase.end <= end and phrase.start < phrase.end and len(phrase.regions) == 1:
            out.name(before + turn.text[start : phrase.end], phrase.regions[0], literal)


def write_answer(
    out: Tokens,
    turn: Turn,
    regions: Sequence[Region],
    literal: LiteralTokenizer,
    ids: SpecialIds,
    labelled: bool = True,
    tagged: bool = True,
) -> None:
    """An assistant turn with its markers and the end token.

    Args:
        tagged: phrases stand in `<p> </p>`; a phrase without words never does.

    Raises:
        ValueError: a phrase asks for a box of an empty region.
    """
    at = 0
    for phrase in sorted(turn.phrases, key=lambda item: item.start):
        before, said = turn.text[at : phrase.start], turn.text[phrase.start : phrase.end]
        if said and tagged:
            blank = " " if before.endswith(" ") else ""
            out.text(before.removesuffix(" "), literal, labelled)
            out.mark([ids.phrase_open], labelled)
            out.text(blank + said, literal, labelled)
            out.mark([ids.phrase_close], labelled)
        else:
            out.text(before + said, literal, labelled)
        if turn.grounding == "mask":
            out.mark([ids.seg] * len(phrase.regions), labelled)
            out.targets += phrase.regions
        else:
            for place, index in enumerate(phrase.regions):
                if said and tagged and not place:
                    out.spell(index)
                box = regions[index].bounds
                if box is None:
                    raise ValueError(f"region {index} is empty and has no box; it cannot be the answer {turn.text!r}")
                out.text(box_to_text(box, regions[index].size), literal, labelled)
        at = phrase.end
    out.text(turn.text[at:], literal, labelled)
    out.mark([ids.eos], labelled, strips=False)


@dataclass(frozen=True)
class ReadPhrase:
    """A phrase found in generated ids: its span in the clean text, which `[SEG]` (by number) and boxes follow it."""

    start: int
    end: int
    segs: tuple[int, ...]
    boxes: tuple[Box, ...]
    tokens: tuple[int, ...]  # positions of the phrase's own tokens in the generated ids


@dataclass(frozen=True)
class ReadAnswer:
    """What generated ids say, as clean text and spans."""

    text: str
    phrases: tuple[ReadPhrase, ...]
    notes: tuple[str, ...]
    unclosed: bool = False  # the last of `phrases` was never closed


def chunks(generated: Sequence[int], special: frozenset[int]) -> Iterator[tuple[int | None, list[int], int]]:
    """Split ids into runs of plain text and single markers: (marker or None, text ids, position of the first)."""
    run: list[int] = []
    for position, token in enumerate(generated):
        if token in special:
            if run:
                yield None, run, position - len(run)
                run = []
            yield token, [], position
        else:
            run.append(token)
    if run:
        yield None, run, len(generated) - len(run)


def read_answer(
    generated: Sequence[int],
    literal: LiteralTokenizer,
    ids: SpecialIds,
    size: Size,
    form: PromptFormat | None = None,
) -> ReadAnswer:
    """Parse generated ids (without the end token) into clean text and phrases; nothing is dropped without a note.

    A `[SEG]` without a phrase before it becomes a phrase without words, at its place.

    Args:
        size: the image's (H, W), px.
        form: of the model; it tells how pieces join, and whether a `[SEG]` without a phrase is worth a note.
    """
    legacy, bare = (form.pieces == "legacy", form.bare) if form is not None else (False, False)
    text, notes = "", []
    special = ids.all | frozenset(literal.special.values())
    phrases: list[ReadPhrase] = []
    start: int | None = None
    inner: tuple[int, ...] = ()
    early: tuple[int, ...] = ()  # [SEG] that stand inside the open phrase
    num_segs = 0
    fresh = False  # does the last phrase still take [SEG] or boxes

    def closed(begin: int) -> ReadPhrase:
        said = text[begin:]
        begin += len(said) - len(said.lstrip())  # the blank that stands inside the markers is no part of the phrase
        return ReadPhrase(begin, begin + len(said.strip()), early, (), inner)

    for marker, run, position in chunks(generated, special):
        if marker is None:
            piece = literal.decode(run)
            if start is not None:
                inner += tuple(range(position, position + len(run)))
            elif fresh:
                while match := BOX_TEXT.match(piece):
                    box = box_from_text(tuple(map(int, match.groups())), size)
                    if box is None:
                        notes.append(f"the box{match.group()} is empty or out of range and was left out")
                    else:
                        phrases[-1] = extend(phrases[-1], boxes=(box,))
                    piece = piece[match.end() :]
                fresh = not piece
            text = joined(text, piece) if legacy else text + piece
        elif marker == ids.phrase_open:
            if start is not None:
                notes.append(f"a phrase was opened inside another at character {len(text)}; the inner one counts")
                phrases += [closed(start)] if early else []
            start, inner, early, fresh = len(text), (), (), False
        elif marker == ids.phrase_close:
            if start is None:
                notes.append(f"a phrase was closed that was never opened, at character {len(text)}")
                continue
            phrases.append(closed(start))
            start, fresh = None, True
        elif marker == ids.seg:
            if start is not None:
                notes.append(f"a mask inside a phrase at character {len(text)}; it counts for that phrase")
                early += (num_segs,)
                num_segs += 1
                continue
            if not fresh:
                if not bare:
                    notes.append(f"a mask without a phrase at character {len(text)}")
                phrases.append(ReadPhrase(len(text), len(text), (), (), ()))
                fresh = True
            phrases[-1] = extend(phrases[-1], segs=(num_segs,))
            num_segs += 1
        else:
            notes.append(f"a marker that has no place in an answer (id {marker}) was left out at character {len(text)}")
    if start is not None:
        notes.append(f"the phrase {text[start:]!r} was never closed" + " and has no mask" * (not early))
        phrases += [closed(start)] if early else []
    return ReadAnswer(text, tuple(phrases), tuple(notes), unclosed=start is not None and bool(early))


def extend(phrase: ReadPhrase, segs: tuple[int, ...] = (), boxes: tuple[Box, ...] = ()) -> ReadPhrase:
    return ReadPhrase(phrase.start, phrase.end, phrase.segs + segs, phrase.boxes + boxes, phrase.tokens)
