"""How made things are drawn; see `pen` for the frame they are drawn in."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np

from mglmm_data.world.pen import Pen


def house(pen: Pen) -> None:
    f = pen.form
    w, eave = 0.46 + 0.12 * f[0], 0.52 + 0.06 * f[1]
    cx = 0.22 + 0.08 * f[2]
    pen.rect("chimney", cx, 0.7, cx + 0.12, 0.98)
    pen.rect("chimney", cx - 0.02, 0.94, cx + 0.14, 1.0, 0.75)
    pen.rect("wall", -w, 0.0, w, eave)
    pen.rect("wall", -w, 0.0, w, 0.05, 0.8)
    pen.rect("wall", -w, eave - 0.05, w, eave, 0.72)
    top = 0.1 + 0.2 * f[3]
    pen.poly("roof", ((-w - 0.08, eave - 0.02), (w + 0.08, eave - 0.02), (top + 0.06, 0.92), (-top - 0.06, 0.92)))
    for k in range(1, 4):
        y = eave + 0.1 * k
        pen.line("roof", ((-w + 0.11 * k - 0.06, y), (w - 0.11 * k + 0.06, y)), 0.012, 0.82)
    pen.line("roof", ((-w - 0.08, eave - 0.015), (w + 0.08, eave - 0.015)), 0.03, 0.7)
    dx = -0.1 + 0.2 * f[4]
    pen.rect("door", dx - 0.085, 0.0, dx + 0.085, 0.33)
    pen.line("door", ((dx - 0.085, 0.33), (dx + 0.085, 0.33)), 0.02, 0.7)
    pen.oval("door", dx + 0.05, 0.16, 0.015, 0.015, 1.7)
    for x in (-w + 0.15, w - 0.15):
        if abs(x - dx) > 0.2:
            pen.rect("window", x - 0.1, 0.18, x + 0.1, 0.4)
            pen.line("window", ((x, 0.18), (x, 0.4)), 0.018, 0.6)
            pen.line("window", ((x - 0.1, 0.29), (x + 0.1, 0.29)), 0.018, 0.6)


def _wheel(pen: Pen, x: float, r: float) -> None:
    pen.oval("wheel", x, r, r, r)
    pen.oval("wheel", x, r, r * 0.45, r * 0.45, 1.9)
    pen.oval("wheel", x, r, r * 0.2, r * 0.2, 0.7)


def car(pen: Pen) -> None:
    f = pen.form
    nose = 1.12 + 0.12 * f[0]
    back, front = -0.75 - 0.15 * f[1], 0.45 + 0.15 * f[2]
    pen.poly("roof", ((back, 0.5), (back + 0.22, 0.94), (back + 0.32, 1.0), (0.06, 1.0), (0.2, 0.94), (front, 0.5)))
    pen.poly("window", ((back + 0.12, 0.55), (back + 0.29, 0.88), (-0.26, 0.88), (-0.26, 0.55)))
    pen.poly("window", ((-0.16, 0.55), (-0.16, 0.88), (0.1, 0.88), (front - 0.12, 0.55)))
    pen.poly("window", ((-0.16, 0.78), (-0.16, 0.88), (0.1, 0.88), (0.16, 0.78)), 1.4)
    pen.poly(
        "body",
        (
            (-nose, 0.2),
            (-nose + 0.03, 0.5),
            (-nose + 0.14, 0.56),
            (0.55, 0.56),
            (nose - 0.1, 0.46),
            (nose, 0.36),
            (nose, 0.16),
            (-nose + 0.06, 0.16),
        ),
    )
    pen.line("body", ((-nose + 0.1, 0.51), (0.6, 0.51)), 0.035, 1.35)
    pen.poly("body", ((-nose, 0.22), (nose, 0.22), (nose - 0.04, 0.14), (-nose + 0.05, 0.14)), 0.7)
    pen.line("body", ((-0.21, 0.52), (-0.21, 0.24)), 0.02, 0.75)
    pen.oval("light", nose - 0.07, 0.37, 0.075, 0.065)
    pen.rect("light", -nose, 0.36, -nose + 0.08, 0.47)
    _wheel(pen, -0.66, 0.215)
    _wheel(pen, 0.68, 0.215)


def truck(pen: Pen) -> None:
    f = pen.form
    left = -0.85 - 0.2 * f[0]
    pen.rect("cargo", left, 0.24, 0.36, 1.0)
    for k in range(1, 5):
        x = left + (0.36 - left) * k / 5
        pen.line("cargo", ((x, 0.28), (x, 0.96)), 0.015, 0.85)
    pen.line("cargo", ((left, 0.985), (0.36, 0.985)), 0.03, 1.3)
    pen.rect("cargo", left, 0.2, 0.36, 0.27, 0.6)
    pen.poly("cab", ((0.4, 0.16), (0.4, 0.8), (0.68, 0.8), (0.82, 0.5), (0.95, 0.45), (0.96, 0.16)))
    pen.rect("cab", 0.36, 0.16, 0.96, 0.23, 0.7)
    pen.poly("window", ((0.48, 0.5), (0.48, 0.73), (0.65, 0.73), (0.76, 0.5)))
    pen.poly("window", ((0.48, 0.65), (0.48, 0.73), (0.65, 0.73), (0.69, 0.65)), 1.4)
    pen.oval("light", 0.92, 0.33, 0.05, 0.06)
    for x in (left + 0.25, left + 0.6, 0.68):
        _wheel(pen, x, 0.165)


def ball(pen: Pen) -> None:
    f = pen.form
    pen.oval("body", 0.0, 0.5, 0.5, 0.5, 0.8)
    pen.oval("body", -0.03, 0.53, 0.45, 0.45)
    angle = -60 + 120 * f[0]
    a = np.radians(angle)
    if f[1] < 0.5:
        pen.oval("stripe", 0.0, 0.5, 0.5, 0.16, tilt=angle)
    else:
        for s in (-1, 1):
            pen.oval("stripe", -0.22 * s * sin(a), 0.5 + 0.22 * s * cos(a), 0.43, 0.075, tilt=angle)
    pen.oval("body", -0.19, 0.74, 0.11, 0.075, 1.6, tilt=35)


def chair(pen: Pen) -> None:
    f = pen.form
    for x, y, top, tint in (
        (-0.22, 0.1, 0.46, 0.75),
        (0.3, 0.1, 0.46, 0.75),
        (-0.32, 0.0, 0.4, 1.0),
        (0.22, 0.0, 0.4, 1.0),
    ):
        pen.rect("leg", x - 0.035, y, x + 0.035, top, tint)
    if f[0] < 0.5:
        pen.poly("back", ((-0.28, 0.44), (-0.3, 0.97), (-0.24, 1.0), (0.32, 1.0), (0.37, 0.97), (0.33, 0.44)))
        for k in range(1, 4):
            x = -0.28 + 0.15 * k
            pen.line("back", ((x, 0.5), (x, 0.92)), 0.02, 0.78)
    else:
        pen.oval("back", 0.03, 0.78, 0.33, 0.22)
        pen.poly("back", ((-0.28, 0.44), (-0.3, 0.8), (0.36, 0.8), (0.33, 0.44)))
        pen.oval("back", 0.03, 0.76, 0.2, 0.12, 0.86)
    pen.poly("seat", ((-0.38, 0.37), (-0.27, 0.5), (0.36, 0.5), (0.28, 0.37)))
    pen.poly("seat", ((-0.38, 0.33), (-0.38, 0.38), (0.28, 0.38), (0.36, 0.5), (0.36, 0.46), (0.28, 0.33)), 0.7)


def table(pen: Pen) -> None:
    f = pen.form
    w = 0.75 + 0.2 * f[0]
    for x, y, tint in ((-w + 0.28, 0.16, 0.7), (w - 0.12, 0.16, 0.7), (-w + 0.1, 0.0, 1.0), (w - 0.3, 0.0, 1.0)):
        pen.rect("leg", x - 0.045, y, x + 0.045, 0.7, tint)
    if f[1] < 0.5:
        pen.poly("top", ((-w, 0.64), (-w + 0.24, 1.0), (w, 1.0), (w - 0.2, 0.64)))
        pen.poly("top", ((-w + 0.06, 0.7), (-w + 0.24, 0.96), (w - 0.06, 0.96), (w - 0.21, 0.7)), 1.12)
        pen.poly("top", ((-w, 0.55), (-w, 0.65), (w - 0.2, 0.65), (w, 1.0), (w, 0.92), (w - 0.2, 0.55)), 0.72)
    else:
        pen.oval("top", 0.0, 0.74, w, 0.2, 0.72)
        pen.oval("top", 0.0, 0.8, w, 0.2)
        pen.oval("top", -0.1, 0.83, w * 0.7, 0.12, 1.12)


def lamp(pen: Pen) -> None:
    f = pen.form
    pen.rect("pole", -0.028, 0.06, 0.028, 0.72)
    pen.line("pole", ((-0.012, 0.08), (-0.012, 0.7)), 0.014, 1.4)
    pen.oval("base", 0.0, 0.05, 0.17, 0.05, 0.8)
    pen.poly("base", ((-0.16, 0.06), (0.16, 0.06), (0.05, 0.13), (-0.05, 0.13)))
    pen.oval("bulb", 0.0, 0.61, 0.075, 0.085)
    pen.oval("bulb", -0.02, 0.59, 0.03, 0.035, 1.6)
    top = 0.1 + 0.06 * f[0]
    pen.poly("shade", ((-0.27, 0.62), (-top, 1.0), (top, 1.0), (0.27, 0.62)))
    pen.poly("shade", ((-0.2, 0.65), (-top + 0.03, 0.97), (-0.02, 0.97), (-0.07, 0.65)), 1.2)
    pen.line("shade", ((-0.27, 0.635), (0.27, 0.635)), 0.03, 0.75)


def boat(pen: Pen) -> None:
    f = pen.form
    pen.rect("mast", -0.03, 0.28, 0.02, 0.97)
    pen.poly("sail", ((0.05, 0.36), (0.05, 0.88), (0.22, 0.7), (0.46 + 0.08 * f[0], 0.36)))
    pen.poly("sail", ((0.05, 0.36), (0.05, 0.44), (0.42, 0.44), (0.46 + 0.08 * f[0], 0.36)), 0.85)
    if f[1] < 0.6:
        pen.poly("sail", ((-0.06, 0.38), (-0.06, 0.78), (-0.36, 0.38)), 0.92)
    pen.poly("flag", ((0.02, 0.9), (0.02, 1.0), (0.22, 0.95)))
    pen.poly(
        "hull",
        ((-0.66, 0.36), (-0.58, 0.3), (0.6, 0.3), (0.74, 0.38), (0.54, 0.06), (0.46, 0.0), (-0.44, 0.0), (-0.52, 0.05)),
    )
    pen.line("hull", ((-0.6, 0.3), (0.64, 0.3)), 0.04, 1.35)
    pen.poly("hull", ((-0.54, 0.08), (0.56, 0.08), (0.46, 0.0), (-0.44, 0.0)), 0.68)


def kite(pen: Pen) -> None:
    f = pen.form
    sway = 0.1 * (f[0] - 0.5)
    tail = [(0.06 * sin(2.2 * k + 6 * f[1]) + sway * k / 3, 0.36 - 0.06 * k) for k in range(7)]
    pen.line("tail", tail, 0.025)
    for k in (2, 4, 6):
        x, y = tail[k]
        pen.poly("tail", ((x - 0.07, y + 0.04), (x - 0.07, y - 0.03), (x + 0.07, y + 0.04), (x + 0.07, y - 0.03)))
    pen.poly("body", ((0.0, 0.34), (-0.3, 0.72), (0.0, 1.0), (0.3, 0.72)))
    pen.poly("body", ((0.0, 0.34), (-0.3, 0.72), (0.0, 0.72)), 0.86)
    pen.poly("body", ((0.0, 1.0), (-0.3, 0.72), (0.0, 0.72)), 1.12)
    pen.poly("stripe", ((-0.3, 0.72), (-0.25, 0.77), (0.25, 0.77), (0.3, 0.72), (0.255, 0.665), (-0.255, 0.665)))
    if f[2] < 0.5:
        pen.poly("stripe", ((-0.035, 0.385), (-0.035, 0.965), (0.0, 1.0), (0.035, 0.965), (0.035, 0.385), (0.0, 0.34)))


def balloon(pen: Pen) -> None:
    f = pen.form
    for s in (-1, 1):
        pen.line("rope", ((0.2 * s, 0.36), (0.085 * s, 0.14)), 0.018)
    pen.line("rope", ((0.0, 0.34), (0.0, 0.14)), 0.018)
    pen.oval("envelope", 0.0, 0.66, 0.36, 0.34)
    pen.poly("envelope", ((-0.33, 0.54), (0.33, 0.54), (0.14, 0.29), (-0.14, 0.29)))
    pen.oval("envelope", -0.14, 0.78, 0.09, 0.13, 1.3, tilt=-25)
    if f[0] < 0.5:
        pen.oval("stripe", 0.0, 0.66, 0.11, 0.335)
        pen.poly("stripe", ((-0.1, 0.5), (0.1, 0.5), (0.05, 0.29), (-0.05, 0.29)))
    else:
        pen.poly("stripe", ((-0.36, 0.7), (0.36, 0.7), (0.35, 0.57), (-0.35, 0.57)))
    pen.rect("basket", -0.11, 0.0, 0.11, 0.15)
    pen.line("basket", ((-0.11, 0.135), (0.11, 0.135)), 0.03, 1.3)
    pen.line("basket", ((-0.11, 0.06), (0.11, 0.06)), 0.015, 0.7)


def umbrella(pen: Pen) -> None:
    f = pen.form
    pen.rect("pole", -0.024, 0.0, 0.024, 0.98)
    n = 6
    w = 0.48
    arc = [(w * -cos(pi * k / 12), 0.6 + 0.36 * sin(pi * k / 12)) for k in range(13)]
    hem = []
    for k in range(n):
        x0 = w - 2 * w * k / n
        hem += [(x0, 0.6), (x0 - w / n, 0.64)]
    pen.poly("canopy", [*arc, *hem])
    first = 0 if f[0] < 0.5 else 1
    for k in range(first, n, 2) if f[1] < 0.5 else (2, 3):
        x0, x1 = -w + 2 * w * k / n, -w + 2 * w * (k + 1) / n
        pen.poly(
            "stripe", ((x0, 0.6), ((x0 + x1) / 2, 0.64), (x1, 0.6), (x1 * 0.62, 0.87), (0.0, 0.965), (x0 * 0.62, 0.87))
        )
    pen.oval("canopy", -0.18, 0.82, 0.09, 0.04, 1.35, tilt=35)
