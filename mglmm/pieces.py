"""Text and markers to ids, in one pass with what is recorded: our own way, and slow LLaMA tokenisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mglmm.templates import PromptFormat
from mglmm.tokens import LiteralTokenizer

CLINGING = ".,;:!?)]}%'\u2019"
"""Letters that stand without a blank behind what they follow."""


@dataclass
class Tokens:
    """Ids under construction, with what is recorded in the same pass."""

    ids: list[int] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)  # does this id carry loss
    targets: list[int] = field(default_factory=list)  # region of each [SEG], in order
    given: list[int] = field(default_factory=list)  # region of each <region>, in order
    spelt: list[tuple[int, int]] = field(default_factory=list)  # (place in ids, region) of boxes spelt behind `</p>`
    named: list[tuple[int, int]] = field(default_factory=list)  # (place of its last id, region) of names in questions

    def add(self, ids: Sequence[int], labelled: bool = False) -> None:
        self.ids += ids
        self.labelled += [labelled] * len(ids)

    def text(self, text: str, literal: LiteralTokenizer, labelled: bool = False) -> None:
        """Plain text, a piece of its own."""
        self.add(literal.encode(text), labelled)

    def mark(self, ids: Sequence[int], labelled: bool = False, strips: bool = True) -> None:
        """Markers; `strips` says whether legacy tokenisation drops white space beside them."""
        self.add(ids, labelled)

    def spell(self, region: int) -> None:
        """The box of a region follows, behind a phrase."""
        self.spelt.append((len(self.ids), region))

    def name(self, text: str, region: int, literal: LiteralTokenizer) -> None:
        """What comes next begins with `text`, whose last word names a region."""
        self.named.append((len(self.ids) + len(literal.encode(text)) - 1, region))

    def close(self) -> None:
        """Nothing follows."""


@dataclass
class LegacyTokens(Tokens):
    """Ids by slow LLaMA tokenisation: the text between two markers is one piece, encoded when it is whole.

    White space goes on both sides of a marker that strips (added tokens, not `<s>` and `</s>`), and each piece begins
    with sentencepiece's dummy prefix. Rule: `shared/golden/README.md`.
    """

    run: list[tuple[str, bool]] = field(default_factory=list)
    literal: LiteralTokenizer | None = None
    stripped: bool = False  # did the marker before the run strip

    def text(self, text: str, literal: LiteralTokenizer, labelled: bool = False) -> None:
        self.run.append((text, labelled))
        self.literal = literal

    def spell(self, region: int) -> None:
        """Ids of a piece are not known before it is whole, and no published model reads boxes back."""

    def name(self, text: str, region: int, literal: LiteralTokenizer) -> None:
        """As `spell`."""

    def mark(self, ids: Sequence[int], labelled: bool = False, strips: bool = True) -> None:
        self.flush(strips)
        self.add(ids, labelled)
        self.stripped = strips

    def close(self) -> None:
        """Nothing follows: an open prompt ends with the assistant's name, without the blank behind it."""
        if self.run and self.run[-1][0].endswith(" "):
            self.run[-1] = (self.run[-1][0][:-1], self.run[-1][1])
        self.flush(strips=False)

    def flush(self, strips: bool) -> None:
        """Encode the piece; what is labelled in it is its end, and a blank between the two parts belongs to that."""
        run, self.run = self.run, []
        text, silent = "".join(piece for piece, _ in run), "".join(piece for piece, labelled in run if not labelled)
        if self.stripped:
            text, silent = text.lstrip(), silent.lstrip()
        text = text.rstrip() if strips else text
        if not text or self.literal is None:
            return
        ids = self.literal.encode(" " + text)
        whole = len(silent) >= len(text)
        count = len(ids) if whole else len(self.literal.encode(" " + silent.removesuffix(" "))) if silent else 0
        self.add(ids[:count])
        self.add(ids[count:], labelled=True)


def fresh_tokens(form: PromptFormat, behind_image: bool = False) -> Tokens:
    """Empty `Tokens` of a format; `behind_image` for what follows the prefix of an image."""
    if form.pieces == "own":
        return Tokens()
    return LegacyTokens(stripped=behind_image and form.image_end is not None)


def joined(text: str, piece: str) -> str:
    """`text` with a legacy piece behind it: its dummy prefix is a blank between words, and none before a full stop.

    Whether there was a blank beside a marker is lost in legacy tokenisation; this is how the sentences were written.
    """
    if not piece.startswith(" "):
        return text + piece
    piece = piece[1:]
    apart = text and not text[-1].isspace() and piece and piece[0] not in CLINGING and not piece[0].isspace()
    return text + (" " if apart else "") + piece
