"""Recipes and data with a mistake, through the command line: one sentence that names it and the way out."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mglmm_data import masks

# ---- configs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=3", ["'sed'", "did you mean 'seed'"]),
        ("stages.words.lerning_rate=1", ["stages.0.lerning_rate", "did you mean 'learning_rate'"]),
        ("stages.0.losses.dise=1", ["stages.0.losses.dise", "did you mean 'dice'"]),
        ("stages.0.sources.world.sise=64", ["'sise'", "did you mean 'size'"]),
        ("stages.0.train.projektor=1", ["projektor", "projector"]),
        ("stages.0.max_steps=many", ["stages.0.max_steps", "'many'"]),
        ("stages.9.max_steps=1", ["'9'", "words"]),
        ("stages.0.losses.ce=-1", ["stages.0.losses.ce", "greater than or equal to 0", "-1"]),
        ("stages.0.losses.distill=-0.5", ["stages.0.losses.distill", "-0.5"]),
        ("stages.0.train.projector=-1", ["stages.0.train.projector", "greater than 0"]),
        ("stages.0.losses={quality: 1, mask_size: original}", ["stages.0.losses", "set quality: 0"]),
        ("stages.0.max_length=0", ["stages.0.max_length", "greater than 0"]),
        ("stages.0.sources.world.turns=many", ["turns", "'world'", "'many'", "valid integer"]),
        ("stages.0.sources.world.tasks=[vqa]", ["tasks", "['vqa']", "dictionary"]),
        ("stages.0.sources.world.size=null", ["size", "'world'", "None"]),
        ("max_steps", ["'max_steps'", "key=value"]),
    ],
)
def test_a_config_with_a_mistake(command, recipe, override, words):
    command("train", recipe, override).is_one_sentence(*words)


@pytest.mark.parametrize(
    ("missing", "override", "words"),
    [
        ("albumentations", "stages.0.augment={flip: 0.5}", ["pip install 'mglmm[train]'", "augment: null"]),
        ("wandb", "report_to=wandb", ["pip install 'mglmm[train]'", "report_to"]),
    ],
)
def test_an_extra_that_is_not_installed(command, recipe, monkeypatch, missing, override, words):
    monkeypatch.setitem(sys.modules, missing, None)
    command("train", recipe, override).is_one_sentence(missing, *words)


def test_data_is_looked_at_before_the_model_is_loaded(command, recipe):
    missing = "stages.0.sources.world={type: folder, root: gone/photos}"
    command("train", recipe, missing, "model=./gone-model").is_one_sentence("gone/photos")


def test_a_config_that_is_not_there_or_not_readable(command, tmp_path):
    command("train", "train/wrold").is_one_sentence("train/wrold", "did you mean configs/train/world.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1,")
    command("cfg", path).is_one_sentence(path, "YAML")
    path.write_text("seed: 1\nstages:\n- name: a\n  max_steps: 1\n  max_steps: 2\n")
    command("cfg", path).is_one_sentence(path, "the key 'max_steps' is there twice, again in line 5", "keep one")
    command("cfg", "train/world", "lora={rank: 1, rank: 2}").is_one_sentence(
        "override", "the key 'rank' is there twice"
    )
    path.write_text("base: &b {a: 1}\nkind: wold\nmerged: {<<: *b, a: 2}")
    command("eval", path).is_one_sentence("'wold'")  # merging is no repetition
    path.write_text("kind: wold")
    command("eval", path).is_one_sentence("'wold'", "did you mean 'world'")
    path.write_text("kind: parts\nsource: {type: coco, json_path: '${NOT_SET_ANYWHERE}/a.json'}")
    command("eval", path).is_one_sentence("NOT_SET_ANYWHERE", "export", ":-default")


# ---- data


@pytest.fixture
def coco(tmp_path, recipe):
    """Write a COCO-style json of one image and give the arguments that train on it, changed by `change(data)`."""

    def arguments(change):
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        box = [2, 2, 20, 2, 20, 20, 2, 20]
        data = {
            "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
            "categories": [{"id": 1, "name": "dog"}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": [box], "iscrowd": 0}],
        }
        change(data)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data))
        source = yaml.safe_dump({"photos": {"type": "coco", "json_path": str(path)}}, default_flow_style=True)
        return ["train", recipe, f"stages.words.sources={source}"]

    return arguments


def set_segmentation(value):
    return lambda data: data["annotations"][0].update(segmentation=value)


def set_file(name):
    return lambda data: data["images"][0].update(file_name=name)


BAD_DATA = {
    "missing image": (set_file("b.png"), ["instances.json", "image 1 is missing", "b.png", "set image_root"]),
    "four numbers": (set_segmentation([[1, 2, 3, 4]]), ["instances.json", "annotation 7", "4 numbers", "6 or more"]),
    "other RLE": (
        set_segmentation(dict(masks.encode(np.ones((5, 5), bool)))),
        ["annotation 7", "[5, 5]", "[30, 40]", "correct or remove it"],
    ),
    "no json": (lambda data: data.pop("annotations"), ["instances.json", "annotations"]),
    "counts of null": (set_segmentation({"size": [30, 40], "counts": None}), ["annotation 7", "its RLE has no counts"]),
    "no counts": (set_segmentation({"size": [30, 40]}), ["annotation 7", "its RLE has no counts"]),
    "size of null": (
        set_segmentation({"size": None, "counts": "0"}),
        ["annotation 7", "size is None", "[height, width]"],
    ),
    "no category name": (lambda data: data["categories"][0].pop("name"), ["category 1", "has no 'name'"]),
    "category name of null": (
        lambda data: data["categories"][0].update(name=None),
        ["category 1", "'name' is None", "expected text"],
    ),
    "no word": (lambda data: data["categories"][0].update(name="_"), ["category 1 is called '_'", "rename or skip"]),
    "a list for an id": (lambda data: data["annotations"][0].update(category_id=[1]), ["annotation 7", "[1]"]),
    "outside": (
        set_segmentation([[50, 2, 60, 2, 60, 9]]),
        ["annotation 7", "outside the image", "remove it"],
    ),
    "an image that is none": (
        lambda data: data["images"].append(None),
        ["instances.json: image at byte", "is None", "expected an object"],
    ),
    "a category that is none": (
        lambda data: data["categories"].insert(0, "dog"),
        ["category at byte", "is 'dog'", "expected an object"],
    ),
    "an annotation that is none": (
        lambda data: data["annotations"].append([1]),
        ["annotation at byte", "is [1]", "expected an object"],
    ),
    "an image without a name": (set_file(None), ["image 1", "'file_name' is None", "expected text"]),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_with_a_mistake(command, coco, kind):
    change, words = BAD_DATA[kind]
    command(*coco(change)).is_one_sentence(*words)


BAD_MASKS = {
    "NaN": (set_segmentation([[2, 2, 20, float("nan"), 20, 20]]), ["id 7", "it holds NaN, which is no number"]),
    "far away": (
        set_segmentation([[2, 2, 20, 1e300, 20, 20]]),
        ["annotation 7", "a polygon holds 1e+300 (float), far outside"],
    ),
    "words": (set_segmentation([[2, 2, "20", 2, 20, 20]]), ["annotation 7", "holds '20' (str); expected numbers"]),
    "short RLE": (set_segmentation({"size": [30, 40], "counts": "0:"}), ["annotation 7", "do not fill", "(30, 40)"]),
    "cut RLE": (set_segmentation({"size": [30, 40], "counts": "`"}), ["annotation 7", "do not fill", "(30, 40)"]),
    "empty RLE": (set_segmentation({"size": [30, 40], "counts": ""}), ["counts"]),
    "plain RLE": (set_segmentation({"size": [30, 40], "counts": [0, 10]}), ["counts sum to 10", "1200 pixels"]),
    "negative RLE": (
        set_segmentation({"size": [30, 40], "counts": [1201, -1]}),
        ["annotation 7", "whole numbers from 0"],
    ),
}
"""What is found when the mask is drawn."""


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_mask_that_cannot_be_drawn(command, coco, kind):
    change, words = BAD_MASKS[kind]
    command(*coco(change)).last_line().is_one_sentence("instances.json: annotation", *words, "correct or remove it")


def test_a_mistake_in_a_later_stage_is_said_before_the_first_begins(command, recipe, tmp_path):
    plan = yaml.safe_load(recipe.read_text())
    later = plan["stages"][0] | {"name": "later", "sources": {"photos": {"type": "coco", "json_path": "none.json"}}}
    recipe.write_text(yaml.safe_dump(plan | {"stages": [*plan["stages"], later]}))
    command("train", recipe).is_one_sentence("none.json does not exist")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_only_the_pixels_tell_is_said_by_a_worker_too(command, coco, tmp_path, workers):
    arguments = [*coco(lambda data: data["images"][0].update(height=31)), f"dataloader_num_workers={workers}"]
    command(*arguments).last_line().is_one_sentence(tmp_path / "a.png", "30", "31")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    command(*arguments).last_line().is_one_sentence(tmp_path / "a.png", "truncated")


def test_a_run_goes_on_with_as_many_processes(command, recipe, tmp_path):
    assert command("train", recipe).code == 0
    path = tmp_path / "runs" / "three_steps" / "last" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state["num_processes"] == 1
    torch.save({**state, "num_processes": 2}, path)
    command("train", recipe).is_one_sentence("a run of 2 processes, this is one of 1", "torchrun --nproc_per_node 2")


def test_conversations_of_which_none_fits(command, recipe):
    done = command("train", recipe, "stages.0.max_length=20")
    done.last_line().is_one_sentence("sample 'world", "none of 1 conversations fits into max_length 20", "raise it")
