"""Formats of others: masks survive, boxes are in the right units, nothing is needed to export nothing."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from mglmm.answer import Answer, Instance, Phrase
from mglmm.export import encode_brush, label_studio_config

SIZE = (30, 50)


def ring() -> np.ndarray:
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 15, cols - 20)
    return (distance < 12) & (distance > 4)


@pytest.fixture
def answer() -> Answer:
    hat = np.zeros(SIZE, bool)
    hat[5:9, 12:30] = True
    hat[28, 48] = True  # a piece of one pixel
    phrases = (
        Phrase("a person", (0, 8), (Instance(ring(), None, 0.75), Instance(np.zeros(SIZE, bool), None, 0.5))),
        Phrase("a hat", (14, 19), (Instance(hat, None, 0.25),)),
        Phrase("a <car>", (24, 31), (Instance(None, (5.0, 3.0, 25.0, 18.0), 1.0),)),
    )
    return Answer("a person with a hat and a <car>", phrases, np.full((*SIZE, 3), 9, np.uint8), prompt="What?")


@pytest.fixture
def silent() -> Answer:
    return Answer("Nothing.", (), np.zeros((*SIZE, 3), np.uint8))


def decode_brush(data: list[int]) -> np.ndarray:
    """Label Studio's RLE to its bytes, written from the description of the stream, single values included."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    num, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < num:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        out += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(out, np.uint8)


def test_coco_keeps_overlapping_masks(answer, tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(answer.to_coco(file_name="x.jpg", image_id=7)))
    data = COCO(str(path))
    annotations: list[Any] = [*data.loadAnns(data.getAnnIds(imgIds=7))]
    given = [item.mask for phrase in answer.phrases for item in phrase.instances]
    for annotation, mask in zip(annotations, given, strict=True):
        if mask is None:
            assert annotation["segmentation"] == [] and annotation["bbox"] == [5, 3, 20, 15]
            continue
        assert (data.annToMask(annotation).astype(bool) == mask).all()
        assert annotation["area"] == mask.sum()
        assert np.allclose(annotation["bbox"], coco_mask.toBbox(annotation["segmentation"])) or not mask.any()
    assert annotations[2]["phrase"] == "a hat" and annotations[2]["span"] == [14, 19]
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == ["a person", "a hat", "a <car>"]


def test_labelme_polygons_fill_to_the_mask_without_its_hole(answer):
    data = json.loads(json.dumps(answer.to_labelme(image_path="x.jpg")))
    assert data["imageData"] is None and (data["imageHeight"], data["imageWidth"]) == SIZE
    for number, filled in ((1, ring()), (3, answer.phrases[1].mask)):  # the first phrase has two objects
        canvas = Image.new("1", (SIZE[1], SIZE[0]))
        for shape in data["shapes"]:
            if shape["group_id"] == number:
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], fill=1, outline=1)
        expected = binary_fill_holes(filled)
        assert (np.array(canvas) & filled).sum() == filled.sum()
        assert (np.array(canvas) ^ expected).mean() < 0.02
    assert all(len(shape["points"]) >= 3 for shape in data["shapes"] if shape["shape_type"] == "polygon")
    assert data["shapes"][-1]["shape_type"] == "rectangle" and data["shapes"][-1]["points"] == [[5, 3], [25, 18]]


def test_labelme_bitmaps_lose_nothing_and_the_image_can_be_inside(answer):
    data = answer.to_labelme(shapes="mask", embed=True)
    shape = data["shapes"][0]
    (x1, y1), (x2, y2) = shape["points"]
    out = np.zeros(SIZE, bool)
    out[y1 : y2 + 1, x1 : x2 + 1] = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    assert shape["shape_type"] == "mask" and (out == ring()).all()
    assert (np.array(Image.open(io.BytesIO(base64.b64decode(data["imageData"])))) == answer.image).all()
    with pytest.raises(ValueError, match=r"'circle'.*'polygon' or 'mask'"):
        answer.to_labelme(shapes="circle")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(4))
def test_brush_round_trip(seed):
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((7, 9)) > 0.5, int(rng.integers(1, 40)), axis=1)
    assert (decode_brush(encode_brush(mask)).reshape(*mask.shape, 4) == 255 * mask[..., None]).all()
    large = np.zeros((200, 333), bool)  # runs longer than 16 bits can say
    large[-1, -1] = seed % 2
    assert (decode_brush(encode_brush(large))[::4].reshape(large.shape) == 255 * large).all()


def test_brush_begins_like_a_mask_from_label_studio():
    """First bytes of a 3332x2527 mask in huggingface.co/datasets/alkzar90/cell_benchmark, exported by Label Studio."""
    theirs = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240]
    assert encode_brush(np.zeros((2527, 3332), bool))[: len(theirs)] == theirs


def test_label_studio_task(answer):
    task = json.loads(json.dumps(answer.to_label_studio(image_url="http://x/y.jpg")))
    person, empty, hat, car = task["predictions"][0]["result"]
    assert task["data"]["image"] == "http://x/y.jpg" and person["value"]["brushlabels"] == ["a person"]
    assert not any(decode_brush(empty["value"]["rle"]))
    assert decode_brush(hat["value"]["rle"]).size == 4 * SIZE[0] * SIZE[1]
    value = {key: car["value"][key] for key in ("x", "y", "width", "height")}
    assert value == pytest.approx({"x": 10, "y": 10, "width": 40, "height": 50})
    assert car["type"] == "rectanglelabels" and len({item["id"] for item in (person, empty, hat, car)}) == 4
    assert '<Label value="a &lt;car&gt;"/>' in label_studio_config([answer])


def test_supervision(answer, silent):
    pytest.importorskip("supervision")
    detections = answer.to_supervision()
    assert detections.data["phrase"].tolist() == ["a person", "a person", "a hat", "a <car>"]
    assert (detections.mask[0] == ring()).all() and detections.class_id.tolist() == [0, 0, 1, 2]
    assert detections.xyxy[3].tolist() == [5, 3, 25, 18]
    boxes_only = Answer("car", (Phrase("car", (0, 3), (Instance(None, (0, 0, 1, 1), 1.0),)),), silent.image)
    assert boxes_only.to_supervision().mask is None
    assert len(silent.to_supervision()) == 0


def test_no_phrase_exports_to_nothing(silent):
    assert silent.to_coco()["annotations"] == [] and silent.to_coco()["images"][0]["height"] == SIZE[0]
    assert silent.to_labelme()["shapes"] == []
    assert silent.to_label_studio()["predictions"][0]["result"] == []
