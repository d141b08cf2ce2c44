"""Spans to markers and back; whatever ids a model makes are read without failing."""

from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mglmm.codecs import BOX_BEGUN, BOX_LENGTH, BOX_TEXT, box_from_text, box_to_text
from mglmm.config import BUNDLED
from mglmm.formats import FORMATS, Tokens, prompt_format, read_answer, write_answer, write_prefix, write_question
from mglmm.tokens import LiteralTokenizer, special_ids
from mglmm_data.sample import Grounding, Mention, Region, Turn, compose

SIZE = (300, 500)


@cache
def tools():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    return LiteralTokenizer(tokenizer), special_ids(tokenizer)


def region(x1, y1, x2, y2):
    return Region(SIZE, box=(x1, y1, x2, y2))


REGIONS = (region(0, 0, 10, 20), region(100.5, 30, 480, 299.5), region(499, 299, 500, 300))

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
PHRASES = WORDS.map(str.strip).filter(bool)
NUMBERS = st.lists(st.integers(0, len(REGIONS) - 1), min_size=1, max_size=3).map(tuple)


@st.composite
def turns(draw, grounding):
    pieces: list = [draw(WORDS)]
    for _ in range(draw(st.integers(0, 3))):
        pieces += [(draw(PHRASES), draw(NUMBERS)), draw(WORDS)]
    text, spans = compose(*pieces)
    return Turn("assistant", text, spans, grounding=grounding)


def written(turn):
    literal, ids = tools()
    out = Tokens()
    write_answer(out, turn, REGIONS, literal, ids)
    assert out.ids[-1] == ids.eos
    return out


@given(turns("mask"))
def test_masks_round_trip(turn):
    assume(not any(BOX_TEXT.match(turn.text[phrase.end :]) for phrase in turn.phrases))  # would read as a box
    literal, ids = tools()
    out = written(turn)
    read = read_answer(out.ids[:-1], literal, ids, SIZE)
    assert read.text == turn.text
    assert [(each.start, each.end) for each in read.phrases] == [(each.start, each.end) for each in turn.phrases]
    assert [tuple(out.targets[seg] for seg in each.segs) for each in read.phrases] == [p.regions for p in turn.phrases]
    assert not read.notes


@given(turns("box"))
def test_boxes_round_trip(turn):
    assume(not any(BOX_TEXT.match(turn.text[phrase.end :]) for phrase in turn.phrases))
    literal, ids = tools()
    read = read_answer(written(turn).ids[:-1], literal, ids, SIZE)
    assert read.text == turn.text
    assert [(each.start, each.end) for each in read.phrases] == [(each.start, each.end) for each in turn.phrases]
    for phrase, wanted in zip(read.phrases, turn.phrases, strict=True):
        assert len(phrase.boxes) == len(wanted.regions)
        for box, index in zip(phrase.boxes, wanted.regions, strict=True):
            for value, exact, side in zip(box, REGIONS[index].bounds, SIZE[::-1] * 2, strict=True):
                assert abs(value - exact) <= side / 1000 + 1e-9


@given(
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda box: box[0] < box[2] and box[1] < box[3]),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_box_codec_loses_at_most_a_thousandth(shares, size):
    sides = (size[1], size[0]) * 2
    box = tuple(share * side for share, side in zip(shares, sides, strict=True))
    text = box_to_text(box, size)
    match = BOX_TEXT.fullmatch(text)
    assert match and len(text) <= BOX_LENGTH and BOX_BEGUN.fullmatch(text)
    assert all(BOX_BEGUN.fullmatch(text[:length]) for length in range(1, len(text)))
    back = box_from_text(tuple(map(int, match.groups())), size)
    assert back is not None and back[0] < back[2] and back[1] < back[3]
    for value, exact, side in zip(back, box, sides, strict=True):
        assert abs(value - exact) <= side / 1000 * (1 + 1e-6)


@pytest.mark.parametrize("text", [" [1000", " [1, 2, 3]", " [1, 2, 3, 4, ", "[1", " [1,2", " [,"])
def test_no_beginning_of_a_box(text):
    assert not BOX_BEGUN.fullmatch(text)


@pytest.mark.parametrize("numbers", [(5, 1, 4, 9), (1, 9, 5, 8), (0, 0, 1000, 5)])
def test_impossible_box_is_none(numbers):
    assert box_from_text(numbers, SIZE) is None


