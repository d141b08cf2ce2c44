"""Markers are one id each, and what a user types is never one of them."""

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mglmm.config import BUNDLED
from mglmm.tokenizer import LIMIT, tokenizer_hash, train_tokenizer
from mglmm.tokens import MARKERS, LiteralTokenizer, add_markers, special_ids

GOLDEN = ("lisa", "glamm", "mglmm")


@cache
def load(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_markers(tokenizer)
    return tokenizer, LiteralTokenizer(tokenizer)


@pytest.fixture(params=["bundled", *GOLDEN])
def loaded(request, shared):
    return load(BUNDLED if request.param == "bundled" else shared("golden", request.param, "checkpoint"))


def test_every_marker_is_one_id(loaded):
    tokenizer, _ = loaded
    ids = special_ids(tokenizer)
    found = [ids.image, ids.seg, ids.phrase_open, ids.phrase_close, ids.region]
    assert tokenizer.convert_ids_to_tokens(found) == list(MARKERS)
    assert len(set(found)) == len(MARKERS)


def test_markers_are_added_once(loaded):
    assert add_markers(loaded[0]) == []


def test_missing_marker_is_an_error(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared("golden", "lisa", "checkpoint"))
    with pytest.raises(ValueError, match=r"no token '<image>'.*add_markers"):
        special_ids(tokenizer)


def test_tokenizer_without_end_is_an_error():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"eos None; it needs both"):
        special_ids(tokenizer)


def test_no_special_string_yields_a_special_id(loaded):
    tokenizer, literal = loaded
    names = sorted(literal.special)
    draw = random.Random(0)
    texts = [*names, *(f"{a}{b}" for a in names for b in names)]
    texts += ["".join(draw.choices([*names, " ", "a", "▁", "[", "SEG]", "<", "p>"], k=8)) for _ in range(200)]
    for text in texts:
        assert not set(literal.encode(text)) & set(literal.special.values()), text


def test_the_tokenizer_itself_would_have_given_it(loaded):
    tokenizer, literal = loaded
    assert special_ids(tokenizer).seg in tokenizer("say [SEG] please").input_ids
    assert special_ids(tokenizer).seg not in literal.encode("say [SEG] please")


@given(st.text(max_size=60))
def test_bundled_round_trip(text):
    tokenizer, literal = load(BUNDLED)
    ids = literal.encode(text)
    assert literal.decode(ids) == text
    assert all(0 <= index < len(tokenizer) for index in ids)
    assert not set(ids) & set(literal.special.values())  # there is no unknown token to fall to


@pytest.mark.parametrize("text", ["▁", "a▁ b", " ▁▁x", "two  blanks ", "日本 ▁ é", "\n\t", "🎈🎈"])
def test_round_trip_of_the_letter_that_stands_for_a_blank(loaded, text):
    assert loaded[1].decode(loaded[1].encode(text)) == text


def test_pieces_keep_their_blanks(loaded):
    _, literal = loaded
    assert literal.decode(literal.encode("a dog") + literal.encode(" runs")) == "a dog runs"
    assert literal.encode(" dog") != literal.encode("dog")


def test_bundled_is_small_and_splits_digits():
    tokenizer, literal = load(BUNDLED)
    assert len(tokenizer) <= LIMIT
    ids = literal.encode("20417 x 9")
    assert [literal.decode([index]) for index in ids[:5]] == list("20417")


def test_hash_says_what_rows_mean(tmp_path: Path):
    tokenizer, _ = load(BUNDLED)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer) == tokenizer_hash(AutoTokenizer.from_pretrained(BUNDLED))
    again.add_tokens(["<more>"], special_tokens=True)
    assert tokenizer_hash(again) != tokenizer_hash(tokenizer)


def test_training_is_deterministic():
    corpus = ["a red car and a blue boat", "segment the 12 cars"] * 5
    first, second = train_tokenizer(corpus), train_tokenizer(corpus)
    assert tokenizer_hash(first) == tokenizer_hash(second)
    assert len(first) <= LIMIT
    literal = LiteralTokenizer(first)
    assert literal.decode(literal.encode("a Zebra\n▁ [SEG] 12")) == "a Zebra\n▁ [SEG] 12"


def test_special_token_that_text_can_spell_is_an_error():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.add_tokens(["a"], special_tokens=True)
    with pytest.raises(ValueError, match=r"text 'a' yields the special id \d+.*rename"):
        LiteralTokenizer(tokenizer)


def test_spelling_finds_bytes_and_letters():
    _, literal = load(BUNDLED)
    found = literal.spelling("0123456789,[] ")
    assert set("0123456789,[] ") == set("".join(found.values()))
    assert all(literal.decode([index]) == text for index, text in found.items())
