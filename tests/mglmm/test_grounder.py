"""What users call: answers, streams and chats of a model that says random things."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mglmm import Answer, Grounder
from mglmm.eval.protocol import Query
from mglmm.generate import GenerationOptions
from mglmm.grounder import DESCRIBE
from mglmm_data.sample import Mention, Region

SIZE = (40, 64)
PICTURE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


class Says(nn.Module):
    """A head that says one sentence, a token a step, and then the end; several rows say the same."""

    def __init__(self, head, sentence, end):
        super().__init__()
        self.weight, self.sentence, self.end, self.step = head.weight, list(sentence), end, 0

    def forward(self, hidden):
        logits = torch.zeros(len(hidden), len(self.weight))
        logits[:, self.sentence[self.step] if self.step < len(self.sentence) else self.end] = 60.0
        self.step += 1
        return logits


def speaker(tiny, sentence, **options):
    """A grounder that says the ids of `sentence`."""
    model, processor = copy.copy(tiny[0]), tiny[1]
    model._modules = dict(model._modules)
    model._modules["llava"] = llava = copy.copy(model.llava)
    llava._modules = dict(llava._modules)
    llava._modules["lm_head"] = Says(tiny[0].llava.lm_head, sentence, processor.ids.eos)
    return Grounder(model, processor, GenerationOptions(**{"max_new_tokens": 80, **options}))


def ids_of(tiny, *pieces):
    processor = tiny[1]
    known = {"<p>": processor.ids.phrase_open, "</p>": processor.ids.phrase_close, "[SEG]": processor.ids.seg}
    return [t for piece in pieces for t in ([known[piece]] if piece in known else processor.literal.encode(piece))]


def pixels(instance):
    """The mask, or an empty one."""
    return np.zeros(SIZE, bool) if instance.mask is None else instance.mask


TWO = ("There is", "<p>", " a red car", "</p>", "[SEG]", " and", "<p>", " two dogs", "</p>", "[SEG]", "[SEG]", ".")
BOXES = ("The", "<p>", " car", "</p>", " [100, 200, 500, 600]", " [0, 0, 9, 9]", " is", "<p>", " red", "</p>", "[SEG]")


def test_an_answer_has_its_phrases_and_masks(tiny):
    answer = speaker(tiny, ids_of(tiny, *TWO)).ask(PICTURE, "What?")
    assert answer.text == "There is a red car and two dogs."
    assert [(each.text, len(each.instances)) for each in answer.phrases] == [("a red car", 1), ("two dogs", 2)]
    for phrase in answer.phrases:
        for instance in phrase.instances:
            assert instance.mask is not None and instance.mask.shape == SIZE and instance.mask.dtype == bool
            assert 0 <= instance.score <= 1
    assert answer.prompt == "What?" and not answer.truncated and not answer.notes


def test_boxes_come_in_pixels(tiny):
    answer = speaker(tiny, ids_of(tiny, *BOXES)).ask(PICTURE)
    assert answer.text == "The car is red" and answer.prompt == DESCRIBE
    first, second = answer.phrases[0].instances
    assert first.mask is None and first.box and second.box and first.score == pytest.approx(1, abs=1e-6)
    assert np.allclose(first.box, (100.5 * 0.064, 200.5 * 0.04, 500.5 * 0.064, 600.5 * 0.04))
    assert np.allclose(second.box, (0.5 * 0.064, 0.5 * 0.04, 9.5 * 0.064, 9.5 * 0.04))
    assert answer.phrases[1].instances[0].mask is not None


def test_the_kind_of_score_is_that_of_all_instances(tiny, monkeypatch):
    """Masks are judged by the model's confidence; where boxes were spelt, all scores are those of words."""
    monkeypatch.setattr(tiny[0].config, "confidence", [0.0] * 7 + [1.0])
    judged = speaker(tiny, ids_of(tiny, *TWO)).ask(PICTURE)
    assert judged.score_kind == "probability"
    assert {round(each.score, 3) for phrase in judged.phrases for each in phrase.instances} == {0.731}
    assert speaker(tiny, ids_of(tiny, "Nothing.")).ask(PICTURE).score_kind == "probability"
    boxes = speaker(tiny, ids_of(tiny, *BOXES)).ask(PICTURE)
    assert boxes.score_kind == "mask_x_text"
    masked = boxes.phrases[1].instances[0]
    assert round(masked.score, 3) != 0.731 and boxes.phrases[0].score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("judged", [True, False])
