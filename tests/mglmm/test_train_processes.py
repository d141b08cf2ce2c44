"""A recipe in two processes on one machine, as `torchrun tools/train.py` starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint
from mglmm.config import StageConfig, parse
from mglmm.train.data import GroundingData, LeftOut
from mglmm.train.processes import over_processes

ROOT = Path(__file__).resolve().parents[2]
PIXELS = {
    "name": "pixels",
    "kind": "pixels",
    "max_steps": 2,
    "per_device_train_batch_size": 1,
    "warmup_steps": 1,
    "train": {"encoder": 1, "mask_decoder": 1, "heads": 1, "semantic": 1},
}
WORDS = {
    "name": "words",
    "max_steps": 4,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "optim": "muon",
    "warmup_steps": 1,
    "train": {"projector": 1, "language_model": 1, "seg_projection": 1, "region_encoder": 1, "mask_decoder": 0.3},
    "masks_per_image": 2,
    "sources": {"world": {"type": "world", "size": 64, "turns": 1, "tasks": {"caption": 0.5, "referring": 0.5}}},
}


@pytest.fixture
def write(tmp_path, tiny_sizes):
    """Write a recipe of the given stages; returns its path. Its run goes to the folder of the same name."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_sizes))

    def recipe(name, *stages, **keys):
        plan = {"model": str(tmp_path / "tiny.yaml"), "output_dir": str(tmp_path / name), "num_threads": 1}
        plan |= {"dataloader_num_workers": 0, "logging_steps": 1, "save_steps": 1, "stages": list(stages), **keys}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(plan))
        return path

    return recipe


def start(recipe):
    """Two processes, by the launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "datasets")])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    command += [str(ROOT / "tools" / "train.py"), str(recipe)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(recipe):
    launched = start(recipe)
    said, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, said[-3000:]
    return said


def rows(recipe):
    """Row of the log by stage and step, without the clock; steps that were taken twice must say the same."""
    path, out = recipe.with_suffix("") / "log.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        del row["seconds"]
        assert out.setdefault((row["stage"], row["step"]), row) == row
    return out


def stop_at(recipe, stage, step):
    """Start a run and end it, as a cluster does, once a step has been logged."""
    launched = start(recipe)
    end = time.monotonic() + 300
    while (stage, step) not in rows(recipe) and launched.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    launched.send_signal(signal.SIGTERM)
    said, _ = launched.communicate(timeout=100)
    assert (stage, step) in rows(recipe), said[-3000:]


def test_one_process_says_what_it_found():
    class Alone:
        num_processes = 1

    assert over_processes(Alone(), {"loss": 0.1}, LeftOut(2, ("a",)), True) == ({"loss": 0.1}, LeftOut(2, ("a",)))  # type: ignore[arg-type]
    assert LeftOut(1, ("a",)) + LeftOut(2, ("b", "c")) == LeftOut(3, ("a", "b", "c"))


@pytest.mark.slow
def test_both_kinds_of_stage_run_and_go_on_exactly_in_two_processes(write):
    """Also where only one of them has masks; stopped in each stage, from outside."""
    config = parse(StageConfig, WORDS, "test")
    whole, cut = write("whole", PIXELS, WORDS), write("cut", PIXELS, WORDS)
    processor = build(parse(ModelConfig, yaml.safe_load((whole.parent / "tiny.yaml").read_text()), "test"))[1]
    picked = [
        [len(GroundingData(config, processor, 1000, rank, 2)(step)[0].grounding.picked) for rank in (0, 1)]
        for step in range(8)
    ]
    assert any((first == 0) != (second == 0) for first, second in picked)

    assert finish(whole).count("words 4/4") == 1, "one process logs"
    expected = rows(whole)
    assert list(expected) == [*(("pixels", step) for step in (1, 2)), *(("words", step) for step in (1, 2, 3, 4))]
    assert all(0 < row["loss"] < 1e4 for row in expected.values())

    stop_at(cut, "pixels", 1)
    stop_at(cut, "words", 2)
    assert "goes on from stage words, step" in finish(cut)
    assert rows(cut) == expected
    there, here = (load_checkpoint(path.with_suffix("") / "last" / "model")[0].state_dict() for path in (whole, cut))
    assert all(torch.equal(value, here[key]) for key, value in there.items())


@pytest.mark.slow
def test_what_the_second_process_leaves_out_is_counted_too(write, tmp_path):
    lines = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 40, 3), 20 * number, np.uint8)).save(path)
        if number % 3 == 0:
            path.write_bytes(path.read_bytes()[:60])
        lines.append(json.dumps({"image": path.name, "regions": [{"label": "dog", "box": [5, 5, 30, 30]}]}))
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    source = {"mine": {"type": "jsonl", "path": str(tmp_path), "tasks": {"panoptic": 1}}}
    stage = {**WORDS, "sources": source, "on_error": "count", "per_device_train_batch_size": 3, "max_steps": 2}
    config = parse(StageConfig, {**stage, "gradient_accumulation_steps": 1}, "test")
    recipe = write("run", config.model_dump(mode="json"))
    processor = build(parse(ModelConfig, yaml.safe_load((tmp_path / "tiny.yaml").read_text()), "test"))[1]
    found = [
        {text for step in (0, 1) for text in GroundingData(config, processor, 0, rank, 2)(step)[1].problems}
        for rank in (0, 1)
    ]
    assert found[1] - found[0]
    said = finish(recipe)
    kept = [json.loads(line)["problem"] for line in (tmp_path / "run" / "problems.jsonl").read_text().splitlines()]
    assert (
        set(kept) == found[0] | found[1] and "left out, unreadable or on a list of what to drop: 4, 4 different" in said
    )
