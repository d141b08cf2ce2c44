"""Instances and panoptic segments: LVIS, Fashionpedia, PACO, panoptic; real files and wrong ones."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks, registry
from mglmm_data.coco import renamed

HEIGHT, WIDTH = 30, 40


def make_source(spec) -> Any:
    return registry.make_source(spec)


def regions_of(sample):
    aside = sample.meta["ignore_regions"]
    return [region for number, region in enumerate(sample.regions) if region.kind == "mask" and number not in aside]


def said(source, index=0, epoch=0):
    return [(c.task, c.turns[1].text) for c in source.sample(index, epoch).conversations]


# --- real files -----------------------------------------------------------------------------------------------------


def test_lvis_is_a_federation(shared):
    path = shared("data", "lvis", "lvis_val_100.json")
    data = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    tasks = {"absent": 1, "referring": 1}
    spec = {"type": "lvis", "json_path": path, "image_root": shared("data", "coco_mini"), "on_error": "count"}
    source = make_source({**spec, "tasks": tasks, "turns": 99, "max_regions": 99})
    present = {int(sample.meta["image_id"]) for sample in map(source.sample, range(len(source)))}
    assert present and present <= {11813, 505573, 527220, 577932}
    assert len(source.problems.found) + len(source) + source.skipped["image without a question"] == len(data["images"])
    assert all("is missing; tried" in message for message in source.problems.found)
    for sample in map(source.sample, range(len(source))):
        image = next(image for image in data["images"] if image["id"] == sample.meta["image_id"])
        here = [one for one in data["annotations"] if one["image_id"] == image["id"]]
        found = regions_of(sample)
        assert len(found) == len(here)
        boxes = np.array([region.bounds for region in found])
        for one in here:
            x, y, w, h = one["bbox"]
            distance = np.abs(boxes - (x, y, x + w, y + h)).max(1)
            assert distance.min() <= 2
            near = [found[i].mask.sum() for i in np.flatnonzero(distance <= 2)]
            assert min(abs(area - one["area"]) for area in near) <= 0.06 * one["area"] + 12
        denied = [c for c in sample.conversations if c.task == "absent"]
        assert len(denied) == len(image["neg_category_ids"])  # only these are known to be absent
        asked = {c.turns[1].text for c in sample.conversations if c.task == "referring"}
        for category in image["not_exhaustive_category_ids"]:
            assert not any(names[category].replace("_", " ") in text for text in asked)


def test_fashionpedia_tells_attributes(shared):
    path = shared("data", "fashionpedia", "data", "sample.json")
    data = json.loads(path.read_text())
    source = make_source(
        {
            "type": "fashionpedia",
            "json_path": path,
            "image_root": shared("data", "fashionpedia", "images"),
            "tasks": {"region": 1},
            "turns": 9,
        }
    )
    sample = source.sample(0)
    told = {c.turns[1].text for c in sample.conversations}
    assert "pants, fly (opening), symmetrical, plain (pattern), normal waist." in told and len(told) >= 5
    areas = sorted(int(region.mask.sum()) for region in regions_of(sample))
    assert np.allclose(areas, sorted(one["area"] for one in data["annotations"]), rtol=0.05)
    points = [region.point for region in sample.regions if region.kind == "point"]
    for conversation in sample.conversations:
        (mention,) = conversation.turns[0].mentions
        region = sample.regions[mention.region]
        assert region.label and (region.kind != "point" or region.point in points)
        words = conversation.turns[0].text[mention.start : mention.end]
        assert words in ("this region", "the region", "the marked region")


def test_panoptic_areas_and_boxes_are_the_jsons(shared):
    root = shared("data", "coco_panoptic", "sample_data")
    data = json.loads((root / "panoptic_examples.json").read_text())
    spec = {"type": "coco_panoptic", "image_root": root / "input_images", "max_regions": 99}
    source = make_source({**spec, "json_path": root / "panoptic_examples.json"})
    segments = next(one for one in data["annotations"])["segments_info"]
    sample = source.sample(0)
    found = Counter((int(region.mask.sum()), region.bounds) for region in regions_of(sample))
    (void,) = sample.meta["ignore_regions"]  # code 0: what no segment covers
    everything = int(np.prod(sample.size))
    assert int(sample.regions[void].mask.sum()) + sum(area * n for (area, _), n in found.items()) == everything
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (segment["bbox"] for segment in segments)]
    assert found == Counter((one["area"], tuple(map(float, box))) for one, box in zip(segments, boxes, strict=True))
    again = make_source({**spec, "json_path": root / "panoptic_coco_detection_format.json"}).sample(0)
    assert Counter((int(region.mask.sum()), region.bounds) for region in regions_of(again)) == found


def test_panoptic_is_what_mglmm_reads(shared):
    """MGLMM's class reads the detection form; its masks are ours, its names (`window-other`, `person-1`) are words."""
    tree = shared("golden", "datasets", "data")
    expected = json.loads(shared("golden", "datasets", "expected_mglmm.json").read_text())["draws"]["panoptic_val"]
    for form in ("", "_detection_format"):
        path = tree / "cocopanoptic" / "annotations" / f"panoptic_val2017{form}.json"
        source = make_source({"type": "coco_panoptic", "json_path": path, "image_root": tree / "coco" / "val2017"})
        samples = {sample.meta["file"].rsplit("/", 1)[1]: sample for sample in map(source.sample, range(2))}
        for draw in expected:
            sample = samples[draw["image_path"].rsplit("/", 1)[1]]
            want = {(item["rle_nonzero"]["counts"]) for item in draw["masks"]["items"]}
            assert want == {region.rle["counts"] for region in regions_of(sample)}
            labels = {label.removesuffix("-merged").removesuffix("-other") for label in draw["selected_labels"]}
            assert {region.label for region in regions_of(sample)} >= {"person"} & labels
        assert (
            said(
                make_source(
                    {
                        "type": "coco_panoptic",
                        "json_path": path,
                        "image_root": tree / "coco" / "val2017",
                        "tasks": {"panoptic": 1},
                    }
                )
            )[0][1]
            == "two people, a chair, the window."
        )


