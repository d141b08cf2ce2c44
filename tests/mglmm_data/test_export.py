"""Any source as files: what is written can be read back, and what a format cannot hold is counted."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mglmm.data_export import export
from mglmm_data import masks
from mglmm_data.check import check
from mglmm_data.export import Exported, Pictures, no_objects, read_all
from mglmm_data.registry import make_source
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn, compose
from mglmm_data.world.source import World

SIZE = (24, 32)


class Few:
    """Three samples of two pictures on disk, with a hole in a mask, a box, a point, and text that json must escape."""

    def __init__(self, folder):
        self.files = []
        for name in ("a", "b"):
            path = folder / f"{name}.jpg"
            Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
            self.files.append(path)

    def __len__(self):
        return 3

    def id_of(self, index):
        return str(index)

    def sample(self, index, epoch=0):
        path = self.files[index // 2]
        ring = np.zeros(SIZE, bool)
        ring[4:14, 4:14] = True
        ring[7:10, 7:10] = False
        thing = Region.of_mask(ring, "a <ring>")
        other = Region(SIZE, box=(1.0, 2.0, 9.0, 20.0), label="box")
        text, phrases = compose('"', ("a <ring>", (0,)), '" é 漢.')
        turns = (Turn("user", f"Question {epoch}?"), Turn("assistant", text, phrases))
        regions = (thing, other, Region(SIZE, point=(3.0, 4.0)))
        told = (Conversation(turns, task="caption"), Conversation(turns, task="panoptic"))
        pixels = np.asarray(Image.open(path).convert("RGB"))
        return Sample(pixels, regions, told, id=f"few/{index}", meta={"file": str(path), "notes": ()})


@pytest.fixture
def few(tmp_path):
    (tmp_path / "from").mkdir()
    return Few(tmp_path / "from")


@pytest.mark.parametrize(("form", "spec"), [("jsonl", "jsonl"), ("webdataset", "shards")])
def test_our_own_formats_lose_nothing(few, tmp_path, form, spec):
    done = export(few, tmp_path / "out", form)
    assert done.samples == 3 and not done.left_out
    back = make_source({"type": spec, "path": str(tmp_path / "out")})
    assert len(back) == 3
    for index in range(3):
        one, other = few.sample(index), back.sample(index)
        assert (one.image == other.image).all() and one.regions == other.regions
        assert one.conversations == other.conversations and one.id == other.id
    assert str(tmp_path / "from") not in (tmp_path / "out" / "samples.jsonl").read_text() if form == "jsonl" else True


def test_a_picture_is_copied_once_as_it_is(few, tmp_path):
    export(few, tmp_path / "out", "jsonl")
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["a.jpg", "b.jpg"]
    assert (tmp_path / "out" / "images" / "a.jpg").read_bytes() == few.files[0].read_bytes()
    assert (tmp_path / "out" / "sample.schema.json").is_file()


def test_changed_pictures_are_written_as_pixels(few, tmp_path):
    sample = few.sample(0)
    pictures = Pictures(tmp_path / "out")
    rotated = Sample(sample.image, (), (), meta={"file": str(few.files[0]), "notes": ("rotated",)})
    assert pictures.save(rotated) == "images/a.png"
    world = World(size=64, turns=1).sample(3)
    assert pictures.save(world) == "images/world-3.png" and pictures.save(world) == "images/world-3_2.png"
    assert (np.asarray(Image.open(tmp_path / "out" / "images" / "world-3.png")) == world.image).all()


def test_coco_is_read_by_pycocotools_and_by_us(few, tmp_path):
    done = export(few, tmp_path / "out", "coco")
    data = COCO(str(tmp_path / "out" / "annotations.json"))
    assert len(data.imgs) == 2 and {item["name"] for item in data.cats.values()} == {"a <ring>", "box"}
    (ring,) = data.loadAnns(data.getAnnIds(imgIds=[1], catIds=[1]))  # twice in the samples, once in the file
    assert (data.annToMask(ring) == few.sample(0).regions[0].mask).all() and ring["area"] == 91
    assert done.left_out == {"point regions": 3, "conversations": 3}
    captions = json.loads((tmp_path / "out" / "captions.json").read_text(encoding="utf-8"))["annotations"]
    assert [item["caption"] for item in captions] == ['"a <ring>" é 漢.'] * 3
    source = make_source({"type": "coco", "json_path": str(tmp_path / "out" / "annotations.json")})
    assert len(source) == 2 and (source.sample(0).regions[0].mask == few.sample(0).regions[0].mask).all()


def test_labelme_lies_beside_the_pictures(few, tmp_path):
    done = export(few, tmp_path / "out", "labelme")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "a.json", "b.jpg", "b.json"]
    data = json.loads((tmp_path / "out" / "a.json").read_text())
    assert data["imagePath"] == "a.jpg" and [shape["shape_type"] for shape in data["shapes"]] == ["mask", "rectangle"]
    assert done.left_out["further samples of a picture"] == 1
    back = make_source({"type": "labelme", "root": str(tmp_path / "out")}).sample(0)
    assert any((region.mask == few.sample(0).regions[0].mask).all() for region in back.regions)


def test_label_studio_gets_tasks_and_a_config(few, tmp_path):
    export(few, tmp_path / "out", "label-studio")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8"))
    assert len(tasks) == 3 and tasks[0]["data"]["image"] == "/data/local-files/?d=images/a.jpg"
    assert [item["type"] for item in tasks[0]["predictions"][0]["result"]] == ["brushlabels", "rectanglelabels"]
    assert 'value="a &lt;ring&gt;"' in (tmp_path / "out" / "config.xml").read_text()


@pytest.fixture
def cups(tmp_path):
    """The spec of a picture with twelve cups."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / "a.jpg")
    annotations = []
    for number in range(12):
        mask = np.zeros(SIZE, bool)
        mask[8 * (number // 4) : 8 * (number // 4) + 5, 8 * (number % 4) : 8 * (number % 4) + 6] = True
        annotations.append({"id": number + 1, "image_id": 1, "category_id": 1, "segmentation": masks.encode(mask)})
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    data = {"images": [image], "categories": [{"id": 1, "name": "cup"}], "annotations": annotations}
    (tmp_path / "cups.json").write_text(json.dumps(data))
    return {"type": "coco", "json_path": str(tmp_path / "cups.json")}


def written_in(folder, form):
    """(name, whether it is a box alone) of every object that was written."""
    if form == "coco":
        data = json.loads((folder / "annotations.json").read_text())
        return [("cup", not item["segmentation"]) for item in data["annotations"]]
    if form == "labelme":
        shapes = json.loads((folder / "a.json").read_text())["shapes"]
        groups = {shape["group_id"]: shape for shape in shapes}  # pieces of one object share theirs
        return [(shape["label"], shape["shape_type"] == "rectangle") for shape in groups.values()]
    (task,) = json.loads((folder / "tasks.json").read_text())
    results = task["predictions"][0]["result"]
    return [(*result["value"][result["type"]], result["type"] == "rectanglelabels") for result in results]


@pytest.mark.parametrize("form", ["coco", "labelme", "label-studio"])
def test_what_a_user_points_with_is_no_object(cups, tmp_path, form):
    source = make_source({**cups, "tasks": {"region": 1}, "turns": 12, "max_regions": 12})
    kinds = [region.kind for region in source.sample(0).regions]
    assert {"box", "point"} < set(kinds)
    done = export(source, tmp_path / "out", form)
    assert written_in(tmp_path / "out", form) == [("cup", False)] * 12
    left_out = {"box prompts": kinds.count("box"), "point regions": kinds.count("point"), "conversations": 12}
    assert done.left_out == left_out
    if form == "coco":
        spec = {"type": "coco", "json_path": str(tmp_path / "out" / "annotations.json")}
        assert not check({"out": spec}, processes=1).problems


def test_a_box_prompt_without_a_name_is_no_object(tmp_path):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "sa_1.jpg")
    mask = np.zeros(SIZE, bool)
    mask[4:12, 3:11] = True
    annotation = {"id": 7, "segmentation": masks.encode(mask), "bbox": [2, 3, 10, 10]}  # not as tight as the mask
    image = {"image_id": 1, "width": SIZE[1], "height": SIZE[0], "file_name": "sa_1.jpg"}
    (tmp_path / "sa_1.json").write_text(json.dumps({"image": image, "annotations": [annotation]}))
    source = make_source({"type": "sa1b", "root": str(tmp_path), "prompt": "box"})
    done = export(source, tmp_path / "out", "coco")
    (written,) = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    assert written["segmentation"] and done.left_out["box prompts"] == 1


def test_what_is_asked_about_and_is_an_object_stays():
    thing = np.zeros(SIZE, bool)
    thing[4:12, 3:11] = True
    bounds = (3.0, 4.0, 11.0, 12.0)
    regions = (
        Region.of_mask(thing, "dog"),  # 0: a mask that a question speaks of
        Region(SIZE, box=bounds, label="cat"),  # 1: a named box alone
        Region(SIZE, box=bounds),  # 2: a box that an answer grounds
        Region(SIZE, box=bounds, label="dog"),  # 3: nothing speaks of it
        Region(SIZE, box=bounds, label="dog"),  # 4: the prompt
    )
    text, phrases = compose(("it", (2,)), ".")
    turns = tuple(
        turn
        for number in (0, 1, 2, 4)
        for turn in (
            Turn("user", "What is this?", mentions=(Mention(8, 12, number),)),
            Turn("assistant", text, phrases),
        )
    )
    sample = Sample(np.zeros((*SIZE, 3), np.uint8), regions, (Conversation(turns),))
    assert no_objects(sample) == {4: "box prompts"}
    sample.meta["ignore_regions"] = (1,)  # as ReasonSeg has them
    assert no_objects(sample) == {1: "regions to ignore", 4: "box prompts"}


@pytest.mark.parametrize("drops", [False, True], ids=["all", "less a list"])
@pytest.mark.parametrize("form", ["coco", "labelme", "label-studio"])
def test_every_instance_is_an_object_however_many_there_are(cups, tmp_path, form, drops):
    if drops:
        data = json.loads((tmp_path / "cups.json").read_text())
        data["images"].append({**data["images"][0], "id": 2})
        data["annotations"].append({**data["annotations"][0], "id": 99, "image_id": 2})
        (tmp_path / "cups.json").write_text(json.dumps(data))
        (tmp_path / "drop.jsonl").write_text('{"index": 1}')
        cups = {**cups, "drop": str(tmp_path / "drop.jsonl")}
    source = make_source(cups)
    done = export(source, tmp_path / "out", form)
    assert written_in(tmp_path / "out", form) == [("cup", False)] * 12
    assert not any("joined" in what for what in done.left_out)
    assert len(source.sample(0).regions) == 1  # the caller's source is as it was


@pytest.mark.parametrize("form", ["jsonl", "webdataset"])
def test_what_max_regions_joined_in_a_sample_is_counted(cups, tmp_path, form):
    assert export(make_source(cups), tmp_path / "out", form).left_out == {"instances that max_regions joined": 12}
    whole = make_source({**cups, "max_regions": 12})
    assert not export(whole, tmp_path / "whole", form).left_out


class Damaged(Few):
    def sample(self, index, epoch=0):
        if index == 1:
            raise ValueError("b.jpg is truncated")
        return super().sample(index, epoch)


def test_what_cannot_be_read_stops_or_is_listed(tmp_path):
    source = Damaged(tmp_path)
    with pytest.raises(ValueError, match="sample 1: b.jpg is truncated"):
        export(source, tmp_path / "one", "jsonl")
    done = export(source, tmp_path / "two", "jsonl", on_error="count")
    assert done.samples == 2 and done.problems == ["sample 1: b.jpg is truncated"]


def test_limits_epochs_and_progress(few, tmp_path):
    told, done = [], Exported(tmp_path)
    taken = list(read_all(few, done, limit=2, epoch=4, on_progress=lambda *values: told.append(values)))
    assert [sample.conversations[0].turns[0].text for sample in taken] == ["Question 4?"] * 2
    assert told == [(1, 2), (2, 2)] and done.samples == 2
    with pytest.raises(ValueError, match="limit is 0"):
        list(read_all(few, done, limit=0))


def test_nothing_is_overwritten_and_formats_have_near_misses(few, tmp_path):
    with pytest.raises(ValueError, match="'coc', did you mean 'coco'"):
        export(few, tmp_path / "out", "coc")
    with pytest.raises(ValueError, match="is there and not empty"):
        export(few, tmp_path / "from", "coco")
