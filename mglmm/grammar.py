"""What keeps generated phrases well-formed: one small state machine for each row of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mglmm.codecs import BOX_BEGUN, BOX_LENGTH, BOX_LETTERS
from mglmm.encode import Encoder
from mglmm.tokens import SpecialIds

BLANKS = " \n\t\r"


@dataclass
class Grammar:
    """A state machine of one row that keeps phrases well-formed.

    It never forces a phrase to open; it holds back enough of the budget to close one that is open (`</p>` and one
    `[SEG]`, then the end), and opens none that could not be closed. After `</p>` comes `[SEG]` or a whole box.
    """

    ids: SpecialIds
    letters: Mapping[int, str]  # tokens that boxes are spelt with, see `codecs.BOX_LETTERS`
    blanks: frozenset[int] = frozenset()  # tokens of white space alone
    inside: bool = False
    length: int = 0  # tokens inside the open phrase that are not blank
    closed: bool = False  # `</p>` was the last token
    ready: bool = False  # `[SEG]` may follow
    box: str | None = None  # the letters of a box that has begun

    @classmethod
    def of(cls, encoder: Encoder) -> Grammar:
        """A fresh one for the tokenizer of a model."""
        literal = encoder.literal
        return cls(encoder.ids, literal.spelling(BOX_LETTERS), frozenset(literal.spelling(BLANKS)))

    def rule(self, left: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(only these are allowed, or all if empty; these are forbidden), with `left` tokens of budget."""
        ids = self.ids
        if self.inside:
            if left <= 2 and self.length:
                return (ids.phrase_close,), ()
            empty = () if self.length else (ids.phrase_close, *(self.blanks if left <= 3 else ()))
            return (), (ids.phrase_open, ids.seg, ids.eos, *empty)
        if self.box is not None:
            return self.boxes(self.box), ()
        if self.closed:
            return ((ids.seg,) if left < BOX_LENGTH else (ids.seg, *self.boxes(""))), ()
        forbidden = (ids.phrase_close, *(() if self.ready else (ids.seg,)))
        return (), (*forbidden, ids.phrase_open) if left < 4 else forbidden

    def boxes(self, begun: str) -> tuple[int, ...]:
        """The tokens with which a box goes on."""
        return tuple(token for token, text in self.letters.items() if BOX_BEGUN.fullmatch(begun + text))

    def take(self, token: int) -> None:
        """Follow the token that was chosen."""
        ids = self.ids
        if self.box is not None or (self.closed and token != ids.seg):
            self.box = (self.box or "") + self.letters[token]
            self.box = None if self.box.endswith("]") else self.box
        self.closed = token == ids.phrase_close
        self.ready = self.closed or (self.ready and token == ids.seg)
        if token == ids.phrase_open:
            self.inside, self.length = True, 0
        elif token == ids.phrase_close:
            self.inside = False
        elif self.inside:
            self.length += token not in self.blanks
