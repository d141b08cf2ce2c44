"""Answers token by token: caches, batches and grammar change nothing they should not."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from mglmm.encode import join, pad_rows, user_turn
from mglmm.feedback import BoxFeedback
from mglmm.formats import Tokens
from mglmm.generate import GenerationOptions, PrefixCache, Run, complete
from mglmm.grammar import Grammar
from mglmm.grounder import Grounder, Prepared
from mglmm.inputs import Batch
from mglmm_data.sample import Region

SIZES = ((48, 64), (64, 40), (30, 90))
PROMPTS = ("hi", "Describe the image and segment everything.", "Where is the red car?", "x " * 15, "12", "What is it?")
OPTIONS = GenerationOptions(max_new_tokens=24)


def picture(number):
    return np.random.default_rng(number).integers(0, 255, (*SIZES[number % 3], 3), dtype=np.uint8)


def talker(tiny, offset=-1, seed=0):
    """The tiny model with a head of its own that likes to say markers."""
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    model.config.read_offset = offset
    ids = processor.ids
    generator = torch.Generator().manual_seed(seed)
    rows = model.llava.lm_head.weight.shape[0]
    head = nn.Linear(32, rows)
    head.weight.data = torch.randn(rows, 32, generator=generator) * 0.7
    head.bias.data.zero_()
    for token, bias in ((ids.phrase_open, 7.0), (ids.phrase_close, 7.0), (ids.seg, 8.0), (ids.eos, 9.0)):
        head.bias.data[token] = bias
    model.llava.lm_head = head
    return Grounder(model.eval(), processor, OPTIONS)


def reader(tiny):
    """A talker that reads back what it points to, loudly."""
    grounder = talker(tiny)
    grounder.model.config.box_feedback = True
    grounder.model.box_feedback = BoxFeedback(32)
    generator = torch.Generator().manual_seed(1)
    for parameter in grounder.model.box_feedback.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return grounder


@pytest.fixture(params=[-1, 0], ids=["emits", "at"])
def plain(tiny, request):
    return talker(tiny, request.param)


@pytest.fixture(params=[-1, 0, "reads back"], ids=["emits", "at", "reads back"])
def grounder(tiny, request):
    return reader(tiny) if request.param == "reads back" else talker(tiny, request.param)


def ready(grounder, asked):
    """Image states and prompts of (picture number, prompt, number of regions)."""
    numbers = sorted({number for number, _, _ in asked})
    pixels = [picture(number) for number in numbers]
    prepared = []
    for number, prompt, count in asked:
        size = pixels[numbers.index(number)].shape[:2]
        regions = [Region(size, box=(3.0 * i, 2, 3.0 * i + 12, 20)) for i in range(count)]
        prepared.append(Prepared(numbers.index(number), (user_turn(prompt, regions),), tuple(regions), ()))
    images = grounder.encode(pixels)
    return images, grounder.prompts(images, prepared)


def generate(grounder, asked, options=OPTIONS):
    images, prompts = ready(grounder, asked)
    out = complete(grounder.model, grounder.processor.encoder, images, prompts, options)
    pairs = zip(out, prompts, strict=True)
    masks = [grounder.decode(images, each.states, [prompt.image] * len(each.states)).logits for each, prompt in pairs]
    return out, masks


@torch.no_grad()
def uncached(grounder, asked, options=OPTIONS):
    """The same answer by full forward passes, one token at a time, with the states that [SEG] is read from."""
    images, (prompt,) = ready(grounder, [asked])
    model, encoder = grounder.model, grounder.processor.encoder
    ids, said = encoder.ids, []
    speakable = {ids.eos, ids.seg, ids.phrase_open, ids.phrase_close}
    banned = [index for index in encoder.literal.special.values() if index not in speakable]
    grammar = Grammar.of(encoder)
    at, boxes = [], []  # what is read back

    def states():
        tokens = torch.tensor([encoder.prefix().ids + prompt.ids + said])
        embeds = model.embed(tokens, images.tokens[[prompt.image]], prompt.regions)
        if at:
            embeds = model.with_feedback(embeds, torch.tensor(at), torch.cat(boxes))
        return tokens[0], model.llava.model.language_model(inputs_embeds=embeds).last_hidden_state[0]

    while len(said) < options.max_new_tokens:
        _, hidden = states()
        logits = model.llava.lm_head(hidden[-1])
        logits[banned] = -torch.inf
        logits[encoder.literal.num_ids :] = -torch.inf
        if options.grammar:
            only, never = grammar.rule(options.max_new_tokens - len(said))
            kept = logits[list(only)].clone()
            logits = torch.full_like(logits, -torch.inf) if only else logits
            logits[list(only)] = kept
            logits[list(never)] = -torch.inf
        token = int(logits.argmax())
        if token == ids.eos:
            break
        if options.grammar:
            grammar.take(token)
        if model.box_feedback is not None and (token == ids.seg or said[-1:] == [ids.phrase_close]):
            at.append((0, len(hidden)))
            boxes.append(model.look(hidden[-1:]))
        said.append(token)
    tokens, hidden = states()
    segs = (tokens == ids.seg).nonzero()[:, 0]
    return said, hidden[segs + model.config.read_offset]


MIXED = [
    (number, prompt, count) for number in range(3) for prompt, count in zip(PROMPTS, (0, 1, 2, 0, 3, 0), strict=True)
]


@pytest.mark.parametrize("grammar", [True, False])
def test_cached_equals_uncached(grounder, grammar):
    options = GenerationOptions(max_new_tokens=24, grammar=grammar)
    spoken = 0
    for asked in MIXED[::4]:
        (out,), _ = generate(grounder, [asked], options)
        said, states = uncached(grounder, asked, options)
        assert out.ids == said
        assert len(out.states) == len(states)
        spoken += len(states)
        if len(states):
            assert torch.allclose(torch.stack(out.states), states, atol=1e-4)
    assert spoken > 3


@pytest.mark.parametrize("grammar", [True, False])
def test_batch_equals_single(grounder, grammar):
    options = GenerationOptions(max_new_tokens=24, grammar=grammar)
    together, masks = generate(grounder, MIXED, options)
    lengths = set()
    for asked, out, logits in zip(MIXED, together, masks, strict=True):
        (alone,), (single,) = generate(grounder, [asked], options)
        assert out.ids == alone.ids and out.truncated == alone.truncated
        assert np.allclose(out.logprobs, alone.logprobs, atol=1e-4)
        assert logits.shape == single.shape and torch.allclose(logits, single, atol=1e-3)
        lengths.add(len(out.ids))
    assert len(lengths) > 2 and sum(len(each) for each in masks) > 5


def test_teacher_forced_states_are_the_generated_ones(grounder):
    """Through the training pass: shared prefix, block mask, restarted positions."""
    processor, encoder = grounder.processor, grounder.processor.encoder
    asked = [(0, prompt, 0) for prompt in PROMPTS]
    images, prompts = ready(grounder, asked)
    answers = complete(grounder.model, encoder, images, prompts, OPTIONS)
    pieces = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = Tokens()
        tokens.add(prompt.ids)
        tokens.add(answer.ids, labelled=True)
        pieces.append(tokens)
    row = join(encoder.prefix(), pieces)
    count = row.ids.count(encoder.ids.seg)
    pixels, _, canvases = processor.pixels([picture(0)])
    states = torch.stack([state for answer in answers for state in answer.states])
    batch = Batch(
        pixels=pixels,
        clip_pixels=None,
        row_image=torch.tensor([0]),
        **pad_rows([row], encoder.ids.pad),
        region_masks=processor.coverage([]),
        region_image=torch.zeros(0, dtype=torch.long),
        picked=torch.arange(count),
        mask_targets=torch.zeros(count, processor.mask_side, processor.mask_side),
        canvases=canvases,
        target_boxes=grounder.model.look(states),
    )
    with torch.no_grad():
        out = grounder.model(batch)
    assert count == len(states) > 3
    assert torch.allclose(out.states, states, atol=1e-4)
    masks = grounder.decode(images, list(states), [0] * count).logits
    assert torch.allclose(out.mask_logits, masks, atol=1e-3)


class Script(nn.Module):
    """A head that says given tokens, whatever the states: one list for each row, by their order."""

    def __init__(self, head, sentences):
        super().__init__()
        self.weight, self.sentences, self.step = head.weight, [list(each) for each in sentences], 0

    def forward(self, hidden):
        logits = torch.zeros(len(hidden), len(self.weight))
        self.sentences = [each for each in self.sentences if len(each) >= self.step] if self.step else self.sentences
        for row, sentence in enumerate(self.sentences[: len(hidden)]):
            logits[row, sentence[self.step]] = 50.0
        self.step += 1
        return logits


def test_last_seg_of_the_budget_is_read(grounder):
    ids = grounder.processor.ids
    words = grounder.processor.literal.encode("a dog")[:2]
    said = [ids.phrase_open, *words, ids.phrase_close, ids.seg]
    grounder.model.llava.lm_head = Script(grounder.model.llava.lm_head, [said])
    (out,), (mask,) = generate(grounder, [(0, "hi", 0)], GenerationOptions(max_new_tokens=5))
    assert out.ids == said and len(out.states) == 1 and out.truncated and len(mask) == 1


def test_chat_goes_on_after_a_last_seg(grounder):
    """The cache must survive a turn whose budget ended with [SEG]."""
    ids = grounder.processor.ids
    words = grounder.processor.literal.encode("a dog")[:2]
    head = grounder.model.llava.lm_head
    grounder.model.llava.lm_head = Script(head, [[ids.phrase_open, *words, ids.phrase_close, ids.seg]])
    chat = grounder.chat(picture(0))
    first = chat.ask("hi", options=GenerationOptions(max_new_tokens=5))
    assert first.truncated and len(first.phrases) == 1
    grounder.model.llava.lm_head = head
    assert chat.ask("and now?").prompt == "and now?"


def test_rows_leave_the_batch(tiny):
    grounder = talker(tiny)
    widths = []
    hook = grounder.model.llava.lm_head.register_forward_hook(lambda _, given, __: widths.append(len(given[0])))
    out, _ = generate(grounder, MIXED)
    hook.remove()
    lengths = [len(each.ids) + (not each.truncated) for each in out]
    assert widths == [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.fixture
def fed():
    """A counter of the tokens that a grounder's language model runs, padding included."""

    @dataclass
    class Count:
        passes: list[tuple[int, int]] = field(default_factory=list)

        def watch(self, grounder):
            def note(_, __, given):
                self.passes.append(tuple(given["inputs_embeds"].shape[:2]))

            grounder.model.llava.model.language_model.register_forward_pre_hook(note, with_kwargs=True)

        @property
        def tokens(self):
            return sum(rows * length for rows, length in self.passes)

    return Count()


