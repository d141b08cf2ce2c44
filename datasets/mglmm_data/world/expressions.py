"""Expressions that name one thing of a scene, or something near it that is not there; never an ambiguous one."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from mglmm_data.world import templates
from mglmm_data.world.draft import Names
from mglmm_data.world.view import FLYING, Target, View, order, pick
from mglmm_data.world.vocabulary import CATEGORIES, MAIN_COLORS, PARTS, SIZE_WORDS, STUFF, held_out

GROUNDS = tuple(name for name in STUFF if name not in ("sky", "mountain", "forest", "water"))
"""What things of several categories stand on: worth asking for, and never answered by the name alone."""
KINDS: tuple[str, ...] = ("attribute", "size", "relation", "ordinal", "part")
KIND_WEIGHTS = (0.28, 0.14, 0.24, 0.16, 0.18)
ABSENT_RELATIONS = (0.34, 0.34, 0.16, 0.16)
"""How often left, right, above, below are tried for what is absent, so that they come out as often as when present."""


@dataclass(frozen=True)
class Expression:
    """Words beginning with "the" that name `target`; None where nothing in the scene answers to them."""

    text: str
    target: Target | None
    unseen: bool = False
    named: Names = ()

    @property
    def bare(self) -> str:
        return self.text.removeprefix("the ")


def present(view: View, rng: Generator, kind: str) -> Expression | None:
    """An unambiguous expression of that kind; None if a few tries find none."""
    maker = {"attribute": _attribute, "size": _size, "relation": _relation, "ordinal": _ordinal, "part": _part}[kind]
    for _ in range(25):
        found = maker(view, rng)
        if found is not None and (view.allow_unseen or not found.unseen):
            return found
    return None


def absent_look(view: View, rng: Generator, category: str = "") -> tuple[str, str] | None:
    """(category, color) of nothing in the scene; mostly a near miss: a category that is there, in another colour."""
    if not category:
        missing = [name for name in CATEGORIES if name not in view.categories]
        category = pick(rng, view.categories if rng.random() < 0.65 else missing)
    colors = [c for c in MAIN_COLORS[category] if not view.same(category, c)]
    near = [c for c in colors if c in view.colors]
    colors = near if near and rng.random() < 0.5 else colors
    color = pick(rng, colors) if colors else ""
    return (category, color) if color and (view.allow_unseen or not held_out(category, color)) else None


def distractor(view: View, rng: Generator) -> int:
    """A thing, mostly one whose category is there more than once."""
    several = [i for i, thing in enumerate(view.things) if len(view.same(thing.category)) > 1]
    return pick(rng, several) if several and rng.random() < 0.8 else int(rng.integers(len(view.things)))


def _attribute(view: View, rng: Generator) -> Expression | None:
    index = distractor(view, rng)
    category, color = view.look(index)
    if len(view.same(category, color)) > 1:
        return None
    return Expression(f"the {color} {category}", Target(index), held_out(category, color))


def _size(view: View, rng: Generator) -> Expression | None:
    sized = [i for i, thing in enumerate(view.things) if thing.size]
    if not sized:
        return None
    thing = view.things[index := pick(rng, sized)]
    color = thing.color if rng.random() < 0.6 else ""
    if len(view.same(thing.category, color, thing.size)) > 1:
        return None
    return Expression(
        f"the {thing.size} {color} {thing.category}".replace("  ", " "),
        Target(index),
        bool(color) and held_out(thing.category, color),
    )


def relation_words(rng: Generator, relation: str) -> str:
    return pick(rng, templates.RELATIONS[relation])


def _unseen_relation(view: View, category: str, color: str, relation: str, anchor: int | None) -> bool:
    """Whether either end of a relation is held out, by its look or together with the relation."""
    ends = ([(category, color)] if color else []) + ([view.look(anchor)] if anchor is not None else [])
    return any(held_out(*end) or templates.held_out_relation(*end, relation) for end in ends)


def _relation(view: View, rng: Generator) -> Expression | None:
    index = distractor(view, rng)
    category, color = view.look(index)
    if not (len(view.same(category, color)) > 1 and rng.random() < 0.5):
        color = ""
    rivals = view.same(category, color)
    if rng.random() < 0.2:
        ground = view.grounds[index]
        if ground not in GROUNDS or any(view.grounds[i] is None for i in rivals):
            return None
        if sum(view.grounds[i] == ground for i in rivals) > 1:
            return None
        text = f"the {color} {category} on the {ground}".replace("  ", " ")
        return Expression(text, Target(index), _unseen_relation(view, category, color, "on", None))
    anchor, relation = int(rng.integers(len(view.things))), pick(rng, tuple(templates.RELATIONS))
    name = view.unique_name(anchor)
    if anchor == index or name is None:
        return None
    if not all(view.stands(i, relation, anchor) is (i == index) for i in rivals if i != anchor):
        return None
    return _beside(view, rng, category, color, relation, anchor, Target(index))


def _beside(
    view: View, rng: Generator, category: str, color: str, relation: str, anchor: int, target: Target | None
) -> Expression:
    """ "the dog left of the red ball", which names the ball and, with "the dog left of", the leftmost dog.

    If any dog is left of the ball, the leftmost is; so whether there is one takes these two and a comparison.
    """
    words = f"the {color} {category} {relation_words(rng, relation)}".replace("  ", " ")
    name = f"the {view.unique_name(anchor)}"
    rivals = view.same(category, color)
    named = ((words, Target(view.utmost(rivals, relation))),) if rivals else ()
    unseen = _unseen_relation(view, category, color, relation, anchor)
    return Expression(f"{words} {name}", target, unseen, (*named, (name, Target(anchor))))


def ordinal_text(place: int, side: str, noun: str) -> str:
    return f"the {side}most {noun}" if place == 0 else f"the {templates.ORDINALS[place]} {noun} from the {side}"


def _place(rng: Generator, weights: tuple[float, ...]) -> tuple[int, str]:
    """Place in the order (0 is the outermost) and the side counted from."""
    return order(rng, range(len(weights)), weights)[0], "left" if rng.random() < 0.5 else "right"


def _ordinal(view: View, rng: Generator) -> Expression | None:
    category, color = view.look(distractor(view, rng))
    color = color if rng.random() < 0.25 and len(view.same(category, color)) > 1 else ""
    place, side = _place(rng, (0.5, 0.32, 0.18))
    ranked = view.ranked(view.same(category, color), side)
    if len(ranked) < 2 or place >= len(ranked) or not view.is_ranked(ranked, place):
        return None
    text = ordinal_text(place, side, f"{color} {category}".strip())
    return Expression(text, Target(ranked[place]), bool(color) and held_out(category, color))


def _part(view: View, rng: Generator) -> Expression | None:
    whole = _ordinal(view, rng) if rng.random() < 0.25 else None
    if whole is None:
        index = distractor(view, rng)
        name = view.unique_name(index)
        if name is None:
            return None
        whole = Expression(f"the {name}", Target(index), held_out(*view.look(index)))
    assert whole.target is not None
    parts = tuple(view.parts[whole.target.index])
    if not parts:
        return None
    part = pick(rng, parts)
    named = ((whole.text, whole.target),)
    return Expression(f"the {part} of {whole.text}", Target(whole.target.index, part), whole.unseen, named)


def absent(view: View, rng: Generator, kind: str) -> Expression | None:
    """An expression of the same form that clearly nothing in the scene answers to; None if a few tries find none."""
    maker = {
        "attribute": _absent_attribute,
        "size": _absent_size,
        "relation": _absent_relation,
        "ordinal": _absent_ordinal,
        "part": _absent_part,
    }[kind]
    for _ in range(10):
        found = maker(view, rng)
        if found is not None and (view.allow_unseen or not found.unseen):
            return found
    return None


def sized(rng: Generator, name: str) -> str:
    """Now and then "small" or "large" before what is not there, as often as before what is."""
    return f"{pick(rng, SIZE_WORDS)} {name}" if rng.random() < 0.15 else name


def _absent_attribute(view: View, rng: Generator) -> Expression | None:
    look = absent_look(view, rng)
    return Expression(f"the {look[1]} {look[0]}", None, held_out(*look)) if look else None


def _absent_size(view: View, rng: Generator) -> Expression | None:
    """The other size of a colour that is there, a sized thing of another colour, or a category that is not there."""
    size = pick(rng, SIZE_WORDS)
    if rng.random() < 0.12:
        category = pick(rng, [name for name in CATEGORIES if name not in view.categories])
        return Expression(f"the {size} {category}", None)
    sized = [thing for thing in view.things if thing.size]
    if not sized:
        return None
    thing = pick(rng, sized)
    if rng.random() < 0.5:
        look = absent_look(view, rng, thing.category)
        return Expression(f"the {size} {look[1]} {look[0]}", None, held_out(*look)) if look else None
    rivals = view.same(thing.category, thing.color)
    if any(view.things[i].size in ("", size) for i in rivals):
        return None
    return Expression(f"the {size} {thing.color} {thing.category}", None, held_out(thing.category, thing.color))


def _absent_relation(view: View, rng: Generator) -> Expression | None:
    near = rng.random() < 0.7
    if near:
        category, color = view.look(distractor(view, rng))
        color = color if len(view.same(category, color)) > 1 and rng.random() < 0.3 else ""
    else:
        category, color = pick(rng, [name for name in CATEGORIES if name not in view.categories]), ""
    rivals = view.same(category, color)
    if rng.random() < 0.2:
        grounds = [view.scene.stuff[i].name for i in view.stuff if view.scene.stuff[i].name in GROUNDS]
        if not grounds or category in (*FLYING, "boat"):
            return None
        ground = pick(rng, grounds)
        if any(view.grounds[i] in (None, ground) for i in rivals):
            return None
        text = f"the {color} {category} on the {ground}".replace("  ", " ")
        return Expression(text, None, _unseen_relation(view, category, color, "on", None))
    anchor, relation = int(rng.integers(len(view.things))), order(rng, tuple(templates.RELATIONS), ABSENT_RELATIONS)[0]
    name = view.unique_name(anchor)
    rivals = [i for i in rivals if i != anchor]
    if name is None or (near and not rivals) or any(view.stands(i, relation, anchor) is not False for i in rivals):
        return None
    return _beside(view, rng, category, color, relation, anchor, None)


def _absent_ordinal(view: View, rng: Generator) -> Expression | None:
    place, side = _place(rng, (0.64, 0.28, 0.08))
    color = ""
    few = [name for name in view.categories if len(view.same(name)) <= place]
    if few and rng.random() < 0.6:
        category = pick(rng, few)
    elif rng.random() < 0.2:
        look = absent_look(view, rng)
        if look is None:
            return None
        category, color = look
    else:
        category = pick(rng, [name for name in CATEGORIES if name not in view.categories])
    if len(view.same(category, color)) > place:
        return None
    text = ordinal_text(place, side, f"{color} {category}".strip())
    return Expression(text, None, bool(color) and held_out(category, color))


def _absent_part(view: View, rng: Generator) -> Expression | None:
    """A part of a thing that is not there; now and then a part that the thing does not have."""
    if rng.random() < 0.12:
        index = distractor(view, rng)
        name, category = view.unique_name(index), view.things[index].category
        foreign = sorted({part for other in view.categories for part in PARTS[other]} - set(PARTS[category]))
        if name is None or not foreign:
            return None
        named = ((f"the {name}", Target(index)),)
        return Expression(f"the {pick(rng, foreign)} of the {name}", None, view.is_unseen(Target(index)), named)
    by_place = rng.random() < 0.25
    whole = _absent_ordinal(view, rng) if by_place else _absent_attribute(view, rng)
    if whole is None:
        return None
    category = next(word for word in whole.text.split() if word in PARTS)
    name = whole.bare if by_place else sized(rng, whole.bare)
    return Expression(f"the {pick(rng, PARTS[category])} of the {name}", None, whole.unseen)