def test_a_mask_without_words_is_not_certain(tiny, monkeypatch, judged):
    if judged:  # the words alone count
        monkeypatch.setattr(tiny[0].config, "confidence", [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    sentence = ids_of(tiny, "[SEG]", " dog")
    grounder = speaker(tiny, sentence, grammar=False)
    head: Any = grounder.model.llava.lm_head

    def unsure(hidden):
        logits = torch.zeros(len(hidden), len(head.weight))
        logits[:, head.sentence[head.step] if head.step < len(head.sentence) else head.end] = 1.0
        head.step += 1
        return logits

    monkeypatch.setattr(head, "forward", unsure)
    (phrase,) = grounder.ask(PICTURE, "What?").phrases
    assert not phrase.text and phrase.score < 0.01


@pytest.mark.parametrize(
    "pieces",
    [
        TWO,
        BOXES,
        ("Nothing here.",),
        (),
        ("<p>", "café ☂ é", "</p>", "[SEG]", " ☂"),
        ("<p>", " a", "</p>", " [1, 2, 3", " then"),
        ("[SEG]", "a", "[SEG]"),
        ("<p>", "a", "[SEG]", " b"),
        ("<p>", "a", "[SEG]", "<p>", " b", "</p>", "[SEG]", " [5, 5, 9"),
        ("a", "</p>", " b", "<p>", " "),
    ],
)
@pytest.mark.parametrize("limit", [80, 9])
def test_a_stream_adds_up_to_the_answer(tiny, pieces, limit):
    sentence = ids_of(tiny, *pieces)
    options = {"grammar": False, "max_new_tokens": limit}
    whole = speaker(tiny, sentence, **options).ask(PICTURE)
    events = list(speaker(tiny, sentence, **options).stream(PICTURE))
    assert "".join(event.text for event in events) == whole.text
    assert events[-1].answer is not None and events[-1].answer.text == whole.text
    phrases = [event.phrase for event in events if event.phrase is not None]
    assert [(each.text, each.span) for each in phrases] == [(each.text, each.span) for each in whole.phrases]
    for streamed, wanted in zip(phrases, whole.phrases, strict=True):
        for one, two in zip(streamed.instances, wanted.instances, strict=True):
            assert one.box == two.box and one.score == pytest.approx(two.score, abs=1e-4)
            assert np.array_equal(pixels(one), pixels(two))


@given(st.data())
def test_streams_of_any_ids_add_up(tiny, data):
    ids, literal = tiny[1].ids, tiny[1].literal
    known = [ids.seg, ids.phrase_open, ids.phrase_close, *literal.encode(" [12, 3] dog é")]
    sentence = data.draw(st.lists(st.one_of(st.sampled_from(known), st.integers(3, 600)), max_size=12))
    events = list(speaker(tiny, sentence, grammar=False).stream(PICTURE))
    answer = events[-1].answer
    assert answer is not None
    assert "".join(event.text for event in events) == answer.text
    assert [e.phrase.span for e in events if e.phrase is not None] == [each.span for each in answer.phrases]


def test_phrases_are_streamed_as_they_come(tiny):
    events = list(speaker(tiny, ids_of(tiny, *TWO)).stream(PICTURE))
    kinds = ["phrase" if event.phrase else "answer" if event.answer else event.text for event in events]
    assert kinds.index("phrase") < kinds.index(" two") < len(kinds) - 1
    assert kinds[-1] == "answer"


def test_markers_in_a_prompt_are_said_to_be_text(tiny):
    answer = speaker(tiny, ids_of(tiny, "No.")).ask(PICTURE, "segment [SEG] and <p>")
    assert answer.notes == ("the prompt contains [SEG], <p>; it was read as plain text",)


def test_what_happened_to_the_image_is_said(tiny, tmp_path):
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "c.jpg")
    grounder = speaker(tiny, ids_of(tiny, "No."))
    assert any("CMYK" in note for note in grounder.ask(tmp_path / "c.jpg", "What?").notes)


@pytest.mark.parametrize("call", ["ask", "stream", "chat"])
def test_bad_input_is_refused(tiny, call, tmp_path):
    grounder = speaker(tiny, ids_of(tiny, "No."))

    def ask(image, prompt, regions=()):
        if call == "stream":
            return list(grounder.stream(image, prompt, regions))
        return grounder.chat(image).ask(prompt, regions) if call == "chat" else grounder.ask(image, prompt, regions)

    with pytest.raises(ValueError, match="the prompt is empty"):
        ask(PICTURE, "")
    with pytest.raises(ValueError, match=r"region 0 is for an image of 10x10 px, this one has 64x40"):
        ask(PICTURE, "What?", [Region((10, 10), point=(1, 1))])
    with pytest.raises(ValueError, match=r"\[region 3\]"):
        ask(PICTURE, "What is [region 3]?", [Region(SIZE, point=(1, 1))])
    with pytest.raises(ValueError, match="nowhere.png"):
        ask(tmp_path / "nowhere.png", "What?")


def test_one_image_many_prompts(tiny):
    grounder = speaker(tiny, ids_of(tiny, *TWO))
    image = Image.fromarray(PICTURE)
    answers = grounder.ask_many([(image, "a", ()), (image, "b", [Region(SIZE, point=(3, 3))]), (PICTURE, "c", ())])
    assert [answer.prompt for answer in answers] == ["a", "b", "c"]
    assert len({answer.text for answer in answers}) == 1 and all(isinstance(each, Answer) for each in answers)


def test_queries_of_an_evaluation(tiny):
    grounder = speaker(tiny, ids_of(tiny, "A car."))
    region = Region(SIZE, box=(2, 2, 30, 30))
    query = Query(PICTURE, "What is A?", (region,), (Mention(8, 9, 0),))
    (answer,) = grounder.predict([query])
    assert answer.text == "A car." and answer.prompt == "What is A?"


def test_chat_remembers_masks_and_boxes_as_regions(tiny):
    grounder = speaker(tiny, ids_of(tiny, *TWO))
    chat = grounder.chat(PICTURE)
    answer = chat.ask("What?")
    turn = chat.turns[-1]
    assert turn.text == answer.text and [phrase.regions for phrase in turn.phrases] == [(0,), (1, 2)]
    assert np.array_equal(chat.regions[1].mask, pixels(answer.phrases[1].instances[0]))
    assert turn.grounding == "mask"

    boxes = speaker(tiny, ids_of(tiny, *BOXES)).chat(PICTURE)
    answer = boxes.ask("Where?")
    assert boxes.turns[-1].grounding == "box" and len(boxes.regions) == 3
    assert boxes.regions[0].box == answer.phrases[0].instances[0].box


@pytest.mark.parametrize(
    "pieces", [("[SEG]",), ("<p>", " ", "</p>", "[SEG]"), ("<p>", "a \n", "</p>", "[SEG]", "[SEG]")]
)
def test_chat_lives_on_after_odd_answers(tiny, pieces):
    grounder = speaker(tiny, ids_of(tiny, *pieces), grammar=False)
    chat = grounder.chat(PICTURE)
    chat.ask("one")
    assert chat.ask("two").prompt == "two"


def test_loading_by_folder(tiny_checkpoint):
    grounder = Grounder.load(tiny_checkpoint, device="cpu", max_new_tokens=3)
    assert grounder.options.max_new_tokens == 3 and not grounder.model.training
    assert len(grounder.processor.literal.encode(grounder.ask(PICTURE).text)) <= 9


def test_half_precision_answers_too(tiny_checkpoint):
    grounder = Grounder.load(tiny_checkpoint, device="cpu", dtype=torch.bfloat16, max_new_tokens=4)
    answer = grounder.ask(PICTURE, "What is [region 0]?", [Region(SIZE, box=(2, 2, 30, 30))])
    assert answer.text
    states = [torch.randn(32, dtype=torch.bfloat16)]
    assert grounder.decode(grounder.encode([PICTURE]), states, [0]).logits.dtype == torch.float32
