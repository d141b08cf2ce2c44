"""Trainers' wrappers off: prefixes, unmerged LoRA (peft), and DeepSpeed's ZeRO shards through its own converter.

W' = W + alpha / r * B @ A (Hu et al. 2021, arXiv:2106.09685; rank-stabilised: alpha / sqrt(r)).
Layouts: an adapter folder of peft (`adapter_config.json`, `...lora_A.weight`), and the whole state of a wrapped model
that `zero_to_fp32` gives (`base_model.model.*`, `...lora_A.default.weight`, with the untouched weights beside it).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mglmm.importers.keys import Entry, Store, layouts, listed, load_pickle, read_json, reading
from mglmm.importers.plan import Plan

PREFIXES = ("base_model.model.", "module.", "_orig_mod.", "lm.")
"""`lm.` held the language model in LISA v0, whose other parts stood beside it; see `OUTSIDE`."""
OUTSIDE = ("visual_model.", "text_hidden_fcs.")
WRAPPERS = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(?:\.(?!\d+\.)[^.]+)?(?=\.)")
"""What peft puts into the names of layers; the copy that an adapter saves has the adapter's name."""
LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
ADAPTER = "adapter: "
"""Prefix of the keys of adapters in an unwrapped store."""
ZERO = "*mp_rank_*_states.pt"
"""Names of DeepSpeed's shards: `..._model_states.pt` and, one per rank, `..._optim_states.pt`."""
OTHER_HALF = {"model_states.pt": "optim_states.pt", "optim_states.pt": "model_states.pt"}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways of peft to begin adapters that subtract them from the base: W + B A is then not the trained weight."""
PUBLISHED_ALPHA = 16.0  # of LISA, GLaMM and MGLMM, whose weights files do not say it


@dataclass(frozen=True)
class Unwrapped:
    """A store under plain keys; `adapters` are (layer's weight key, key of A, key of B, scale)."""

    store: Store
    adapters: tuple[tuple[str, str, str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> dict[str, Entry]:
        """Everything but the adapters' own matrices."""
        return {key: entry for key, entry in self.store.entries.items() if not key.startswith(ADAPTER)}


def unwrap(store: Store, alpha: float | None = None) -> Unwrapped:
    """Plain keys, and the adapters found.

    Args:
        alpha: of the adapters; by default what adapter_config.json says, else the published 16.

    Raises:
        ValueError: keys fall together, half an adapter is missing, or it is of a kind that cannot be merged.
    """
    entries: dict[str, Entry] = {}
    halves: dict[tuple[str, str], dict[str, str]] = {}
    for key, entry in store.entries.items():
        if ".original_module." in key:  # peft keeps the layer that a saved one replaces
            continue
        plain = without_wrappers(key)
        if found := LORA.fullmatch(plain):
            halves.setdefault((found["layer"], found["adapter"] or ""), {})[found["side"]] = ADAPTER + plain
            plain = ADAPTER + plain
        elif ".lora_" in plain or ".token_adapter." in plain:
            raise ValueError(
                f"{store.path}: {key} is no plain LoRA (DoRA, an embedding's, single tokens', or with a bias); "
                "merge it with peft's merge_and_unload first"
            )
        if plain in entries:
            raise ValueError(f"{store.path}: {key} and another key both mean {plain}; save the model again")
        entries[plain] = entry
    if not halves:
        return Unwrapped(Store(store.path, entries))
    broken = sorted(layer for (layer, _), sides in halves.items() if set(sides) != {"A", "B"})
    if broken:
        raise ValueError(f"{store.path}: half of the adapter of {listed(broken)} is missing; copy the whole checkpoint")
    settings = adapter_settings(store.path)
    notes = ()
    if alpha is None and settings.get("lora_alpha") is None:
        notes = (f"the adapters' alpha is not said; {PUBLISHED_ALPHA:g} was taken, as in the family (--lora-alpha)",)
    adapters = []
    for (layer, _), sides in sorted(halves.items()):
        rank = entries[sides["A"]].shape[0]
        root = rank**0.5 if settings.get("use_rslora") else rank
        scale = alpha if alpha is not None else alpha_of(layer, settings)
        adapters.append((f"{layer}.weight", sides["A"], sides["B"], scale / root))
    return Unwrapped(Store(store.path, entries), tuple(adapters), notes)


def alpha_of(layer: str, settings: Mapping[str, Any]) -> float:
    """peft's `alpha_pattern` goes before `lora_alpha`; its keys are patterns of the end of a layer's name."""
    found = next(
        (value for pattern, value in (settings.get("alpha_pattern") or {}).items()
         if re.fullmatch(rf"(.*\.)?({pattern})", layer)),
        settings.get("lora_alpha"),
    )  # fmt: skip
    return PUBLISHED_ALPHA if found is None else float(found)


def without_wrappers(key: str) -> str:
    """A key without what DDP, torch.compile and peft put around modules."""
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key[len(prefix) :]
    key = WRAPPERS.sub("", key)
    return f"model.{key}" if key.startswith(OUTSIDE) else key


def adapter_settings(path: Path) -> dict[str, Any]:
    """peft's `adapter_config.json` beside the weights; empty without one.

    Raises:
        ValueError: adapters of a kind that is not a plain sum.
    """
    file = (path if path.is_dir() else path.parent) / "adapter_config.json"
    if not file.exists():
        return {}
    settings = read_json(file)
    for key in ("use_dora", "fan_in_fan_out"):
        if settings.get(key):
            raise ValueError(f"{file}: {key} is set; merge these adapters with peft's merge_and_unload first")
    start = str(settings.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGES_BASE):
        raise ValueError(
            f"{file}: init_lora_weights is {start}, which changed the base as well; load the adapters with peft and "
            "merge them there (merge_and_unload), or save them with path_initial_model_for_weight_conversion"
        )
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("bias", "none") != "none":
        raise ValueError(f"{file}: only plain LoRA without bias can be merged; use peft's merge_and_unload first")
    return settings


def base_note(adapter: Path, base: str | Path) -> tuple[str, ...]:
    """What to say where adapters name another base than the one given: sizes alone cannot tell one 7B from another."""
    named = str(adapter_settings(adapter).get("base_model_name_or_path") or "")
    if not named or Path(named).name == Path(base).name:
        return ()
    return (f"the adapters say that they were trained on {named}; the base given is {base}",)


def is_bare(unwrapped: Unwrapped) -> bool:
    """Are there adapters without the weights that they were trained on?"""
    return bool(unwrapped.adapters) and any(layer not in unwrapped.store.entries for layer, *_ in unwrapped.adapters)


def with_adapters(plan: Plan, unwrapped: Unwrapped, names: Mapping[str, str]) -> Plan:
    """The plan with every adapter added to its layer.

    Args:
        names: ours by theirs, for the layers.

    Raises:
        ValueError: a layer is not there, or of another size: the adapters were made for another base.
    """
    takes, entries, wrong = dict(plan.takes), unwrapped.store.entries, []
    for layer, a, b, scale in unwrapped.adapters:
        ours = names.get(layer)
        take = takes.get(ours) if ours is not None else None
        if ours is None or take is None:
            wrong.append(f"{layer} is not in it")
            continue
        made = (entries[b].shape[0], entries[a].shape[1])
        if entries[take.key].shape != made or entries[a].shape[0] != entries[b].shape[1]:
            wrong.append(f"{layer} is {entries[take.key].shape}, the adapter's {made}")
            continue
        takes[ours] = replace(take, adapters=(*take.adapters, (a, b, scale)))
    if wrong:
        raise ValueError(
            f"the adapters were made for another base: {len(wrong)} of {len(unwrapped.adapters)} do not fit "
            f"{unwrapped.store.path} ({listed(wrong, 3)}); give the base they were trained on"
        )
    extra = [key for key in plan.extra if not key.startswith(ADAPTER)]
    return Plan(takes, plan.ignored, extra)


def merged_with(base: Store, adapter: Unwrapped) -> Unwrapped:
    """A base under plain keys with what an adapter's checkpoint holds: its whole tensors replace the base's.

    Raises:
        ValueError: a whole tensor is not in the base, or of another shape.
    """
    wrong = []
    for key, entry in adapter.plain.items():
        if key.endswith("rotary_emb.inv_freq") or ".vision_tower." in key:
            continue
        if key not in base.entries:
            wrong.append(f"{key} is not in it")
        elif base.entries[key].shape != entry.shape:
            wrong.append(f"{key} is {base.entries[key].shape}, the adapter's {entry.shape}")
    if wrong:
        raise ValueError(
            f"{adapter.store.path} was made for another base: {len(wrong)} of its tensors do not fit {base.path} "
            f"({listed(wrong, 3)}); give the base it was trained on"
        )
    return Unwrapped(Store(base.path, {**base.entries, **adapter.store.entries}), adapter.adapters, adapter.notes)


def is_zero(path: Path) -> bool:
    """Does a folder hold DeepSpeed's ZeRO shards, and no whole weights beside them (which trainers write as well)?"""
    return path.is_dir() and any(path.rglob(ZERO)) and not layouts(path, adapters=False)


def zero_folder(path: Path) -> Path:
    """The folder of one step's shards: named by `latest`, else the only one under `path`.

    Raises:
        ValueError: `latest` names a folder without shards, or there are several; or a rank's half is missing (stage 3
            writes two files per rank; a missing optimizer shard of the other stages DeepSpeed counts itself).
    """
    named = path / "latest"
    if named.is_file() and not any(path.glob(ZERO)):
        folder = path / named.read_text(encoding="utf-8").strip()
        if not folder.is_dir() or not any(folder.glob(ZERO)):
            raise ValueError(f"{named} names {folder.name!r}, where there are no shards; copy the whole checkpoint")
    else:
        folders = sorted({file.parent for file in path.rglob(ZERO)})
        if len(folders) > 1:
            raise ValueError(f"{path} holds the shards of several steps ({listed(map(str, folders))}); give one folder")
        folder = folders[0]
    files = {file.name.removeprefix("bf16_") for file in folder.glob(ZERO)}
    if any(name.startswith("zero_pp_rank_") and name.endswith("_model_states.pt") for name in files):
        halves = {name: OTHER_HALF[name[-15:]] for name in files if name[-15:] in OTHER_HALF}
        lost = sorted({name[:-15] + half for name, half in halves.items()} - files)
        if lost:
            raise ValueError(f"{folder} lacks {listed(lost)}; copy the shards of all ranks into one folder")
    return folder


def from_zero(path: Path, scratch: Path) -> Path:
    """Let DeepSpeed put its shards together into `scratch` (float32, on disk); returns the folder to read.

    DeepSpeed unpickles them without care. Here every file is first read with `weights_only`, which knows tensors, plain
    containers and four value classes of DeepSpeed, and its converter then runs under the same rule.

    Raises:
        ValueError: DeepSpeed is not installed, a shard holds code or is damaged, or shards are missing.
    """
    folder = zero_folder(path)
    try:
        from deepspeed.runtime.fp16.loss_scaler import (  # pyright: ignore[reportMissingImports]
            DynamicLossScaler,
            LossScaler,
        )
        from deepspeed.runtime.zero.config import ZeroStageEnum  # pyright: ignore[reportMissingImports]
        from deepspeed.utils.tensor_fragment import fragment_address  # pyright: ignore[reportMissingImports]
        from deepspeed.utils.zero_to_fp32 import (  # pyright: ignore[reportMissingImports]
            convert_zero_checkpoint_to_fp32_state_dict,
        )
    except ImportError:
        raise ValueError(
            f"{path} holds DeepSpeed ZeRO shards, which only DeepSpeed's own converter reads: pip install deepspeed, "
            "or run the zero_to_fp32.py that lies beside them and give its output"
        ) from None
    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        for file in sorted(folder.glob(ZERO)):
            with reading(file):
                load_pickle(file)
        try:
            with only_weights(), quiet():
                convert_zero_checkpoint_to_fp32_state_dict(str(folder.parent), str(scratch), tag=folder.name)
        except Exception as error:
            raise ValueError(
                f"DeepSpeed cannot put the shards of {folder} together: {str(error).partition('. ')[0]}; "
                "copy the shards of all ranks into one folder"
            ) from error
    return scratch


@contextlib.contextmanager
def only_weights() -> Iterator[None]:
    """`torch.load` reads tensors only, even where the caller asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what a converter prints; what it raises gets through."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
