"""What stands in a checkpoint's config.json, checked before anything is built from it.

transformers accepts any key and takes its default for a misspelt one (a language model of 7 B parameters, say), and
tells a wrong type as an error of its own; here both become a sentence that names the place.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from mglmm.model_config import MglmmConfig
from sam_bridge.small import SmallConfig

if TYPE_CHECKING:
    SmallSizes = SmallConfig
else:
    SmallSizes = dataclass(SmallConfig, frozen=True, config=ConfigDict(extra="forbid"))
    """`SmallConfig` whose keys and types are checked."""
NEEDED = {
    "llava_config": ("text_config", "vision_config", "image_token_index"),
    "llava_config.text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    "llava_config.vision_config": ("hidden_size",),
    "sam_config": ("vision_config", "prompt_encoder_config", "mask_decoder_config"),
}
"""Keys whose defaults are another model's."""
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "image_size"),
    "image_token_index",
)
CLOSE = 0.85
"""From this likeness on an unknown key is a misspelt one; real configs carry keys of older transformers releases."""


def check_config(config: MglmmConfig) -> None:
    """Refuse a config whose values are of a wrong type, or whose nested parts have misspelt or missing keys.

    Raises:
        ValueError: the first mistake, by its place in config.json.
    """
    for key, kind in inspect.get_annotations(MglmmConfig, eval_str=True).items():
        if key != "model_type":
            check_type(key, getattr(config, key), kind)
    if config.refusal is not None and not (len(config.refusal) == 2 and config.refusal[0] > 0):
        raise ValueError(
            f"refusal is {config.refusal} in config.json; it is a scale above 0 and a bias, or null "
            "(tools/calibrate.py fits them)"
        )
    if not 0 < config.no_target_threshold < 1:
        raise ValueError(
            f"no_target_threshold is {config.no_target_threshold} in config.json; "
            "it is a probability above 0 and below 1"
        )
    if config.region_grid < 1:
        raise ValueError(f"region_grid is {config.region_grid}; a grid has at least 1 cell a side")
    for place, part, kind in parts_of(config):
        check_part(place, part, kind)
    if config.small_config is not None:
        if "side" not in config.small_config:
            raise ValueError("small_config has no 'side'")
        try:
            TypeAdapter(SmallSizes).validate_json(json.dumps(config.small_config), strict=True)
        except ValidationError as error:
            raise ValueError(small_mistake(error.errors()[0])) from None


def check_type(key: str, value: Any, kind: Any) -> None:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{key} is {value!r}: {error.errors()[0]['msg']}") from None


def parts_of(config: MglmmConfig) -> Iterator[tuple[str, Any, type[PreTrainedConfig]]]:
    """(place in config.json, what stands there, what transformers makes of it), inner parts first."""
    nested: list[tuple[str, Any, type[PreTrainedConfig], dict[str, type[PreTrainedConfig]]]] = [
        (
            "llava_config",
            config.llava_config,
            LlavaConfig,
            {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig},
        ),
        (
            "sam_config",
            config.sam_config,
            SamConfig,
            {
                "vision_config": SamVisionConfig,
                "prompt_encoder_config": SamPromptEncoderConfig,
                "mask_decoder_config": SamMaskDecoderConfig,
            },
        ),
    ]
    for name, part, kind, inner in nested:
        if part is None:
            if name == "llava_config":
                raise ValueError("it has no llava_config, the sizes of the language model")
            continue
        check_keys(name, part, kind)
        for key, inner_kind in inner.items():
            if isinstance(part[key], PreTrainedConfig):
                continue
            yield f"{name}.{key}", part[key], inner_kind
        yield name, part, kind


def check_part(place: str, part: Any, kind: type[PreTrainedConfig]) -> None:
    """Keys, sizes, and what transformers itself refuses."""
    check_keys(place, part, kind)
    for key in SIZES:
        if key in part and (not isinstance(part[key], int) or part[key] < 1):
            raise ValueError(f"{place}.{key} is {part[key]!r}, not a whole number from 1")
    try:
        kind(**{key: value for key, value in part.items() if key not in ("model_type", "transformers_version")})
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from None


def check_keys(place: str, part: Any, kind: type[PreTrainedConfig]) -> None:
    """Raise where a needed key is missing, or one is almost that of a known one."""
    if not isinstance(part, Mapping):
        raise ValueError(f"{place} is {part!r}, not an object of keys and values")
    known = sorted({*vars(kind()), *kind().to_dict(), *inspect.get_annotations(kind)})
    for key in part:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=CLOSE)
        if key not in known and near and not str(key).startswith("_"):
            raise ValueError(f"unknown key {key!r} in {place}; did you mean {near[0]!r}?")
    for key in NEEDED.get(place, ()):
        if key not in part:
            raise ValueError(f"{place} has no {key!r}")


def small_mistake(found: Any) -> str:
    """One pydantic error about `small_config` as a sentence."""
    where = ".".join(["small_config", *map(str, found["loc"])])
    if found["type"] == "unexpected_keyword_argument":
        known = list(SmallConfig.__dataclass_fields__)
        near = difflib.get_close_matches(str(found["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {where!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
    if found["type"] == "value_error":
        return f"{where}: {found['msg'].removeprefix('Value error, ')}"
    return f"{where} is {found['input']!r}: {found['msg']}"
