"""Where the things of a scene stand: which, how large, in what colours, and what hides what.

Decided at the reference size; every rule (visible share, contrast, distractors) is checked there on pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from mglmm_data.world import noise, painting, shapes, stuff
from mglmm_data.world import vocabulary as words
from mglmm_data.world.pen import Look, Rgb, Sketch

SIDE = noise.REFERENCE
NONE = 254  # owner code of a pixel without a thing
MIN_VISIBLE = 0.42  # share of the silhouette; the world promises 0.40, at any size
MIN_AREA = 56  # visible px
MIN_MAIN = 0.25  # share of the main part that stays visible: it names the thing's colour
MAX_HEIGHT = 0.5  # of the image's side
MAX_AREA = 0.17  # of the image, for the frame around a thing
MIN_STUFF = 300  # px of the reference that every region shows
CONTRAST = 90.0  # RGB distance of the main colour from the regions behind


@dataclass(frozen=True, eq=False)
class Placed:
    """A thing in its place: foot at (x, y), `height`, all px of the reference; `sketch` drawn there."""

    look: Look
    colors: dict[str, str]
    height: float
    x: int
    y: int
    flying: bool
    sketch: Sketch
    size: Literal["small", "large", ""] = ""


@dataclass(frozen=True, eq=False)
class Plan:
    """A scene's decisions: `things` from far to near, `reading` their indices in reading order."""

    backdrop: stuff.Backdrop
    ground: tuple[np.ndarray, np.ndarray]
    things: tuple[Placed, ...]
    reading: tuple[int, ...]


def _rgb(rng: np.random.Generator, color: str) -> Rgb:
    r, g, b = np.clip(np.array(words.COLORS[color]) + rng.integers(-9, 10, 3), 0, 255)
    return int(r), int(g), int(b)


