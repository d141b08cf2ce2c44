"""Which sample comes at which step: a pure function of (seed, step), so that resuming needs no state.

With weights, sources are mixed in blocks of `BLOCK` draws that hold each source in proportion to its weight; with
multiplicities, in epochs that hold each source so many times whole. Either order is known in closed form, and so is the
number of earlier draws from a source. A source's draws run through permutations of its indices, one after the other.
The permutation is a keyed Feistel network (format-preserving encryption by cycle walking, Black & Rogaway 2002): it
costs the same for 40 photographs and for ten million worlds, and depends on no library's random numbers.

Shards are drawn by the same rule with another permutation (`ShardOrder`): shard by shard, shuffled in windows.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mglmm_data.reading import read_sample
from mglmm_data.sample import Sample
from mglmm_data.telling import near

if TYPE_CHECKING:
    from mglmm_data.registry import Source

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


class ShardOrder:
    """A permutation of samples that lie in shards: near each other in the order is near each other in the files.

    The shards are permuted and laid end to end, and each window of `buffer` consecutive samples is shuffled. A window
    is to disk and network what a shuffle buffer is, but a position is known in closed form.

    Args:
        lengths: samples in each shard.
        buffer: samples that are shuffled together, at least 1.
    """

    def __init__(self, lengths: Sequence[int], buffer: int) -> None:
        self.lengths, self.buffer = list(lengths), buffer
        self._ends = list(accumulate(self.lengths))
        self._line = lru_cache(maxsize=2)(self._laid)

    def __call__(self, position: int, key: str) -> int:
        """The index at a position of the order that `key` chooses."""
        window, place = divmod(position, self.buffer)
        size = min(self.buffer, self._ends[-1] - window * self.buffer)
        along = window * self.buffer + permute(place, size, f"{key}:{window}")
        order, ends = self._line(key)
        which = bisect_right(ends, along)
        return self._ends[order[which]] - ends[which] + along

    def _laid(self, key: str) -> tuple[list[int], list[int]]:
        """The shards' order, and where each ends when they are laid end to end."""
        count = len(self.lengths)
        order = [permute(place, count, f"{key}:shards") for place in range(count)]
        return order, list(accumulate(self.lengths[number] for number in order))


