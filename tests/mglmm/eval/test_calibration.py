"""Calibration: the expected error of scores, bin by bin, and what counts as right."""

from dataclasses import replace

import numpy as np
import pytest

from mglmm.answer import Answer, Instance, Phrase
from mglmm.eval.calibration import Calibration, judged
from mglmm.eval.protocol import Item
from mglmm.eval.world import VOCABULARY
from mglmm_data.sample import Conversation, Grounding, Region, Sample, Turn

SIZE = (8, 8)


def box(x: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:4, x : x + 4] = True
    return mask


def item() -> Item:
    turn = Turn("assistant", "the red dog", phrases=(Grounding(0, 11, (0,)),))
    sample = Sample(
        np.zeros((*SIZE, 3), np.uint8),
        (Region.of_mask(box(0), "red dog"),),
        (Conversation((Turn("user", "Segment the dog."), turn)),),
        id="one",
    )
    return Item(sample, sample.conversations[0])


def answer(*said: tuple[str, int, float]) -> Answer:
    text = ", ".join(words for words, _, _ in said)
    phrases, at = [], 0
    for words, x, score in said:
        phrases.append(Phrase(words, (at, at + len(words)), (Instance(box(x), None, score),)))
        at += len(words) + 2
    return Answer(text, tuple(phrases), np.zeros((*SIZE, 3), np.uint8), score_kind="probability")


def test_right_is_the_mask_with_its_noun_and_only_once():
    said = answer(("the red dog", 0, 0.9), ("the blue dog", 0, 0.8), ("the cat", 0, 0.7), ("the dog", 4, 0.6))
    verdicts = judged(item(), said, VOCABULARY)
    assert [score for score, _ in verdicts] == [0.9, 0.8, 0.7, 0.6]
    assert sum(right for _, right in verdicts) == 1 and not verdicts[2][1] and not verdicts[3][1]


def test_scores_of_another_kind_are_not_judged():
    other = replace(answer(("the red dog", 0, 0.9)), score_kind="mask_x_text")
    assert judged(item(), other, VOCABULARY) == []


def test_expected_error_by_hand():
    metric = Calibration(VOCABULARY)
    metric.update(item(), answer(("the dog", 0, 0.95)))  # right: the bin misses by 0.05
    metric.update(item(), answer(("the cat", 0, 0.25)))  # wrong: misses by 0.25
    metric.update(item(), answer(("the dog", 0, 1.0)))  # right, in the last bin: (0.05 + 0) / 2 there
    numbers = metric.compute()
    assert numbers["ECE"] == pytest.approx((0.05 + 0.25) / 3)
    assert numbers["accuracy"] == pytest.approx(2 / 3) and numbers["confidence"] == pytest.approx(2.2 / 3)
    assert numbers["share/0.9"] == pytest.approx(2 / 3) and numbers["accuracy/0.2"] == 0
    assert np.isnan(numbers["accuracy/0.5"])
