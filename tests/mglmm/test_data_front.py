"""Data through the front doors: shards that are trained on, far away and near."""

import json

import fsspec
import pytest
import yaml

from mglmm.train.loop import Trainer
from mglmm_data.export import picture_of
from mglmm_data.registry import make_source
from mglmm_data.shards import write_shards


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """The folder of three shards of world scenes, and the same at a URL, as `path`s of a source."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world = make_source({"type": "world", "size": 64})
    write_shards(((sample, *picture_of(sample)) for sample in map(world.sample, range(10))), tmp_path / "shards", 4)
    files = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        files.pipe(f"/train/{path.name}", path.read_bytes())
    return str(tmp_path / "shards" / "{000000..000002}.tar"), "memory://train/*.tar"


def log(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("place", [0, 1], ids=["pattern", "url"])
def test_training_on_shards_goes_on_exactly_where_it_stopped(command, recipe, shards, monkeypatch, tmp_path, place):
    plan = yaml.safe_load(recipe.read_text())
    plan["stages"][0] |= {"sources": {"scenes": {"type": "shards", "path": shards[place], "buffer": 4}}}
    plan["stages"][0] |= {"max_steps": 4, "per_device_train_batch_size": 2, "augment": {}}
    recipe.write_text(yaml.safe_dump(plan))
    assert command("check-data", recipe, "--processes", "1").code == 0
    done = command("train", recipe, f"output_dir={tmp_path / 'whole'}", "save_steps=100")
    assert done.code == 0, done.err
    whole = log(tmp_path / "whole")
    with monkeypatch.context() as patch:
        run = Trainer.run
        patch.setattr(Trainer, "run", lambda self: run(self, until=2))
        assert command("train", recipe, f"output_dir={tmp_path / 'cut'}").code == 0
    assert log(tmp_path / "cut") == whole[:2]
    done = command("train", recipe, f"output_dir={tmp_path / 'cut'}")
    assert done.code == 0 and "goes on from stage words, step 2" in done.err
    assert log(tmp_path / "cut") == whole and len({row["loss"] for row in whole}) == 4


def test_shards_are_checked_by_pattern_and_by_url(command, shards):
    for where in shards:
        done = command("check-data", where, "--processes", "1")
        assert done.code == 0 and "10 samples" in done.out, done.err
    done = command("check-data", shards[0].replace("2}", "x}"))
    assert done.code == 1 and "is no range of shards" in done.out
