"""Flickr30k Entities: phrases point at their boxes, corners count from 1, and broken files are named."""

import numpy as np
import pytest
from PIL import Image

from mglmm_data.flickr_entities import FlickrEntities, read_sentence
from mglmm_data.registry import make_source

SENTENCES = (
    "[/EN#1/people Two young guys] with [/EN#2/bodyparts/other shaggy hair] look at [/EN#3/bodyparts their hands] .\n"
    "[/EN#1/people Two friends] enjoy [/EN#0/notvisual time] in [/EN#4/scene the yard] .\n"
    "Nothing is marked here .\n"
)
XML = """<annotation><filename>36.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><name>3</name><bndbox><xmin>30</xmin><ymin>5</ymin><xmax>60</xmax><ymax>9</ymax></bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""


@pytest.fixture
def root(tmp_path):
    for name in ("Sentences", "Annotations", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "Sentences/36.txt").write_text(SENTENCES, encoding="utf-8")
    (tmp_path / "Annotations/36.xml").write_text(XML)
    (tmp_path / "test.txt").write_text("36\n")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "images/36.jpg")
    return tmp_path


def spans(turn):
    return {turn.text[p.start : p.end]: p.regions for p in turn.phrases}


def test_every_sentence_and_phrase_in_order(root):
    source = FlickrEntities(root, root / "images", split="test", turns=None)
    sample = source.sample(0)
    answers = [conversation.turns[1] for conversation in sample.conversations]
    assert answers[0].text == "Two young guys with shaggy hair look at their hands ."
    assert spans(answers[0]) == {"Two young guys": (0, 1), "their hands": (1,)}
    assert spans(answers[1]) == {"Two friends": (0, 1)}
    assert [turn.text for turn in answers[2:]] == ["two young guys.", "their hands.", "two friends."]
    assert all(turn.grounding == "box" for turn in answers)
    assert [region.box for region in sample.regions] == [(0, 1, 20, 40), (29, 4, 60, 9)]
    counts = {"phrase that is not visual": 1, "phrase without a box": 1, "phrase not annotated": 1}
    assert {key: count for key, count in source.skipped.items() if count} == counts


def test_drawn_questions_are_the_same_again_and_none_twice(root):
    spec = {"type": "flickr_entities", "root": root, "image_root": root / "images", "split": "test", "turns": 4}
    source = make_source(spec)
    drawn = [source.sample(0, epoch).conversations for epoch in range(8)]
    assert len(set(drawn)) > 1 and drawn[3] == source.sample(0, 3).conversations
    assert all(len({(c.task, c.turns[1].text) for c in told}) == len(told) == 4 for told in drawn)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "Annotations/36.xml",
            "<xmax>60",
            "<xmax>62",
            r"36.xml: the object of phrase 1/3: its box .* leaves the image",
        ),
        ("Annotations/36.xml", "<xmax>20", "<xmax>0", r"36.xml: the object of phrase 1: its box .* has no area"),
        ("Annotations/36.xml", "<xmax>20", "<xmax>nan", r"36.xml: bndbox/xmax is 'nan'; expected a whole number"),
        ("Annotations/36.xml", "<width>60</width>", "", r"36.xml: size/width is ''"),
        ("Annotations/36.xml", "<name>4", "<name>dog", r"36.xml: an object has the names \['dog'\]"),
        ("Annotations/36.xml", "</annotation>", "", r"36.xml cannot be read as xml"),
        ("Sentences/36.txt", "their hands]", "their hands", r"36.txt: line 1 is .*expected phrases as"),
        ("test.txt", "36", "../36", r"image ../36: its image '../36.jpg' leaves the folder"),
        ("test.txt", "36", "37", r"image 37: its image '37.jpg' is missing"),
    ],
)
def test_a_broken_file_is_named(root, file, old, new, message):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        FlickrEntities(root, root / "images", split="test")
    with pytest.raises(ValueError, match=r"names no image with a grounded sentence; 1 are wrong"):
        FlickrEntities(root, root / "images", split="test", on_error="count")


def test_what_else_is_refused(root):
    (root / "Annotations/36.xml").rename(root / "x.xml")
    with pytest.raises(ValueError, match=r"36\.xml does not exist"):
        FlickrEntities(root, root / "images", split="test")
    (root / "x.xml").rename(root / "Annotations/36.xml")
    Image.fromarray(np.zeros((40, 61, 3), np.uint8)).save(root / "images/36.jpg")
    with pytest.raises(ValueError, match=r"36.xml: the annotation is for \(40, 60\)"):
        FlickrEntities(root, root / "images", split="test").sample(0)
    with pytest.raises(ValueError, match=r"no task 'captoin'.*did you mean 'caption'"):
        FlickrEntities(root, root / "images", tasks={"captoin": 1})
    with pytest.raises(ValueError, match=r"turns is 0"):
        FlickrEntities(root, root / "images", turns=0)
    with pytest.raises(ValueError, match=r"trian.txt does not exist"):
        FlickrEntities(root, root / "images", split="trian")


def test_a_sentence_may_begin_with_blanks_and_hold_other_brackets():
    text, (entity,) = read_sentence("  A [sic] [/EN#12/other  big sign ] .", "line 1")
    assert text == "A [sic]  big sign ." and text[entity.start : entity.end] == "big sign"
    assert entity.id == "12" and entity.types == ("other",)
