"""Sizes of a SAM: a builder with upstream's values, and the check that the three parts of one fit together."""

from __future__ import annotations

from typing import NamedTuple, cast

from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

DECODER_EPS = 1e-5
"""LayerNorm epsilon of the decoder's blocks upstream; transformers' default 1e-6 moves logits by up to 1.4e-3."""


class Parts(NamedTuple):
    """The three configs inside a `SamConfig`."""

    vision: SamVisionConfig
    prompt: SamPromptEncoderConfig
    decoder: SamMaskDecoderConfig


def parts(config: SamConfig) -> Parts:
    """The three configs, typed; `SamConfig` declares them as dictionaries."""
    three = (config.vision_config, config.prompt_encoder_config, config.mask_decoder_config)
    return cast(Parts, Parts(*three))  # pyright: ignore[reportArgumentType]


def sam_config(
    *,
    side: int,
    hidden: int,
    depth: int,
    heads: int,
    window: int,
    global_layers: tuple[int, ...],
    width: int,
    decoder_heads: int,
    decoder_mlp: int,
    decoder_depth: int = 2,
    downsample: int = 2,
    patch: int = 16,
    channels: int = 3,
    mlp: int | None = None,
    qkv_bias: bool = True,
    mask_channels: int = 16,
    multimasks: int = 3,
    iou_depth: int = 3,
    iou_hidden: int | None = None,
) -> SamConfig:
    """A SAM of any size whose defaults are upstream's, not those of `SamVisionConfig`.

    Differences from the bare config: weights of a fresh model are drawn with std 0.02 (not 1e-10), positional codes
    with std 1 (not hidden / 2), `num_pos_feats` is half of `width` (not 128), and LayerNorms of the decoder use 1e-5
    (not 1e-6).

    Args:
        side: S, px, of the square the encoder reads.
        hidden: width of the encoder; `mlp` of its MLP (None: four times that).
        depth: encoder layers; those in `global_layers` attend everywhere, the others in windows of `window` cells.
        heads: attention heads of the encoder.
        width: C, of the embedding, the prompts and the decoder.
        decoder_heads: attention heads of the decoder; `decoder_mlp` the width of its MLP.
        downsample: the decoder's cross-attention runs at `width / downsample`.
        multimasks: masks a decoder gives with `multimask`.
    """
    return SamConfig(
        vision_config={
            "hidden_size": hidden,
            "output_channels": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_channels": channels,
            "image_size": side,
            "patch_size": patch,
            "qkv_bias": qkv_bias,
            "mlp_dim": mlp or 4 * hidden,
            "mlp_ratio": (mlp or 4 * hidden) / hidden,
            "window_size": window,
            "global_attn_indexes": list(global_layers),
            "num_pos_feats": width // 2,
            "scale": 1,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": side,
            "patch_size": patch,
            "mask_input_channels": mask_channels,
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": decoder_mlp,
            "num_hidden_layers": decoder_depth,
            "num_attention_heads": decoder_heads,
            "attention_downsample_rate": downsample,
            "num_multimask_outputs": multimasks,
            "iou_head_depth": iou_depth,
            "iou_head_hidden_dim": iou_hidden or width,
            "layer_norm_eps": DECODER_EPS,
        },
    )


def check_config(config: SamConfig) -> None:
    """Refuse sizes that would fail late, or not at all.

    Raises:
        ValueError: names the two fields that contradict each other.
    """
    vision, prompt, decoder = parts(config)
    pairs = {
        "prompt_encoder.image_size": (prompt.image_size, vision.image_size, "vision.image_size"),
        "prompt_encoder.patch_size": (prompt.patch_size, vision.patch_size, "vision.patch_size"),
        "prompt_encoder.hidden_size": (prompt.hidden_size, vision.output_channels, "vision.output_channels"),
        "mask_decoder.hidden_size": (decoder.hidden_size, vision.output_channels, "vision.output_channels"),
        "twice vision.num_pos_feats": (2 * vision.num_pos_feats, prompt.hidden_size, "prompt_encoder.hidden_size"),
    }
    for name, (found, wanted, other) in pairs.items():
        if found != wanted:
            raise ValueError(f"SAM config: {name} is {found}, {other} is {wanted}; they must be equal")