def _choose(rng: np.random.Generator, options: list[str] | tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _look(rng: np.random.Generator, category: str, color: str) -> tuple[Look, dict[str, str]]:
    """Colours and form of a thing whose main part has this colour; no other part has it."""
    main, *rest = words.PARTS[category]
    colors = {main: color}
    for part in rest:
        options = [c for c in words.PART_COLORS.get((category, part), words.BRIGHT) if c != color]
        fresh = [c for c in options if c not in colors.values()]
        colors[part] = _choose(rng, fresh or options or ["gray"])
    rgb = {part: _rgb(rng, name) for part, name in colors.items()}
    form = tuple(float(v) for v in rng.random(6))
    return Look(category, rgb, form, bool(rng.random() < 0.5)), colors


class _Board:
    """Things placed so far and, at every reference pixel, who is seen there.

    A pixel's owner code is 2 * index of the thing, + 1 on its main part; NONE without a thing.
    """

    def __init__(self, backdrop: stuff.Backdrop, leaves: np.ndarray) -> None:
        self.leaves = leaves
        gain = np.array(backdrop.gain)
        self.stuff_rgb = np.array([np.array(layer.rgb) * gain for layer in backdrop.layers])
        self.gain = gain
        self.owner = np.full((SIDE, SIDE), NONE, np.uint8)
        self.depth = np.full(256, -np.inf)
        self.things: list[Placed] = []
        self.depths: list[float] = []
        self.seen = np.zeros(256, np.int64)
        self.least: list[tuple[float, float]] = []  # visible px each thing and its main part must keep

    def offer(self, thing: Placed, depth: float) -> bool:
        """Place the thing if every rule holds for it and for those there already; returns whether it was."""
        sketch = thing.sketch
        h, w = sketch.ids.shape
        y0, x0 = max(sketch.y, 0), max(sketch.x, 0)
        y1, x1 = min(sketch.y + h, SIDE), min(sketch.x + w, SIDE)
        if y1 - y0 < 4 or x1 - x0 < 4:
            return False
        ids = sketch.ids[y0 - sketch.y : y1 - sketch.y, x0 - sketch.x : x1 - sketch.x]
        inside = ids > 0
        full = cv2.countNonZero(sketch.ids)
        owner = self.owner[y0:y1, x0:x1]
        here = owner[inside]
        if self.things and (here != NONE).any():
            color = thing.colors[words.PARTS[thing.look.category][0]]
            for index in set((here[here != NONE] >> 1).tolist()):
                other = self.things[index]
                if other.colors[words.PARTS[other.look.category][0]] == color:
                    return False
        shown = inside & (self.depth[owner] <= depth)  # among equals the later is drawn on top
        num_shown = int(shown.sum())
        if num_shown < max(MIN_VISIBLE * full, MIN_AREA):
            return False
        main_shown = int((ids[shown] == 1).sum())
        if main_shown < max(MIN_MAIN * int((sketch.ids == 1).sum()), 16):
            return False
        behind = np.bincount(self.leaves[y0:y1, x0:x1][inside], minlength=len(self.stuff_rgb)) / len(here)
        main_rgb = np.array(thing.look.rgb[words.PARTS[thing.look.category][0]]) * self.gain
        for share, rgb in zip(behind, self.stuff_rgb, strict=True):
            if share > 0.15 and np.linalg.norm(main_rgb - rgb) < CONTRAST:
                return False
        lost = np.bincount(owner[shown], minlength=256)
        seen = self.seen - lost
        for index, (least, least_main) in enumerate(self.least):
            if seen[2 * index] + seen[2 * index + 1] < least or seen[2 * index + 1] < least_main:
                return False
        code = 2 * len(self.things)
        seen[code + 1] = main_shown
        seen[code] = num_shown - main_shown
        self.seen = seen
        codes = np.where(ids == 1, np.uint8(code + 1), np.uint8(code))
        owner[shown] = codes[shown]
        self.depth[code : code + 2] = depth
        main_full = int((sketch.ids == 1).sum())
        self.least.append((max(MIN_VISIBLE * full, MIN_AREA), max(MIN_MAIN * main_full, 16)))
        self.things.append(thing)
        self.depths.append(depth)
        return True


def _sizes(things: list[Placed]) -> list[Placed]:
    """Call things small or large where their kind falls into two groups at least 1.6 times apart in area."""
    out = list(things)
    for category in {thing.look.category for thing in things}:
        group = [k for k, thing in enumerate(things) if thing.look.category == category]
        group.sort(key=lambda k: cv2.countNonZero(things[k].sketch.ids))
        areas = [cv2.countNonZero(things[k].sketch.ids) for k in group]
        gaps = [b / a for a, b in zip(areas, areas[1:], strict=False)]
        if gaps and max(gaps) >= 1.6:
            cut = int(np.argmax(gaps)) + 1
            for position, k in enumerate(group):
                out[k] = replace(things[k], size="small" if position < cut else "large")
    return out


def plan(rng: np.random.Generator, held_out: Literal["avoid", "allow", "require"]) -> Plan:
    """Decide a scene; a draw that ends too empty is drawn again."""
    while True:
        scene = _draw(rng, held_out)
        if scene is not None:
            return scene


def _draw(rng: np.random.Generator, held_out: Literal["avoid", "allow", "require"]) -> Plan | None:
    """One draw of a scene; None if fewer than 3 things or 2 kinds found room, or a region shows too little."""
    backdrop = stuff.plan(rng)
    ground = painting.paint(backdrop, SIDE)
    board = _Board(backdrop, ground[1])
    names = [layer.name for layer in backdrop.layers]
    wet = np.isin(ground[1], [k for k, name in enumerate(names) if name == "water"])
    solid = ~wet & ~np.isin(ground[1], [k for k, name in enumerate(names) if name in ("sky", "mountain", "forest")])
    places = {"water": wet, "ground": solid}
    near = {name: np.argwhere(mask[::4, ::4]) * 4 + 2 for name, mask in places.items()}
    open_to = [
        category for category in words.CATEGORIES if shapes.SHAPES[category].home != "water" or len(near["water"]) > 120
    ]
    num = int(rng.choice([3, 4, 5, 6, 7, 8], p=[0.1, 0.2, 0.22, 0.2, 0.16, 0.12]))
    num_kinds = min(int(rng.choice([2, 3, 4], p=[0.35, 0.4, 0.25])), num)
    kinds = [open_to[int(k)] for k in rng.choice(len(open_to), num_kinds, replace=False)]
    if "boat" in open_to and "boat" not in kinds and rng.random() < 0.45:
        kinds[0] = "boat"
    forced: list[tuple[str, str]] = []
    if held_out == "require":
        forced = [pair for pair in sorted(words.HELD_OUT) if pair[0] in open_to]
        rng.shuffle(forced)
        kinds[0] = forced[0][0]
    queue = kinds + [_choose(rng, kinds) for _ in range(num - num_kinds)]
    camera = float(rng.uniform(1.12, 1.55))
    tries = 0
    while len(board.things) < num and tries < 60:
        category = queue[len(board.things)]
        if tries and tries % 12 == 0:
            if held_out == "require" and not board.things:
                category, _ = forced[(tries // 12) % len(forced)]
            else:
                category = _choose(rng, open_to if len(set(queue)) < 4 or tries > 40 else kinds)
            if category not in queue and len({*queue[: len(board.things)], category}) > 4:
                category = queue[0]
            queue[len(board.things)] = category
        options = words.MAIN_COLORS[category]
        used = [t.colors[words.PARTS[category][0]] for t in board.things if t.look.category == category]
        color = _choose(rng, used) if used and rng.random() < 0.22 else _choose(rng, options)
        if held_out == "require" and not board.things:
            color = next(c for k, c in forced if k == category)
        if held_out == "avoid" and words.held_out(category, color):
            color = _choose(rng, [c for c in options if not words.held_out(category, c)])
        if _try(rng, board, backdrop, near, category, color, camera):
            tries = 0
        else:
            tries += 1
    shown = np.bincount(ground[1][board.owner == NONE], minlength=len(names))
    if len(board.things) < 3 or len({thing.look.category for thing in board.things}) < 2 or shown.min() < MIN_STUFF:
        return None
    order = sorted(range(len(board.things)), key=lambda k: board.depths[k])
    things = _sizes([board.things[k] for k in order])
    lut = np.full(256, 255, np.uint8)
    for position, k in enumerate(order):
        lut[2 * k : 2 * k + 2] = position
    who = lut[board.owner]
    keys = []
    for position in range(len(things)):
        x, y, w, h = cv2.boundingRect((who == position).astype(np.uint8))
        keys.append((2 * x + w, 2 * y + h, position))
    return Plan(backdrop, ground, tuple(things), tuple(key[2] for key in sorted(keys)))


def _try(
    rng: np.random.Generator,
    board: _Board,
    backdrop: stuff.Backdrop,
    near: dict[str, np.ndarray],
    category: str,
    color: str,
    camera: float,
) -> bool:
    """Draw a thing of this kind and offer it a few places."""
    shape = shapes.SHAPES[category]
    look, colors = _look(rng, category, color)
    flying = shape.home == "sky" or (shape.home == "any" and rng.random() < 0.5)
    factor = float(rng.choice([0.7, 1.0, 1.0, 1.3]) * rng.uniform(0.9, 1.1)) * camera
    spots = near["water" if shape.home == "water" else "ground"]
    h = backdrop.horizon
    for _ in range(4):
        if flying:
            height = shape.height * factor * 0.75 * SIDE
            x = float(rng.uniform(0.1, 0.9)) * SIDE
            low, high = height + 2, max(h * SIDE + (4 if shape.home == "any" else 14), height + 3)
            y = float(rng.uniform(low, high))
            depth = -1000 + y
        else:
            if not len(spots):
                return False
            y, x = (float(v) for v in spots[int(rng.integers(len(spots)))])
            if board.things and rng.random() < 0.5:
                anchor = board.things[int(rng.integers(len(board.things)))]
                if not anchor.flying:
                    x = anchor.x + float(rng.uniform(-0.5, 0.5)) * anchor.height
                    y = anchor.y + float(rng.uniform(-0.22, 0.22)) * anchor.height
            y = min(y, SIDE - 3)
            if not (0 <= x < SIDE and 0 <= y < SIDE):
                continue
            name = backdrop.layers[int(board.leaves[int(y), int(x)])].name
            if (name == "water") != (shape.home == "water") or name in ("sky", "mountain", "forest"):
                continue
            t = (y / SIDE - h) / (1 - h)
            height = shape.height * factor * (0.42 + 0.68 * t) * SIDE
            depth = y
        height = max(height, 11.0 if shape.reach > 0.6 else 15.0)
        height = min(height, MAX_HEIGHT * SIDE, (MAX_AREA / (2 * shape.reach)) ** 0.5 * SIDE)
        half = shape.reach * height
        x = min(max(x, 0.75 * half), SIDE - 0.75 * half)
        sketch = shapes.sketch(look, height, round(x), round(y))
        thing = Placed(look, colors, height, round(x), round(y), flying, sketch)
        if board.offer(thing, depth):
            return True
    return False
