"""Whatever stands in a field of an annotation file, the reader names the file and the record, or reads it."""

import base64
import copy
import io
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import check, masks
from mglmm_data.mixture import Mixture
from mglmm_data.reading import Packed, Pictures, Problems, read_box, read_lines, take
from mglmm_data.registry import make_source
from mglmm_data.resolver import discover

JUNK = [None, "", "x", -1, 1.5, float("nan"), 10**400, True, [], {}, ["x"], [None], [{}], "../../etc/passwd"]
CHAT = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "He."}]
IMAGE = {"id": 1, "file_name": "1.jpg", "height": 20, "width": 40}
GRIT = {
    "id": "7", "image": "1.jpg", "image_w": 40, "image_h": 20,
    "conversations": [{"from": "human", "value": "What is the object <bbox_location0>?"}, CHAT[1]],
    "box_x1y1x2y2": [[[1, 2, 3, 4]], []], "words": [["the object"], []], "masks": [[], []],
}  # fmt: skip
PAIR = {"qa_id": 7, "type": "which", "question": "Which?", "answer": 1, "multiple_choices": [0]}
SEVEN = {
    "images": [{"image_id": 1, "filename": "1.jpg", "split": "test", "qa_pairs": [PAIR]}],
    "boxes": [{"box_id": i, "x": i, "y": 1, "width": 5, "height": 6} for i in range(2)],
}
POINT = {"1": [{"question": "What is this dog?", "answer": "white", "point": {"x": 7, "y": 9}}]}
SQUARE = np.pad(np.ones((8, 8), bool), ((4, 8), (5, 27)))
RLE = masks.encode(SQUARE)
OBJECT = {"id": 3, "bbox": [5, 4, 13, 12], "segmentation": RLE, "labels": ["dog"], "attributes": ["one dog", "it is"]}
FLOATING = {"id": 4, "bbox": [1, 1, 9, 9], "attributes": "a cat"}
DETAIL = {"phrase": "A dog", "tokens_positive": [0, 5]}
FULL = {
    "objects": [OBJECT],
    "floating_objects": [FLOATING],
    "short_captions": [{"caption": "A dog", "details": [{**DETAIL, "id": 3}]}],
    "dense_caption": {"caption": "A dog.", "details": [{**DETAIL, "ids": [3, 4]}]},
}
PHRASES = {
    "objects": [OBJECT],
    "captions": ["A dog."],
    "relationships": {"grounding": [{"phrase": "a dog", "object_ids": [3]}]},
}
SA1B = {
    "image": {"image_id": 1, "width": 40, "height": 20, "file_name": "1.jpg"},
    "annotations": [
        {"id": 7, "segmentation": RLE, "bbox": [5, 4, 8, 8], "predicted_iou": 0.9, "point_coords": [[7, 6]]}
    ],
}
OSPREY = {"file_name": "1.jpg", "height": 20, "width": 40, "annotation": [{"segmentation": RLE}]}
QUESTION = {"question_id": 1, "image": "1.jpg", "text": "What is <region>?", "annotation": {"segmentation": RLE}}


