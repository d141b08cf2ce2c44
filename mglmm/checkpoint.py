"""Saving and loading: whole folders, replaced in one step, checked key by key.

A checkpoint is a folder in Hugging Face's layout (`config.json`, `model.safetensors`, the processor's files). A run
keeps its state beside it (`state.pt`, loaded with `weights_only=True`). Nothing is half written, see `mglmm.folders`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from mglmm.config_check import check_config
from mglmm.folders import checkpoint_folder, replaced_folder
from mglmm.model import Mglmm
from mglmm.model_config import MglmmConfig
from mglmm.processor import MglmmProcessor
from mglmm.quant import Quant, check_widths, quantization_config
from mglmm.tokenizer import tokenizer_hash

MAX_LISTED = 8
HUB_SECONDS = 5


def save_checkpoint(folder: str | Path, model: Mglmm, processor: MglmmProcessor, half: bool = False) -> None:
    """Write model and processor to `folder`, replacing it in one step; `half` stores float16."""
    with replaced_folder(Path(folder)) as fresh:
        write_checkpoint(fresh, model, processor, half)


def write_checkpoint(
    folder: Path,
    model: Mglmm,
    processor: MglmmProcessor,
    half: bool = False,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Fill `folder`; `state` stands for the model's own weights (merged adapters)."""
    state = dict(model.state_dict() if state is None else state)
    if half:
        halved: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one
        for key, value in state.items():
            if value.is_floating_point():
                state[key] = halved.setdefault((value.data_ptr(), value.shape), value.half())
    try:
        model.save_pretrained(folder, state_dict=state)
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # how safetensors reports input and output errors
            raise OSError(str(error)) from error
        raise
    processor.save_pretrained(folder)


def load_checkpoint(
    path: str | Path = "bundled",
    dtype: torch.dtype = torch.float32,
    quant: Quant = "none",
    device: str | None = None,
) -> tuple[Mglmm, MglmmProcessor]:
    """Model (in eval mode) and processor from a folder or hub name; `bundled` is the one in the package.

    Args:
        quant: bits that the language model's weights are held in; see `mglmm.quant`.
        device: where quantised weights are put while they are read; the processor by default.

    Raises:
        ValueError: the folder is no checkpoint of ours, of another version, or its keys do not match (they are listed).
    """
    folder = checkpoint_folder(path)
    if folder is not None:
        check_folder(folder)
    else:
        check_reachable(str(path))
    where = str(folder or path)
    try:
        config = MglmmConfig.from_pretrained(where)
    except (ValueError, TypeError, AttributeError) as error:  # a dtype that torch has not is an AttributeError
        raise ValueError(f"{where}: {error}") from None
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; put back the config.json that was saved with the weights") from None
    try:
        processor = MglmmProcessor.from_pretrained(where)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where}: its tokenizer cannot be used ({error}); copy the whole folder again") from error
    config = processor.config
    if config.tokenizer_hash and config.tokenizer_hash != tokenizer_hash(processor.tokenizer):
        raise ValueError(
            f"{where}: the tokenizer beside the weights is not the one they were trained with "
            f"(hash {tokenizer_hash(processor.tokenizer)}, expected {config.tokenizer_hash}); restore its files"
        )
    check_widths(quant, config.language(), device)
    try:
        reduced = {} if quant == "none" else {"quantization_config": quantization_config(quant, dtype)}
        reduced |= {"device_map": {"": device}} if device and reduced else {}
        loaded = Mglmm.from_pretrained(
            where, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **reduced
        )
        model, info = cast(tuple[Mglmm, dict[str, Any]], loaded)
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{where}: the weights file is damaged or cut short ({error}); copy it again") from None
        raise
    wrong = [f"missing {key}" for key in sorted(info["missing_keys"])]
    wrong += [f"extra {key}" for key in sorted(info["unexpected_keys"])]
    wrong += [
        f"{key}: {tuple(have)} in the file, {tuple(want)} in the model"
        for key, have, want in sorted(info["mismatched_keys"])
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
        raise ValueError(
            f"{where}: {len(wrong)} keys do not fit the model that config.json describes: "
            f"{'; '.join(wrong[:MAX_LISTED])}{more}; put back the config.json that was saved with these weights, "
            "or use the mglmm release that wrote them"
        )
    return model.eval(), processor


def check_reachable(name: str) -> None:
    """Ask the hub once whether it has a checkpoint: a mistyped folder looks like a hub name, and transformers would
    try for minutes where there is no network.

    Raises:
        ValueError: it is neither in the hub's cache nor on the hub.
    """
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        answer = get_session().head(hf_hub_url(name, "config.json"), headers=build_hf_headers(), timeout=HUB_SECONDS)
        problem = f"the hub answers {answer.status_code}" if answer.status_code >= 400 else ""
    except Exception as error:  # no network, offline mode, or a name that is none: of several libraries' kinds
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    if problem:
        raise ValueError(
            f"no checkpoint at {name}, neither a folder nor reachable on the hub ({problem}); "
            "give a folder, a hub name (owner/name) or bundled"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError where a folder is no whole checkpoint of ours, before anything of it is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no config.json; a checkpoint is a folder written by mglmm train or save"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error}); copy it again") from None
    found = config.get("model_type") if isinstance(config, dict) else config
    if found != MglmmConfig.model_type:
        raise ValueError(
            f"{folder} is a checkpoint of {found!r}, not of {MglmmConfig.model_type!r}; give one of ours, or "
            f"make a published one ours first: mglmm convert {folder} OUT"
        )
    for patterns in (("*.safetensors",), ("tokenizer.json", "tokenizer.model")):
        if not any(file for pattern in patterns for file in folder.glob(pattern)):
            raise ValueError(f"{folder} holds no {' or '.join(patterns)}; copy the whole folder again")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a run's `state.pt`.

    Raises:
        OSError: it could not be written; torch reports a full disk as an error of its own zip writer.
    """
    try:
        torch.save(state, path)
    except RuntimeError as error:
        raise OSError(f"{path.name} could not be written whole ({error})") from error


def load_state(path: Path) -> dict[str, Any]:
    """A run's `state.pt`: tensors and plain values only.

    Raises:
        ValueError: the file is missing, damaged, or holds code.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a run's state ({type(error).__name__}); delete the run or restore it"
        ) from None
