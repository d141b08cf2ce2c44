"""Folders of labelme and of YOLO: a real one, and lines and shapes that are wrong."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import registry
from mglmm_data.yolo import NAMES as COCO_NAMES
from mglmm_data.yolo import YoloSource

HEIGHT, WIDTH = 30, 40


def make_source(spec) -> Any:
    return registry.make_source(spec)


def regions_of(sample):
    return [region for region in sample.regions if region.kind == "mask"]


def said(source, index=0, epoch=0):
    return [(c.task, c.turns[1].text) for c in source.sample(index, epoch).conversations]


def test_yolo_is_coco_up_to_its_bridges(shared):
    """The same photographs in COCO's own json: class by class the masks agree, but for joined pieces and holes."""
    source = make_source({"type": "yolo", "root": shared("data", "coco128_seg"), "max_regions": 99})
    assert len(source) == 103 and source.skipped == {"image without labels": 2}
    assert (len(COCO_NAMES), COCO_NAMES[0], COCO_NAMES[79]) == (80, "person", "toothbrush")
    path = shared("data", "coco128_seg", "labels", "train2017", "000000000025.txt")
    lines = [line.split() for line in path.read_text().splitlines()]
    sample = next(sample for sample in map(source.sample, range(3)) if sample.id.endswith("0025"))
    boxes = sorted(region.bounds for region in regions_of(sample))
    for line, box in zip(sorted(lines, key=lambda line: min(map(float, line[1::2]))), boxes, strict=True):
        shares = np.array(line[1:], float).reshape(-1, 2) * (sample.size[1], sample.size[0])
        assert np.abs(np.concatenate([shares.min(0), shares.max(0)]) - box).max() <= 1.5


def labelme(tmp_path, *shapes, **more):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png", **more}))
    return make_source({"type": "labelme", "root": tmp_path, "tasks": {"panoptic": 1}})


def test_labelme_shapes(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(png, "PNG")
    source = labelme(
        tmp_path,
        {"label": "red_cup", "points": [[2, 2], [10, 8]], "shape_type": "rectangle"},
        {"label": "ball", "points": [[30, 20], [34, 20]], "shape_type": "circle"},
        {
            "label": "hat",
            "points": [[12, 20], [18, 24]],
            "shape_type": "mask",
            "mask": base64.b64encode(png.getvalue()).decode(),
        },
        {"label": "dog", "points": [[0, 0], [3, 0], [3, 3]], "group_id": 1},
        {"label": "dog", "points": [[20, 0], [23, 0], [23, 3]], "group_id": 1},
        {"label": "dog", "points": [[26, 0], [29, 0], [29, 3]], "group_id": None},
        {"label": "seam", "points": [[1, 1], [9, 9]], "shape_type": "line"},
    )
    assert said(source) == [("panoptic", "a ball, two dogs, a hat, a red cup.")]
    bounds = {region.label: region.bounds for region in source.sample(0).regions if region.label != "dog"}
    assert bounds["red cup"] == (2, 2, 10, 8) and bounds["hat"] == (12, 20, 18, 24)
    ball = next(region.mask for region in source.sample(0).regions if region.label == "ball")
    assert abs(ball.sum() - np.pi * 16) < 8
    assert source.skipped["line, point or skipped label"] == 1


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"points": [[0, 0], [3, 0], [3, 3]]}, "shape 0: has no 'label'"),
        ({"label": "x", "points": [[0, 0], [3, 0]]}, "shape 0: a polygon has 2 points; it needs 3"),
        ({"label": "x", "points": [[0, 0], [3, 0], [3]]}, r"shape 0: a point is \[3\]"),
        ({"label": "x", "points": [[0, 0], [3, 0], [3, "a"]]}, "shape 0: a point holds 'a'"),
        ({"label": "x", "points": [[0, 0], [3, 0], [3, float("nan")]]}, "shape 0: a point holds nan"),
        ({"label": "x", "points": [[0, 0]], "shape_type": "cube"}, "shape 0: its shape_type is 'cube'"),
    ],
)
def test_wrong_labelme_shapes_are_named(tmp_path, shape, match):
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        labelme(tmp_path, shape)


