"""Batches whose rows are about equally long: little padding, and no batch much dearer than another.

A window of consecutive draws is sorted by length and cut into as many batches as it would have had anyway, so that the
dearest batch is as cheap as it can be. A window has a fixed number of batches, so batch number n is in window
n // num_batches: nothing has to be remembered to resume, and all ranks are at short or at long batches together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mglmm_data.mixture import permute

MASK_COST = 64
"""What one decoded mask costs beside a token: a decoder pass and its losses, in tokens; a rough figure on purpose."""


@dataclass(frozen=True)
class Extent:
    """How much of a batch a sample takes: the lengths of its rows in tokens, and its masks to decode."""

    rows: tuple[int, ...]
    masks: int = 0

    @property
    def longest(self) -> int:
        return max(self.rows, default=0)


def plan(extents: Sequence[Extent], num_batches: int, key: str, mask_cost: float = MASK_COST) -> list[list[int]]:
    """Share the samples of a window out among batches of like length and like cost.

    A batch costs its rows, padded to the longest, and `mask_cost` for each mask.

    Args:
        extents: of the window's samples.
        num_batches: how many batches; each gets one sample at least.
        key: of the order of the batches.

    Returns:
        For each batch, the numbers of its samples in the window; each number stands in exactly one.

    Raises:
        ValueError: there are fewer samples than batches.
    """
    if not 1 <= num_batches <= len(extents):
        raise ValueError(f"{len(extents)} samples cannot fill {num_batches} batches; give each batch one at least")
    order = sorted(range(len(extents)), key=lambda number: (extents[number].longest, extents[number].masks, number))
    low, high = 0.0, _cost([extents[number] for number in order], mask_cost)
    best = _cut(order, extents, num_batches, high, mask_cost)
    while high - low > 1:
        middle = (low + high) / 2
        found = _cut(order, extents, num_batches, middle, mask_cost)
        if len(found) <= num_batches:
            best, high = found, middle
        else:
            low = middle
    while len(best) < num_batches:  # the cheapest cuts needed fewer: halve the dearest
        dearest = max(
            (batch for batch in best if len(batch) > 1),
            key=lambda batch: _cost([extents[number] for number in batch], mask_cost),
        )
        place, half = best.index(dearest), len(dearest) // 2
        best[place : place + 1] = [dearest[:half], dearest[half:]]
    return [best[permute(place, num_batches, key)] for place in range(num_batches)]


def _cut(
    order: Sequence[int], extents: Sequence[Extent], num_batches: int, most: float, mask_cost: float
) -> list[list[int]]:
    """Consecutive samples as batches of at most this cost each (or of one sample)."""
    batches: list[list[int]] = []
    rows = masks = longest = 0
    for number in order:
        extent = extents[number]
        rows, masks = rows + len(extent.rows), masks + extent.masks
        longest = max(longest, extent.longest)
        if not batches or rows * longest + mask_cost * masks > most:
            batches.append([])
            rows, masks, longest = len(extent.rows), extent.masks, extent.longest
        batches[-1].append(number)
        if len(batches) > num_batches:
            break
    return batches


def _cost(extents: Sequence[Extent], mask_cost: float) -> float:
    rows = sum(len(extent.rows) for extent in extents)
    return rows * max(extent.longest for extent in extents) + mask_cost * sum(extent.masks for extent in extents)


def filled(batches: Sequence[Sequence[Extent]]) -> float:
    """Share of the tokens of batches, each padded to its longest row, that are not padding (0..1)."""
    used = sum(sum(extent.rows) for batch in batches for extent in batch)
    padded = sum(sum(len(e.rows) for e in batch) * max(e.longest for e in batch) for batch in batches)
    return used / padded if padded else 1.0
