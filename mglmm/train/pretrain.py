"""Pre-training of the small pixel encoder on world scenes: dense targets and promptable masks.

A language model cannot learn to point with an encoder that sees nothing (measured: ../shared/reference/feasibility.md,
section 3), so the encoder first learns what is where: category, part, colour and box of every pixel, and masks from
*semantic* prompts (category, part, colour, box -> one prompt token) and from points and boxes. None of the heads here
is shipped; the semantic prompt is also what `[SEG]` states are drawn to (distillation) in the next stage.

B images, K prompts an image, q mask side, C prompt width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mglmm.losses import bce_loss, box_loss, dice_loss
from mglmm_data import masks
from mglmm_data.world.scene import Scene, dense_targets, make_scene
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, PART_NAMES, STUFF
from sam_bridge.bridge import Features
from sam_bridge.small import SmallBridge

NOUNS = (*CATEGORIES, *STUFF)
COLOR_NAMES = tuple(COLORS)
PARTS = ("", *PART_NAMES)  # "" is the whole thing, or stuff
GRID_FINE, GRID_TOKEN = 4, 8  # px of one dense cell: stride-4 map, and half a token
SEMANTIC, POINT, BOX = 0, 1, 2


@dataclass(frozen=True)
class Attributes:
    """What a semantic prompt says; every field is int64[...] but `box`, float[..., 4], xyxy in 0..1."""

    noun: Tensor
    part: Tensor
    color: Tensor
    box: Tensor


class SemanticPrompt(nn.Module):
    """(category, part, colour, box) -> one prompt token float[..., C]; a training device, never shipped."""

    bands: Tensor

    def __init__(self, dim: int, bands: int = 8):
        super().__init__()
        self.noun = nn.Embedding(len(NOUNS), 64)
        self.part = nn.Embedding(len(PARTS), 64)
        self.color = nn.Embedding(len(COLOR_NAMES), 32)
        self.register_buffer("bands", 2.0 ** torch.arange(bands) * torch.pi / 2, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(160 + 8 * bands, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, wanted: Attributes) -> Tensor:
        angles = (wanted.box[..., None] * self.bands).flatten(-2)
        words = [self.noun(wanted.noun), self.part(wanted.part), self.color(wanted.color)]
        return self.mlp(torch.cat([*words, angles.sin(), angles.cos()], -1))


class DenseHeads(nn.Module):
    """Category, part, colour and box of every cell, from the stride-4 map and from the tokens themselves."""

    def __init__(self, fine: int, token: int):
        super().__init__()
        self.sizes = (len(NOUNS), len(PARTS), len(COLOR_NAMES), 4)
        self.fine = nn.Sequential(nn.Conv2d(fine, 96, 1), nn.GELU(), nn.Conv2d(96, sum(self.sizes), 1))
        self.token = nn.Linear(token, 4 * sum(self.sizes))

    def forward(self, tokens_BND: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over all targets, channels last: float[B, h, w, sum] at stride 4 and at half a token."""
        grid = round(tokens_BND.shape[1] ** 0.5)
        cells = rearrange(self.token(tokens_BND), "b (h w) (i j c) -> b (h i) (w j) c", h=grid, i=2, j=2)
        return self.fine(fine).permute(0, 2, 3, 1), cells


@dataclass(frozen=True)
class PixelBatch:
    """One step of pre-training. `fine` and `token`: noun, part, colour (int64[B, h, w]) and box (float[B, h, w, 4])."""

    pixels: Tensor  # uint8[B, 3, side, side]
    fine: tuple[Tensor, Tensor, Tensor, Tensor]
    token: tuple[Tensor, Tensor, Tensor, Tensor]
    wanted: Attributes  # [B, K]
    kind: Tensor  # int64[B, K]: SEMANTIC, POINT or BOX
    point: Tensor  # float[B, K, 2], px of the square
    target: Tensor  # float[B, K, q, q], share of each mask cell that is inside

    def to(self, device: torch.device) -> PixelBatch:
        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return Attributes(*(getattr(value, f.name).to(device) for f in fields(Attributes)))

        return PixelBatch(*(move(getattr(self, f.name)) for f in fields(PixelBatch)))  # type: ignore[arg-type]


