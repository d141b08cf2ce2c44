"""Names in questions: where the world says they are, the tokens they end at, and the loss half-way up."""

import pytest
import torch

from mglmm.build import ModelConfig, build
from mglmm.config import LossConfig, StageConfig, TrainConfig, parse
from mglmm.eval.protocol import query_of
from mglmm.templates import prompt_format
from mglmm.train.data import GroundingData
from mglmm.train.grounding import GroundingTraining, Joint
from mglmm.train.kin import things_of
from mglmm.train.loop import Trainer
from mglmm.train.named import NamedHead
from mglmm_data.sample import Grounding, Mention, Region, Turn
from mglmm_data.world.draft import Exchange, _names
from mglmm_data.world.source import World
from mglmm_data.world.tasks import KINDS
from mglmm_data.world.view import Target

ASKED = {"referring": 0.3, "absent": 0.3, "fine": 0.2, "vqa": 0.2}


def names(sample):
    """(conversation, words, label of the region) of all names in a sample's questions."""
    return [
        (conversation, conversation.turns[0].text[span.start : span.end], sample.regions[span.regions[0]].label)
        for conversation in sample.conversations
        for span in conversation.turns[0].phrases
    ]


def test_questions_name_what_is_there():
    world = World(0, tasks=ASKED, turns=10, named=True)
    found = [name for index in range(40) for name in names(world.sample(index))]
    assert {each.task for each, _, _ in found} == set(ASKED)
    assert {each.kind for each, _, _ in found if each.task == "absent"} >= {"relation"}
    places = {"second", "third", "fourth", "from", "to", "the", "left", "right", "of", "above", "below"}
    for _, words, label in found:  # "the large red ball" and "the second ball from the left" are a "large red ball"
        said = set(words.removeprefix("the ").split()) - places
        assert {word for word in said if not word.endswith("most")} <= set(label.split())


def test_of_things_beside_another_the_utmost_is_named():
    """If anything stands there, it does: it is what a present expression finds, and stands elsewhere if absent."""
    only = {task: dict.fromkeys(KINDS[task], 0.0) | {"relation": 1.0} for task in ("referring", "absent")}
    world = World(0, tasks={"referring": 1, "absent": 1}, kinds=only, turns=10, named=True)
    found = {"referring": 0, "absent": 0}
    for sample in map(world.sample, range(20)):
        for conversation in sample.conversations:
            asked, said = conversation.turns
            if conversation.kind != "relation" or len(asked.phrases) < 2:
                continue
            found[conversation.task] += 1
            if conversation.task == "referring":
                assert said.phrases[0].regions == asked.phrases[0].regions
                continue
            utmost, anchor = (sample.regions[span.regions[0]].bounds for span in asked.phrases)
            assert utmost is not None and anchor is not None
            words = asked.text[asked.phrases[0].start : asked.phrases[0].end].split()
            axis = int("above" in words or "below" in words)
            beyond = utmost[axis] + utmost[axis + 2] - anchor[axis] - anchor[axis + 2]
            assert (-beyond if {"left", "above"} & set(words) else beyond) <= 0
    assert min(found.values()) > 20


def test_nothing_else_of_a_sample_changes():
    plain, named = (World(0, tasks=ASKED, turns=10, named=each) for each in (False, True))
    for index in range(10):
        one, two = plain.sample(index), named.sample(index)
        assert not names(one) and (one.image == two.image).all()
        assert [[turn.text for turn in each.turns] for each in one.conversations] == [
            [turn.text for turn in each.turns] for each in two.conversations
        ]
        assert [each.turns[1].phrases == () for each in one.conversations] == [
            each.turns[1].phrases == () for each in two.conversations
        ]
        # what is named is a thing among its kind, too
        assert {thing.number for thing in things_of(two)} >= {
            span.regions[0] for each in two.conversations for span in each.turns[0].phrases
        }


def test_a_query_does_not_tell_what_a_question_names():
    plain, named = (World(0, tasks=ASKED, turns=10, named=each).sample(0) for each in (False, True))
    assert names(named)
    for one, two in zip(plain.conversations, named.conversations, strict=True):
        query, same = query_of(plain, one), query_of(named, two)
        assert (query.prompt, query.regions, query.mentions) == (same.prompt, same.regions, same.mentions)


def test_a_name_is_no_part_of_a_word():
    question = "Find the red balloon left of the red ball."
    (place, _), *rest = _names(question, Exchange((question,), (), named=(("the red ball", Target(0)),)))
    assert question[slice(*place)] == "the red ball" and place[1] == len(question) - 1 and not rest
    with pytest.raises(ValueError, match="'the dog' is not in"):
        list(_names(question, Exchange((question,), (), named=(("the dog", Target(0)),))))


