"""A published checkpoint to one of ours, streamed: at any time only one output shard is in memory.

keys of the files ──plan──▶ ours, ignored (with the reason), extra ──check against the model on the meta device──▶ write
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mglmm.importers.families import Family
from mglmm.importers.keys import Store, described
from mglmm.importers.plan import Plan, Take
from mglmm.model import Mglmm
from mglmm.model_config import MglmmConfig
from sam_bridge.weights import TIED

SHARD_BYTES = 256 * 2**20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LLAMA_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "initializer_range",
    "attention_bias",
    "mlp_bias",
)
"""What is taken over from a published config.json into the language model's."""
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    family: str
    folder: Path
    taken: int
    ignored: dict[str, int]  # reason -> how many keys
    notes: tuple[str, ...] = ()

    @property
    def ways(self) -> tuple[str, ...]:
        """What to do with it now."""
        if self.family == "llava":
            return ("name it as `llava:` in a model config, for example configs/model/llava_7b_sam_h.yaml",)
        if self.family == "ferret":
            return (f"name it as `region_encoder: {self.folder}` in a model config with a LLaVA of the same size",)
        return (f'ask with it: mglmm ask PHOTO "What is in this image?" --model {self.folder}',)


def llava_config(
    config: Mapping[str, Any], rows: int, tower: CLIPVisionConfig, image_token: int, where: Path
) -> LlavaConfig:
    """The LLaVA that a published config.json describes.

    Args:
        rows: of the token embedding, as stored.
        image_token: id that stands for an image; may lie behind the rows.

    Raises:
        ValueError: a size is missing.
    """
    missing = [key for key in NEEDED if not isinstance(config.get(key), int)]
    if missing:
        raise ValueError(f"{where / 'config.json'} lacks {', '.join(missing)}; restore the one saved with the weights")
    kept = {key: config[key] for key in LLAMA_KEYS if config.get(key) is not None}
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(
            f"{where / 'config.json'}: mm_vision_select_feature is {feature!r}; patch and cls_patch are known"
        )
    layer, depth = config.get("mm_vision_select_layer", -2), cast(int, tower.num_hidden_layers)
    if layer not in range(-depth - 1, depth + 1):
        raise ValueError(
            f"{where / 'config.json'}: mm_vision_select_layer is {layer!r}, but the vision tower has {depth} layers; "
            "give the CLIP that the checkpoint was trained with: --vision-tower FOLDER"
        )
    pad = config.get("pad_token_id", 0)
    with described(where / "config.json", "LLaMA"):
        text = LlamaConfig(
            **kept,
            vocab_size=rows,
            bos_token_id=config.get("bos_token_id", 1),
            eos_token_id=config.get("eos_token_id", 2),
            pad_token_id=pad if pad in range(rows) else None,  # -1 in the first LLaMAs
            tie_word_embeddings=False,
        )
        check_names(text)
    side = cast(int, tower.image_size) // cast(int, tower.patch_size)
    return LlavaConfig(
        vision_config=tower.to_dict(),
        text_config=text.to_dict(),
        image_token_index=image_token,
        image_seq_length=side**2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if feature == "patch" else "full",
        tie_word_embeddings=False,
    )


def check_names(config: LlamaConfig) -> None:
    """Raise ValueError where an activation or a kind of rotation is not one that transformers has."""
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r} is unknown")
    kind = str((cast(Any, config).rope_parameters or {}).get("rope_type", "default"))
    if kind not in ("default", *ROPE_INIT_FUNCTIONS):
        raise ValueError(f"rope_scaling of type {kind!r} is unknown; known: {', '.join(ROPE_INIT_FUNCTIONS)}")


