"""The published formats: what upstream's scripts return, how answers are read, and that reading loses nothing."""

import json
from functools import cache

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from mglmm.config import BUNDLED
from mglmm.encode import Encoder, user_turn
from mglmm.formats import FAMILIES, FORMATS, Tokens, read_answer, write_answer, write_prefix
from mglmm.grounder import Grounder, marker_notes
from mglmm.importers.replies import decode_slow, read_reply
from mglmm.importers.tokenizer import legacy_tokenizer
from mglmm.pieces import fresh_tokens, joined
from mglmm.tokens import LiteralTokenizer, special_ids
from mglmm_data.sample import Grounding, Region, Turn

PEERS = ("lisa", "glamm", "mglmm")
IMAGE = -200
SIZE = (96, 140)


@cache
def tools(folder, family):
    tokenizer = legacy_tokenizer(folder, family)
    return LiteralTokenizer(tokenizer), special_ids(tokenizer, FAMILIES[family].region)


@pytest.fixture(params=PEERS)
def family(request):
    return request.param


@pytest.fixture
def recorded(family, shared):
    """(case, ids of the whole conversation, ids of the answer) of every recorded `evaluate`."""
    folder = shared("golden", family)
    cases = json.loads((folder / "golden.json").read_text())["evaluate"]
    found = []
    with safe_open(folder / "golden.safetensors", "pt") as stored:
        for case in cases:
            asked, said = (
                stored.get_tensor(f"eval.{case['name']}.{kind}_ids")[0].tolist() for kind in ("input", "output")
            )
            found.append((case, [index for index in said if index != IMAGE], said[len(asked) :]))
    assert len(found) >= 6
    return found


@pytest.fixture
def spoken(family, shared):
    return tools(shared("golden", family, "checkpoint"), family)


def test_replies_are_upstreams(recorded, spoken, family):
    for case, ids, _ in recorded:
        assert decode_slow(ids, spoken[0]) == case.get("decoded", case.get("text_raw")), case["name"]
        reply = read_reply(ids, spoken[0], family)
        assert reply.text_output == case["text_output"], case["name"]
        if "cleaned" in case:
            assert (reply.cleaned, list(reply.phrases)) == (case["cleaned"], case["phrases"]), case["name"]


def test_answers_are_read_as_clean_text(recorded, spoken, family):
    literal, ids = spoken
    for case, _, said in recorded:
        said = said[:-1] if said[-1] == ids.eos else said
        read = read_answer(said, literal, ids, SIZE, FAMILIES[family])
        assert not read.notes
        assert sum(len(phrase.segs) for phrase in read.phrases) == said.count(ids.seg)
        if "cleaned" in case:
            assert read.text == case["cleaned"].replace(" .", "."), case["name"]
            assert [
                read.text[phrase.start : phrase.end] for phrase in read.phrases if phrase.end > phrase.start
            ] == case["phrases"]


def test_reading_and_writing_gives_the_ids_back(recorded, spoken, family):
    """What was answered stands in the prompt of the next question token for token (chat)."""
    literal, ids = spoken
    form = FAMILIES[family]
    encoder = Encoder(literal, ids, form, num_image=1)
    for case, _, said in recorded:
        said = said[:-1] if said[-1] == ids.eos else said
        read = read_answer(said, literal, ids, SIZE, form)
        regions = [Region(SIZE, box=(0, 0, 9, 9))] * said.count(ids.seg)
        spans = tuple(Grounding(phrase.start, phrase.end, phrase.segs) for phrase in read.phrases)
        question, answer = Turn("user", "Where is it?"), Turn("assistant", read.text, spans)
        opened = encoder.prompt([question], ()).ids
        whole = encoder.prompt([question, answer, Turn("user", "And this?")], regions).ids
        assert whole[: len(opened)] == opened
        assert whole[len(opened) : len(opened) + len(said) + 1] == [*said, ids.eos], case["name"]


def test_lisa_reads_plain_sentences(shared):
    literal, ids = tools(shared("golden", "lisa", "checkpoint"), "lisa")
    said = [*literal.encode(" Sure, it is"), ids.seg, *literal.encode(" .")]
    read = read_answer(said, literal, ids, SIZE, FAMILIES["lisa"])
    assert (read.text, read.notes) == ("Sure, it is.", ())
    assert [(phrase.start, phrase.end, phrase.segs) for phrase in read.phrases] == [(11, 11, (0,))]
    assert read_answer(said, literal, ids, SIZE).notes == ("a mask without a phrase at character 12",)


