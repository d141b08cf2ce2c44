"""The GRIT-style builder and its reader: deterministic, negatives are absent, locations stand behind their words."""

import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mglmm_data import grit_facts, masks
from mglmm_data.grit import GritSource
from mglmm_data.grit_build import AMOUNTS, GritBuilder
from mglmm_data.grit_facts import Facts
from mglmm_data.reading import Problems
from mglmm_data.registry import make_source

SIZE = (20, 40)


def scene(number=0, **more):
    """A man left of a red car, fully annotated in VG's way."""
    man, car = (1.0, 2.0, 10.0, 18.0), (20.0, 4.0, 39.0, 15.0)
    fields = {
        "objects": [("man", man, ["young"]), ("car", car, ["red", "shiny"])],
        "relations": [("man", man, "next to", "car", car)],
        "regions": [("a man in a suit", man)],
        "expressions": [("man on the left", man)],
        "captions": [("Two young guys with a car .", [(0, 14, [man, car]), (20, 25, [car])])],
        "exhaustive": frozenset(("man", "car")),
    }
    return Facts("vg", f"{number}.png", SIZE, **(fields | more))


def other(number):
    return Facts(
        "vg", f"{number}.png", SIZE, [("kite", (0.0, 0.0, 5.0, 5.0), []), ("person", (5.0, 5.0, 9.0, 9.0), [])]
    )


@pytest.fixture
def write(tmp_path):
    """Writes records and a picture, and gives a source of them."""
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "1.png")

    def writing(records, name="grit.jsonl", **options):
        text = "\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(records)
        (tmp_path / name).write_text(text)
        source = make_source({"type": "grit", "path": tmp_path / name, "image_root": tmp_path, **options})
        assert isinstance(source, GritSource)
        return source

    return writing


def record(question, answer, boxes, **more):
    return {
        "id": "7", "image": "0.png", "image_w": 40, "image_h": 20, "dataset": "vg_object",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "box_x1y1x2y2": boxes, **more,
    }  # fmt: skip


def answers(source, index, epoch=0):
    sample = source.sample(index, epoch)
    (conversation,) = sample.conversations
    turn = conversation.turns[1]
    return turn.text, {turn.text[p.start : p.end]: [sample.regions[i].box for i in p.regions] for p in turn.phrases}


def test_all_kinds_are_made_and_read_back(write):
    builder = GritBuilder(lambda: [scene(), other(1)], amounts=dict.fromkeys(AMOUNTS, 9))
    records = list(builder)
    made = Counter(item["dataset"] for item in records)
    assert {key.removeprefix("vg_") for key in made} == set(AMOUNTS)
    assert made == {
        key.replace(": ", "_"): n for key, n in builder.statistics.items() if "vg" in key and "images" not in key
    }
    assert len({item["id"] for item in records}) == len(records)
    source = write(records)
    text, phrases = answers(source, next(i for i, item in enumerate(records) if item["dataset"] == "vg_caption"))
    assert text == "Two young guys with a car ."
    assert phrases == {"Two young guys": [(1, 2, 10, 18), (20, 4, 39, 15)], "a car": [(20, 4, 39, 15)]}
    text, phrases = answers(source, next(i for i, item in enumerate(records) if item["dataset"] == "vg_relation"))
    assert text == "The man next to the car." and list(phrases) == ["The man", "the car"]
    text, phrases = answers(source, next(i for i, r in enumerate(records) if r["dataset"] == "vg_region_location"))
    assert phrases == {"a man in a suit": [(1, 2, 10, 18)]}


def test_what_is_written_depends_on_the_seed_and_the_image_alone():
    facts = [scene(0), other(1), scene(2)]
    alone = {item["id"]: item for item in GritBuilder(lambda: facts)}
    turned = {item["id"]: item for item in GritBuilder(lambda: facts[::-1])}
    assert alone == turned and list(GritBuilder(lambda: facts)) == list(GritBuilder(lambda: facts))
    assert list(GritBuilder(lambda: facts, seed=1)) != list(GritBuilder(lambda: facts))


