"""Label maps and parts: ADE20K, COCO-Stuff, Mapillary, CamVid, VOC, PACO, PASCAL-Part; golden trees and real files."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks, registry
from mglmm_data.ade20k import NAMES as ADE_NAMES
from mglmm_data.cocostuff import NAMES as STUFF_NAMES
from mglmm_data.cocostuff import in_words
from mglmm_data.labelmap import read_labels


def make_source(spec) -> Any:
    return registry.make_source(spec)


def specs(tree):
    return {
        "ade20k": {"root": tree / "ade20k"},
        "cocostuff": {"root": tree / "cocostuff"},
        "mapillary": {"root": tree / "mapillary"},
        "paco_lvis": {
            "json_path": tree / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json",
            "image_root": tree / "coco",
        },
        "pascal_part": {"json_path": tree / "vlpart" / "pascal_part" / "train.json"},
    }


def ours(name, kind):
    """The words of a peer's class: `mouse scroll_wheel`, `the left_wing of the aeroplane`."""
    if kind not in ("paco_lvis", "pascal_part"):
        return name
    part, of, owner = name.removeprefix("the ").partition(" of the ")
    if not of:
        owner, blank, part = name.partition(" ")
        if not blank or "_" in owner:
            return name.replace("_", " ")
    return f"{part.replace('_', ' ')} of the {owner}"


@pytest.mark.parametrize("kind", ["ade20k", "cocostuff", "mapillary", "paco_lvis", "pascal_part"])
@pytest.mark.parametrize(
    ("peer", "prefix", "key"), [("lisa", "sem_seg", "train_draws"), ("mglmm", "semantic", "draws")]
)
def test_masks_are_those_of_the_peers(shared, kind, peer, prefix, key):
    """Every mask a peer drew for a class is ours for that name; it draws three of them, we hold all."""
    expected = json.loads(shared("golden", "datasets", f"expected_{peer}.json").read_text())[key]
    source = make_source({"type": kind, **specs(shared("golden", "datasets", "data"))[kind]})
    samples = {sample.meta["file"].rsplit("/", 1)[1]: sample for sample in map(source.sample, range(len(source)))}
    compared = 0
    # MGLMM looks for cocostuff/*.png only, and found nothing in LISA's layout; ours reads both.
    for name in [name for name in expected if name.startswith(f"{prefix}:{kind}")]:
        for draw in expected[name]:
            if "error" in draw:
                assert (peer, kind) == ("mglmm", "cocostuff")
                continue
            sample = samples[draw["image_path"].rsplit("/", 1)[1]]
            labels = draw["sampled_classes" if peer == "lisa" else "selected_labels"]
            for label, item in zip(labels, draw["masks"]["items"], strict=True):
                of_name = [region.mask for region in sample.regions if region.label == ours(label, kind)]
                want = masks.decode(item["rle_nonzero"])
                assert item["rle_gt1"] is None and any((mask == want).all() for mask in of_name), (draw["seed"], label)
                compared += 1
    assert compared >= 6


def test_layouts_of_cocostuff(shared, tmp_path):
    tree = shared("golden", "datasets", "data")
    for year in ("train2017", "."):
        shutil.copytree(tree / "cocostuff" / "train2017", tmp_path / "cocostuff" / year, dirs_exist_ok=True)
        source = make_source({"type": "cocostuff", "root": tmp_path / "cocostuff", "image_root": tree / "coco"})
        assert len(source) == 2
        shutil.rmtree(tmp_path / "cocostuff")


def test_names():
    assert (len(ADE_NAMES), len(STUFF_NAMES)) == (150, 182)
    assert STUFF_NAMES[0] == "person" and STUFF_NAMES[91] == "banner" and STUFF_NAMES[181] == "wood"
    told = [in_words(name) for name in ("sky-other", "wall-brick", "desk-stuff", "window-blind", "tree-merged")]
    assert told == ["sky", "brick wall", "desk", "window blind", "tree"]


