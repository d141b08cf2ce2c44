"""What stands behind the things: the plan of sky, far ridges, ground and what lies on the ground, light and weather.

A plan is in units of the image's side (x right, y down) and is drawn by `rng` alone; `painting.paint` renders it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mglmm_data.world.noise import TILE

Rgb = tuple[int, int, int]
Kind = Literal["all", "below", "band", "lane", "pond"]

NUM_KNOTS = 129  # points of an edge's profile across the image

# (stuff, colour) -> RGB at noon.
TONES: dict[tuple[str, str], Rgb] = {
    ("sky", "blue"): (128, 186, 236),
    ("sky", "gray"): (172, 179, 187),
    ("sky", "orange"): (248, 176, 108),
    ("sky", "pink"): (242, 182, 198),
    ("sky", "purple"): (142, 106, 170),
    ("sky", "black"): (24, 27, 52),
    ("mountain", "gray"): (124, 130, 140),
    ("mountain", "brown"): (140, 106, 82),
    ("mountain", "purple"): (124, 100, 150),
    ("mountain", "blue"): (90, 122, 172),
    ("forest", "green"): (44, 98, 60),
    ("forest", "orange"): (196, 112, 46),
    ("grass", "green"): (124, 184, 86),
    ("sand", "yellow"): (234, 210, 148),
    ("sand", "orange"): (228, 164, 108),
    ("snow", "white"): (238, 242, 248),
    ("dirt", "brown"): (152, 110, 76),
    ("field", "yellow"): (228, 192, 84),
    ("field", "purple"): (156, 116, 194),
    ("pavement", "gray"): (178, 178, 176),
    ("pavement", "brown"): (174, 128, 100),
    ("road", "gray"): (106, 108, 114),
    ("road", "black"): (66, 66, 72),
    ("water", "blue"): (62, 134, 196),
    ("water", "green"): (70, 160, 150),
}
_SKIES = ("blue", "blue", "blue", "gray", "orange", "pink", "purple", "black")
# What light does to every colour of the ground and of the things, by sky.
_GAINS = {
    "blue": (1.02, 1.01, 0.98),
    "gray": (0.94, 0.96, 0.98),
    "orange": (1.04, 0.95, 0.87),
    "pink": (1.03, 0.96, 0.97),
    "purple": (0.90, 0.86, 0.97),
    "black": (0.82, 0.84, 0.95),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One region: what it is and where.

    `top` and `bottom` are profiles, float32[NUM_KNOTS] of y from left to right. `numbers`, by kind:
    lane: x at the start, x at the bottom, bend, half width far, half width near, y of the start;
    pond: x, y, rx, ry, wobble, phase.
    """

    name: str
    color: str
    rgb: Rgb
    kind: Kind
    top: np.ndarray | None = None
    bottom: np.ndarray | None = None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A plan of everything but the things: layers from far to near, light, and the randomness of its textures.

    `light` is the side light comes from, -1 left .. 1 right; `sun` is x, y, radius of the sun or moon, if seen;
    `stars` is float[n, 3]: x, y, brightness; `snowline` is how much of a mountain's height is under snow.
    """

    layers: tuple[Layer, ...]
    horizon: float
    sky: str
    sun: tuple[float, float, float] | None
    light: float
    gain: tuple[float, float, float]
    offsets: tuple[int, ...]
    clouds: float
    stars: np.ndarray
    snowline: float
    weather: Literal["clear", "fog", "rain", "snow"]


def _ridge(rng: np.random.Generator, level: float, height: float) -> np.ndarray:
    """A mountain's profile by midpoint displacement: y from `level` up to `level - height`."""
    values, spread = rng.random(5), 0.32
    while len(values) < NUM_KNOTS:
        middle = (values[1:] + values[:-1]) / 2 + rng.uniform(-spread, spread, len(values) - 1)
        out = np.empty(len(values) * 2 - 1)
        out[::2], out[1::2] = values, middle
        values, spread = out, spread * 0.5
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    return (level - height * (0.2 + 0.8 * values)).astype(np.float32)


