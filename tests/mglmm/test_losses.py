"""Losses: the published numbers, and what a batch without anything to learn gives."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mglmm.config import LossConfig
from mglmm.inputs import Output
from mglmm.losses import bce_loss, box_loss, dice_loss
from mglmm.train.grounding import TOKEN_POWER, GroundingTraining, mask_losses, quality_loss, token_loss
from mglmm.train.loop import weighted
from sam_bridge.bridge import Masks
from sam_bridge.canvas import Canvas


def test_published_values(shared):
    cases = json.loads(shared("golden", "lisa", "golden.json").read_text())["loss_unit"]
    tensors = load_file(shared("golden", "lisa", "golden.safetensors"))
    assert cases
    for case in cases:
        if not case["num_masks"]:
            continue
        logits, targets = (tensors[f"loss.{case['name']}.{name}"] for name in ("logits", "targets"))
        # Upstream divides the sum over masks by their number plus 1e-8.
        assert dice_loss(logits, targets).mean().item() == pytest.approx(case["dice"], abs=1e-6), case["name"]
        assert bce_loss(logits, targets).mean().item() == pytest.approx(case["bce"], abs=1e-6), case["name"]


def output(**given):
    empty = {
        "token_logits": torch.zeros(0, 5),
        "token_labels": torch.zeros(0, dtype=torch.long),
        "prompts": torch.zeros(0, 4),
        "mask_logits": torch.zeros(0, 8, 8, requires_grad=True),
        "states": torch.zeros(0, 4),
        "answers": torch.zeros(0, dtype=torch.long),
    }
    values = {**empty, **given}
    logits = values.pop("mask_logits")
    scores = values.pop("scores", torch.zeros(len(logits), 1))
    return Output(**values, masks=Masks(logits=logits[:, None], scores=scores))


def test_constant_masks_at_both_sizes():
    """A mask that covers the whole square image, and a logit that is 2 everywhere: the same number at any size."""
    canvas = Canvas.longest_side((50, 50), 16)
    out = output(mask_logits=torch.full((1, 8, 8), 2.0))
    decoder = SimpleNamespace(originals=(), mask_targets=torch.ones(1, 8, 8))
    original = SimpleNamespace(
        originals=(torch.ones(50, 50, dtype=torch.bool),),
        target_regions=((0, 0),),
        picked=torch.tensor([0]),
        canvases=(canvas,),
    )
    inside = torch.tensor(2.0).sigmoid()
    for batch, pixels in ((decoder, 64), (original, 2500)):
        losses = mask_losses(out, batch)  # type: ignore[arg-type]
        assert losses["bce"].item() == pytest.approx(-inside.log().item(), rel=1e-5)
        shared, total = 2 * inside * pixels / 1000, (inside + 1) * pixels / 1000
        assert losses["dice"].item() == pytest.approx(1 - ((shared + 1e-6) / (total + 1e-6)).item(), rel=1e-4)


def test_original_size_takes_each_picked_mask_to_its_own_image():
    canvases = (Canvas.longest_side((20, 40), 16), Canvas.longest_side((30, 30), 16))
    batch = SimpleNamespace(
        originals=(torch.zeros(30, 30, dtype=torch.bool), torch.ones(20, 40, dtype=torch.bool)),
        target_regions=((0, 0), (1, 0), (0, 1)),
        picked=torch.tensor([1, 2]),
        canvases=canvases,
    )
    logits = torch.stack([torch.full((8, 8), -9.0), torch.full((8, 8), 9.0)])
    losses = mask_losses(output(mask_logits=logits), batch)  # type: ignore[arg-type]
    assert losses["bce"].item() == pytest.approx(np.log1p(np.exp(-9)), rel=1e-2)


def test_nothing_to_learn_is_zero_with_a_graph():
    out = output(token_logits=torch.zeros(0, 5, requires_grad=True))
    losses = {"ce": token_loss(out), **mask_losses(out, SimpleNamespace(originals=()))}  # type: ignore[arg-type]
    total = weighted(losses, LossConfig().model_dump(exclude={"mask_size"}))
    assert total.item() == 0
    total.backward()
    assert out.masks.logits.grad_fn is not None


def test_token_loss_is_the_mean_over_labels():
    logits = torch.randn(7, 5)
    labels = torch.arange(7) % 5
    expected = -logits.log_softmax(-1)[torch.arange(7), labels].mean()
    assert token_loss(output(token_logits=logits, token_labels=labels)).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_weights_are_the_published_ones_and_watched_values_stay_out():
    losses = {name: torch.tensor(1.0) for name in ("ce", "bce", "dice", "watch_iou")}
    assert weighted(losses, LossConfig().model_dump(exclude={"mask_size"})).item() == pytest.approx(1 + 2 + 0.5)
    halved = LossConfig(ce=0.5, bce=0.0)
    assert weighted(losses, halved.model_dump(exclude={"mask_size"})).item() == pytest.approx(0.5 + 0.5)


def test_distillation_needs_its_teacher(tiny):
    with pytest.raises(ValueError, match="need the small backbone and its heads"):
        GroundingTraining(tiny[0], LossConfig(distill=1.0))


def test_box_loss_is_zero_on_the_box_itself_and_grows_with_distance():
    box = torch.tensor([[0.2, 0.2, 0.4, 0.5]])
    assert box_loss(box, box).item() == pytest.approx(0, abs=1e-6)
    near, far = (box_loss(box + shift, box).item() for shift in (0.05, 0.3))
    assert 0 < near < far
    half = torch.tensor([[0.2, 0.2, 0.4, 0.35]])  # half of it: IoU 0.5, the hull is the box, L1 0.15 / 4
    assert box_loss(half, box).item() == pytest.approx(4 * 0.15 / 4 + 0.5 * 0.5, rel=1e-5)


def test_quality_is_judged_against_the_mask_as_it_is():
    target = torch.zeros(1, 8, 8)
    target[:, :4] = 1
    logits = torch.where(torch.arange(8)[:, None] < 2, 5.0, -5.0).expand(1, 8, 8)  # half of the target: IoU 0.5
    out = output(mask_logits=logits, scores=torch.tensor([[0.8]]))
    batch = SimpleNamespace(originals=(), mask_targets=target)
    assert quality_loss(out, batch).item() == pytest.approx(0.09, rel=1e-5)  # type: ignore[arg-type]


def test_a_short_answer_is_not_drowned_by_a_long_one():
    """One answer of four tokens and one of one, whose losses are known."""
    answers, labels = torch.tensor([0, 0, 0, 0, 1]), torch.zeros(5, dtype=torch.long)
    logits = torch.tensor([[2.0, 0.0]] * 4 + [[0.0, 2.0]])
    long, short = (-torch.tensor([2.0, -2.0]).sigmoid().log()).tolist()
    out = output(token_logits=logits, token_labels=labels, answers=answers)
    for weight, expected in (
        ("token", 0.8 * long + 0.2 * short),
        ("square", (2 * long + short) / 3),
        ("answer", (long + short) / 2),
    ):
        assert token_loss(out, TOKEN_POWER[weight]).item() == pytest.approx(expected, rel=1e-5), weight
