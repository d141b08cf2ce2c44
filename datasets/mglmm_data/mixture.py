"""Which sample comes at which step: a pure function of (seed, step), so that resuming needs no state.

Sources are mixed in blocks of `BLOCK` draws that hold each source in proportion to its weight, in an order of their
own; so the number of earlier draws from a source is known in closed form. A source's draws run through permutations of
its indices, one an epoch. The permutation is a keyed Feistel network (format-preserving encryption by cycle walking,
Black & Rogaway 2002): it costs the same for 40 photographs and for ten million worlds, and depends on no library's
random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from mglmm_data.registry import Source
from mglmm_data.sample import Sample
from mglmm_data.telling import near

BLOCK = 1000
"""Draws in a block; weights are kept to one part in this many."""
ROUNDS = 4


def permute(position: int, length: int, key: str) -> int:
    """The element at `position` of a permutation of `range(length)` that `key` chooses."""
    bits = max(1, ((length - 1).bit_length() + 1) // 2)
    low = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & low
        for turn in range(ROUNDS):
            digest = hashlib.blake2b(f"{key}:{turn}:{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & low)
        position = left << bits | right
        if position < length:
            return position


class Mixture:
    """Several sources as one endless, resumable sequence.

    Args:
        sources: name -> source.
        weights: name -> share of the draws, > 0; they need not sum to 1.
        seed: of the order; the samples' own randomness is the sources'.
        rank, world_size: of this process; ranks share one sequence and take turns, so none repeats another's draw.

    Raises:
        ValueError: names differ, a weight is not positive, a source is empty, or the rank is not below the world size.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of world_size {world_size}; ranks are counted from 0")
        for name in [*weights, *sources]:
            if name not in sources:
                raise ValueError(f"weight for {name!r}, which is not a source{near(name, sources)}")
            if not weights.get(name, 0) > 0:
                raise ValueError(
                    f"source {name!r} has weight {weights.get(name)}; give one above 0 or take the source out"
                )
            if len(sources[name]) < 1:
                raise ValueError(f"source {name!r} is empty; take it out")
        self.sources, self.seed, self.rank, self.world_size = dict(sources), seed, rank, world_size
        self._names = list(sources)
        self._counts = _shares([weights[name] for name in self._names])
        self._block = lru_cache(maxsize=4)(self._order)

    def at(self, step: int) -> tuple[str, int, int]:
        """(source name, index, epoch) of this rank's draw number `step`, counted from 0."""
        if step < 0:
            raise ValueError(f"step is {step}; steps are counted from 0")
        block, place = divmod(step * self.world_size + self.rank, BLOCK)
        which, earlier = (int(values[place]) for values in self._block(block))
        name = self._names[which]
        length = len(self.sources[name])
        epoch, position = divmod(block * self._counts[which] + earlier, length)
        return name, permute(position, length, f"{self.seed}:{name}:{epoch}"), epoch

    def sample(self, step: int) -> Sample:
        """The sample of this rank's draw number `step`."""
        name, index, epoch = self.at(step)
        return self.sources[name].sample(index, epoch)

    def _order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block, int64[BLOCK]: which source, and how many of it came before in the block."""
        which = np.repeat(np.arange(len(self._counts)), self._counts)
        if len(self._counts) > 1:
            which = which[[permute(place, BLOCK, f"{self.seed}:block:{block}") for place in range(BLOCK)]]
        earlier = np.zeros(BLOCK, np.int64)
        for source, count in enumerate(self._counts):
            earlier[which == source] = np.arange(count)
        return which, earlier


def _shares(weights: list[float]) -> list[int]:
    """Draws of each source in a block: by largest remainder, at least one each."""
    total = sum(weights)
    exact = [BLOCK * weight / total for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    order = sorted(range(len(exact)), key=lambda index: int(exact[index]) - exact[index])
    for index in order[: max(0, BLOCK - sum(counts))]:
        counts[index] += 1
    while sum(counts) > BLOCK:
        counts[counts.index(max(counts))] -= 1
    return counts
