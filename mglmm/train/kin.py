"""What a thing is among its kind, told to image tokens in training: small or large, of how many, which from the left.

Nearly all wrong phrases of the bundled model were wrong in "small" and "large" alone, words that compare a thing with
all others of its category. The layers between the encoder and the language model (`mglmm.detail.ImageLayers`) learn the
comparison from this loss, alone in a stage of kind `kin` and beside the words after it. World scenes only.

I images, N = n * n tokens, g = 2 n cells along a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mglmm.model import Mglmm
from mglmm.train.pretrain import first_scene
from mglmm_data.sample import Sample
from mglmm_data.world.scene import make_scene
from mglmm_data.world.vocabulary import CATEGORIES, SIZE_WORDS, Described, described
from sam_bridge.small import PATCH, SmallBridge

SIZES = ("", *SIZE_WORDS)
MOST = 8
"""Things of a kind that are told apart by number; more count as so many."""
ASKED = {"size": len(SIZES), "count": MOST, "place": MOST}
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


@dataclass(frozen=True)
class Known:
    """A thing as far as it is known: which pixels of the picture it covers, and what it is called."""

    mask: np.ndarray  # bool[H, W]
    size: str  # one of SIZES
    kind: str
    number: int  # tells it from the others of the picture


def targets(things: Sequence[Known], whole: bool, side: int) -> np.ndarray:
    """int64[side, side, 4]: size word, number of its kind, place from the left, `Known.number` of each cell's thing.

    Args:
        things: from left to right.
        whole: whether these are all things of the picture; else number and place are UNKNOWN.
        side: cells along a side; what covers the middle of a cell counts.
    """
    out = np.full((side, side, len(ASKED) + 1), UNKNOWN, np.int64)
    kinds = [thing.kind for thing in things]
    for index, thing in enumerate(things):
        rows, columns = (((np.arange(side) + 0.5) * length / side).astype(int) for length in thing.mask.shape)
        inside = thing.mask[np.ix_(rows, columns)]
        out[inside, 0], out[inside, -1] = SIZES.index(thing.size), thing.number
        if whole:
            out[inside, 1:-1] = min(kinds.count(thing.kind), MOST) - 1, min(kinds[:index].count(thing.kind), MOST - 1)
    return out


def kin_of(samples: Sequence[Sample], side: int) -> Tensor:
    """Targets int64[I, side, side, 4] as far as conversations tell them; see `targets`.

    Number and place are known where a panoptic answer speaks of everything.

    Raises:
        ValueError: a region's label is not of the world.
    """
    out = []
    for sample in samples:
        whole = any(conversation.task == "panoptic" for conversation in sample.conversations)
        out.append(targets(things_of(sample), whole, side))
    return torch.from_numpy(np.stack(out))


def things_of(sample: Sample) -> list[Known]:
    """The whole things of a world sample that its answers speak of or its questions name, from left to right.

    Raises:
        ValueError: a region's label is not of the world.
    """
    out = []
    for index, region in enumerate(sample.regions):
        if not region.label:  # asked about, not spoken of
            continue
        label = world_label(region.label, sample.id, "kin")
        if label.noun in CATEGORIES and not label.part and region.bounds is not None:
            middle = (region.bounds[0] + region.bounds[2]) / 2
            out.append((middle, Known(region.mask, label.size, label.noun, index)))
    return [thing for _, thing in sorted(out, key=lambda each: each[0])]


def world_label(label: str, where: str, loss: str) -> Described:
    """A region's label taken apart, for a loss that is of the world alone."""
    try:
        return described(label)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; set losses.{loss}: 0 for other data") from None


@dataclass(frozen=True, eq=False)
class KinBatch:
    """One step of a kin stage."""

    pixels: Tensor  # uint8[I, 3, S, S]
    target: Tensor  # int64[I, g, g, 4]

    def to(self, device: torch.device) -> KinBatch:
        return KinBatch(self.pixels.to(device), self.target.to(device))


@dataclass(frozen=True)
class KinData:
    """step -> `KinBatch` of world scenes, whose things are all known; deterministic by seed."""

    seed: int
    batch_size: int
    side: int  # S, px

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> KinBatch:
        first = (step * world_size + rank) * self.batch_size
        pixels, target = [], []
        for index in range(first, first + self.batch_size):
            scene = make_scene(first_scene(self.seed) + index, self.side, held_out="avoid")
            things = [Known(scene.thing_mask(k), t.size, t.category, k) for k, t in enumerate(scene.things)]
            pixels.append(scene.image.transpose(2, 0, 1))
            target.append(targets(things, True, self.side // PATCH * 2))
        return KinBatch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(target)))


class KinTraining(nn.Module):
    """Image tokens and the head alone; the language model stays out of it, so a step sees ten times the pictures."""

    def __init__(self, model: Mglmm, kin: KinHead):
        super().__init__()
        self.model, self.kin = model, kin

    def forward(self, batch: KinBatch) -> dict[str, Tensor]:
        bridge = cast(SmallBridge, self.model.bridge)
        logits = self.kin(self.model.encode_image(bridge.normalise(batch.pixels)).tokens)
        return {"kin": kin_loss(logits, batch.target), "watch_size": kin_right(logits, batch.target)}


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
    """Share of cells whose size word is right, where it is known; 0 where none is."""
    known = target[..., 0] != UNKNOWN
    right = known & (logits[..., : len(SIZES)].argmax(-1) == target[..., 0])
    return right.sum() / known.sum().clamp_min(1)