# --- COCO-like jsons that are wrong ---------------------------------------------------------------------------------


def square(x, y, side=8) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def write(tmp_path):
    def writing(change=None, **more):
        data = {
            "images": [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH, "neg_category_ids": [4]}],
            "categories": [{"id": i, "name": name} for i, name in ((3, "dog:tail"), (4, "cat"), (5, "dog"))],
            "annotations": [
                {"id": 10, "image_id": 1, "category_id": 3, "segmentation": [square(25, 5)], "bbox": [25, 5, 8, 8]},
                {"id": 11, "image_id": 1, "category_id": 5, "segmentation": [square(22, 2, 16)]},
            ],
            **more,
        }
        data["annotations"][0].update(change or {})
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.png")
        (tmp_path / "a.json").write_text(json.dumps(data))
        return tmp_path / "a.json"

    return writing


@pytest.mark.parametrize("kind", ["coco", "lvis", "paco_lvis", "fashionpedia"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, r"annotations\[0\] \(id 10\): it holds NaN"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "annotation 10: a polygon holds '6'"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "annotation 10: a polygon has 5 numbers"),
        ({"segmentation": [square(100, 100)]}, "annotation 10: a polygon lies outside the image of 40x30 px"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "annotation 10: its RLE has no counts"),
        ({"segmentation": {"size": [4, 4], "counts": "0"}}, r"annotation 10: its RLE is of size \[4, 4\]"),
        ({"segmentation": None}, "annotation 10: its segmentation is NoneType"),
        ({"bbox": [35, 5, 8, 8]}, "annotation 10: its box .* leaves the image of 40x30 px by 3"),
        ({"bbox": [25, 5, -8, 8]}, "annotation 10: its bbox .* has a negative side"),
        ({"bbox": [25, 5, 8]}, "annotation 10: its bbox .* expected four numbers"),
        ({"category_id": "dog"}, "annotation 10: has category id dog, which is not among"),
        ({"image_id": 1.5}, "annotation 10: its 'image_id' is 1.5 .*expected a whole number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_annotations_are_named_or_counted(write, kind, change, match):
    path = write(change)
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        make_source({"type": kind, "json_path": path})
    source = make_source({"type": kind, "json_path": path, "on_error": "count"})
    (message,) = source.problems.found
    assert "a.json" in message and len(regions_of(source.sample(0))) == 1


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": "01"}, "annotation 10: the RLE's counts do not fill its size"),
        ({"size": [HEIGHT, WIDTH], "counts": [7]}, "annotation 10: the RLE's counts sum to 7"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "annotation 10: .*whole numbers from 0 on"),
    ],
)
def test_wrong_rles_are_named_when_read(write, segmentation, match):
    source = make_source({"type": "coco", "json_path": write({"segmentation": segmentation})})
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        source.sample(0)


