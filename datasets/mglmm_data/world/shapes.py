"""The table of shapes: how each category is drawn, how large it is and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np

from mglmm_data.world import living, made
from mglmm_data.world.pen import SUPERSAMPLING, Look, Pen, Sketch


@dataclass(frozen=True)
class Shape:
    """A category's drawing, and all that the layout must know of it.

    `reach` is half its width in units of its height; `height` is its usual height near the viewer, in units of the
    image's side; `home` says where it is at home ("any": on the ground and in the sky).
    """

    draw: Callable[[Pen], None]
    reach: float
    height: float
    home: Literal["ground", "sky", "water", "any"] = "ground"


SHAPES: dict[str, Shape] = {
    "house": Shape(made.house, 0.70, 0.36),
    "car": Shape(made.car, 1.27, 0.165),
    "truck": Shape(made.truck, 1.10, 0.23),
    "tree": Shape(living.tree, 0.46, 0.40),
    "person": Shape(living.person, 0.36, 0.32),
    "dog": Shape(living.dog, 0.85, 0.18),
    "cat": Shape(living.cat, 0.64, 0.20),
    "bird": Shape(living.bird, 1.02, 0.13, "any"),
    "flower": Shape(living.flower, 0.36, 0.24),
    "ball": Shape(made.ball, 0.52, 0.14),
    "chair": Shape(made.chair, 0.42, 0.24),
    "table": Shape(made.table, 1.0, 0.17),
    "lamp": Shape(made.lamp, 0.30, 0.36),
    "boat": Shape(made.boat, 0.78, 0.26, "water"),
    "kite": Shape(made.kite, 0.36, 0.27, "sky"),
    "balloon": Shape(made.balloon, 0.40, 0.26, "sky"),
    "umbrella": Shape(made.umbrella, 0.52, 0.30),
    "mushroom": Shape(living.mushroom, 0.54, 0.17),
}


def sketch(look: Look, height: float, x: float, y: float) -> Sketch:
    """Draw a thing whose foot stands at (x, y) and which is `height` tall, all px."""
    shape = SHAPES[look.category]
    s = SUPERSAMPLING
    half = shape.reach * height
    x0, y0 = floor(x - half) - 1, floor(y - height * 1.01) - 1
    w, h = ceil(x + half) + 1 - x0, ceil(y + height * 0.03) + 1 - y0
    canvas = np.zeros((h * s, w * s, 4), np.uint8)
    shape.draw(Pen(look, canvas, height * s, (x - x0) * s - 0.5, (y - y0) * s - 0.5))
    ids = np.ascontiguousarray(canvas[s // 2 :: s, s // 2 :: s, 3])
    return Sketch(x0, y0, canvas, ids, (x, y), height)
