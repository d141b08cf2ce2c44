"""A query carries the question and nothing of its answer; blinding takes the picture away and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from mglmm.eval.protocol import Item, Query, answered, blind, query_of, swapped
from mglmm_data.sample import Conversation, Grounding, Mention, Turn


def test_query_holds_no_gold(make_item, square):
    item = make_item("Segment the dog.", ("the dog", (0,)), ".", regions=[square(0, 0, 5, 5)])
    query = item.query
    assert (query.prompt, query.regions, query.mentions, query.sample_id) == ("Segment the dog.", (), (), "made")
    assert item.mask.sum() == 25 and item.phrases[0].text == "the dog"


def test_regions_spoken_of_are_renumbered(make_item, square):
    item = make_item(
        "What is this region?",
        "A dog.",
        regions=[square(0, 0, 5, 5), square(9, 9, 12, 12)],
        mentions=(Mention(8, 19, 1),),
    )
    query = item.query
    assert query.mentions == (Mention(8, 19, 0),)
    assert query.regions == (item.sample.regions[1],)


def test_a_later_turn_sees_the_earlier_ones_as_gold(make_item, square):
    history = (Turn("user", "Where is the sky?"), Turn("assistant", "the sky", (Grounding(0, 7, (2,)),)))
    regions = [square(0, 0, 5, 5), square(9, 9, 12, 12), square(0, 15, 20, 20)]
    item = make_item("And the dog?", ("the dog", (0,)), regions=regions, history=history)
    prompt = item.query.prompt
    assert [turn.text for turn in prompt] == ["Where is the sky?", "the sky", "And the dog?"]
    assert prompt[1].phrases == (Grounding(0, 7, (0,)),)
    assert item.query.regions == (item.sample.regions[2],)
    first = query_of(item.sample, item.conversation, 1)
    assert (first.prompt, first.regions) == ("Where is the sky?", ())


@pytest.mark.parametrize("turn_index", [0, -2, 2, 7])
def test_a_turn_that_is_no_answer_is_refused(make_item, turn_index):
    item = make_item("Is there a dog?", "yes")
    with pytest.raises(ValueError, match=f"turn {turn_index} of 'made' is not an answer"):
        Item(item.sample, Conversation(item.conversation.turns), turn_index)


def test_blind_replaces_the_image_only(make_item, square):
    item = make_item("What is this region?", "A dog.", regions=[square(0, 0, 5, 5)], mentions=(Mention(8, 19, 0),))
    seen = []
    predict = blind(lambda queries: seen.extend(queries) or [], seed=3)
    predict([item.query])
    predict([item.query, item.query])
    assert seen[0].image.shape == item.query.image.shape and seen[0].image.std() > 60
    assert all(np.array_equal(query.image, seen[0].image) for query in seen)
    assert (seen[0].prompt, seen[0].regions, seen[0].mentions) == (
        item.query.prompt,
        item.query.regions,
        item.query.mentions,
    )


def test_every_query_has_its_answer(make_item, say_nothing):
    items = [make_item("Is there a dog?", "yes") for _ in range(5)]
    sizes = []
    pairs = list(answered(lambda queries: sizes.append(len(queries)) or say_nothing(queries), items, 2))
    assert [item for item, _ in pairs] == items and sizes == [2, 2, 1]
    with pytest.raises(ValueError, match="gave 1 answers to 2 queries"):
        list(answered(lambda queries: say_nothing(queries[:1]), items, 2))
    with pytest.raises(ValueError, match="batch_size is 0"):
        list(answered(say_nothing, items, 0))


def test_swapped_gives_the_image_of_another_sample(make_item, square):
    first, second = (make_item("What is this?", "A dog.") for _ in range(2))
    other = replace(second.query, sample_id="other", image=second.query.image + 1)
    small = replace(second.query, sample_id="small", image=second.query.image[:5])
    seen: list[Query] = []
    swapped(lambda queries: seen.extend(queries) or [])([first.query, first.query, other, small])
    assert all(np.array_equal(query.image, other.image) for query in seen[:2])
    assert np.array_equal(seen[2].image, first.query.image)
    assert seen[3].image.shape == small.image.shape and seen[3].image.std() > 60, "no other of its size: noise"
    assert [query.prompt for query in seen] == [first.query.prompt] * 2 + [other.prompt, small.prompt]
