"""Regions in: a region of the image becomes one vector in the token stream, by the mean of features under its mask.

G regions, D the language model's width. Points and scribbles come as small discs (see
`mglmm_data.sample.POINT_RADIUS`), so that every kind of region is a coverage map here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mglmm.config import Strict, parse
from sam_bridge.small import SmallConfig

if TYPE_CHECKING:
    from mglmm.model_config import MglmmConfig

Sizes = TypeVar("Sizes", bound=Strict)
NUM_SHAPE = 5  # centre x, y, spread x, y, root of the area; shares of the square
EMPTY = "region {} is empty: the model sees no pixel of it; give a mask, box or point inside the image"
NUM_GLAMM_LAYERS = 10  # CLIP states -11, -8, -5, -2 of the embedding's and the layers' outputs


class MaskMean(nn.Module):
    """Mean of each feature map under the region, and where the region lies, through a small MLP."""

    def __init__(self, channels: Sequence[int], dim: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(count) for count in channels])
        self.linear_1 = nn.Linear(sum(channels) + NUM_SHAPE, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, maps: Sequence[Tensor], coverage: Tensor, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        """G regions of any images.

        Args:
            maps: float[I, C_i, h_i, w_i] each.
            coverage: float[G, h, w] in 0..1 over the same frame as the maps.
            image: int64[G], the image of each region.
            boxes: not used.

        Returns:
            float[G, D].
        """
        pooled = [norm(mean_under(each, coverage, image)) for norm, each in zip(self.norms, maps, strict=True)]
        hidden = torch.cat([*pooled, shape_of(coverage)], -1)
        return self.linear_2(F.gelu(self.linear_1(hidden.to(self.linear_1.weight.dtype))))


class NoRegions(nn.Module):
    """What stands where a published model reads no regions (LISA, MGLMM); it takes none and gives float[0, D]."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, maps: Sequence[Tensor], coverage: Tensor, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        if len(image):
            raise ValueError(
                f"{len(image)} region(s) given, but this checkpoint's model reads none; ask without regions, "
                "or use a GLaMM, Ferret or mglmm checkpoint"
            )
        return maps[0].new_zeros(0, self.dim)


def build_region_encoder(config: MglmmConfig) -> nn.Module:
    """The region encoder that a config names, with fresh weights.

    Every one is called as `encoder(maps, coverage, image, boxes)` and gives float[G, D]; see `MaskMean.forward`.

    Args:
        config: `region_encoder` names it, `region_config` holds its sizes and habits (`GlammSizes`, `FerretSizes`).

    Raises:
        ValueError: a size is unknown or does not fit, or the encoder needs a CLIP tower and there is none.
    """
    dim, kind = config.language().hidden_size, config.region_encoder
    if kind == "none":
        return NoRegions(dim)
    if kind == "mask_mean":
        refuse_sizes(config)
        return MaskMean(map_channels(config), dim)
    if config.vision != "clip":
        raise ValueError(f"region_encoder {kind} reads a CLIP tower; set vision: clip, or region_encoder: mask_mean")
    width = config.tower().hidden_size
    if kind == "glamm":
        from mglmm.regions_glamm import GlammRegions, GlammSizes

        layers = config.tower().num_hidden_layers
        if layers < NUM_GLAMM_LAYERS:
            raise ValueError(
                f"region_encoder glamm reads four layers of a CLIP tower of at least {NUM_GLAMM_LAYERS}, this one has "
                f"{layers}; set region_encoder: mask_mean"
            )
        return GlammRegions(width, dim, config.tower_side, checked(GlammSizes, config))
    from mglmm.regions_ferret import FerretSampler, FerretSizes

    return FerretSampler(width, dim, checked(FerretSizes, config))


def checked(sizes: type[Sizes], config: MglmmConfig) -> Sizes:
    """The `region_config` as `sizes`; ValueError names what is wrong in it."""
    return parse(sizes, config.region_config or {}, f"region_config of {config.region_encoder}")


def refuse_sizes(config: MglmmConfig) -> None:
    """The mask mean has no sizes of its own."""
    if config.region_config:
        raise ValueError(f"region_encoder mask_mean has no region_config; leave {config.region_config} out")


def map_channels(config: MglmmConfig) -> list[int]:
    """Channels of the maps that `MaskMean` pools from: the language tokens', then skips of stride 8 and 4."""
    if config.small_config is not None and config.vision == "shared":
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.small_config.items()}
        small = SmallConfig(**sizes)
        return [small.dim, small.stem[2], small.stem[1]]
    return [config.tower().hidden_size]


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
