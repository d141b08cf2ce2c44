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
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.importers.families import TOWER, Family
from mglmm.importers.keys import Plan, Store, Take, open_store, read_json
from mglmm.model import Mglmm, MglmmConfig
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


@dataclass(frozen=True)
class Tower:
    """The CLIP that a published checkpoint names but does not hold."""

    where: str
    config: CLIPVisionConfig
    image_processor: CLIPImageProcessorPil
    store: Store


def find_tower(given: str | None, config: Mapping[str, Any], folder: Path) -> Tower:
    """The vision tower: as given, else where the checkpoint's config says, read from that folder.

    Raises:
        ValueError: none was given and the one named is not on this machine, or the folder is no CLIP.
    """
    named = next((str(config[key]) for key in TOWER_KEYS if config.get(key)), None)
    for name in (given,) if given else (named,):
        where = tower_folder(name, folder)
        if where is not None:
            return read_tower(where)
    if given:
        raise ValueError(
            f"--vision-tower {given} is no folder and not in the Hugging Face cache; download it "
            f"(hf download {given if given.count('/') == 1 else 'openai/clip-vit-large-patch14'}) and give its folder"
        )
    if named is None:
        raise ValueError(f"{folder / 'config.json'} names no vision tower; give the folder of its CLIP: --vision-tower")
    raise ValueError(
        f"{folder} was trained with the vision tower {named}, which is not on this machine; download it and give its "
        "folder: --vision-tower FOLDER"
    )


TOWER_KEYS = ("vision_tower", "mm_vision_tower", "vision_module", "mm_vision_module")


def tower_folder(name: str | None, folder: Path) -> Path | None:
    """A tower's folder: a path as it is, or relative to the checkpoint; a hub name if it is in the local cache."""
    if not name:
        return None
    for path in (Path(name).expanduser(), folder / name):
        if path.is_dir():
            return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def read_tower(where: Path) -> Tower:
    """Sizes, preprocessing and weights of a CLIP (the whole or its vision half) in transformers' layout."""
    content = read_json(where / "config.json")
    sizes = content.get("vision_config") if content.get("model_type") == "clip" else content
    if not isinstance(sizes, dict) or not str(content.get("model_type", "")).startswith("clip"):
        raise ValueError(
            f"the vision tower {where} is a {content.get('model_type')!r}, not a CLIP; "
            "give the CLIP that the checkpoint was trained with: --vision-tower FOLDER"
        )
    if not (where / "preprocessor_config.json").exists():
        raise ValueError(f"the vision tower {where} has no preprocessor_config.json; copy the whole folder")
    sizes = {key: value for key, value in sizes.items() if key not in ("model_type", "architectures", "torch_dtype")}
    return Tower(str(where), CLIPVisionConfig(**sizes), CLIPImageProcessorPil.from_pretrained(where), open_store(where))


def with_tower(store: Store, tower: Tower) -> Store:
    """The checkpoint's tensors and the tower's, each under its own key."""
    return Store(store.path, {**store.entries, **{TOWER + key: e for key, e in tower.store.entries.items()}})


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
    if config.get("mm_vision_select_feature", "patch") not in ("patch", "cls_patch"):
        raise ValueError(
            f"{where / 'config.json'}: mm_vision_select_feature is {config['mm_vision_select_feature']!r}; "
            "patch and cls_patch are known"
        )
    side = cast(int, tower.image_size) // cast(int, tower.patch_size)
    return LlavaConfig(
        vision_config=tower.to_dict(),
        text_config=LlamaConfig(
            **kept,
            vocab_size=rows,
            bos_token_id=config.get("bos_token_id", 1),
            eos_token_id=config.get("eos_token_id", 2),
            pad_token_id=pad if (pad := config.get("pad_token_id", 0)) in range(rows) else None,  # first LLaMAs: -1
            tie_word_embeddings=False,
        ).to_dict(),
        image_token_index=image_token,
        image_seq_length=side**2,
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default"
        if config.get("mm_vision_select_feature", "patch") == "patch"
        else "full",
        tie_word_embeddings=False,
    )


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
