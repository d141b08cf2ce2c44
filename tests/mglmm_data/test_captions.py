"""COCO, NoCaps, Flickr30k captions: every caption read once, and wrong records named with file and id."""

import json

import numpy as np
import pytest
from PIL import Image

from mglmm_data.captions import CaptionSource, read_captions
from mglmm_data.reading import Problems
from mglmm_data.registry import make_source


@pytest.fixture
def coco(tmp_path):
    """A captions json in COCO's form with NoCaps' domains, and its pictures."""
    for number in (1, 2):
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    data = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 20, "width": 30, "domain": domain}
            for i, domain in ((1, "in-domain"), (2, "out-domain"))
        ],
        "annotations": [
            {"id": 5, "image_id": 1, "caption": " A dog\n on the grass. "},
            {"id": 6, "image_id": 1, "caption": "A brown dog."},
            {"id": 7, "image_id": 2, "caption": "Ein Hund — naïve."},
        ],
    }

    def write(change=lambda data: None):
        change(data)
        (tmp_path / "captions.json").write_text(json.dumps(data, allow_nan=True), encoding="utf-8")
        return tmp_path / "captions.json"

    return write


def answers(source):
    return [source.sample(i).conversations[0].turns[1].text for i in range(len(source))]


def test_a_sample_for_each_caption_or_for_each_image(coco, tmp_path):
    path = coco()
    each = CaptionSource(path, tmp_path, per="caption")
    assert answers(each) == ["A dog on the grass.", "A brown dog.", "Ein Hund — naïve."]
    drawn = CaptionSource(path, tmp_path)
    assert len(drawn) == 2
    seen = {drawn.sample(0, epoch).conversations[0].turns[1].text for epoch in range(20)}
    assert seen == {"A dog on the grass.", "A brown dog."} == set(drawn.sample(0).meta["references"])
    assert drawn.sample(0, 3).conversations == drawn.sample(0, 3).conversations


def test_domains_and_lists_choose_images(coco, tmp_path):
    path = coco()
    source = CaptionSource(path, tmp_path, subset="out-domain")
    assert answers(source) == ["Ein Hund — naïve."] and source.skipped["image of another subset"] == 1
    (tmp_path / "test.txt").write_text("1\n")
    assert {CaptionSource(path, tmp_path, only=tmp_path / "test.txt").sample(0).meta["image_id"]} == {1}
    with pytest.raises(ValueError, match=r"no subset 'in-domian', did you mean 'in-domain'"):
        CaptionSource(path, tmp_path, subset="in-domian")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][1].pop("caption"), r"annotation 6: has no 'caption'"),
        (lambda d: d["annotations"][1].update(caption=3), r"annotation 6: its 'caption' is 3 \(int\); expected text"),
        (lambda d: d["annotations"][1].update(caption=" \n"), r"annotation 6: its 'caption' is empty"),
        (lambda d: d["annotations"][1].update(image_id=9), r"annotation 6: is on image id 9, which is not among"),
        (lambda d: d["annotations"].append("text"), r"annotation number 3: is 'text' \(str\)"),
        (lambda d: d["images"][1].update(file_name="../2.png"), r"image 2: its image '../2.png' leaves the folder"),
        (lambda d: d["images"][1].update(file_name="/etc/hosts"), r"image 2: its image '/etc/hosts' leaves the folder"),
        (lambda d: d["images"][1].update(file_name="3.png"), r"image 2: its image '3.png' is missing in"),
        (lambda d: d["images"][1].update(id=1), r"image 1: its id is there twice"),
        (lambda d: d["images"][1].update(height="20"), r"image 2: its 'height' is '20' \(str\); expected a whole"),
        (
            lambda d: d["images"][1].update(width=float("nan")),
            r"images\[1\] \(id 2\): it holds NaN, which is no number",
        ),
    ],
)
def test_a_wrong_record_is_named_or_counted(coco, tmp_path, change, message):
    path = coco(change)
    with pytest.raises(ValueError, match=f"captions.json: {message}.*on_error: count"):
        CaptionSource(path, tmp_path)
    source = CaptionSource(path, tmp_path, on_error="count")
    assert source.problems.found and len(source) >= 1


