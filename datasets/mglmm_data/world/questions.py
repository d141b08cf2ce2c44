"""Tasks answered in words: caption, short questions with balanced answers, and naming a region that the user gives.

A task is a function `(view, rng, kind) -> Draft | None`; None where the scene has no such question of that kind.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from mglmm_data import masks
from mglmm_data.sample import Region
from mglmm_data.world import templates
from mglmm_data.world.draft import Draft, Exchange, Names, Piece, ask
from mglmm_data.world.expressions import GROUNDS, absent_look, relation_words
from mglmm_data.world.grounded import plain_name
from mglmm_data.world.view import Target, View, order, pick
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, MAIN_COLORS, PARTS, held_out

COUNT_WEIGHTS = (1.0, 1.0, 1.3, 3.5, 40.0)
"""How the answers 0..4 are drawn among those a scene has, so that all five come out equally often; fitted on 700."""
COLOR_WEIGHTS = dict.fromkeys(COLORS, 1.0) | {"red": 1.4, "blue": 1.2, "purple": 1.5, "pink": 1.4, "gray": 1.2}
"""The same for colours."""
WHERE_WEIGHTS = (2.3, 1.1, 2.4, 4.5, 1.0, 3.1)
"""The same for left, middle, right, top, middle, bottom; the two middles together are as frequent as another."""
THIRD_MARGIN = 0.03
"""A thing in the left third keeps this share of the image from the middle one."""


def caption(view: View, rng: Generator, kind: str) -> Draft | None:
    """ "A scene with three dogs, a house and two trees on green grass under a blue sky." """
    counts = sorted(((len(view.same(name)), name) for name in view.categories), key=lambda item: (-item[0], item[1]))
    things = [
        templates.article(name) if n == 1 else f"{templates.NUMBERS[n]} {templates.plural(name)}" for n, name in counts
    ]
    stuff = [view.scene.stuff[i] for i in view.stuff]
    grounds = [s for s in stuff if s.name in (*GROUNDS, "water")]
    ground = max(grounds, key=lambda s: view.areas[s.leaf], default=None)
    sky = next((s for s in stuff if s.name == "sky"), None)
    answer = f"A scene with {templates.join(things)}"
    answer += f" on {ground.color} {ground.name}" if ground else ""
    answer += f" under {templates.article(f'{sky.color} sky')}" if sky else ""
    return ask(kind, pick(rng, templates.CAPTION), f"{answer}.")


def vqa(view: View, rng: Generator, kind: str) -> Draft | None:
    """A short question. The answer is drawn first, then a question that has it."""
    return {"count": _count, "color": _color, "where": _where, "yesno": _yesno}[kind](view, rng)


def _count(view: View, rng: Generator) -> Draft | None:
    looks: list[list[tuple[str, str]]] = [[] for _ in range(5)]
    for category, color in [
        *((name, "") for name in view.categories),
        *(("", name) for name in view.colors),
        *dict.fromkeys(view.look(i) for i in range(len(view.things))),
    ]:
        number = len(view.same(category, color))
        if number < len(looks):
            looks[number].append((category, color))
    looks[0] = [(pick(rng, [name for name in CATEGORIES if name not in view.categories]), "")]
    looks[0] += [("", name) for name in COLORS if name not in view.colors]
    look = absent_look(view, rng)
    looks[0] += [look] if look else []
    for answer in order(rng, range(5), COUNT_WEIGHTS):
        # By form first: else "red dogs" would be few and "dogs" many whatever the picture shows.
        for is_form in order(rng, (_is_category, _is_color_only, _is_pair), (0.5, 0.25, 0.25)):
            fitting = [look for look in looks[answer] if is_form(*look)]
            if fitting:
                category, color = pick(rng, fitting)
                noun = templates.plural(f"{color} {category or 'thing'}".strip())
                unseen = bool(category and color) and held_out(category, color)
                return ask("count", pick(rng, templates.COUNT).format(x=noun), str(answer), unseen=unseen)
    return None


def _is_category(category: str, color: str) -> bool:
    return bool(category) and not color


def _is_color_only(category: str, color: str) -> bool:
    return bool(color) and not category


def _is_pair(category: str, color: str) -> bool:
    return bool(category and color)


def _color(view: View, rng: Generator) -> Draft | None:
    targets: dict[str, list[Target]] = {}
    for i, thing in enumerate(view.things):
        targets.setdefault(thing.color, []).extend([Target(i)] * 3)
        for part, color in view.parts[i].items():
            if color:
                targets.setdefault(color, []).append(Target(i, part))
    for i in view.stuff:
        targets.setdefault(view.scene.stuff[i].color, []).append(Target(i, stuff=True))
    known = [color for color in targets if color in COLORS]
    for color in order(rng, known, [COLOR_WEIGHTS[c] for c in known]):
        for _ in range(4):
            target = pick(rng, targets[color])
            if target.stuff:
                names = [stuff.name for stuff in view.scene.stuff]
                name = view.scene.stuff[target.index].name
                words = f"the {name}" if names.count(name) == 1 else None
            elif target.part and rng.random() < 0.5 and (unique := view.unique_name(target.index)):
                words = f"the {unique}"
            else:
                words = plain_name(view, rng, target.index)
            if words:
                words = f"the {target.part} of {words}" if target.part else words
                question = pick(rng, templates.COLOR).format(x=words)
                return ask("color", question, color, unseen=view.is_unseen(target))
    return None


def _where(view: View, rng: Generator) -> Draft | None:
    for answer, axis, low, high in order(
        rng,
        (
            ("left", 0, 0.0, 1 / 3),
            ("middle", 0, 1 / 3, 2 / 3),
            ("right", 0, 2 / 3, 1.0),
            ("top", 1, 0.0, 1 / 3),
            ("middle", 1, 1 / 3, 2 / 3),
            ("bottom", 1, 2 / 3, 1.0),
        ),
        WHERE_WEIGHTS,
    ):
        low, high = low + THIRD_MARGIN * (low > 0), high - THIRD_MARGIN * (high < 1)
        there = [i for i, center in enumerate(view.centers[:, axis]) if low <= center <= high]
        for i in rng.permutation(there)[:3].astype(int).tolist():
            unique = view.unique_name(i)
            plain_size = len(view.same(view.things[i].category)) == 1 and rng.random() < 0.5
            words = f"the {view.things[i].category}" if plain_size else f"the {unique}" if unique else None
            if words:
                question = pick(rng, templates.WHERE["xy"[axis]]).format(x=words)
                return ask("where", question, answer, unseen=view.is_unseen(Target(i)))
    return None


YesNo = tuple[str, bool, Names]
"""A question, whether it speaks of something unseen, and what it names."""


def _yesno(view: View, rng: Generator) -> Draft | None:
    yes = bool(rng.random() < 0.5)
    for form in order(rng, (_is_there, _is_color, _is_beside, _are_more), (0.4, 0.25, 0.25, 0.1)):
        for _ in range(4):
            found = form(view, rng, yes)
            if found is not None and (view.allow_unseen or not found[1]):
                text, unseen, named = found
                return ask("yesno", text, "yes" if yes else "no", unseen=unseen, named=named)
    return None


def _is_there(view: View, rng: Generator, yes: bool) -> YesNo | None:
    """A category, or a colour of one."""
    if rng.random() < 0.4:
        names = view.categories if yes else [name for name in CATEGORIES if name not in view.categories]
        return pick(rng, templates.EXISTS).format(x=templates.article(pick(rng, names))), False, ()
    look = view.look(int(rng.integers(len(view.things)))) if yes else absent_look(view, rng)
    if look is None:
        return None
    return pick(rng, templates.EXISTS).format(x=templates.article(f"{look[1]} {look[0]}")), held_out(*look), ()


def _is_color(view: View, rng: Generator, yes: bool) -> YesNo | None:
    index = int(rng.integers(len(view.things)))
    words = plain_name(view, rng, index)
    category, color = view.look(index)
    if words is None:
        return None
    if not yes:
        others = [c for c in MAIN_COLORS[category] if c != color]
        near = [c for c in others if c in view.colors]
        color = pick(rng, near if near and rng.random() < 0.6 else others)
    unseen = held_out(category, color) or view.is_unseen(Target(index))
    return f"Is {words} {color}?", unseen, ((words, Target(index)),)


def _is_beside(view: View, rng: Generator, yes: bool) -> YesNo | None:
    index, anchor = (int(i) for i in rng.integers(len(view.things), size=2))
    name, other = view.unique_name(index), view.unique_name(anchor)
    relation = pick(rng, tuple(templates.RELATIONS))
    if index == anchor or name is None or other is None or view.stands(index, relation, anchor) is not yes:
        return None
    ends = (view.look(index), view.look(anchor))
    unseen = any(held_out(*end) or templates.held_out_relation(*end, relation) for end in ends)
    text = f"Is the {name} {relation_words(rng, relation)} the {other}?"
    return text, unseen, ((f"the {name}", Target(index)), (f"the {other}", Target(anchor)))


def _are_more(view: View, rng: Generator, yes: bool) -> YesNo | None:
    if len(view.categories) < 2:
        return None
    one, two = (view.categories[i] for i in rng.permutation(len(view.categories))[:2])
    if (len(view.same(one)) > len(view.same(two))) is not yes:
        return None
    return f"Are there more {templates.plural(one)} than {templates.plural(two)}?", False, ()


def region(view: View, rng: Generator, kind: str) -> Draft | None:
    """Name the thing, part or stuff that a point, box, scribble or mask marks; half of the time with its mask."""
    target = _region_target(view, rng, kind)
    if target is None:
        return None
    if target.stuff:
        mask, words = view.scene.stuff_mask(target.index), view.describe(target)
    elif target.part:
        mask, words = view.scene.part_mask(target.index, target.part), view.describe(target)
    else:
        mask, words = view.scene.thing_mask(target.index), templates.article(view.name(target.index))
    given = target if kind == "mask" else _user_region(view, rng, kind, target, mask)
    grounded = bool(rng.random() < 0.5)
    if target.part:
        wordings = templates.NAME_PART_MASK if grounded else templates.NAME_PART
    else:
        wordings = templates.NAME_THING_MASK if grounded else templates.NAME_THING
    before, _, after = pick(rng, wordings).partition("{r}")
    answer: tuple[Piece, ...] = ((words, (target,)), ".") if grounded else (f"{words}.",)
    exchange = Exchange((before, (pick(rng, templates.REGION_WORDS), given), after), answer)
    return Draft(kind, (exchange,), view.is_unseen(target))


def _region_target(view: View, rng: Generator, kind: str) -> Target | None:
    draw = rng.random()
    if draw < 0.15 and kind != "box" and view.stuff:
        return Target(pick(rng, view.stuff), stuff=True)
    index = int(rng.integers(len(view.things)))
    if draw < 0.35:
        parts = tuple(view.parts[index])
        return Target(index, pick(rng, parts)) if parts else None
    return Target(index)


def _user_region(view: View, rng: Generator, kind: str, target: Target, mask: np.ndarray) -> Region:
    """A box, point or scribble as a user would draw it on `mask` (bool[H, W])."""
    size = view.scene.leaves.shape
    height, width = int(size[0]), int(size[1])
    bounds = masks.box_of(mask)
    assert bounds is not None, f"scene {view.scene.seed}: {target} is spoken of but not visible"
    if kind == "box":
        return Region((height, width), box=bounds)
    x1, y1, x2, y2 = (int(value) for value in bounds)
    inside = mask[y1:y2, x1:x2]
    if not target.part and not target.stuff:
        main = PARTS[view.things[target.index].category][0]
        inside = view.scene.part_mask(target.index, main)[y1:y2, x1:x2]
    depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, cols = np.nonzero(depth >= 0.75 * depth.max())
    start = int(rng.integers(len(rows)))
    x, y = float(x1 + cols[start] + 0.5), float(y1 + rows[start] + 0.5)
    if kind == "point":
        return Region((height, width), point=(x, y))
    points = [(x, y)]
    rows, cols = np.nonzero(depth >= min(1.0, depth.max()))
    length = int(rng.integers(3, 6))
    for _ in range(8 * length):
        step = int(rng.integers(len(rows)))
        after = (float(x1 + cols[step] + 0.5), float(y1 + rows[step] + 0.5))
        walk = np.linspace(points[-1], after, 12)
        if mask[walk[:, 1].astype(int), walk[:, 0].astype(int)].all():
            points.append(after)
        if len(points) == length:
            break
    while len(points) < 3:
        points.append(points[-1])
    return Region((height, width), scribble=tuple(points))
