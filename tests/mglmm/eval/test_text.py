"""Head nouns, normalisation, and the metrics that rest on them."""

import pytest

from mglmm.eval.text import ExactMatch, RegionNaming, normalise
from mglmm_data.sample import Mention


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("a small red car", "car"),
        ("the red roof of the blue car", "roof"),
        ("two dogs", "dog"),
        ("people", "person"),
        ("leaves", "leaf"),
        ("the car roof", "roof"),  # a run of nouns ends in its head
        ("the person's dog", "dog"),
        ("a traffic light", "traffic light"),
        ("It is a car to the left of the dog.", "car"),
        ("a red thing", ""),
        ("", ""),
    ],
)
def test_head_noun(vocabulary, phrase, head):
    assert vocabulary.head(phrase) == head


def test_color(vocabulary):
    assert (vocabulary.color("a small Red car"), vocabulary.color("a car")) == ("red", "")


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("  A red_car,  and a dog. ", "caption", "a red car and a dog"),
        ("There are THREE dogs.", "answer", "there are 3 dogs"),
        ("the left", "answer", "left"),
        ("Person's left-most dog", "caption", "person left-most dog"),
    ],
)
def test_normalise(text, kind, expected):
    assert normalise(text, kind) == expected


def test_exact_match(make_item, make_answer):
    item, metric = make_item("How many dogs are there?", "Two."), ExactMatch("answer")
    for text in ("2", "two", "three", ""):
        metric.update(item, make_answer(text))
    assert metric.compute() == {"exact": 0.5}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("The red car.", {"category": 1, "category_color": 1, "exact": 1}),
        ("It is a blue car", {"category": 1, "category_color": 0, "exact": 0}),
        ("a red dog", {"category": 0, "category_color": 0, "exact": 0}),
        ("", {"category": 0, "category_color": 0, "exact": 0}),
    ],
    ids=["right", "other colour", "other noun", "silent"],
)
def test_region_naming(vocabulary, make_item, make_answer, square, said, expected):
    item = make_item("What is this?", "a red car", regions=[square(0, 0, 5, 5)], mentions=(Mention(8, 12, 0),))
    metric = RegionNaming(vocabulary)
    metric.update(item, make_answer(said))
    assert metric.compute() == expected


def test_a_gold_without_noun_is_an_error(vocabulary, make_item, make_answer):
    with pytest.raises(ValueError, match="no noun of the vocabulary is in the gold answer 'a zebra'"):
        RegionNaming(vocabulary).update(make_item("What is this?", "a zebra"), make_answer(""))
