"""What a run writes: the same charts for every stage in wandb, one wandb run a folder, a bar on terminals alone."""

import io
import json
import os
import time

import pytest
from PIL import Image
from rich.console import Console

from mglmm.config import TrainConfig, parse
from mglmm.train.log import Log

STAGES = [
    {"name": "pixels", "kind": "pixels", "max_steps": 2, "train": {"encoder": 1}},
    {"name": "words", "max_steps": 3, "train": {"projector": 1}, "sources": {"world": {"type": "world"}}},
]


def recipe(**keys):
    return parse(TrainConfig, {"stages": STAGES, "logging_steps": 1, **keys}, "test")


def take(log, number, steps, seconds=0.0):
    """Log steps of a stage, as the loop does."""
    stage = log.config.stages[number]
    log.begin(stage, steps[0] - 1)
    for step in steps:
        log.step(stage, step, {"loss": 10.0 * number + step, "ce": 1.0}, 1e-3, 0.5, seconds, 0)


# ---- wandb


def records(path):
    """The records of a `.wandb` file: seven bytes, then blocks of LevelDB's log format, protobuf inside."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  # made at import

    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


def rows(path):
    """What was logged, as mappings, without wandb's own keys."""
    end = time.monotonic() + 20
    while not any(record.HasField("exit") for record in records(path)) and time.monotonic() < end:
        time.sleep(0.1)  # another process writes the file
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            yield {key: value for key, value in items.items() if not key.startswith("_")}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_wandb_has_one_chart_a_value_over_all_stages_and_one_run_a_folder(tmp_path, offline):
    first = Log(tmp_path, recipe(report_to="wandb"), True)
    take(first, 0, [1, 2])
    first.panel(first.config.stages[0], 2, Image.new("RGB", (8, 8)))
    first.close()
    kept = (tmp_path / "wandb_id.txt").read_text().strip()
    time.sleep(1.1)  # the folder of an offline run is named by the second
    again = Log(tmp_path, recipe(report_to="wandb", logging_steps=2), True)
    take(again, 1, [1, 2, 3])
    again.panel(again.config.stages[1], 3, Image.new("RGB", (8, 8)))
    again.close()

    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.name for file in files} == {f"run-{kept}.wandb"}
    before, after = (list(rows(file)) for file in files)
    numbers = [row for row in before + after if "answers" not in row]
    pictures = [row for row in before + after if "answers" in row]
    assert [row["global_step"] for row in numbers] == [1, 2, 4, 5]
    assert [row["train/loss"] for row in numbers] == [1.0, 2.0, 11.5, 13.0]
    assert len({frozenset(row) for row in numbers}) == 1
    assert {"train/loss", "train/ce", "train/grad_norm", "train/learning_rate", "train/stage"} <= set(numbers[0])
    assert [row["global_step"] for row in pictures] == [2, 5] and set(pictures[0]) == set(pictures[1])
    assert (tmp_path / "pixels-000002.png").is_file() and (tmp_path / "words-000003.png").is_file()
    defined = {r.metric.name or r.metric.glob_name: r.metric for r in records(files[1]) if r.HasField("metric")}
    assert defined["*"].step_metric == "global_step"


def test_an_id_that_is_none_is_not_sent_to_wandb(tmp_path, offline):
    (tmp_path / "wandb_id.txt").write_text("two words\n")
    with pytest.raises(ValueError, match=r"wandb_id.txt holds 'two words', not the id of a wandb run; delete it"):
        Log(tmp_path, recipe(report_to="wandb"), True)


def test_only_the_main_process_writes(tmp_path):
    log = Log(tmp_path / "run", recipe(), False)
    take(log, 0, [1, 2])
    log.panel(log.config.stages[0], 2, None)
    log.close()
    assert not (tmp_path / "run").exists()


# ---- the terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(folder, file, **keys):
    """What a run of both stages, the second taken up again at its second step, leaves on `file`."""
    log = Log(folder, recipe(), True, Console(file=file, width=100, **keys))
    log.bar.live.auto_refresh = False  # no clock in a test
    take(log, 0, [1, 2])
    log.bar.refresh()
    take(log, 1, [2])
    time.sleep(0.01)
    take(log, 1, [2, 3])
    log.bar.refresh()
    log.close()
    return file.getvalue()


def test_a_terminal_shows_a_bar_below_the_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(tmp_path, Terminal(), force_terminal=True, color_system=None)
    assert "words (2/2)" in text and "3/3" in text and "loss 13.000" in text and "steps/s" in text
    assert "pixels (1/2)" in text and "0:00:00" in text
    assert "words 3/3 ce 1.000 loss 13.000" in text or "words 3/3 loss 13.000 ce 1.000" in text
    assert text.count("\x1b[?25h") == 1, "the cursor comes back"


@pytest.mark.parametrize("colored", [False, True])
def test_a_file_gets_the_lines_alone(tmp_path, colored):
    """Even where colours are asked for (FORCE_COLOR)."""
    text = shown(tmp_path, io.StringIO(), force_terminal=colored, color_system=None)
    expected = ["pixels 1/2", "pixels 2/2", "words 2/3", "words 2/3", "words 3/3"]
    assert [line.partition(" loss")[0] for line in text.splitlines()] == expected and "steps/s" not in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to open here")
def test_standard_error_that_is_a_terminal_counts_as_one(tmp_path, monkeypatch):
    import sys

    main, other = os.openpty()
    with os.fdopen(other, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert not Log(tmp_path, recipe(), True).bar.disable
    os.close(main)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert Log(tmp_path, recipe(), True).bar.disable
