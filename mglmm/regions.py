"""Regions in: a region of the image becomes one vector in the token stream, by the mean of features under its mask.

G regions, D the language model's width. Points and scribbles come as small discs (see
`mglmm_data.sample.POINT_RADIUS`), so that every kind of region is a coverage map here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_SHAPE = 5  # centre x, y, spread x, y, root of the area; shares of the square


class MaskMean(nn.Module):
    """Mean of each feature map under the region, and where the region lies, through a small MLP."""

    def __init__(self, channels: Sequence[int], dim: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(count) for count in channels])
        self.linear_1 = nn.Linear(sum(channels) + NUM_SHAPE, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, maps: Sequence[Tensor], coverage: Tensor, image: Tensor) -> Tensor:
        """G regions of any images.

        Args:
            maps: float[I, C_i, h_i, w_i] each.
            coverage: float[G, h, w] in 0..1 over the same frame as the maps.
            image: int64[G], the image of each region.

        Returns:
            float[G, D].
        """
        pooled = [norm(mean_under(each, coverage, image)) for norm, each in zip(self.norms, maps, strict=True)]
        hidden = torch.cat([*pooled, shape_of(coverage)], -1)
        return self.linear_2(F.gelu(self.linear_1(hidden.to(self.linear_1.weight.dtype))))


def mean_under(features: Tensor, coverage: Tensor, image: Tensor) -> Tensor:
    """float[G, C]: mean of a map float[I, C, h, w] under each coverage; a region thinner than a cell still counts."""
    weight = F.interpolate(coverage[:, None].float(), features.shape[-2:], mode="area")[:, 0]
    weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-6)
    return torch.einsum("ghw,gchw->gc", weight.to(features.dtype), features[image])


def shape_of(coverage: Tensor) -> Tensor:
    """float[G, 5]: centre, spread and size of each coverage float[G, h, w], shares of the square."""
    height, width = coverage.shape[-2:]
    y = (torch.arange(height, device=coverage.device) + 0.5) / height
    x = (torch.arange(width, device=coverage.device) + 0.5) / width
    coverage = coverage.float()
    mass = coverage.sum((1, 2)).clamp_min(1e-6)
    rows, columns = coverage.sum(2) / mass[:, None], coverage.sum(1) / mass[:, None]
    mean_y, mean_x = (rows * y).sum(1), (columns * x).sum(1)
    spread_y = (rows * (y - mean_y[:, None]) ** 2).sum(1).clamp_min(1e-9).sqrt()
    spread_x = (columns * (x - mean_x[:, None]) ** 2).sum(1).clamp_min(1e-9).sqrt()
    size = (mass / (height * width)).sqrt()
    return torch.stack([mean_x, mean_y, spread_x, spread_y, size], -1)