def _treetops(rng: np.random.Generator, level: float, height: float) -> np.ndarray:
    """A forest's profile: round crowns, or the points of conifers."""
    x = np.linspace(0, 1, NUM_KNOTS)
    a, b, c = rng.uniform(0, 6.28, 3)
    if rng.random() < 0.5:
        tops = 0.55 * np.abs(np.sin(30 * x + a)) + 0.3 * np.abs(np.sin(47 * x + b))
    else:
        tops = 0.6 * np.abs((x * 14 + a) % 2 - 1) + 0.4 * np.abs((x * 23 + b) % 2 - 1)
    return (level - height * (0.5 + 0.4 * tops + 0.12 * np.sin(5 * x + c))).astype(np.float32)


def _line(rng: np.random.Generator, level: float, swing: float) -> np.ndarray:
    """A gently swinging profile."""
    x = np.linspace(0, 1, NUM_KNOTS)
    a, b = rng.uniform(0, 6.28, 2)
    return (level + swing * (0.7 * np.sin(4 * x + a) + 0.3 * np.sin(9 * x + b))).astype(np.float32)


# weight, what may stand far, the ground, what may lie on it or before it (name, how).
_THEMES: tuple[tuple[float, tuple[str, ...], str, tuple[tuple[str, str], ...]], ...] = (
    (
        3.0,
        ("mountain", "forest", ""),
        "grass",
        (("road", "lane"), ("water", "pond"), ("dirt", "lane"), ("field", "band"), ("", "")),
    ),
    (2.2, ("mountain", "", "water"), "sand", (("grass", "near"), ("water", "pond"), ("road", "lane"), ("", ""))),
    (2.0, ("water",), "grass", (("sand", "near"), ("dirt", "lane"), ("", ""))),
    (1.8, ("mountain", "forest"), "snow", (("water", "pond"), ("road", "lane"), ("", ""))),
    (1.5, ("forest", "mountain", ""), "field", (("dirt", "lane"), ("grass", "near"), ("road", "band"))),
    (1.5, ("forest", "", "water"), "pavement", (("road", "band"), ("grass", "near"), ("grass", "far"), ("", ""))),
    (1.2, ("mountain", "forest", "water"), "dirt", (("grass", "near"), ("water", "pond"), ("grass", "far"))),
)


def _layer(rng: np.random.Generator, name: str, kind: Kind) -> Layer:
    """A region of a colour it comes in, slightly off; its place is added later."""
    colors = [color for stuff, color in TONES if stuff == name]
    color = colors[int(rng.integers(len(colors)))]
    jitter = rng.integers(-7, 8, 3) + int(rng.integers(-6, 7))
    r, g, b = (int(v) for v in np.clip(np.array(TONES[name, color]) + jitter, 0, 255))
    return Layer(name, color, (r, g, b), kind)


def _extra(rng: np.random.Generator, name: str, how: str, shore: np.ndarray) -> Layer:
    """What lies on the ground, whose far edge is the profile `shore`."""
    start = float(shore.mean())
    if how == "lane":
        far, near = (float(v) for v in rng.uniform(0.25, 0.75, 2))
        bend, wide = float(rng.uniform(-0.3, 0.3)), float(rng.uniform(0.16, 0.26))
        return _placed(_layer(rng, name, "lane"), top=shore, numbers=(far, near, bend, 0.012, wide, start - 0.015))
    if how == "pond":
        y, x = float(rng.uniform(start + 0.2, 0.82)), float(rng.uniform(0.2, 0.8))
        rx, ry = float(rng.uniform(0.24, 0.4)), float(rng.uniform(0.10, 0.15))
        numbers = (x, y, rx, ry, float(rng.uniform(0.05, 0.12)), float(rng.uniform(0, 6.28)))
        return _placed(_layer(rng, name, "pond"), numbers=numbers)
    if how == "band":
        y, thick = float(rng.uniform(start + 0.06, max(start + 0.08, 0.64))), float(rng.uniform(0.13, 0.19))
        tilt = np.linspace(-1, 1, NUM_KNOTS, dtype=np.float32) * float(rng.uniform(-0.03, 0.03))
        return _placed(_layer(rng, name, "band"), top=y + tilt, bottom=y + thick + tilt)
    if how == "near":
        y = max(start + 0.13, 0.56)
        return _placed(_layer(rng, name, "below"), top=_line(rng, float(rng.uniform(y, max(y + 0.04, 0.78))), 0.03))
    y = float(rng.uniform(start + 0.09, start + 0.17))
    return _placed(_layer(rng, name, "band"), top=shore, bottom=_line(rng, y, 0.01))


