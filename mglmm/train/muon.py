"""Muon (Jordan et al. 2024), in a precision that the device has.

The rule is that of `torch.optim.Muon` with `match_rms_adamw` (a test holds both side by side), which works in bfloat16
alone: a processor without bfloat16 units takes forty times as long for it as in float32. Under `torch.distributed`
each process orthogonalises its share of the matrices, and all get the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95
RMS = 0.2
"""What the root of the mean square of an update is drawn to: that of AdamW (Moonlight, arXiv:2502.16982)."""


def orthogonalised(matrix_MN: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about: float[M, N] to float32[M, N], by five steps of Newton and Schulz."""
    a, b, c = COEFFICIENTS
    x = matrix_MN.to(torch.bfloat16 if matrix_MN.is_cuda else torch.float32)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).float()


class Muon(Optimizer):
    """For weights of two axes; momentum with Nesterov's look ahead, decoupled weight decay.

    Args:
        params: parameters or groups of them, all float[M, N]; `lr` and `weight_decay` may be a group's own.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes weights of two axes, not of {tuple(parameter.shape)}; use AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        updates = self.updates([p for _, p in trained])
        for (group, parameter), update in zip(trained, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * RMS * max(parameter.shape) ** 0.5)
        return loss

    def updates(self, parameters: list[Tensor]) -> list[Tensor]:
        """What each parameter moves along, orthogonal matrices; advances the momentum."""
        ahead = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            momentum = state["momentum_buffer"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead.append(parameter.grad.lerp(momentum, MOMENTUM))
        rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        own = range(rank, len(ahead), count)
        found = [
            orthogonalised(matrix) if number in own else torch.zeros_like(matrix, dtype=torch.float32)
            for number, matrix in enumerate(ahead)
        ]
        if count > 1 and found:
            flat = torch.cat([matrix.flatten() for matrix in found])
            dist.all_reduce(flat)
            sizes = [matrix.numel() for matrix in found]
            found = [part.view_as(matrix) for part, matrix in zip(flat.split(sizes), found, strict=True)]
        return [matrix.to(parameter.dtype) for matrix, parameter in zip(found, parameters, strict=True)]
