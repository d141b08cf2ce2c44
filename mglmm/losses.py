"""Losses of the family: token cross-entropy, and BCE + Dice on masks, with the published constants.

Source: LISA `model/LISA.py` and MGLMM (identical constants): loss = 1.0 CE + 2.0 BCE + 0.5 Dice; CE is the mean over
the labelled tokens of the batch, BCE the pixel mean of each mask, Dice uses scale 1000 and eps 1e-6; mask losses are
averaged over all masks of the batch.
"""

from __future__ import annotations

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