def _placed(
    layer: Layer,
    *,
    top: np.ndarray | None = None,
    bottom: np.ndarray | None = None,
    numbers: tuple[float, ...] = (),
) -> Layer:
    return Layer(layer.name, layer.color, layer.rgb, layer.kind, top, bottom, numbers)


def plan(rng: np.random.Generator) -> Backdrop:
    """Draw a backdrop of 2 to 4 regions, the sky first."""
    weights = np.array([theme[0] for theme in _THEMES])
    _, fars, ground, extras = _THEMES[int(rng.choice(len(_THEMES), p=weights / weights.sum()))]
    far = fars[int(rng.integers(len(fars)))]
    extra, how = extras[int(rng.integers(len(extras)))]
    if far != "water" and rng.random() < 0.15:
        far = ""
    if rng.random() < 0.1:
        extra = ""
    sky = _SKIES[int(rng.integers(len(_SKIES)))]
    horizon = float(rng.uniform(0.27, 0.45))
    layers = [Layer("sky", sky, TONES["sky", sky], "all")]
    start = horizon
    if far == "water":
        start = horizon + float(rng.uniform(0.14, 0.22))
    shore = _line(rng, start, 0.012)
    if far == "water":
        flat = np.full(NUM_KNOTS, horizon, np.float32)
        layers.append(_placed(_layer(rng, far, "below"), top=flat, bottom=shore))
    elif far == "mountain":
        layers.append(_placed(_layer(rng, far, "below"), top=_ridge(rng, horizon, float(rng.uniform(0.13, 0.22)))))
    elif far == "forest":
        layers.append(_placed(_layer(rng, far, "below"), top=_treetops(rng, horizon, float(rng.uniform(0.09, 0.15)))))
    layers.append(_placed(_layer(rng, ground, "below"), top=shore))
    if extra and extra != far:
        layers.append(_extra(rng, extra, how, shore))
    light = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.45, 1.0))
    sun = (0.5 + 0.38 * light, float(rng.uniform(0.07, 0.6)) * horizon, float(rng.uniform(0.03, 0.045)))
    seen = sky != "gray" and rng.random() < 0.65
    gain = np.array(_GAINS[sky]) * rng.uniform(0.95, 1.05)
    roll, weather = rng.random(), "clear"
    if sky == "gray":
        falling = "snow" if ground == "snow" else "rain"
        weather = falling if roll < 0.4 else "fog" if roll < 0.6 else "clear"
    elif ground == "snow" and roll < 0.25:
        weather = "snow"
    elif roll > 0.9:
        weather = "fog"
    return Backdrop(
        layers=tuple(layers),
        horizon=horizon,
        sky=sky,
        sun=sun if seen else None,
        light=light,
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        offsets=tuple(int(v) for v in rng.integers(0, TILE * TILE, 8)),
        clouds=float(rng.random()),
        stars=rng.random((60, 3)),
        snowline=float(rng.uniform(0.25, 0.55)) * (rng.random() < 0.75),
        weather=weather,
    )
