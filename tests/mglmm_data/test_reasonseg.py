"""ReasonSeg and MUSE: shapes as LISA paints them, explanations, text answers, and sentences about what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks
from mglmm_data.muse import MuseSource, marked_answer
from mglmm_data.reasonseg import ReasonSource, draw_shapes, read_latin, read_shapes


@pytest.fixture
def golden(shared):
    return shared("golden", "datasets", "data")


def grounded(conversation):
    """The answer, and its phrases' words with their regions."""
    turn = conversation.turns[1]
    return turn.text, [(turn.text[phrase.start : phrase.end], phrase.regions) for phrase in turn.phrases]


def test_targets_and_ignored_pixels_are_lisas_to_the_pixel(golden, shared):
    expected = json.loads(shared("golden", "datasets", "expected_lisa.json").read_text())["reason_seg_masks"]
    for name, found in expected.items():
        split, stem = Path(name).parts[-2], Path(name).stem
        source = ReasonSource(golden, split=split, explain=False, turns=None)
        samples = {source.sample(index).meta["image_id"]: source.sample(index) for index in range(len(source))}
        sample = samples[stem]
        assert (sample.regions[0].mask == masks.decode(found["target"])).all()
        ignored = masks.union([sample.regions[at].mask for at in sample.meta["ignore_regions"]], sample.size)
        assert (ignored == masks.decode(found["ignore"])).all()
        assert {c.kind for c in sample.conversations} == {"long" if found["is_sentence"] else "short"}
        asked = [c.turns[0].text for c in sample.conversations]
        assert all(text.rstrip(".?") in question for text, question in zip(found["text"], asked, strict=True))


def test_short_texts_are_the_phrase_and_sentences_the_question(golden):
    short = ReasonSource(golden, split="train", length="short", turns=None)
    assert len(short) == 2 and grounded(short.sample(0).conversations[0]) == (
        "the food with high protein.",
        [("the food with high protein", (0,))],
    )
    sample = ReasonSource(golden, split="train", length="long", explain=False).sample(0)
    (conversation,) = sample.conversations
    assert conversation.turns[0].text == "In this picture, which part could be used to see things far away?"
    assert grounded(conversation)[1] == [("this region", (0,))]


def test_explanations_are_told_in_lisas_shares(golden):
    source = ReasonSource(golden, split="train", length="long")
    forms = {"words": 0, "mask": 0, "both": 0}
    for epoch in range(200):
        (conversation,) = source.sample(0, epoch).conversations
        text, phrases = grounded(conversation)
        why = "because their lenses magnify distant things" in text
        forms["both" if why and phrases else "words" if why else "mask"] += 1
        assert why or phrases
    assert 6 < forms["words"] < 40 and 60 < forms["mask"] < 125 and 60 < forms["both"] < 125


def test_the_real_json_is_read_with_its_polygon(shared, tmp_path):
    path = shared("data", "reasonseg_format", "ReasonSeg", "test", "10126247704_3bf0c7e05c_o.json")
    shutil.copy(path, tmp_path)
    record, _ = read_latin(path)
    points = np.array(record["shapes"][0]["points"])
    height, width = (int(side) + 1 for side in points.max(0)[::-1])
    Image.new("RGB", (width, height)).save(tmp_path / f"{path.stem}.jpg")
    (tmp_path / "test").mkdir()
    for file in tmp_path.glob("1*"):
        shutil.move(file, tmp_path / "test")
    sample = ReasonSource(tmp_path, split="test").sample(0)
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert abs(sample.regions[0].mask.sum() / area - 1) < 0.01
    assert sample.regions[0].bounds == (points[:, 0].min(), points[:, 1].min(), width, height)
    assert sample.conversations[0].kind == "short"


def test_cp1252_is_read_and_said(golden, tmp_path):
    shutil.copytree(golden / "reason_seg" / "ReasonSeg" / "val", tmp_path / "val")
    path = tmp_path / "val" / "20011_v.json"
    text = path.read_text().replace("hold water", "hold \u201ccaf\u00e9\u201d water")
    path.write_bytes(text.encode("cp1252"))
    sample = ReasonSource(tmp_path, split="val").sample(0)
    assert sample.conversations[0].turns[0].text.startswith("what is used to hold \u201ccaf\u00e9\u201d water")
    assert sample.meta["notes"] == ("20011_v.json is in cp1252",)


def test_a_smaller_target_lies_over_a_larger_ignored_shape():
    small, large = (
        [[x, y], [x + side, y], [x + side, y + side], [x, y + side]] for x, y, side in ((9, 9, 5), (5, 5, 20))
    )
    record = {"shapes": [{"label": "Target", "points": small}, {"label": "IGNORE", "points": large}]}
    record["shapes"].append({"label": "flag", "points": []})
    target, ignore = draw_shapes(read_shapes(record), (40, 40))
    assert target.sum() == 36 and ignore.sum() == 21 * 21 - 36


