"""The small backbone of the bundled model: convolution stem, ViT, and a mask decoder that sees high-resolution skips.

Same interface as `sam.HfSam`. Layout after SAM 2 (arXiv:2408.00714, section 4) and HQ-SAM (arXiv:2306.01567): maps of
stride 2, 4 and 8 join the mask decoder's upscaling. The prompt encoder and the two-way transformer are transformers'
SAM modules. B images, K prompts an image, N = g * g tokens, g = side / 16; D token width, C prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamPromptEncoder, SamTwoWayTransformer

from sam_bridge.bridge import Features, Masks, decode_ragged, preprocess
from sam_bridge.canvas import Canvas
from sam_bridge.prompt import Prompts, Rows

PATCH = 16
PIXEL_MEAN = 127.5
PIXEL_STD = 64.0


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the small backbone; `side` in px, a multiple of 16."""

    side: int = 192
    stem: tuple[int, int, int] = (24, 48, 96)  # channels at stride 2, 4, 8
    dim: int = 192
    depth: int = 6
    heads: int = 3
    prompt_dim: int = 128
    decoder_layers: int = 2
    decoder_heads: int = 4
    decoder_mlp: int = 256

    def __post_init__(self) -> None:
        if self.side % PATCH:
            raise ValueError(f"side is {self.side}; the small backbone needs a multiple of {PATCH}")
        if self.dim % self.heads or self.prompt_dim % 8:
            raise ValueError(f"dim {self.dim} must divide by heads {self.heads}, prompt_dim {self.prompt_dim} by 8")

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // PATCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ConvBlock(nn.Module):
    """Residual 3x3 convolutions at one resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class Block(nn.Module):
    """Pre-norm transformer block over image tokens, global attention; the MLP is `ratio` times as wide."""

    def __init__(self, dim: int, heads: int, ratio: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, num, dim = x_BND.shape
        qkv = self.qkv(self.norm1(x_BND)).view(batch, num, 3, self.heads, dim // self.heads)
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        x_BND = x_BND + self.proj(mixed.transpose(1, 2).reshape(batch, num, dim))
        return x_BND + self.fc2(F.gelu(self.fc1(self.norm2(x_BND))))


class PixelEncoder(nn.Module):
    """Pixels to tokens and three skip maps; the maps carry meaning too, since the tokens flow back into them."""

    def __init__(self, config: SmallConfig):
        super().__init__()
        c2, c4, c8 = config.stem
        self.conv2 = nn.Conv2d(3, c2, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(c2, c4, 3, stride=2, padding=1)
        self.block4 = ConvBlock(c4)
        self.conv8 = nn.Conv2d(c4, c8, 3, stride=2, padding=1)
        self.block8 = ConvBlock(c8)
        self.conv16 = nn.Conv2d(c8, config.dim, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, config.grid**2, config.dim) * 0.02)
        self.blocks = nn.ModuleList([Block(config.dim, config.heads) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim)
        self.up8, self.fuse8 = nn.Conv2d(config.dim, c8, 1), ConvBlock(c8)
        self.up4, self.fuse4 = nn.Conv2d(c8, c4, 1), ConvBlock(c4)
        self.up2, self.fuse2 = nn.Conv2d(c4, c2, 1), ConvBlock(c2)
        self.neck = nn.Conv2d(config.dim, config.prompt_dim, 1)
        for zero in (self.up2, self.fuse2.conv2):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(cast(Tensor, zero.bias))

    def forward(self, pixels: Tensor) -> Features:
        """`float[B, 3, side, side]`, normalised, to `Features` with skips of stride 8, 4 and 2."""
        s2 = F.gelu(self.conv2(pixels))
        s4 = self.block4(self.conv4(s2))
        s8 = self.block8(self.conv8(F.gelu(s4)))
        map16 = self.conv16(F.gelu(s8))
        batch, dim, grid, _ = map16.shape
        tokens = map16.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        map16 = tokens.transpose(1, 2).reshape(batch, dim, grid, grid)
        s8 = self.fuse8(s8 + F.interpolate(self.up8(map16), scale_factor=2.0, mode="nearest"))
        s4 = self.fuse4(s4 + F.interpolate(self.up4(s8), scale_factor=2.0, mode="nearest"))
        s2 = self.fuse2(s2 + F.interpolate(self.up2(s4), scale_factor=2.0, mode="nearest"))
        return Features(embedding=self.neck(map16), tokens=tokens, skips=(s8, s4, s2))


def corners(box: Tensor) -> Tensor:
    """Boxes float[..., 4], centre and size, to xyxy."""
    centre, size = box.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centred(box: Tensor) -> Tensor:
    """Boxes float[..., 4], xyxy, to centre and size."""
    first, last = box.split(2, -1)
    return torch.cat([(first + last) / 2, last - first], -1)


def soft_box(box: Tensor, cells: int) -> Tensor:
    """Boxes float[P, 4] (centre, size, shares) as maps float[P, 3, cells, cells]: inside 0..1, x, y relative to it."""
    at = (torch.arange(cells, device=box.device) + 0.5) / cells
    sharp = 1.5 * cells  # the edge is about one cell wide

    def along(centre: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        offset = at - centre[:, None]
        inside = torch.sigmoid((offset + size[:, None] / 2) * sharp) * torch.sigmoid(
            (size[:, None] / 2 - offset) * sharp
        )
        return inside, (offset / size[:, None].clamp_min(0.5 / cells)).clamp(-2, 2)

    (inside_x, x), (inside_y, y) = along(box[:, 0], box[:, 2]), along(box[:, 1], box[:, 3])
    inside = inside_y[:, :, None] * inside_x[:, None, :]
    return torch.stack([inside, inside * x[:, None, :], inside * y[:, :, None]], 1)


class SkipMaskDecoder(nn.Module):
    """SAM's two-way decoder whose upscaling 16 -> 8 -> 4 -> 2 adds the encoder's skips; one mask a prompt."""

    def __init__(self, config: SmallConfig):
        super().__init__()
        dim, (c2, c4, c8) = config.prompt_dim, config.stem
        self.output_tokens = nn.Embedding(2, dim)  # quality, mask
        sam = SamMaskDecoderConfig(
            hidden_size=dim,
            num_hidden_layers=config.decoder_layers,
            num_attention_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp,
            layer_norm_eps=1e-5,
        )
        sam._attn_implementation = "eager"  # faster than SDPA here: two to five queries, tiny heads
        self.transformer = SamTwoWayTransformer(sam)
        self.up8 = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)
        self.up4 = nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2)
        self.skip8, self.skip4 = nn.Conv2d(c8, dim // 2, 1), nn.Conv2d(c4, dim // 4, 1)
        self.skip2 = nn.Conv2d(c2, dim // 8, 1)
        self.norm8 = nn.GroupNorm(1, dim // 2)
        self.edges = ConvBlock(dim // 8)  # what a prompt's mask does along contours, at stride 2
        self.hyper = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.hyper_out = nn.Linear(dim, dim // 8)
        self.quality = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        # Where to look: a box read from the prompt, drawn softly into every resolution (our addition; a small decoder
        # learns to follow coordinates in a token only slowly).
        self.where = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 4))
        self.place16, self.place8 = nn.Conv2d(3, dim, 1, bias=False), nn.Conv2d(3, dim // 2, 1, bias=False)
        self.place4 = nn.Conv2d(3, dim // 4, 1, bias=False)
        self.gate = nn.Parameter(torch.tensor(3.0))
        # What to look for: one embedding per stride-4 pixel, shared by all prompts of an image (MaskFormer's head).
        self.pixel = nn.Sequential(nn.Conv2d(c4, dim, 1), nn.GELU(), nn.Conv2d(dim, dim // 2, 1))
        self.pixel_out = nn.Linear(dim, dim // 2)
        for zero in (self.place16, self.place8, self.place4):
            nn.init.zeros_(zero.weight)
        for unused in (self.pixel_out, self.edges.conv2):
            nn.init.zeros_(unused.weight)
            nn.init.zeros_(cast(Tensor, unused.bias))

    def look(self, sparse: Tensor) -> Tensor:
        """Where prompts float[P, T, C] point: boxes float[P, 4], centre and size, shares of the side."""
        return cast(Tensor, self.where(sparse[:, :2].flatten(1))).float().sigmoid()

    def forward(
        self,
        features: Features,
        image_PE: Tensor,
        index: Tensor,
        sparse: Tensor,
        dense: Tensor | None,
        told: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """P prompts of any images in one call.

        Args:
            features: of B images.
            image_PE: float[1, C, g, g], positional code of the grid.
            index: int[P], the image of each prompt.
            sparse: float[P, T, C] prompt tokens, T at least 2.
            dense: float[P, C, g, g] to add to the image, or None.
            told: float[P, 4] boxes that are known (xyxy, shares of the side), rows of NaN where the prompt has to say.

        Returns:
            mask logits float[P, side/2, side/2], logits float[P] of the predicted IoU, and where it looked, boxes
            float[P, 4] (xyxy, shares of the side).
        """
        count, grid = index.shape[0], features.embedding.shape[-1]
        box = self.look(sparse)
        if told is not None:
            box = torch.where(told.isfinite(), centred(told), box)
        skip8, skip4, skip2 = (conv(skip) for conv, skip in zip(self.skips, features.skips, strict=True))
        image = features.embedding.index_select(0, index)
        image = image if dense is None else image + dense
        dtype = image.dtype
        image = image + self.place16(soft_box(box, grid).to(dtype))
        tokens = torch.cat([self.output_tokens.weight.expand(count, -1, -1).to(sparse.dtype), sparse], 1)[:, None]
        tokens, image = self.transformer(
            point_embeddings=tokens,
            image_embeddings=image,
            image_positional_embeddings=image_PE.expand(count, -1, -1, -1),
            attention_similarity=None,
        )
        image = image[:, 0].transpose(1, 2).reshape(count, -1, grid, grid)
        x8 = F.gelu(
            self.norm8(self.up8(image) + skip8.index_select(0, index)) + self.place8(soft_box(box, 2 * grid).to(dtype))
        )
        x4 = F.gelu(self.up4(x8) + skip4.index_select(0, index) + self.place4(soft_box(box, 4 * grid).to(dtype)))
        x2 = self.edges(F.gelu(self.up2(x4) + skip2.index_select(0, index)))
        hidden = self.hyper(tokens[:, 0, 1])
        logits = torch.einsum("pc,pchw->phw", self.hyper_out(hidden), x2)
        pixel = self.pixel(features.skips[1]).index_select(0, index)
        coarse = torch.einsum("pc,pchw->phw", self.pixel_out(hidden), pixel)
        logits = logits + F.interpolate(coarse[:, None], scale_factor=2.0, mode="bilinear")[:, 0]
        logits = logits + self.gate * (soft_box(box, 8 * grid)[:, 0] - 1)
        return logits, self.quality(tokens[:, 0, 0].detach())[:, 0], corners(box)

    @property
    def skips(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        return self.skip8, self.skip4, self.skip2


class SmallBridge(nn.Module):
    """`encode` images, `decode` prompts; see `sam_bridge.bridge` for the interface."""

    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        self.encoder = PixelEncoder(config)
        vision: dict[str, Any] = {"num_pos_feats": config.prompt_dim // 2, "scale": 1.0}  # 384 otherwise: noise
        self.prompt_encoder = SamPromptEncoder(
            SamConfig(
                vision_config=SamVisionConfig(**vision).to_dict(),
                prompt_encoder_config=SamPromptEncoderConfig(
                    hidden_size=config.prompt_dim, image_size=config.side, patch_size=PATCH
                ).to_dict(),
                mask_decoder_config=SamMaskDecoderConfig().to_dict(),
            )
        )
        self.prompt_encoder.shared_embedding.positional_embedding.requires_grad_(False)
        self.mask_decoder = SkipMaskDecoder(config)

    @property
    def side(self) -> int:
        """Side of the model's square, px."""
        return self.config.side

    @property
    def prompt_dim(self) -> int:
        return self.config.prompt_dim

    @property
    def mask_side(self) -> int:
        """Side of the mask logits."""
        return self.config.side // 2

    def canvas(self, size: tuple[int, int]) -> Canvas:
        return Canvas.longest_side(size, self.side)

    def normalise(self, pixels: Tensor) -> Tensor:
        """`uint8[B, 3, side, side]` whole squares to the floats that `encode` takes, on the model's device."""
        return (pixels.float() - PIXEL_MEAN) / PIXEL_STD

    def encode(self, pixel_values: Tensor) -> Features:
        return cast(Features, self.encoder(pixel_values))

    def image_position(self) -> Tensor:
        """float[1, C, g, g]: the positional code of the token grid."""
        grid = self.config.grid
        steps = (torch.arange(grid, device=self.encoder.position.device, dtype=torch.float32) + 0.5) / grid
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        code = self.prompt_encoder.shared_embedding(torch.stack([x, y], -1)[None])
        return code.permute(0, 3, 1, 2)

    def decode_flat(
        self,
        features: Features,
        index: Tensor,
        sparse: Tensor,
        dense: Tensor | None = None,
        told: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt tokens float[P, T, C] and images int[P] to logits float[P, q, q], IoU's logits float[P], boxes
        float[P, 4]; see `SkipMaskDecoder`."""
        return self.mask_decoder(features, self.image_position().to(sparse.dtype), index, sparse, dense, told)

    def state_tokens(self, states: Tensor) -> Tensor:
        """Language states float[..., C] to prompt tokens float[..., 2, C]: the state, and SAM's "not a point".

        Points come padded with the same token in SAM, so every prompt of this backbone has at least two.
        """
        nothing = self.prompt_encoder.not_a_point_embed.weight.to(states.dtype)
        return torch.stack([states, nothing.expand(states.shape)], -2)

    def look(self, states: Tensor) -> Tensor:
        """Where projected states float[P, C] point: boxes float[P, 4], xyxy, shares of the side."""
        return corners(self.mask_decoder.look(self.state_tokens(states)))

    def decode(self, features: Features, prompts: Prompts, multimask: bool = False) -> Masks:
        """One mask a prompt: logits float[B, K, 1, side/2, side/2], and predicted IoU float[B, K, 1].

        Raises:
            ValueError: prompts of other images, of another width, or masks of another side than this model's.
        """
        if multimask:
            raise ValueError("the small backbone decodes one mask a prompt; call it with multimask=False")
        if len(features) != len(prompts.valid):
            raise ValueError(
                f"features of {len(features)} images, prompts for {len(prompts.valid)}; give one row per image"
            )
        if prompts.embeds is not None and prompts.embeds.shape[-1] != self.prompt_dim:
            raise ValueError(
                f"language prompts are {prompts.embeds.shape[-1]} wide, this decoder takes {self.prompt_dim}"
            )
        wanted = (4 * self.config.grid, 4 * self.config.grid)
        if prompts.masks is not None and tuple(prompts.masks.shape[-2:]) != wanted:
            raise ValueError(
                f"mask prompts are {tuple(prompts.masks.shape[-2:])}, this decoder takes {wanted}; resize them first"
            )

        def decode_rows(rows: Rows) -> tuple[Tensor, Tensor]:
            dense = None if rows.masks is None else self.prompt_encoder.mask_embed(rows.masks)
            told = None if rows.boxes is None else rows.boxes / self.side
            logits, quality, _ = self.decode_flat(features, rows.image, self.sparse_tokens(rows), dense, told)
            return logits[:, None], quality[:, None].sigmoid()

        return decode_ragged(prompts, decode_rows)

    def sparse_tokens(self, rows: Rows) -> Tensor:
        """Every part of n prompts as tokens float[n, T, C]; without a box, "not a point" stands at the end."""
        points = None if rows.points is None else rows.points[:, None]
        labels = None if rows.labels is None else rows.labels[:, None]
        boxes = None if rows.boxes is None else rows.boxes[:, None]
        geometric, _ = self.prompt_encoder(points, labels, boxes, None)
        parts = [] if geometric is None else [geometric[:, 0]]
        if rows.embeds is not None:
            parts.append(rows.embeds)
        if geometric is None:
            count = 1 if parts else 2  # a mask alone: the decoder reads two tokens of every prompt
            parts.append(self.prompt_encoder.not_a_point_embed.weight.expand(len(rows), count, -1))
        return torch.cat([part.to(parts[0].dtype) for part in parts], 1)

    def preprocess(self, images: Sequence[Image.Image | np.ndarray]) -> tuple[Tensor, list[Canvas]]:
        """Images of any sizes to float32[B, 3, side, side], padding 0, and their canvases."""
        return preprocess(images, canvas=self.canvas, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3)