@pytest.mark.parametrize("name", ["../1.png", "/etc/passwd", "x/../../1.png"])
def test_a_file_name_must_not_leave_the_root(write, name):
    images = [{"id": 1, "file_name": name, "height": HEIGHT, "width": WIDTH}]
    with pytest.raises(ValueError, match=r"image 1 is missing: its file .* leaves the folder"):
        make_source({"type": "coco", "json_path": write(images=images)})


def test_wrong_images_and_categories_are_named(write):
    image = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    for images, match in (
        ([{**image, "height": "30"}], "image 1: its 'height' is '30'"),
        ([{**image, "width": 0}], "image 1: its size is 0x30"),
        ([image, image], "image 1: its id is there twice"),
        ([{"id": 1, "height": HEIGHT, "width": WIDTH}], "image 1: has no 'file_name'"),
        ([7], "image at byte .*: "),
    ):
        with pytest.raises(ValueError, match=match):
            make_source({"type": "coco", "json_path": write(images=images)})
    with pytest.raises(ValueError, match="category 3: has no 'name'"):
        make_source({"type": "coco", "json_path": write(categories=[{"id": 3}])})


@pytest.mark.parametrize("kind", ["coco", "lvis", "paco_lvis", "fashionpedia"])
def test_every_family_of_coco_takes_new_names(write, kind):
    spec = {"type": kind, "json_path": write(attributes=[]), "rename": {"cat": "gizmo"}}
    assert "gizmo" in make_source(spec).names


def test_new_names_of_an_object_are_those_of_its_parts():
    names = [("trash can", ""), ("lid of the trash can", "trash can"), ("lid of the pot", "pot")]
    told = renamed(["trash_can", "trash_can:lid", "pot:lid"], names, {"trash_can": "bin", "pot:lid": "cover"})
    assert told == [("bin", ""), ("lid of the bin", "bin"), ("cover", "pot")]


def test_parts_that_are_not_marked_are_not_denied(write):
    """PASCAL-Part: a dog of which only the tail is marked has a head, too, and it is there itself."""
    names = ("dog:tail", "dog:head", "dog", "cat:tail")
    path = write(categories=[{"id": 3 + i, "name": name} for i, name in enumerate(names)], annotations=[
        {"id": 10, "image_id": 1, "category_id": 3, "segmentation": [square(25, 5)]},
    ])  # fmt: skip
    spec = {"type": "pascal_part", "json_path": path, "image_root": path.parent, "tasks": {"absent": 1}, "turns": 9}
    told = {text for _, text in said(make_source(spec))}
    assert told and told <= {"There is no tail of the cat in the image.", "There are no tails of the cat in the image."}


def test_paco_tells_parts_of_their_object(write):
    source = make_source({"type": "paco_lvis", "json_path": write(), "turns": 20})
    told = dict(said(source))
    assert told["panoptic"] == "a dog." and told["fine"] == "the tail."
    assert {text for task, text in said(source) if task == "absent"} <= {
        "There is no cat in the image.",
        "There are no cats in the image.",
    }
    asked = {c.turns[0].text for c in source.sample(0).conversations if c.task == "fine"}
    assert all("the dog" in text for text in asked)


def test_fashionpedia_names_an_unknown_attribute(write):
    path = write({"attribute_ids": [5]}, attributes=[{"id": 4, "name": "mini"}])
    with pytest.raises(ValueError, match=r"a\.json: annotation 10: has attribute id 5"):
        make_source({"type": "fashionpedia", "json_path": path})
    source = make_source({"type": "fashionpedia", "json_path": path, "on_error": "count", "tasks": {"panoptic": 1}})
    (message,) = source.problems.found
    assert "annotation 10: has attribute id 5" in message and said(source) == [("panoptic", "a dog.")]
    with pytest.raises(ValueError, match=r"a\.json: annotation 10: its 'attribute' is \[1\]"):
        make_source({"type": "fashionpedia", "json_path": write({"attribute_ids": [[1]]})})


