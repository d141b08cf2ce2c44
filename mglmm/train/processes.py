"""What the processes of a run tell each other beside gradients: losses for the log, and what each had to leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from mglmm.train.data import LeftOut

if TYPE_CHECKING:
    from accelerate import Accelerator


def over_processes(
    accelerator: Accelerator, losses: dict[str, float], left_out: LeftOut, with_problems: bool
) -> tuple[dict[str, float], LeftOut]:
    """A step's losses as means over all processes, and all that was left out; the same on each of them.

    Args:
        losses: of this process, under the same names in all.
        with_problems: whether samples may be left out because they cannot be read (`on_error: count`); only then are
            the reasons sent around.
    """
    count = int(accelerator.num_processes)
    if count == 1:
        return losses, left_out
    own = torch.tensor([*losses.values(), left_out.conversations], dtype=torch.float32, device=accelerator.device)
    sums: list[float] = cast(torch.Tensor, accelerator.reduce(own, "sum")).tolist()
    problems = left_out.problems
    if with_problems:
        from accelerate.utils import gather_object

        problems = tuple(gather_object(list(problems)))
    means = {name: value / count for name, value in zip(losses, sums[:-1], strict=True)}
    return means, LeftOut(round(sums[-1]), problems)
