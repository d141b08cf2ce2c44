"""A report survives its file, and prints what it should."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mglmm.eval.report import Report, Row, rows_of, versions
from mglmm.eval.text import ExactMatch


@pytest.fixture
def report():
    rows = (
        Row("referring", "all", "cIoU", 0.5, 200, 0.45, 0.55, {"blind": 0.1}),
        Row("referring", "size", "gIoU", 0.75, 40),
        Row("referring", "all", "Pr@0.9", 0.25, 200, headline=False),
        Row("caption", "all", "exact", math.nan, 0),
    )
    return Report("Held-out worlds", rows, {"scenes": 4, "occlusion": {"median": 0.123456}}, {"config": {"seed": 0}})


def test_json_and_back(report, tmp_path):
    again = Report.load(report.save(tmp_path / "new" / "report.json"))
    assert again.to_json() == report.to_json() and again.rows[0] == report.rows[0]
    assert math.isnan(again.rows[3].value) and again.meta == {"config": {"seed": 0}}
    with pytest.raises(ValueError, match="format_version is 0, this program reads 1"):
        Report.from_json({**report.to_json(), "format_version": 0})


def test_tables_hold_headlines_only(report):
    markdown = report.markdown()
    assert "| referring | all | cIoU | 0.500 | 0.450 - 0.550 | 0.100 | 200 |" in markdown
    assert "Pr@0.9" not in markdown and "Pr@0.9" in report.markdown(detail="full")
    assert "| size |" in markdown and "| size |" not in report.markdown(detail="short")
    assert "occlusion: median 0.1235" in markdown
    text = report.text()
    assert "cIoU" in text and "0.450 - 0.550" in text and "Pr@0.9" not in text and "scenes: 4" in text


@pytest.mark.parametrize("suffix", [".md", ".txt"])
def test_saved_text(report, tmp_path, suffix):
    assert "Held-out worlds" in report.save(tmp_path / f"table{suffix}").read_text(encoding="utf-8")


def test_errors_name_the_way_out(report, tmp_path):
    with pytest.raises(ValueError, match=r"cannot save a report as 'a.csv'; use .json, .md, .txt or .png"):
        report.save(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="has no referring / all / gIoU; it has referring / all / Pr@0.9"):
        report.row("referring", "gIoU")


def test_rows_of_a_metric(make_item, make_answer):
    metric, blind = ExactMatch(), ExactMatch()
    item = make_item("Describe.", "a dog")
    for text in ("a dog", "a car"):
        metric.update(item, make_answer(text))
        blind.update(item, make_answer(""))
    (row,) = rows_of(metric, "caption", beside={"blind": blind}, headline=("exact",), resamples=50)
    assert (row.value, row.beside, row.count, row.headline, row.protocol) == (
        0.5,
        {"blind": 0},
        2,
        True,
        "exact/caption",
    )
    assert 0 <= row.low <= 0.5 <= row.high <= 1
    assert rows_of(ExactMatch(), "caption") == []


def test_reliability_is_drawn_from_the_saved_numbers(report, tmp_path):
    """A bar for each bin that holds something; a confident model that is right half of the time is seen to be off."""
    rows = [Row("confidence", "all", "ECE", 0.4, 20, 0.3, 0.5)]
    for name, value in (("confidence/0.9", 0.95), ("accuracy/0.9", 0.5), ("share/0.9", 1.0)):
        rows.append(Row("confidence", "all", name, value, 20, 0.4, 0.6, headline=False))
    pictures = []
    for half in (0.5, 0.95):
        drawn = [replace(row, value=half) if row.metric == "accuracy/0.9" else row for row in rows]
        path = Report("Held-out worlds", tuple(drawn)).save(tmp_path / f"{half}.png")
        pictures.append(np.asarray(Image.open(path).convert("RGB")))
    assert pictures[0].shape == pictures[1].shape and min(pictures[0].shape[:2]) > 400
    blue = [(np.abs(picture.astype(int) - (0x48, 0x78, 0xA8)).max(-1) < 12).sum() for picture in pictures]
    assert 0 < 1.6 * blue[0] < blue[1]
    with pytest.raises(ValueError, match="has no confidence / all / ECE"):
        report.save(tmp_path / "none.png")


def test_versions():
    assert {"python", "numpy"} <= set(versions())
