"""What things are among their kind: targets from a world sample, the head's loss, and how far image tokens see."""

import pytest
import torch

from mglmm.build import ModelConfig, build
from mglmm.config import LossConfig, StageConfig, parse
from mglmm.detail import ImageLayers
from mglmm.train.data import GroundingData
from mglmm.train.grounding import GroundingTraining
from mglmm.train.kin import ASKED, SIZES, UNKNOWN, KinHead, kin_loss, kin_of, kin_right
from mglmm_data.sample import Conversation, Region, Sample, Turn
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import World

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
def test_targets_say_what_the_scene_says(seed):
    sample = World(seed, tasks={"panoptic": 1}, turns=1).sample(0)
    scene = make_scene(seed, 192, held_out="avoid")
    target = kin_of([sample], 96)[0]
    at = (torch.arange(96) * 2 + 1).numpy()
    kinds = [thing.category for thing in scene.things]
    known = torch.zeros(96, 96, dtype=torch.bool)
    for index, thing in enumerate(scene.things):
        inside = torch.from_numpy(scene.thing_mask(index)[at][:, at].copy())
        known |= inside
        size, count, place, _ = target[inside].unique(dim=0).squeeze(0).tolist()
        assert SIZES[size] == thing.size
        assert count + 1 == kinds.count(thing.category)
        assert place == kinds[:index].count(thing.category)  # things stand from left to right
    assert ((target != UNKNOWN).all(-1) == known).all()


def test_number_and_place_are_unknown_where_not_everything_is_spoken_of():
    sample = World(0, tasks={"referring": 1}, turns=1).sample(0)
    target = kin_of([sample], 48)[0]
    assert (target[..., 0] != UNKNOWN).any() and (target[..., 1:3] == UNKNOWN).all()


def test_only_the_world_has_kin():
    turn = Conversation((Turn("user", "What?"), Turn("assistant", "A wug.")), task="panoptic")
    wug = Sample(
        torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(), (Region((8, 8), box=(1, 1, 5, 5), label="red wug"),), (turn,)
    )
    with pytest.raises(ValueError, match="region label 'red wug' is not of the world, .*; set losses.kin: 0"):
        kin_of([wug], 4)


def test_every_thing_weighs_alike_and_nothing_known_is_no_loss():
    target = torch.full((1, 4, 4, 4), UNKNOWN)
    target[0, :3, :, 0], target[0, :3, :, 3] = 1, 0  # twelve cells of a thing
    target[0, 3, 0, 0], target[0, 3, 0, 3] = 2, 1  # one cell of another
    logits = torch.zeros(1, 4, 4, sum(ASKED.values()), requires_grad=True)
    kin_loss(logits, target).backward()
    assert logits.grad is not None
    pull = logits.grad.abs().sum(-1)[0]
    assert pull[:3].sum() == pytest.approx(pull[3, 0]) and (pull[3, 1:] == 0).all()
    assert kin_right(logits, target) == 0
    nothing = torch.full_like(target, UNKNOWN)
    assert kin_loss(logits, nothing) == 0 and kin_right(logits, nothing) == 0


def test_image_tokens_see_each_other_in_both_directions():
    torch.manual_seed(0)
    layers = ImageLayers(32, 1)
    tokens = torch.randn(1, 9, 32)
    assert torch.equal(layers(tokens), tokens)  # silent at first
    torch.nn.init.normal_(layers.out.weight)
    for moved in (0, 8):
        other = tokens.clone()
        other[0, moved] = torch.randn(32)
        assert ((layers(other) - layers(tokens)).abs().sum(-1) > 1e-6).all()


def test_the_head_teaches_the_layers(tiny_sizes):
    model, processor = build(ModelConfig(**tiny_sizes, image_layers=1))
    layers = model.image_layers
    assert layers is not None
    torch.nn.init.normal_(layers.out.weight)
    stage = {"name": "s", "max_steps": 1, "per_device_train_batch_size": 2, "train": {"projector": 1, "kin": 1}}
    sources = {"world": {"type": "world", "turns": 2, "size": 64, "tasks": {"panoptic": 1}}}
    config = parse(StageConfig, {**stage, "losses": {"kin": 1}, "sources": sources}, "test")
    joint, _ = GroundingData(config, processor, seed=0)(0)
    training = GroundingTraining(model, LossConfig(kin=1.0), kin=KinHead(32))
    losses = training(joint)
    assert 0 <= losses["watch_size"] <= 1
    losses["kin"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.blocks.parameters())


def test_loss_and_head_go_together():
    stage = {"name": "s", "max_steps": 1, "sources": {"w": {"type": "world"}}}
    for wrong in ({"losses": {"kin": 1}}, {"train": {"kin": 1}}):
        with pytest.raises(ValueError, match="losses.kin and the group kin under train"):
            parse(StageConfig, {**stage, **wrong}, "test")
