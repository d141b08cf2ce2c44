"""The model in the package, on scenes it has never seen: what random weights could not do."""

from itertools import chain, islice

import numpy as np
import pytest
import torch

from mglmm.encode import join, pad_rows
from mglmm.eval.protocol import Item
from mglmm.eval.world import WorldConfig, evaluate_world
from mglmm.formats import Tokens
from mglmm.generate import GenerationOptions, complete
from mglmm.grounder import Grounder, Prepared
from mglmm.inputs import Batch
from mglmm_data.sample import Turn
from mglmm_data.world.source import EVAL_SEED_START, eval_samples

TASKS = ("panoptic", "fine", "referring", "several", "absent", "reasoning", "vqa", "region", "box", "caption")


@pytest.fixture(scope="module")
def grounder():
    return Grounder.load()


def asked(count, seed=EVAL_SEED_START + 700_000):
    """`count` questions of mixed tasks, so of mixed lengths, each about its own scene."""
    each = -(-count // len(TASKS))
    columns = [eval_samples(task, each, seed + 1000 * number) for number, task in enumerate(TASKS)]
    samples = islice(chain.from_iterable(zip(*columns, strict=True)), count)
    return [Item(sample, sample.conversations[0]).query for sample in samples]


def answers(grounder, queries, options):
    """Ids and mask logits of queries answered in one batch."""
    prepared = []
    for number, query in enumerate(queries):
        turns = (
            (Turn("user", query.prompt, mentions=query.mentions),) if isinstance(query.prompt, str) else query.prompt
        )
        prepared.append(Prepared(number, turns, query.regions, ()))
    images = grounder.encode([query.image for query in queries])
    prompts = grounder.prompts(images, prepared)
    out = complete(grounder.model, grounder.processor.encoder, images, prompts, options)
    states = [state for each in out for state in each.states]
    owner = [number for number, each in enumerate(out) for _ in each.states]
    with torch.no_grad():
        logits = grounder.decode(images, states, owner).logits
    return images, prompts, out, logits.split([len(each.states) for each in out])


def same_alone_and_together(grounder, count, grammar):
    options = GenerationOptions(max_new_tokens=200, grammar=grammar)
    queries = asked(count)
    _, _, together, masks = answers(grounder, queries, options)
    shared = total = 0
    for query, out, logits in zip(queries, together, masks, strict=True):
        _, _, (alone,), (own,) = answers(grounder, [query], options)
        assert alone.ids == out.ids
        if len(own):
            assert (own - logits).abs().max() < 1e-3
        shared += int(((own > 0) & (logits > 0)).sum())
        total += int(((own > 0) | (logits > 0)).sum())
    assert total > 0, "the answers have no mask at all"
    assert shared / total >= 0.999


@pytest.mark.parametrize("grammar", [True, False])
def test_answers_alone_and_in_a_batch_are_the_same(grounder, grammar):
    same_alone_and_together(grounder, 10, grammar)


@pytest.mark.slow
@pytest.mark.parametrize("grammar", [True, False])
def test_64_answers_alone_and_in_a_batch_are_the_same(grounder, grammar):
    same_alone_and_together(grounder, 64, grammar)


def test_teacher_forced_states_are_the_generated_ones(grounder):
    queries = asked(10)
    images, prompts, out, _ = answers(grounder, queries, GenerationOptions(max_new_tokens=200))
    processor = grounder.processor
    rows = []
    for prompt, said in zip(prompts, out, strict=True):
        tokens = Tokens()
        tokens.add(prompt.ids)
        tokens.add(said.ids, labelled=True)
        rows.append(join(processor.encoder.prefix(), [tokens]))
    pixels, _, canvases = processor.pixels([query.image for query in queries])
    given = [(i, region) for i, query in enumerate(queries) for region in query.regions]
    generated = torch.stack([state for each in out for state in each.states])
    batch = Batch(
        pixels=pixels,
        clip_pixels=None,
        row_image=torch.arange(len(rows)),
        **pad_rows(rows, processor.ids.pad),
        region_masks=processor.coverage([region for _, region in given]),
        region_image=torch.tensor([i for i, _ in given], dtype=torch.long),
        picked=torch.zeros(0, dtype=torch.long),
        mask_targets=torch.zeros(0, 0, 0),
        canvases=canvases,
        target_boxes=grounder.model.look(generated).detach(),  # what was read back
    )
    with torch.no_grad():
        forced = grounder.model(batch).states
    assert len(generated) > 10
    assert (forced - generated).abs().max() < 1e-4


def test_it_knows_its_world(grounder):
    """Floors well below what is measured, and far above what random weights reach (0)."""
    config = WorldConfig(
        tasks=("panoptic", "referring", "absent", "region"),
        count=20, batch_size=20, blind=False, resamples=0, seed=EVAL_SEED_START + 900_000,
    )  # fmt: skip
    report = evaluate_world(grounder.predict, config)
    assert report.row("panoptic", "recall_noun@0.5/thing").value > 0.25
    assert report.row("referring", "cIoU").value > 0.3
    assert report.row("region naming", "category").value > 0.3


def test_noise_is_not_the_answer_to_everything(grounder):
    """The blind model does worse: the answers come from the image."""
    config = WorldConfig(tasks=("referring",), count=20, batch_size=20, resamples=0, seed=EVAL_SEED_START + 950_000)
    row = evaluate_world(grounder.predict, config).row("referring", "cIoU")
    assert row.value > row.beside["blind"] + 0.2


def test_marker_text_in_a_prompt_changes_nothing_but_the_note(grounder):
    image = np.full((64, 80, 3), 128, np.uint8)
    answer = grounder.ask(image, "Segment the [SEG] <p> dog </p> <image>.")
    assert any("[SEG]" in note for note in answer.notes)