def test_a_text_in_latin_1_is_one_wrong_record(coco, tmp_path):
    path = coco()
    path.write_bytes(path.read_bytes().replace(b"A brown dog.", "Un café.".encode("latin-1")))
    with pytest.raises(ValueError, match=r"captions.json: annotations\[1\] \(id 6\): it holds text that is not UTF-8"):
        CaptionSource(path, tmp_path)
    source = CaptionSource(path, tmp_path, per="caption", on_error="count")
    assert answers(source) == ["A dog on the grass.", "Ein Hund — naïve."] and len(source.problems.found) == 1


def test_a_picture_of_another_size_or_damaged_names_itself(coco, tmp_path):
    source = CaptionSource(coco(lambda d: d["images"][0].update(height=21)), tmp_path)
    with pytest.raises(
        ValueError, match=r"captions.json: image 1: the annotation is for \(21, 30\).*1.png is \(20, 30"
    ):
        source.sample(0)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"2\.png is truncated"):
        source.sample(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', r"cannot be read as json"),
        ('{"images": ["\xe9"]}'.encode("latin-1"), r"images\[0\]: it holds text that is not UTF-8 \(byte 13\)"),
        (b"[]", r"has no list 'images'"),
        (b'{"images": [], "annotations": {}}', r"'annotations' is dict; expected a list"),
        (b"{}", r"has no list 'images'"),
        (b'{"images": []}', r"has no image with a caption"),
    ],
)
def test_a_file_that_is_none_of_the_forms(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        CaptionSource(tmp_path / "a.json", tmp_path)


def test_flickr30k_token_file_and_karpathy_json(tmp_path, shared):
    root = shared("golden", "datasets", "data", "flickr_30k", "images")
    (tmp_path / "results.token").write_text(
        "1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo , friends .\n", encoding="utf-8"
    )
    source = CaptionSource(tmp_path / "results.token", root, per="caption")
    assert answers(source) == ["Two young guys .", "Two , friends ."]
    sentences = [{"raw": "Two young guys.", "tokens": ["two"]}]
    data = {"images": [{"filename": "1000092795.jpg", "split": "test", "sentences": sentences}], "dataset": "flickr30k"}
    (tmp_path / "k.json").write_text(json.dumps(data))
    assert answers(CaptionSource(tmp_path / "k.json", root, subset="test")) == ["Two young guys."]
    (tmp_path / "results.token").write_text("1000092795.jpg Two young guys .\n")
    with pytest.raises(ValueError, match=r"results.token: line 1: is .*expected NAME.jpg#0, a tab"):
        CaptionSource(tmp_path / "results.token", root)


def test_the_golden_tree_and_coco(shared):
    data = shared("golden", "datasets", "data", "coco")
    spec = {"type": "captions", "path": data / "annotations/captions_train2017.json", "image_root": data / "train2017"}
    assert answers(make_source({**spec, "per": "caption"})) == ["A dog on the grass.", "A brown dog."]
    expected = json.loads(shared("golden", "datasets", "expected_glamm.json").read_text())["draws"]["coco_cap"]
    assert {draw["selected_labels"][0] for draw in expected} <= set(answers(make_source({**spec, "per": "caption"})))

    path = shared("data", "coco_captions_val2017", "annotations", "captions_val2017.json")
    told = list(read_captions(path, Problems()))
    assert len(told) == 4961 and sum(len(item[4]) for item in told) == 24819
    source = CaptionSource(path, shared("data", "coco_mini", "val2017_unlabelled"), on_error="count")
    assert len(source) + len(source.problems.found) == 4961 and len(source) > 0
    assert source.sample(0).meta["references"] in [tuple(item[4]) for item in told]
