"""One record of a golden tree is wrong: it is named, nothing else is lost, and a check of the data does not stop."""

import json
import os
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mglmm_data.check import check
from mglmm_data.registry import make_source
from mglmm_data.resolver import discover
from mglmm_data.sample import Region, Turn

REASON = "reason_seg/ReasonSeg/train/10011_a.json"
PANOPTIC = "cocopanoptic/annotations/panoptic_val2017.json"
DETECTION = "cocopanoptic/annotations/panoptic_val2017_detection_format.json"


@pytest.fixture
def tree(shared, tmp_path):
    shutil.copytree(shared("golden", "datasets", "data"), tmp_path / "data", copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o755)
    return tmp_path / "data"


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def huge(path: Path) -> None:
    """A PNG whose header says 60,000 x 60,000 px."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT")


def refs(tree: Path, **more) -> None:
    path = tree / "refer_seg/refcoco/refs(unc).p"
    data = pickle.loads(path.read_bytes())
    data[0].update(more)
    path.write_bytes(pickle.dumps(data, 2))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CASES = {
    "a height that no picture has": (
        "coco_panoptic_val_detection",
        lambda tree: edit(tree / DETECTION, lambda data: data["images"][0].update(height=2**31)),
        r"images 139: its size is \d+x2147483648 px; no picture above",
    ),
    "a NUL in a name": (
        "coco_panoptic_val",
        lambda tree: edit(tree / PANOPTIC, lambda data: data["annotations"][0].update(file_name="a\0b.png")),
        r"file 'a\\x00b.png' leaves",
    ),
    "half a character": (
        "coco_captions_train",
        lambda tree: edit(
            next(tree.rglob("captions_train2017.json")),
            lambda data: data["annotations"][0].update(caption="a \ud800 b"),
        ),
        r"its 'caption' holds '\\ud800', half of a character",
    ),
    "a label map of 60,000 px a side": (
        "ade20k/training",
        lambda tree: huge(tree / "ade20k/annotations/training/ADE_train_00000002.png"),
        r"ADE_train_00000002.png says that it is larger than any picture",
    ),
    "a list without end": (
        "reasonseg/train",
        lambda tree: (tree / REASON).write_text("[" * 200_000),
        r"10011_a.json cannot be read as json",
    ),
    "a folder for a file": ("reasonseg/train", lambda tree: as_folder(tree / REASON), r"10011_a.json: .*directory"),
    "a point beyond all pictures": (
        "reasonseg/train",
        lambda tree: edit(tree / REASON, lambda data: data["shapes"][0]["points"][0].__setitem__(0, 1e300)),
        r"10011_a.json: its shape 0 .* has the point \[1e\+300",
    ),
    "no target in RefCOCO": ("refcoco/train", lambda tree: refs(tree, ann_id=-1), r"ref 0: its 'ann_id' holds -1"),
    "no target in RefCOCO, as a list": (
        "refcoco/train",
        lambda tree: refs(tree, ann_id=[]),
        r"ref 0: its 'ann_id' is \[\] .*, so that it speaks of no object",
    ),
    "a category that is none": (
        "refcoco/train",
        lambda tree: edit(
            tree / "refer_seg/refcoco/instances.json",
            lambda data: [one.update(category_id=99_999) for one in data["annotations"]],
        ),
        r"with category id 99999, which is not a category",
    ),
    "a crowd in words": (
        "pascal_part",
        lambda tree: edit(
            tree / "vlpart/pascal_part/train.json", lambda data: data["annotations"][0].update(iscrowd="0")
        ),
        r"its 'iscrowd' is '0'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_record_is_named_and_counted(tree, case):
    family, spoil, match = CASES[case]
    spec = discover(tree)[0][family]
    whole = len(make_source(spec))
    spoil(tree)
    report = check({"x": spec}, processes=1)
    assert len(report.found["x"].problems) >= 1
    told = "\n".join(problem.problem for problem in report.problems)
    assert re.search(match, told), told
    if whole > 1 and "category" not in case:
        assert report.found["x"].shown, "what is sound is still there"


def test_a_bad_size_does_not_shift_what_follows(tree):
    spec = discover(tree)[0]["coco_panoptic_val_detection"]
    before = {sample.id: sample for sample in map(make_source(spec).sample, range(2))}
    edit(tree / DETECTION, lambda data: data["images"][0].update(height=2**31))
    source = make_source({**spec, "on_error": "count"})
    (sample,) = map(source.sample, range(len(source)))
    assert (sample.image == before[sample.id].image).all() and sample.meta["file"] == before[sample.id].meta["file"]


@pytest.mark.parametrize("value", [None, float("nan"), [], {"a": 1}])
def test_an_answer_is_a_text_or_a_number(tmp_path, value):
    Image.new("RGB", (40, 20)).save(tmp_path / "1.jpg")
    question = {"question": "What is this dog?", "answer": value, "point": {"x": 7, "y": 9}}
    (tmp_path / "p.json").write_text(json.dumps({"1": [question]}))
    spec = {"type": "benchmark", "name": "pointqa", "path": str(tmp_path / "p.json"), "image_root": str(tmp_path)}
    with pytest.raises(ValueError, match=r"p\.json: image 1: question 0: (its|has no) 'answer'|NaN"):
        make_source(spec)


def test_a_name_that_no_file_system_takes(tmp_path):
    for stem, picture in (("a", "a.jpg"), ("b", "x" * 300)):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{stem}.jpg")
        shapes = [{"label": "dog", "points": [[0, 0], [9, 0], [9, 9]]}]
        (tmp_path / f"{stem}.json").write_text(json.dumps({"imagePath": picture, "shapes": shapes}))
    source: Any = make_source({"type": "labelme", "root": str(tmp_path), "on_error": "count"})
    (problem,) = source.problems.found
    assert "b.json: " in problem and "name too long" in problem and len(source) == 1


def test_half_a_character_reaches_no_sample():
    with pytest.raises(ValueError, match=r"what the user says holds '\\ud800', half of a character"):
        Turn("user", "a \ud800")
    with pytest.raises(ValueError, match="a region's label holds"):
        Region((4, 4), rle=None, box=(0, 0, 2, 2), label="\udfff")


def test_where_nothing_is_left_the_first_problem_is_told(tmp_path):
    image = {"id": 1, "file_name": "1.jpg", "height": None, "width": 40}
    data = {"images": [image], "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"ask about .*; 1 are wrong, the first of them: .*'height' is None"):
        make_source({"type": "coco", "json_path": str(tmp_path / "a.json"), "on_error": "count"})
