"""Optimizers and the schedule: AdamW, or Muon for the matrices of the language side with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mglmm.config import StageConfig
from mglmm.train.muon import Muon

NO_DECAY = ("bias", "norm", "embed", "position", "token")
"""Parameters whose name holds one of these, or which have fewer than two axes, are not decayed."""
LANGUAGE_SIDE = ("language_model", "projector", "seg_projection", "region_encoder", "lora")
"""Groups whose matrices Muon takes; on the small encoder it costs a fifth of the step and gains nothing."""


def check_groups(groups: Mapping[str, Any], stage: StageConfig) -> None:
    """Raise ValueError where a stage trains nothing, or a group that this model does not have."""
    unknown = sorted(set(stage.train) - set(groups))
    if unknown:
        raise ValueError(f"stage {stage.name!r} trains {unknown}, but this model has the groups {sorted(groups)}")
    if not stage.train:
        raise ValueError(f"stage {stage.name!r} trains nothing; name groups under `train`, out of {sorted(groups)}")


def build_optimizers(groups: Mapping[str, Mapping[str, nn.Parameter]], stage: StageConfig) -> list[Optimizer]:
    """One or two optimizers over the groups that `stage.train` names; everything else is frozen here.

    Muon takes two-axis weights of the language side that are no embeddings or heads (Jordan et al. 2024,
    `match_rms_adamw`).

    Args:
        groups: group name -> parameter name -> parameter.
        stage: names the groups that train and the factor on the learning rate of each.

    Raises:
        ValueError: a group is named that this model does not have.
    """
    check_groups(groups, stage)
    for name, members in groups.items():
        for parameter in members.values():
            parameter.requires_grad_(name in stage.train)
    adam: list[dict] = []
    muon: list[dict] = []
    for name, factor in stage.train.items():
        rate = stage.learning_rate * factor
        split: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
        for key, parameter in groups[name].items():
            plain = parameter.ndim < 2 or any(word in key for word in NO_DECAY)
            matrix = name in LANGUAGE_SIDE and parameter.ndim == 2 and not plain and "head" not in key
            split["muon" if stage.optim == "muon" and matrix else "plain" if plain else "decay"].append(parameter)
        if split["muon"]:
            muon.append({"params": split["muon"], "lr": rate, "weight_decay": stage.weight_decay, "base_lr": rate})
        if split["decay"]:
            adam.append({"params": split["decay"], "lr": rate, "weight_decay": stage.weight_decay, "base_lr": rate})
        if split["plain"]:
            adam.append({"params": split["plain"], "lr": rate, "weight_decay": 0.0, "base_lr": rate})
    betas = (stage.adam_beta1, stage.adam_beta2)
    optimizers: list[Optimizer] = []
    if muon:
        optimizers.append(Muon(muon, lr=stage.learning_rate))
    if adam:
        optimizers.append(AdamW(adam, lr=stage.learning_rate, betas=betas, foreach=True))
    if not optimizers:
        raise ValueError(f"stage {stage.name!r} trains nothing; name groups under `train`, out of {sorted(groups)}")
    return optimizers


def schedule(step: int, stage: StageConfig) -> float:
    """Factor on the learning rate at `step`: linear warm-up, then a cosine down to `lr_end`."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.max_steps - stage.warmup_steps)
    return stage.lr_end + (1 - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rates(optimizers: list[Optimizer], step: int, stage: StageConfig) -> float:
    """Write the step's learning rates into the optimizers; returns the factor."""
    factor = schedule(step, stage)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    return factor


def gradient_norm(optimizers: list[Optimizer], limit: float) -> torch.Tensor:
    """Clip the gradients of all trained parameters together to `limit`; returns the norm before."""
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit)
