"""Prompt formats as data, and the way between clean text with spans and marked tokens.

A format says what stands around an image, a question and an answer. Spans become `<p> phrase </p> [SEG]...` (masks) or
`<p> phrase </p> [x1, y1, x2, y2]` (boxes). A blank before a phrase moves inside its `<p>`, so that words keep the token
they have in running text; `read_answer` moves it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from mglmm.codecs import BOX_TEXT, box_from_text, box_to_text
from mglmm.tokens import LiteralTokenizer, SpecialIds
from mglmm_data.masks import Size
from mglmm_data.sample import Box, Region, Turn


class PromptFormat(BaseModel):
    """What stands around images and turns; saved by name with a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    before_image: str
    after_image: str
    first_user: str  # before the first question
    user: str  # before later questions
    assistant: str  # between a question and its answer


FORMATS = {
    "compact": PromptFormat(
        name="compact", before_image="", after_image="", first_user="USER: ", user="USER: ", assistant=" ASSISTANT: "
    ),
    # LLaVA-1.5's conversation `vicuna_v1`, which LISA, GLaMM and MGLMM use.
    "vicuna_v1": PromptFormat(
        name="vicuna_v1",
        before_image="A chat between a curious human and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the human's questions. USER: ",
        after_image="\n",
        first_user="",
        user="USER: ",
        assistant=" ASSISTANT: ",
    ),
}


def prompt_format(name: str) -> PromptFormat:
    if name not in FORMATS:
        raise ValueError(f"unknown prompt format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass
class Tokens:
    """Ids under construction, with what is recorded in the same pass."""

    ids: list[int] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)  # does this id carry loss
    targets: list[int] = field(default_factory=list)  # region of each [SEG], in order
    given: list[int] = field(default_factory=list)  # region of each <region>, in order

    def add(self, ids: Sequence[int], labelled: bool = False) -> None:
        self.ids += ids
        self.labelled += [labelled] * len(ids)


def write_prefix(out: Tokens, form: PromptFormat, literal: LiteralTokenizer, ids: SpecialIds, num_image: int) -> None:
    """What all conversations of an image share."""
    out.add([ids.bos, *literal.encode(form.before_image)])
    out.add([ids.image] * num_image)
    out.add(literal.encode(form.after_image))


def write_question(
    out: Tokens, turn: Turn, form: PromptFormat, literal: LiteralTokenizer, ids: SpecialIds, first: bool
) -> None:
    """A user turn up to where the answer begins; a `<region>` follows the words that mention a region."""
    text, at = form.first_user if first else form.user, 0
    for mention in sorted(turn.mentions, key=lambda item: item.start):
        out.add(literal.encode(text + turn.text[at : mention.end]))
        out.add([ids.region])
        out.given.append(mention.region)
        text, at = "", mention.end
    out.add(literal.encode(text + turn.text[at:] + form.assistant))


def write_answer(
    out: Tokens,
    turn: Turn,
    regions: Sequence[Region],
    literal: LiteralTokenizer,
    ids: SpecialIds,
    labelled: bool = True,
) -> None:
    """An assistant turn with its markers and the end token.

    Raises:
        ValueError: a phrase asks for a box of an empty region.
    """
    at = 0
    for phrase in sorted(turn.phrases, key=lambda item: item.start):
        before = turn.text[at : phrase.start]
        blank = " " if before.endswith(" ") else ""
        out.add(literal.encode(before.removesuffix(" ")), labelled)
        out.add([ids.phrase_open], labelled)
        out.add(literal.encode(blank + turn.text[phrase.start : phrase.end]), labelled)
        out.add([ids.phrase_close], labelled)
        if turn.grounding == "mask":
            out.add([ids.seg] * len(phrase.regions), labelled)
            out.targets += phrase.regions
        else:
            for index in phrase.regions:
                box = regions[index].bounds
                if box is None:
                    raise ValueError(f"region {index} is empty and has no box; it cannot be the answer {turn.text!r}")
                out.add(literal.encode(box_to_text(box, regions[index].size)), labelled)
        at = phrase.end
    out.add(literal.encode(turn.text[at:]), labelled)
    out.add([ids.eos], labelled)


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


def read_answer(generated: Sequence[int], literal: LiteralTokenizer, ids: SpecialIds, size: Size) -> ReadAnswer:
    """Parse generated ids (without the end token) into clean text and phrases; nothing is dropped without a note.

    A `[SEG]` without a phrase before it becomes a phrase without words, at its place. `size` is the image's (H, W), px.
    """
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
            text += piece
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
