"""Numbers for people and for machines: a table for the terminal, one for a README, and a json that keeps all of it.

A `Row` is one number of one slice of one task, with its interval and the scores that belong beside it (a blind model,
a mean-mask baseline). Headline rows are printed, all rows are saved.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mglmm.answer import REPORTS, write_atomically
from mglmm.eval.metric import Metric

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
Detail = Literal["short", "headlines", "full"]
"""`short`: headline numbers of whole tasks; `headlines`: of their slices too; `full`: every number."""
PACKAGES = ("mglmm", "numpy", "scipy", "opencv-python-headless", "pycocotools", "torch", "transformers")


@dataclass(frozen=True)
class Row:
    """`value` of `count` items, 0..1 unless `metric` is a number of things; low..high is its 95 % interval."""

    task: str
    slice: str
    metric: str
    value: float
    count: int
    low: float = math.nan
    high: float = math.nan
    beside: Mapping[str, float] = field(default_factory=dict)
    protocol: str = ""
    headline: bool = True

    @property
    def interval(self) -> str:
        return f"{_number(self.low)} - {_number(self.high)}" if math.isfinite(self.low) else ""


@dataclass(frozen=True)
class Report:
    """Rows in the order they are printed, statistics of what was scored, and where it all came from."""

    title: str
    rows: tuple[Row, ...]
    statistics: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def row(self, task: str, metric: str, slice: str = "all") -> Row:
        """One row.

        Raises:
            ValueError: it is not there.
        """
        for row in self.rows:
            if (row.task, row.slice, row.metric) == (task, slice, metric):
                return row
        there = sorted({f"{row.task} / {row.slice} / {row.metric}" for row in self.rows if row.task == task})
        raise ValueError(f"the report has no {task} / {slice} / {metric}; it has {', '.join(there) or 'no such task'}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the scores beside, in order of appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.beside))

    def table(self, *, detail: Detail = "headlines") -> Table:
        """A `rich` table."""
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", header_style="bold")
        numbers = {"score", "95 % interval", "n", *self.columns}
        for column in self._header():
            table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
        last = ""
        for row in self._chosen(detail):
            if last and row.task != last:
                table.add_section()
            cells = self._cells(row)
            table.add_row(cells[0] if row.task != last else "", *cells[1:])
            last = row.task
        return table

    def text(self, *, detail: Detail = "headlines", width: int = 120) -> str:
        """The table and the statistics as plain text."""
        from rich.console import Console

        out = StringIO()
        console = Console(file=out, width=width)
        console.print(self.table(detail=detail))
        for line in self._facts():
            console.print(line, markup=False, highlight=False)
        return out.getvalue()

    def markdown(self, *, detail: Detail = "headlines") -> str:
        """The table for a README; `short` keeps it on one screen."""
        header = self._header()
        lines = [
            f"**{self.title}**",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * 3 + " ---: |" * (len(header) - 3),
        ]
        lines += ["| " + " | ".join(self._cells(row)) + " |" for row in self._chosen(detail)]
        return "\n".join([*lines, "", *(f"{line}  " for line in self._facts())]).rstrip() + "\n"

    def to_json(self) -> dict[str, Any]:
        """Everything, numbers that do not exist as null."""
        return {
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "rows": [_without_nan(asdict(row)) for row in self.rows],
            "statistics": _without_nan(self.statistics),
            "meta": _without_nan(self.meta),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is of another format version.
        """
        if data.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"the report's format_version is {data.get('format_version')!r}, this program reads {FORMAT_VERSION}; "
                "run `mglmm eval` again"
            )
        rows = []
        for row in data["rows"]:
            values = {key: math.nan if row[key] is None else row[key] for key in ("value", "low", "high")}
            beside = {name: math.nan if value is None else value for name, value in row["beside"].items()}
            rows.append(Row(**{**row, **values, "beside": beside}))
        return cls(data["title"], tuple(rows), data["statistics"], data["meta"])

    def save(self, path: str | Path) -> Path:
        """Write .json (all rows), .md (headline rows), .txt, or .png (reliability of the confidence), by suffix.

        Raises:
            ValueError: the suffix is another one, or a plot is asked for and the report has no calibration.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in REPORTS:
            raise ValueError(f"cannot save a report as {path.name!r}; use {', '.join(REPORTS[:-1])} or {REPORTS[-1]}")
        if suffix == ".png":
            from mglmm.eval.plot import reliability

            write_atomically(path, reliability(self))
            return path
        if suffix == ".json":
            content = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
        else:
            content = self.markdown() if suffix == ".md" else self.text()
        write_atomically(path, content.encode("utf-8"))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read the .json of `save`."""
        return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))

    def _header(self) -> list[str]:
        return ["task", "slice", "metric", "score", "95 % interval", *self.columns, "n"]

    def _cells(self, row: Row) -> list[str]:
        beside = [_number(row.beside.get(name, math.nan)) for name in self.columns]
        return [row.task, row.slice, row.metric, _number(row.value), row.interval, *beside, str(row.count)]

    def _chosen(self, detail: Detail) -> list[Row]:
        if detail == "full":
            return list(self.rows)
        return [row for row in self.rows if row.headline and (detail == "headlines" or row.slice == "all")]

    def _facts(self) -> list[str]:
        return [f"{name}: {_fact(value)}" for name, value in self.statistics.items()]


def rows_of(
    metric: Metric,
    task: str,
    slice: str = "all",
    *,
    beside: Mapping[str, Metric] | None = None,
    headline: Iterable[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """All numbers of a metric as rows: `headline` first and in its order; numbers that do not exist are left out."""
    values, others = metric.compute(), {name: other.compute() for name, other in (beside or {}).items()}
    intervals = metric.intervals(resamples, seed) if resamples else {}
    chosen = [name for name in headline if name in values]
    rows = []
    for name in [*chosen, *(name for name in values if name not in chosen)]:
        if math.isnan(values[name]):
            continue
        low, high = intervals.get(name, (math.nan, math.nan))
        scores = {other: numbers.get(name, math.nan) for other, numbers in others.items()}
        rows.append(
            Row(
                task,
                slice,
                name,
                values[name],
                metric.count_of(name),
                low,
                high,
                scores,
                metric.protocol,
                headline=name in chosen,
            )
        )
    return rows


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    return ", ".join(_fact(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
