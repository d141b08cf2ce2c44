"""Ferret's spatial-aware visual sampler: points of a region, thinned twice, become one vector.

    mask ─512 points─▶ features there ─(farthest 128, each with 24 neighbours)─▶ (32, 24 each) ─flatten─▶ 2 linears ─▶ D

G regions, I images, C channels of the map, P points, S anchors of a stage, K neighbours of an anchor, D the language
model's width. Positions are x, y in 0..1 of the frame. Sources: Ferret (arXiv:2310.07704) section 3.2; upstream
`GeoRegionSampler` (ml-ferret `ferret/model/ferret_arch.py`).

The published weights were trained with three habits that are flags of `FerretSizes` here and off by default: features
are read at the transposed place, positions are a pixel's corner on a grid whose border cells' centres are 0 and 1, and
neighbours are found with the expanded distance |a|² + |b|² - 2ab in the model's dtype (in bf16 a small region keeps few
of its true neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mglmm.config import Strict
from mglmm.regions import EMPTY

KNN_DTYPES = {"exact": torch.float32, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FerretSizes(Strict):
    """Sizes and habits of the sampler; sizes default to Ferret-7B's, habits to correct geometry."""

    num_points: int = Field(default=512, gt=0)  # P, drawn from the region
    anchors: tuple[int, ...] = Field(default=(128, 32), min_length=1)  # S of each stage
    neighbours: tuple[int, ...] = Field(default=(24, 24), min_length=1)  # K of each stage
    pooling: Literal["max", "mean"] = "max"
    transpose_compat: bool = False  # read features at (y, x), as the published weights were trained
    corner_compat: bool = False  # positions without the half pixel, and `align_corners`, as published
    knn: Literal["exact", "float32", "float16", "bfloat16"] = "exact"  # a dtype: the published formula in it
    seed: int = 0  # of the draws outside training: a region gives the same vector every time, in every batch

    @model_validator(mode="after")
    def stages_fit(self) -> FerretSizes:
        if len(self.anchors) != len(self.neighbours):
            raise ValueError(
                f"anchors has {len(self.anchors)} stages, neighbours {len(self.neighbours)}; give one number for each"
            )
        have = self.num_points
        for anchors, neighbours in zip(self.anchors, self.neighbours, strict=True):
            if not (1 <= anchors <= have and 1 <= neighbours <= have):
                raise ValueError(f"a stage of {have} points cannot give {anchors} anchors with {neighbours} neighbours")
            have = anchors
        return self

    @classmethod
    def published(
        cls,
        pooling: Literal["max", "mean"] = "max",
        knn: Literal["exact", "float32", "float16", "bfloat16"] = "float32",
        **sizes: int | tuple[int, ...],
    ) -> FerretSizes:
        """As the released weights were trained."""
        return cls(pooling=pooling, knn=knn, transpose_compat=True, corner_compat=True, **sizes)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Draws:
    """Everything random about a call, to be handed in where a result must be repeated."""

    points: Tensor  # float32[G, P, 2], x, y in 0..1
    starts: tuple[Tensor, ...] = ()  # int64[G] of each stage: the point that farthest point sampling begins at
    anchors: tuple[Tensor, ...] = ()  # int64[G, S] of each stage, instead of `starts`


