"""Grounded captions, scored on squares one can count: found, named, invented, missed, repeated."""

from dataclasses import replace

import pytest

from mglmm.eval.grounding import Grounding
from mglmm.eval.protocol import Item
from mglmm_data.sample import Region


@pytest.fixture
def item(make_item, square):
    """Two dogs in one phrase, a car and the sky; the dogs are 4 % of the image, the car 1.5 %, the sky 25 %."""
    regions = [square(0, 10, 4, 14), square(10, 10, 14, 14), square(16, 16, 19, 18), square(0, 0, 20, 5)]
    return make_item(
        "Segment everything.", ("two dogs", (0, 1)), ", ", ("a red car", (2,)), ", ", ("sky", (3,)), regions=regions
    )


def compute(vocabulary, item, *answers):
    metric = Grounding(vocabulary)
    for answer in answers:
        metric.update(item, answer)
    return metric.compute()


def test_a_perfect_answer(vocabulary, item, echo_gold):
    scores = compute(vocabulary, item, echo_gold(item))
    for name in ("recall@0.5", "recall_noun@0.5", "PQ", "PQ_noun", "SQ", "mean_iou"):
        for suffix in ("", "/thing", "/stuff"):
            assert scores[name + suffix] == 1, name + suffix
    assert scores["phrase_F1"] == 1 and scores["masks_per_image"] == 4
    assert scores["invented"] == scores["missed"] == scores["repeated"] == 0
    assert scores["recall@0.5/medium"] == scores["recall@0.5/large"] == 1


def test_an_empty_answer(vocabulary, item, make_answer):
    scores = compute(vocabulary, item, make_answer("I see nothing."))
    assert scores["recall@0.5"] == scores["PQ"] == scores["phrase_F1"] == scores["mean_iou"] == 0
    assert scores["missed"] == scores["missed/thing"] == 1


def test_what_is_found_and_wrongly_named(vocabulary, item, square, make_answer):
    answer = make_answer(("a blue dog", [square(0, 10, 4, 14)]), ", ", ("a red car", [square(10, 10, 14, 14)]))
    scores = compute(vocabulary, item, answer)  # the car's mask lies on a dog
    assert scores["recall@0.5/thing"] == pytest.approx(2 / 3)
    assert scores["recall_noun@0.5/thing"] == pytest.approx(1 / 3)
    assert scores["PQ/thing"] == pytest.approx(2 / (2 + 1 / 2))
    assert scores["PQ_noun/thing"] == pytest.approx(1 / (1 + (1 + 2) / 2))
    assert scores["recall@0.5/stuff"] == 0 and scores["missed"] == pytest.approx(2 / 4)
    assert scores["phrase_F1"] == pytest.approx(2 * 1 / (3 + 2))  # "a red car" is a phrase of the gold
    assert scores["invented"] == scores["repeated"] == 0


def test_what_is_wrong_in_the_words_for_what_was_found(vocabulary, item, square, make_answer):
    dogs, car = [square(0, 10, 4, 14), square(10, 10, 14, 14)], square(16, 16, 19, 18)
    answer = make_answer(("large dogs", dogs), ", ", ("a blue dog", [car]), ", ", ("a person", [square(5, 15, 9, 19)]))
    scores = compute(vocabulary, item, answer)
    assert scores["wrong_size/thing"] == 1  # each dog; of the car neither says a size
    assert scores["wrong_noun/thing"] == pytest.approx(1 / 3) and scores["wrong_color/thing"] == 1  # the car
    assert scores["wrong_size"] == 1  # the sky was not found, the person is nowhere


def test_what_lies_on_a_crowd_is_not_invented(vocabulary, item, square, make_answer):
    crowd, ignored = square(0, 0, 20, 4), square(0, 4, 20, 6)
    sample = replace(item.sample, regions=(*item.sample.regions, Region.of_mask(crowd, "dog"), Region.of_mask(ignored)))
    said = make_answer(("a dog", [square(2, 0, 8, 5)]), ", ", ("a dog", [square(2, 3, 8, 9)]))
    plain = compute(vocabulary, Item(sample, item.conversation), said)
    assert plain["invented"] == 1 and plain["masks_per_image"] == 2
    number = len(item.sample.regions)
    sample.meta.update(crowd_regions=(number,), ignore_regions=(number + 1,))
    scores = compute(vocabulary, Item(sample, item.conversation), said)
    assert scores["masks_per_image"] == 1 and scores["invented"] == 1  # half of the second lies there, no more


def test_nouns_that_nobody_knows_are_compared_by_their_last_words(vocabulary, make_item, square, make_answer):
    item = make_item("What?", ("a zebra", (0,)), ".", regions=[square(0, 0, 9, 9)])
    for words, right in (("the zebra", 1), ("a teapot", 0)):
        assert compute(vocabulary, item, make_answer((words, [square(0, 0, 9, 9)])))["recall_noun@0.5"] == right


def test_invented_and_repeated_masks_are_told_apart(vocabulary, item, square, make_answer):
    sky, nowhere = square(0, 0, 20, 5), square(5, 15, 9, 19)
    scores = compute(vocabulary, item, make_answer(("sky", [sky, sky, sky]), " ", ("a dog", [nowhere])))
    assert scores["repeated/stuff"] == pytest.approx(2 / 3) and scores["invented/stuff"] == 0
    assert scores["invented/thing"] == 1 and scores["invented"] == pytest.approx(1 / 4)
    assert scores["PQ/stuff"] == pytest.approx(1 / (1 + 2 / 2))


def test_the_right_noun_finds_its_own_partner(vocabulary, item, square, make_answer):
    exact, rough = square(16, 16, 19, 18), square(16, 16, 19, 19)
    scores = compute(vocabulary, item, make_answer(("a dog", [exact]), " ", ("a car", [rough])))
    assert scores["recall_noun@0.5/thing"] == pytest.approx(1 / 3)  # the car, by the rougher mask
    assert scores["SQ"] == 1 and scores["PQ_noun/thing"] == pytest.approx(6 / 9 / (1 + (1 + 2) / 2))


def test_quality_by_size_and_below_the_threshold(vocabulary, item, square, make_answer):
    scores = compute(vocabulary, item, make_answer(("sky", [square(0, 0, 8, 5)])))
    assert scores["mean_iou/large"] == pytest.approx(0.4) and scores["recall@0.5/large"] == 0
    assert scores["mean_iou/medium"] == 0 and scores["invented/stuff"] == 1


def test_phrases_are_a_multiset(vocabulary, make_item, make_answer, square):
    regions = [square(0, 0, 5, 5), square(6, 6, 9, 9)]
    item = make_item("Go.", ("a dog", (0,)), ", ", ("A dog", (1,)), regions=regions)
    scores = compute(vocabulary, item, make_answer(("a dog", []), " ", ("a dog", []), " ", ("a dog", [])))
    assert scores["phrase_recall"] == 1 and scores["phrase_precision"] == pytest.approx(2 / 3)


def test_merged_shards_equal_one_pass(vocabulary, item, echo_gold, make_answer):
    answers = [echo_gold(item), make_answer("nothing"), echo_gold(item)]
    whole, left, right = Grounding(vocabulary), Grounding(vocabulary), Grounding(vocabulary)
    for answer, shard in zip(answers, (left, left, right), strict=True):
        whole.update(item, answer)
        shard.update(item, answer)
    assert left.merge([right]).compute() == pytest.approx(whole.compute(), nan_ok=True)
    assert len(left) == 3
