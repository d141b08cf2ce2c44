"""Scenes of the procedural world: things made of named parts before sky and ground, with exact leaf masks.

All decisions are taken at a reference size, by the seed alone; drawing happens at the size asked for. The same seed at
another size is therefore the same scene, finer or coarser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from mglmm_data.sample import Box
from mglmm_data.world import layout, light, noise, painting, shapes
from mglmm_data.world.pen import Sketch, Sprite, lit
from mglmm_data.world.shapes import SHAPES
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, PART_NAMES, PARTS, STUFF

MIN_SIZE = 64


@dataclass(frozen=True)
class Part:
    """A named part of a thing: its colour, its id in `Scene.leaves`, its visible pixels."""

    name: str
    color: str
    leaf: int
    area: int


@dataclass(frozen=True)
class Thing:
    """An object. `color` is its main part's; `size` compares it with its own kind in the scene, "" if alike.

    `box` is the visible box (px, x2 and y2 exclusive), `area` the visible px, `visible` their share of the silhouette.
    """

    category: str
    color: str
    size: Literal["small", "large", ""]
    parts: tuple[Part, ...]
    box: Box
    area: int
    visible: float


@dataclass(frozen=True)
class Stuff:
    """A region of background: its name, colour, id in `Scene.leaves`, visible px."""

    name: str
    color: str
    leaf: int
    area: int


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and all that is in it: `image` uint8[H, W, 3], `leaves` uint8[H, W] (one part or region a pixel).

    `things` are in reading order (left to right by box centre, ties top to bottom); `stuff` from the sky to the near.
    """

    seed: int
    image: np.ndarray
    leaves: np.ndarray
    things: tuple[Thing, ...]
    stuff: tuple[Stuff, ...]

    def thing_mask(self, index: int) -> np.ndarray:
        """bool[H, W]: the visible pixels of a thing."""
        leaves = [part.leaf for part in self.things[index].parts]
        return (self.leaves >= min(leaves)) & (self.leaves <= max(leaves))

    def part_mask(self, index: int, part_name: str) -> np.ndarray:
        """bool[H, W]: the visible pixels of a thing's parts of that name.

        Raises:
            ValueError: the thing shows no such part.
        """
        thing = self.things[index]
        mask = np.zeros(self.leaves.shape, bool)
        for part in thing.parts:
            if part.name == part_name:
                mask |= self.leaves == part.leaf
        if not mask.any():
            names = ", ".join(part.name for part in thing.parts)
            raise ValueError(f"thing {index}, a {thing.category}, shows no {part_name!r}; it shows {names}")
        return mask

    def stuff_mask(self, index: int) -> np.ndarray:
        """bool[H, W]: the visible pixels of a region of background."""
        return self.leaves == self.stuff[index].leaf


def make_scene(
    seed: int, size: int = noise.REFERENCE, *, held_out: Literal["avoid", "allow", "require"] = "allow"
) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: evaluation uses 10_000_000 and above, training what lies below.
        size: height and width, px.
        held_out: whether things of held-out category and colour are left out, drawn at their natural rate, or
            at least one of them is there.

    Raises:
        ValueError: the seed is negative, the size too small, or `held_out` another word.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; use 0 or above")
    if size < MIN_SIZE:
        raise ValueError(f"size {size} px is too small to show a scene; use {MIN_SIZE} or above")
    if held_out not in ("avoid", "allow", "require"):
        raise ValueError(f'held_out is {held_out!r}; use "avoid", "allow" or "require"')
    plan = layout.plan(np.random.default_rng(seed), held_out)
    canvas, leaves = plan.ground if size == noise.REFERENCE else painting.paint(plan.backdrop, size)
    layers, zoom = plan.backdrop.layers, size / noise.REFERENCE
    sketches = [
        thing.sketch if zoom == 1 else shapes.sketch(thing.look, thing.height * zoom, thing.x * zoom, thing.y * zoom)
        for thing in plan.things
    ]
    firsts, leaf = [0] * len(plan.things), len(layers)
    for placed in plan.reading:
        firsts[placed] = leaf
        leaf += len(PARTS[plan.things[placed].look.category])
    _compose(canvas, leaves, plan, sketches, firsts)
    image = light.develop(canvas, plan.backdrop)
    areas = np.bincount(leaves.ravel(), minlength=leaf)
    things = tuple(_thing(plan.things[k], sketches[k], firsts[k], leaves, areas) for k in plan.reading)
    regions = tuple(Stuff(layer.name, layer.color, index, int(areas[index])) for index, layer in enumerate(layers))
    return Scene(seed, image, leaves, things, regions)


def _compose(
    canvas: np.ndarray, leaves: np.ndarray, plan: layout.Plan, sketches: list[Sketch], firsts: list[int]
) -> None:
    """Lay the things, from far to near, over picture and leaves, in place; `firsts` are their first leaf ids."""
    backdrop, size = plan.backdrop, leaves.shape[0]
    zoom = size / noise.REFERENCE
    homes = [SHAPES[thing.look.category] for thing in plan.things]
    floating = [home.home == "water" for home in homes]
    light.shadows(
        canvas,
        backdrop,
        [
            (sketch, home.reach * thing.height * zoom)
            for thing, home, sketch, wet in zip(plan.things, homes, sketches, floating, strict=True)
            if not thing.flying and not wet
        ],
    )
    light.fog(canvas, backdrop)
    sprites = [lit(sketch, backdrop.light) for sketch in sketches]
    if any(floating):
        water = np.isin(leaves, [k for k, layer in enumerate(backdrop.layers) if layer.name == "water"])
        for sketch, sprite, wet in zip(sketches, sprites, floating, strict=True):
            if wet:
                light.reflection(canvas, water, sketch, sprite.rgb, sprite.alpha)
    bulbs = []
    for thing, sprite, first in zip(plan.things, sprites, firsts, strict=True):
        rows, cols, from_rows, from_cols = _overlap(sprite, size)
        spot = canvas[:, rows, cols]
        spot *= 1 - sprite.alpha[from_rows, from_cols]
        spot += sprite.rgb[:, from_rows, from_cols]
        ids = sprite.ids[from_rows, from_cols]
        np.copyto(leaves[rows, cols], ids + np.uint8(first - 1), where=ids > 0)
        if thing.look.category == "lamp":
            bulbs.append((thing.x * zoom, (thing.y - 0.61 * thing.height) * zoom, 0.45 * thing.height * zoom))
    light.glow(canvas, backdrop, bulbs)


