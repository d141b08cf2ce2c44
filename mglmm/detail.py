"""What image tokens gain on their way into the language model: finer maps, and what they are among others.

A part of a thing is often smaller than a token of 16 px, and its colour is lost there; the maps that the mask decoder
sees have it. Each image token gains the four cells of stride 8 and the sixteen of stride 4 that it covers.

"The large dog" is a word about all dogs. A causal language model must say it before it has spoken of the others, and an
encoder that learnt what is where has not compared them; layers in which all image tokens see each other can.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mglmm.feedback import silence
from sam_bridge.small import Block

HEAD_DIM = 64


class ImageDetail(nn.Module):
    """Maps of stride 8 and 4 to what is added to image tokens, float[I, N, D]; zero at first.

    Args:
        coarse: channels of the map of stride 8.
        fine: channels of the map of stride 4.
        dim: D, width of the language model.
    """

    def __init__(self, coarse: int, fine: int, dim: int):
        super().__init__()
        width = 4 * coarse + 16 * fine
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        silence(self.mlp[2])

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """float[I, coarse, 2g, 2g] and float[I, fine, 4g, 4g] to float[I, g * g, D]."""
        cells = [
            rearrange(each, "i c (h a) (w b) -> i (h w) (a b c)", a=size, b=size)
            for each, size in ((coarse, 2), (fine, 4))
        ]
        return self.mlp(self.norm(torch.cat(cells, -1)))


class ImageLayers(nn.Module):
    """Transformer layers over the image tokens float[I, N, D], seen by the language model alone; add nothing at first.

    Args:
        dim: D, a multiple of `HEAD_DIM`, or one head.
        depth: layers.
    """

    def __init__(self, dim: int, depth: int):
        super().__init__()
        heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, ratio=2) for _ in range(depth)))
        self.out = nn.Linear(dim, dim)
        silence(self.out)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.out(self.blocks(self.norm(tokens)))
