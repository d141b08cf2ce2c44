"""Checking data: everything is counted, everything wrong is listed by kind, and leaks between splits are found."""

import json

import numpy as np
import pytest
from PIL import Image

from mglmm_data.check import Found, check, kind_of, leaks, split_of, spread
from mglmm_data.coco import CocoSource
from mglmm_data.export import picture_of
from mglmm_data.registry import make_source
from mglmm_data.shards import write_shards

SIZE = (30, 40)
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]


@pytest.fixture
def folder(tmp_path):
    """Images one, two, three with a cup each; the second mask of one is black."""
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[5:20, 5:20] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / name / "red_cup.png")
    return tmp_path


def spec(folder, **keys):
    return {"type": "folder", "root": str(folder), "tasks": {"panoptic": 1}, **keys}


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_right_is_counted(folder, processes):
    told = []
    report = check({"mine": spec(folder)}, processes=processes, on_progress=lambda *values: told.append(values))
    found = report.found["mine"]
    assert not report.problems and (found.samples, found.looked_at, len(found.images), found.phrases) == (3, 3, 3, 3)
    assert found.regions == {"mask": 3} and found.categories == {"red cup": 3} and found.tasks == {"panoptic": 3}
    assert found.shown == [0, 1, 2] and told[-1] == ("mine", 3, 3)
    assert json.loads(json.dumps(report.to_json()))["sources"]["mine"]["images"] == 3
    assert check({"mine": spec(folder)}, processes=1, limit=2).found["mine"].looked_at == 2


def test_what_is_wrong_is_listed_by_kind(folder):
    (folder / "images" / "two.png").write_bytes((folder / "images" / "two.png").read_bytes()[:80])
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "masks" / "one" / "plate.png")
    Image.fromarray(np.full((5, 5), 255, np.uint8)).save(folder / "masks" / "three" / "fork.png")
    (folder / "masks" / "four").mkdir()
    report = check({"mine": spec(folder)}, processes=1)
    kinds = {problem.kind: problem.problem for problem in report.problems}
    assert "two.png is truncated or damaged" in kinds["unreadable file"]
    assert "plate.png is all black" in kinds["empty mask"]
    assert "fork.png is (5, 5), its image (30, 40)" in kinds["another size"]
    assert "masks/four has no image" in kinds["missing file"]
    assert sorted(problem.index for problem in report.problems if problem.index is not None) == [0, 1, 2]
    assert report.found["mine"].looked_at == 3 and report.found["mine"].shown == []


