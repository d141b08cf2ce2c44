"""SA-1B, Osprey and DCI: prompts, regions in questions, mask trees, and sentences about what is wrong."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks
from mglmm_data.dci import DciSource, read_tree
from mglmm_data.osprey import OspreySource, mentioned
from mglmm_data.registry import make_source
from mglmm_data.sa1b import Sa1bSource

SIZE = (30, 40)


def square(x, y, side=8):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "sa_1.jpg")
    return tmp_path


def sa1b():
    return {
        "image": {"image_id": 1, "width": 40, "height": 30, "file_name": "sa_1.jpg"},
        "annotations": [
            {
                "id": 7,
                "segmentation": masks.encode(square(3, 4)),
                "area": 64,
                "bbox": [3, 4, 7, 7],
                "predicted_iou": 0.9,
                "stability_score": 0.95,
                "point_coords": [[5, 6]],
            }
        ],
    }


@pytest.mark.parametrize(("prompt", "bounds"), [("point", None), ("box", (3, 4, 10, 11))])
def test_sa1b_answers_a_prompt_with_its_mask(photo, prompt, bounds):
    (photo / "sa_1.json").write_text(json.dumps(sa1b()))
    sample = Sa1bSource(photo, prompt=prompt).sample(0)
    given, mask = sample.regions
    user, answer = sample.conversations[0].turns
    assert given.kind == prompt and mask.mask.sum() == 64
    assert given.box == bounds if bounds else given.point == (5, 6)
    (mention,), (phrase,) = user.mentions, answer.phrases
    assert user.text[mention.start : mention.end] == answer.text[phrase.start : phrase.end]
    assert (mention.region, phrase.regions) == (0, (1,))
    assert not Sa1bSource(photo, least_iou=0.95).sample(0).conversations


SA1B_BAD = {
    "no image": (lambda r: r.pop("image"), "has no 'image'"),
    "no annotations": (lambda r: r.pop("annotations"), "has no 'annotations'"),
    "no segmentation": (lambda r: r["annotations"][0].pop("segmentation"), "annotation 7: has no 'segmentation'"),
    "other size": (
        lambda r: r["annotations"][0].update(segmentation=masks.encode(np.ones((9, 9), bool))),
        r"annotation 7: its RLE is of size \[9, 9\]",
    ),
    "damaged": (
        lambda r: r["annotations"][0]["segmentation"].update(counts="zz"),
        "annotation 7: the RLE's counts do not fill",
    ),
    "box": (lambda r: r["annotations"][0].update(bbox=[50, 1, 3, 3]), "annotation 7: its box .* lies outside"),
    "nan": (lambda r: r["annotations"][0].update(bbox=[float("nan"), 1, 3, 3]), "annotation 7: its box .*nan"),
    "image size": (lambda r: r["image"].update(width=41), r"sa_1\.json: the annotation is for \(30, 41\)"),
    "image missing": (lambda r: r["image"].update(file_name="b.jpg"), "'b.jpg' is missing"),
    "root": (lambda r: r["image"].update(file_name="../b.jpg"), "leaves the folder"),
    "iou": (lambda r: r["annotations"][0].update(predicted_iou=None), "annotation 7: its 'predicted_iou' is None"),
    "identity": (lambda r: r["image"].pop("image_id"), "has no 'image_id'"),
    "of another type": (lambda r: r.update(annotations=[3]), "its annotations hold 3"),
}


@pytest.mark.parametrize("name", SA1B_BAD)
def test_bad_json_of_sa1b(photo, name):
    record = sa1b()
    SA1B_BAD[name][0](record)
    (photo / "sa_1.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"sa_1\.json: .*{SA1B_BAD[name][1]}|{SA1B_BAD[name][1]}") as error:
        Sa1bSource(photo, prompt="box").sample(0)
    assert "sa_1.json" in str(error.value)


def osprey(**changes):
    item = {
        "file_name": "COCO_train2014_sa_1.jpg",
        "height": 30,
        "width": 40,
        "annotation": [{"segmentation": masks.encode(square(x, 4)), "bbox": [x, 4, 8, 8]} for x in (3, 20)],
        "conversations": [
            {"from": "human", "value": "How does <region2> relate to the region <region1>?"},
            {"from": "gpt", "value": "<region2> lies right of <region1>."},
            {"from": "human", "value": "And why?"},
            {"from": "gpt", "value": "By chance."},
        ],
    }
    return item | changes


def write(photo, record, name="osprey_conversation.json"):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(photo / "1.jpg")
    (photo / name).write_text(json.dumps([record]))
    return photo / name


def test_osprey_questions_mention_their_regions(photo):
    sample = OspreySource(write(photo, osprey()), photo).sample(0)
    (conversation,) = sample.conversations
    first = conversation.turns[0]
    assert first.text == "How does region 2 relate to the region 1?" and len(conversation.turns) == 4
    assert [(first.text[m.start : m.end], m.region) for m in first.mentions] == [("region 2", 1), ("region 1", 0)]
    assert conversation.turns[1].text == "region 2 lies right of region 1."
    assert [int(region.bounds[0]) for region in sample.regions if region.bounds] == [3, 20]


def test_osprey_names_all_regions_where_no_question_does_and_asks_for_short_answers(photo):
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "Dog"}]
    source = OspreySource(write(photo, osprey(conversations=talk), "osprey_short_form.json"), photo)
    turn = source.sample(0).conversations[0].turns[0]
    assert turn.text == (
        "There are 2 regions in the picture: region 1 and region 2. What is it? "
        "Answer the question using a single word or phrase."
    )
    assert [mention.region for mention in turn.mentions] == [0, 1]


def test_osprey_descriptions_are_one_conversation_each(photo):
    record = osprey(description=["<region1>: A dog.", "<region2>: A cat\nthat sleeps."])
    del record["conversations"]
    source = OspreySource(write(photo, record, "osprey_detail_description.json"), photo, turns=None)
    answers = [(c.turns[0].mentions[0].region, c.turns[1].text) for c in source.sample(0).conversations]
    assert answers == [(0, "A dog."), (1, "A cat that sleeps.")]


OSPREY_BAD = {
    "region": (
        lambda r: r["conversations"][0].update(value="Is <region3> red?"),
        "speaks of <region3>, it has 2 regions",
    ),
    "odd": (lambda r: r["conversations"].pop(), "its conversations are 3 turns"),
    "order": (lambda r: r["conversations"].reverse(), "do not alternate human, gpt"),
    "height": (lambda r: r.pop("height"), "has no 'height'"),
    "size": (lambda r: r.update(height=31), r"RLE is of size \[30, 40\], its image of \[31, 40\]"),
    "mask": (lambda r: r["annotation"][0].pop("segmentation"), "has no 'segmentation'"),
    "polygon": (lambda r: r["annotation"][0].update(segmentation=[[1, 2, 3, 4, 5]]), "a polygon has 5 numbers"),
    "image": (lambda r: r.update(file_name="zz.jpg"), "'zz.jpg' is missing"),
    "description": (lambda r: r.update(description=["A dog."]), "its description 0 is 'A dog.'"),
}


@pytest.mark.parametrize("name", OSPREY_BAD)
def test_bad_records_of_osprey(photo, name):
    record = osprey()
    OSPREY_BAD[name][0](record)
    with pytest.raises(ValueError, match=rf"osprey_conversation\.json: record number 0: .*{OSPREY_BAD[name][1]}"):
        OspreySource(write(photo, record), photo).sample(0)


@pytest.mark.parametrize("record", [5, None])
def test_a_record_of_osprey_that_is_none(photo, record):
    with pytest.raises(ValueError, match=r"json: record number 0: is (5|None) .*expected an object"):
        OspreySource(write(photo, record), photo)


def test_questions_of_osprey_about_an_rle_and_their_answers(photo):
    row = {"question_id": 3, "image": "1.jpg", "text": "What is <region>?"}
    path = write(photo, row | {"annotation": {"segmentation": masks.encode(square(3, 4))}}, "questions.json")
    write(photo, {"question_id": 3, "text": "A dog."}, "answers.json")
    sample = OspreySource(path, photo).sample(0)
    assert sample.regions[0].bounds == (3, 4, 11, 12) and sample.conversations[0].turns[1].text == "A dog."
    write(photo, row | {"annotation": {"segmentation": masks.encode(np.ones((9, 9), bool))}}, "questions.json")
    with pytest.raises(ValueError, match=r"questions\.json: record number 0: its RLE is of size \[9, 9\].*\[30, 40\]"):
        OspreySource(path, photo).sample(0)


def test_real_questions_of_osprey_have_the_box_of_their_annotation(shared):
    path = shared("data", "vlm_bench", "osprey_ferret_bench", "box_refer_caption.json")
    photos = shared("data", "coco_mini", "val2017_unlabelled")
    source: Any = make_source({"type": "osprey", "path": path, "image_root": photos, "on_error": "count"})
    rows = [row for row in json.loads(path.read_text()) if (photos / row["image"]).exists()]
    assert len(source) == len(rows) > 0 and len(source.problems.found) == 40 - len(rows)
    for index, row in enumerate(rows):
        sample = source.sample(index)
        x, y, width, height = row["annotation"]["bbox"]
        bounds = sample.regions[0].bounds
        assert bounds and np.abs(np.subtract(bounds, (x, y, x + width, y + height))).max() <= 1
        turn = sample.conversations[0].turns[0]
        assert turn.text == row["text"].replace("<region>", "1") and turn.mentions[0].region == 0


def test_marks_become_words():
    assert mentioned("no region")[1] == ()
    text, marks = mentioned("<region1><region2>")
    assert text == "region 1region 2" and [(m.start, m.end) for m in marks] == [(0, 8), (8, 16)]


def png(mask):
    out = io.BytesIO()
    Image.fromarray(mask).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def dci():
    rows = [
        (0, "table", "A wooden table.", -1, 0, square(2, 2, 20)),
        (1, "mug", "unclear", 0, 1, square(4, 4)),
        (2, "blur", "nothing", 0, 2, square(5, 5, 15)),
        (3, "mug", "A red mug.", 2, 0, square(13, 6, 4)),
    ]
    found = {
        str(idx): {
            "idx": idx,
            "label": label,
            "caption": caption,
            "parent": parent,
            "mask_quality": quality,
            "outer_mask": png(mask),
        }
        for idx, label, caption, parent, quality, mask in rows
    }
    return {"image": "sa_1.jpg", "short_caption": "A table.", "extra_caption": "It stands.", "mask_data": found}


def test_dci_tells_the_whole_the_parts_and_each_mask(photo):
    (photo / "a.json").write_text(json.dumps(dci()))
    sample = DciSource(photo, image_root=photo, turns=None).sample(0)
    assert [region.label for region in sample.regions] == ["table", "mug", "mug"]
    assert sample.meta["parents"] == (-1, 0, 0)  # the unusable mask between is left out, its child moves up
    told = [(c.task, c.turns[1].text) for c in sample.conversations]
    assert told == [
        ("caption", "A table. It stands."),
        ("panoptic", "a table."),
        ("fine", "two mugs."),
        ("region", "A wooden table."),
        ("region", "A red mug."),  # the mask of low quality has a label, but no caption that counts
    ]
    assert sample.conversations[2].turns[1].phrases[0].regions == (1, 2)
    assert sample.conversations[4].turns[0].mentions[0].region == 2
    assert "table" in sample.conversations[2].turns[0].text


DCI_BAD = {
    "parent": (lambda m: m["1"].update(parent=9), "mask 1 has the parent 9, which is absent"),
    "ring": (lambda m: m["0"].update(parent=3), "mask 0 is below itself"),
    "field": (lambda m: m["1"].pop("label"), "mask 1 has no 'label'"),
    "type": (lambda m: m["1"].update(mask_quality="1"), "mask 1 its 'mask_quality' is '1'"),
    "base64": (lambda m: m["1"].update(outer_mask="%"), "mask 1: its outer_mask is no PNG in base64"),
    "size": (lambda m: m["1"].update(outer_mask=png(np.ones((9, 9), bool))), r"mask 1: its outer_mask is \(9, 9\)"),
    "empty": (lambda m: m["1"].update(outer_mask=png(square(0, 0, 0))), "mask 1: its outer_mask covers no pixel"),
}


@pytest.mark.parametrize("name", DCI_BAD)
def test_bad_trees(photo, name):
    data = dci()
    DCI_BAD[name][0](data["mask_data"])
    (photo / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"a\.json: {DCI_BAD[name][1]}"):
        DciSource(photo, image_root=photo).sample(0)


def test_a_tree_of_nothing():
    assert read_tree({}) == {}