def png(mask: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(mask).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


NODE = {"label": "dog", "caption": "A dog.", "mask_quality": 0, "outer_mask": png(SQUARE)}
DCI = {
    "image": "1.jpg",
    "short_caption": "A dog.",
    "extra_caption": "It sits.",
    "mask_data": {"0": {**NODE, "idx": 0, "parent": -1}, "1": {**NODE, "idx": 1, "parent": 0}},
}
ADE = {"id": 0, "name": "car, auto", "instance_mask": "mask.png", "parts": {"ispartof": []}}
LABELME = {
    "imagePath": "data.jpg",
    "imageHeight": 20,
    "imageWidth": 40,
    "shapes": [
        {"label": "dog", "points": [[0, 0], [3, 0], [3, 3]], "group_id": 1, "shape_type": "polygon"},
        {"label": "hat", "points": [[5, 4], [13, 12]], "shape_type": "mask", "mask": png(SQUARE[4:12, 5:13])},
        {"label": "cup", "points": [[5, 4], [13, 12]], "shape_type": "circle"},
    ],
}
FASHION = {
    "images": [IMAGE],
    "categories": [{"id": 1, "name": "coat"}],
    "attributes": [{"id": 4, "name": "mini"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "segmentation": RLE, "bbox": [5, 4, 8, 8], "attribute_ids": [4]},
        {"id": 11, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0},
    ],
}
CAPTIONS = {
    "images": [{"id": 1, "file_name": "1.jpg"}],
    "annotations": [{"image_id": 1, "caption": "A dog", "labels": ["a dog"], "id": 0}],
}
PATHS = ("path", "json_path", "root", "image_root")
FILE, IN_FOLDER = {"path": "in/data.json", "image_root": "."}, {"root": "in", "image_root": "."}
FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {
    "captions": (FILE, {"images": [IMAGE], "annotations": [{"id": 5, "image_id": 1, "caption": "A dog."}]}),
    "llava_instruct": (FILE, [{"id": "1", "image": "1.jpg", "conversations": CHAT}]),
    "region_captions": (
        FILE,
        {"images": [IMAGE], "annotations": [{"id": 5, "image_id": 1, "bbox": [1, 2, 5, 6], "caption": "A dog."}]},
    ),
    "grit": (FILE, [{**GRIT, "masks": [[RLE], []]}]),
    "benchmark/visual7w": ({**FILE, "name": "visual7w"}, SEVEN),
    "benchmark/pointqa": ({**FILE, "name": "pointqa"}, POINT),
    "grand/full": ({**IN_FOLDER, "form": "full", "turns": None}, {"1.jpg": FULL}),
    "grand/phrases": ({**IN_FOLDER, "form": "full", "turns": None}, {"1.jpg": PHRASES}),
    "grand/caption": (
        {**IN_FOLDER, "form": "caption", "turns": None},
        {"1.jpg": [{"caption": "A dog", "details": [DETAIL | OBJECT]}, {"attribute": "a dog", **OBJECT}]},
    ),
    "sa1b": ({**IN_FOLDER, "prompt": "point", "turns": None}, SA1B),
    "osprey/talk": (FILE, [{**OSPREY, "conversations": CHAT}]),
    "osprey/description": (FILE, [{**OSPREY, "description": ["<region1>: A dog."]}]),
    "osprey/questions": (FILE, [QUESTION]),
    "dci": ({**IN_FOLDER, "turns": None}, DCI),
    "ade20k_full": (
        {"root": "in"},
        {"annotation": {"object": [ADE, {**ADE, "id": 1, "name": "door", "parts": {"ispartof": 0}}]}},
    ),
    "labelme": ({"root": "in"}, LABELME),
    "fashionpedia": ({"json_path": "in/data.json", "image_root": ".", "turns": 9}, FASHION),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*at, key)
            yield from places(value[key], (*at, key))


def distinct(data: Any) -> list[tuple[Any, ...]]:
    """The first place of each path."""
    found = {tuple("" if isinstance(key, int) else key for key in at): at for at in reversed([*places(data)])}
    return [*found.values()]


def pictures(tmp_path):
    """A folder for annotations below one with a photograph of 20 x 40 px."""
    (tmp_path / "in").mkdir()
    for name in ("1.jpg", "in/data.jpg"):
        Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / name)
    Image.fromarray(SQUARE.astype(np.uint8) * 255).save(tmp_path / "in" / "mask.png")
    return tmp_path / "in"


