"""Visual Genome and region captions: boxes, phrases and relations as annotated, and wrong records named."""

import copy
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data.region_captions import RegionCaptions
from mglmm_data.registry import make_source
from mglmm_data.visual_genome import VisualGenome

OBJECT = {"object_id": 11, "x": 5, "y": 6, "w": 10, "h": 20, "names": ["Dog_house"], "synsets": []}
OTHER = {"object_id": 12, "x": 20, "y": 0, "w": 40, "h": 40, "names": ["tree"], "attributes": ["Green ", "tall"]}


@pytest.fixture
def tree(tmp_path):
    """A folder in Visual Genome's form; `change` may spoil a file before it is written."""
    (tmp_path / "VG_100K").mkdir()
    (tmp_path / "VG_100K_2").mkdir()
    for number, folder in ((1, "VG_100K"), (2, "VG_100K_2")):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / folder / f"{number}.jpg")
    region = {"region_id": 7, "image_id": 1, "x": 1, "y": 2, "width": 30, "height": 20, "phrase": "a dog, asleep. "}
    relation = {
        "relationship_id": 9,
        "predicate": "IN front of",
        "subject": {key: value for key, value in OBJECT.items() if key != "names"} | {"name": "dog"},
        "object": OTHER,
    }
    files: dict[str, Any] = {
        "image_data": [{"image_id": i, "width": 60, "height": 40, "url": ""} for i in (1, 2)],
        "region_descriptions": [{"id": 1, "regions": [region]}, {"id": 2, "regions": []}],
        "objects": [{"image_id": 1, "objects": [OBJECT]}, {"image_id": 2, "objects": [OTHER]}],
        "attributes": [{"image_id": 2, "attributes": [OTHER]}],
        "relationships": [{"image_id": 1, "relationships": [relation]}],
    }

    files = copy.deepcopy(files)

    def write(change=lambda files: None, **options):
        change(files)
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        roots = [tmp_path / "VG_100K", tmp_path / "VG_100K_2"]
        return make_source({"type": "visual_genome", "root": tmp_path, "image_root": roots, **options})

    return write


def test_every_annotation_becomes_a_conversation(tree):
    source = tree(turns=None)
    assert isinstance(source, VisualGenome) and len(source) == 2
    sample = source.sample(0)
    describe, locate, name, relate = sample.conversations
    assert describe.turns[1].text == "a dog, asleep."
    (mention,) = describe.turns[0].mentions
    asked = describe.turns[0].text[mention.start : mention.end]
    assert asked.lower() == "this region" and sample.regions[mention.region].box == (1, 2, 31, 22)
    assert locate.turns[1].text == "a dog, asleep." and locate.turns[1].grounding == "box"
    assert sample.regions[locate.turns[1].phrases[0].regions[0]].box == (1, 2, 31, 22)
    assert name.turns[1].text == "the dog house."
    text = relate.turns[1].text
    assert text == "the dog in front of the tree."
    spans = {text[p.start : p.end]: sample.regions[p.regions[0]].box for p in relate.turns[1].phrases}
    assert spans == {"the dog": (5, 6, 15, 26), "the tree": (20, 0, 60, 40)}
    assert [m.region for m in relate.turns[0].mentions] == list(relate.turns[1].phrases[0].regions) + [4]
    assert source.annotations.of("objects", 2) == [[[20.0, 0.0, 60.0, 40.0], "tree", ["green", "tall"]]]


def test_points_are_the_middle_of_boxes_as_often_as_asked(tree):
    source = tree(tasks={"name": 1}, point_share=0.5)
    regions = [source.sample(0, epoch).regions[0] for epoch in range(60)]
    points = [region.point for region in regions if region.kind == "point"]
    assert set(points) == {(10, 16)} and 18 <= len(points) <= 42
    assert source.sample(0, 5).regions[0].kind == regions[5].kind


def test_both_halves_of_the_images_are_found(tree, tmp_path):
    tree()
    for given in (tmp_path, tmp_path / "VG_100K"):
        assert len(VisualGenome(tmp_path, given, tasks={"name": 1})) == 2


