"""An evaluation in two processes on one machine, as `torchrun tools/eval.py` starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mglmm.eval.processes import Processes, processes
from mglmm.evaluate import evaluate, read_eval

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("count=3", "batch_size=2", "tasks=[vqa, referring]", "limits_count=1", "blind_count=2", "resamples=20")
PARTS = "kind: parts\nsource: {type: coco, path: nowhere.json, split: {validation_share: 0.5}}\n"


def test_every_batch_is_asked_once(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == Processes() and Processes().first
    asked = [batch for rank in range(3) for batch in range(10) if Processes(rank, 3).asks(batch)]
    assert sorted(asked) == list(range(10))


def test_parts_run_in_one_process(tmp_path):
    (tmp_path / "parts.yaml").write_text(PARTS)
    with pytest.raises(ValueError, match="an evaluation of kind parts runs in one process; start it with mglmm eval"):
        evaluate(read_eval(str(tmp_path / "parts.yaml")), among=Processes(0, 2))


@pytest.mark.slow
def test_two_processes_print_the_table_of_one(tmp_path):
    config = str(ROOT / "configs" / "eval" / "world.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(ROOT / "tools" / "eval.py"), config, *SMALL, "--out", str(tmp_path / "two.json")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Held-out world") == 1  # the first process alone speaks
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would sum in another order, and a pixel at a mask's edge would fall elsewhere
    try:
        one = evaluate(read_eval(config, SMALL)).to_json()
    finally:
        torch.set_num_threads(threads)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["statistics"] == one["statistics"]
    assert [*map(name, two["rows"])] == [*map(name, one["rows"])]
    for found, wanted in zip(two["rows"], one["rows"], strict=True):
        assert numbers(found) == numbers(wanted)


def name(row):
    return row["task"], row["slice"], row["metric"], row["count"]


def numbers(row):
    return [row["value"], row["low"], row["high"], *row["beside"].values()]
