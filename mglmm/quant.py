"""Language models in 8 or 4 bits, through transformers' quantization config; the rest of the model stays as it is.

`int8` keeps weights as int8 with one scale for each output channel (torchao), `int4` is bitsandbytes' NF4. Only the
decoder layers are touched: masks come from SAM, the projections and the states at `[SEG]`, and the head decides between
neighbours, so all of those keep their precision. It saves memory, not time.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from transformers import LlamaConfig

from mglmm.model import Mglmm

Quant = Literal["none", "int8", "int4"]
BACKENDS = {"int8": "torchao", "int4": "bitsandbytes"}
"""What holds weights so; both run on processors and on GPUs."""
INNER = ("vision_tower", "multi_modal_projector")
SMALL = ("bridge", "seg_projection", "region_encoder", "detail", "image_layers", "box_feedback", "llava.lm_head")
KEPT = (*SMALL, *(f"llava.model.{name}" for name in INNER))
"""Modules that are never quantised, by their place in the model."""
NF4_BLOCK = 64
EXTRA = "pip install 'mglmm[quant]'"


def check_quant(kind: str) -> Quant:
    """The kind, if there is such a one.

    Raises:
        ValueError: it is none of `none`, `int8`, `int4`.
    """
    for known in get_args(Quant):
        if kind == known:
            return known
    raise ValueError(f"quant is {kind!r}; choose one of {', '.join(get_args(Quant))}")


def quantization_config(kind: Quant, dtype: torch.dtype = torch.float32) -> Any:
    """What `from_pretrained(quantization_config=...)` takes; None for `none`.

    Args:
        dtype: that products are computed in.

    Raises:
        ValueError: the library for it is not installed.
    """
    if kind == "none":
        return None
    if find_spec(BACKENDS[kind]) is None:
        raise ValueError(f"{kind} weights need {BACKENDS[kind]}, which is not installed: {EXTRA}")
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(KEPT))
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(KEPT),
    )


def check_widths(kind: Quant, language: LlamaConfig, device: str | None) -> None:
    """On processors bitsandbytes multiplies blocks of 64 weights of one row; its own complaint comes with the answer.

    Raises:
        ValueError: rows of this language model are no multiple of a block.
    """
    if kind != "int4" or not str(device or "cpu").startswith("cpu"):
        return
    for name in ("hidden_size", "intermediate_size"):
        if (width := cast(int, getattr(language, name))) % NF4_BLOCK:
            raise ValueError(
                f"int4 weights on a processor need rows of a multiple of {NF4_BLOCK}, this model's {name} is {width}; "
                "use --quant int8"
            )


def weight_bytes(model: Mglmm) -> int:
    """Bytes that the weights take, as they are held now."""
    return sum(tensor_bytes(value) for value in {id(p): p for p in cast(torch.nn.Module, model).parameters()}.values())


def tensor_bytes(value: torch.Tensor) -> int:
    """Bytes of a tensor with what a quantised one keeps beside its numbers (scales)."""
    state = getattr(value, "quant_state", None)
    if state is not None:  # bitsandbytes: packed numbers, and how to unpack them
        beside = [part for part in state.as_dict(packed=True).values() if isinstance(part, torch.Tensor)]
        return value.nbytes + sum(part.nbytes for part in beside)
    if hasattr(value, "__tensor_flatten__"):  # torchao: a tensor made of tensors
        names, _ = cast(Any, value).__tensor_flatten__()
        return sum(tensor_bytes(getattr(value, name)) for name in names)
    return value.nbytes