class Mixture:
    """Several sources as one endless, resumable sequence.

    Args:
        sources: name -> source.
        weights: name -> share of the draws, > 0; they need not sum to 1. None: as `multiplicities` say.
        multiplicities: instead of weights, name -> how often a source is seen whole in an epoch of the mixture, > 0:
            with `refcoco: 3, vqa: 0.5` an epoch holds each sample of the first three times and half of the second. With
            neither, each source once.
        temperature: T > 0; shares of the draws are raised to 1 / T, so above 1 small sources are seen more often. With
            weights only.
        seed: of the order; the samples' own randomness is the sources'.
        rank, world_size: of this process; ranks share one sequence and take turns, so none repeats another's draw.

    Raises:
        ValueError: names differ, a weight or multiplicity is not positive, both are given, a source is empty, the
            temperature is not positive, or the rank is not below the world size.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
        *,
        multiplicities: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of world_size {world_size}; ranks are counted from 0")
        if weights is not None and multiplicities is not None:
            raise ValueError("weights and multiplicities are given; they say the same in two ways, give one of them")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; give one above 0, 1 leaves the weights as they are")
        if temperature != 1 and weights is None:
            raise ValueError(f"temperature is {temperature}, which bends weights; give weights, not multiplicities")
        given = weights if weights is not None else multiplicities or dict.fromkeys(sources, 1.0)
        _check(sources, given, "weight" if weights is not None else "multiplicity")
        self.sources, self.seed, self.rank, self.world_size = dict(sources), seed, rank, world_size
        self._names, self._num_blocks = list(sources), 1
        self._lengths = [len(source) for source in self.sources.values()]
        self._block = lru_cache(maxsize=4)(_mixed)
        self.epoch_length: int | None = None
        """Draws of all ranks together in an epoch of the mixture; None with weights, where sources end apart."""
        if weights is not None:
            self._counts = _shares([float(given[name]) ** (1 / temperature) for name in self._names])
        else:
            self._counts = [
                max(1, round(given[name] * length)) for name, length in zip(self._names, self._lengths, strict=True)
            ]
            self.epoch_length = sum(self._counts)
            self._num_blocks = -(-self.epoch_length // BLOCK)

    def passes(self, step: int) -> dict[str, float]:
        """How often each source has been seen whole after `step` draws of every rank; with weights, about."""
        drawn = step * self.world_size / sum(self._counts)
        return {
            name: drawn * count / length
            for name, count, length in zip(self._names, self._counts, self._lengths, strict=True)
        }

    def at(self, step: int) -> tuple[str, int, int]:
        """(source name, index, pass through that source) of this rank's draw number `step`, counted from 0."""
        if step < 0:
            raise ValueError(f"step is {step}; steps are counted from 0")
        draw = step * self.world_size + self.rank
        if self.epoch_length is None:
            block, place = divmod(draw, BLOCK)
            before = [block * count for count in self._counts]
            which, earlier = self._place(f"{self.seed}:block:{block}", tuple(self._counts), place)
        else:
            epoch, place = divmod(draw, self.epoch_length)
            block = bisect_right(range(self._num_blocks), place, key=lambda number: sum(self._before(number))) - 1
            before, after = self._before(block), self._before(block + 1)
            counts = tuple(end - begin for begin, end in zip(before, after, strict=True))
            which, earlier = self._place(f"{self.seed}:epoch:{epoch}:{block}", counts, place - sum(before))
            before = [epoch * count + begin for count, begin in zip(self._counts, before, strict=True)]
        name, length = self._names[which], self._lengths[which]
        epoch, position = divmod(before[which] + earlier, length)
        order: ShardOrder | None = getattr(self.sources[name], "order", None)
        key = f"{self.seed}:{name}:{epoch}"
        return name, permute(position, length, key) if order is None else order(position, key), epoch

    def fetch(self, steps: Iterable[int]) -> None:
        """Tell sources that lie far away which samples come next: one request for all, instead of one for each."""
        wanted: dict[str, list[int]] = {}
        for step in steps if any(hasattr(source, "fetch") for source in self.sources.values()) else ():
            name, index, _ = self.at(step)
            wanted.setdefault(name, []).append(index)
        for name, indices in wanted.items():
            if (fetch := getattr(self.sources[name], "fetch", None)) is not None:
                fetch(indices)

    def sample(self, step: int) -> Sample:
        """The sample of this rank's draw number `step`, read by `read_sample`."""
        name, index, epoch = self.at(step)
        return read_sample(self.sources[name], index, epoch)

    def _before(self, block: int) -> list[int]:
        """How often each source is drawn in an epoch before a block of it begins."""
        return [block * count // self._num_blocks for count in self._counts]

    def _place(self, key: str, counts: tuple[int, ...], place: int) -> tuple[int, int]:
        """The source at a place of a block, and how many of it came before in the block."""
        which, earlier = self._block(key, counts)
        return int(which[place]), int(earlier[place])


def _mixed(key: str, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A block with so many draws of each source, in an order of its own: for each place, which source, how many before.

    Both are int64[sum(counts)].
    """
    which = np.repeat(np.arange(len(counts)), counts)
    if len(counts) > 1:
        which = which[[permute(place, len(which), key) for place in range(len(which))]]
    earlier = np.zeros(len(which), np.int64)
    for source, count in enumerate(counts):
        earlier[which == source] = np.arange(count)
    return which, earlier


def _check(sources: Mapping[str, Source], given: Mapping[str, float], what: str) -> None:
    for name in [*given, *sources]:
        if name not in sources:
            raise ValueError(f"{what} for {name!r}, which is not a source{near(name, sources)}")
        value = given.get(name)
        if value is None or not 0 < value < float("inf"):
            raise ValueError(f"source {name!r} has {what} {value}; give one above 0 or take the source out")
        if len(sources[name]) < 1:
            raise ValueError(f"source {name!r} is empty; take it out")


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
