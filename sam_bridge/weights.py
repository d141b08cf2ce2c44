"""The official `segment-anything` checkpoint format (`sam_vit_*.pth`) in and out of `transformers.SamModel`.

A checkpoint is a flat state dict, `image_encoder.* prompt_encoder.* mask_decoder.*`, without `pixel_mean` and
`pixel_std`. The positional matrix, a buffer there, is one parameter here that two modules share.
Source: facebookresearch/segment-anything, `build_sam.py` and `modeling/`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamConfig, SamModel

from sam_bridge.config import parts, sam_config

Shapes = Mapping[str, tuple[int, ...]]

POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
TIED = "prompt_encoder.shared_embedding.positional_embedding"
"""The second name of the positional matrix in transformers, tied to the first."""


def infer_config(shapes: Shapes, *, heads: int | None = None, decoder_heads: int = 8) -> SamConfig:
    """Read a model's sizes off the shapes of an official state dict.

    Args:
        shapes: key -> shape.
        heads: of the encoder; needed only where the checkpoint has no relative positions to tell the width of a head.
        decoder_heads: attention heads of the mask decoder; shapes do not tell them, 8 in every published model.

    Raises:
        ValueError: a key that the sizes are read from is missing, or the sizes contradict each other.
    """
    try:
        return _infer(shapes, heads, decoder_heads)
    except KeyError as missing:
        found = sorted({key.split(".")[0] for key in shapes})
        raise ValueError(
            f"not an official SAM checkpoint: key {missing} is missing (it has {len(shapes)} keys under {found[:8]}); "
            "expected image_encoder.*, prompt_encoder.*, mask_decoder.*: strip any prefix first"
        ) from None


def _infer(shapes: Shapes, heads: int | None, decoder_heads: int) -> SamConfig:
    cells = shapes["image_encoder.pos_embed"][1]
    hidden, channels, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
    depth = _count(shapes, "image_encoder.blocks.")
    spans = {i: shape for i in range(depth) if (shape := shapes.get(f"image_encoder.blocks.{i}.attn.rel_pos_h"))}
    if len(spans) < depth:
        raise ValueError(
            f"{depth - len(spans)} of {depth} encoder blocks have no rel_pos_h; such models are not supported"
        )
    head_width = spans[0][1]
    if heads is not None and heads * head_width != hidden:
        raise ValueError(
            f"heads is {heads}, but {hidden} channels in heads of {head_width} make {hidden // head_width}"
        )
    sides = {i: (span + 1) // 2 for i, (span, _) in spans.items()}
    windows = {side for side in sides.values() if side != cells}
    if len(windows) > 1:
        raise ValueError(
            f"windows of several sizes {sorted(windows)} in one encoder; expected one size and the grid's {cells}"
        )
    width = shapes["image_encoder.neck.0.weight"][0]
    query = shapes["mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"][0]
    return sam_config(
        side=cells * patch,
        hidden=hidden,
        depth=depth,
        heads=hidden // head_width,
        window=windows.pop() if windows else 0,
        global_layers=tuple(i for i, side in sides.items() if side == cells),
        width=width,
        decoder_heads=decoder_heads,
        decoder_mlp=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        decoder_depth=_count(shapes, "mask_decoder.transformer.layers."),
        downsample=width // query,
        patch=patch,
        channels=channels,
        mlp=shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
        qkv_bias="image_encoder.blocks.0.attn.qkv.bias" in shapes,
        mask_channels=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        multimasks=shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        iou_depth=_count(shapes, "mask_decoder.iou_prediction_head.layers."),
        iou_hidden=shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    )


def key_map(config: SamConfig) -> dict[str, str]:
    """Every official key of a model of this size -> its name in `SamModel.state_dict()`; a bijection but for `TIED`."""
    vision, prompt, decoder = parts(config)
    pairs = {
        POSITIONS: "shared_image_embedding.positional_embedding",
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
    }

    def add(official: str, ours: str, *leaves: str) -> None:
        pairs.update({f"{official}.{leaf}": f"{ours}.{leaf}" for leaf in leaves or ("weight", "bias")})

    def mlp(official: str, ours: str, depth: int) -> None:
        names = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
        for i, name in enumerate(names):
            add(f"{official}.layers.{i}", f"{ours}.{name}")

    add("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection")
    for i in range(vision.num_hidden_layers):
        official, ours = f"image_encoder.blocks.{i}", f"vision_encoder.layers.{i}"
        add(f"{official}.norm1", f"{ours}.layer_norm1")
        add(f"{official}.norm2", f"{ours}.layer_norm2")
        add(f"{official}.attn", f"{ours}.attn", "rel_pos_h", "rel_pos_w", "qkv.weight", "proj.weight", "proj.bias")
        if vision.qkv_bias:
            add(f"{official}.attn", f"{ours}.attn", "qkv.bias")
        add(f"{official}.mlp.lin1", f"{ours}.mlp.lin1")
        add(f"{official}.mlp.lin2", f"{ours}.mlp.lin2")
    add("image_encoder.neck.0", "vision_encoder.neck.conv1", "weight")
    add("image_encoder.neck.1", "vision_encoder.neck.layer_norm1")
    add("image_encoder.neck.2", "vision_encoder.neck.conv2", "weight")
    add("image_encoder.neck.3", "vision_encoder.neck.layer_norm2")
    for i in range(prompt.num_point_embeddings):
        add(f"prompt_encoder.point_embeddings.{i}", f"prompt_encoder.point_embed.{i}", "weight")
    for name in ("not_a_point_embed", "no_mask_embed"):
        add(f"prompt_encoder.{name}", f"prompt_encoder.{name}", "weight")
    for i, name in {0: "conv1", 1: "layer_norm1", 3: "conv2", 4: "layer_norm2", 6: "conv3"}.items():
        add(f"prompt_encoder.mask_downscaling.{i}", f"prompt_encoder.mask_embed.{name}")
    transformer, projections = "mask_decoder.transformer", ("q_proj", "k_proj", "v_proj", "out_proj")
    for i in range(decoder.num_hidden_layers):
        layer = f"{transformer}.layers.{i}"
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            for name in projections:
                add(f"{layer}.{attention}.{name}", f"{layer}.{attention}.{name}")
        for name in ("mlp.lin1", "mlp.lin2"):
            add(f"{layer}.{name}", f"{layer}.{name}")
        for n in (1, 2, 3, 4):
            add(f"{layer}.norm{n}", f"{layer}.layer_norm{n}")
    for name in projections:
        add(f"{transformer}.final_attn_token_to_image.{name}", f"{transformer}.final_attn_token_to_image.{name}")
    add(f"{transformer}.norm_final_attn", f"{transformer}.layer_norm_final_attn")
    for name in ("iou_token", "mask_tokens"):
        add(f"mask_decoder.{name}", f"mask_decoder.{name}", "weight")
    for i, name in {0: "upscale_conv1", 1: "upscale_layer_norm", 3: "upscale_conv2"}.items():
        add(f"mask_decoder.output_upscaling.{i}", f"mask_decoder.{name}")
    for i in range(decoder.num_multimask_outputs + 1):
        name = f"mask_decoder.output_hypernetworks_mlps.{i}"
        mlp(name, name, 3)
    mlp("mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head", decoder.iou_head_depth)
    return pairs


def from_official(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    decoder_heads: int = 8,
    dtype: torch.dtype = torch.float32,
) -> SamModel:
    """An official state dict to a model in evaluation mode; tensors of `dtype` are used, not copied.

    Raises:
        ValueError: missing or extra keys, or shapes that do not fit, each listed.
    """
    config = infer_config(
        {key: tuple(value.shape) for key, value in state.items()}, heads=heads, decoder_heads=decoder_heads
    )
    names = key_map(config)
    missing, extra = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    if missing or extra:
        raise ValueError(f"not an official SAM state dict: {_listing('missing', missing)}; {_listing('extra', extra)}")
    with torch.device("meta"):
        model = SamModel(config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {wanted[name]}"
        for key, name in names.items()
        if tuple(state[key].shape) != wanted[name]
    ]
    if wrong:
        raise ValueError(f"not an official SAM state dict: {_listing('of another shape', wrong)}")
    renamed = {name: state[key].to(dtype) for key, name in names.items()}
    model.load_state_dict(renamed | {TIED: renamed[names[POSITIONS]]}, assign=True)
    model.tie_weights()
    return model.eval()


def to_official(model: SamModel) -> dict[str, Tensor]:
    """A model's weights under their official keys, detached; the storage is shared."""
    state = model.state_dict()
    return {key: state[name].detach() for key, name in key_map(model.config).items()}


def load_official(
    path: str | Path, *, heads: int | None = None, decoder_heads: int = 8, dtype: torch.dtype = torch.float32
) -> SamModel:
    """Load `sam_vit_*.pth`; no code in the file is run (`weights_only`).

    Args:
        path: the checkpoint.
        heads: see `infer_config`.
        decoder_heads: see `infer_config`.
        dtype: of the model's weights.

    Raises:
        ValueError: not a flat state dict, or keys or shapes that do not fit, each listed.
        FileNotFoundError: no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable torch checkpoint ({reason}); download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a flat state dict of tensors; expected an official sam_vit_*.pth")
    return from_official(state, heads=heads, decoder_heads=decoder_heads, dtype=dtype)


def save_official(model: SamModel, path: str | Path) -> None:
    """Write the official format; the file appears whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        torch.save({key: value.cpu().contiguous() for key, value in to_official(model).items()}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _count(shapes: Shapes, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


def _listing(what: str, keys: list[str], limit: int = 20) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} {what}" + (f": {', '.join(keys[:limit])}{more}" if keys else "")
