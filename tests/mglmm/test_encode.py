"""Rows of ids: what carries loss, what sees what, and what a typed question becomes."""

import numpy as np
import pytest
import torch

from mglmm.encode import join, pad_rows, user_turn, visible
from mglmm.inputs import IGNORE, PADDING, PREFIX
from mglmm.processor import pick
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn, compose

SIZE = (40, 64)
REGIONS = (Region(SIZE, box=(0, 0, 10, 10)), Region(SIZE, box=(20, 5, 60, 30)))


def said(*pieces):
    text, spans = compose(*pieces)
    return Turn("assistant", text, spans)


CHAT = Conversation((Turn("user", "What is there?"), said(("a dog", (0,)), " and ", ("two cats", (1, 0)), ".")))
LONG = Conversation((*CHAT.turns, Turn("user", "And here?", mentions=(Mention(4, 8, 1),)), said("Nothing.")))
PLAIN = Conversation((Turn("user", "How many?"), said("12")))


def sample(*conversations):
    return Sample(np.zeros((*SIZE, 3), np.uint8), REGIONS, conversations)


@pytest.fixture
def encoder(tiny):
    return tiny[1].encoder


def test_loss_is_on_answers_and_their_ends_only(encoder):
    (row,), left_out = encoder.rows(sample(LONG), share_prefix=True, max_length=2048)
    literal, ids = encoder.literal, encoder.ids
    labelled = [index for index, label in zip(row.ids, row.labels, strict=True) if label != IGNORE]
    assert all(label in (IGNORE, index) for index, label in zip(row.ids, row.labels, strict=True))
    first = [ids.phrase_open, *literal.encode("a dog"), ids.phrase_close, ids.seg, *literal.encode(" and")]
    first += [ids.phrase_open, *literal.encode(" two cats"), ids.phrase_close, ids.seg, ids.seg, *literal.encode(".")]
    assert labelled == [*first, ids.eos, *literal.encode("Nothing."), ids.eos]
    assert row.targets == [0, 1, 0] and row.given == [1]
    assert left_out == 0


def test_shared_prefix_restarts_positions(encoder):
    (row,), _ = encoder.rows(sample(CHAT, PLAIN), share_prefix=True, max_length=2048)
    prefix = len(encoder.prefix().ids)
    first, second = (len(encoder.prompt(each.turns, REGIONS).ids) for each in (CHAT, PLAIN))
    assert row.segments == [PREFIX] * prefix + [1] * first + [2] * second
    assert row.positions == [*range(prefix), *range(prefix, prefix + first), *range(prefix, prefix + second)]
    assert row.ids[:prefix] == encoder.prefix().ids


def test_without_sharing_every_conversation_has_its_row(encoder):
    rows, _ = encoder.rows(sample(CHAT, PLAIN), share_prefix=False, max_length=2048)
    (shared,), _ = encoder.rows(sample(CHAT, PLAIN), share_prefix=True, max_length=2048)
    assert len(rows) == 2
    prefix = len(encoder.prefix().ids)
    assert shared.ids == rows[0].ids + rows[1].ids[prefix:]


def test_too_long_conversations_are_counted_and_rows_split(encoder):
    prefix = len(encoder.prefix().ids)
    length = [len(encoder.prompt(each.turns, REGIONS).ids) for each in (CHAT, LONG, PLAIN)]
    rows, left_out = encoder.rows(sample(CHAT, LONG, PLAIN), True, prefix + length[0])
    assert left_out == 1
    assert [row.targets for row in rows] == [[0, 1, 0], []]
    assert all(len(row.ids) <= prefix + length[0] for row in rows)
    assert encoder.rows(sample(CHAT, LONG), True, prefix) == ([], 2)


def test_nothing_that_fits_is_an_error(tiny):
    with pytest.raises(ValueError, match="none of 1 conversations fits into max_length 20; raise it"):
        tiny[1].batch([sample(CHAT)], max_length=20)


