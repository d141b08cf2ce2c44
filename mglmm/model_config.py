"""What a checkpoint needs to be built again: sizes, parts, token ids, and how its scores are calibrated."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, SamConfig

from sam_bridge.sam import HfSam
from sam_bridge.small import SmallBridge, SmallConfig

FORMAT_VERSION = 1
CHOICES = {
    "vision": ("clip", "shared"),
    "region_encoder": ("mask_mean", "none", "glamm", "ferret"),
    "projector": ("mlp", "linear"),
    "clip_frame": ("pad", "crop"),
}


class MglmmConfig(PreTrainedConfig):
    """Everything a checkpoint needs to be built again; unknown keys are refused.

    Exactly one of `sam_config` (transformers' SAM) and `small_config` (the small backbone) is given. `vision: clip`
    reads a CLIP tower of its own; `vision: shared` reads the bridge's tokens, and the CLIP tower does not exist.
    """

    model_type = "mglmm"

    llava_config: dict[str, Any] | None = None
    sam_config: dict[str, Any] | None = None
    small_config: dict[str, Any] | None = None
    vision: str = "clip"
    read_offset: int = -1  # -1: the state that emits [SEG]; 0: the state at [SEG]
    seg_token_id: int = -1
    region_token_id: int = -1
    region_grid: int = 24  # cells along a side of a region's coverage map
    region_encoder: str = "mask_mean"  # none, glamm (boxes on four CLIP levels), ferret (visual sampler)
    region_config: dict[str, Any] | None = None  # sizes and flags of that encoder; see `mglmm.regions`
    projector: str = "mlp"  # LLaVA-1.5's two layers; linear: LLaVA-1's one, as in LISA
    detail: bool = False  # image tokens see the bridge's finer maps too; the small backbone alone has them
    image_layers: int = 0  # layers in which image tokens see each other first; the small backbone alone has them
    box_feedback: bool = False  # inputs know the boxes of what was grounded before them; the small backbone alone
    clip_frame: str = "pad"  # how an image meets CLIP's square: padded to a square first, or its centre cropped
    confidence: list[float] | None = None  # see mglmm.confidence; None: scores are mask_x_text
    refusal: list[float] | None = None  # scale > 0 and bias of the log-odds of "There is no"; None: 1 and 0
    no_target_threshold: float = 0.5  # from which probability on there is no target; see `GenerationOptions`
    prompt_format: str = "vicuna_v1"
    format_version: int = FORMAT_VERSION
    tokenizer_hash: str = ""
    world_version: str = ""
    trained_on: list[str] | None = None
    tie_word_embeddings: bool = False  # as the language model; transformers reads it at the top

    def __post_init__(self, **kwargs: Any) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"checkpoint format_version is {self.format_version!r}, this program reads {FORMAT_VERSION}; "
                "use the mglmm release that wrote it"
            )
        super().__post_init__(**refuse_unknown(self, kwargs))
        if self.read_offset not in (-1, 0):
            raise ValueError(
                f"read_offset is {self.read_offset!r}; -1 reads the state that emits [SEG], 0 the state at it"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        if self.llava_config is not None and (self.sam_config is None) == (self.small_config is None):
            raise ValueError("give exactly one of sam_config and small_config")
        for name in ("detail", "image_layers", "box_feedback"):
            if getattr(self, name) and (self.small_config is None or self.vision != "shared" or self.read_offset != -1):
                raise ValueError(
                    f"{name} needs the small backbone, shared with the language model, and read_offset -1; leave it out"
                )

    def llava(self) -> LlavaConfig:
        return LlavaConfig(
            **{k: v for k, v in (self.llava_config or {}).items() if k not in ("model_type", "transformers_version")}
        )

    def language(self) -> LlamaConfig:
        """Sizes of the language model."""
        return cast(LlamaConfig, self.llava().text_config)

    def tower(self) -> CLIPVisionConfig:
        """Sizes of the CLIP tower; with a shared encoder only its width means something."""
        return cast(CLIPVisionConfig, self.llava().vision_config)

    @property
    def tower_side(self) -> int:
        """Side of the CLIP tower's square, px."""
        return cast(int, self.tower().image_size)

    @property
    def tower_grid(self) -> int:
        """Tokens along a side of the CLIP tower's square."""
        return self.tower_side // cast(int, self.tower().patch_size)

    def bridge(self) -> SmallBridge | HfSam:
        """A fresh bridge of this config's sizes."""
        if self.small_config is not None:
            sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.small_config.items()}
            return SmallBridge(SmallConfig(**sizes))
        sam = {k: v for k, v in (self.sam_config or {}).items() if k not in ("model_type", "transformers_version")}
        return HfSam.from_config(SamConfig(**sam), keep_tokens=self.vision == "shared")

    @property
    def image_token_id(self) -> int:
        return int((self.llava_config or {})["image_token_index"])


KNOWN_EXTRAS = {
    "model_type",
    "architectures",
    "name_or_path",
    "_name_or_path",
    "torch_dtype",
    "attn_implementation",
    "output_attentions",
    "_commit_hash",
    "transformers_version",
}


def refuse_unknown(config: MglmmConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Raise on a key that is neither ours nor one that transformers itself writes."""
    import difflib

    own = {f.name for f in fields(config)} | set(vars(PreTrainedConfig())) | KNOWN_EXTRAS  # type: ignore[arg-type]
    for key in kwargs:
        if key not in own and not key.startswith("_"):
            near = difflib.get_close_matches(key, sorted(own), n=1)
            raise ValueError(
                f"unknown key {key!r} in the model's config" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return kwargs
