"""The reliability plot of a report: how often instances of each confidence are right."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from mglmm.eval.calibration import BINS

if TYPE_CHECKING:
    from mglmm.eval.report import Report


def reliability(report: Report, task: str = "confidence") -> bytes:
    """A PNG: accuracy of each bin of confidence against the diagonal, and what share of the instances each bin holds.

    Source of the form: Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), figure 1.

    Raises:
        ValueError: the report has no calibration, or matplotlib is not installed.
    """
    error = report.row(task, "ECE")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ValueError("a plot needs matplotlib: pip install 'mglmm[eval]', or save the report as .json") from None
    found = {row.metric: row for row in report.rows if (row.task, row.slice) == (task, "all")}
    bins = [place / BINS for place in range(BINS)]
    figure = Figure(figsize=(4.6, 5.2), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="confidence = accuracy")
    for start in bins:
        row = found.get(f"accuracy/{start:.1f}")
        if row is None:  # no instance of this confidence
            continue
        middle = found[f"confidence/{start:.1f}"].value
        spread = [[max(row.value - row.low, 0)], [max(row.high - row.value, 0)]]
        top.bar(start, row.value, width=1 / BINS, align="edge", color="#4878a8", edgecolor="white")
        top.errorbar(middle, row.value, yerr=spread, color="0.15", marker="o", markersize=3, capsize=2)
        bottom.bar(
            start, found[f"share/{start:.1f}"].value, width=1 / BINS, align="edge", color="0.6", edgecolor="white"
        )
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="right (mask IoU ≥ 0.5, right noun)")
    top.set_title(
        f"{report.title}\nECE {error.value:.3f} [{error.low:.3f}, {error.high:.3f}], {error.count} answers", fontsize=8
    )
    top.legend(loc="upper left", fontsize=8, frameon=False)
    bottom.set(xlabel="confidence", ylabel="share")
    out = BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
