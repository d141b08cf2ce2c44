"""`mglmm eval`: its tables, and what it says of mistakes."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mglmm.eval.report import Report


def test_eval_world_beside_another(command, tiny_checkpoint, tmp_path):
    few = ["count=2", "size=64", "tasks=[referring, vqa]", "resamples=0", "generation.max_new_tokens=3"]
    models = ["--model", tiny_checkpoint, "--beside", tmp_path / "twin"]
    (tmp_path / "twin").symlink_to(tiny_checkpoint)
    done = command("eval", "eval/world", *few, *models, "--out", "r.json", "--out", "r.MD", "--detail", "short")
    assert done.code == 0 and "Held-out world" in done.out and "cIoU" in done.out and "mean_things" in done.out
    report = Report.load("r.json")
    assert report.columns == ("blind", "swapped", "twin")
    assert all(row.beside["twin"] == row.value for row in report.rows)
    assert report.meta["model"] == str(tiny_checkpoint) and report.meta["seconds"] >= 0
    assert "| twin |" in (tmp_path / "r.MD").read_text()


def test_eval_names_checkpoints_apart(command, tiny_checkpoint):
    done = command("eval", "eval/world", "--model", tiny_checkpoint, "--beside", tiny_checkpoint)
    assert done.code == 2 and "called alike" in done.err


@pytest.fixture
def parts(tmp_path):
    """An evaluation of parts on six pictures whose wheel is always in the same corner."""
    for folder in ("images", "masks"):
        (tmp_path / "cars" / folder).mkdir(parents=True)
    for name in "abcdef":
        mask = np.zeros((20, 20), np.uint8)
        mask[:8, :8] = 255
        Image.new("RGB", (20, 20)).save(tmp_path / "cars" / "images" / f"{name}.png")
        (tmp_path / "cars" / "masks" / name).mkdir()
        Image.fromarray(mask).save(tmp_path / "cars" / "masks" / name / "wheel.png")
    source = {"type": "folder", "root": "${CARS}", "kind": "parts", "tasks": {"fine": 1}, "object_name": "car"}
    path = tmp_path / "parts.yaml"
    config = {"kind": "parts", "source": source | {"split": {"validation_share": 0.5}}, "batch_size": 2}
    path.write_text(yaml.safe_dump(config | {"generation": {"max_new_tokens": 3}}))
    return path


def test_eval_parts_beside_the_mean_masks(command, parts, tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("CARS", str(tmp_path / "cars"))
    done = command("eval", parts, "--model", tiny_checkpoint, "--out", "r.json")
    assert done.code == 0 and "mean mask" in done.out
    row = Report.load("r.json").row("parts", "mIoU")
    assert row.count == 3 and row.value == 0 and row.beside["mean mask"] > 0.9


def test_eval_parts_on_images_of_another_source(command, parts, tiny_checkpoint, monkeypatch, tmp_path):
    """Sets that come divided (CamVid's lists, COCO's two files) say what the validation images' source has instead."""
    monkeypatch.setenv("CARS", str(tmp_path / "cars"))
    shutil.copytree(tmp_path / "cars", tmp_path / "vans")
    shutil.rmtree(tmp_path / "vans" / "masks" / "a")
    (tmp_path / "vans" / "images" / "a.png").unlink()
    wanted = "validation={root: vans, split: null}"
    done = command("eval", parts, wanted, "source.split=null", "--model", tiny_checkpoint, "--out", "r.json")
    assert done.code == 0, done.err
    row = Report.load("r.json").row("parts", "mIoU")
    assert row.count == 5 and row.beside["mean mask"] > 0.9
    done = command("eval", parts, "source={type: world}", "validation={size: 96}", "--model", tiny_checkpoint)
    assert done.code == 2 and "use one of masks with names, as coco or folder" in done.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("source.split=null", "validation_share"),
        ("source={type: world, split: {validation_share: 0.2}}", "split"),
        ("validation={rot: b}", "rot"),
        ("generation.gramar=false", "did you mean 'grammar'"),
        ("batch_size=0", "batch_size"),
    ],
)
def test_eval_parts_with_a_mistake(command, parts, tiny_checkpoint, monkeypatch, tmp_path, override, words):
    monkeypatch.setenv("CARS", str(tmp_path / "cars"))
    done = command("eval", parts, override, "--model", tiny_checkpoint)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1