def mglmm_config(
    family: Family, llava: LlavaConfig, sam: SamConfig, region: Mapping[str, Any] | None, **settings: Any
) -> MglmmConfig:
    """Our config of an imported model; `settings` are fields that the tokenizer decides."""
    return MglmmConfig(
        llava_config=llava.to_dict(),
        sam_config=sam.to_dict(),
        vision="clip",
        read_offset=-1,
        projector=family.projector,
        clip_frame="crop",
        region_encoder=family.region_encoder,
        region_config=None if region is None else dict(region),
        tie_word_embeddings=False,
        **settings,
    )


def wanted_shapes(config: MglmmConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of our model's state dict, without the second name of what is tied."""
    with torch.device("meta"):
        model = Mglmm(config)
    state = cast(Any, model).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(TIED)}


def embedding_rows(store: Store) -> int:
    """Rows of the token embedding.

    Raises:
        ValueError: there is none, or the output head has another number.
    """
    names = ("model.embed_tokens.weight", "lm_head.weight")
    for name in names:
        if name not in store.entries:
            raise ValueError(f"{store.path} has no {name}; it is not a whole checkpoint of a language model")
    rows, head = (store.entries[name].shape[0] for name in names)
    if rows != head:
        raise ValueError(f"{store.path}: the token embedding has {rows} rows, the output head {head}; they must agree")
    return rows


def check_vocabulary(where: Path, tokens: int, rows: int, config: Mapping[str, Any]) -> None:
    """Tokenizer, embedding and config.json must speak of one vocabulary (an embedding padded to 64 rows may be longer).

    Raises:
        ValueError: they differ.
    """
    if tokens != rows and not (tokens < rows and rows % 64 == 0 and rows - tokens < 64):
        raise ValueError(
            f"{where}: the tokenizer has {tokens} tokens, the embedding {rows} rows; they were not saved together: "
            "take the tokenizer's files from where the weights came from"
        )
    if config.get("vocab_size") not in (None, rows):
        raise ValueError(
            f"{where / 'config.json'}: vocab_size is {config['vocab_size']}, the embedding has {rows} rows; "
            "take config.json from where the weights came from"
        )


def output_dtype(found: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and found.is_floating_point else found


def shards(plan: Plan, store: Store, dtype: torch.dtype | None, limit: int) -> Iterator[dict[str, Take]]:
    """Groups of our keys, each at most `limit` bytes (or one tensor), in the order of the files."""
    order = {key: number for number, key in enumerate(store.entries)}
    group: dict[str, Take] = {}
    size = 0
    for ours, take in sorted(plan.takes.items(), key=lambda item: order[item[1].key]):
        entry = store.entries[take.key]
        length = torch.Size(entry.shape).numel() * output_dtype(entry.dtype, dtype).itemsize
        if group and size + length > limit:
            yield group
            group, size = {}, 0
        group[ours] = take
        size += length
    if group:
        yield group


def write_weights(
    folder: Path, plan: Plan, store: Store, dtype: torch.dtype | None = None, limit: int = SHARD_BYTES, prefix: str = ""
) -> None:
    """Write `model*.safetensors`, shard by shard; files are mapped anew for each, so that read pages are let go."""
    groups = list(shards(plan, store, dtype, limit))
    where: dict[str, str] = {}
    size = 0
    for number, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = store.read({key for take in group.values() for key in take.keys})
        state = {prefix + ours: built(take, tensors, dtype) for ours, take in group.items()}
        save_file(state, folder / name, metadata={"format": "pt"})
        size += sum(value.nbytes for value in state.values())
        where |= dict.fromkeys(state, name)
        del tensors, state
    if len(groups) > 1:
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def built(take: Take, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    """One tensor of ours; adapters are added in float32."""
    value = tensors[take.key]
    wanted = output_dtype(value.dtype, dtype)
    if take.adapters:
        value = value.float()
        for a, b, scale in take.adapters:
            value = value + scale * (tensors[b].float() @ tensors[a].float())
    return value.to(wanted).contiguous()


def counted(plan: Plan) -> dict[str, int]:
    """Ignored keys by reason."""
    reasons = list(plan.ignored.values())
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}