def test_an_answer_costs_prompt_plus_new_tokens(tiny, fed):
    grounder = talker(tiny)
    fed.watch(grounder)
    images, prompts = ready(grounder, [(0, PROMPTS[1], 0)])
    (out,) = complete(grounder.model, grounder.processor.encoder, images, prompts, OPTIONS)
    prefix = len(grounder.processor.encoder.prefix().ids)
    assert fed.tokens == prefix + len(prompts[0].ids) + len(out.ids) - out.truncated


def test_prefix_of_an_image_runs_once_for_all_its_prompts(tiny, fed, monkeypatch):
    grounder = talker(tiny)
    fed.watch(grounder)
    encoded = []
    original = grounder.model.bridge.encode
    monkeypatch.setattr(grounder.model.bridge, "encode", lambda pixels: encoded.append(len(pixels)) or original(pixels))
    image = picture(0)
    grounder.ask_many([(image, prompt, ()) for prompt in PROMPTS])
    assert encoded == [1]
    encoder = grounder.processor.encoder
    longest = max(len(encoder.prompt([user_turn(prompt, ())], ()).ids) for prompt in PROMPTS)
    assert fed.passes[:2] == [(1, len(encoder.prefix().ids)), (len(PROMPTS), longest)]
    assert all(length == 1 for _, length in fed.passes[2:])
    grounder.ask(image, "once more")
    assert encoded == [1]
    grounder.ask_many([(image, "a", ()), (picture(1), "b", ()), (image, "c", ())])
    assert encoded == [1, 2]


