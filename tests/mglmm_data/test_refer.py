"""RefCLEF, RefCOCO/+/g, gRefCOCO and REC: golden trees, real expressions, and sentences about what is wrong."""

import json
import pickle
import re
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks
from mglmm_data.refer import ReferSource, in_split, load_refs
from mglmm_data.registry import make_source


@pytest.fixture
def golden(shared):
    return shared("golden", "datasets", "data")


def said(sample):
    """question, phrase, masks' areas of every conversation."""
    rows = []
    for conversation in sample.conversations:
        turn = conversation.turns[1]
        phrase = turn.phrases[0] if turn.phrases else None
        text = turn.text[phrase.start : phrase.end] if phrase else turn.text
        areas = [int(sample.regions[i].mask.sum()) for i in phrase.regions] if phrase else []
        rows.append((text, areas))
    return rows


@pytest.mark.parametrize("dataset", ["refcoco", "refcoco+", "refcocog", "refclef"])
def test_refs_of_every_split_are_those_of_the_sets_own_code(golden, shared, dataset):
    expected = json.loads(shared("golden", "datasets", "expected_lisa.json").read_text())["refer_api"][dataset]
    for split, found in expected["splits"].items():
        drawn = set(found["ref_ids"]) - {5}  # ref 5 has an empty segmentation: there is no mask to ask for
        if not drawn:
            continue
        source = ReferSource(golden, dataset=dataset, split=split, turns=None)
        refs = {ref for index in range(len(source)) for ref in source.sample(index).meta["refs"]}
        assert refs == drawn, split
        assert sum(source.skipped.values()) == 2 * (5 in found["ref_ids"])  # an object, and its one expression


def test_overlapping_polygons_are_joined_where_the_peers_sum_them(golden, shared):
    expected = json.loads(shared("golden", "datasets", "expected_lisa.json").read_text())["refer_api"]["refcoco"]
    sample = ReferSource(golden, dataset="refcoco", split="train").sample(1)
    peer = expected["masks"]["2"]
    assert peer["area"] == 556 and 2 in peer["mask"]["unique_values"]  # LISA sums the two polygons
    assert (sample.regions[0].mask == masks.decode(peer["mask"]["rle_nonzero"])).all()
    assert sample.regions[0].mask.sum() == 418  # instances.json's own `area`
    assert sample.regions[0].label == "dog"


def test_refclef_reads_a_list_of_rles(golden):
    sample = ReferSource(golden, dataset="refclef").sample(0)
    assert said(sample) == [("white building", [420])] and sample.size == (40, 60)


def test_several_targets_and_none(golden):
    train = make_source({"type": "grefcoco", "root": str(golden), "turns": None})
    assert said(train.sample(0)) == [
        ("both people", [239, 188]),
        ("the two persons", [239, 188]),
        ("There is no purple cow in the image.", []),
    ]
    assert [one.kind for one in train.sample(0).conversations] == ["several", "several", "none"]
    cars: Any = make_source({"type": "grefcoco", "root": str(golden), "split": "testA", "turns": None})
    assert said(cars.sample(0)) == [("cars", [526])] and cars.skipped["object without a mask"] == 1


def test_questions_do_not_tell_whether_there_is_a_target(golden):
    source = make_source({"type": "grefcoco", "root": str(golden), "turns": None})
    asked = {kind: set() for kind in ("several", "none")}
    for epoch in range(40):
        for one in source.sample(0, epoch).conversations:
            words = {"several": ("both people", "the two persons"), "none": ("purple cow",)}[one.kind]
            question = one.turns[0].text
            for word in words:
                question = question.replace(word, "X")
            asked[one.kind].add(question)
    assert asked["several"] == asked["none"] and len(asked["none"]) > 4


def test_draws_depend_on_seed_index_and_epoch_alone(golden):
    source = ReferSource(golden, turns=2)
    told = [[c.turns[0].text for c in source.sample(0, epoch).conversations] for epoch in (0, 0, 1)]
    assert told[0] == told[1] and len(told[0]) == 2
    assert any([c.turns[0].text for c in source.sample(0, epoch).conversations] != told[0] for epoch in range(1, 9))


