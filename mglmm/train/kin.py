"""What a thing is among its kind, told to image tokens in training: small or large, of how many, which from the left.

Nearly all wrong phrases of the bundled model were wrong in "small" and "large" alone, words that compare a thing with
all others of its category. The layers between the encoder and the language model (`mglmm.detail.ImageLayers`) learn the
comparison from this loss in thousands of steps; from words alone they hear of it once a phrase. World scenes only.

I images, N = n * n tokens, g = 2 n cells along a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mglmm_data.sample import Sample
from mglmm_data.world.vocabulary import CATEGORIES, STUFF

SIZE_WORDS = ("", "small", "large")
MOST = 8
"""Things of a kind that are told apart by number; more count as so many."""
ASKED = {"size": len(SIZE_WORDS), "count": MOST, "place": MOST}
"""What is asked of each cell, in the order of the last axis of the targets, and among how many answers."""
UNKNOWN = -1


class KinHead(nn.Module):
    """Image tokens float[I, N, D] to logits float[I, g, g, sum of ASKED]; never shipped."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, 4 * sum(ASKED.values()))

    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        return rearrange(self.out(self.norm(tokens)), "i (h w) (a b c) -> i (h a) (w b) c", h=side, a=2, b=2)


def kin_of(samples: Sequence[Sample], side: int) -> Tensor:
    """Targets int64[I, side, side, 4]: size word, number of its kind, place from the left, region of each cell's thing.

    UNKNOWN on stuff, on things that no answer speaks of, and, for number and place, where a picture's things are
    not all spoken of (no panoptic answer). World regions stand from left to right within such an answer.

    Raises:
        ValueError: a region's label is not of the world.
    """
    out = np.full((len(samples), side, side, len(ASKED) + 1), UNKNOWN, np.int64)
    for target, sample in zip(out, samples, strict=True):
        things = things_of(sample)
        whole = any(conversation.task == "panoptic" for conversation in sample.conversations)
        rows, columns = (((np.arange(side) + 0.5) * length / side).astype(int) for length in sample.size)
        for index, (size, kind, at) in things.items():
            twins = sorted(other_at for _, other, other_at in things.values() if other == kind)
            inside = sample.regions[index].mask[np.ix_(rows, columns)]
            target[inside, 0], target[inside, -1] = SIZE_WORDS.index(size), index
            if whole:
                target[inside, 1:-1] = min(len(twins), MOST) - 1, min(twins.index(at), MOST - 1)
    return torch.from_numpy(out)


def things_of(sample: Sample) -> dict[int, tuple[str, str, float]]:
    """Region -> (size word, category, centre of its box from the left, px) of whole things of a world sample."""
    out = {}
    for index, region in enumerate(sample.regions):
        words = region.label.split()
        if words and words[-1] not in (*CATEGORIES, *STUFF):
            raise ValueError(f"region label {region.label!r} of {sample.id} is not of the world; set kin: 0")
        if words and words[-1] in CATEGORIES and "of" not in words and region.bounds is not None:
            size = words[0] if words[0] in SIZE_WORDS else ""
            out[index] = size, words[-1], (region.bounds[0] + region.bounds[2]) / 2
    return out


def kin_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over what is asked; every thing weighs alike, however many cells it has.

    Args:
        logits: float[I, g, g, sum of ASKED].
        target: int64[I, g, g, 4], see `kin_of`.
    """
    *answers, thing = target.unbind(-1)
    image = torch.arange(len(thing), device=thing.device)[:, None, None]
    _, number, cells = torch.unique(image * (thing.max() + 2) + thing, return_inverse=True, return_counts=True)
    weights, total = 1 / cells[number], logits.sum() * 0
    for own, wanted in zip(logits.float().split(list(ASKED.values()), -1), answers, strict=True):
        known = wanted != UNKNOWN
        if known.any():
            losses = F.cross_entropy(own[known], wanted[known], reduction="none")
            total = total + (losses * weights[known]).sum() / weights[known].sum()
    return total / len(ASKED)


@torch.no_grad()
def kin_right(logits: Tensor, target: Tensor) -> Tensor:
    """Share of cells whose size word is right, where it is known; NaN without one."""
    known = target[..., 0] != UNKNOWN
    return (logits[..., : len(SIZE_WORDS)].argmax(-1) == target[..., 0])[known].float().mean()