def test_what_tokens_see(encoder):
    prefix = encoder.prefix()
    row = join(prefix, [encoder.prompt(each.turns, REGIONS) for each in (CHAT, PLAIN)])
    short = join(prefix, [encoder.prompt(PLAIN.turns, REGIONS)])
    padded = pad_rows([row, short], encoder.ids.pad)
    seen = visible(padded["segments"])[:, 0]
    segments = padded["segments"]
    for r in range(2):
        for query in range(segments.shape[1]):
            for key in range(segments.shape[1]):
                own = segments[r, key] in (PREFIX, segments[r, query]) and segments[r, key] != PADDING
                assert bool(seen[r, query, key]) == bool((own and key <= query) or key == query)
    assert (padded["labels"][1, len(short.ids) :] == IGNORE).all()
    assert (segments[1, len(short.ids) :] == PADDING).all()


def test_region_is_spoken_of_only_when_regions_are_given():
    assert user_turn("What is [region 0]?", ()) == Turn("user", "What is [region 0]?")
    turn = user_turn("Is [region 1] left of [region 0]?", REGIONS)
    assert turn.text == "Is this region left of this region?"
    assert [(turn.text[m.start : m.end], m.region) for m in turn.mentions] == [("this region", 1), ("this region", 0)]


@pytest.mark.parametrize(
    ("prompt", "text", "mentions"),
    [
        ("What is this?", "What is this? this region", [(14, 25, 0)]),
        ("Name the region.", "Name the region.", [(5, 15, 0)]),
        ("[region 0]", "this region", [(0, 11, 0)]),
    ],
)
def test_regions_nobody_mentions_are_mentioned(prompt, text, mentions):
    turn = user_turn(prompt, REGIONS[:1])
    assert turn.text == text
    assert [(each.start, each.end, each.region) for each in turn.mentions] == mentions


def test_every_region_is_mentioned():
    turn = user_turn("Compare [region 1] with the rest.", REGIONS)
    assert sorted(mention.region for mention in turn.mentions) == [0, 1]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_an_error(prompt):
    with pytest.raises(ValueError, match="the prompt is empty; ask something"):
        user_turn(prompt, ())


def test_unknown_region_is_an_error():
    with pytest.raises(ValueError, match=r"\[region 2\], but 2 region\(s\) are given, from 0"):
        user_turn("What is [region 2]?", REGIONS)


def test_typed_markers_are_letters(tiny):
    _, processor = tiny
    turn = user_turn("Find [SEG] <image> <p> </p> <region> <s> </s>", ())
    ids = processor.encoder.prompt([turn], ()).ids
    assert not set(ids) & set(processor.literal.special.values())
    assert turn.text in processor.literal.decode(ids)


def test_batch_holds_targets_and_regions_row_by_row(tiny):
    _, processor = tiny
    other = Sample(np.zeros((*SIZE, 3), np.uint8), REGIONS[::-1], (LONG, CHAT))
    batch, left_out = processor.batch([sample(CHAT, LONG), other])
    assert left_out == 0 and batch.row_image.tolist() == [0, 1]
    assert batch.target_regions == tuple((image, region) for image in (0, 1) for region in (0, 1, 0) * 2)
    assert batch.region_image.tolist() == [0, 1] and batch.picked.tolist() == list(range(12))
    assert batch.mask_targets.shape == (12, processor.mask_side, processor.mask_side)
    assert torch.equal(batch.mask_targets[0], batch.mask_targets[7])  # region 0 of one is region 1 of the other
    moved = batch.to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids) and moved.canvases == batch.canvases


def test_masks_are_picked_per_image():
    images = [0, 0, 0, 1, 1, 2]
    chosen = pick(images, 2, np.random.default_rng(0))
    assert chosen == sorted(chosen) and [images[each] for each in chosen] == [0, 0, 1, 1, 2]
    assert chosen == pick(images, 2, np.random.default_rng(0))
    assert pick(images, None, None) == list(range(6)) and pick([], 3, None) == []


def test_a_batch_without_a_conversation_names_its_samples(tiny):
    bare = Sample(np.zeros((*SIZE, 3), np.uint8), REGIONS, (), id="mine/7")
    with pytest.raises(ValueError, match=r"sample 'mine/7' has no conversation to learn from; give it one"):
        tiny[1].batch([bare])
    long = Sample(np.zeros((*SIZE, 3), np.uint8), REGIONS, (LONG,), id="mine/8")
    with pytest.raises(ValueError, match=r"sample 'mine/8': none of 1 conversations fits into max_length 20; raise it"):
        tiny[1].batch([long], max_length=20)
    assert len(tiny[1].batch([bare, long])[0].row_image) == 1
