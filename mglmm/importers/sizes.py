"""Parameters of the parts of a checkpoint and the memory they take, from the shapes of its tensors."""

from __future__ import annotations

from math import prod

from mglmm.importers import lora
from mglmm.importers.families import TOWER, Shapes, ours_now
from mglmm.importers.registry import FAMILIES

BYTES = {"fp16": 2.0, "int8": 1.0, "int4": 0.516}
"""Bytes of a quantised weight with its scales; NF4: 4 bits, and 8 bits for each 64 weights."""
KV_TOKENS = 512
"""Tokens of an answer for which the cache is counted."""
PARTS = {
    "language model": ("llava.model.language_model.", "llava.lm_head.", "model.layers.", "model.embed_tokens.",
                       "model.norm.", "lm_head.", "language_model.", "model.language_model."),
    "vision tower": ("llava.model.vision_tower.", "model.vision_tower.", "vision_tower.", "vision_model.", TOWER),
    "projector": ("llava.model.multi_modal_projector.", "model.mm_projector.", "multi_modal_projector.",
                  "model.multi_modal_projector."),
    "segmenter": ("bridge.", "image_encoder.", "prompt_encoder.", "mask_decoder.",
                  *(family.sam for family in FAMILIES.values() if family.sam)),
    "[SEG] projection": ("seg_projection.", "model.text_hidden_fcs."),
    "region encoder": ("region_encoder.", "model.region_encoder."),
    "adapters": (lora.ADAPTER,),
}  # fmt: skip


def parts(shapes: Shapes) -> dict[str, int]:
    """Parameters of each part: names of `PARTS`, and `other`."""
    found: dict[str, int] = {}
    for key, shape in learnt(shapes).items():
        part = next((part for part, marks in PARTS.items() if key.startswith(marks)), "other")
        found[part] = found.get(part, 0) + prod(shape)
    return found


def memory(shapes: Shapes) -> dict[str, int]:
    """Bytes of the weights in fp16, int8, int4, adapters merged; only decoder layers are made small (`mglmm.quant`)."""
    kept = {key: shape for key, shape in learnt(shapes).items() if not key.startswith(lora.ADAPTER)}
    total = sum(map(prod, kept.values()))
    layers = sum(prod(shape) for key, shape in kept.items() if in_layers(key))
    return {kind: int(2 * (total - layers) + each * layers) for kind, each in BYTES.items()}


def learnt(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes by the names of today, without what is computed from the config."""
    return {key: shape for key, shape in ours_now(shapes).items() if not key.endswith("rotary_emb.inv_freq")}


def in_layers(key: str) -> bool:
    """Is this a matrix of a decoder layer?"""
    return key.startswith(PARTS["language model"]) and "layers." in key and key.endswith("_proj.weight")


def cache_bytes(shapes: Shapes, image_tokens: int) -> int:
    """Bytes of the keys and values of an image and an answer of `KV_TOKENS` tokens, in fp16."""
    rows = [shape[0] for key, shape in learnt(shapes).items() if in_layers(key) and "self_attn.k_proj" in key]
    return sum(2 * 2 * width * (image_tokens + KV_TOKENS) for width in rows)


def count(number: int) -> str:
    """Parameters in a unit that people read."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