def test_no_prompts_no_answers(tiny):
    grounder = talker(tiny)
    assert grounder.ask_many([]) == [] and grounder.predict([]) == []


@pytest.mark.parametrize("prompts", [("hi", "Where is it?", "and there?")])
def test_chat_reuses_its_cache_and_equals_a_fresh_run(plain, fed, prompts):
    grounder = plain  # what is read back anew is the box of the mask, not where the state pointed
    chat = grounder.chat(picture(0))
    first = chat.ask(prompts[0])
    fed.watch(grounder)
    for prompt in prompts[1:]:
        region = Region(chat.pixels.shape[:2], box=(2, 2, 20, 20))
        answer = chat.ask(prompt, [region])
        spent = fed.tokens
        (fresh,) = grounder.answer(
            [chat.pixels], [Prepared(0, tuple(chat.turns[:-1]), tuple(chat.regions), ())], OPTIONS
        )
        assert answer.text == fresh.text and [p.span for p in answer.phrases] == [p.span for p in fresh.phrases]
        for mine, theirs in zip(answer.phrases, fresh.phrases, strict=True):
            for one, two in zip(mine.instances, theirs.instances, strict=True):
                assert (one.mask is None) == (two.mask is None)
                if one.mask is not None:
                    assert (one.mask == two.mask).mean() > 0.999
        assert spent < fed.tokens - spent  # the fresh run ran the image again
        fed.passes.clear()
    assert len(chat.answers) == 3 and chat.answers[0] is first