# --- panoptic that is wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def panoptic(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.jpg")
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[:10] = (5, 1, 0)
    Image.fromarray(colors).save(tmp_path / "a" / "1.png")
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 187, "name": "sky-other-merged", "isthing": 0},
        ],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 261, "category_id": 187}]}],
    }


def load(tmp_path, data, **options):
    (tmp_path / "a.json").write_text(json.dumps(data))
    return make_source({"type": "coco_panoptic", "json_path": tmp_path / "a.json", "image_root": tmp_path, **options})


def test_panoptic_words(tmp_path, panoptic):
    assert said(load(tmp_path, panoptic, tasks={"panoptic": 1})) == [("panoptic", "the sky.")]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segments_info": [{"id": 261, "category_id": 9}]}, "annotations 1: has category id 9"),
        ({"segments_info": [{"id": 261}]}, "annotations 1: has no 'category_id'"),
        ({"segments_info": [{"id": 261, "category_id": 1}] * 2}, "annotations 1: has a segment id twice"),
        ({"segments_info": {}}, "annotations 1: its 'segments_info' is"),
        ({"image_id": 7}, "annotation of image 7: is on image id 7, which is not among the images"),
        ({"file_name": 3}, "annotations 1: its 'file_name' is 3"),
    ],
)
def test_wrong_panoptic_records_are_named(tmp_path, panoptic, change, match):
    panoptic["annotations"][0].update(change)
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        load(tmp_path, panoptic)
    panoptic["images"].append({"id": 2, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH})
    good = {"image_id": 2, "file_name": "1.png", "segments_info": [{"id": 261, "category_id": 187}]}
    panoptic["annotations"].append(good)
    source = load(tmp_path, panoptic, on_error="count")
    assert len(source) == 1 and len(source.problems.found) == 1 and source.sample(0).id == "a/2"


@pytest.mark.parametrize(
    ("segments", "match"),
    [
        ([{"id": 261, "category_id": 187}, {"id": 9, "category_id": 1}], r"1\.png has no pixel of segment 9"),
        ([], r"1\.png has segment 261, which is not in the json"),
    ],
)
def test_a_panoptic_png_and_its_json_belong_together(tmp_path, panoptic, segments, match):
    panoptic["annotations"][0]["segments_info"] = segments
    source = load(tmp_path, panoptic, tasks={"absent": 1})
    with pytest.raises(ValueError, match=match):
        source.sample(0)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda raw: raw[:60], "is truncated or damaged"),
        (lambda raw: raw[:60] + bytes([raw[60] ^ 64]) + raw[61:], "is truncated or damaged"),
        (lambda raw: b"hello", "is no picture that can be read"),
    ],
    ids=["cut off", "a bit", "no picture"],
)
def test_a_damaged_panoptic_png_is_named(tmp_path, panoptic, damage, match):
    path = tmp_path / "a" / "1.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"1\.png {match}"):
        load(tmp_path, panoptic).sample(0)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_panoptic_png_with_alpha_is_read_and_one_with_a_palette_refused(tmp_path, panoptic, mode):
    path = tmp_path / "a" / "1.png"
    Image.open(path).convert(mode).save(path)
    source = load(tmp_path, panoptic, tasks={"panoptic": 1})
    if mode == "P":
        with pytest.raises(ValueError, match=r"1\.png is P, not RGB"):
            source.sample(0)
    else:
        assert source.sample(0).regions[0].bounds == (0, 0, WIDTH, 10)


def test_panoptic_pngs_stay_in_their_folder(tmp_path, panoptic):
    panoptic["annotations"][0]["file_name"] = "../1.png"
    with pytest.raises(ValueError, match="leaves"):
        load(tmp_path, panoptic).sample(0)


def test_masks_of_a_peer_that_sums_polygons_are_flat_here(write):
    """LISA's and GLaMM's readers sum the polygons of an object: where they overlap the target is 2. Ours is joined."""
    path = write({"segmentation": [square(20, 5, 8), square(24, 9, 8)]})
    mask = next(region.mask for region in make_source({"type": "coco", "json_path": path}).sample(0).regions)
    one, two = (masks.from_polygons([polygon], (HEIGHT, WIDTH)) for polygon in (square(20, 5, 8), square(24, 9, 8)))
    assert mask.dtype == bool and (mask == (one | two)).all() and (one & two).any()