def test_negatives_ask_for_what_no_annotation_speaks_of():
    many = [
        other(1),
        *(Facts("vg", "x.png", SIZE, [(name, (0.0, 0.0, 1.0, 1.0), [])]) for name in ("dog", "cars", "suit")),
    ]
    amounts = dict.fromkeys(AMOUNTS, 0) | {"negative_image": 99, "negative_semantic": 99}
    made = [item for item in GritBuilder(lambda: [scene(), *many], amounts=amounts) if item["image"] == "0.png"]
    asked = {
        kind: [r["conversations"] for r in made if r["dataset"].endswith(kind)] for kind in ("_image", "_semantic")
    }
    absent = {re.findall(r"no (.+) in the image", turns[1]["value"])[0] for turns in asked["_image"]}
    assert absent == {"kite", "dog"}  # a man is a person, and cars and a suit are spoken of
    swapped = [re.findall(r"no (.+) in the image", turns[1]["value"])[0] for turns in asked["_semantic"]]
    assert any(text.endswith("on the right") for text in swapped)
    words = {"man", "red", "young", "left", "car", "two"}
    for text in swapped:
        assert len(words & set(text.split())) < len(text.split())
        assert "car" not in text.split() or "red" not in text.split()
    assert all(not boxes for r in made for boxes in r["box_x1y1x2y2"])


def swapped(*texts, objects=()):
    """What the negatives of expressions and of objects (name, attributes) say is not there."""
    facts = Facts("x", "0.png", SIZE, [(name, (0, 0, 1, 1), list(more)) for name, *more in objects],
                  expressions=[(text, (0, 0, 1, 1)) for text in texts])  # fmt: skip
    amounts = dict.fromkeys(AMOUNTS, 0) | {"negative_semantic": 99}
    said = set()
    for seed in range(30):
        for item in GritBuilder(lambda: [facts], amounts=amounts, seed=seed):
            said |= {*re.findall(r"no (.+) in the image", item["conversations"][1]["value"])}
    return said


def test_an_orange_is_exchanged_as_a_fruit_or_as_a_colour():
    assert swapped(objects=[("orange",)]) == {"apple", "banana", "carrot", "pear"}
    assert "pink kite" in swapped("orange kite") and "banana kite" not in swapped("orange kite")
    assert swapped("orange near the top", "person in orange") == set()  # either
    assert "kite in orange" in swapped("kite in red") and "orange" in swapped(objects=[("apple",)])


def test_what_is_a_crowd_is_not_asked_for_as_absent(tmp_path):
    names = {1: "person", 2: "kite", 3: "cow", 4: "sheep"}
    found = [(1, 1, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 1), (2, 1, 0), (2, 4, 0)]
    data = {
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "images": [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 40} for number in (1, 2)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 9, 9], "iscrowd": crowd}
            for number, (image, category, crowd) in enumerate(found)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    facts, _ = grit_facts.categories(tmp_path / "coco.json", Problems(), "coco")
    assert facts.crowded == {"person", "sheep"} and facts.exhaustive == {"kite", "cow"}
    amounts = dict.fromkeys(AMOUNTS, 0) | {"negative_image": 99, "negative_semantic": 99}
    absent = set()
    for seed in range(30):
        builder = GritBuilder(lambda: grit_facts.categories(tmp_path / "coco.json", Problems(), "coco"),
                              amounts=amounts, seed=seed)  # fmt: skip
        for item in builder:
            if item["image"] == "1.png":
                absent |= {*re.findall(r"no (.+) in the image", item["conversations"][1]["value"])}
    assert "horse" in absent and absent.isdisjoint({"person", "sheep"})


