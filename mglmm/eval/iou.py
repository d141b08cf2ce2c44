"""Segmentation and boxes by expression: cIoU, gIoU, precision, no-target accuracy; box accuracy.

Protocols (all score free-running answers here; several masks of an answer are joined by logical or):
  rela   gRefCOCO's own `refer_evaluation.py` (henghuiding/ReLA): a rejected target scores 0, its intersection too.
  gsva   as rela, but a rejected target is still scored with its mask (`solver.eval_gres`).
  lisa   `train_ds.validate`: ignore pixels left out, 1e-5 in the denominator of an expression, union 0 counts as 1, and
         there is no rejection, only an empty mask. MGLMM's evaluator is the same with ignore pixels as background.
ReasonSeg's numbers are those of `lisa`: in all others what it ignores is background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from mglmm.answer import Answer
from mglmm.eval.metric import Metric, Totals, ratio
from mglmm.eval.protocol import Item, check_size, predicted_mask
from mglmm_data.sample import Box

THRESHOLDS = (0.5, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class RefSegProtocol:
    """What the published evaluators of referring segmentation differ in."""

    name: str
    rejection: Literal["flag", "empty_mask"] = "flag"  # who says "no target": the answer, or a mask without a pixel
    rejected_target: Literal["zero", "its_mask"] = "zero"  # how a target is scored that was rejected
    scores_rejection: bool = True  # False: a no-target expression is judged by its mask alone
    ignored: Literal["background", "left_out"] = "background"
    iou_epsilon: float = 0.0


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        RefSegProtocol("rela"),
        RefSegProtocol("rela-empty-mask", rejection="empty_mask"),
        RefSegProtocol("gsva", rejected_target="its_mask"),
        RefSegProtocol("lisa", "empty_mask", "its_mask", scores_rejection=False, ignored="left_out", iou_epsilon=1e-5),
        RefSegProtocol("mglmm", "empty_mask", "its_mask", scores_rejection=False, iou_epsilon=1e-5),
    )
}


class RefSeg(Metric):
    """cIoU, gIoU, Pr@t (over expressions with a target), N_acc, T_acc and false_rejection (1 - T_acc), all 0..1.

    Raises:
        ValueError: the protocol is unknown.
    """

    columns = (
        "count", "intersection", "union", "iou", "targets", "absent", "rejected_absent", "kept_targets",
        *(f"over_{t}" for t in THRESHOLDS),
    )  # fmt: skip

    def __init__(self, protocol: str = "rela") -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"referring protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
        self._rules = PROTOCOLS[protocol]
        self.protocol = f"refseg/{protocol}"

    def measure(self, item: Item, answer: Answer) -> dict[str, float]:
        rejected = not answer.truncated and not any(phrase.instances for phrase in answer.phrases)
        predicted = predicted_mask(answer, item.sample.size)
        return self.counts(predicted, item.mask, rejected=rejected, ignored=item.ignored)

    def counts(
        self, predicted: np.ndarray, gold: np.ndarray, *, rejected: bool, ignored: np.ndarray | None = None
    ) -> dict[str, float]:
        """Counts of one expression.

        Args:
            predicted: bool[H, W].
            gold: bool[H, W]; empty means no target.
            rejected: the answer says that there is no target; one that was cut before it came to a mask does not.
            ignored: bool[H, W] pixels without ground truth.

        Raises:
            ValueError: the masks differ in size.
        """
        check_size(predicted, gold.shape)
        if ignored is not None:
            keep = ~ignored
            gold = gold & keep
            predicted = predicted & keep if self._rules.ignored == "left_out" else predicted
        rejected = rejected if self._rules.rejection == "flag" else not predicted.any()
        intersection, union = float((predicted & gold).sum()), float((predicted | gold).sum())
        if gold.any():
            if rejected and self._rules.rejected_target == "zero":
                intersection = 0.0
            iou = intersection / (union + self._rules.iou_epsilon)
            over = {f"over_{threshold}": float(iou >= threshold) for threshold in THRESHOLDS}
            verdict = {"targets": 1.0, "kept_targets": float(not rejected), **over}
        else:
            iou = float(rejected if self._rules.scores_rejection else union == 0)
            union = 0.0 if rejected and self._rules.scores_rejection else union
            verdict = {"absent": 1.0, "rejected_absent": float(rejected)}
        return {"count": 1.0, "intersection": intersection, "union": union, "iou": iou, **verdict}

    counted = {"N_acc": "absent", **dict.fromkeys(("T_acc", "false_rejection"), "targets")} | {
        f"Pr@{threshold}": "targets" for threshold in THRESHOLDS
    }

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        kept = ratio(totals["kept_targets"], totals["targets"])
        return {
            "cIoU": ratio(totals["intersection"], totals["union"]),
            "gIoU": ratio(totals["iou"], totals["count"]),
            **{f"Pr@{threshold}": ratio(totals[f"over_{threshold}"], totals["targets"]) for threshold in THRESHOLDS},
            "N_acc": ratio(totals["rejected_absent"], totals["absent"]),
            "T_acc": kept,
            "false_rejection": 1 - kept,
        }


class BoxAccuracy(Metric):
    """Share of gold boxes that a predicted box covers with IoU >= threshold, one-to-one.

    Only as many boxes are read, from the front, as the gold has: naming more does not help. An absent box is wrong, and
    the bounds of a mask are no box that was said.
    """

    columns = ("gold", "right", "iou")

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self._threshold = threshold
        self.protocol = f"box/first-k/{threshold}"

    def measure(self, item: Item, answer: Answer) -> dict[str, float]:
        used = dict.fromkeys(region for phrase in item.phrases for region in phrase.regions)
        gold = [bounds for region in used if (bounds := item.sample.regions[region].bounds) is not None]
        said = [instance for phrase in answer.phrases for instance in phrase.instances if instance.mask is None]
        boxes = [instance.box for instance in said if instance.box is not None]
        overlaps = box_iou(boxes[: len(gold)], gold)
        pairs = match(overlaps, self._threshold)
        right = sum(overlaps[p, g] >= self._threshold for p, g in pairs)
        return {"gold": len(gold), "right": float(right), "iou": float(sum(overlaps[p, g] for p, g in pairs))}

    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        return {
            f"accuracy@{self._threshold}": ratio(totals["right"], totals["gold"]),
            "mean_iou": ratio(totals["iou"], totals["gold"]),
        }


def counted(masks: list[np.ndarray], overlaps: np.ndarray, void: np.ndarray | None, threshold: float) -> list[int]:
    """Indices of the predicted masks that count: all but those that are no gold region and lie, for more than half of
    their pixels, where there is no ground truth (as panopticapi leaves segments on void and crowds out).

    Args:
        masks: bool[H, W] each.
        overlaps: float[P, G], their IoU with the gold.
        void: bool[H, W], see `Item.void`.
    """
    if void is None:
        return list(range(len(masks)))
    found = overlaps.max(1, initial=0.0) >= threshold
    return [i for i, mask in enumerate(masks) if found[i] or 2 * (mask & void).sum() <= mask.sum()]


def mask_iou(predicted: list[np.ndarray], gold: list[np.ndarray]) -> np.ndarray:
    """IoU of every pair of `bool[H, W]` masks, `float[P, G]`; a pair of empty masks has 0."""
    if not predicted or not gold:
        return np.zeros((len(predicted), len(gold)))
    rows = np.stack([mask.reshape(-1) for mask in predicted]).astype(np.float32)
    columns = np.stack([mask.reshape(-1) for mask in gold]).astype(np.float32)
    intersection = (rows @ columns.T).astype(float)
    union = rows.sum(1)[:, None] + columns.sum(1)[None] - intersection
    return intersection / np.maximum(union, 1)


def box_iou(predicted: list[Box], gold: list[Box]) -> np.ndarray:
    """IoU of every pair of boxes x1, y1, x2, y2 (px, x2 and y2 exclusive), `float[P, G]`."""
    p, g = np.reshape(np.asarray(predicted, float), (-1, 1, 4)), np.reshape(np.asarray(gold, float), (1, -1, 4))
    overlap = np.clip(np.minimum(p[..., 2:], g[..., 2:]) - np.maximum(p[..., :2], g[..., :2]), 0, None).prod(-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1) for boxes in (p, g)]
    return ratio(overlap, np.maximum(areas[0] + areas[1] - overlap, 1e-9))


def match(overlaps: np.ndarray, threshold: float = 0.5, allowed: np.ndarray | None = None) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of `float[P, G]`: as many at or above the threshold as can be, then most overlap.

    Pairs without overlap, and pairs that `allowed` (bool[P, G]) excludes, are left out.
    """
    usable = overlaps > 0 if allowed is None else (overlaps > 0) & allowed
    gain = np.where(usable, overlaps + (overlaps >= threshold) * (1 + min(overlaps.shape)), 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if usable[row, column]]
