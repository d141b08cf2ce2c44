"""An evaluation in several processes: each asks every n-th batch, and the first puts all counts together, in order.

`torchrun --nproc_per_node 2 tools/eval.py configs/eval/world.yaml` gives the table of one process, intervals included,
to the last digit where each has as many threads: batches hold the same queries, rows of counts stand in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def alone(found: list[Any]) -> list[Any]:
    return found


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and how all of them hear what each has found."""

    rank: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = alone

    @property
    def first(self) -> bool:
        return self.rank == 0

    def asks(self, batch: int) -> bool:
        """Whether the batch of this number is this process's own."""
        return batch % self.count == self.rank


def processes() -> Processes:
    """Those that `torchrun` (or `accelerate launch`) has started, one for each GPU; else this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    # gloo on CUDA machines too: what is gathered are Python objects, once
    state = PartialState(cpu=not torch.cuda.is_available(), backend="gloo")
    return Processes(state.process_index, state.num_processes, gather_object)