def test_lvis_negatives_are_those_that_annotators_looked_for(shared):
    path = shared("data", "lvis", "lvis_val_100.json")
    data = json.loads(path.read_text())
    names = {c["id"]: c["name"].split("_(")[0].replace("_", " ").lower() for c in data["categories"]}
    images = {image["file_name"]: image for image in data["images"]}
    facts = list(grit_facts.categories(path, Problems(), "lvis"))
    assert len(facts) == 100 and sum(len(item.objects) for item in facts) == 977
    amounts = dict.fromkeys(AMOUNTS, 0) | {"negative_image": 5, "category": 5}
    seen = Counter()
    for item in GritBuilder(lambda: facts, amounts=amounts):
        image = images[item["image"]]
        answer = item["conversations"][1]["value"]
        if "negative" in item["dataset"]:
            absent = {names[i] for i in image["neg_category_ids"]}
            assert re.findall(r"no (.+) in the image", answer)[0] in absent
            seen["negative"] += 1
        else:
            partly = {names[i] for i in image["not_exhaustive_category_ids"]}
            mine = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            boxes = item["box_x1y1x2y2"][1]
            name = next(names[a["category_id"]] for a in mine if a["bbox"][:2] == boxes[0][:2])
            assert name not in partly
            assert len(boxes) == sum(names[a["category_id"]] == name for a in mine)
            seen["category"] += 1
    assert seen["negative"] > 100 and seen["category"] > 100


def test_refcoco_and_flickr_facts(shared, tmp_path):
    (facts,) = grit_facts.refer(
        shared("golden", "datasets", "data", "refer_seg", "refcoco"), Problems("count"), "testA"
    )
    assert facts.expressions and facts.image.startswith("COCO_train2014")
    real = list(
        grit_facts.refer(next(shared("data", "refcoco_join").rglob("instances.json")).parent, Problems(), "val")
    )
    assert real and all(item.expressions for item in real)
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "train.txt").write_text("3\n")
    (tmp_path / "Sentences/3.txt").write_text("[/EN#1/people A man] and [/EN#2/other his hat] .\n")
    (tmp_path / "Annotations/3.xml").write_text(
        "<annotation><size><width>40</width><height>20</height></size><object><name>1</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    (facts,) = grit_facts.flickr_entities(tmp_path, Problems())
    assert facts.captions == [("A man and his hat .", [(0, 5, [(0, 0, 9, 9)])])]


def test_expressions_are_of_the_partition_that_papers_report(tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    folder = tmp_path / "refcocog"
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps({"images": [image], "annotations": [box]}))
    for name in ("google", "umd"):
        ref = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "train", "sentences": [{"sent": name}]}
        (folder / f"refs({name}).p").write_bytes(pickle.dumps([ref], 2))

    def said(path):
        return [text for facts in grit_facts.refer(path, Problems()) for text, _ in facts.expressions]

    assert said(folder) == ["umd"] and said(folder / "refs(google).p") == ["google"]
    other = folder.rename(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"mine has refs\(google\)\.p, refs\(umd\)\.p; give one of them, as .*\.p$"):
        said(other)
    (other / "refs(umd).p").unlink()
    assert said(other) == ["google"]


def test_records_of_two_sets_of_expressions_have_ids_of_their_own(shared, tmp_path):
    golden = shared("golden", "datasets", "data", "refer_seg")
    folders = [golden / name for name in ("refcoco", "refcoco+", "refcocog")]
    records = [
        *GritBuilder(lambda: (facts for folder in folders for facts in grit_facts.refer(folder, Problems("count"))))
    ]
    assert len({item["id"] for item in records}) == len(records) > 3
    assert {item["dataset"].split("_")[0] for item in records} == {folder.name for folder in folders}


def test_given_regions_are_points_and_boxes_half_and_half(write):
    source = write([record("What is the object <bbox_location0>?", "A dog.", [[[2, 3, 12, 9]], []])])
    kinds = [source.sample(0, epoch).regions[0].kind for epoch in range(200)]
    assert 75 <= kinds.count("point") <= 125 and set(kinds) == {"point", "box"}
    assert [source.sample(0, epoch).regions[0].kind for epoch in range(200)] == kinds
    assert {source.sample(0, e).regions[0].point for e, kind in enumerate(kinds) if kind == "point"} == {(7, 6)}
    mention = source.sample(0).conversations[0].turns[0].mentions[0]
    assert source.sample(0).conversations[0].turns[0].text[mention.start : mention.end] == "the object"


def test_a_point_lies_in_the_mask_where_there_is_one(write):
    ring = np.zeros(SIZE, bool)
    ring[2:10, 2:12] = True
    ring[4:8, 4:10] = False
    rle = dict(masks.encode(ring))
    one = record("What is <bbox_location0>?", "It.", [[[2, 2, 12, 10]], []], masks=[[rle], []])
    point = write([one], point_share=1.0).sample(0).regions[0].point
    assert point and ring[int(point[1]), int(point[0])]
    assert write([one], "grit.json", point_share=0.0).sample(0).regions[0].box == (2, 2, 12, 10)