def refusals(spec, path, data, spoiled_at, named):
    """Put junk, and nothing, at each place of a file; how often a sentence that holds `named` refuses it."""
    refused = 0
    for at in spoiled_at:
        for junk in (*JUNK, "gone"):
            spoiled = copy.deepcopy(data)
            inner = spoiled
            for key in at[:-1]:
                inner = inner[key]
            if junk == "gone":
                del inner[at[-1]]
            else:
                inner[at[-1]] = junk
            path.write_text(json.dumps(spoiled))
            try:
                source = make_source(spec)
                for index in range(len(source)):
                    source.sample(index)
            except ValueError as error:
                assert named in str(error) and "than this format has" not in str(error), (at, junk)
                refused += 1
    return refused


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_spoiled(family, tmp_path):
    options, data = FAMILIES[family]
    spec = {key: tmp_path / value if key in PATHS else value for key, value in options.items()}
    spec, path = {"type": family.partition("/")[0], **spec}, pictures(tmp_path) / "data.json"
    path.write_text(json.dumps(data))
    assert make_source(spec).sample(0).conversations
    refused = refusals(spec, path, data, distinct(data), "in/data.")
    assert refused > 20


@pytest.mark.parametrize("spoiled", ["caption", "mask"])
def test_every_field_of_the_evaluation_pair_spoiled(spoiled, tmp_path):
    folder = pictures(tmp_path)
    pair = {"caption": CAPTIONS, "mask": {"annotations": [{"image_id": 1, "segmentation": RLE}]}}
    for name, data in pair.items():
        (folder / f"data_{name}_gt.json").write_text(json.dumps(data))
    path, data = folder / f"data_{spoiled}_gt.json", pair[spoiled]
    spec = {"type": "grandf", "form": "eval", "path": folder / "data_caption_gt.json", "image_root": tmp_path}
    assert make_source(spec).sample(0).conversations
    assert refusals(spec, path, data, distinct(data), str(folder)) > 20


GOLDEN = {
    "paco_lvis": "vlpart/paco/annotations/paco_lvis_v1_train.json",
    "pascal_part": "vlpart/pascal_part/train.json",
    "mapillary/training": "mapillary/config_v2.0.json",
    "coco_panoptic_val": "cocopanoptic/annotations/panoptic_val2017.json",
    "coco_panoptic_val_detection": "cocopanoptic/annotations/panoptic_val2017_detection_format.json",
    "refclef/train": "refer_seg/refclef/instances.json",
    "grefcoco/train": "refer_seg/grefcoco/grefs(unc).json",
    "rec_refcoco_train": "RefCoco_Reg/mdetr_annotations/finetune_refcoco_train.json",
    "muse_train": "reason_seg/MUSE/MUSE_train.json",
    "grandf_ha": "GranDf/annotations/train/GranDf_HA_GCG_train.json",
    "openpsg_gcg": "GranDf/annotations/train/OpenPsgGCG_train.json",
    "refcocog_gcg": "GranDf/annotations/train/RefCOCOg_GCG_train.json",
    "flickr_gcg": "GranDf/annotations/train/flickr_mergedGT_GCG_train.json",
    "mgscdata/train": "MGLMM_gcg_new/annotations/mglmm_sa_1.json",
}
PLACES_SPOILED = 12


@pytest.mark.parametrize("family", GOLDEN)
def test_fields_of_the_golden_trees_spoiled(family, shared, tmp_path):
    """As above, in real formats: the same places each time, one of each path, and what is refused is a sentence."""
    shutil.copytree(shared("golden", "datasets", "data"), tmp_path / "data", copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o755)
    spec, path = discover(tmp_path / "data")[0][family], tmp_path / "data" / GOLDEN[family]
    data = json.loads(path.read_text())
    kinds = distinct(data)
    rng = np.random.default_rng(len(family))
    chosen = [kinds[place] for place in rng.permutation(len(kinds))[:PLACES_SPOILED]]
    refused = refusals(spec, path, data, chosen, str(tmp_path))
    assert refused > 5


class Broken:
    """A source with an annotation that no check has met."""

    def __len__(self):
        return 1

    def sample(self, index, epoch=0):
        raise TypeError(f"{index}, {epoch}")

    def id_of(self, index):
        return f"broken/{index}"