def test_samples_that_can_be_read_may_still_be_wrong(tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    empty = {"label": "cup", "mask": {"size": [30, 40], "counts": [1200]}}
    turns = [
        {"role": "user", "text": "What?"},
        {"role": "assistant", "text": "a cup", "phrases": [{"text": "a cup", "regions": [0]}]},
    ]
    line = {"image": "a.png", "regions": [empty, {"box": [1, 1, 5, 5]}], "conversations": [{"turns": turns}]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    report = check({"mine": {"type": "jsonl", "path": str(tmp_path)}}, processes=1)
    assert {problem.kind for problem in report.problems} == {
        "empty mask",
        "phrase without a mask",
        "mask without a phrase",
    }
    assert all(problem.index == 0 and problem.file.endswith("a.png") for problem in report.problems)


def test_masks_without_pixels_are_found_although_training_leaves_them_out(tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "1.png")
    shapes = ([SQUARE], [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]], {"size": [*SIZE], "counts": [1200]}, [])
    data = {
        "images": [{"id": 1, "file_name": "1.png", "height": 30, "width": 40}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 3, "segmentation": shape}
            for number, shape in enumerate(shapes)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    spec = {"type": "coco", "json_path": str(tmp_path / "a.json"), "tasks": {"panoptic": 1}}
    problems = check({"mine": spec}, processes=1).problems
    assert [(problem.kind, problem.index, problem.id) for problem in problems] == [("empty mask", 0, "a/1")] * 3
    assert [problem.problem.split(": ")[1][:12] for problem in problems] == [f"annotation {n}" for n in (1, 2, 3)]
    assert len(CocoSource(tmp_path / "a.json", tasks={"panoptic": 1}).sample(0).meta["notes"]) == 3
    data["annotations"] = data["annotations"][1:3]
    (tmp_path / "a.json").write_text(json.dumps(data))
    (problem,) = check({"mine": spec}, processes=1).problems  # nothing is left to ask about
    assert problem.kind == "empty mask" and "annotation 1 (dog) covers no pixel" in problem.problem


@pytest.mark.parametrize("kind", ["labelme", "yolo"])
def test_polygons_without_pixels_are_found_in_other_families(tmp_path, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    folder = tmp_path / "images" if kind == "yolo" else tmp_path
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "a.png")
    shapes = [
        {"label": "dog", "points": points}
        for points in ([[5, 5], [15, 5], [15, 15]], [[5.1, 5.1], [5.2, 5.1], [5.2, 5.2]])
    ]
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": shapes}))
    (tmp_path / "labels" / "a.txt").write_text("16 0.1 0.1 0.5 0.1 0.5 0.5\n16 1.004 0.1 1.005 0.1 1.005 0.2\n")
    spec = {"type": kind, "root": str(tmp_path)} | ({"names": "coco"} if kind == "yolo" else {})
    (problem,) = check({"mine": spec}, processes=1).problems
    assert problem.kind == "empty mask" and "(dog) covers no pixel" in problem.problem and problem.index == 0


def test_a_sample_without_a_question_is_a_problem(folder):
    (folder / "samples.jsonl").write_text('{"image": "images/one.png", "conversations": []}\n')
    (problem,) = check({"mine": {"type": "jsonl", "path": str(folder)}}, processes=1).problems
    assert problem.kind == "no question" and problem.id == "samples/0"


def test_the_same_picture_in_two_splits_is_a_leak(folder, tmp_path):
    lines = [
        {"image": f"images/{name}.png", "regions": [{"label": "cup", "box": [1, 1, 4, 4]}]} for name in ("one", "two")
    ]
    (folder / "val.jsonl").write_text(json.dumps(lines[0]) + "\n")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    specs = {name: {"type": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("train", "val")}
    report = check(specs, processes=1)
    (leak,) = report.leaks
    assert leak.kind == "in two splits" and leak.source == "val" and "as in train (train)" in leak.problem
    assert leak.file.endswith("one.png") and report.problems == [leak]
    train = make_source(specs["train"])
    samples = [train.sample(index) for index in range(2)]
    write_shards(((sample, *picture_of(sample)) for sample in samples), folder / "train")
    specs["train"] = {"type": "shards", "path": str(folder / "train")}  # pixels, whatever they lie in
    (folder / "test.jsonl").write_text(json.dumps(lines[0]) + "\n")
    specs["test"] = {"type": "jsonl", "path": str(folder / "test.jsonl")}
    told = [(leak.source, leak.problem.split(" as in ")[1]) for leak in check(specs, processes=1).leaks]
    way = "; leave it out of one"
    assert told == [("val", f"train (train){way}"), ("test", f"train (train), val (val){way}")]
    parts = {part: spec(folder, split={"part": part}) for part in ("train", "validation")}
    assert not check(parts, processes=1).leaks


def test_a_split_that_is_not_named_is_the_default_of_its_type(shared):
    root = str(shared("golden", "datasets", "data", "refer_seg").parent)
    specs = {
        "a": {"type": "refer", "root": root, "dataset": "refcoco"},
        "b": {"type": "refer", "root": root, "dataset": "refcocog", "split": "val"},
    }
    written = {"a": {**specs["a"], "split": "train"}, "b": specs["b"]}
    assert check(specs, processes=1).leaks == check(written, processes=1).leaks != []


@pytest.mark.parametrize(
    ("name", "keys", "split"),
    [
        ("refcoco/val", {"split": "val"}, "val"),
        ("mine", {"split": {"part": "train"}}, "train"),
        ("mine", {"split": {"part": "all"}}, ""),
        ("x", {"json_path": "a/instances_val2017.json"}, "val"),
        ("coco_train", {}, "train"),
        ("x", {"split": "testA"}, "test"),
        ("mine", {"root": "valley/photos"}, ""),
        ("rec_refcoco_val", {"path": "a.json", "image_root": "coco/train2014"}, "val"),
        ("x", {"path": "refcoco_val.json", "image_root": "coco/train2014"}, "val"),
        ("x", {"path": "instances.json", "image_root": "coco/train2014"}, "train"),
        ("x", {"type": "refer", "dataset": "refcoco", "root": "data/val"}, "train"),
        ("x", {"type": "shards", "path": "/data/val/{000..001}.tar"}, "val"),
        ("x", {"root": "/data/test/mine"}, "test"),
        ("latest", {"root": "/data/valves/carnival"}, ""),
    ],
)
def test_which_split_a_source_is(name, keys, split):
    assert split_of(name, {"type": "folder", **keys}) == split
    assert not leaks(name, {name: Found(name, split=split, images={"a": "b"})})


def test_a_source_that_cannot_be_made_is_a_problem_and_the_rest_is_read(folder, tmp_path):
    report = check({"gone": spec(tmp_path / "gone"), "mine": spec(folder), "odd": {"type": "foldr"}}, processes=1)
    assert [(problem.source, problem.index) for problem in report.problems] == [("gone", None), ("odd", None)]
    assert report.found["mine"].looked_at == 3


def test_the_world_is_looked_at_in_part():
    report = check({"world": {"type": "world", "size": 64, "turns": 1}}, processes=1, limit=2)
    assert report.found["world"].looked_at == 2 and not report.problems


def test_bad_arguments(folder):
    with pytest.raises(ValueError, match="no source to check"):
        check({})
    with pytest.raises(ValueError, match="processes is 0"):
        check({"mine": spec(folder)}, processes=0)
    with pytest.raises(ValueError, match="limit is 0"):
        check({"mine": spec(folder)}, limit=0)


def test_spread_and_kinds():
    assert spread(10, 3) == [0, 3, 6] and spread(2, 3) == [0, 1] and spread(0, 3) == []
    assert spread(2, 2, [5, 9]) == [5, 9]
    assert kind_of("box (1, 2) is not inside the image of 3x3 px") == "outside the image"
    assert kind_of("a.jpg does not exist") == "missing file" and kind_of("odd") == "malformed annotation"