@pytest.mark.parametrize(
    ("marked", "wanted", "belongs"),
    [
        ("testAB", "testA", True),
        ("testAB", "testB", True),
        ("testAB", "testC", False),
        ("testA", "test", True),
        ("train", "testA", False),
        ("train", "test", False),
        ("val", "val", True),
    ],
)
def test_what_a_split_takes(marked, wanted, belongs):
    assert in_split(marked, wanted) is belongs


@pytest.mark.parametrize(("dataset", "split_by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")])
def test_real_expressions_have_the_area_and_box_of_their_annotations(shared, dataset, split_by):
    root = shared("data", "refcoco_join")
    refs = load_refs(root / dataset / f"refs({split_by}).p")
    annotations = {one["id"]: one for one in json.loads((root / dataset / "instances.json").read_text())["annotations"]}
    by_ref = {ref["ref_id"]: ref for ref in refs}
    seen = 0
    for split in {ref["split"] for ref in refs}:
        source = ReferSource(root, dataset=dataset, split=split, turns=None)
        for index in range(len(source)):
            sample = source.sample(index)
            for ref_id, conversation in zip(sample.meta["refs"], sample.conversations, strict=True):
                phrase = conversation.turns[1].phrases[0]
                region = sample.regions[phrase.regions[0]]
                annotation = annotations[by_ref[ref_id]["ann_id"]]
                assert abs(region.mask.sum() - annotation["area"]) < 0.06 * annotation["area"] + 60
                x, y, width, height = annotation["bbox"]
                assert region.bounds
                apart = np.abs(np.subtract(region.bounds, (x, y, x + width, y + height)))
                assert np.sort(apart)[-2] <= 1.5 and apart.max() < 5  # the foot of one polygon is thinner than a pixel
                text = conversation.turns[1].text[phrase.start : phrase.end]
                assert text in [" ".join(sentence["sent"].split()) for sentence in by_ref[ref_id]["sentences"]]
                seen += 1
    assert seen == sum(len(ref["sentences"]) for ref in refs)


def test_rec_reads_mdetr_and_minigpt(golden, shared):
    mdetr: Any = make_source(
        {"type": "rec", "path": golden / "RefCoco_Reg/mdetr_annotations/finetune_refcoco_train.json", "turns": None}
    )
    sample = mdetr.sample(0)
    assert mdetr.skipped == {"image below 32 px": 1} and [region.box for region in sample.regions] == [
        (11, 18, 35, 43),
        (28, 46, 40, 58),
    ]
    assert [c.turns[1].text for c in sample.conversations] == ["brown dog, big.", "small dog at the bottom."]
    assert {c.turns[1].grounding for c in sample.conversations} == {"box"}
    path = shared("data", "refcoco_eval", "refcoco_val.json")
    photos = shared("data", "refcoco_join", "images", "mscoco", "images", "train2014")
    rows = [
        row for row in json.loads(path.read_text()) if (photos / f"{row['img_id'].rpartition('_')[0]}.jpg").exists()
    ]
    real: Any = make_source({"type": "rec", "path": path, "image_root": photos, "turns": None, "on_error": "count"})
    asked = [c.turns[1].text[:-1] for i in range(len(real)) for c in real.sample(i).conversations]
    assert sorted(asked) == sorted(row["sents"] for row in rows) and len(real.problems.found) == 10834 - len(rows)
    for x, y, width, height in (row["bbox"] for row in rows):
        boxes = [region.box for i in range(len(real)) for region in real.sample(i).regions]
        assert any(np.allclose(box, (x, y, x + width, y + height)) for box in boxes)
    drawn: Any = make_source({"type": "rec", "path": path, "image_root": photos, "turns": 1, "on_error": "count"})
    assert all(len(drawn.sample(i).regions) == 1 for i in range(len(drawn)))  # a box that nobody asks for is no region