def test_what_no_check_has_met_is_a_sentence_too(monkeypatch):
    match = r"a\.json: 7: a field is of another type .* \(KeyError: 'id'\); correct or remove it"
    with pytest.raises(ValueError, match=match) as error, Problems().at("a.json: 7"):
        raise KeyError("id")
    assert isinstance(error.value.__cause__, KeyError)
    problems = Problems("count")
    with problems.at("a.json: 7"):
        raise OverflowError("too large")
    assert problems.found == ["a.json: 7: a field is of another type than this format has (OverflowError: too large)"]
    with pytest.raises(
        ValueError, match=r"broken/0: a field is of another type .*\(TypeError: .*; correct or remove it"
    ):
        Mixture({"a": Broken()}).sample(0)
    monkeypatch.setitem(check._SOURCES, "a", Broken())
    (problem,) = check._look(("a", [0])).problems
    assert problem.id == "broken/0" and problem.kind == "malformed annotation"


def test_packed_records_are_as_they_were():
    records = [{"a": [1, 2.5, None, "ü\u2028"]}, [], "text", 0]
    packed = Packed(records)
    assert list(packed) == records and packed[-1] == 0 and len(packed) == 4
    assert packed.num_bytes < 100
    with pytest.raises(IndexError, match="record 4 of 4"):
        packed[4]


@pytest.mark.parametrize(
    ("values", "form", "box", "cut"),
    [
        ([1, 2, 3, 4], "xywh", (1, 2, 4, 6), False),
        ([1, 2, 3, 4], "xyxy", (1, 2, 3, 4), False),
        ([0, 0, 40.5, 20], "xyxy", (0, 0, 40, 20), True),
        ([-0.5, 0, 10, 20], "xywh", (0, 0, 9.5, 20), True),
    ],
)
def test_boxes(values, form, box, cut):
    assert read_box(values, (20, 40), form) == (box, cut)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, 3], "expected four numbers"),
        ([1, 2, "3", 4], "expected four finite numbers"),
        ([1, 2, float("inf"), 4], "expected four finite numbers"),
        ([5, 5, 5, 9], "has no area"),
        ([39, 1, 50, 9], "leaves the image of 40x20 px by 10 px"),
        ([41, 1, 50, 9], "lies outside the image of 40x20 px"),
    ],
)
def test_boxes_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        read_box(values, (20, 40), "xyxy")
    if "leaves" in message:
        assert read_box(values, (20, 40), "xyxy", clip=True) == ((39, 1, 40, 9), True)


def test_pictures_are_found_inside_their_folders_only(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("in/sub/000000000009.jpg", "out.jpg"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    pictures = Pictures([tmp_path / "in", tmp_path / "in" / "sub"])
    assert pictures.find("sub/000000000009.jpg") == str(tmp_path / "in/sub/000000000009.jpg")
    assert pictures.find("COCO_val2014_000000000009.jpg") == pictures.find("000000000009.jpg")
    assert pictures.find("sub/../sub/000000000009.jpg") == pictures.find("sub/000000000009.jpg")
    for name in ("../out.jpg", str(tmp_path / "out.jpg"), "sub/../../out.jpg"):
        with pytest.raises(ValueError, match="leaves the folder"):
            pictures.find(name)
    with pytest.raises(ValueError, match="image folder .* does not exist"):
        Pictures(tmp_path / "nowhere")


def test_policies_and_types(tmp_path):
    with pytest.raises(ValueError, match=r"on_error is 'cuont', did you mean 'count'"):
        Problems("cuont")
    assert take({"a": 3}, "a", float) == 3
    with pytest.raises(ValueError, match=r"its 'a' is True \(bool\); expected a whole number"):
        take({"a": True}, "a", int)
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028two\n\n three \n".encode())
    assert [number for number, _ in read_lines(tmp_path / "a.txt")] == [1, 3]
