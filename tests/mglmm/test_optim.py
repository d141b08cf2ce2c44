"""Optimizers and rates: Muon is torch's, takes matrices alone, and rates rise and fall as the stage says."""

import pytest
import torch
from torch import nn

from mglmm.config import StageConfig, parse
from mglmm.train.muon import Muon
from mglmm.train.optim import build_optimizers, schedule, set_rates

STAGE = {
    "name": "words",
    "max_steps": 3,
    "optim": "muon",
    "warmup_steps": 1,
    "sources": {"world": {"type": "world", "size": 64, "turns": 3}},
}


def test_muon_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 24), (16, 40), (40, 16)]
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in mine]
    ours = Muon([{"params": mine, "weight_decay": 0.1}], lr=0.02)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [parameter.detach().clone() for parameter in mine]
    for _ in range(3):
        for one, two in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        ours.step()
        torchs.step()
    for one, two, start in zip(mine, theirs, before, strict=True):
        moved = (two - start).norm()
        assert (one - two).norm() < 0.02 * moved  # torch's rounds to bfloat16
    with pytest.raises(ValueError, match=r"Muon takes weights of two axes, not of \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_muon_takes_matrices_only(tiny):
    stage = parse(StageConfig, {**STAGE, "train": {"language_model": 1.0, "mask_decoder": 0.5}}, "test")
    muon, adam = build_optimizers(tiny[0].parameter_groups(), stage)
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    embedding = tiny[0].get_input_embeddings().weight
    assert any(embedding is p for group in adam.param_groups for p in group["params"] if group["weight_decay"] == 0)
    factor = set_rates([muon, adam], 0, stage)
    assert factor == 1.0
    assert {group["lr"] for group in adam.param_groups} == {1e-3, 0.5e-3}


def test_rates_warm_up_and_come_down():
    stage = parse(StageConfig, {**STAGE, "max_steps": 100, "warmup_steps": 10, "lr_end": 0.1}, "test")
    rates = [schedule(step, stage) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
