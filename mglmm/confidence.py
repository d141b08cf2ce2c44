"""A score that means something: the probability that an instance is right, from what the model knew when it spoke.

"Right" is what the world's evaluation counts: the mask overlaps a region of the true answer with IoU >= 0.5,
one-to-one, and the phrase's head noun is that region's. The features are logits and log-probabilities that generation
and decoding give for free; a logistic regression over them (Platt 1999) is fitted on scenes that neither training nor
evaluation sees (`tools/calibrate.py`) and travels in the model's config.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

FEATURES = ("quality", "sure", "words", "weakest_word", "opening", "seg", "area")
"""Predicted IoU and mean probability inside the mask (as logits), log-probabilities of the phrase's words (mean and
least), of its `<p>` and of its `[SEG]`, and the log of the mask's share of the square."""

RIDGE = 1e-3
"""Weight of the squared coefficients against the mean log-loss."""


@dataclass(frozen=True)
class Spoken:
    """Log-probabilities of one instance's tokens; `words` may be empty."""

    words: tuple[float, ...]
    opening: float
    seg: float


def features(logits: Tensor, quality: float, spoken: Spoken) -> np.ndarray:
    """float64[7], in the order of `FEATURES`.

    Args:
        logits: float[q, q], mask logits over the square.
        quality: predicted IoU, 0..1.
        spoken: of the phrase and its `[SEG]`.
    """
    inside = logits > 0
    sure = float(logits[inside].sigmoid().mean()) if bool(inside.any()) else 0.5
    words = spoken.words or (0.0,)
    share = float(inside.float().mean())
    return np.array(
        [
            logit(quality),
            logit(sure),
            max(sum(words) / len(words), -10.0),
            max(min(words), -10.0),
            max(spoken.opening, -10.0),
            max(spoken.seg, -10.0),
            math.log(max(share, 1e-5)),
        ]
    )


def logit(probability: float) -> float:
    """log(p / (1 - p)), p kept within 0.005..0.995."""
    kept = min(max(probability, 0.005), 0.995)
    return math.log(kept / (1 - kept))


def confidence(values: np.ndarray, weights: Sequence[float]) -> float:
    """The probability that an instance is right.

    Args:
        values: float[7] from `features`.
        weights: one for each feature, then the bias.

    Raises:
        ValueError: another number of weights than features and a bias.
    """
    if len(weights) != len(FEATURES) + 1:
        raise ValueError(
            f"the model's confidence has {len(weights)} weights, {len(FEATURES)} features and a bias need "
            f"{len(FEATURES) + 1}; fit it again with tools/calibrate.py"
        )
    return float(torch.tensor(float(values @ np.asarray(weights[:-1]) + weights[-1])).sigmoid())


def fit(values: np.ndarray, right: np.ndarray) -> list[float]:
    """Weights and bias of the logistic regression.

    Args:
        values: float[N, F], 7 features for an instance.
        right: bool[N].

    Raises:
        ValueError: all instances are right, or all are wrong.
    """
    if right.all() or not right.any():
        raise ValueError(f"{len(right)} instances, {int(right.sum())} of them right; both kinds are needed to fit")
    mean, spread = values.mean(0), np.maximum(values.std(0), 1e-6)
    scaled = np.concatenate([(values - mean) / spread, np.ones((len(values), 1))], 1)
    sign = np.where(right, 1.0, -1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ weights)
        value = np.logaddexp(0, -margin).mean() + RIDGE * (weights[:-1] ** 2).sum()
        pull = -(sign / (1 + np.exp(margin))) @ scaled / len(scaled)
        return float(value), pull + 2 * RIDGE * np.append(weights[:-1], 0)

    found = minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B").x
    weights = found[:-1] / spread
    return [*weights.tolist(), float(found[-1] - weights @ mean)]