@settings(max_examples=200)
@given(st.data())
def test_any_ids_are_read(data):
    literal, ids = tools()
    markers = st.sampled_from([ids.seg, ids.phrase_open, ids.phrase_close])
    letters = st.sampled_from([*literal.encode(" [12, 345]\nx"), *literal.encode("é☂")])
    sequence = data.draw(st.lists(st.one_of(markers, letters, st.integers(0, literal.num_ids + 50)), max_size=40))
    read = read_answer(sequence, literal, ids, SIZE)
    assert sorted(seg for phrase in read.phrases for seg in phrase.segs) == list(range(sequence.count(ids.seg)))
    end = 0
    for phrase in read.phrases:
        assert end <= phrase.start <= phrase.end <= len(read.text)
        said = read.text[phrase.start : phrase.end]
        assert said == said.strip()
        assert all(sequence[position] not in ids.all for position in phrase.tokens)
        end = phrase.end


def ids_of(*pieces):
    literal, ids = tools()
    known = {"<p>": ids.phrase_open, "</p>": ids.phrase_close, "[SEG]": ids.seg, "<region>": ids.region}
    return [index for piece in pieces for index in ([known[piece]] if piece in known else literal.encode(piece))]


@pytest.mark.parametrize(
    ("pieces", "text", "phrases", "note"),
    [
        (["a", "[SEG]"], "a", [(1, 1, (0,))], "a mask without a phrase at character 1"),
        (["a", "</p>", " b"], "a b", [], "closed that was never opened"),
        (["<p>", " a"], " a", [], "' a' was never closed and has no mask"),
        (["<p>", "a", "[SEG]", " b", "</p>", "[SEG]"], "a b", [(0, 3, (0, 1))], "a mask inside a phrase"),
        (["<p>", "a", "[SEG]"], "a", [(0, 1, (0,))], "was never closed"),
        (["<p>", "a", "<p>", " b", "</p>", "[SEG]"], "a b", [(2, 3, (0,))], "opened inside another"),
        (["<p>", "a", "[SEG]", "<p>", " b", "</p>", "[SEG]"], "a b", [(0, 1, (0,)), (2, 3, (1,))], "inside another"),
        (["a", "<region>", " b"], "a b", [], "has no place in an answer"),
        (["<p>", "a", "</p>", " [9, 9, 3, 10] b"], "a b", [(0, 1, ())], "[9, 9, 3, 10] is empty or out of range"),
        (["<p>", " a ", "</p>", "[SEG]", "."], " a .", [(1, 2, (0,))], None),
        (["<p>", " ", "</p>", "[SEG]"], " ", [(1, 1, (0,))], None),
    ],
)
def test_malformed_answers_are_read_with_notes(pieces, text, phrases, note):
    literal, ids = tools()
    read = read_answer(ids_of(*pieces), literal, ids, SIZE)
    assert read.text == text
    assert [(each.start, each.end, each.segs) for each in read.phrases] == phrases
    assert note is None or any(note in each for each in read.notes), read.notes
    assert bool(note) == bool(read.notes)


def test_blank_moves_into_the_phrase():
    literal, ids = tools()
    text, spans = compose("There is ", ("a dog", (0,)), ".")
    out = written(Turn("assistant", text, spans))
    assert out.ids == [*ids_of("There is", "<p>", " a dog", "</p>", "[SEG]", "."), ids.eos]
    assert out.labelled == [True] * len(out.ids)


def test_box_of_an_empty_region_is_an_error():
    literal, ids = tools()
    empty = Region.of_mask(np.zeros(SIZE, bool))
    turn = Turn("assistant", "a dog", (Grounding(0, 5, (0,)),), grounding="box")
    with pytest.raises(ValueError, match="region 0 is empty"):
        write_answer(Tokens(), turn, [empty], literal, ids)


def test_questions_carry_no_labels_and_mentions_in_order():
    literal, ids = tools()
    turn = Turn("user", "Is A left of B?", mentions=(Mention(13, 14, 1), Mention(3, 4, 0)))
    out = Tokens()
    write_question(out, turn, FORMATS["compact"], literal, ids, first=True)
    assert out.given == [0, 1] and out.ids.count(ids.region) == 2
    assert not any(out.labelled)
    text = literal.decode([index for index in out.ids if index != ids.region])
    assert text == "USER: Is A left of B? ASSISTANT: "


def test_prefix_holds_every_image_token():
    literal, ids = tools()
    out = Tokens()
    write_prefix(out, FORMATS["vicuna_v1"], literal, ids, 9)
    assert out.ids[0] == ids.bos and out.ids.count(ids.image) == 9
    assert literal.decode([index for index in out.ids if index not in ids.all]).endswith("USER: \n")


def test_unknown_format_names_the_known():
    with pytest.raises(ValueError, match="unknown prompt format 'vicuna'; known: compact, vicuna_v1"):
        prompt_format("vicuna")
