"""GLaMM's region encoder: a box becomes one vector, read by RoIAlign from four levels of the CLIP tower.

    4 CLIP states ─upsample 8, 4, 2, 1─▶ fuse neighbours 5 times ─RoIAlign 14 x 14─▶ conv, sum ─flatten─▶ + place ─▶ D

G regions, I images, C channels of the CLIP tower, W the inner width, D the language model's. Sources: GLaMM
(arXiv:2311.03356) section 3; upstream `MLVLROIQueryModule` and `MlvlRoIExtractor` (groundingLMM `model/layers.py`);
RoIAlign: Mask R-CNN (arXiv:1703.06870) section 3, as mmcv 1.4.7 computes it with `aligned=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from mglmm.config import Strict
from mglmm.precision import bfloat16_arithmetic
from mglmm.regions import EMPTY

NUM_LEVELS = 4
NUM_FUSE = 5
NUM_GROUPS = 64  # of the group norms
NUM_PLACE = 256  # width of the box's own small MLP
ROI_SIDE = 14
ROI_SAMPLES = 2  # points along a side of each of the 14 x 14 bins
PUBLISHED_SIDE = 224


class GlammSizes(Strict):
    """Sizes and habits of the encoder; the defaults are GLaMM-7B's sizes with correct geometry."""

    inner: int = Field(default=1024, gt=0)  # W, width after the 14 x 14 grid is flattened
    box_side: float | None = Field(default=None, gt=0)  # px that a share of 1 means; None: the tower's side
    box_frame: Literal["canvas", "image"] = "canvas"  # boxes as shares of CLIP's square, or of the image's own sides
    compute: Literal["parameters", "bfloat16"] = "parameters"  # dtype of the arithmetic

    @classmethod
    def published(cls, inner: int = 1024) -> GlammSizes:
        """As the released weights were trained: boxes times 224 on a 336 px grid, shares of the image, bf16 always."""
        return cls(inner=inner, box_side=PUBLISHED_SIDE, box_frame="image", compute="bfloat16")


