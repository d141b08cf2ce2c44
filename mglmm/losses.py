"""Losses of the family: token cross-entropy, and BCE + Dice on masks, with the published constants.

Source: LISA `model/LISA.py` and MGLMM (identical constants): loss = 1.0 CE + 2.0 BCE + 0.5 Dice; CE is the mean over
the labelled tokens of the batch, BCE the pixel mean of each mask, Dice uses scale 1000 and eps 1e-6; mask losses are
averaged over all masks of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SCALE = 1000.0
DICE_EPS = 1e-6


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Pixel mean of the binary cross-entropy: float[M, h, w] logits and targets (0..1) -> float[M]."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def dice_loss(logits: Tensor, target: Tensor, scale: float = DICE_SCALE, eps: float = DICE_EPS) -> Tensor:
    """1 - (2 sum(p t) / scale + eps) / (sum(p) / scale + sum(t) / scale + eps), float[M, h, w] -> float[M]."""
    inside, wanted = logits.sigmoid().flatten(1), target.flatten(1)
    shared = 2 * (inside / scale * wanted).sum(1)
    return 1 - (shared + eps) / ((inside / scale).sum(1) + (wanted / scale).sum(1) + eps)


def box_loss(boxes: Tensor, target: Tensor) -> Tensor:
    """4 * mean L1 + 0.5 * (1 - GIoU) of each pair, float[P, 4] xyxy in shares of the side -> float[P].

    GIoU (Rezatofighi et al. 2019) keeps small boxes from vanishing in the sum; the two terms as in DETR.
    """
    low, high = torch.maximum(boxes, target), torch.minimum(boxes, target)
    shared = (high[:, 2:] - low[:, :2]).clamp_min(0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1) - shared
    hull = (low[:, 2:].maximum(high[:, 2:]) - low[:, :2].minimum(high[:, :2])).prod(1)
    overlap = shared / union.clamp_min(1e-8) - (hull - union) / hull.clamp_min(1e-8)
    return 4 * (boxes - target).abs().mean(1) + 0.5 * (1 - overlap)
