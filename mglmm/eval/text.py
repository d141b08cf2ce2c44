"""Scores of text: exact match after normalisation, and the names of regions; the nouns and colours of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mglmm.answer import Answer
from mglmm.eval.metric import Metric, Totals, ratio
from mglmm.eval.protocol import Item

NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
ARTICLES = frozenset(("a", "an", "the"))
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def words(text: str) -> list[str]:
    """Lower-case words; underscores and punctuation part them, a possessive 's falls off."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower().replace("’", "'"))]


def normalise(text: str, kind: Literal["caption", "answer"] = "caption") -> str:
    """Case, white space and punctuation go; in an `answer` articles go too, and number words become digits."""
    if kind == "caption":
        return " ".join(words(text))
    return " ".join(NUMBERS.get(word, word) for word in words(text) if word not in ARTICLES)


@dataclass(frozen=True)
class Vocabulary:
    """The nouns by which things are told apart: noun -> group ("thing", "stuff", "part"); colour and size words."""

    groups: Mapping[str, str]
    colors: frozenset[str] = frozenset()
    sizes: frozenset[str] = frozenset()

    def head(self, phrase: str) -> str:
        """The head noun: the first known noun, or the last of a run of them ("car window" is a window).

        "the red roof of the car" is a roof, "two dogs" are a dog; "" when no word is known.
        """
        said, found, index = words(phrase), "", 0
        while index < len(said):
            length = next((size for size in (2, 1) if self._noun(" ".join(said[index : index + size]))), 0)
            if length:
                found = self._noun(" ".join(said[index : index + length]))
            elif found:
                break
            index += length or 1
        return found

    def noun(self, phrase: str) -> str:
        """The head noun, or the last word where none is known; "" without words."""
        return self.head(phrase) or (words(phrase) or [""])[-1]

    def color(self, phrase: str) -> str:
        """The first colour word; "" when there is none."""
        return next((word for word in words(phrase) if word in self.colors), "")

    def size(self, phrase: str) -> str:
        """The first size word; "" when there is none."""
        return next((word for word in words(phrase) if word in self.sizes), "")

    def _noun(self, word: str) -> str:
        return next((form for form in _singulars(word) if form in self.groups), "")


_ENDINGS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))


def _singulars(word: str) -> list[str]:
    endings = [word.removesuffix(end) + new for end, new in _ENDINGS if word.endswith(end)]
    return [word, _IRREGULAR.get(word, word), *endings]


class ExactMatch(Metric):
    """Share of answers whose normalised text is the gold's."""

    columns = ("count", "exact")

    def __init__(self, kind: Literal["caption", "answer"] = "caption") -> None:
        super().__init__()
        self._kind: Literal["caption", "answer"] = kind
        self.protocol = f"exact/{kind}"

    def measure(self, item: Item, answer: Answer) -> dict[str, float]:
        exact = normalise(answer.text, self._kind) == normalise(item.gold.text, self._kind)
        return {"count": 1.0, "exact": float(exact)}

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        return {"exact": ratio(totals["exact"], totals["count"])}


class RegionNaming(Metric):
    """What a given region is: the head noun (`category`), its colour too (`category_color`), or all words (`exact`).

    Where the gold names no colour, none is asked for.
    """

    columns = ("count", "category", "category_color", "exact")
    protocol = "naming/head-noun"

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    def measure(self, item: Item, answer: Answer) -> dict[str, float]:
        gold, said = item.gold.text, answer.text
        head = self._vocabulary.head(gold)
        if not head:
            raise ValueError(
                f"no noun of the vocabulary is in the gold answer {gold!r} of {item.sample.id!r}; extend it"
            )
        category = self._vocabulary.head(said) == head
        color = self._vocabulary.color(gold)
        return {
            "count": 1.0,
            "category": float(category),
            "category_color": float(category and (not color or self._vocabulary.color(said) == color)),
            "exact": float(normalise(said, "answer") == normalise(gold, "answer")),
        }

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        return {name: ratio(totals[name], totals["count"]) for name in self.columns[1:]}