class FerretSampler(nn.Module):
    """Regions of any shape over one feature map to vectors.

    Args:
        channels: C.
        dim: D.
        sizes: see `FerretSizes`.
    """

    def __init__(self, channels: int, dim: int, sizes: FerretSizes | None = None):
        super().__init__()
        self.sizes = sizes or FerretSizes()
        self.stages = nn.ModuleList([Stage(channels, self.sizes.pooling) for _ in self.sizes.anchors])
        self.flatten = nn.Linear(channels * self.sizes.anchors[-1], channels)
        self.project = nn.Linear(channels, dim)

    def forward(self, maps: Sequence[Tensor], coverage: Tensor, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        """G regions of any images.

        Args:
            maps: the first is read: float[I, C, h, w].
            coverage: float[G, H, W] in 0..1 over the map's frame; a cell is in the region from half of the largest
                coverage on, so that a region thinner than a cell is not lost.
            image: int64[G], the image of each region.
            boxes: not used.

        Returns:
            float[G, D].

        Raises:
            ValueError: a region is empty.
        """
        masks = coverage >= coverage.amax((1, 2), keepdim=True).clamp_min(1e-6) / 2
        return self.vectors(maps[0], image, self.draw(masks))

    def draw(self, masks: Sequence[Tensor] | Tensor) -> Draws:
        """Points and starting points of regions bool[H, W].

        In training they come from torch's global generator; otherwise each region has its own, seeded by `sizes.seed`.

        Raises:
            ValueError: a region is empty.
        """
        points, starts = [], []
        counts = (self.sizes.num_points, *self.sizes.anchors[:-1])
        for number, mask in enumerate(masks):
            generator = None if self.training else torch.Generator().manual_seed(self.sizes.seed)
            points.append(region_points(mask, self.sizes, generator, number))
            starts.append([int(torch.randint(0, count, (1,), generator=generator)) for count in counts])
        device = masks[0].device if len(masks) else self.flatten.weight.device
        stacked = torch.stack(points) if points else torch.zeros(0, self.sizes.num_points, 2, device=device)
        columns = torch.tensor(starts, dtype=torch.long, device=device).reshape(len(masks), len(counts))
        return Draws(stacked, tuple(columns.T))

    def vectors(self, features: Tensor, image: Tensor, draws: Draws) -> Tensor:
        """float[G, D] of regions whose draws are given.

        Args:
            features: float[I, C, h, w].
            image: int64[G].
        """
        dtype = self.flatten.weight.dtype
        exact = self.sizes.knn == "exact"
        points = draws.points.to(KNN_DTYPES[self.sizes.knn])
        hidden = read_points(features, image, points, self.sizes).to(dtype)
        for number, stage in enumerate(self.stages):
            if draws.anchors:
                anchors = draws.anchors[number].long()
            else:
                anchors = farthest(points, self.sizes.anchors[number], draws.starts[number])
            chosen = take(points, anchors)
            near = nearest(points, chosen, self.sizes.neighbours[number], exact)
            hidden = stage(points.to(dtype), hidden, anchors, near)
            points = chosen
        return self.project(self.flatten(hidden.flatten(1)))


class Stage(nn.Module):
    """One thinning: each anchor gathers its neighbours' features and offsets."""

    def __init__(self, channels: int, pooling: str):
        super().__init__()
        self.difference = nn.Linear(channels + 2, channels + 2)
        self.gather = nn.Conv1d(2 * (channels + 2), channels, 1)  # a linear layer, kept in upstream's shape
        self.norm = nn.LayerNorm(channels)
        self.pooling = pooling

    def forward(self, points: Tensor, hidden: Tensor, anchors: Tensor, near: Tensor) -> Tensor:
        """float[G, S, C] from points float[G, P, 2], features float[G, P, C], int64[G, S] and int64[G, S, K]."""
        placed = torch.cat([hidden, points], -1)
        anchor_GS1e, near_GSKe = take(placed, anchors)[:, :, None], take(placed, near)
        offset = self.difference(near_GSKe - anchor_GS1e)
        both = torch.cat([offset, anchor_GS1e.expand_as(offset)], -1)
        gathered = F.linear(both, self.gather.weight[..., 0], self.gather.bias)
        each_GSKC = self.norm(F.relu(gathered))
        return each_GSKC.amax(2) if self.pooling == "max" else each_GSKC.mean(2)


def region_points(mask: Tensor, sizes: FerretSizes, generator: torch.Generator | None, number: int = 0) -> Tensor:
    """float32[P, 2]: P pixels of a region bool[H, W] as x, y in 0..1: some of them, or all and repeats.

    Pixels are counted column by column and drawn as upstream, so that the same generator gives the same points.
    """
    places = mask.T.nonzero()  # int64[n, 2], x, y
    count = len(places)
    if not count:
        raise ValueError(EMPTY.format(number))
    if count > sizes.num_points:
        places = places[torch.randperm(count, generator=generator)[: sizes.num_points].to(mask.device)]
    elif count < sizes.num_points:
        repeats = torch.randint(0, count, (sizes.num_points - count,), generator=generator).to(mask.device)
        places = torch.cat([places, places[repeats]])
    height, width = mask.shape
    return (places + (0.0 if sizes.corner_compat else 0.5)) / torch.tensor([width, height], device=mask.device)


def read_points(features: Tensor, image: Tensor, points: Tensor, sizes: FerretSizes) -> Tensor:
    """float32[G, P, C]: maps float[I, C, h, w] at points float[G, P, 2], bilinear."""
    places = (2 * (points.flip(-1) if sizes.transpose_compat else points) - 1).float()
    count, channels = len(points), features.shape[1]
    out = torch.zeros(count, points.shape[1], channels, device=features.device)
    for index in image.unique().tolist():  # an image's map is read where it lies: no copy for each region
        own = (image == index).nonzero()[:, 0]
        read = F.grid_sample(
            features[index][None].float(),
            places[own].reshape(1, -1, 1, 2),
            align_corners=sizes.corner_compat,
            padding_mode="zeros" if sizes.corner_compat else "border",
        )
        out = out.index_copy(0, own, read[0, :, :, 0].T.reshape(len(own), -1, channels))
    return out


def farthest(points: Tensor, count: int, start: Tensor) -> Tensor:
    """Farthest point sampling: int64[G, S], each next point the one farthest from those before (the first of equals).

    Args:
        points: float[G, P, 2].
        count: S.
        start: int64[G].
    """
    chosen = [start]
    distance = torch.full(points.shape[:2], 1e10, device=points.device)
    for _ in range(count - 1):
        step = (points - take(points, chosen[-1][:, None])).square().sum(-1)
        distance = torch.minimum(distance, step.float())
        chosen.append(distance.argmax(-1))
    return torch.stack(chosen, -1)


def nearest(points: Tensor, anchors: Tensor, count: int, exact: bool) -> Tensor:
    """int64[G, S, K]: the points float[G, P, 2] nearest to each anchor float[G, S, 2], the anchor itself among them.

    `exact` takes the earlier of points at the same distance; otherwise the published formula decides, in the points'
    dtype, with its roundings.
    """
    if exact:
        distance = (anchors[:, :, None] - points[:, None]).square().sum(-1)
        return torch.sort(distance, dim=-1, stable=True).indices[..., :count]
    distance = -2 * anchors @ points.transpose(1, 2)
    distance = distance + anchors.square().sum(-1)[:, :, None] + points.square().sum(-1)[:, None]
    return distance.topk(count, largest=False, sorted=False).indices


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of float[G, P, C] by int64[G, ...]: float[G, ..., C]."""
    flat = index.flatten(1)
    found = values.gather(1, flat[..., None].expand(-1, -1, values.shape[-1]))
    return found.reshape(*index.shape, values.shape[-1])
