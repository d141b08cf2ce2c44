"""Grounded captions (panoptic and fine-grained SegCap): which regions were found, named, invented, missed, repeated.

Protocol: predicted instances and gold regions are matched one-to-one (as many pairs with IoU >= 0.5 as can be, then the
largest sum), once by mask alone and once among pairs whose head nouns agree. PQ is pooled over segments, not averaged
over classes; all masks count, overlapping or not. A region that the gold names twice counts once; of GCG's evaluation
pair every label counts, as `evaluate.py` of groundingLMM has it, also one that the gold's text does not say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mglmm.answer import Answer
from mglmm.eval.iou import counted, mask_iou, match
from mglmm.eval.metric import Metric, Totals, ratio
from mglmm.eval.protocol import Item, check_size
from mglmm.eval.text import Vocabulary, normalise

SIZES = {"small": 0.01, "medium": 0.05, "large": float("inf")}
"""Upper bound of a region's share of the image's pixels."""

WRONG = ("wrong_noun", "wrong_color", "wrong_size")
"""What may be wrong in the words for a region that was found."""

_BY_GROUP = (
    *("gold", "found", "iou", "pq_iou", "named", "named_iou", "predicted", "unmatched", "invented", "repeated"),
    *WRONG,
    *(f"{name}_of" for name in WRONG),
)
_BY_SIZE = ("gold", "found", "iou")


class Grounding(Metric):
    """Numbers over all regions, over each group (`recall@0.5/thing`), and by size (`mean_iou/small`), all 0..1:

    recall@0.5        gold regions found
    recall_noun@0.5   found by an instance whose phrase has the right head noun
    mean_iou          over gold regions, a missed one with the overlap it has with its partner, or 0
    PQ, SQ, PQ_noun   pooled panoptic quality by mask alone, mean IoU of what was found, and PQ with the right noun
    invented          share of predicted masks that overlap no gold region with IoU >= 0.5
    repeated          share of predicted masks whose region another instance has taken
    missed            share of gold regions not found; 1 - recall
    wrong_noun, wrong_color, wrong_size
                      share of the found gold regions whose words differ from the gold's in that, among those where
                      one of the two has such a word
    phrase_F1         multiset of exact phrase texts, with or without masks; phrase_precision and phrase_recall beside

    What lies for more than half of it on crowds or ignored pixels, and is no gold region, counts neither way. A phrase
    without a known noun has its last word for one. A predicted mask belongs to the group of its head noun, one with no
    known noun to the first group.
    """

    def __init__(
        self, vocabulary: Vocabulary, groups: Sequence[str] = ("thing", "stuff"), threshold: float = 0.5
    ) -> None:
        super().__init__()
        self._vocabulary, self._groups, self._threshold = vocabulary, tuple(groups), threshold
        self.protocol = f"grounding/one-to-one/{threshold}"
        self.columns = (
            *(f"{column}/{group}" for group in self._groups for column in _BY_GROUP),
            *(f"{column}/{size}" for size in SIZES for column in _BY_SIZE),
            "phrases_gold",
            "phrases_predicted",
            "phrases_right",
            "images",
        )

    def measure(self, item: Item, answer: Answer) -> Mapping[str, float]:
        counts: Counter[str] = Counter({"images": 1})
        self._count_phrases(counts, item, answer)
        gold, gold_words = self._gold(item)
        gold_nouns = [said[0] for said in gold_words]
        size = item.sample.size
        masks, said_words = [], []
        for phrase in answer.phrases:
            for instance in phrase.instances:
                masks.append(np.zeros(size, bool) if instance.mask is None else check_size(instance.mask, size))
                said_words.append(self._words(phrase.text))
        overlaps = mask_iou(masks, gold)
        if (kept := counted(masks, overlaps, item.void, self._threshold)) != list(range(len(masks))):
            masks, said_words, overlaps = [masks[i] for i in kept], [said_words[i] for i in kept], overlaps[kept]
        nouns = [said[0] for said in said_words]
        pairs = match(overlaps, self._threshold)
        found = [(p, g) for p, g in pairs if overlaps[p, g] >= self._threshold]
        same = np.array([[p == g != "" for g in gold_nouns] for p in nouns])
        self._count_gold(counts, gold, gold_nouns, overlaps, pairs, same)
        self._count_predicted(counts, nouns, overlaps, {p for p, _ in found})
        for p, g in found:
            for name, one, other in zip(WRONG, said_words[p], gold_words[g], strict=True):
                counts[f"{name}/{self._group(gold_nouns[g])}"] += one != other
                counts[f"{name}_of/{self._group(gold_nouns[g])}"] += bool(one or other)
        return counts

    def _gold(self, item: Item) -> tuple[list[np.ndarray], list[tuple[str, str, str]]]:
        """Masks of the gold regions, and the words for each."""
        masks, said = [], []
        for text, region in _labels(item):
            masks.append(item.sample.regions[region].mask)
            said.append(self._words(text if text.strip() else item.sample.regions[region].label))
        return masks, said

    def _words(self, phrase: str) -> tuple[str, str, str]:
        """Head noun, colour and size word of a phrase, as in `WRONG`."""
        known = self._vocabulary
        return known.noun(phrase), known.color(phrase), known.size(phrase)

    def _group(self, noun: str) -> str:
        group = self._vocabulary.groups.get(noun, "")
        return group if group in self._groups else self._groups[0]

    def _count_phrases(self, counts: Counter[str], item: Item, answer: Answer) -> None:
        gold = Counter(normalise(phrase.text) for phrase in item.phrases)
        said = Counter(normalise(phrase.text) for phrase in answer.phrases)
        counts["phrases_gold"] += gold.total()
        counts["phrases_predicted"] += said.total()
        counts["phrases_right"] += (gold & said).total()

    def _count_gold(
        self,
        counts: Counter[str],
        gold: list[np.ndarray],
        nouns: list[str],
        overlaps: np.ndarray,
        pairs: list[tuple[int, int]],
        same: np.ndarray,
    ) -> None:
        by_mask = {g: overlaps[p, g] for p, g in pairs}
        by_noun = {
            g: overlaps[p, g] for p, g in match(overlaps, self._threshold, same.reshape(overlaps.shape).astype(bool))
        }
        for index, (mask, noun) in enumerate(zip(gold, nouns, strict=True)):
            group = self._group(noun)
            size = next(name for name, bound in SIZES.items() if mask.mean() < bound)
            iou, named_iou = by_mask.get(index, 0.0), by_noun.get(index, 0.0)
            found, named = iou >= self._threshold, named_iou >= self._threshold
            for key in (group, size):
                counts[f"gold/{key}"] += 1
                counts[f"found/{key}"] += found
                counts[f"iou/{key}"] += iou
            counts[f"pq_iou/{group}"] += iou * found
            counts[f"named/{group}"] += named
            counts[f"named_iou/{group}"] += named_iou * named

    def _count_predicted(self, counts: Counter[str], nouns: list[str], overlaps: np.ndarray, used: set[int]) -> None:
        for index, noun in enumerate(nouns):
            group = self._group(noun)
            covers = overlaps.shape[1] > 0 and overlaps[index].max() >= self._threshold
            counts[f"predicted/{group}"] += 1
            counts[f"unmatched/{group}"] += index not in used
            counts[f"invented/{group}"] += index not in used and not covers
            counts[f"repeated/{group}"] += index not in used and covers

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        whole = {column: sum((totals[f"{column}/{g}"] for g in self._groups), np.zeros(())) for column in _BY_GROUP}
        out = self._group_ratios(whole, "")
        for group in self._groups:
            out |= self._group_ratios({column: totals[f"{column}/{group}"] for column in _BY_GROUP}, f"/{group}")
        for size in SIZES:
            out[f"recall@{self._threshold}/{size}"] = ratio(totals[f"found/{size}"], totals[f"gold/{size}"])
            out[f"mean_iou/{size}"] = ratio(totals[f"iou/{size}"], totals[f"gold/{size}"])
        gold, said, right = totals["phrases_gold"], totals["phrases_predicted"], totals["phrases_right"]
        out["phrase_F1"] = ratio(2 * right, gold + said)
        out["phrase_precision"] = ratio(right, said)
        out["phrase_recall"] = ratio(right, gold)
        out["masks_per_image"] = ratio(whole["predicted"], totals["images"])
        return out

    def _group_ratios(self, sums: Totals, suffix: str) -> dict[str, np.ndarray]:
        recall = ratio(sums["found"], sums["gold"])
        missed, unnamed = sums["gold"] - sums["found"], sums["gold"] - sums["named"]
        out = {
            f"recall@{self._threshold}": recall,
            f"recall_noun@{self._threshold}": ratio(sums["named"], sums["gold"]),
            "mean_iou": ratio(sums["iou"], sums["gold"]),
            "PQ": ratio(sums["pq_iou"], sums["found"] + (sums["unmatched"] + missed) / 2),
            "SQ": ratio(sums["pq_iou"], sums["found"]),
            "PQ_noun": ratio(sums["named_iou"], sums["named"] + (sums["predicted"] - sums["named"] + unnamed) / 2),
            "invented": ratio(sums["invented"], sums["predicted"]),
            "repeated": ratio(sums["repeated"], sums["predicted"]),
            "missed": 1 - recall,
            **{name: ratio(sums[name], sums[f"{name}_of"]) for name in WRONG},
        }
        return {name + suffix: value for name, value in out.items()}


def _labels(item: Item) -> Sequence[tuple[str, int]]:
    """What is to be found, as words and region: each region of the gold once, or all of a GCG pair's own labels."""
    said: dict[int, str] = {}
    for phrase in item.phrases:
        for region in phrase.regions:
            said.setdefault(region, phrase.text)
    return item.sample.meta.get("gcg_labels", [(text, region) for region, text in said.items()])
