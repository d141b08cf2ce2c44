"""Low-rank adapters on the language model (peft), and the rows of the markers' tokens beside them.

With adapters the language model's own weights stay frozen, except the rows of the markers. What is saved as a
checkpoint holds the adapters merged into the weights, so that it loads like any other; the run's state keeps the
adapters apart, and takes the weights under them from the model that the recipe starts from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from mglmm.config import LoraConfig
from mglmm.model import Mglmm

MARK = "lora_"
BASE = ".base_layer"


def add_lora(model: Mglmm, config: LoraConfig, rows: Iterable[int]) -> None:
    """Put adapters into the language model, freeze the rest of it, and let only `rows` of its embeddings train.

    Raises:
        ValueError: no layer of the language model is called as `config.targets` say.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    language = model.llava.model.language_model
    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    try:
        inject_adapter_in_model(settings, language)
    except ValueError as error:
        raise ValueError(f"lora.targets is {list(config.targets)}: {error}") from None
    for name, parameter in language.named_parameters():
        parameter.requires_grad_(MARK in name)
    for weight in row_weights(model).values():
        keep = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
        keep[[row for row in rows if row < len(weight)]] = 1  # an imported vocabulary lacks some markers' rows
        weight.requires_grad_(True)  # a hook needs it; the stage decides later
        weight.register_hook(lambda grad, keep=keep: grad * keep.to(grad.device))


def row_weights(model: Mglmm) -> dict[str, nn.Parameter]:
    """The token embedding and, where it is apart, the output head; named so that they are not decayed."""
    embedding = cast(nn.Parameter, cast(nn.Embedding, model.get_input_embeddings()).weight)
    head = cast(nn.Parameter, model.llava.lm_head.weight)
    return {"embed_tokens": embedding} if head is embedding else {"embed_tokens": embedding, "embed_head": head}


def split_lora(model: Mglmm, groups: dict[str, dict[str, nn.Parameter]]) -> dict[str, dict[str, nn.Parameter]]:
    """Groups with `lora` and `token_rows` in the place of `language_model`."""
    adapters = {key: value for key, value in groups["language_model"].items() if MARK in key}
    others = {name: members for name, members in groups.items() if name != "language_model"}
    return {**others, "lora": adapters, "token_rows": row_weights(model)}


def adapters_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone."""
    return {key: value for key, value in model.state_dict().items() if MARK in key}


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that hold adapters (peft's `LoraLayer`), by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model without adapters whose weights hold what the adapters add."""
    state = {key: value for key, value in model.state_dict().items() if MARK not in key}
    for name, layer in adapted(model):
        weight = layer.base_layer.weight.detach()
        state[f"{name}{BASE}.weight"] = sum(
            (layer.get_delta_weight(adapter).detach() for adapter in layer.active_adapters), start=weight
        )
    return {key.replace(BASE, ""): value for key, value in state.items()}


def load_beside(model: nn.Module, plain: dict[str, Tensor], adapters: dict[str, Tensor]) -> None:
    """Take up a merged state and its adapters; weights under adapters stay as they are, all others are from `plain`.

    Raises:
        ValueError: what the adapters change is no longer what they were trained on.
    """
    own = model.state_dict()
    model.load_state_dict({**own, **{key: plain[key] for key in own if key in plain}, **adapters})
    merged = merged_state(model)
    for name, _ in adapted(model):
        key = f"{name}.weight"
        if not torch.allclose(merged[key].float(), plain[key].float(), rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"the model that this run began with is another one now ({key} differs under its adapters); "
                "put back the weights that `model` named then, or begin another run"
            )
