"""What a task hands back before regions are drawn: questions and answers in pieces that point at targets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mglmm_data.sample import Conversation, Grounding, Mention, Region, Turn, compose
from mglmm_data.world.view import Target, View

Piece = str | tuple[str, tuple[Target, ...]]
"""Text, or a phrase with the targets it is grounded in."""
Asked = str | tuple[str, Target | Region]
"""Text, or words that speak of a given region: the mask of a target, or a region drawn by a user."""
Names = tuple[tuple[str, Target], ...]
"""Words of a question, in their order, and the thing of the scene that each names: "the dog left of the *red ball*"."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: tuple[Asked, ...]
    answer: tuple[Piece, ...]
    grounding: Literal["mask", "box"] = "mask"
    named: Names = ()


@dataclass(frozen=True)
class Draft:
    """A conversation to be; `unseen` where it speaks of something training never shows or asks for."""

    kind: str
    exchanges: tuple[Exchange, ...]
    unseen: bool = False


def ask(
    kind: str,
    question: str,
    *answer: Piece,
    unseen: bool = False,
    grounding: Literal["mask", "box"] = "mask",
    named: Names = (),
) -> Draft:
    """A draft of one question in plain text and its answer."""
    return Draft(kind, (Exchange((question,), answer, grounding, named),), unseen)


def region_of(view: View, target: Target) -> Region:
    """The mask of a target as a region."""
    scene = view.scene
    if target.stuff:
        stuff = scene.stuff[target.index]
        return Region.of_mask(scene.stuff_mask(target.index), f"{stuff.color} {stuff.name}")
    if target.part:
        return Region.of_mask(scene.part_mask(target.index, target.part), view.describe(target).removeprefix("the "))
    return Region.of_mask(scene.thing_mask(target.index), view.name(target.index))


def finish(
    view: View, task: str, draft: Draft, regions: list[Region], drawn: dict[Target, int], named: bool = False
) -> Conversation:
    """Draw what the draft points at and join its pieces.

    Args:
        named: whether the names of things in a question are grounded, too.
        regions: the sample's regions; new ones are appended.
        drawn: targets that have their mask in `regions` already -> its index; extended.
    """

    def number(given: Target | Region) -> int:
        if isinstance(given, Region):
            regions.append(given)
            return len(regions) - 1
        if given not in drawn:
            regions.append(region_of(view, given))
            drawn[given] = len(regions) - 1
        return drawn[given]

    turns, unseen = [], draft.unseen
    for exchange in draft.exchanges:
        text, mentions = "", []
        for piece in exchange.question:
            words = piece if isinstance(piece, str) else piece[0]
            if not isinstance(piece, str):
                mentions.append(Mention(len(text), len(text) + len(words), number(piece[1])))
                unseen |= isinstance(piece[1], Target) and view.is_unseen(piece[1])
            text += words
        names = [Grounding(*place, (number(target),)) for place, target in _names(text, exchange)] if named else []
        turns.append(Turn("user", text, tuple(names), tuple(mentions)))
        pieces = []
        for piece in exchange.answer:
            if not isinstance(piece, str):
                unseen |= any(view.is_unseen(target) for target in piece[1])
                piece = (piece[0], tuple(number(target) for target in piece[1]))
            pieces.append(piece)
        text, phrases = compose(*pieces)
        turns.append(Turn("assistant", text, phrases=phrases, grounding=exchange.grounding))
    return Conversation(tuple(turns), task, f"{draft.kind}:unseen" if unseen else draft.kind)


def _names(text: str, exchange: Exchange) -> Iterator[tuple[tuple[int, int], Target]]:
    """Where the names of a question stand in its text, one behind the other; "ball" is not in "balloon".

    Raises:
        ValueError: a name is not in the text.
    """
    at = 0
    for words, target in exchange.named:
        place = re.compile(re.escape(words) + r"\b").search(text, at)
        if place is None:
            raise ValueError(f"{words!r} is not in {text[at:]!r}; a draft names what its question says")
        at = place.end()
        yield place.span(), target