@pytest.fixture
def tree(golden, tmp_path):
    """A copy of RefCOCO whose refs and instances a test may spoil: `tree(change)` gives the error's text."""
    folder = tmp_path / "refer_seg"
    shutil.copytree(golden / "refer_seg" / "refcoco", folder / "refcoco")
    shutil.copytree(golden / "refer_seg" / "images", folder / "images")

    def spoil(change, refs_as="p"):
        refs = pickle.loads((folder / "refcoco" / "refs(unc).p").read_bytes())
        data = json.loads((folder / "refcoco" / "instances.json").read_text())
        change(refs, data, folder / "images" / "mscoco" / "images" / "train2014")
        (folder / "refcoco" / "refs(unc).p").unlink()
        if refs_as == "p":
            (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
        else:
            (folder / "refcoco" / "refs(unc).json").write_text(json.dumps(refs))
        (folder / "refcoco" / "instances.json").write_text(json.dumps(data))
        return folder

    return spoil


def read(root, **options):
    source = ReferSource(root, **options)
    return [source.sample(index) for index in range(len(source))]


def test_json_form_gives_the_same(tree, golden):
    ours = read(tree(lambda *_: None, refs_as="json"), turns=None)
    assert [said(one) for one in ours] == [said(one) for one in read(golden, turns=None)]


def annotation(data, number):
    return next(one for one in data["annotations"] if one["id"] == number)


BAD = {
    "no sentences": (lambda r, d, p: r[0].pop("sentences"), r"refs\(unc\)\.p: ref 0: has no 'sentences'"),
    "no image id": (lambda r, d, p: r[0].pop("image_id"), r"ref 0: has no 'image_id'"),
    "sentence of another type": (
        lambda r, d, p: r[0].update(sentences=[3]),
        r"ref 0: is 3 \(int\); expected an object",
    ),
    "ref of another type": (lambda r, d, p: r.__setitem__(0, 3), r"ref number 0: is 3"),
    "id of another type": (lambda r, d, p: annotation(d, 3).update(id=[3]), r"annotation \[3\]: its 'id' is \[3\]"),
    "no id": (lambda r, d, p: annotation(d, 3).pop("id"), r"annotation at byte \d+: has no 'id'"),
    "no ref id": (lambda r, d, p: r[1].pop("ref_id"), r"ref number 1: has no 'ref_id'"),
    "empty sentence": (lambda r, d, p: r[0]["sentences"][0].update(sent=" "), r"ref 0: its 'sentences'"),
    "wrong type": (lambda r, d, p: r[0].update(ann_id=1.5), r"ref 0: its 'ann_id' is 1.5"),
    "absent annotation": (
        lambda r, d, p: r[0].update(ann_id=99),
        r"ref 0: speaks of annotation id 99, which .*instances",
    ),
    "absent image": (lambda r, d, p: r[0].update(image_id=99), r"ref 0: is on image id 99, which .*instances"),
    "another image": (lambda r, d, p: r[0].update(image_id=9), r"ref 0: is on image id 9, its annotation 1719310 on"),
    "odd polygon": (
        lambda r, d, p: annotation(d, 3)["segmentation"][0].pop(),
        r"instances\.json: annotation 3: a polygon has 19 numbers",
    ),
    "short polygon": (
        lambda r, d, p: annotation(d, 3).update(segmentation=[[1, 2, 3, 4]]),
        r"annotation 3: a polygon has 4 numbers",
    ),
    "nan": (
        lambda r, d, p: annotation(d, 3)["segmentation"][0].__setitem__(0, float("nan")),
        r"instances\.json: .*3.*NaN",
    ),
    "outside": (
        lambda r, d, p: annotation(d, 3).update(segmentation=[[90, 90, 99, 90, 99, 99]]),
        r"annotation 3: a polygon lies outside the image of 48x64 px",
    ),
    "words": (lambda r, d, p: annotation(d, 3).update(segmentation="x"), r"annotation 3: its segmentation holds 'x'"),
    "null": (lambda r, d, p: annotation(d, 3).update(segmentation=None), r"annotation 3: its segmentation is null"),
    "rle size": (
        lambda r, d, p: annotation(d, 3).update(segmentation={"size": [9, 9], "counts": "0"}),
        r"annotation 3: its RLE is of size \[9, 9\], its image of \[64, 48\]",
    ),
    "rle counts": (
        lambda r, d, p: annotation(d, 3).update(segmentation={"size": [64, 48], "counts": "zz"}),
        r"annotation 3: the RLE's counts do not fill",
    ),
    "leaves the root": (
        lambda r, d, p: d["images"][1].update(file_name="../../../../../x.jpg"),
        r"ref 2: its image '../../../../../x.jpg' leaves the folder",
    ),
    "image missing": (
        lambda r, d, p: (p / "COCO_train2014_000000000009.jpg").unlink(),
        r"ref 2: its image 'COCO_train2014_000000000009.jpg' is missing",
    ),
    "image truncated": (
        lambda r, d, p: (p / "COCO_train2014_000000000009.jpg").write_bytes(
            (p / "COCO_train2014_000000000009.jpg").read_bytes()[:400]
        ),
        r"COCO_train2014_000000000009.jpg is ",
    ),
    "image of another size": (
        lambda r, d, p: shutil.copy(p / "COCO_train2014_000000000025.jpg", p / "COCO_train2014_000000000009.jpg"),
        r"instances\.json: image 9: the annotation is for \(64, 48\)",
    ),
    "size of no number": (lambda r, d, p: d["images"][1].update(height="64"), r"image 9: its 'height' is '64'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_names_file_and_record(tree, name):
    change, message = BAD[name]
    root = tree(change)
    with pytest.raises(ValueError, match=message):
        read(root)


@pytest.mark.parametrize("name", ["no sentences", "absent annotation", "odd polygon", "nan", "image missing"])
def test_counted_errors_are_listed_and_the_rest_is_read(tree, name):
    change, message = BAD[name]
    source = ReferSource(tree(change), turns=None, on_error="count")
    assert 1 <= len(source) <= 2 and source.sample(0).conversations
    assert any(re.search(message, found) for found in source.problems.found)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([Evil()], protocol=2), r"refs.p holds __builtin__.print, .* not loaded"),
        (pickle.dumps([Evil()], protocol=4), r"refs.p holds builtins.print, .* not loaded"),
        (pickle.dumps([np.zeros(3)]), r"refs.p holds numpy.*_reconstruct"),
        (b"\x80\x02]q\x01", r"refs.p cannot be read as a pickle"),
        (b"", r"refs.p cannot be read as a pickle"),
        (pickle.dumps({"a": 1}), r"refs.p holds dict at its top"),
        (b"\x80\x02]U\x02\xff\xfea.", r"refs.p holds text that is not UTF-8"),
    ],
    ids=["protocol 2", "protocol 4", "array", "cut", "empty", "dict", "latin-1"],
)
def test_a_pickle_of_anything_but_plain_containers_is_refused(tmp_path, content, message, capsys):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_refs(tmp_path / "refs.p")
    assert capsys.readouterr().out == ""