def spoil(file, key, **fields):
    def change(files):
        (files[file][0][key][0] if key else files[file][0]).update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("objects", "objects", w=90), r"objects.json: image 1: object 11: its box .* leaves .*clip_boxes: true"),
        (spoil("objects", "objects", x=70), r"objects.json: image 1: object 11: its box .* lies outside the image"),
        (spoil("objects", "objects", h=0), r"objects.json: image 1: object 11: its box .* has no area"),
        (spoil("objects", "objects", x="5"), r"object 11: its 'x' is '5' \(str\); expected a number"),
        (spoil("objects", "objects", x=float("nan")), r"objects.json: record\[0\]: it holds NaN, which is no number"),
        (spoil("objects", "objects", names="dog"), r"object 11: its 'names' is 'dog' \(str\); expected a list"),
        (spoil("objects", "objects", names=[3]), r"object 11: its first name is 3; expected text"),
        (spoil("objects", "", image_id=5), r"objects.json: image 5: is not in image_data.json"),
        (spoil("objects", "", image_id=2), r"objects.json: image 2: is there twice"),
        (spoil("objects", "", objects=None), r"objects.json: image 1: its 'objects' is None"),
        (spoil("region_descriptions", "regions", phrase=" "), r"image 1: region 7: its 'phrase' is empty"),
        (spoil("relationships", "relationships", subject=[1]), r"relationship 9: its 'subject' is \[1\]"),
        (spoil("image_data", "", height=0), r"image_data.json: image 1: its size is 60x0 px"),
        (spoil("image_data", "", image_id=4), r"image 1: is not in image_data.json"),
    ],
)
def test_a_wrong_record_is_named_or_counted(tree, change, message):
    with pytest.raises(ValueError, match=message):
        tree(change)
    source = tree(on_error="count")
    assert source.problems.found and len(source) >= 1


def test_boxes_are_cut_only_when_asked_and_counted(tree):
    source = tree(spoil("objects", "objects", w=90), tasks={"name": 1}, clip_boxes=True)
    assert source.sample(0).regions[0].box == (5, 6, 60, 26)
    assert source.skipped["box cut at the border"] == 1


def test_missing_images_and_nameless_objects(tree, tmp_path):
    (tmp_path / "VG_100K_2/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 2: its image '2.jpg' is missing in .*VG_100K, .*VG_100K_2"):
        tree(tasks={"name": 1})
    source = tree(spoil("objects", "objects", names=[]), tasks={"name": 1, "describe": 1}, on_error="count")
    assert source.skipped["object without a name"] == 1 and len(source.problems.found) == 1
    with pytest.raises(ValueError, match=r"no task 'nmae' in this source, did you mean 'name'"):
        tree(tasks={"nmae": 1})


def test_what_is_wrong_stays_out_when_a_record_is_read_again(tree):
    def change(files):
        files["objects"][0]["objects"].append({**OBJECT, "object_id": 13, "x": 55})

    source = tree(change, tasks={"name": 1}, turns=None, on_error="count")
    assert [region.box for region in source.sample(0).regions] == [(5, 6, 15, 26)] and len(source.problems.found) == 1
    cut = tree(tasks={"name": 1}, turns=None, clip_boxes=True)
    boxes = [[region.box for region in cut.sample(0).regions] for _ in range(2)]
    assert boxes == [[(5, 6, 15, 26), (55, 6, 60, 26)]] * 2 and cut.skipped["box cut at the border"] == 1


