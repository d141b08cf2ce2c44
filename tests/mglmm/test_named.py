"""Names in questions: where the world says they are, the tokens they end at, and the loss half-way up."""

import pytest
import torch

from mglmm.build import ModelConfig, build
from mglmm.config import LossConfig, StageConfig, parse
from mglmm.train.data import GroundingData
from mglmm.train.grounding import GroundingTraining
from mglmm.train.named import NamedHead, named_loss
from mglmm_data.sample import Grounding, Mention, Region, Turn
from mglmm_data.world.source import World

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
    for _, words, label in found:  # "the large red ball" and "the second ball from the left" are a "large red ball"
        said = set(words.removeprefix("the ").split()) - {"second", "third", "fourth", "from", "the", "left", "right"}
        assert {word for word in said if not word.endswith("most")} <= set(label.split())


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


def test_a_name_ends_at_its_last_token(tiny):
    model, processor = tiny
    sample = World(0, tasks=ASKED, turns=10, named=True).sample(0)
    batch, _ = processor.batch([sample])
    known = names(sample)
    assert len(batch.named) == len(batch.named_boxes) == len(known) > 0
    for (row, column), box, (_, words, label) in zip(batch.named, batch.named_boxes, known, strict=True):
        read = processor.tokenizer.decode(batch.input_ids[row, : column + 1])
        assert read.rstrip("?.! ").endswith(words)
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


def test_nothing_named_is_no_loss(tiny):
    _, processor = tiny
    batch, _ = processor.batch([World(0, tasks={"panoptic": 1}, turns=1).sample(0)])
    head = NamedHead(8)
    loss, distance = named_loss(head(torch.zeros(0, 8)), batch)
    assert loss == 0 and distance == 0 and loss.requires_grad
