"""How living things are drawn; see `pen` for the frame they are drawn in."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np

from mglmm_data.world.pen import Pen


def tree(pen: Pen) -> None:
    f = pen.form
    pen.poly("trunk", ((-0.085, 0.0), (-0.05, 0.12), (-0.045, 0.5), (0.045, 0.5), (0.05, 0.12), (0.085, 0.0)))
    pen.line("trunk", ((0.03, 0.02), (0.025, 0.45)), 0.02, 0.75)
    if f[0] < 0.35:  # conifer
        for k in range(3):
            y, w = 0.2 + 0.22 * k, 0.36 - 0.08 * k
            pen.poly("crown", ((-w, y), (w, y), (w * 0.18, y + 0.36), (-w * 0.18, y + 0.36)), 0.86 + 0.08 * k)
            pen.poly("crown", ((-w, y), (-w * 0.1, y), (-w * 0.2, y + 0.3)), 1.06 + 0.06 * k)
        pen.poly("crown", ((-0.1, 0.82), (0.1, 0.82), (0.0, 1.0)), 1.05)
    else:
        n = 7
        rx, ry = 0.25 + 0.07 * f[1], 0.21
        for k in range(n):
            a = 2 * pi * k / n + f[2]
            pen.oval("crown", rx * 0.75 * cos(a), 0.66 + ry * 0.8 * sin(a), 0.16, 0.155, 0.9 if sin(a) < 0 else 1.0)
        pen.oval("crown", 0.0, 0.66, rx, ry)
        for k in range(6):
            a = 2.4 * k + 6 * f[3]
            x, y = 0.2 * cos(a), 0.68 + 0.16 * sin(a)
            pen.oval("crown", x, y, 0.075, 0.05, 1.16 if x - y < -0.68 else 0.85)


def person(pen: Pen) -> None:
    f = pen.form
    step = 0.03 + 0.08 * f[0]
    if f[1] < 0.3:
        pen.poly("pants", ((-0.1, 0.5), (0.1, 0.5), (0.19, 0.2), (-0.19, 0.2)))  # a skirt
        pen.line("pants", ((-0.06, 0.2), (-0.06, 0.05)), 0.07, 0.75)
        pen.line("pants", ((0.06, 0.2), (0.06, 0.05)), 0.07, 0.75)
        step = 0.0
    else:
        pen.poly("pants", ((-0.115, 0.5), (0.02, 0.5), (0.01, 0.3), (-0.02 - step, 0.05), (-0.13 - step, 0.05)), 0.88)
        pen.poly("pants", ((-0.02, 0.5), (0.115, 0.5), (0.13 + step, 0.05), (0.02 + step, 0.05), (0.0, 0.3)))
    for x in (-0.075 - step, 0.075 + step):
        pen.oval("shoe", x + 0.025, 0.03, 0.085, 0.035)
    lift = f[2] * 0.2 if f[3] < 0.6 else 0.45
    pen.line("shirt", ((-0.14, 0.72), (-0.23, 0.46)), 0.085, 0.85)
    pen.oval("shirt", -0.235, 0.43, 0.045, 0.045, 0.7)
    pen.line("shirt", ((0.14, 0.72), (0.23 + 0.1 * lift, 0.46 + lift)), 0.085, 0.92)
    pen.oval("shirt", 0.235 + 0.1 * lift, 0.43 + 1.1 * lift, 0.045, 0.045, 0.7)
    pen.poly("shirt", ((-0.12, 0.45), (-0.15, 0.7), (-0.11, 0.77), (0.11, 0.77), (0.15, 0.7), (0.12, 0.45)))
    pen.line("shirt", ((-0.12, 0.465), (0.12, 0.465)), 0.025, 0.75)
    pen.rect("face", -0.04, 0.74, 0.04, 0.82, 0.88)
    if f[4] < 0.5:
        pen.oval("hair", -0.01, 0.85, 0.135, 0.15)
        pen.rect("hair", -0.14, 0.72, -0.05, 0.88)
    pen.oval("hair", 0.0, 0.895, 0.12, 0.105)
    pen.oval("face", 0.02, 0.865, 0.095, 0.1)
    pen.poly("hair", ((-0.11, 0.9), (-0.07, 0.97), (0.06, 0.985), (0.115, 0.91), (0.03, 0.94)))
    for x in (-0.012, 0.058):
        pen.oval("face", x, 0.88, 0.013, 0.018, 0.25)
    pen.line("face", ((-0.005, 0.815), (0.025, 0.808), (0.055, 0.815)), 0.014, 0.55)


def dog(pen: Pen) -> None:
    f = pen.form
    wag = 0.75 + 0.2 * f[0]
    pen.line("tail", ((-0.6, 0.58), (-0.74, 0.7), (-0.78, wag)), 0.1)
    for x, tint in ((-0.4, 0.75), (0.36, 0.75), (-0.52, 1.0), (0.26, 1.0)):
        pen.rect("leg", x - 0.06, 0.02, x + 0.06, 0.4, tint)
        pen.oval("leg", x + 0.03, 0.04, 0.09, 0.045, tint)
    pen.oval("body", -0.12, 0.5, 0.54, 0.21)
    pen.oval("body", 0.2, 0.53, 0.24, 0.23)
    pen.oval("body", -0.15, 0.6, 0.34, 0.07, 1.15)
    pen.oval("body", -0.1, 0.36, 0.36, 0.06, 0.82)
    pen.oval("head", 0.42, 0.78, 0.21, 0.19)
    pen.oval("head", 0.6, 0.72, 0.15, 0.1)
    pen.oval("head", 0.73, 0.75, 0.045, 0.04, 0.25)
    pen.oval("head", 0.5, 0.83, 0.03, 0.035, 0.2)
    if f[1] < 0.5:
        pen.oval("ear", 0.32, 0.76, 0.09, 0.2, tilt=-14)
    else:
        pen.poly("ear", ((0.24, 0.85), (0.28, 1.0), (0.38, 1.0), (0.47, 0.92), (0.36, 0.76)))


def cat(pen: Pen) -> None:
    f = pen.form
    reach = 0.42 + 0.12 * f[0]
    pen.line("tail", ((0.2, 0.08), (0.42, 0.1), (reach, 0.25), (reach - 0.03, 0.42), (reach + 0.05, 0.52)), 0.085)
    pen.oval("body", 0.0, 0.26, 0.3, 0.26)
    pen.oval("body", -0.02, 0.42, 0.2, 0.24)
    pen.oval("body", -0.03, 0.36, 0.1, 0.18, 1.25)
    for x in (-0.1, 0.06):
        pen.oval("body", x, 0.05, 0.08, 0.05, 1.12)
        pen.line("body", ((x + 0.04, 0.1), (x + 0.04, 0.28)), 0.02, 0.75)
    for s in (-1, 1):
        pen.poly("ear", ((0.24 * s, 0.76), (0.2 * s, 1.0), (0.03 * s, 0.88)))
        pen.poly("ear", ((0.19 * s, 0.8), (0.18 * s, 0.94), (0.09 * s, 0.87)), 0.7)
    pen.oval("head", 0.0, 0.73, 0.245, 0.19)
    for s in (-1, 1):
        pen.oval("head", 0.095 * s, 0.76, 0.038, 0.042, 0.15)
        pen.line("head", ((0.1 * s, 0.67), (0.25 * s, 0.68)), 0.012, 0.45)
    pen.oval("head", 0.0, 0.685, 0.03, 0.022, 0.35)


def bird(pen: Pen) -> None:
    f = pen.form
    up = 0.75 + 0.25 * f[0]
    pen.poly("tail", ((-0.45, 0.42), (-0.95, 0.58), (-0.98, 0.4), (-0.9, 0.25), (-0.45, 0.34)))
    pen.line("tail", ((-0.5, 0.4), (-0.93, 0.42)), 0.02, 0.75)
    pen.poly("wing", ((-0.05, 0.5), (-0.25, up * 0.9), (0.0, up - 0.02), (0.26, 0.52)), 0.72)
    pen.poly("beak", ((0.68, 0.58), (0.95, 0.48), (0.66, 0.44)))
    pen.oval("body", 0.0, 0.36, 0.58, 0.24, tilt=8)
    pen.oval("body", 0.5, 0.52, 0.22, 0.2)
    pen.oval("body", 0.05, 0.22, 0.36, 0.07, 1.3)
    pen.oval("body", 0.57, 0.57, 0.04, 0.045, 0.15)
    pen.poly("wing", ((0.2, 0.42), (0.02, 0.36), (-0.42, up), (-0.5, 0.98 * up), (-0.4, 0.5), (-0.2, 0.3), (0.1, 0.28)))
    pen.line("wing", ((-0.05, 0.4), (-0.42, 0.85 * up)), 0.025, 0.75)


def flower(pen: Pen) -> None:
    f = pen.form
    n = 5 + int(f[0] * 3.999)
    pen.line("stem", ((0.0, 0.0), (0.03 - 0.06 * f[1], 0.3), (0.0, 0.66)), 0.055)
    pen.oval("leaf", 0.15, 0.24, 0.17, 0.065, tilt=35)
    pen.oval("leaf", -0.15, 0.17, 0.16, 0.06, tilt=-35)
    for k in range(n):
        a = 2 * pi * k / n + f[2]
        x, y = 0.17 * cos(a), 0.7 + 0.17 * sin(a)
        pen.oval("petal", x, y, 0.13, 0.095, 1.0 if k % 2 else 0.9, tilt=np.degrees(a))
        pen.oval("petal", 0.75 * x, 0.7 + 0.75 * (y - 0.7), 0.07, 0.02, 0.8, tilt=np.degrees(a))
    pen.oval("center", 0.0, 0.7, 0.095, 0.095)
    pen.oval("center", -0.02, 0.73, 0.045, 0.04, 1.3)


def mushroom(pen: Pen) -> None:
    f = pen.form
    w = 0.42 + 0.08 * f[0]
    pen.poly("stem", ((-0.19, 0.02), (-0.12, 0.5), (0.12, 0.5), (0.19, 0.02), (0.0, -0.02)))
    pen.poly("stem", ((0.06, 0.02), (0.04, 0.5), (0.12, 0.5), (0.19, 0.02)), 0.82)
    arc = [(w * -cos(pi * k / 14), 0.44 + 0.55 * sin(pi * k / 14)) for k in range(15)]
    pen.poly("cap", [*arc, (0.3, 0.39), (0.0, 0.37), (-0.3, 0.39)])
    pen.poly("cap", [(w, 0.44), (0.3, 0.39), (0.0, 0.37), (-0.3, 0.39), (-w, 0.44), (0.0, 0.48)], 0.74)
    for x, y, r in ((-0.22, 0.62, 0.085), (0.06, 0.82, 0.085), (0.25, 0.6, 0.08), (0.0, 0.58, 0.055)):
        pen.oval("spot", x * w / 0.45, y, r, r * 0.85)
