"""Do scores mean something: expected calibration error and the reliability of each bin.

Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equal-width bins. An instance is
right when its mask overlaps a gold region with IoU >= 0.5, one-to-one, and its phrase has that region's head noun.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mglmm.answer import Answer
from mglmm.eval.iou import counted, mask_iou, match
from mglmm.eval.metric import Metric, Totals, ratio
from mglmm.eval.protocol import Item, check_size
from mglmm.eval.text import Vocabulary

BINS = 10


class Calibration(Metric):
    """ECE, mean confidence, accuracy, and for each bin `confidence/0.7`, `accuracy/0.7`, `share/0.7` (its lower end).

    Counted are instances with a mask, of answers whose scores are probabilities (`Answer.score_kind`).
    """

    columns = tuple(f"{name}/{bin}" for name in ("count", "score", "right") for bin in range(BINS))

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self.protocol = f"calibration/{BINS} bins"

    def measure(self, item: Item, answer: Answer) -> Mapping[str, float]:
        counts: dict[str, float] = {}
        for score, right in judged(item, answer, self._vocabulary):
            place = min(int(score * BINS), BINS - 1)
            for name, value in (("count", 1.0), ("score", score), ("right", float(right))):
                counts[f"{name}/{place}"] = counts.get(f"{name}/{place}", 0.0) + value
        return counts

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        count, score, right = (
            np.stack([np.asarray(totals[f"{name}/{bin}"], float) for bin in range(BINS)])
            for name in ("count", "score", "right")
        )
        out = {
            "ECE": ratio(np.abs(score - right).sum(0), count.sum(0)),
            "confidence": ratio(score.sum(0), count.sum(0)),
            "accuracy": ratio(right.sum(0), count.sum(0)),
        }
        for place in range(BINS):
            end = f"{place / BINS:.1f}"
            out[f"confidence/{end}"] = ratio(score[place], count[place])
            out[f"accuracy/{end}"] = ratio(right[place], count[place])
            out[f"share/{end}"] = ratio(count[place], count.sum(0))
        return out


def judged(item: Item, answer: Answer, vocabulary: Vocabulary) -> list[tuple[float, bool]]:
    """(score, is it right) of every instance that counts (`iou.counted`); none where scores are no probabilities."""
    if answer.score_kind != "probability":
        return []
    said = [
        (check_size(instance.mask, item.sample.size), vocabulary.noun(phrase.text), instance.score)
        for phrase in answer.phrases
        for instance in phrase.instances
        if instance.mask is not None
    ]
    nouns: dict[int, str] = {}
    for phrase in item.phrases:
        for region in phrase.regions:
            words = phrase.text if phrase.text.strip() else item.sample.regions[region].label
            nouns.setdefault(region, vocabulary.noun(words))
    gold = [item.sample.regions[region].mask for region in nouns]
    overlaps = mask_iou([mask for mask, _, _ in said], gold)
    kept = counted([mask for mask, _, _ in said], overlaps, item.void, 0.5)
    said, overlaps = [said[i] for i in kept], overlaps[kept]
    allowed = np.array([[noun == other != "" for other in nouns.values()] for _, noun, _ in said], bool)
    pairs = match(overlaps, 0.5, allowed.reshape(overlaps.shape))
    right = {p for p, g in pairs if overlaps[p, g] >= 0.5}
    return [(score, index in right) for index, (_, _, score) in enumerate(said)]
