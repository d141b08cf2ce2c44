"""`mglmm check-data` and `mglmm export`: from a folder, a config, a tree of data sets and the world."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

SIZE = (30, 40)


@pytest.fixture
def mine(tmp_path):
    """A folder of two photographs, each with a mask of a cup."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / "mine" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / "masks" / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / "images" / f"{name}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[5:20, 5 : 20 + number] = 255
        Image.fromarray(mask).save(tmp_path / "mine" / "masks" / name / "red_cup.png")
    return tmp_path / "mine"


def test_a_folder_that_is_right(command, mine):
    done = command("check-data", mine, "--page", "page.html", "--out", "all.json", "--processes", "1")
    assert done.code == 0, done.err
    assert "2 samples, 2 images, 2 masks, 1 category, 2 phrases" in done.out.replace("1 phrase", "2 phrases")
    assert "nothing wrong" in done.out
    page = (mine.parent / "page.html").read_text()
    assert page.count("<article") == 2 and "mine, sample 0" in page
    assert json.loads((mine.parent / "all.json").read_text())["problems"] == []


def test_a_folder_that_is_wrong(command, mine):
    (mine / "images" / "two.png").write_bytes(b"no picture")
    done = command("check-data", mine, "--fix-list", "fix.jsonl", "--processes", "1")
    assert done.code == 1 and "unreadable file: 1" in done.out and "1 problem" in done.out
    (line,) = map(json.loads, (mine.parent / "fix.jsonl").read_text().splitlines())
    assert line["source"] == "mine" and line["kind"] == "unreadable file" and "two.png" in line["problem"]
    assert line["index"] == 1


def test_a_config_and_its_stages(command, mine, recipe):
    plan = yaml.safe_load(recipe.read_text())
    plan["stages"][0]["sources"]["mine"] = {"type": "folder", "root": str(mine)}
    recipe.write_text(yaml.safe_dump(plan))
    done = command("check-data", recipe, "--limit", "2", "--processes", "1")
    assert done.code == 0, done.err
    assert "world\n" in done.out and "mine\n" in done.out and "(looked at 2)" in done.out
    (mine.parent / "plain.yaml").write_text(yaml.safe_dump({"sources": {"a": {"type": "folder", "root": str(mine)}}}))
    assert command("check-data", "plain.yaml", "--processes", "1").code == 0


def test_things_of_one_name_stay_apart_in_every_format(command, mine):
    masks = mine / "masks" / "one"
    for number in (1, 2):
        mask = np.zeros(SIZE, np.uint8)
        mask[5:20, 20 * number - 15 : 20 * number - 2] = 255
        mask[12, :] = 0  # two pieces
        Image.fromarray(mask).save(masks / f"red_cup.{number}.png")
    (masks / "red_cup.png").unlink()
    for form in ("jsonl", "coco", "labelme", "webdataset"):
        assert command("export", mine, f"as_{form}", "--format", form).code == 0
        done = command("check-data", f"as_{form}", "--processes", "1")
        assert done.code == 0 and "2 samples, 2 images, 3 masks, 1 category" in done.out, (form, done.out)


def test_what_is_joined_since_there_is_too_much_of_it_is_counted(command, mine):
    assert command("export", mine, "as_coco", "--format", "coco").code == 0
    path = mine.parent / "as_coco" / "annotations.json"
    data = json.loads(path.read_text())
    data["annotations"] += [{**data["annotations"][0], "id": 100 + number} for number in range(11)]
    path.write_text(json.dumps(data))
    done = command("check-data", "as_coco", "--processes", "1")
    assert done.code == 0 and "2 samples, 2 images, 2 masks" in done.out
    assert "joined, more of a name in a picture than max_regions: red cup 12 (instances)" in done.out


def test_polygons_that_reach_out_of_the_picture_are_counted(command, mine):
    assert command("export", mine, "as_coco", "--format", "coco").code == 0
    path = mine.parent / "as_coco" / "annotations.json"
    data = json.loads(path.read_text())
    corner = [[-9, -9, 20, -9, 20, 20, -9, 20]]
    data["annotations"][0] |= {"segmentation": corner, "bbox": [0, 0, 20, 20]}
    data["annotations"][1] |= {"segmentation": [[-1, 0, 20, 0, 20, 20]], "bbox": [0, 0, 20, 20]}  # by rounding
    path.write_text(json.dumps(data))
    done = command("check-data", "as_coco", "--processes", "1")
    assert done.code == 0 and "left out by rule: what polygons have outside of their image 1\n" in done.out


def test_the_golden_tree(command, shared):
    done = command("check-data", shared("golden", "datasets", "data"), "--page", "page.html", "--processes", "1")
    assert done.code == 1
    assert "grefcoco/train" in done.out and "mgscdata/train" in done.out and "refcocog_gcg" in done.out
    assert "annotation 4: its box [70, 10, 10, 10] (xywh) lies outside the image" in done.out
    assert "in two splits" in done.out and "unreadable file" not in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such"], "neither a file or folder nor a data set"),
        (["refcoc"], "did you mean 'refcoco'"),
        (["no.yaml"], "no config at no.yaml"),
        (["world", "--page", "page.txt"], "use one of .html"),
        (["world", "--limit", "0"], "limit"),
    ],
)
def test_what_cannot_be_checked(command, arguments, words):
    done = command("check-data", *arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def test_from_a_folder_to_our_lines_and_back(command, mine):
    done = command("export", mine, "lines")
    assert done.code == 0 and "saved 2 samples in lines" in done.out
    assert command("check-data", "lines", "--processes", "1").code == 0
    done = command("export", "lines", "shards", "--format", "webdataset")
    assert done.code == 0 and command("check-data", "shards", "--processes", "1").code == 0
    done = command("export", mine, "coco", "--format", "coco")
    assert "not in this format: 2 conversations" in done.out
    assert command("check-data", "coco", "--processes", "1").code == 0


def test_the_world_needs_a_number(command):
    done = command("export", "world", "out")
    assert done.code == 2 and "say how many with --limit" in done.err
    done = command("export", "world", "out", "--limit", "2")
    assert done.code == 0 and Path("out/samples.jsonl").read_text().count("\n") == 2


def test_which_of_several_sources(command, mine, tmp_path):
    specs = {name: {"type": "folder", "root": str(mine)} for name in ("a", "b")}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"sources": specs}))
    done = command("export", "two.yaml", "out")
    assert done.code == 2 and "say which with --name: a, b" in done.err
    assert command("export", "two.yaml", "out", "--name", "b").code == 0
    assert "no source 'c'" in command("export", "two.yaml", "out2", "--name", "c").err
    assert "on_error is 'skip'" in command("export", mine, "out3", "--on-error", "skip").err
    assert "'yolo'" in command("export", mine, "out4", "--format", "yolo").err
    assert "not empty" in command("export", mine, "out").err


def test_what_cannot_be_exported_is_listed(command, mine):
    (mine / "images" / "two.png").write_bytes(b"no picture")
    assert command("export", mine, "one").code == 2
    done = command("export", mine, "two", "--on-error", "count")
    assert done.code == 1 and "saved 1 samples" in done.out and "left out: sample 1: " in done.out
