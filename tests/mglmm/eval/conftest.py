"""A picture of three regions in words, and predictors that know everything or nothing."""

from dataclasses import replace

import numpy as np
import pytest

from mglmm.answer import Answer, Instance, Phrase
from mglmm.demo import gold_answer
from mglmm.eval.protocol import Item
from mglmm.eval.text import Vocabulary
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose

SIZE = (20, 20)


def _square(x1, y1, x2, y2):
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.fixture(scope="session")
def square():
    """`bool[20, 20]` with the box x1, y1, x2, y2 filled."""
    return _square


@pytest.fixture(scope="session")
def vocabulary():
    groups = {"dog": "thing", "car": "thing", "person": "thing", "sky": "stuff", "grass": "stuff", "roof": "part"}
    return Vocabulary(
        {**groups, "traffic light": "thing", "light": "part", "leaf": "part"},
        frozenset(("red", "blue")),
        frozenset(("large",)),
    )


@pytest.fixture(scope="session")
def make_item():
    """From a question and the pieces of `compose` to an `Item`; the regions are masks or `Region`s."""

    def make(question, *pieces, regions=(), mentions=(), history=()):
        made = tuple(given if isinstance(given, Region) else Region.of_mask(given) for given in regions)
        text, spans = compose(*pieces)
        turns = (*history, Turn("user", question, mentions=mentions), Turn("assistant", text, spans))
        conversation = Conversation(turns)
        return Item(Sample(np.zeros((*SIZE, 3), np.uint8), made, (conversation,), id="made"), conversation)

    return make


@pytest.fixture(scope="session")
def make_answer():
    """From pieces of text and (phrase, masks) to an `Answer`."""

    def make(*pieces):
        text, phrases = "", []
        for piece in pieces:
            words, masks = piece if isinstance(piece, tuple) else (piece, None)
            if masks is not None:
                instances = tuple(Instance(mask, None, 1.0) for mask in masks)
                phrases.append(Phrase(words, (len(text), len(text) + len(words)), instances))
            text += words
        return Answer(text, tuple(phrases), np.zeros((*SIZE, 3), np.uint8))

    return make


@pytest.fixture(scope="session")
def echo_gold():
    """The gold answer of an item, as a perfect model would give it: sure, and rightly so."""
    return lambda item: replace(gold_answer(item), score_kind="probability")


@pytest.fixture(scope="session")
def say_nothing():
    """An empty answer to every query."""
    return lambda queries: [Answer("", (), query.image) for query in queries]