def test_a_name_ends_at_its_last_token(tiny):
    _, processor = tiny
    sample = World(0, tasks=ASKED, turns=10, named=True).sample(0)
    batch, _ = processor.batch([sample])
    known = names(sample)
    assert len(batch.named) == len(batch.named_boxes) == len(known) > 0
    for (row, column), box, (_, words, label) in zip(batch.named, batch.named_boxes, known, strict=True):
        before, read = (processor.tokenizer.decode(batch.input_ids[row, : column + more]) for more in (0, 1))
        assert read.rstrip("?.! ").endswith(words) and not before.rstrip("?.! ").endswith(words)
        region = next(each for each in sample.regions if each.label == label and each.kind == "mask")
        assert torch.allclose(box * 192, torch.tensor(region.bounds), atol=1e-3)


def test_names_beside_a_given_region(tiny):
    """The piece before the region and the piece behind it are encoded apart."""
    _, processor = tiny
    regions = [Region((8, 8), box=(0, 0, 4, 4)), Region((8, 8), box=(4, 4, 8, 8))]
    text = "Is the red ball left of this region or of the dog?"
    spans = [
        Grounding(text.index(words), text.index(words) + len(words), (1,)) for words in ("the red ball", "the dog")
    ]
    at = text.index("this region")
    tokens = processor.encoder.prompt([Turn("user", text, tuple(spans), (Mention(at, at + 11, 0),))], regions)
    read = [processor.tokenizer.decode(tokens.ids[: place + 1]).rstrip("?") for place, _ in tokens.named]
    assert read[0].endswith("the red ball") and read[1].endswith("the dog") and tokens.given == [0]


def test_each_conversation_in_a_row_of_its_own(tiny):
    _, processor = tiny
    sample = World(0, tasks=ASKED, turns=6, named=True).sample(0)
    (shared, _), (apart, _) = (processor.batch([sample], share_prefix=each) for each in (True, False))
    ids = [each.input_ids[each.named[:, 0], each.named[:, 1]].tolist() for each in (shared, apart)]
    assert ids[0] == ids[1] and torch.equal(shared.named_boxes, apart.named_boxes)
    assert len(set(apart.named[:, 0].tolist())) > 1


def test_a_name_of_several_is_left_out(tiny):
    _, processor = tiny
    regions = [Region((8, 8), box=(0, 0, 4, 4)), Region((8, 8), box=(4, 4, 8, 8))]
    asked = Turn("user", "Are the dogs brown?", (Grounding(4, 12, (0, 1)),))
    assert not processor.encoder.prompt([asked], regions).named


def recipe(**changes):
    stage = {
        "name": "words",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "train": {"language_model": 1, "named": 1},
        "losses": {"named": 1.0},
        "sources": {"world": {"type": "world", "tasks": {"referring": 1}, "turns": 4, "named": True}},
    }
    return parse(StageConfig, {**stage, **changes}, "recipe")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"language_model": 1}}, "losses.named and the group named under train"),
        ({"losses": {}}, "losses.named and the group named under train"),
        ({"sources": {"world": {"type": "world"}}}, "no source names anything; give the world `named: true`"),
    ],
)
def test_loss_head_and_source_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)


def test_a_file_may_name_what_is_asked_about():
    recipe(sources={"mine": {"type": "jsonl", "path": "mine"}, "world": {"type": "world"}})


def test_the_loss_reaches_the_lower_half_of_the_language_model_only(tiny_sizes):
    language = {**tiny_sizes["language"], "num_hidden_layers": 4}
    model, processor = build(ModelConfig(**{**tiny_sizes, "language": language}), seed=0)
    stage = recipe()
    head = NamedHead(model.config.language().hidden_size)
    module = GroundingTraining(model, LossConfig(named=1.0), named=head)
    batch, _ = GroundingData(stage, processor, 0)(0)
    losses = module(batch)
    assert losses["named"] > 0 and losses["watch_named"] > 0
    losses["named"].backward()
    layers = model.llava.model.language_model.layers
    pulled = [any(p.grad is not None and p.grad.any() for p in layer.parameters()) for layer in layers]
    assert pulled == [index < len(layers) // 2 for index in range(len(layers))]
    assert all(p.grad is not None for p in head.parameters())


def test_nothing_named_is_no_loss(tiny_sizes):
    model, processor = build(ModelConfig(**tiny_sizes), seed=0)
    head = NamedHead(model.config.language().hidden_size)
    batch, _ = processor.batch([World(0, tasks={"panoptic": 1}, turns=1).sample(0)])
    losses = GroundingTraining(model, LossConfig(named=1.0), named=head)(Joint(batch))
    assert losses["named"] == 0 and losses["watch_named"] == 0
    losses["named"].backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_legacy_formats_do_not_tell_where_a_name_ends(tiny_sizes, tmp_path):
    model, processor = build(ModelConfig(**tiny_sizes), seed=0)
    recipe_of_all = {
        "model": "bundled",
        "output_dir": str(tmp_path),
        "stages": [recipe().model_dump(mode="json", exclude_defaults=True)],
    }
    trainer = Trainer(parse(TrainConfig, recipe_of_all, "recipe"), "run")
    trainer.processor.form = prompt_format("lisa")
    with pytest.raises(ValueError, match="stage 'words' has losses.named, but the prompt format 'lisa' does not tell"):
        trainer.stage_parts(trainer.config.stages[0])
