"""Words for annotated photographs: what is asked, and the small grammar the answers need.

Questions never say whether their target is there: referring and absent share one list. Answers have one form each, the
world's, so that a model goes from one to the other, and a score of free-running text measures what is said and not how.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mglmm_data.sample import Grounding, compose
from mglmm_data.world import templates

Piece = str | tuple[str, tuple[int, ...]]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "fine": templates.FINE,
    "panoptic": (
        "What is in the image? Segment everything you name.",
        "List the objects in the image, each with its mask.",
        "Name and segment the objects in the picture.",
        "Which objects do you see? Show every one of them.",
        "Segment all objects in the image.",
        "Tell me what is here, with a mask for each object.",
        "Go through the picture and outline every object.",
    ),
    "one": templates.FIND_ONE,
    "several": templates.FIND_SEVERAL,
    "caption": templates.CAPTION,
    "any": tuple(words for words in templates.FIND_ONE if words in templates.FIND_SEVERAL),
    "box": templates.FIND_BOX,
    "grounded": (
        "Describe the image and segment everything you mention.",
        "Please describe this picture in detail, with a mask for every phrase.",
        "Write a description of the scene and ground each phrase.",
        "What is going on here? Show what you speak of.",
        "Tell me about this image and mark each thing you name.",
        "Give a caption, and segment the things in it.",
    ),
    "grounded_box": (
        "Describe the image, with a box for everything you mention.",
        "Write a description of the scene and give each thing's box.",
        "Tell me about this image and draw a box around each thing you name.",
    ),
    "subtree": (
        "Describe {x} in the image in detail, with a mask for every part.",
        "What does {x} look like? Segment everything you mention.",
        "Tell me more about {x} and mark what you name.",
        "Look closely at {x}: what is there? Segment it all.",
    ),
    "region": (
        "Describe {r} in detail.",
        "What can you tell me about {r}?",
        "What do you see in {r}?",
        "Tell me about {r} and what is around it.",
        "Please give a description of {r}.",
    ),
    "prompted": (
        "Segment {r}.",
        "Give the exact mask of {r}.",
        "Outline {r} precisely.",
        "Which pixels belong to {r}?",
    ),
}
"""What is asked -> wordings, `{x}` for what it is about; shared with the world wherever the same is asked."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DETERMINERS = frozenset(
    (
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "my",
        "our",
        "your",
        "his",
        "her",
        "its",
        "their",
        "all",
        "both",
    )
)
IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "knife": "knives",
    "leaf": "leaves", "shelf": "shelves", "foot": "feet", "tooth": "teeth", "sheep": "sheep", "fish": "fish",
    "broccoli": "broccoli",
}  # fmt: skip


def bare(names: Sequence[str]) -> list[str]:
    """Category names as words, without what dictionaries add: `mouse_(computer_equipment)`, `shirt, blouse`.

    An addition stays where two names would become one without it (`bow_(weapon)`, `bow_(decorative_ribbons)`).
    """
    short = [readable(re.sub(r"_?\([^)]*\)", "", name).split(",")[0]) or readable(name) for name in names]
    return [one if short.count(one) == 1 else readable(name) for one, name in zip(short, names, strict=True)]


def part_of(part: str, owner: str) -> str:
    """`seat`, `bench` become `seat of the bench`."""
    return f"{part} of {definite(owner)}"


def _head(name: str) -> tuple[str, str]:
    """A part's own name and the rest: `seat`, ` of the bench`."""
    head, of, rest = name.partition(" of the ")
    return head, of + rest


def readable(name: str) -> str:
    """A category or file name as words: `back_left_door` becomes `back left door`."""
    return " ".join(name.replace("_", " ").split())


def is_plural(name: str) -> bool:
    """Whether a name already speaks of several (`wheels`, `skis`, `scissors`; not `glass`, `bus`)."""
    last = _head(name)[0].split()[-1]
    return (
        last in IRREGULAR.values() and last not in IRREGULAR or last.endswith("s") and not last.endswith(("ss", "us"))
    )


def plural(name: str) -> str:
    """The plural of a noun phrase by its last word: `wine glass` becomes `wine glasses`."""
    head, rest = _head(name)
    *front, last = head.split()
    if is_plural(name):
        return name
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*front, last]) + rest


def definite(name: str) -> str:
    """`dog` becomes `the dog`; a name that brings its own article keeps it."""
    return name if name.split()[0].lower() in DETERMINERS else f"the {name}"


def counted(name: str, count: int | None) -> str:
    """`a dog`, `two dogs`; `several dogs` where the count is not known (None). A name with its own article stays."""
    if name.split()[0].lower() in DETERMINERS:
        return name
    if count is None:
        return f"several {plural(name)}"
    if count == 1:
        return name if is_plural(name) else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural(name)}"


def not_there(name: str) -> str:
    """The answer where nothing can be segmented: `There is no trunk in the image.`"""
    first, _, rest = name.partition(" ")
    bare = rest if first.lower() in DETERMINERS and rest else name
    return f"There {'are' if is_plural(bare) else 'is'} no {bare} in the image."


def listing(phrases: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[str, tuple[Grounding, ...]]:
    """Grounded phrases as one list, `the hood, the front bumper, the trunk.`, and its spans; as the world lists."""
    pieces: list[Piece] = []
    for phrase in phrases:
        pieces += [", ", phrase] if pieces else [phrase]
    return compose(*pieces, ".")
