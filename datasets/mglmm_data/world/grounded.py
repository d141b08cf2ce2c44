"""Tasks whose answers are phrases with masks or boxes: panoptic, fine, referring, absent, several, reasoning, box.

A task is a function `(view, rng, kind) -> Draft | None`; None where the scene has no such question of that kind.
"""

from __future__ import annotations

from numpy.random import Generator

from mglmm_data.world import templates
from mglmm_data.world.draft import Draft, Piece, ask
from mglmm_data.world.expressions import absent, absent_look, distractor, ordinal_text, present, sized
from mglmm_data.world.view import Target, View, pick
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, held_out


def panoptic(view: View, rng: Generator, kind: str) -> Draft | None:
    """Stuff from the sky to the foreground, then things in reading order: one phrase, one mask each."""
    phrases = [(view.describe(Target(i, stuff=True)), Target(i, stuff=True)) for i in view.stuff]
    phrases += [(templates.article(view.name(i)), Target(i)) for i in range(len(view.things))]
    return ask(kind, pick(rng, templates.PANOPTIC), *_listed(phrases))


def _listed(phrases: list[tuple[str, Target]]) -> list[Piece]:
    """ "a, b, c." with a phrase grounded in one target each."""
    pieces: list[Piece] = []
    for place, (words, target) in enumerate(phrases):
        pieces += [", "] * (place > 0) + [(words, (target,))]
    return [*pieces, "."]


def plain_name(view: View, rng: Generator, index: int) -> str | None:
    """Words without a colour that only this thing answers to: "the dog", "the large dog", "the leftmost dog"."""
    thing = view.things[index]
    rivals = view.same(thing.category)
    if len(rivals) == 1:
        return f"the {thing.category}"
    if thing.size and len(view.same(thing.category, "", thing.size)) == 1 and rng.random() < 0.5:
        return f"the {thing.size} {thing.category}"
    side = "left" if rng.random() < 0.5 else "right"
    ranked = view.ranked(rivals, side)
    place = ranked.index(index)
    if place >= len(templates.ORDINALS) or not view.is_ranked(ranked, place):
        return None
    return ordinal_text(place, side, thing.category)


def fine(view: View, rng: Generator, kind: str) -> Draft | None:
    """The visible parts of one thing with their colours; the thing named by its look or by its place."""
    for _ in range(8):
        index = distractor(view, rng)
        name = view.unique_name(index) if kind == "attribute" else plain_name(view, rng, index)
        if name is None or len(view.parts[index]) < 2:
            continue
        phrases = [(f"the {view.part_name(index, part)}", Target(index, part)) for part in view.parts[index]]
        name = f"the {name.removeprefix('the ')}"
        question = pick(rng, templates.FINE).format(x=name)
        return ask(kind, question, *_listed(phrases), named=((name, Target(index)),))
    return None


def referring(view: View, rng: Generator, kind: str) -> Draft | None:
    """One expression, one mask; the answer says what the thing looks like, so the model has to look."""
    found = present(view, rng, kind)
    if found is None or found.target is None:
        return None
    question = pick(rng, templates.FIND_ONE).format(x=found.text)
    phrase = (view.describe(found.target), (found.target,))
    return ask(kind, question, phrase, ".", unseen=found.unseen, named=found.named)


def box(view: View, rng: Generator, kind: str) -> Draft | None:
    """As `referring`, answered by a box."""
    found = present(view, rng, kind)
    if found is None or found.target is None:
        return None
    question = pick(rng, templates.FIND_BOX).format(x=found.text)
    phrase = (view.describe(found.target), (found.target,))
    return ask(kind, question, phrase, ".", unseen=found.unseen, grounding="box", named=found.named)


