"""Semantic IoU over named parts (the car parts), and what the mean of the training masks scores.

Protocol: per part, the masks of all phrases that name it are joined by logical or; intersections and unions are summed
over the set; mIoU is the mean over the parts that occur. A part that is absent from an answer leaves its gold in the
union, one that is wrongly there adds its pixels. Parts are judged one by one: overlapping masks are not arbitrated.
Pixels without ground truth and crowds count neither way, for mean masks as for models (`protocol.void_of`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from mglmm.answer import Answer
from mglmm.eval.metric import Metric, Totals, ratio
from mglmm.eval.protocol import Item, Predict, answered, check_size, void_of
from mglmm.eval.report import Report, Row, rows_of, versions
from mglmm.eval.text import words
from mglmm_data.masks import Size
from mglmm_data.sample import Conversation, Sample

GRID = 128
"""Side of the square on which mean masks are averaged, cells."""
ASKED = ("fine", "panoptic")
"""Tasks whose answers name and ground every part, or every class."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


class PartsIou(Metric):
    """mIoU and `IoU/<part>`; `names` are the parts, as `back_left_door` or `back left door`."""

    protocol = "parts/summed"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(" ".join(words(name)) for name in names)
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"part names must be given, each once; got {list(names)}")
        self.columns = tuple(f"{column}/{name}" for name in self.names for column in ("intersection", "union"))

    def measure(self, item: Item, answer: Answer) -> dict[str, float]:
        size, predicted = item.sample.size, {}
        for phrase in answer.phrases:
            name = self.name_of(phrase.text)
            for instance in phrase.instances:
                if name and instance.mask is not None:
                    mask = check_size(instance.mask, size)
                    predicted[name] = predicted[name] | mask if name in predicted else mask
        return self.counts_outside(item.void, predicted, self.gold(item.sample))

    def counts_outside(
        self, void: np.ndarray | None, predicted: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """`counts` of what lies outside of `void`, bool[H, W]; None where there is no such place."""
        if void is not None:
            predicted = {name: mask & ~void for name, mask in predicted.items()}
            gold = {name: mask & ~void for name, mask in gold.items()}
        return self.counts(predicted, gold)

    def counts(self, predicted: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Counts of one image; both map part names to `bool[H, W]`, a part that is absent is left out."""
        out = {}
        for name in predicted.keys() | gold.keys():
            sides = [masks[name] for masks in (predicted, gold) if name in masks]
            out[f"union/{name}"] = float(np.logical_or.reduce(sides).sum())
            out[f"intersection/{name}"] = float((sides[0] & sides[1]).sum()) if len(sides) == 2 else 0.0
        return out

    def gold(self, sample: Sample) -> dict[str, np.ndarray]:
        """Part name to the union of the sample's masks that carry it as their label, `bool[H, W]`.

        Boxes and points with a label are what a question points with, and crowds are no targets.
        """
        out: dict[str, np.ndarray] = {}
        aside = {*sample.meta.get("crowd_regions", ()), *sample.meta.get("ignore_regions", ())}
        for number, region in enumerate(sample.regions):
            name = self.name_of(region.label)
            if name and region.kind == "mask" and number not in aside:
                out[name] = out[name] | region.mask if name in out else region.mask
        return out

    def name_of(self, phrase: str) -> str:
        """The part a phrase names: the name that stands first, the longest there; of several in a row the last ("orange
        chair" is a chair). "two wheels" are a wheel; "" when no name is there.
        """
        said = words(phrase)
        plain = [word.removesuffix("s") for word in said]
        found: dict[int, str] = {}  # where a name begins -> the longest that does
        for name in sorted(self.names, key=len):
            parts = name.split()
            for start in range(len(said)):
                end = start + len(parts)
                if said[start:end] == parts or plain[start:end] == [part.removesuffix("s") for part in parts]:
                    found[start] = name
        start = min(found, default=-1)
        while (after := start + len(found.get(start, "").split())) in found and after != start:
            start = after
        return found.get(start, "")

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        each = {name: ratio(totals[f"intersection/{name}"], totals[f"union/{name}"]) for name in self.names}
        stacked = np.stack(list(each.values()))
        there = np.isfinite(stacked)
        mean = ratio(np.where(there, stacked, 0).sum(0), there.sum(0))
        return {"mIoU": mean, **{f"IoU/{name}": value for name, value in each.items()}}


@dataclass(frozen=True, eq=False)
class MeanMasks:
    """Where a part lies in the training images that have it, and the threshold that makes the best mask of it.

    Thresholds are per part: each maximises that part's own summed IoU over those training images.
    """

    means: Mapping[
        str, np.ndarray
    ]  # name -> float[GRID, GRID], share of the images, 0..1; parts never seen are left out
    thresholds: Mapping[str, float]

    def masks(self, size: Size) -> dict[str, np.ndarray]:
        """The same masks for every image of `size` (H, W) px."""
        height, width = size
        return {
            name: cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR) > self.thresholds[name]
            for name, mean in self.means.items()
        }


def fit_mean_masks(samples: Iterable[Sample], names: Sequence[str]) -> MeanMasks:
    """Average the masks of the training images on a common grid; there, what is unknown counts as not of the part.

    Raises:
        ValueError: there is no sample.
    """
    metric = PartsIou(names)
    sums: dict[str, np.ndarray] = {}
    num_images: Counter[str] = Counter()
    for sample in samples:
        for name, mask in metric.gold(sample).items():
            small = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
            sums[name] = sums[name] + small if name in sums else small
            num_images[name] += 1
    if not sums:
        raise ValueError("a mean-mask baseline needs a training sample with a named part; the training set has none")
    means = {name: total / num_images[name] for name, total in sums.items()}
    return MeanMasks(means, {name: max(THRESHOLDS, key=partial(_summed_iou, mean)) for name, mean in means.items()})


def _summed_iou(mean: np.ndarray, threshold: float) -> float:
    """IoU over the training images of predicting `mean > threshold`; the sums follow from the mean alone."""
    chosen = mean > threshold
    intersection = float(mean[chosen].sum())
    return intersection / max(float(chosen.sum() + mean.sum()) - intersection, 1e-9)


def mean_mask_baseline(
    train: Iterable[Sample], val: Iterable[Sample], names: Sequence[str], *, told_presence: bool = True
) -> PartsIou:
    """Predict the training set's mean masks on the validation images: where parts usually are, and no more.

    With `told_presence` a mask is drawn only for the parts that the image has, which a model has to find out by itself:
    the harder bar (0.20 mIoU on Car Parts, where drawing every part everywhere scores 0.08).
    """
    fitted, metric = fit_mean_masks(train, names), PartsIou(names)
    for sample in val:
        gold, predicted = metric.gold(sample), fitted.masks(sample.size)
        kept = {name: mask for name, mask in predicted.items() if name in gold or not told_presence}
        metric.append(metric.counts_outside(void_of(sample), kept, gold))
    return metric


def score_parts(predict: Predict, samples: Iterable[Sample], names: Sequence[str], *, batch_size: int = 8) -> PartsIou:
    """Ask for the parts or classes of every sample (its `fine` or `panoptic` conversation) and score the answers.

    Raises:
        ValueError: a sample has no such conversation.
    """
    metric = PartsIou(names)
    items = (Item(sample, naming(sample)) for sample in samples)
    for item, answer in answered(predict, items, batch_size):
        metric.update(item, answer)
    return metric


def naming(sample: Sample) -> Conversation:
    """The conversation whose answer names and grounds everything."""
    for conversation in sample.conversations:
        if conversation.task in ASKED:
            return conversation
    found = [conversation.task for conversation in sample.conversations]
    raise ValueError(
        f"{sample.id}: no conversation asks for parts or classes (tasks {found}); give the source "
        "`tasks: {fine: 1}` (parts of an object) or `tasks: {panoptic: 1}`"
    )


def parts_report(
    scored: PartsIou,
    beside: Mapping[str, PartsIou],
    *,
    title: str = "Parts, validation images",
    meta: Mapping[str, object] | None = None,
) -> Report:
    """mIoU with its interval, then every part, each beside other systems: `{"mean mask": ..., "random start": ...}`."""
    rows: list[Row] = rows_of(
        scored, "parts", beside=beside, headline=("mIoU", *(f"IoU/{name}" for name in scored.names))
    )
    return Report(title, tuple(rows), meta={"versions": versions(), "images": len(scored), **(meta or {})})