class PixelPretraining(nn.Module):
    """The bridge with its pre-training heads; `forward` gives the named losses of one `PixelBatch`."""

    def __init__(self, bridge: SmallBridge):
        super().__init__()
        self.bridge = bridge
        self.heads = DenseHeads(bridge.config.stem[1], bridge.config.dim)
        self.semantic = SemanticPrompt(bridge.prompt_dim)

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        trained = any(parameter.requires_grad for parameter in self.bridge.encoder.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            features = self.bridge.encode(self.bridge.normalise(batch.pixels))
        asked = trained or any(parameter.requires_grad for parameter in self.heads.parameters())
        losses = self.dense(features, batch) if asked else {}
        return {**losses, **self.masks(features, batch)}

    def dense(self, features: Features, batch: PixelBatch) -> dict[str, Tensor]:
        """Losses of the dense maps; only where the encoder or the heads over them train."""
        assert features.tokens is not None
        fine, token = self.heads(features.tokens, features.skips[1])
        losses = {f"fine_{name}": value for name, value in dense_losses(fine, batch.fine, self.heads.sizes).items()}
        losses |= {f"token_{name}": value for name, value in dense_losses(token, batch.token, self.heads.sizes).items()}
        return losses

    def masks(self, features: Features, batch: PixelBatch) -> dict[str, Tensor]:
        """Losses of the prompted masks, of the box each prompt is looked for in, and of the predicted IoU."""
        losses: dict[str, Tensor] = {}
        batch_size, count = batch.kind.shape
        index = torch.arange(batch_size, device=batch.kind.device).repeat_interleave(count)
        kind, target = batch.kind.flatten(), batch.target.flatten(0, 1)
        box = batch.wanted.box.flatten(0, 1)
        known = torch.where((kind == BOX)[:, None], box, torch.nan)
        sparse = self.prompt_tokens(batch).flatten(0, 1)
        logits, quality, where = self.bridge.decode_flat(features, index, sparse, told=known)
        logits = logits.float()
        bce, dice = bce_loss(logits, target), dice_loss(logits, target)
        is_semantic = (kind == SEMANTIC).float()
        for name, chosen in (("", is_semantic), ("geo_", 1 - is_semantic)):
            share = chosen.mean()
            losses[f"{name}bce"] = (bce * chosen).sum() / chosen.sum().clamp_min(1) * share
            losses[f"{name}dice"] = (dice * chosen).sum() / chosen.sum().clamp_min(1) * share
        with torch.no_grad():
            inside, wanted = logits > 0, target > 0.5
            iou = (inside & wanted).sum((1, 2)) / (inside | wanted).sum((1, 2)).clamp_min(1)
        losses["where"] = (box_loss(where, box) * is_semantic).mean()  # a point does not say how large
        losses["watch_where"] = ((where - box).abs().mean(1) * is_semantic).sum() / is_semantic.sum().clamp_min(1)
        losses["quality"] = F.mse_loss(quality.float().sigmoid(), iou)
        losses["watch_iou"] = (iou * is_semantic).sum() / is_semantic.sum().clamp_min(1)
        losses["watch_geo_iou"] = (iou * (1 - is_semantic)).sum() / (1 - is_semantic).sum().clamp_min(1)
        return losses

    def prompt_tokens(self, batch: PixelBatch) -> Tensor:
        """Two tokens a prompt, float[B, K, 2, C]: a semantic or a point prompt padded, or two box corners."""
        side, encoder = float(self.bridge.side), self.bridge.prompt_encoder
        semantic = self.bridge.state_tokens(self.semantic(batch.wanted))
        points, _ = encoder(batch.point[:, :, None], torch.ones_like(batch.kind)[..., None], None, None)
        boxes, _ = encoder(None, None, batch.wanted.box * side, None)
        kind = batch.kind[..., None, None]
        return torch.where(kind == SEMANTIC, semantic, torch.where(kind == POINT, points, boxes).to(semantic.dtype))


WEIGHTS = {
    "fine_noun": 1.0, "fine_part": 0.5, "fine_color": 0.5, "fine_box": 2.0,
    "token_noun": 1.0, "token_part": 0.5, "token_color": 0.5, "token_box": 4.0,
    "bce": 2.0, "dice": 1.0, "geo_bce": 2.0, "geo_dice": 1.0, "quality": 0.5, "where": 2.0,
}  # fmt: skip
"""Weight of each loss in the sum; `watch_*` values are only logged."""

THING_WEIGHT = 4.0  # a pixel of a thing against one of stuff, which covers most of the image


def dense_losses(
    logits: Tensor, target: tuple[Tensor, Tensor, Tensor, Tensor], sizes: tuple[int, ...]
) -> dict[str, Tensor]:
    """Weighted cross-entropies and the box L1 (share of the side) of one dense map; accuracy on things is watched."""
    noun, part, color, box = logits.float().split(sizes, -1)
    is_thing = target[0] < len(CATEGORIES)
    weight = 1 + (THING_WEIGHT - 1) * is_thing.float()

    def cross_entropy(values: Tensor, wanted: Tensor) -> Tensor:
        loss = F.cross_entropy(values.flatten(0, 2), wanted.flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / weight.sum()

    distance = (box - target[3]).abs().mean(-1)
    hits = (noun.argmax(-1) == target[0]) & is_thing
    part_hits = (part.argmax(-1) == target[1]) & is_thing
    total = is_thing.sum().clamp_min(1)
    return {
        "noun": cross_entropy(noun, target[0]),
        "part": cross_entropy(part, target[1]),
        "color": cross_entropy(color, target[2]),
        "box": (distance * weight).sum() / weight.sum(),
        "watch_noun": hits.sum() / total,
        "watch_part": part_hits.sum() / total,
    }


def scene_example(scene: Scene, rng: np.random.Generator, side: int, prompts: int) -> dict[str, np.ndarray]:
    """One scene as arrays of a `PixelBatch` row; `side` px is the model's square."""
    dense = dense_targets(scene)
    full = scene.image.shape[0]
    image = scene.image if full == side else cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_AREA)
    out: dict[str, np.ndarray] = {"pixels": image.transpose(2, 0, 1)}
    for name, step in (("fine", GRID_FINE), ("token", GRID_TOKEN)):
        at = ((np.arange(side // step) + 0.5) * step * full / side).astype(int)
        pick = np.ix_(at, at)
        out[f"{name}_noun"] = dense["category"][pick].astype(np.int64)
        out[f"{name}_part"] = dense["part"][pick].astype(np.int64)
        out[f"{name}_color"] = dense["color"][pick].astype(np.int64)
        out[f"{name}_box"] = dense["box"][pick].astype(np.float32)
    rows = [prompt_example(scene, rng, side) for _ in range(prompts)]
    for name in rows[0]:
        out[name] = np.stack([row[name] for row in rows])
    return out


def prompt_example(scene: Scene, rng: np.random.Generator, side: int) -> dict[str, np.ndarray]:
    """One mask to find: a thing (45 %), a part (40 %) or stuff (15 %); 70 % semantic, 15 % point, 15 % box prompts."""
    what = rng.random()
    part = ""
    if what < 0.85:
        index = int(rng.integers(len(scene.things)))
        thing = scene.things[index]
        noun, color, mask = thing.category, thing.color, scene.thing_mask(index)
        if what >= 0.45:
            chosen = thing.parts[int(rng.integers(len(thing.parts)))]
            part, color = chosen.name, chosen.color
            mask = scene.part_mask(index, part)
    else:
        index = int(rng.integers(len(scene.stuff)))
        noun, color, mask = scene.stuff[index].name, scene.stuff[index].color, scene.stuff_mask(index)
    full = mask.shape[0]
    box = masks.box_of(mask)
    assert box is not None  # everything in a scene is seen
    kind = int(rng.choice([SEMANTIC, POINT, BOX], p=[0.7, 0.15, 0.15]))
    ys, xs = np.nonzero(mask)
    pick = int(rng.integers(len(xs)))
    point = (float(xs[pick]), float(ys[pick]))
    exact = np.asarray(box, np.float32) / full
    told = exact
    if kind == BOX:
        spread = 0.05 * np.array([exact[2] - exact[0], exact[3] - exact[1]] * 2, np.float32)
        told = np.clip(exact + rng.normal(size=4).astype(np.float32) * spread, 0, 1)
    target = cv2.resize(mask.astype(np.float32), (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return {
        "noun": np.int64(NOUNS.index(noun)),
        "part": np.int64(PARTS.index(part)),
        "color": np.int64(COLOR_NAMES.index(color)),
        "box": told,
        "kind": np.int64(kind),
        "point": np.asarray(point, np.float32) * side / full,
        "target": target,
    }  # type: ignore[return-value]


def first_scene(seed: int) -> int:
    """The seed of the first scene that a run sees in pixels and kin stages: runs of other seeds see other scenes."""
    return int(np.random.default_rng(seed).integers(5_000_000))


@dataclass(frozen=True)
class PixelData:
    """step -> `PixelBatch`, deterministic by seed; scenes are drawn on the fly."""

    seed: int
    batch_size: int
    side: int
    prompts: int = 4
    sizes: tuple[int, ...] = (192, 192, 192, 256)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> PixelBatch:
        first = (step * world_size + rank) * self.batch_size
        rows = []
        for index in range(first, first + self.batch_size):
            rng = np.random.default_rng((self.seed, index))
            scene = make_scene(first_scene(self.seed) + index, int(rng.choice(self.sizes)), held_out="avoid")
            rows.append(scene_example(scene, rng, self.side, self.prompts))
        joined = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        dense: list[Any] = [
            tuple(joined[f"{level}_{name}"] for name in ("noun", "part", "color", "box")) for level in ("fine", "token")
        ]
        wanted = Attributes(joined["noun"], joined["part"], joined["color"], joined["box"])
        return PixelBatch(
            joined["pixels"],
            dense[0],
            dense[1],
            wanted,
            joined["kind"],
            joined["point"],
            joined["target"],
        )