def test_chat_that_fails_is_as_before(tiny):
    chat = talker(tiny).chat(picture(0))
    chat.ask("hi")
    before = (list(chat.turns), list(chat.regions))
    with pytest.raises(ValueError, match="the prompt is empty"):
        chat.ask(" ")
    with pytest.raises(ValueError, match="region 0 is for an image of 10x9 px"):
        chat.ask("what?", [Region((9, 10), box=(0, 0, 5, 5))])
    assert (chat.turns, chat.regions) == before


def test_reused_cache_holds_what_its_ids_say(tiny):
    grounder = talker(tiny)
    images, prompts = ready(grounder, [(0, "hi", 0)])
    cache = PrefixCache()
    (out,) = complete(grounder.model, grounder.processor.encoder, images, prompts, OPTIONS, cache)
    assert cache.cache is not None and cache.cache.get_seq_length() == len(cache.ids)
    assert cache.ids[-len(out.ids) + out.truncated :] == out.ids[: len(out.ids) - out.truncated]


# Where an answer ends


def test_whatever_is_cut_says_so(tiny):
    out, _ = generate(talker(tiny), MIXED)
    assert any(each.truncated for each in out) and not all(each.truncated for each in out)
    for each in out:
        assert each.truncated == (len(each.ids) == OPTIONS.max_new_tokens)
        assert len(each.logprobs) == len(each.ids) and max(each.logprobs, default=0) <= 0


def test_an_answer_ends_where_the_context_does(grounder):
    """Rows whose question is longer end earlier, each with what it would have said, and with all its states."""
    options = GenerationOptions(max_new_tokens=24, grammar=False)
    images, prompts = ready(grounder, MIXED[:6])
    encoder, language = grounder.processor.encoder, grounder.model.llava.model.language_model
    whole = complete(grounder.model, encoder, images, prompts, options)
    assert not any(each.full for each in whole)
    language.config.max_position_embeddings = len(encoder.prefix().ids) + 8 + max(len(each.ids) for each in prompts)
    short = complete(grounder.model, encoder, images, prompts, options)
    room = [language.config.max_position_embeddings - len(encoder.prefix().ids) - len(each.ids) for each in prompts]
    assert min(room) == 8 and len(set(room)) > 2
    for before, after, limit in zip(whole, short, room, strict=True):
        cut = min(len(before.ids), limit)
        assert after.ids == before.ids[:cut] and len(after.logprobs) == cut
        assert after.full == (len(before.ids) >= limit and limit < 24)
        assert after.truncated == (after.full or before.truncated)
        num_states = after.ids.count(encoder.ids.seg)
        assert len(after.states) == num_states
        for state, wanted in zip(after.states, before.states, strict=False):
            assert torch.allclose(state, wanted, atol=1e-4)
    assert any(each.full for each in short)


# Sampling


def test_sampling_is_deterministic_by_seed(tiny):
    grounder = talker(tiny)
    runs = [
        [
            each.ids
            for each in generate(grounder, MIXED[:4], GenerationOptions(max_new_tokens=16, temperature=1, seed=s))[0]
        ]
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_top_p_keeps_the_smallest_set_that_reaches_it(tiny):
    grounder = talker(tiny)
    images, prompts = ready(grounder, [(0, "hi", 0)])
    for top_p, kept in ((0.5, {0}), (0.7, {0, 1}), (1.0, {0, 1, 2})):
        run = Run(
            grounder.model,
            grounder.processor.encoder,
            images,
            prompts,
            GenerationOptions(temperature=1, top_p=top_p),
        )
        logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
        assert {int(run.draw(logits)) for _ in range(200)} == kept


def test_low_temperature_is_greedy(tiny):
    grounder = talker(tiny)
    greedy, _ = generate(grounder, MIXED[:4])
    cold, _ = generate(grounder, MIXED[:4], GenerationOptions(max_new_tokens=24, temperature=1e-4))
    assert [each.ids for each in greedy] == [each.ids for each in cold]


def test_reserved_and_padded_rows_are_never_said(tiny):
    grounder = talker(tiny)
    encoder = grounder.processor.encoder
    images, prompts = ready(grounder, [(0, "hi", 0)])
    run = Run(grounder.model, encoder, images, prompts, GenerationOptions(grammar=False))
    grounder.model.llava.lm_head.bias.data[run.banned] = 1000.0
    (out,) = complete(grounder.model, encoder, images, prompts, GenerationOptions(max_new_tokens=16, grammar=False))
    assert not set(out.ids) & set(run.banned.tolist())