def test_the_words_of_a_location_without_words_field(write):
    both = record(
        "<image>\nIs <bbox_location0> <bbox_location1> safe?",
        "There is a small dog <bbox_location0> and two red cars <bbox_location1> <bbox_location2> here.",
        [[[0, 0, 4, 4], [5, 5, 9, 9]], [[0, 0, 4, 4], [5, 5, 9, 9], [9, 9, 20, 20]]],
    )
    source = write([both])
    asked = source.sample(0).conversations[0].turns[0]
    assert asked.text == "Is this region and this region safe?" and len(asked.mentions) == 2
    text, phrases = answers(source, 0)
    assert text == "There is a small dog and two red cars here."
    assert {words: len(boxes) for words, boxes in phrases.items()} == {"a small dog": 1, "two red cars": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record("A <bbox_location1>?", "B.", [[[0, 0, 4, 4]], []]), r"speaks of <bbox_location1>; it has 1 boxes"),
        (record("A <bbox_location0>?", "B.", [[[0, 0, 44, 4]], []]), r"its box .* leaves the image of 40x20 px by 4"),
        (record("A <bbox_location0>?", "B.", [[[0, 0, 4, float("nan")]], []]), r"its box .* holds nan"),
        (record("A?", "<bbox_location0>.", [[], [[0, 0, 4, 4]]]), r"stands behind no word; an answer names it"),
        (record("A?", "B.", [[]]), r"its 'box_x1y1x2y2' has not a list for each of its 2 turns"),
        (record("A?", "B.", [[], []], image_w=None), r"its 'image_w' is None"),
        (record("A?", "B.", [[], []], conversations=[]), r"has 0 turns"),
        (
            record("A?", "B <bbox_location0>.", [[], [[0, 0, 4, 4]]], words=[[], ["C"]]),
            r"not stand behind its words 'C'",
        ),
        (record("A <bbox_location0>?", "B.", [[[0, 0, 4, 4]], []], masks=[[{"size": [1, 1]}], []]), r"no RLE of size"),
        (record("A?", "B.", [[], []], image="../0.png"), r"leaves the folder"),
        (record("A?", "B.", [[], []], image="2.png"), r"its image '2.png' is missing"),
    ],
)
def test_a_wrong_record_is_named_or_counted(write, wrong, message):
    good = record("A?", "B.", [[], []]) | {"id": 8}
    with pytest.raises(ValueError, match=f"record 7: .*{message}"):
        write([wrong, good])
    assert len(write([wrong, good], on_error="count")) == 1


def test_options_of_the_builder():
    with pytest.raises(ValueError, match=r"no kind of record 'negativ_image', did you mean 'negative_image'"):
        GritBuilder(lambda: [], amounts={"negativ_image": 1})
    with pytest.raises(ValueError, match=r"the amount of 'object' is -1"):
        GritBuilder(lambda: [], amounts={"object": -1})


def test_the_tool_writes_and_prints_statistics(tmp_path, shared):
    tool = Path(__file__).parents[2] / "tools" / "build_grit.py"
    lvis, out = shared("data", "lvis", "lvis_val_100.json"), tmp_path / "grit.jsonl"
    done = subprocess.run(
        [sys.executable, str(tool), str(out), f"lvis={lvis}@coco"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = out.read_text().splitlines()
    assert re.search(rf"records +{len(lines):,}\n", done.stdout) and "lvis: negative_image" in done.stdout
    assert json.loads(lines[0])["image"].startswith("coco/") and "left out: 0" in done.stdout
    failed = subprocess.run([sys.executable, str(tool), str(out), "vg=x"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1 and "is not KIND=PATH" in failed.stderr
    with pytest.raises(ValueError, match=r"has nothing in split 'trian', did you mean"):
        list(grit_facts.refer(shared("golden", "datasets", "data", "refer_seg", "refcoco"), Problems(), "trian"))