BAD = {
    "no text": (lambda r: r.pop("text"), "has no 'text'"),
    "text of another type": (lambda r: r.update(text=[3]), "its 'text' holds 3"),
    "no shapes": (lambda r: r.pop("shapes"), "has no 'shapes'"),
    "label": (lambda r: r["shapes"][0].pop("label"), "has no 'label'"),
    "points": (lambda r: r["shapes"][0].update(points=[[1, 2], [3, 4]]), "shape 0 .* has 2 points"),
    "odd point": (lambda r: r["shapes"][0]["points"].append([1]), "has the point"),
    "nan": (lambda r: r["shapes"][0]["points"].append([1, float("nan")]), "has the point .*nan"),
    "words": (lambda r: r["shapes"][0]["points"].append(["1", 2]), "has the point"),
    "outside": (
        lambda r: r["shapes"][0].update(points=[[99, 1], [120, 1], [99, 30]]),
        "shape 0 lies outside the image",
    ),
    "sentence": (lambda r: r.update(is_sentence="no"), "its 'is_sentence' is 'no'"),
    "size": (lambda r: r.update(imageHeight=9, imageWidth=9), r"the annotation is for \(9, 9\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_names_the_json(golden, tmp_path, name):
    shutil.copytree(golden / "reason_seg" / "ReasonSeg" / "val", tmp_path / "val")
    change, message = BAD[name]
    path = tmp_path / "val" / "20011_v.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"20011_v\.json: .*{message}"):
        ReasonSource(tmp_path, split="val").sample(0)


def test_missing_image_damaged_json_and_near_miss(golden, tmp_path):
    shutil.copytree(golden / "reason_seg" / "ReasonSeg" / "val", tmp_path / "val")
    (tmp_path / "val" / "20011_v.jpg").unlink()
    with pytest.raises(ValueError, match=r"20011_v\.json: its image 20011_v\.jpg is missing"):
        ReasonSource(tmp_path, split="val")
    (tmp_path / "val" / "20022_v.json").write_text('{"text": [')
    source = ReasonSource(tmp_path, split="val", on_error="count")
    assert len(source) == 0 and len(source.problems.found) == 2 and "cannot be read as json" in source.problems.found[1]
    with pytest.raises(ValueError, match="length is 'shor', did you mean 'short'"):
        ReasonSource(golden, length="shor")
    with pytest.raises(ValueError, match="no folder of ReasonSeg's vall split"):
        ReasonSource(golden, split="vall")


def test_muse_asks_every_question_without_a_box(golden):
    source = MuseSource(golden, turns=None)
    assert source.skipped["question with a box"] == 1
    first, second = source.sample(0), source.sample(1)
    assert [grounded(one) for one in first.conversations] == [
        ("The brown dog and a small cup.", [("The brown dog", (0,)), ("a small cup", (1,))]),
        ("A cup.", [("A cup", (2,))]),
    ]
    # MGLMM leaves `{seg}` in the plain text, and its `{{seg}}` too; both are marks, not words
    assert grounded(second.conversations[0]) == (
        "There is a car on the left and a bicycle next to it.",
        [("car", (0,)), ("bicycle", (1,))],
    )


def test_muse_masks_are_the_peers(golden, shared):
    draws = json.loads(shared("golden", "datasets", "expected_mglmm.json").read_text())["draws"]["muse_expl"]
    expected = [item["rle_nonzero"] for item in draws[0]["masks"]["items"]]
    regions = MuseSource(golden, turns=None).sample(0).regions
    assert all((ours.mask == masks.decode(rle)).all() for ours, rle in zip(regions, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "names", "phrases"),
    [
        ("Two dogs {seg}{seg} and a man {seg}.", ["dog", "dog", "man"], [("dogs", (0, 1)), ("man", (2,))]),
        ("A dog {seg}, another dog {seg}.</s>", ["dog", "dog"], [("dog", (0,)), ("dog", (1,))]),
        ("It stands there {seg}.", ["zebra"], [("there", (0,))]),
        ("{{seg}} A Dog {{ seg }}", ["x", "dog"], [("Dog", (1,))]),
    ],
)
def test_marks_stand_behind_their_phrase(text, names, phrases):
    if text.startswith("{"):
        with pytest.raises(ValueError, match="nothing before its mark"):
            marked_answer(text, [{"category_name": name} for name in names], range(len(names)))
        return
    told, spans = marked_answer(text, [{"category_name": name} for name in names], range(len(names)))
    assert "seg" not in told and "</s>" not in told
    assert [(told[span.start : span.end], span.regions) for span in spans] == phrases


MUSE_BAD = {
    "marks": (
        lambda r: r[1]["text_answers"].__setitem__(0, "a car {seg}"),
        "number 1: .*marks 1 targets, 2 are listed",
    ),
    "answers": (lambda r: r[0]["answers"].pop(), "number 0: has 3 questions, 2 answers"),
    "segmentation": (lambda r: r[0]["answers"][0][0].pop("segmentation"), "number 0: has no 'segmentation'"),
    "category": (lambda r: r[0]["answers"][2][0].pop("category_name"), "number 0: has no 'category_name'"),
    "category beside a name": (
        lambda r: r[1]["answers"][0][0].update(rephrased_name="a car", category_name=None),
        "number 1: its 'category_name' is None",
    ),
    "polygon": (
        lambda r: r[0]["answers"][0][0]["segmentation"][0].pop(),
        r"number 0: a polygon has \d+ numbers",
    ),
    "height": (lambda r: r[0].update(height=10**3), r"number 0: the annotation is for \(1000, 48\)"),
    "image": (lambda r: r[0].update(file_name="x.jpg"), "number 0: its image 'x.jpg' is missing"),
    "root": (lambda r: r[0].update(file_name="../../../x.jpg"), "number 0: .*leaves the folder"),
}


@pytest.mark.parametrize("name", MUSE_BAD)
def test_bad_records_of_muse(golden, tmp_path, name):
    change, message = MUSE_BAD[name]
    data = json.loads((golden / "reason_seg" / "MUSE" / "MUSE_train.json").read_text())
    change(data)
    (tmp_path / "MUSE_train.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"MUSE_train\.json: record {message}"):
        MuseSource(tmp_path, image_root=golden / "coco").sample(0)
