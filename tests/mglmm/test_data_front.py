"""Data through the front doors: shards that are trained on, pictures as large as needed, lists of what to drop."""

import json

import fsspec
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mglmm.config import StageConfig
from mglmm.data_export import export
from mglmm.train.data import GroundingData
from mglmm.train.loop import Trainer
from mglmm_data.export import picture_of
from mglmm_data.images import as_large_as
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
    done = command("train", recipe, f"output_dir={tmp_path / 'cut'}", f"dataloader_num_workers={place}")
    assert done.code == 0 and "goes on from stage words, step 2" in done.err
    assert log(tmp_path / "cut") == whole and len({row["loss"] for row in whole}) == 4


def test_shards_are_checked_by_pattern_and_by_url(command, shards):
    for where in shards:
        done = command("check-data", where, "--processes", "1")
        assert done.code == 0 and "10 samples" in done.out, done.err
    done = command("check-data", shards[0].replace("2}", "x}"))
    assert done.code == 1 and "is no range of shards" in done.out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, shared):
    """Four COCO photographs as a folder of every kind that keeps its pictures: kind -> spec."""
    root = tmp_path_factory.mktemp("photographs")
    mini = shared("data", "coco_mini")
    path, photos = mini / "annotations" / "instances_val2017.json", mini / "val2017"
    coco = {"type": "coco", "json_path": str(path), "image_root": str(photos), "tasks": {"panoptic": 1}}
    source = make_source(coco)
    for form in ("jsonl", "webdataset", "labelme"):
        export(source, root / form, form, limit=4)
    return {
        "coco": coco,
        "jsonl": {"type": "jsonl", "path": str(root / "jsonl")},
        "shards": {"type": "shards", "path": str(root / "webdataset")},
        "labelme": {"type": "labelme", "root": str(root / "labelme"), "tasks": {"panoptic": 1}},
    }


@pytest.mark.parametrize("kind", ["coco", "jsonl", "shards", "labelme"])
def test_a_picture_decoded_as_large_as_needed_makes_the_same_batch(tiny, photographs, kind):
    """The geometry to the last bit, the pixels to a grey level or two."""
    processor, source = tiny[1], make_source(photographs[kind])
    samples, smaller = [source.sample(index) for index in range(4)], []
    with as_large_as(*processor.needed):
        smaller = [source.sample(index) for index in range(4)]
    assert all(min(sample.image.shape[:2]) < min(sample.size) / 3 for sample in smaller)
    whole, small = processor.batch(samples)[0], processor.batch(smaller)[0]
    assert small.canvases == whole.canvases and small.target_regions == whole.target_regions
    for name in ("input_ids", "labels", "mask_targets", "region_masks", "target_boxes"):
        assert torch.equal(getattr(small, name).nan_to_num(), getattr(whole, name).nan_to_num()), name
    difference = (small.pixels.values.int() - whole.pixels.values.int()).abs().float().mean()
    assert small.pixels.inner == whole.pixels.inner and 0 < difference < 3


def test_augmented_pictures_move_as_their_regions_do(tiny, photographs):
    stage = StageConfig(
        name="photos",
        max_steps=1,
        sources={"coco": photographs["coco"]},
        augment={"flip": 1, "crop": 1, "photometric": 0, "whole_tasks": ()},
    )
    data = GroundingData(stage, tiny[1], seed=1)
    assert data.needed == (107, 2)  # 64 px, of which a crop shows six tenths at least
    moved = 0
    for number in range(6):
        small, whole = data.sample(number), data.sample(number, whole=True)
        assert small.regions == whole.regions and small.meta["augment"] == whole.meta["augment"]
        assert small.full_size == whole.size and whole.full_size is None
        moved += bool(small.meta["augment"])
        found, wanted = (
            np.asarray(Image.fromarray(each.image).resize((40, 40), Image.Resampling.BOX), int)
            for each in (small, whole)
        )
        error, shifted = (np.abs(found[:, at:] - wanted[:, : 40 - at]).mean() for at in (0, 1))
        assert error < shifted / 2, small.meta["augment"]
    assert moved > 3
    assert all(sample.full_size is None for sample in data.shown(2))


def test_what_a_check_lists_is_dropped_by_the_next_and_by_training(command, recipe, tmp_path):
    for number in range(6):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    lines = [
        {"image": f"{n}.png", "id": f"n{n}", "regions": [{"label": "cat", "box": [5, 5, 60, 60]}]} for n in range(6)
    ]
    lines[4]["regions"][0]["box"] = [5, 5, 500, 60]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"regions": []}])) + "\n")
    plan = yaml.safe_load(recipe.read_text())
    spec = {"type": "jsonl", "path": str(tmp_path), "tasks": {"panoptic": 1}}
    plan["stages"][0]["sources"] = {"mine": spec}
    recipe.write_text(yaml.safe_dump(plan))
    done = command("check-data", recipe, "--fix-list", "fix.jsonl", "--processes", "1")
    assert done.code == 1 and "3 problems" in done.out
    assert command("train", recipe).code == 2
    plan["stages"][0]["sources"]["mine"]["drop"] = "fix.jsonl"
    recipe.write_text(yaml.safe_dump(plan))
    done = command("check-data", recipe, "--processes", "1")
    assert done.code == 0 and "4 samples" in done.out and "left out by rule: dropped by fix.jsonl 3" in done.out
    assert all(words in done.out for words in ("n2, unreadable file", "n4, outside the image", "line 7"))
    done = command("train", recipe)
    assert done.code == 0 and "fix.jsonl: line 2: n2, unreadable file" in done.err, done.err
    (tmp_path / "fix.jsonl").write_text('{"id": "n22"}\n')
    done = command("train", recipe, "output_dir=other")
    assert done.code == 2 and "has the id 'n22', did you mean 'n2'?" in done.err