def test_what_a_wider_name_covers_is_neither_asked_nor_denied(tmp_path):
    """`wall` beside `brick wall`: "the wall" would be wrong, and "there is no wall" too."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.jpg")
    labels = np.full((10, 20), 255, np.uint8)
    labels[:5], labels[5:, :9] = STUFF_NAMES.index("wall-brick"), STUFF_NAMES.index("wall-other")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    spec = {"type": "cocostuff", "root": tmp_path / "labels", "image_root": tmp_path / "images"}
    referring = make_source({**spec, "tasks": {"referring": 1}, "turns": 9}).sample(0)
    assert [c.turns[1].text for c in referring.conversations] == ["the brick wall."]
    denied = make_source({**spec, "tasks": {"absent": 1}, "turns": 400}).sample(0).conversations
    assert len(denied) > 100 and not {"There is no wall in the image.", "There is no food in the image."} & {
        c.turns[1].text for c in denied
    }
    assert "There is no hat in the image." not in {c.turns[1].text for c in denied}  # COCO never marked hats


def test_ade_sceneparsing_against_its_own_maps(shared):
    root = shared("data", "ade20k_sceneparsing", "sampleData")
    info = [line.split("\t") for line in (root.parent / "objectInfo150.txt").read_text().splitlines()[1:]]
    first = [line[4].split(",")[0].strip() for line in info]
    assert {pair for pair in zip(first, ADE_NAMES, strict=True) if len(set(pair)) > 1} == {
        ("television", "television receiver")  # as LISA names it
    }
    source = make_source({"type": "ade20k", "root": root})
    for sample in map(source.sample, range(len(source))):
        labels = np.asarray(Image.open(root / "annotations" / f"{sample.id.split('/')[1]}.png"))
        counts = {ADE_NAMES[value - 1]: count for value, count in enumerate(np.bincount(labels.ravel())) if value}
        found = {region.label: int(region.mask.sum()) for region in sample.regions if region.kind == "mask"}
        assert found.pop("", 0) == int((labels == 0).sum())  # to be ignored
        assert found == {name: count for name, count in counts.items() if count}


def test_ade_full_has_parts_of_objects(shared):
    root = shared("data", "ade20k_full")
    source = make_source(
        {"type": "ade20k_full", "root": root, "split": "train", "max_regions": 99, "tasks": {"fine": 1}}
    )
    assert len(source) == 2
    sample = source.sample(1)
    path = next(root.rglob("ADE_train_00016964.json"))
    objects = json.loads(path.read_text(encoding="latin-1"))["annotation"]["object"]
    assert len(sample.regions) == len(objects) == 32
    parts = [region.label for region in sample.regions if " of the " in region.label]
    assert len(parts) == 8 and parts.count("window of the building") == 2 and "license plate of the van" in parts
    colors = np.asarray(Image.open(path.with_name("ADE_train_00016964_seg.png"))).astype(int)
    codes = colors[..., 0] // 10 * 256 + colors[..., 1]
    for name in ("van", "container"):  # R // 10 * 256 + G is the class, as the maps of the release say
        number = next(one["name_ndx"] for one in objects if one["name"] == name)
        union = np.logical_or.reduce([region.mask for region in sample.regions if region.label == name])
        assert (union == (codes == number)).mean() > 0.9999
    (conversation,) = sample.conversations
    assert "part" in conversation.turns[0].text and conversation.turns[1].phrases
    denied = make_source({"type": "ade20k_full", "root": root, "split": "train", "tasks": {"absent": 1}, "turns": 400})
    told = {talk.turns[1].text for talk in denied.sample(1).conversations}
    assert len(told) > 5 and not any("of the car" in text for text in told)  # its wheels are seen, and not marked


def test_what_ade20k_hides_wholly_is_neither_there_nor_absent(tmp_path):
    objects = []
    for number, (name, values) in enumerate({"bed": [255, 128], "leg": [128], "lamp": [0]}.items()):
        mask = np.zeros((8, 9), np.uint8)
        mask[: len(values), :4] = np.array(values)[:, None]
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        parts = {"ispartof": [] if name != "leg" else 0}
        objects.append({"id": number, "name": name, "instance_mask": f"{name}.png", "parts": parts})
    (tmp_path / "a.json").write_text(json.dumps({"annotation": {"object": objects}}))
    Image.new("RGB", (9, 8)).save(tmp_path / "a.jpg")
    source = make_source({"type": "ade20k_full", "root": tmp_path, "tasks": {"panoptic": 1, "absent": 1}, "turns": 8})
    sample = source.sample(0)
    assert sample.meta["empty_masks"] == ("object 2 (lamp)",)
    assert "object 1 (leg of the bed) is hidden wholly; left out" in sample.meta["notes"]
    assert [region.label for region in sample.regions if region.kind == "mask"] == ["bed"]
    assert not any("no leg" in turn.text for talk in sample.conversations for turn in talk.turns)


def test_camvid(shared):
    root = shared("data", "camvid")
    train, val = (make_source({"type": "camvid", "root": root, "split": split}) for split in ("train", "val"))
    assert (len(train), len(val)) == (123, 34) and len(train.names) == 11
    sample = val.sample(3)
    labels = np.asarray(Image.open(sample.meta["file"].replace("/val/", "/valannot/")))
    road = next(region for region in sample.regions if region.label == "road")
    assert (road.mask == (labels == 3)).all()
    (unlabelled,) = sample.meta["ignore_regions"]
    assert (sample.regions[unlabelled].mask == (labels == 11)).all() and sample.regions[unlabelled].label == ""
    named = [region for number, region in enumerate(sample.regions) if region.kind == "mask" and number != unlabelled]
    assert sum(int(region.mask.sum()) for region in named) == int((labels != 11).sum())


def test_voc_and_labelme_and_coco_agree(shared):
    """One annotation in three forms: labelme's shapes, VOC's maps and COCO's json out of labelme's own converters."""
    root = shared("data", "labelme_voc")
    voc = make_source({"type": "voc", "root": root / "data_dataset_voc"})
    labelme = make_source({"type": "labelme", "root": root / "data_annotated"})
    coco = make_source({"type": "coco", "json_path": root / "data_dataset_coco" / "annotations.json"})
    for index in range(2):
        samples = [source.sample(index) for source in (voc, labelme, coco)]
        boxes = [
            sorted(
                (region.label, *region.bounds) for region in sample.regions if region.kind == "mask" and region.label
            )
            for sample in samples
        ]
        border = [samples[0].regions[number].mask for number in samples[0].meta["ignore_regions"]]
        labels = samples[0].meta["file"].replace("JPEGImages", "SegmentationClass").replace(".jpg", ".png")
        assert [int(mask.sum()) for mask in border] == [n for n in [int((read_labels(labels) == 255).sum())] if n]
        assert len(boxes[0]) == len(boxes[1]) == len(boxes[2])
        for one, two, three in zip(*boxes, strict=True):
            assert one[0] == two[0] == three[0]
            assert np.abs(np.array(one[1:]) - two[1:]).max() <= 4 and np.abs(np.array(two[1:]) - three[1:]).max() <= 4
    assert labelme.skipped["line, point or skipped label"] == 2  # __ignore__
    assert not any(
        region.mask[
            np.asarray(Image.open(root / "data_dataset_voc" / "SegmentationObject" / "2011_000003.png")) == 255
        ].any()
        for region in voc.sample(0).regions
        if region.kind == "mask"
    )


# --- wrong files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ade(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / folder / "training").mkdir(parents=True)
    for stem in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / "training" / f"{stem}.jpg")
        Image.fromarray(np.full((10, 20), 3, np.uint8)).save(tmp_path / "annotations" / "training" / f"{stem}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: Image.fromarray(np.full((10, 20), 151, np.uint8)).save(path), r"a\.png: label 151 is no class"),
        (lambda path: Image.fromarray(np.full((9, 20), 3, np.uint8)).save(path), r"a\.png is \(9, 20\).*\(10, 20\)"),
        (lambda path: Image.new("RGB", (20, 10)).save(path), r"a\.png is RGB, not L, P"),
        (lambda path: path.write_bytes(path.read_bytes()[:45]), r"a\.png is truncated or damaged"),
        (lambda path: path.write_bytes(b"hello"), r"a\.png is no picture"),
    ],
    ids=["class", "size", "colour", "truncated", "no picture"],
)
def test_a_wrong_label_map_is_named(ade, change, match):
    change(ade / "annotations" / "training" / "a.png")
    source = make_source({"type": "ade20k", "root": ade})
    with pytest.raises(ValueError, match=match):
        source.sample(0)
    assert source.sample(1).conversations


@pytest.mark.parametrize(
    ("gone", "match"),
    [
        ("images/training/a.jpg", r"a\.png: has no image a\.jpg"),
        ("annotations/training/a.png", r"a\.jpg: has no label map"),
    ],
)
def test_a_missing_half_is_named_or_counted(ade, gone, match):
    (ade / gone).unlink()
    with pytest.raises(ValueError, match=match):
        make_source({"type": "ade20k", "root": ade})
    source = make_source({"type": "ade20k", "root": ade, "on_error": "count"})
    assert len(source) == 1 and len(source.problems.found) == 1


def test_an_image_without_any_class_is_said_when_read(ade):
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(ade / "annotations" / "training" / "a.png")
    source = make_source({"type": "ade20k", "root": ade, "tasks": {"panoptic": 1}})
    with pytest.raises(ValueError, match=r"a\.jpg\): nothing is annotated that the tasks panoptic ask about"):
        source.sample(0)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("ade20k", "no folder of photographs below .*images/training"),
        ("mapillary", r"config_v2\.0\.json does not exist"),
        ("camvid", r"train\.txt does not exist"),
        ("voc", "no folder of class maps"),
        ("cocostuff", "no folder of photographs"),
        ("ade20k_full", "no annotation"),
        ("labelme", "no labelme file"),
        ("yolo", "no folder of photographs"),
    ],
)
def test_an_empty_root_says_what_is_missing(tmp_path, kind, match):
    with pytest.raises(ValueError, match=match):
        make_source({"type": kind, "root": tmp_path})


def test_mapillary_versions_and_instances(tmp_path):
    labels = [
        {"name": "animal--bird", "readable": "Bird", "instances": True},
        {"name": "nature--sky", "readable": "Sky", "instances": False},
        {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False},
    ]
    (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
    for folder in ("images", "labels", "instances"):
        (tmp_path / "training" / folder).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "training" / "images" / "a.jpg")
    codes = np.full((10, 20), 2 * 256, np.uint16)
    codes[:5], codes[6:, :5], codes[6:, 8:] = 256, 1, 2
    Image.fromarray((codes >> 8).astype(np.uint8)).save(tmp_path / "training" / "labels" / "a.png")
    Image.fromarray(codes).save(tmp_path / "training" / "instances" / "a.png")
    source = make_source({"type": "mapillary", "root": tmp_path, "version": "v1.2", "tasks": {"panoptic": 1}})
    (conversation,) = source.sample(0).conversations
    assert conversation.turns[1].text == "two birds, the sky."
    with pytest.raises(ValueError, match="version is 'v2', did you mean 'v2.0'"):
        make_source({"type": "mapillary", "root": tmp_path, "version": "v2"})


@pytest.fixture
def voc(tmp_path):
    """A photograph of VOC with one object of class 2, a bicycle."""
    for folder, color in (("JPEGImages", None), ("SegmentationClass", 2), ("SegmentationObject", 1)):
        (tmp_path / folder).mkdir()
        if color is None:
            Image.new("RGB", (20, 10)).save(tmp_path / folder / "a.jpg")
        else:
            Image.fromarray(np.pad(np.full((4, 5), color, np.uint8), ((3, 3), (7, 8)))).save(
                tmp_path / folder / "a.png"
            )
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "change", "match"),
    [
        ("SegmentationClass", lambda labels: labels // 2 * 21, r"a\.png: object 1 has class 21 of 20"),
        ("SegmentationClass", lambda labels: labels * 0, r"a\.png: object 1 has class 0 of 20"),
        ("SegmentationClass", lambda labels: np.roll(labels, 1), r"a\.png: object 1 has class 0, 2 of 20"),
        ("SegmentationClass", lambda labels: labels[:9], r"a\.png is \(9, 20\).*\(10, 20\)"),
        ("SegmentationObject", lambda labels: labels[:9], r"SegmentationObject/a\.png is \(9, 20\).*\(10, 20\)"),
    ],
    ids=["class", "no class", "disagree", "size", "size of objects"],
)
def test_wrong_maps_of_voc_are_named(voc, folder, change, match):
    source = make_source({"type": "voc", "root": voc, "tasks": {"panoptic": 1}})
    assert source.sample(0).conversations[0].turns[1].text == "a bicycle."
    labels = np.asarray(Image.open(voc / folder / "a.png"))
    Image.fromarray(np.ascontiguousarray(change(labels))).save(voc / folder / "a.png")
    with pytest.raises(ValueError, match=match):
        source.sample(0)


def test_a_list_of_voc_names_what_is_there(voc):
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    spec = {"type": "voc", "root": voc, "split": "val"}
    with pytest.raises(ValueError, match=r"val\.txt: line 2: names b, which has no label map in .*SegmentationClass"):
        make_source(spec)
    source = make_source({**spec, "on_error": "count"})
    assert len(source) == len(source.problems.found) == 1
    with pytest.raises(ValueError, match=r"train\.txt does not exist"):
        make_source({**spec, "split": "train"})


def test_camvid_lines_are_checked(tmp_path):
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/x.png\n")
    with pytest.raises(ValueError, match=r"train\.txt: line 1: has 1 paths"):
        make_source({"type": "camvid", "root": tmp_path})
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/../x.png /SegNet/CamVid/trainannot/x.png\n")
    with pytest.raises(ValueError, match=r"train\.txt: line 1: names .*leaves"):
        make_source({"type": "camvid", "root": tmp_path})


def test_ade_full_names_a_part_without_its_object(tmp_path):
    part = {"id": 3, "name": "door", "instance_mask": "x.png", "parts": {"ispartof": 9, "part_level": 1}}
    (tmp_path / "a.json").write_text(json.dumps({"annotation": {"object": [part]}}))
    with pytest.raises(ValueError, match=r"a\.json: object 3: is part of 9, which is not among the objects"):
        make_source({"type": "ade20k_full", "root": tmp_path})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"parts": {"ispartof": [5]}}, r"object 3: its 'ispartof' is \[5\] .*expected a whole number"),
        ({"id": [3]}, r"object \[3\]: its 'id' is \[3\]"),
        ({"name": ", car"}, "object 3: its 'name' is ', car', which begins with no word"),
    ],
)
def test_ade_full_names_a_field_of_another_type(tmp_path, change, match):
    one = {"id": 3, "name": "door", "instance_mask": "x.png", "parts": {"ispartof": []}} | change
    (tmp_path / "a.json").write_text(json.dumps({"annotation": {"object": [one]}}))
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        make_source({"type": "ade20k_full", "root": tmp_path})