@pytest.mark.parametrize(
    ("text", "piece", "whole"),
    [
        ("", " Sure", "Sure"),
        ("A dog", " and", "A dog and"),
        ("A dog", " .", "A dog."),
        ("A dog", " , and", "A dog, and"),
        ("A dog", "s", "A dogs"),
        ("A dog\n", " and", "A dog\nand"),
        ("A dog", " ", "A dog"),
        ("A dog", "  and", "A dog and"),
    ],
)
def test_pieces_join_as_sentences(text, piece, whole):
    assert joined(text, piece) == whole


def test_glamm_puts_the_region_in_the_place_of_its_words(shared):
    literal, ids = tools(shared("golden", "glamm", "checkpoint"), "glamm")
    encoder = Encoder(literal, ids, FAMILIES["glamm"], num_image=1)
    region = Region(SIZE, box=(10, 20, 60, 80))
    asked = encoder.prompt([user_turn("What is [region 0] in the picture?", [region])], [region])
    text = FAMILIES["glamm"].after_image + "What is"
    assert asked.ids[: asked.ids.index(ids.region)] == literal.encode(" " + text.strip())
    assert asked.ids.count(ids.region) == 1 and asked.given == [0]
    assert asked.ids[asked.ids.index(ids.region) + 1 :] == literal.encode(" in the picture? ASSISTANT:")


def test_lisa_writes_no_phrase_markers(shared):
    literal, ids = tools(shared("golden", "lisa", "checkpoint"), "lisa")
    turn = Turn("assistant", "Sure, the dog.", (Grounding(6, 13, (0,)),))
    out = fresh_tokens(FAMILIES["lisa"])
    write_answer(out, turn, [Region(SIZE, box=(0, 0, 9, 9))], literal, ids, tagged=False)
    assert out.ids == [*literal.encode(" Sure, the dog"), ids.seg, *literal.encode(" ."), ids.eos]
    assert all(out.labelled) and out.targets == [0]


@pytest.mark.parametrize("name", ["lisa", "glamm", "mglmm"])
def test_untrained_markers_are_known(name):
    form = FORMATS[name]
    assert form.published and "[SEG]" not in form.untrained and "<image>" in form.untrained
    assert set(form.untrained) == {"<image>"} | ({"<p>", "</p>", "<region>"} if name == "lisa" else set())


def test_own_formats_are_untouched():
    for name in ("compact", "vicuna_v1"):
        form = FORMATS[name]
        assert (form.published, form.untrained, form.bare, form.tagged, form.region) == (
            False,
            (),
            False,
            True,
            "<region>",
        )


def test_format_that_the_tokenizer_cannot_write():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    with pytest.raises(ValueError, match=r"no <im_start>, which the prompt format 'lisa' puts beside images"):
        write_prefix(Tokens(), FORMATS["lisa"], LiteralTokenizer(tokenizer), special_ids(tokenizer), 4)


def test_unknown_family_has_no_reply(shared):
    literal, _ = tools(shared("golden", "lisa", "checkpoint"), "lisa")
    with pytest.raises(ValueError, match=r"unknown family 'kosmos'; known: lisa"):
        read_reply([1], literal, "kosmos")


def test_typed_tokens_of_a_family_are_noted():
    (note,) = marker_notes("Is <bbox> or [SEG] text?", FORMATS["glamm"])
    assert note == "the prompt contains [SEG], <bbox>; it was read as plain text"
    assert marker_notes("Is <bbox> text?", FORMATS["compact"]) == ()


@pytest.mark.parametrize("family", PEERS)
def test_chat_goes_on_where_the_answer_ended(family, converted, shared):
    """The second question runs only what is new: its prompt begins with the ids of the first question and answer."""
    grounder = Grounder.load(converted(family), max_new_tokens=24)
    chat = grounder.chat(shared("golden", family, "img_a.png"))
    first = chat.ask("Can you segment the dog in this image?")
    held = list(chat.cache.ids)
    second = chat.ask("Can you segment the dog in this image?")
    assert chat.cache.ids[: len(held)] == held
    assert first.phrases and second.text
