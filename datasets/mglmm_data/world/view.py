"""A scene as its questions see it: what is visible enough, what stands where, what may be asked.

Relations and orders hold with a margin, clearly do not, or are left open; what is open is never asked. Positions are
centres of visible boxes, as shares (0..1) of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator

from mglmm_data.world.scene import Scene
from mglmm_data.world.vocabulary import PARTS, held_out

T = TypeVar("T")

RELATION_MARGIN = 0.08
"""Centres must differ by this share of the image before one thing is left of (above, ...) another."""
ORDER_MARGIN = 0.05
"""... and by this between neighbours in "the second from the left"."""
PART_SHARE = 4e-4
"""A part is spoken of from this share of the image's pixels (15 px at 192 x 192)."""
STUFF_SHARE = 2e-3
"""... and stuff from this one."""
FLYING = ("bird", "kite", "balloon")


class Target(NamedTuple):
    """What a phrase is grounded in: a thing, a part of it (all parts of that name), or stuff."""

    index: int
    part: str = ""
    stuff: bool = False


def pick(rng: Generator, items: Sequence[T]) -> T:
    """One item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def order(rng: Generator, items: Sequence[T], weights: Sequence[float]) -> list[T]:
    """All items in random order: the heavier, the earlier; weight 0 comes last."""
    keys = rng.exponential(size=len(items)) / np.maximum(weights, 1e-9)
    return [items[i] for i in np.argsort(keys)]


class View:
    """A scene as its questions see it: what is visible enough, what stands where, what may be asked.

    Args:
        scene: the scene.
        allow_unseen: whether held-out pairs and relations may be asked for (evaluation) or not (training).
    """

    def __init__(self, scene: Scene, *, allow_unseen: bool) -> None:
        self.scene = scene
        self.allow_unseen = allow_unseen
        self.things = scene.things
        height, width = scene.leaves.shape
        self.pixels = height * width
        boxes = np.array([thing.box for thing in scene.things], float).reshape(-1, 4)
        self.centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
        self.areas = np.bincount(scene.leaves.ravel(), minlength=256)
        self.categories = tuple(dict.fromkeys(thing.category for thing in scene.things))
        self.colors = tuple(dict.fromkeys(thing.color for thing in scene.things))
        least = STUFF_SHARE * self.pixels
        self.stuff = tuple(i for i, stuff in enumerate(scene.stuff) if self.areas[stuff.leaf] >= least)

    @cached_property
    def parts(self) -> tuple[dict[str, str], ...]:
        """For each thing, its visible parts in the order of `PARTS`: name -> colour ("" where it has several)."""
        out = []
        for thing in self.things:
            areas: dict[str, int] = {}
            colors: dict[str, str] = {}
            for part in thing.parts:
                areas[part.name] = areas.get(part.name, 0) + int(self.areas[part.leaf])
                colors[part.name] = part.color if colors.get(part.name, part.color) == part.color else ""
            seen = (name for name in PARTS[thing.category] if areas.get(name, 0) >= PART_SHARE * self.pixels)
            out.append({name: colors[name] for name in seen})
        return tuple(out)

    @cached_property
    def grounds(self) -> tuple[str | None, ...]:
        """For each thing, the stuff it stands on (for what flies: the sky around it); None where that is unclear."""
        return tuple(self._ground(i) for i in range(len(self.things)))

    def _ground(self, index: int) -> str | None:
        x1, y1, x2, y2 = (round(value) for value in self.things[index].box)
        height, width = self.scene.leaves.shape
        inset, depth = (x2 - x1) // 4, max(2, round(0.015 * height))
        below = self.scene.leaves[y2 : y2 + depth, x1 + inset : x2 - inset]
        flying = self.things[index].category in FLYING
        around = [below, self.scene.leaves[max(0, y1 - depth) : y1, x1 + inset : x2 - inset]] if flying else [below]
        names = set()
        for band in around:
            if band.size == 0:
                return None
            counts = np.bincount(band.ravel())
            leaf = int(counts.argmax())
            name = next((stuff.name for stuff in self.scene.stuff if stuff.leaf == leaf), None)
            if name is None or counts[leaf] < 0.8 * band.size:
                return None
            names.add(name)
        name = names.pop()
        return name if not names and (name == "sky") == flying and name not in ("mountain", "forest") else None

    def same(self, category: str = "", color: str = "", size: str = "") -> list[int]:
        """Indices of the things that answer to all words given, in reading order."""
        return [
            i
            for i, thing in enumerate(self.things)
            if category in ("", thing.category) and color in ("", thing.color) and size in ("", thing.size)
        ]

    def name(self, index: int) -> str:
        """ "[size] color category"."""
        thing = self.things[index]
        return f"{thing.size} {thing.color} {thing.category}".strip()

    def part_name(self, index: int, part: str) -> str:
        """ "[color] part"."""
        return f"{self.parts[index][part]} {part}".strip()

    def describe(self, target: Target) -> str:
        """The canonical words of an answer, without an article for stuff, with "the" otherwise."""
        if target.stuff:
            stuff = self.scene.stuff[target.index]
            return f"{stuff.color} {stuff.name}"
        if target.part:
            return f"the {self.part_name(target.index, target.part)} of the {self.name(target.index)}"
        return f"the {self.name(target.index)}"

    def unique_name(self, index: int) -> str | None:
        """The shortest of "color category", "size color category" that only this thing answers to."""
        thing = self.things[index]
        if len(self.same(thing.category, thing.color)) == 1:
            return f"{thing.color} {thing.category}"
        if thing.size and len(self.same(thing.category, thing.color, thing.size)) == 1:
            return self.name(index)
        return None

    def stands(self, index: int, relation: str, anchor: int) -> bool | None:
        """Whether a thing is left of, right of, above or below another; None within the margin."""
        axis = 0 if relation in ("left", "right") else 1
        distance = self.centers[index, axis] - self.centers[anchor, axis]
        if abs(distance) < RELATION_MARGIN:
            return None
        return bool(distance < 0) == (relation in ("left", "above"))

    def utmost(self, indices: list[int], relation: str) -> int:
        """The leftmost, rightmost, topmost or lowest of some things."""
        axis = 0 if relation in ("left", "right") else 1
        pick = min if relation in ("left", "above") else max
        return pick(indices, key=lambda i: self.centers[i, axis])

    def is_unseen(self, target: Target | None) -> bool:
        """Whether a target is a thing of a held-out pair, or a part of one."""
        return target is not None and not target.stuff and held_out(*self.look(target.index))

    def look(self, index: int) -> tuple[str, str]:
        """(category, color)."""
        return self.things[index].category, self.things[index].color

    def ranked(self, indices: list[int], side: str) -> list[int]:
        """From the left or from the right."""
        return sorted(indices, key=lambda i: self.centers[i, 0], reverse=side == "right")

    def is_ranked(self, ranked: list[int], place: int) -> bool:
        """Whether the thing at `place` keeps `ORDER_MARGIN` from its neighbours in the order."""
        near = [self.centers[i, 0] for i in ranked[max(0, place - 1) : place + 2]]
        return all(abs(a - b) >= ORDER_MARGIN for a, b in zip(near, near[1:], strict=False))
