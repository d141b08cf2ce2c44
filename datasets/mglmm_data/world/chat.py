"""Conversations of two or three questions about one scene, where "it" is what the last answer pointed at.

A task is a function `(view, rng, kind) -> Draft | None`; None where the scene has no such conversation of that kind.
"""

from __future__ import annotations

from numpy.random import Generator

from mglmm_data.world import templates
from mglmm_data.world.draft import Draft, Exchange
from mglmm_data.world.expressions import distractor, relation_words
from mglmm_data.world.grounded import plain_name
from mglmm_data.world.view import FLYING, Target, View, pick
from mglmm_data.world.vocabulary import CATEGORIES, held_out


def grounded_chat(view: View, rng: Generator, kind: str) -> Draft | None:
    """`color`: one, then its looks; `neighbor`: one, then what is beside it; `count`: how many, then the outermost."""
    for _ in range(6):
        found = {"color": _looks, "neighbor": _neighbor, "count": _count}[kind](view, rng)
        if found is not None and (view.allow_unseen or not found.unseen):
            return found
    return None


def _find(rng: Generator, words: str, answer: str, index: int) -> Exchange:
    before = "Here is " if answer != words else ""
    return Exchange((pick(rng, templates.FIND_ONE).format(x=words),), (before, (answer, (Target(index),)), "."))


def _color(view: View, rng: Generator, index: int) -> Exchange:
    return Exchange((pick(rng, templates.LATER_COLOR),), (f"It is {view.things[index].color}.",))


def _detail(view: View, rng: Generator, index: int) -> Exchange | None:
    """A part of it, or what it stands on."""
    ground = view.grounds[index]
    if ground and view.things[index].category not in FLYING and rng.random() < 0.4:
        stuff = next(i for i, stuff in enumerate(view.scene.stuff) if stuff.name == ground)
        target = Target(stuff, stuff=True)
        return Exchange((pick(rng, templates.LATER_GROUND),), ("It is on ", (view.describe(target), (target,)), "."))
    parts = tuple(view.parts[index])
    if not parts:
        return None
    part = pick(rng, parts)
    phrase = (f"the {view.part_name(index, part)}", (Target(index, part),))
    return Exchange((pick(rng, templates.LATER_PART).format(x=part),), (phrase, "."))


def _looks(view: View, rng: Generator) -> Draft | None:
    index = distractor(view, rng)
    words = plain_name(view, rng, index)
    if words is None:
        return None
    exchanges = [_find(rng, words, f"the {view.things[index].category}", index)]
    later = [_color(view, rng, index), _detail(view, rng, index)]
    if rng.random() < 0.5:
        later.reverse()
    exchanges += [exchange for exchange in later if exchange is not None][: 1 + int(rng.random() < 0.6)]
    return Draft("color", tuple(exchanges), view.is_unseen(Target(index)))


def _beside(view: View, index: int) -> tuple[list[tuple[str, str, list[int]]], list[tuple[str, str, list[int]]]]:
    """(category, relation, things there) around a thing: of which clearly none is there, of which clearly one is."""
    none, one = [], []
    for category in view.categories:
        rivals = [i for i in view.same(category) if i != index]
        for relation in templates.RELATIONS:
            stands = [view.stands(i, relation, index) for i in rivals]
            there = [i for i, does in zip(rivals, stands, strict=True) if does]
            if rivals and None not in stands and len(there) < 2:
                (one if there else none).append((category, relation, there))
    return none, one


def _neighbor(view: View, rng: Generator) -> Draft | None:
    index = distractor(view, rng)
    name = view.unique_name(index)
    if name is None:
        return None
    yes = bool(rng.random() < 0.5)
    found = _beside(view, index)[yes]
    if not yes and (not found or rng.random() < 0.3):
        missing = pick(rng, [name for name in CATEGORIES if name not in view.categories])
        found = [(missing, pick(rng, tuple(templates.RELATIONS)), [])]
    if not found:
        return None
    category, relation, standing = pick(rng, found)
    first = view.describe(Target(index))
    exchanges = [_find(rng, first if rng.random() < 0.5 else f"the {name}", first, index)]
    words = relation_words(rng, relation)
    question = pick(rng, templates.LATER_NEIGHBOR).format(x=templates.article(category), relation=words)
    unseen = held_out(*view.look(index)) or templates.held_out_relation(*view.look(index), relation)
    if not yes:
        exchanges.append(Exchange((question,), (f"No, there is no {category} {words} it.",)))
    else:
        (other,) = standing
        phrase = (view.describe(Target(other)), (Target(other),))
        exchanges.append(Exchange((question,), ("Yes, ", phrase, ".")))
        index = other
    detail = _detail(view, rng, index) if rng.random() < 0.6 else None
    return Draft("neighbor", (*exchanges, *([detail] if detail else [])), unseen)


def _count(view: View, rng: Generator) -> Draft | None:
    category = view.look(distractor(view, rng))[0]
    side = "left" if rng.random() < 0.5 else "right"
    ranked = view.ranked(view.same(category), side)
    if len(ranked) < 2 or not view.is_ranked(ranked, 0):
        return None
    things = f"{templates.NUMBERS[len(ranked)]} {templates.plural(category)}"
    question = pick(rng, templates.COUNT[:2]).format(x=templates.plural(category))
    targets = tuple(Target(i) for i in view.same(category))
    exchanges = [Exchange((question,), ("There are ", (things, targets), "."))]
    question = pick(rng, templates.LATER_EXTREME).format(x=f"{side}most")
    exchanges.append(Exchange((question,), ("Here is ", (f"the {side}most {category}", (Target(ranked[0]),)), ".")))
    if rng.random() < 0.6:
        exchanges.append(_color(view, rng, ranked[0]))
    return Draft("count", tuple(exchanges), any(view.is_unseen(target) for target in targets))