def several(view: View, rng: Generator, kind: str) -> Draft | None:
    """All things of a look in one phrase, in reading order; or two or three different things, a phrase each."""
    if kind == "one_phrase":
        for _ in range(8):
            category, color = _shared_look(rng, *view.look(distractor(view, rng)))
            indices = view.same(category, color)
            if len(indices) == 1 and rng.random() < 0.75:
                continue
            noun = f"{color} {category or 'thing'}".strip()
            number = templates.NUMBERS[len(indices)]
            phrase = f"the {noun}" if len(indices) == 1 else f"the {number} {templates.plural(noun)}"
            question = _find_all(rng, noun)
            return ask(kind, question, (phrase, tuple(Target(i) for i in indices)), ".")
        return None
    named = [i for i in range(len(view.things)) if view.unique_name(i)]
    count = 3 if rng.random() < 0.3 else 2
    if len(named) < count:
        return None
    chosen = [named[i] for i in rng.permutation(len(named))[:count]]
    question = pick(rng, templates.FIND_SEVERAL).format(
        x=templates.join([f"the {view.unique_name(i)}" for i in chosen])
    )
    joints = ["", " and "] if count == 2 else ["", ", ", " and "]
    pieces: list[Piece] = []
    for joint, i in zip(joints, chosen, strict=True):
        pieces += [joint] * bool(joint) + [(view.describe(Target(i)), (Target(i),))]
    return ask(kind, question, *pieces, ".")


def _shared_look(rng: Generator, category: str, color: str) -> tuple[str, str]:
    """A category, a colour, or both: what "all ..." may ask for."""
    form = rng.random()
    return (category, "") if form < 0.5 else ("", color) if form < 0.75 else (category, color)


def _absent_shared_look(view: View, rng: Generator) -> tuple[str, str] | None:
    """The same for nothing in the scene."""
    category, color = _shared_look(rng, "category", "color")
    if category and color:
        return absent_look(view, rng)
    missing = [name for name in (CATEGORIES if category else COLORS) if name not in (*view.categories, *view.colors)]
    return (pick(rng, missing), "") if category else ("", pick(rng, missing))


def _find_all(rng: Generator, noun: str) -> str:
    words = f"{'all' if rng.random() < 0.5 else 'all the'} {templates.plural(noun)}"
    return pick(rng, templates.FIND_SEVERAL).format(x=words)


def nothing(view: View, rng: Generator, kind: str) -> Draft | None:
    """The questions of `referring` and `several` for what is not there: an answer that says so, without masks."""
    if kind == "one_phrase":
        look = _absent_shared_look(view, rng)
        if look is None:
            return None
        category, color = look
        noun = f"{color} {category or 'thing'}".strip()
        unseen = bool(category and color) and held_out(category, color)
        return ask(kind, _find_all(rng, noun), f"There are no {templates.plural(noun)} in the image.", unseen=unseen)
    if kind == "phrases":
        looks = [absent_look(view, rng) for _ in range(3 if rng.random() < 0.3 else 2)]
        unique = [sized(rng, f"{look[1]} {look[0]}") for look in dict.fromkeys(looks) if look]
        if len(unique) < 2:
            return None
        question = pick(rng, templates.FIND_SEVERAL).format(x=templates.join([f"the {name}" for name in unique]))
        answer = f"There is {templates.join([f'no {name}' for name in unique])} in the image."
        return ask(kind, question, answer, unseen=any(held_out(*look) for look in looks if look))
    found = absent(view, rng, kind)
    if found is None:
        return None
    question = pick(rng, templates.FIND_ONE).format(x=found.text)
    answer = f"There is no {found.bare} in the image."
    return ask(kind, question, answer, unseen=found.unseen, named=found.named)


def reasoning(view: View, rng: Generator, kind: str) -> Draft | None:
    """Something asked for by what it is for; `absent` where nothing in the scene would do."""
    there = set(view.categories)
    if kind == "absent":
        fitting = [name for name in CATEGORIES if name not in there and not there & set(templates.PURPOSES[name].also)]
    else:
        fitting = [
            name
            for name in view.categories
            if len(view.same(name)) == 1 and not there & set(templates.PURPOSES[name].also)
        ]
    if not fitting:
        return None
    category = pick(rng, fitting)
    purpose = templates.PURPOSES[category]
    words = pick(rng, purpose.asks)
    question = pick(rng, templates.REASONING).format(x=words)
    if kind == "absent":
        return ask(kind, question, f"There is {templates.negation(words)} here.")
    target = Target(view.same(category)[0])
    return ask(kind, question, (view.describe(target), (target,)), f", because {purpose.because}.")