def test_near_misses_are_named(golden, tmp_path):
    with pytest.raises(ValueError, match="no referring data set 'refcoc', did you mean 'refcoco'"):
        ReferSource(golden, dataset="refcoc")
    with pytest.raises(ValueError, match="nothing in split 'vall', did you mean 'val'"):
        ReferSource(golden, split="vall")
    with pytest.raises(ValueError, match="no folder of refcoco below .* tried"):
        ReferSource(tmp_path)
    with pytest.raises(ValueError, match="turns is 0; at least 1"):
        ReferSource(golden, turns=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [60, 1, 10, 10]}, "outside the image of 50x40"),
        ({"bbox": [1, 1, float("nan"), 10]}, "NaN"),
        ({"bbox": [1, 1, 10]}, "expected four numbers"),
        ({"bbox": [1, 1, 90, 10]}, "leaves the image of 50x40 px by 41 px"),
        ({"img_id": "a"}, "its 'img_id' is 'a'"),
        ({"sents": 3}, r"its 'sents' is 3 \(int\); expected text"),
        ({"height": None}, "its 'height' is None"),
        ({"img_id": "../b_1"}, "leaves the folder"),
        ({"img_id": "b_1"}, "'b.jpg' is missing"),
    ],
)
def test_bad_rows_of_rec(tmp_path, change, message):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.jpg")
    row = {"img_id": "a_1", "sents": "the dog", "bbox": [1, 1, 10, 10], "height": 40, "width": 50} | change
    (tmp_path / "rec.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=rf"rec\.json: .*{message}"):
        make_source({"type": "rec", "path": tmp_path / "rec.json", "image_root": tmp_path}).sample(0)
