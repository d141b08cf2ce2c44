"""What frozen encoders see, kept: `mglmm cache`, and training that reads it back in place of photographs."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mglmm.train.features import FeatureFolder
from mglmm_data import images
from mglmm_data.images import KnownPhotos, known, load_content, load_photo, name_of


@pytest.fixture(scope="module")
def photos(shared):
    """Spec of four COCO photographs: JPEGs of 640 px that the tiny models see at 64."""
    mini = shared("data", "coco_mini")
    spec = {"type": "coco", "json_path": str(mini / "annotations" / "instances_val2017.json")}
    return spec | {"image_root": str(mini / "val2017"), "tasks": {"panoptic": 1}}


@pytest.fixture
def plan(recipe, photos, tmp_path, command):
    """The recipe on a JSONL of four photographs, as a mapping, and a function that writes it."""
    source = tmp_path / "source.yaml"
    source.write_text(yaml.safe_dump({"sources": {"photos": photos}}))
    assert command("export", source, tmp_path / "mine", "--limit", "4").code == 0
    plan = yaml.safe_load(recipe.read_text())
    stage = plan["stages"][0]
    stage |= {"sources": {"mine": {"type": "jsonl", "path": str(tmp_path / "mine")}}, "per_device_train_batch_size": 2}
    return plan, lambda: recipe.write_text(yaml.safe_dump(plan)) and recipe


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", ["bundled", "glamm"])
def test_training_reads_what_was_kept_and_learns_the_same(command, plan, converted, monkeypatch, tmp_path, family):
    """To the rounding of float16; one encoder, and CLIP beside SAM, of which regions are read from four layers."""
    plan, write = plan
    if family != "bundled":
        plan["model"] = str(converted(family))
    for setting in ("", "kept"):
        plan["stages"][0]["features"] = setting or None
        if setting:
            done = command("cache", write())
            assert done.code == 0 and "4 photographs seen, 0 samples" in done.out, done
            done = command("cache", write())
            assert done.code == 0 and "0 photographs seen, 4 samples of photographs seen before: kept" in done.out
            monkeypatch.setattr(images, "_read", None)  # nothing is decoded from here on
        done = command("train", write(), f"output_dir={tmp_path / f'run{setting}'}", "dataloader_num_workers=0")
        assert done.code == 0, done.err
    plain, kept = losses(tmp_path / "run"), losses(tmp_path / "runkept")
    assert kept == pytest.approx(plain, rel=2e-3) and len(set(kept)) == 3


def test_a_photograph_that_is_known_is_not_decoded(tmp_path):
    Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(path := tmp_path / "a.png")
    sizes = {name_of(path.read_bytes()): (30, 40)}
    with known(photos := KnownPhotos(sizes.get)):
        found, other = load_photo(path), load_content(path.read_bytes(), "a picture")
        assert found.size == other.size == (30, 40) and found.pixels.shape == (1, 1, 3) and found.path == str(path)
        Image.fromarray(np.full((30, 40, 3), 201, np.uint8)).save(path)
        assert load_photo(path).pixels.shape == (30, 40, 3) and len(set(photos.opened)) == 2
    assert load_photo(path).pixels.shape == (30, 40, 3) and len(photos.opened) == 3


def test_what_does_not_go_with_kept_features_is_said_before_training(command, plan, tmp_path):
    plan, write = plan
    command("cache", write()).is_one_sentence("no stage of the recipe has features", "features: FOLDER")
    stage = plan["stages"][0]
    stage["features"] = "kept"
    command("train", write()).is_one_sentence("kept holds no features", "mglmm cache RECIPE")
    stage["train"]["encoder"] = 0.1
    command("cache", write()).is_one_sentence("stage 'words' reads kept features, but encoder trains")
    del stage["train"]["encoder"]
    plan["stages"] = [{**stage, "name": "first", "features": None, "train": {"encoder": 1.0}}, stage]
    command("train", write()).is_one_sentence("'words' reads kept features, but encoder trains in stage 'first'")
    plan["stages"] = [stage]
    stage["augment"] = {}
    command("cache", write()).is_one_sentence("but pictures are augmented")
    stage["augment"] = None
    assert command("cache", write()).code == 0
    stage["sources"]["drawn"] = {"type": "world", "size": 64}
    command("cache", write()).is_one_sentence("world-0", "from no photographs", "train this source without them")
    del stage["sources"]["drawn"]
    command("train", write(), "seed=7").is_one_sentence("kept holds what other encoders see", "another folder")
    command("cache", write(), "seed=7").is_one_sentence("kept holds what other encoders see")


def test_photographs_that_are_missing_or_damaged_are_named(command, plan, tmp_path):
    plan, write = plan
    plan["stages"][0] |= {"features": "kept", "on_error": "count", "per_device_train_batch_size": 1}
    photos = sorted((tmp_path / "mine" / "images").iterdir())
    lost = photos[0].read_bytes()
    photos[0].unlink()
    done = command("cache", write())
    assert done.code == 1 and "3 photographs seen" in done.out
    assert "left out: source 'mine'" in done.out and f"{photos[0].name}' is missing" in done.out
    photos[0].write_bytes(lost)
    plan["stages"][0]["on_error"] = "fail"
    done = command("train", write(), "dataloader_num_workers=0", "stages.0.max_steps=8").last_line()
    done.is_one_sentence("kept holds no features of its photograph", "run mglmm cache RECIPE again")
    assert command("cache", write()).code == 0
    folder = FeatureFolder(tmp_path / "kept")
    path = folder.path(name_of(lost))
    path.write_bytes(path.read_bytes()[:-5])
    command("cache", write()).is_one_sentence(path.name, "is damaged", "delete it")
    shutil.rmtree(path.parent)
    assert command("cache", write()).code == 0 and path.exists()