@pytest.fixture
def regions(tmp_path):
    """A json of region captions whose second image has a caption of its own, and its pictures."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name)
    images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(("a.png", "b.png"))]
    images[1]["caption"] = "the tree"
    boxes = [(1, 0, "ein Häuschen", 1), (2, 1, None, 2), (3, 0, "a cafe", 3), (4, 1, "bark", 4)]
    annotations = [
        {"id": i, "image_id": image, "bbox": [x, 2, 10, 10]} | ({"caption": text} if text else {})
        for i, image, text, x in boxes
    ]

    def write(*order, change=lambda raw: raw):
        data = {"images": images, "annotations": annotations}
        raw = json.dumps({key: data[key] for key in order}, ensure_ascii=False).encode()
        (tmp_path / "regions.json").write_bytes(change(raw))
        return tmp_path / "regions.json"

    return write


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
def test_texts_of_regions_are_read_again_from_the_json(regions, tmp_path, order):
    source = RegionCaptions(regions(*order), tmp_path, turns=None)
    told = [[(region.box, region.label) for region in source.sample(i).regions] for i in range(2)]
    assert told == [
        [((1, 2, 11, 12), "ein Häuschen"), ((3, 2, 13, 12), "a cafe")],
        [((2, 2, 12, 12), "the tree"), ((4, 2, 14, 12), "bark")],
    ]
    (tmp_path / "regions.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"regions.json has changed since it was read"):
        source.sample(0)


def test_a_region_in_latin_1_is_one_wrong_record(regions, tmp_path):
    path = regions("images", "annotations", change=lambda raw: raw.replace(b"cafe", b"caf\xe9"))
    with pytest.raises(ValueError, match=r"regions.json: annotations\[2\] \(id 3\): it holds text that is not UTF-8"):
        RegionCaptions(path, tmp_path)
    source = RegionCaptions(path, tmp_path, turns=None, on_error="count")
    assert [len(source.sample(i).regions) for i in range(2)] == [1, 2] and len(source.problems.found) == 1


@pytest.mark.parametrize(("order", "absent"), [(("images",), "annotations"), (("annotations",), "images")])
def test_region_captions_need_both_lists(regions, tmp_path, order, absent):
    with pytest.raises(ValueError, match=f"regions.json has no list '{absent}'; it has {order[0]}"):
        RegionCaptions(regions(*order), tmp_path)


def test_glamms_visual_genome_tree(shared):
    """The peer keeps the box that leaves the image as it is (-0.08 of the width); ours is cut, and that is counted."""
    data = shared("golden", "datasets", "data", "visual_genome")
    spec = {"type": "region_captions", "path": data / "train.json", "image_root": data / "images", "turns": None}
    with pytest.raises(ValueError, match=r"train.json: annotation 4: its box .* lies outside the image of 64x48 px"):
        make_source(spec)
    source = make_source({**spec, "clip_boxes": True, "on_error": "count"})
    assert isinstance(source, RegionCaptions)
    sample = source.sample(0)
    draws = json.loads(shared("golden", "datasets", "expected_glamm.json").read_text())["draws"]["vg_reg"]
    peer = dict(zip(draws[0]["selected_labels"], draws[0]["bboxes"], strict=True))
    ours = {conversation.turns[1].text: sample.regions[i].box for i, conversation in enumerate(sample.conversations)}
    assert set(ours) == set(peer)
    scale = np.array([64, 48, 64, 48])
    for text, box in peer.items():
        np.testing.assert_allclose(np.array(ours[text]), np.clip(np.array(box) * scale, 0, scale), atol=1e-4)
    assert source.skipped == {"box cut at the border": 1, "box below 1 px": 1}
    assert len(source.problems.found) == 1


def test_mdetr_tree_takes_the_images_caption(shared):
    data = shared("golden", "datasets", "data")
    source = RegionCaptions(
        data / "RefCoco_Reg/mdetr_annotations/finetune_refcoco_train.json",
        data / "refer_seg/images/mscoco/images/train2014",
        tasks={"describe": 1, "locate": 1},
        turns=None,
        on_error="count",
    )
    assert [len(source), len(source.problems.found)] == [1, 2]  # tiny.jpg is not there, so its annotation has no image
    sample = source.sample(0)
    draws = json.loads(shared("golden", "datasets", "expected_glamm.json").read_text())["draws"]["refcoco_reg"]
    for draw in draws:
        (text,), (box,) = draw["selected_labels"], draw["bboxes"]
        found = [r.box for r in sample.regions if r.label == text]
        assert len(found) == 2
        np.testing.assert_allclose(np.array(found[0]), np.array(box) * [48, 64, 48, 64], atol=1e-4)
