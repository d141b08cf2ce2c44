"""The COCO and folder readers: masks, phrases and splits as meant, and errors that name file and annotation."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mglmm_data import masks, wording
from mglmm_data.coco import CocoSource
from mglmm_data.folder import FolderSource
from mglmm_data.telling import Split

SHARED = Path(os.environ.get("MGLMM_SHARED", Path(__file__).parents[2] / ".." / "shared")).resolve()
HEIGHT, WIDTH = 30, 40


def square(x: int, y: int, side: int = 8) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def data():
    """Two images: two dogs, drawn from right to left, and a cat; a crowd of people and one person."""
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:10] = True
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "categories": [
            {"id": i, "name": name} for i, name in ((3, "dog"), (5, "cat"), (7, "person"), (9, "fire_truck"))
        ],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 3, "segmentation": [square(25, 5)], "iscrowd": 0},
            {"id": 11, "image_id": 1, "category_id": 3, "segmentation": [square(2, 5)], "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 5, "segmentation": [square(12, 15), square(14, 16)], "iscrowd": 0},
            {"id": 13, "image_id": 2, "category_id": 7, "segmentation": masks.encode(crowd), "iscrowd": 1},
            {"id": 14, "image_id": 2, "category_id": 7, "segmentation": [square(5, 15)], "iscrowd": 0},
        ],
    }


@pytest.fixture
def write(tmp_path, data):
    """Writes `data` and its images, and gives the path of the json."""

    def writing(folder: str = "") -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        for image in data["images"]:
            picture = np.random.default_rng(image["id"]).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / f"{image['id']}.png")
        (tmp_path / "a.json").write_text(json.dumps(data))
        return tmp_path / "a.json"

    return writing


def answer(sample):
    turn = sample.conversations[0].turns[1]
    return turn.text, {turn.text[phrase.start : phrase.end]: phrase.regions for phrase in turn.phrases}


def test_instances_are_listed_by_category_in_reading_order(write):
    sample = CocoSource(write(), tasks={"panoptic": 1}).sample(0)
    text, phrases = answer(sample)
    assert text == "two dogs, a cat."
    assert [sample.regions[index].bounds for index in phrases["two dogs"]] == [(2, 5, 10, 13), (25, 5, 33, 13)]
    cat = sample.regions[phrases["a cat"][0]]
    assert cat.label == "cat" and cat.mask.max() == 1  # overlapping polygons are joined, not summed
    assert sample.meta["file"].endswith("1.png")


def test_crowds_are_no_target_but_known(write):
    source = CocoSource(write(), tasks={"panoptic": 1, "referring": 1, "absent": 1}, turns=9)
    sample = source.sample(1)
    assert source.skipped == Counter(crowd=1)
    (crowd,) = sample.meta["crowd_regions"]
    assert sample.regions[crowd].mask[:10].all()
    told = {c.task: c.turns[1].text for c in sample.conversations}
    assert told["panoptic"] == "several people." and "referring" not in told
    assert not any("person" in c.turns[1].text or "no people" in c.turns[1].text for c in sample.conversations)
    assert crowd not in {r for c in sample.conversations for p in c.turns[1].phrases for r in p.regions}


def test_referring_and_absent_share_their_questions(write):
    source = CocoSource(write(), tasks={"referring": 1, "absent": 1}, turns=9)
    asked = {"referring": set(), "absent": set()}
    for epoch in range(30):
        for conversation in source.sample(0, epoch).conversations:
            question, told = conversation.turns[0].text, conversation.turns[1].text
            for word in ("dogs", "dog", "cats", "cat", "people", "person", "fire trucks", "fire truck"):
                question = question.replace(word, "X")
            asked[conversation.task].add(question)
            assert bool(conversation.turns[1].phrases) == (conversation.task == "referring")
            assert told.startswith("There ") == (conversation.task == "absent")
    assert asked["referring"] <= asked["absent"] | asked["referring"] and len(asked["referring"] & asked["absent"]) > 8


def test_no_question_twice_and_the_same_for_the_same_seed(write):
    source = CocoSource(write(), turns=9, seed=3)
    first, again, later = source.sample(0), source.sample(0), source.sample(0, epoch=1)
    assert first.conversations == again.conversations != later.conversations
    subjects = [(c.task, c.turns[1].text) for c in first.conversations]
    assert len(set(subjects)) == len(subjects)


def test_many_instances_become_one_region(write):
    text, phrases = answer(CocoSource(write(), tasks={"panoptic": 1}, max_regions=1).sample(0))
    assert text == "several dogs, a cat." and len(phrases["several dogs"]) == 1


def test_parts_join_their_annotations_and_skip_the_background(write, data):
    data["categories"].append({"id": 1, "name": "_background_"})
    data["annotations"].append({"id": 15, "image_id": 1, "category_id": 1, "segmentation": [square(0, 0)]})
    source = CocoSource(write(), kind="parts", object_name="car", rename={"dog": "wheels"}, tasks={"fine": 1})
    sample = source.sample(0)
    text, phrases = answer(sample)
    assert text == "the wheels, the cat."
    assert sample.regions[phrases["the wheels"][0]].mask.sum() == 2 * 8 * 8
    assert source.names == ("wheels", "cat", "person", "fire truck")
    assert source.skipped["skipped category"] == 1
    assert "the car" in sample.conversations[0].turns[0].text


def test_captions_come_from_their_own_json(write, tmp_path):
    told = {
        "annotations": [{"id": 1, "image_id": 1, "caption": "Two dogs\n and a cat. "}, {"image_id": 77, "caption": "x"}]
    }
    (tmp_path / "c.json").write_text(json.dumps(told))
    source = CocoSource(write(), captions=tmp_path / "c.json", tasks={"caption": 1})
    assert len(source) == 1 and source.skipped["image without a question"] == 1
    assert source.sample(0).conversations[0].turns[1].text == "Two dogs and a cat."


@pytest.mark.parametrize("folder", ["", "JPEGImages", "images"])
def test_images_are_found_below_the_root(write, folder):
    assert len(CocoSource(write(folder))) == 2


def test_images_are_found_by_the_path_of_the_json(write, data, tmp_path):
    for image in data["images"]:
        image["path"] = f"/odd/{image['file_name']}"
    assert len(CocoSource(write("odd"), tmp_path)) == 2


def test_a_missing_image_names_what_was_tried(write, tmp_path):
    path = write()
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"a\.json: image 2 is missing; tried .*2\.png, .*JPEGImages.*set image_root"):
        CocoSource(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 10: a polygon has 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 10: a polygon has 7 numbers.*in pairs"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"annotation 10: its RLE is of size \[9, 9\].*\[30, 40\]"),
        ({"segmentation": "x"}, "annotation 10: its segmentation is str"),
        ({"category_id": 99}, "annotation 10: has category id 99, which is not among"),
        ({"image_id": 99}, "annotation 10: is on image id 99, which is not among"),
        ({"category_id": [3]}, r"annotation 10: its 'category_id' is \[3\] \(list\); expected a whole number"),
        ({"image_id": [1]}, r"annotation 10: its 'image_id' is \[1\] \(list\); expected a whole number"),
        (
            {"segmentation": [square(2, 2), square(WIDTH, 2)]},
            "annotation 10: a polygon lies outside the image of 40x30 px; correct or remove it",
        ),
        ({"segmentation": [square(2, -8)]}, "annotation 10: a polygon lies outside the image of 40x30 px"),
        ({"segmentation": [square(2, HEIGHT + 2, 1)]}, "annotation 10: a polygon lies outside the image of 40x30 px"),
        ({"segmentation": {"size": None, "counts": [1]}}, r"annotation 10: its RLE's size is None .*\[height, width\]"),
    ],
)
def test_wrong_annotations_are_named(write, data, change, match):
    data["annotations"][0].update(change)
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        CocoSource(write())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "_"}, "category 3 is called '_', which is no word; rename or skip it"),
        ({"name": " "}, "category 3: its 'name' is empty; correct or remove it"),
        ({"id": 5}, "category 5: its id is there twice; ids must be unique"),
        ({"id": [3]}, r"category \[3\]: its 'id' is \[3\] \(list\); expected a whole number"),
    ],
)
def test_wrong_categories_are_named(write, data, change, match):
    data["categories"][0].update(change)
    with pytest.raises(ValueError, match=rf"a\.json: {match}"):
        CocoSource(write())


def test_a_polygon_may_leave_its_image_by_its_files_rounding(write, data):
    data["annotations"][0]["segmentation"].append(square(WIDTH, 5, 1))
    assert CocoSource(write(), tasks={"panoptic": 1}).sample(0).regions


def test_a_category_without_words_can_be_renamed_or_skipped(write, data):
    data["categories"][3]["name"] = "_"
    assert "truck" in CocoSource(write(), rename={"_": "truck"}).names
    assert len(CocoSource(write(), skip_categories=["_"]).names) == 3


def test_what_only_the_pixels_tell_is_named_when_read(write, data):
    data["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [7]}
    data["images"][1]["height"] = 44
    data["annotations"] = data["annotations"][:3]
    source = CocoSource(write(), tasks={"absent": 1})
    with pytest.raises(ValueError, match=r"annotation 10: the RLE's counts sum to 7"):
        source.sample(0)
    with pytest.raises(ValueError, match=r"image 2 is \(44, 40\).*2\.png is \(30, 40\)"):
        source.sample(1)


def test_an_annotation_without_pixels_is_left_out_and_said(write, data):
    data["annotations"][1]["segmentation"] = []
    source = CocoSource(write(), tasks={"panoptic": 1})
    sample = source.sample(0)
    assert source.skipped["no mask"] == 1
    assert answer(sample)[0] == "several dogs, a cat."
    assert "annotation 11 (dog) covers no pixel" in sample.meta["notes"][0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "part"}, "kind is 'part', did you mean 'parts'"),
        ({"tasks": {"refering": 1}}, "no task 'refering' .*did you mean 'referring'"),
        ({"tasks": {"fine": 1}}, "no task 'fine' for annotations of kind 'instances'"),
        ({"tasks": {"caption": 1}}, "needs captions"),
        ({"tasks": {"absent": 0}}, "no task has a weight above 0"),
        ({"turns": 0}, "turns is 0"),
        ({"rename": {"dgo": "puppy"}}, "no category 'dgo' .*did you mean 'dog'"),
        ({"split": {"part": "valid"}}, "split.part is 'valid', did you mean 'validation'"),
        ({"split": {"validation_shares": 0.1}}, "unknown key 'validation_shares' in split, did you mean"),
        ({"split": {"validation_share": 20}}, "split.validation_share is 20.0; give a share between 0 and 1"),
        ({"split": {"validation_share": "x"}}, "split.validation_share is 'x': .*valid number"),
        ({"split": {"seed": 1.5}}, "split.seed is 1.5: .*valid integer"),
        ({"split": {"part": ["train"]}}, r"split.part is \['train'\]: .*valid string"),
    ],
)
def test_wrong_options_name_the_near_miss(write, options, match):
    with pytest.raises(ValueError, match=match):
        CocoSource(write(), **options)


def test_jsons_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        CocoSource(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="cannot be read as json"):
        CocoSource(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"images": [], "categories": []}')
    with pytest.raises(ValueError, match="has no list annotations"):
        CocoSource(tmp_path / "a.json")


def test_split_is_whole_disjoint_and_independent_of_order():
    names = [f"train{i}.jpg" for i in range(200)]
    train, validation = (Split(0.2, 0, part)(names) for part in ("train", "validation"))
    assert len(validation) == 40 and train | validation == set(names) and not train & validation
    assert Split(0.2, 0, "validation")(reversed(names)) == validation
    assert Split(0.2, 1, "validation")(names) != validation


def test_words():
    names = ("person", "wine glass", "bus", "teddy bear", "knife", "skis", "couch", "baby")
    plurals = ["people", "wine glasses", "buses", "teddy bears", "knives", "skis", "couches", "babies"]
    assert [wording.plural(name) for name in names] == plurals
    assert wording.counted("orange", 1) == "an orange" and wording.counted("skis", 1) == "skis"
    assert wording.counted("sheep", 13) == "13 sheep" and wording.counted("my cup", 1) == "my cup"
    assert wording.not_there("the left shoes") == "There are no left shoes in the image."
    assert wording.definite("hood") == "the hood" and wording.definite("my cup") == "my cup"


# --- a folder of images and masks -----------------------------------------------------------------------------------


def test_a_name_that_ends_another_is_neither_asked_nor_denied(write, data):
    """A teddy bear is no bear, and yet "there is no bear" beside one is asking for trouble."""
    data["categories"] = [{"id": i, "name": name} for i, name in ((3, "teddy bear"), (5, "bear"), (7, "cat"), (9, "x"))]
    denied = CocoSource(write(), tasks={"absent": 1}, turns=9).sample(0)
    assert {talk.turns[1].text for talk in denied.conversations} <= {
        "There is no cat in the image.",
        "There is no x in the image.",
        "There are no cats in the image.",
        "There are no xes in the image.",
    }
    asked = CocoSource(write(), tasks={"referring": 1}, turns=9).sample(0)
    assert [talk.turns[1].text for talk in asked.conversations] == ["the teddy bears."]


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "masks" / name).mkdir(parents=True)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "images" / "one.jpg")
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "images" / "two.png")
    for file, x in (("red_mug.1.png", 25), ("red_mug.2.png", 3), ("my plate.png", 12)):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[5:15, x : x + 8] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / "one" / file)
    return tmp_path


def test_folder_reads_phrases_and_instances(folder):
    source = FolderSource(folder, tasks={"panoptic": 1, "absent": 1}, turns=3)
    assert len(source) == 2 and source.names == ("my plate", "red mug")
    sample = source.sample(0)
    text, phrases = answer(sample)
    assert text == "my plate, two red mugs."
    assert sample.regions[phrases["two red mugs"][0]].bounds == (3, 5, 11, 15)
    assert {c.task for c in source.sample(1).conversations} == {"absent"}


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.full((9, 9), 255, np.uint8), r"cup\.png is \(9, 9\), its image \(30, 40\)"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"cup\.png is all black"),
        (np.ones((HEIGHT, WIDTH), np.uint8), r"cup\.png has no white pixel \(the brightest is 1\)"),
    ],
)
def test_folder_names_wrong_masks(folder, mask, match):
    Image.fromarray(mask).save(folder / "masks" / "one" / "cup.png")
    with pytest.raises(ValueError, match=match):
        FolderSource(folder).sample(0)


def test_folder_names_what_is_missing(folder):
    (folder / "masks" / "three").mkdir()
    with pytest.raises(ValueError, match=r"masks/three has no image .*images/three"):
        FolderSource(folder)
    (folder / "masks" / "three").rmdir()
    (folder / "masks" / "two").rmdir()
    with pytest.raises(ValueError, match=r"masks/two is not there"):
        FolderSource(folder)
    with pytest.raises(ValueError, match=r"nowhere/images is not a folder"):
        FolderSource(folder / "nowhere")


# --- real files -----------------------------------------------------------------------------------------------------


def shared(*parts: str) -> Path:
    path = SHARED.joinpath("data", *parts)
    if not path.exists() and not os.environ.get("CI"):
        pytest.skip(f"{path} is not here")
    return path


def test_car_parts():
    path = shared("carparts", "trainingset", "annotations.json")
    parts = {
        part: CocoSource(path, kind="parts", object_name="car", split={"part": part}, tasks={"fine": 1})
        for part in ("train", "validation")
    }
    assert [len(parts[part]) for part in parts] == [160, 40]
    assert len(parts["train"].names) == 18 and "background" not in " ".join(parts["train"].names)
    for sample in (parts["validation"].sample(index) for index in range(5)):
        text, phrases = answer(sample)
        labels = [sample.regions[index].label for (index,) in phrases.values()]
        assert text == ", ".join(f"the {label}" for label in labels) + "."
        assert all(sample.regions[index].bounds for (index,) in phrases.values())


def test_coco_mini():
    notes = shared("coco_mini", "annotations")
    source = CocoSource(
        notes / "instances_val2017.json",
        notes.parent / "val2017",
        captions=notes / "captions_val2017.json",
        turns=3,
    )
    assert len(source) == 40 and source.skipped["crowd"] == 2
    crowded = [sample for sample in map(source.sample, range(40)) if sample.meta["crowd_regions"]]
    assert len(crowded) == 2
