"""bfloat16 where the device has units for it, and its values where it has not."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def has_bf16(cuda: bool) -> bool:
    """Whether bfloat16 is worth asking for: on a GPU, and on processors with AVX-512 BF16 or AMX.

    Others emulate it, and a step takes ten times as long (measured: AMD EPYC of the third generation).
    """
    return cuda or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class ThroughFloat32(TorchFunctionMode):
    """Convolutions and linear layers of bfloat16 tensors sum in float32 and round once, as bfloat16 units do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.conv2d, F.linear) or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        wide = [each.float() if isinstance(each, Tensor) else each for each in args]
        return func(*wide, **kwargs).bfloat16()


def bfloat16_arithmetic(cuda: bool) -> contextlib.AbstractContextManager[Any]:
    """What bfloat16 layers run under: nothing on a device with units for it, else `ThroughFloat32`.

    GLaMM's region encoder, which computes in bfloat16 whatever the model's dtype, takes 0.4 s so where emulation
    takes 31 s (one region, the published grid, 64 channels, one thread).
    """
    return contextlib.nullcontext() if has_bf16(cuda) else ThroughFloat32()