def _overlap(drawn: Sketch | Sprite, size: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of the image, and of the drawing, where the two meet."""
    h, w = drawn.ids.shape
    y0, x0 = max(drawn.y, 0), max(drawn.x, 0)
    y1, x1 = min(drawn.y + h, size), min(drawn.x + w, size)
    return slice(y0, y1), slice(x0, x1), slice(y0 - drawn.y, y1 - drawn.y), slice(x0 - drawn.x, x1 - drawn.x)


def _thing(placed: layout.Placed, sketch: Sketch, first: int, leaves: np.ndarray, areas: np.ndarray) -> Thing:
    """What is seen of a thing whose leaves begin at `first`; `areas` are the px of every leaf."""
    names = PARTS[placed.look.category]
    rows, cols, _, _ = _overlap(sketch, leaves.shape[0])
    here = leaves[rows, cols]
    own = ((here >= first) & (here < first + len(names))).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(own)
    x, y = x + cols.start, y + rows.start
    parts = tuple(
        Part(name, placed.colors[name], first + k, int(areas[first + k]))
        for k, name in enumerate(names)
        if areas[first + k] > 0
    )
    area = int(areas[first : first + len(names)].sum())
    box = (float(x), float(y), float(x + w), float(y + h))
    visible = area / max(cv2.countNonZero(sketch.ids), 1)
    return Thing(placed.look.category, placed.colors[names[0]], placed.size, parts, box, area, visible)


def dense_targets(scene: Scene) -> dict[str, np.ndarray]:
    """What each pixel is, for dense pre-training; a look-up by leaf.

    Returns:
        "category" int16[H, W]: index in CATEGORIES, or len(CATEGORIES) + index in STUFF;
        "part" int16[H, W]: 1 + index in PART_NAMES, 0 on stuff; "color" int16[H, W]: index in COLORS;
        "thing" int16[H, W]: index in `scene.things`, -1 on stuff;
        "box" float32[H, W, 4]: the visible box of the pixel's thing or region, xyxy in 0..1.
    """
    height, width = scene.leaves.shape
    colors = list(COLORS)
    table = np.zeros((256, 4), np.int16)
    table[:, 3] = -1
    boxes = np.zeros((256, 4), np.float32)
    scale = np.array([width, height, width, height], np.float32)
    for region in scene.stuff:
        table[region.leaf] = (len(CATEGORIES) + STUFF.index(region.name), 0, colors.index(region.color), -1)
        x, y, w, h = cv2.boundingRect((scene.leaves == region.leaf).astype(np.uint8))
        boxes[region.leaf] = np.array([x, y, x + w, y + h], np.float32) / scale
    for index, thing in enumerate(scene.things):
        for part in thing.parts:
            table[part.leaf] = (
                CATEGORIES.index(thing.category),
                1 + PART_NAMES.index(part.name),
                colors.index(part.color),
                index,
            )
            boxes[part.leaf] = np.array(thing.box, np.float32) / scale
    return {
        "category": table[:, 0][scene.leaves],
        "part": table[:, 1][scene.leaves],
        "color": table[:, 2][scene.leaves],
        "thing": table[:, 3][scene.leaves],
        "box": boxes[scene.leaves],
    }


def statistics(scenes: list[Scene]) -> dict[str, float]:
    """How hard scenes are; shares 0..1. Used beside every score.

    Raises:
        ValueError: there is no scene.
    """
    if not scenes:
        raise ValueError("statistics of no scenes; give at least one")
    things = [(thing, scene) for scene in scenes for thing in scene.things]
    shares = np.array([thing.area / scene.leaves.size for thing, scene in things])
    hidden = np.array([1 - thing.visible for thing, _ in things])
    counts = [[thing.category for thing in scene.things] for scene in scenes]
    twins = [len({(thing.category, thing.color) for thing in scene.things}) < len(scene.things) for scene in scenes]
    return {
        "scenes": float(len(scenes)),
        "mean_things": float(np.mean([len(names) for names in counts])),
        "mean_categories": float(np.mean([len(set(names)) for names in counts])),
        "mean_stuff": float(np.mean([len(scene.stuff) for scene in scenes])),
        "mean_parts": float(np.mean([len(thing.parts) for thing, _ in things])),
        "median_thing_share": float(np.median(shares)),
        "small_share": float(np.mean(shares < 0.01)),
        "share_with_distractors": float(np.mean([len(set(names)) < len(names) for names in counts])),
        "share_with_twins": float(np.mean(twins)),
        "occluded_share": float(np.mean(hidden > 0.1)),
        "max_occlusion": float(hidden.max()),
        "sized_share": float(np.mean([thing.size != "" for thing, _ in things])),
    }
