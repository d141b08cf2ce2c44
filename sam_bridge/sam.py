"""Segment Anything as a `SamBridge`, over `transformers.SamModel`.

B images, S the square's side (px), g = S / patch cells, C the decoder's width, D the encoder's, n prompts, M masks.
Sources: Segment Anything, arXiv:2304.02643; segment-anything `modeling/`; the language prompt is LISA's
(`model/segment_anything/modeling/prompt_encoder.py`, `text_embeds`): its tokens are appended to the sparse ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from sam_bridge.bridge import Features, Masks, decode_ragged, preprocess
from sam_bridge.canvas import Canvas, Size
from sam_bridge.config import DECODER_EPS, check_config, parts
from sam_bridge.prompt import Prompts, Rows
from sam_bridge.weights import load_official

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class HfSam(nn.Module):
    """SAM of any size; build it with `from_config`, `from_pretrained` or `from_official`.

    Args:
        sam: the model; its decoder's LayerNorm epsilon is set to upstream's and its positional matrix is frozen
            (a buffer upstream).
        keep_tokens: also return the encoder's states before the neck, as `Features.tokens`.

    Raises:
        ValueError: the sizes of the model's three parts contradict each other.
    """

    def __init__(self, sam: SamModel, *, keep_tokens: bool = False) -> None:
        super().__init__()
        check_config(sam.config)
        vision, prompt, decoder = parts(sam.config)
        decoder.layer_norm_eps = DECODER_EPS
        for module in sam.mask_decoder.transformer.layers.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = DECODER_EPS
        sam.shared_image_embedding.requires_grad_(False)
        sam.prompt_encoder.shared_embedding.requires_grad_(False)
        self.sam = sam
        # A transformers model that holds this one gathers the weights it ties from its children by this name.
        self.all_tied_weights_keys = {f"sam.{key}": f"sam.{tied}" for key, tied in sam.all_tied_weights_keys.items()}
        self.keep_tokens = keep_tokens
        self.side = cast(int, vision.image_size)
        self.prompt_dim = prompt.hidden_size
        self.cells: int = prompt.image_embedding_size
        self.train(sam.training)

    @classmethod
    def from_config(cls, config: SamConfig, *, keep_tokens: bool = False) -> HfSam:
        """Fresh weights (see `sam_bridge.config.sam_config` for sizes of your own); the config is copied."""
        check_config(config)
        return cls(SamModel(copy.deepcopy(config)), keep_tokens=keep_tokens)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, keep_tokens: bool = False
    ) -> HfSam:
        """A directory or hub name in transformers' format, such as `facebook/sam-vit-huge`."""
        return cls(SamModel.from_pretrained(path, dtype=dtype), keep_tokens=keep_tokens)

    @classmethod
    def from_official(
        cls, path: str | Path, *, decoder_heads: int = 8, dtype: torch.dtype = torch.float32, keep_tokens: bool = False
    ) -> HfSam:
        """The official `sam_vit_*.pth`; see `sam_bridge.weights.load_official`."""
        return cls(load_official(path, decoder_heads=decoder_heads, dtype=dtype), keep_tokens=keep_tokens)

    def canvas(self, size: Size) -> Canvas:
        """Longest side to S, padded right and bottom."""
        return Canvas.longest_side(size, self.side)

    def preprocess(self, images: Sequence[Image.Image | np.ndarray]) -> tuple[Tensor, list[Canvas]]:
        """Images (PIL or uint8[H, W, 3], any sizes) to float32[B, 3, S, S] on the CPU and their canvases."""
        return preprocess(images, canvas=self.canvas, mean=PIXEL_MEAN, std=PIXEL_STD)

    def encode(self, pixel_values: Tensor) -> Features:
        """float[B, 3, S, S], normalised, to embedding float[B, C, g, g] and, if kept, tokens float[B, g * g, D]."""
        encoder = self.sam.vision_encoder
        hidden_BggD = encoder.patch_embed(pixel_values.to(encoder.patch_embed.projection.weight.dtype))
        if encoder.pos_embed is not None:
            hidden_BggD = hidden_BggD + encoder.pos_embed
        for layer in encoder.layers:
            hidden_BggD = layer(hidden_BggD)
        tokens = hidden_BggD.flatten(1, 2) if self.keep_tokens else None
        return Features(embedding=encoder.neck(hidden_BggD), tokens=tokens)

    def decode(self, features: Features, prompts: Prompts, multimask: bool = False) -> Masks:
        """Decode every prompt of every image, without running the padded ones.

        Args:
            features: of B images.
            prompts: B x K, any mixture of kinds; see `Prompts`.
            multimask: three masks (whole, part, subpart) instead of one.

        Returns:
            logits float[B, K, M, 4g, 4g] over the S x S square, scores float[B, K, M].

        Raises:
            ValueError: the numbers of images differ, or a prompt's size does not fit this model.
        """
        if len(features) != len(prompts.valid):
            raise ValueError(
                f"features of {len(features)} images, prompts for {len(prompts.valid)}; give one row per image"
            )
        if prompts.embeds is not None and prompts.embeds.shape[-1] != self.prompt_dim:
            raise ValueError(
                f"language prompts are {prompts.embeds.shape[-1]} wide, this decoder takes {self.prompt_dim}"
            )
        sides = None if prompts.masks is None else tuple(prompts.masks.shape[-2:])
        if sides not in (None, (4 * self.cells, 4 * self.cells)):
            raise ValueError(
                f"mask prompts are {sides}, this decoder takes logits of side {4 * self.cells}; resize them first"
            )
        dense_pe_1Cgg = self.sam.get_image_wide_positional_embeddings()

        def decode_rows(rows: Rows) -> tuple[Tensor, Tensor]:
            sparse_n1TC, dense_nCgg = self._embed(rows)
            logits, scores = self.sam.mask_decoder(
                image_embeddings=features.embedding[rows.image],
                image_positional_embeddings=dense_pe_1Cgg,
                sparse_prompt_embeddings=sparse_n1TC,
                dense_prompt_embeddings=dense_nCgg,
                multimask_output=multimask,
            )
            return logits[:, 0], scores[:, 0]

        return decode_ragged(prompts, decode_rows)

    def _embed(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Sparse float[n, 1, T, C] (points, boxes, language, in this order) and dense float[n or 1, C, g, g]."""
        sparse_n1TC, dense_nCgg = self.sam.prompt_encoder(
            input_points=None if rows.points is None else rows.points[:, None],
            input_labels=None if rows.labels is None else rows.labels[:, None],
            input_boxes=None if rows.boxes is None else rows.boxes[:, None],
            input_masks=None if rows.masks is None else rows.masks.to(dtype=self.sam.dtype),
        )
        if sparse_n1TC is None:
            sparse_n1TC = dense_nCgg.new_zeros((len(rows), 1, 0, self.prompt_dim))
        if rows.embeds is not None:
            sparse_n1TC = torch.cat([sparse_n1TC, rows.embeds[:, None].to(sparse_n1TC.dtype)], dim=2)
        return sparse_n1TC, dense_nCgg
