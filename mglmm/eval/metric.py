"""What every metric is: a row of additive counts per item, and ratios of their sums.

Averages are never averaged. Because a row is a sufficient statistic, metrics of several shards merge by joining rows,
and a bootstrap interval is the same ratios over resampled rows. Every name's protocol stands in `Metric.protocol`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from mglmm.answer import Answer
from mglmm.eval.protocol import Item

Totals = Mapping[str, np.ndarray]
"""Column name to its sum, `float[]`, or over resamples `float[R]`."""


class Metric(ABC):
    """Rows of counts in, named numbers out; `measure` and `ratios` make one."""

    columns: tuple[str, ...]
    protocol: str
    counted: Mapping[str, str] = {}
    """Numbers that are not of all items -> the column that counts those they are of."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []

    @abstractmethod
    def measure(self, item: Item, answer: Answer) -> Mapping[str, float]:
        """One item's counts; a column left out is 0."""

    @abstractmethod
    def ratios(self, totals: Totals) -> dict[str, np.ndarray]:
        """The named numbers, elementwise in the sums; NaN where nothing was there to be counted."""

    def update(self, item: Item, answer: Answer) -> None:
        self.append(self.measure(item, answer))

    def append(self, counts: Mapping[str, float]) -> None:
        """Add one item's counts.

        Raises:
            ValueError: a column is not one of this metric's.
        """
        unknown = set(counts) - set(self.columns)
        if unknown:
            raise ValueError(f"counts {sorted(unknown)} are no columns of {self.protocol!r}; it has {self.columns}")
        self._rows.append([float(counts.get(column, 0.0)) for column in self.columns])

    def merge(self, others: Iterable[Self]) -> Self:
        """Take in the rows of other shards, in order; returns itself.

        Raises:
            ValueError: another one has a different protocol or other columns.
        """
        for other in others:
            if (other.protocol, other.columns) != (self.protocol, self.columns):
                raise ValueError(
                    f"cannot merge {other.protocol!r} into {self.protocol!r}; use the same options for both"
                )
            self._rows.extend(other._rows)
        return self

    @property
    def rows(self) -> np.ndarray:
        """`float64[N, columns]`."""
        return np.asarray(self._rows, float).reshape(len(self._rows), len(self.columns))

    def compute(self) -> dict[str, float]:
        """The named numbers over all items so far."""
        return {name: float(value) for name, value in self.ratios(self._named(self.rows.sum(0))).items()}

    def intervals(self, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap over items: `level` of the resampled scores lie between the two numbers."""
        rows = self.rows
        if not len(rows):
            return {name: (float("nan"), float("nan")) for name in self.compute()}
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
        scores = self.ratios(self._named((weights @ rows).T))
        tails = [(1 - level) / 2, (1 + level) / 2]
        out = {}
        for name, values in scores.items():
            finite = values[np.isfinite(values)]
            low, high = np.quantile(finite, tails) if len(finite) else (np.nan, np.nan)
            out[name] = (float(low), float(high))
        return out

    def _named(self, sums: np.ndarray) -> Totals:
        return dict(zip(self.columns, sums, strict=True))

    def count_of(self, name: str) -> int:
        """How many items a number is of."""
        return round(float(self._named(self.rows.sum(0))[self.counted[name]])) if name in self.counted else len(self)

    def __len__(self) -> int:
        return len(self._rows)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)