def test_what_of_labelme_only_the_image_tells(tmp_path):
    far = {"label": "x", "points": [[90, 90], [95, 90], [95, 95]]}
    with pytest.raises(ValueError, match=r"a\.json: shape 0 \(x\): it lies outside"):
        labelme(tmp_path, far).sample(0)
    near = {"label": "x", "points": [[0, 0], [5, 0], [5, 5]]}
    with pytest.raises(ValueError, match=r"a\.json is for an image of \(7, 40\)"):
        labelme(tmp_path, near, imageHeight=7).sample(0)
    with pytest.raises(ValueError, match=r"a\.json: its imagePath '\.\./a\.png' leaves"):
        labelme(tmp_path, near, imagePath="../a.png")
    with pytest.raises(ValueError, match=r"a\.json: its image .*b\.png is missing"):
        labelme(tmp_path, near, imagePath="b.png")
    with pytest.raises(ValueError, match=r"a\.json: its imageData is damaged"):
        labelme(tmp_path, near, imageData="!!").sample(0)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("80 0 0 1 0 1 1", "line 2: has class 80; there are 80 names"),
        ("0.5 0 0 1 0 1 1", "line 2: has class 0.5"),
        ("0 0 0 1 0 1", "line 2: has 5 coordinates"),
        ("0 0.5 0.5 0.2 0.2", "line 2: has 4 coordinates; .*boxes: true"),
        ("0 0 0 100 0 1 1", "line 2: holds 100.0; coordinates are shares"),
        ("0 0 0 nan 0 1 1", "line 2: holds nan"),
        ("inf 0 0 1 0 1 1", "line 2: has class inf"),
        ("dog 0 0 1 0 1 1", "line 2: holds something that is no number"),
    ],
)
def test_wrong_yolo_lines_are_named_or_counted(tmp_path, line, match):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text(f"0 0 0 0.5 0 0.5 0.5\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt: {match}"):
        make_source({"type": "yolo", "root": tmp_path, "names": "coco"})
    source = make_source({"type": "yolo", "root": tmp_path, "names": "coco", "on_error": "count"})
    assert len(source.problems.found) == 1 and len(regions_of(source.sample(0))) == 1


def test_yolo_labels_that_cannot_be_read_leave_their_photograph_out(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for stem in "ab":
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / f"{stem}.jpg")
        (tmp_path / "labels" / f"{stem}.txt").write_bytes(b"0 0 0 0.5 0 0.5 0.5\n" + b"\xe9" * (stem == "a"))
    with pytest.raises(ValueError, match=r"a\.jpg: .*a\.txt is not UTF-8 \(byte 20 is 0xe9\)"):
        make_source({"type": "yolo", "root": tmp_path, "names": "coco"})
    source = make_source({"type": "yolo", "root": tmp_path, "names": "coco", "on_error": "count"})
    assert len(source.problems.found) == 1 and [source.id_of(i) for i in range(len(source))] == ["yolo/b"]


def test_yolo_boxes_and_names(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "val" / "a.jpg")
    (tmp_path / "labels" / "val" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    spec = {"type": "yolo", "root": tmp_path, "names": ["cat", "hot_dog"], "boxes": True, "tasks": {"box": 1}}
    sample = make_source(spec).sample(0)
    (conversation,) = sample.conversations
    assert conversation.turns[1].grounding == "box" and conversation.turns[1].text == "the hot dog."
    assert sample.regions[conversation.turns[1].phrases[0].regions[0]].bounds == (10, 12, 30, 18)
    (tmp_path / "labels" / "val" / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt: has no photograph b"):
        make_source(spec)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "nc: 2\nnames: [apple leaf, rust_spot]\n"),
        ("mine.yml", "names:\n  0: apple leaf\n  1: rust_spot\n"),
        ("classes.txt", "apple leaf\nrust_spot\n"),
    ],
)
def test_yolo_classes_are_called_as_the_set_says(tmp_path, file, text):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("1 0 0 0.5 0 0.5 0.5\n")
    with pytest.raises(ValueError, match="does not say what its classes are called; put a data.yaml"):
        make_source({"type": "yolo", "root": tmp_path})
    (tmp_path / file).write_text(text)
    source = make_source({"type": "yolo", "root": tmp_path})
    assert source.names == ("apple leaf", "rust spot") and regions_of(source.sample(0))[0].label == "rust spot"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("names: [1, 2]", r"data\.yaml: its 'names' is \[1, 2\]"),
        ("names: {1: cat}", r"data\.yaml: its 'names' is \{1: 'cat'\}"),
        ("names: [cat", r"data\.yaml is no yaml"),
    ],
)
def test_wrong_yolo_classes_are_named(tmp_path, text, match):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        make_source({"type": "yolo", "root": tmp_path})
    with pytest.raises(ValueError, match="names is 'coc'; give a list"):
        YoloSource(tmp_path, names="coc")  # type: ignore[arg-type]


def test_a_rectangle_of_four_corners_is_whole(tmp_path):
    corners = [[2, 2], [10, 2], [10, 8], [2, 8]]  # as X-AnyLabeling writes it
    source = labelme(tmp_path, {"label": "cup", "points": corners, "shape_type": "rectangle"})
    assert [region.bounds for region in regions_of(source.sample(0))] == [(2, 2, 10, 8)]