class GlammRegions(nn.Module):
    """Boxes over four CLIP levels to vectors.

    Args:
        channels: C, of every level.
        dim: D.
        tower_side: side of the CLIP tower's square, px.
        sizes: see `GlammSizes`.

    Raises:
        ValueError: the channels cannot be split into 64 groups (of group norm).
    """

    def __init__(self, channels: int, dim: int, tower_side: int, sizes: GlammSizes | None = None):
        super().__init__()
        self.sizes = sizes or GlammSizes()
        if channels % NUM_GROUPS:
            raise ValueError(
                f"GLaMM's region encoder needs a CLIP tower whose width is a multiple of {NUM_GROUPS}, "
                f"this one has {channels}; set region_encoder: mask_mean"
            )
        self.tower_side = tower_side
        self.box_side = float(self.sizes.box_side or tower_side)
        self.body = GlammBody(channels, self.sizes.inner, dim)

    def forward(self, maps: Sequence[Tensor], coverage: Tensor, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        """G regions of any images.

        Args:
            maps: four levels float[I, C, g, g], shallow first (CLIP states -11, -8, -5, -2).
            coverage: float[G, h, w] in 0..1 over CLIP's square; used where no boxes are given.
            image: int64[G], the image of each region.
            boxes: float[G, 4] x1, y1, x2, y2 in 0..1, see `GlammSizes.box_frame`; None: the tight box of each coverage.

        Returns:
            float[G, D], in the dtype of the arithmetic.

        Raises:
            ValueError: not four levels, or a region is empty.
        """
        if len(maps) != NUM_LEVELS:
            raise ValueError(f"GLaMM's region encoder reads {NUM_LEVELS} levels of the CLIP tower; got {len(maps)}")
        boxes = boxes_of(coverage) if boxes is None else boxes
        check_boxes(boxes)
        dtype = torch.bfloat16 if self.sizes.compute == "bfloat16" else next(self.parameters()).dtype
        if dtype == torch.bfloat16:
            boxes = boxes.half()  # upstream rounds twice: `.half().to(torch.bfloat16)`
        used, local = torch.unique(image, return_inverse=True)
        patch = self.tower_side / maps[0].shape[-1]
        weights = {name: value.to(dtype) for name, value in self.body.named_parameters()}
        # Contiguous here and after RoIAlign: with channels last, bf16 convolutions sum in another order than upstream.
        inputs = ([level[used].contiguous() for level in maps], boxes.to(dtype), local, self.box_side, patch)
        with bfloat16_arithmetic(maps[0].is_cuda):
            return functional_call(self.body, weights, inputs)


class GlammBody(nn.Module):
    """The layers of `GlammRegions`; its parameters may be handed in cast to another dtype."""

    def __init__(self, channels: int, inner: int, dim: int):
        super().__init__()
        self.width = channels
        self.enter = nn.ModuleList([nn.Conv2d(channels + 2, channels, 1) for _ in range(NUM_LEVELS)])
        self.fuse = nn.ModuleList([Fuse(channels) for _ in range(NUM_FUSE)])
        self.leave = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(NUM_LEVELS)])
        self.place = nn.Sequential(
            nn.Linear(4, NUM_PLACE),
            nn.ReLU(),
            nn.LayerNorm(NUM_PLACE),
            nn.Linear(NUM_PLACE, inner),
            nn.ReLU(),
            nn.LayerNorm(inner),
        )
        self.flatten = nn.Linear(channels * ROI_SIDE**2, inner)
        self.project = nn.Linear(inner, dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor, side: float, patch: float) -> Tensor:
        """float[G, D]; a share of 1 is `side` px, a cell of the coarsest map `patch` px."""
        levels = self.fused(maps, boxes.dtype)
        found: list[Tensor] = []
        for number, (level, conv) in enumerate(zip(levels, self.leave, strict=True)):
            scale = 2 ** (NUM_LEVELS - 1 - number)
            corners = (boxes * side).float() * (scale / patch)
            found.append(conv(roi_align(level, corners, image).to(level.dtype)))
        return self.project(self.flatten(F.relu(sum(found[1:], found[0])).flatten(1)) + self.place(boxes))

    def fused(self, maps: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The levels float[I, C, g * 2**k, g * 2**k], finest first, after they exchanged channels."""
        levels = []
        for number, (level, conv) in enumerate(zip(maps, self.enter, strict=True)):
            side = level.shape[-1] * 2 ** (NUM_LEVELS - 1 - number)
            large = resized(level, side).to(dtype)
            levels.append(conv(torch.cat([large, coordinates(large)], 1)))
        for fuse in self.fuse:
            levels = [fuse(levels, number) for number in range(NUM_LEVELS)]
        return levels


class Fuse(nn.Module):
    """One exchange: each level keeps half of its channels and takes a quarter from either neighbour."""

    def __init__(self, channels: int):
        super().__init__()
        self.kept, self.taken = channels - 2 * (channels // 4), channels // 4
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, channels)

    def forward(self, levels: Sequence[Tensor], number: int) -> Tensor:
        """The new level `number`: its own first half, the coarser one's last and the finer one's third quarter."""
        own = levels[number]
        coarser, finer = levels[min(number + 1, NUM_LEVELS - 1)], levels[max(number - 1, 0)]
        taken = coarser[:, self.kept + self.taken :], finer[:, self.kept : self.kept + self.taken]
        parts = [own[:, : self.kept], *(resized(each, own.shape[-1]).to(own.dtype) for each in taken)]
        return F.relu(self.norm(self.conv(torch.cat(parts, 1))))


def resized(level: Tensor, side: int) -> Tensor:
    """float32[I, C, side, side]; an empty batch stays empty."""
    if not level.numel():
        return level.float().new_zeros(*level.shape[:2], side, side)
    return F.interpolate(level.float(), (side, side), mode="bilinear", align_corners=True)


def coordinates(level: Tensor) -> Tensor:
    """float[I, 2, h, w]: x and y of each cell in -1..1."""
    count, _, height, width = level.shape
    x = torch.linspace(-1, 1, width, device=level.device).expand(height, width)
    y = torch.linspace(-1, 1, height, device=level.device)[:, None].expand(height, width)
    return torch.stack([x, y]).expand(count, -1, -1, -1).to(level.dtype)


def roi_align(level: Tensor, boxes: Tensor, image: Tensor, side: int = ROI_SIDE, samples: int = ROI_SAMPLES) -> Tensor:
    """Mean of bilinear samples in each bin of each box.

    Half a pixel is taken off the corners (`aligned`). A sample more than a pixel outside the map is 0; nearer ones
    read the border.

    Args:
        level: float[I, C, h, w].
        boxes: float32[G, 4] x1, y1, x2, y2, px of the map.
        image: int64[G].
        side: bins along a side.
        samples: points along a side of a bin.

    Returns:
        float32[G, C, side, side].
    """
    count, channels = len(boxes), level.shape[1]
    low, high = boxes[:, :2] - 0.5, boxes[:, 2:] - 0.5
    size = ((high - low) / side)[..., None, None]  # float[G, 2, 1, 1], px of a bin
    bins = torch.arange(side, device=level.device)[:, None]
    points = torch.arange(samples, device=level.device) + 0.5
    places = (low[..., None, None] + bins * size + points * size / samples).flatten(2)  # float[G, 2, n], x then y
    (x0, x1, wx0, wx1), (y0, y1, wy0, wy1) = (
        neighbours(places[:, axis], level.shape[-1 - axis]) for axis in (0, 1)
    )  # fmt: skip
    flat = level.flatten(2).transpose(1, 2)  # float[I, h w, C]
    out = torch.zeros(count, side * samples, side * samples, channels, device=level.device)
    for y, wy in ((y0, wy0), (y1, wy1)):
        for x, wx in ((x0, wx0), (x1, wx1)):
            index = y[:, :, None] * level.shape[-1] + x[:, None, :]
            out = out + flat[image[:, None, None], index].float() * (wy[:, :, None] * wx[:, None, :])[..., None]
    bins_GsnsnC = out.reshape(count, side, samples, side, samples, channels)
    total = sum(bins_GsnsnC[:, :, row, :, column] for row in range(samples) for column in range(samples))
    return (total / samples**2).permute(0, 3, 1, 2).contiguous()  # pyright: ignore


def neighbours(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper cell (int64) of places float[...] on an axis of `size` cells, and their weights."""
    inside = ((place >= -1) & (place <= size)).to(place.dtype)
    near = place.clamp(0, size - 1)
    lower = near.floor().long()
    upper = (lower + 1).clamp(max=size - 1)
    share = near - lower
    return lower, upper, (1 - share) * inside, share * inside


def boxes_of(coverage: Tensor) -> Tensor:
    """float32[G, 4]: tight box of each coverage float[G, h, w], shares of the square; NaN where it is empty."""
    height, width = coverage.shape[-2:]
    out = coverage.new_full((len(coverage), 4), torch.nan, dtype=torch.float32)
    for number, each in enumerate(coverage > 0):
        rows, columns = each.any(1).nonzero()[:, 0], each.any(0).nonzero()[:, 0]
        if len(rows):
            edges = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
            out[number] = torch.stack(edges)
    return out


def check_boxes(boxes: Tensor) -> None:
    """Raise ValueError where a region has no box."""
    empty = boxes.isnan().any(1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(EMPTY.format(empty[0]))


KEYS = {
    **{f"mlvl_fuse.input_conv.{i}": f"enter.{i}" for i in range(NUM_LEVELS)},
    **{f"mlvl_fuse.fuse_convs.{i}.conv": f"fuse.{i}.conv" for i in range(NUM_FUSE)},
    **{f"mlvl_fuse.fuse_convs.{i}.gn": f"fuse.{i}.norm" for i in range(NUM_FUSE)},
    **{f"roi_align.pconvs.{i}": f"leave.{i}" for i in range(NUM_LEVELS)},
    **{f"roi_align.pos_embedd.{i}": f"place.{i}" for i in (0, 2, 3, 5)},
    "roi_align.flatten_linear": "flatten",
    "roi_align.updims": "project",
}
"""Modules of upstream's `region_encoder` and their names in `GlammRegions.body`."""


def from_upstream(key: str) -> str | None:
    """`mlvl_fuse.input_conv.0.weight` to `body.enter.0.weight`; None where the key is not of this encoder."""
    module, _, leaf = key.rpartition(".")
    return f"body.{KEYS[module]}.{leaf}" if module in KEYS else None
