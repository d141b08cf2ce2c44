"""Models from nothing: a model config (YAML) to weights and a processor that belong together.

The small one is what the package ships; any LLaVA and any SAM of transformers' or the official format go together the
same way (`configs/model/llava_7b_sam_h.yaml`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.config import BUNDLED, Strict
from mglmm.config_check import SmallSizes
from mglmm.model import Mglmm
from mglmm.model_config import MglmmConfig
from mglmm.processor import MglmmProcessor
from mglmm.tokenizer import tokenizer_hash
from mglmm.tokens import add_markers, special_ids
from sam_bridge.config import parts
from sam_bridge.sam import HfSam
from sam_bridge.small import PATCH

FRESH = ("mask_mean", "ferret", "glamm")
"""Region encoders that can be drawn from nothing."""


class LanguageSizes(Strict):
    """A LLaMA from nothing."""

    hidden_size: int = 192
    num_hidden_layers: int = 5
    num_attention_heads: int = 3
    intermediate_size: int = 512
    max_position_embeddings: int = 2048


class ModelConfig(Strict):
    """What to build: everything small and fresh, or published parts by path or hub name."""

    room: ClassVar[str] = "model"
    vision: Literal["clip", "shared"] = "shared"
    tokenizer: str | None = None  # a folder or hub name, or `bundled`; by default the LLaVA's, else the bundled one
    prompt_format: str = "compact"
    read_offset: Literal[-1, 0] = -1
    small: SmallSizes | None = None  # the small backbone from nothing
    language: LanguageSizes | None = None  # a LLaMA from nothing
    llava: str | None = None  # or a LLaVA in transformers' layout
    sam: str | None = None  # with it a SAM: folder or hub name of transformers' layout, or an official .pth
    image_layers: int = Field(default=0, ge=0)  # see `mglmm.detail`; the small backbone alone
    detail: bool = False  # see `mglmm.detail`; the small backbone alone
    box_feedback: bool = False  # see `mglmm.feedback`; the small backbone alone
    region_grid: int = Field(default=48, gt=0)
    region_encoder: str = "mask_mean"  # or ferret, glamm from nothing, or the folder of a converted Ferret sampler

    @model_validator(mode="after")
    def one_of_each(self) -> ModelConfig:
        if (self.small is None) == (self.sam is None):
            raise ValueError("give exactly one of small (sizes) and sam (a path or hub name)")
        if (self.language is None) == (self.llava is None):
            raise ValueError("give exactly one of language (sizes) and llava (a path or hub name)")
        if self.language is not None and self.vision != "shared":
            raise ValueError("a language model from nothing has no CLIP tower; set vision: shared")
        if self.llava is not None and self.vision != "clip":
            raise ValueError("a LLaVA brings its CLIP tower and a projector that reads it; set vision: clip")
        if self.region_encoder != "mask_mean" and self.vision != "clip":
            raise ValueError(f"region_encoder {self.region_encoder} reads a CLIP tower; set vision: clip")
        if self.llava is not None and self.tokenizer == "bundled":
            raise ValueError("the bundled tokenizer does not fit a LLaVA's embeddings; leave tokenizer out")
        return self


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Mglmm, MglmmProcessor]:
    """Build model and processor. Parts named by path keep their weights, the rest is drawn from `seed`.

    Raises:
        ValueError: parts do not fit each other, or the tokenizer lacks what it needs.
        OSError: a path or hub name cannot be loaded.
    """
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(config)
    sam = load_sam(config, dtype)
    llava = None if config.llava is None else load_llava(config.llava, tokenizer, dtype)
    settings = model_config(
        config, tokenizer, sam, small_llava(config, tokenizer, sam) if llava is None else llava.config
    )
    model = Mglmm(settings, llava_model=llava, bridge=sam)
    if config.region_encoder not in FRESH:
        from mglmm.importers.ferret import attach

        attach(model, config.region_encoder)
    cast(torch.nn.Module, model).to(dtype)
    clip = None if config.llava is None else CLIPImageProcessorPil.from_pretrained(config.llava)
    return model, MglmmProcessor(tokenizer, settings, clip)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with the markers it lacked."""
    wanted = config.tokenizer or config.llava or "bundled"
    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED) if wanted == "bundled" else wanted)
    add_markers(tokenizer)
    return tokenizer


def load_sam(config: ModelConfig, dtype: torch.dtype) -> HfSam | None:
    """SAM with its weights; None where the small backbone is wanted."""
    if config.sam is None:
        return None
    loader = HfSam.from_official if Path(config.sam).suffix == ".pth" else HfSam.from_pretrained
    return loader(config.sam, dtype=dtype, keep_tokens=config.vision == "shared")


def load_llava(path: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A published LLaVA with its weights, and rows for the markers."""
    llava = LlavaForConditionalGeneration.from_pretrained(path, dtype=dtype)
    rows = cast(torch.nn.Embedding, llava.get_input_embeddings()).num_embeddings  # may be padded beyond the vocabulary
    llava.resize_token_embeddings(max(len(tokenizer), rows), mean_resizing=True)
    llava.config.image_token_index = special_ids(tokenizer).image
    return llava


def small_llava(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, sam: HfSam | None) -> LlavaConfig:
    """The LLaVA around a LLaMA from nothing; its CLIP tower is a placeholder that a shared encoder replaces."""
    assert config.language is not None
    ids = special_ids(tokenizer)
    if sam is not None:
        vision, _, _ = parts(sam.sam.config)
        width, cells = vision.hidden_size, sam.cells
    else:
        assert config.small is not None
        width, cells = config.small.dim, config.small.side // PATCH
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=16,
            patch_size=16,
        ).to_dict(),
        text_config=LlamaConfig(
            **config.language.model_dump(),
            vocab_size=-(-len(tokenizer) // 64) * 64,
            bos_token_id=ids.bos,
            eos_token_id=ids.eos,
            pad_token_id=ids.pad,
            tie_word_embeddings=True,
        ).to_dict(),
        image_token_index=ids.image,
        image_seq_length=cells**2,
        tie_word_embeddings=True,
    )


def model_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, sam: HfSam | None, llava: LlavaConfig
) -> MglmmConfig:
    """What is saved with the weights."""
    ids, tower = special_ids(tokenizer), cast(CLIPVisionConfig, llava.vision_config)
    return MglmmConfig(
        llava_config=llava.to_dict(),
        sam_config=sam.sam.config.to_dict() if sam is not None else None,
        small_config=config.small.to_dict() if config.small is not None else None,
        vision=config.vision,
        read_offset=config.read_offset,
        seg_token_id=ids.seg,
        region_token_id=ids.region,
        region_grid=cast(int, tower.image_size) if config.region_encoder == "ferret" else config.region_grid,
        region_encoder=config.region_encoder if config.region_encoder in FRESH else "mask_mean",
        image_layers=config.image_layers,
        detail=config.detail,
        box_feedback=config.box_feedback,
        prompt_format=config.prompt_format,
        tokenizer_hash=tokenizer_hash(tokenizer),
        tie_word_embeddings=llava.tie_word_embeddings,
    )
