"""The words of the procedural world: colours, categories with their parts, ground and sky regions, held-out pairs.

Names here are what a tokenizer is trained on and what checkpoints count by; their order is part of the format.
"""

from typing import NamedTuple

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (206, 42, 46),
    "orange": (240, 134, 30),
    "yellow": (246, 214, 58),
    "green": (62, 152, 68),
    "blue": (50, 106, 208),
    "purple": (134, 68, 172),
    "pink": (244, 146, 184),
    "brown": (124, 78, 46),
    "black": (38, 38, 44),
    "white": (244, 243, 238),
    "gray": (142, 146, 152),
}

# Category -> part names; the first is the main part, whose colour is the thing's colour.
PARTS: dict[str, tuple[str, ...]] = {
    "house": ("wall", "roof", "door", "window", "chimney"),
    "car": ("body", "roof", "window", "wheel", "light"),
    "truck": ("cargo", "cab", "window", "wheel", "light"),
    "tree": ("crown", "trunk"),
    "person": ("shirt", "pants", "face", "hair", "shoe"),
    "dog": ("body", "head", "ear", "tail", "leg"),
    "cat": ("body", "head", "ear", "tail"),
    "bird": ("body", "wing", "tail", "beak"),
    "flower": ("petal", "center", "stem", "leaf"),
    "ball": ("body", "stripe"),
    "chair": ("back", "seat", "leg"),
    "table": ("top", "leg"),
    "lamp": ("shade", "bulb", "pole", "base"),
    "boat": ("hull", "sail", "mast", "flag"),
    "kite": ("body", "stripe", "tail"),
    "balloon": ("envelope", "stripe", "rope", "basket"),
    "umbrella": ("canopy", "stripe", "pole"),
    "mushroom": ("cap", "spot", "stem"),
}
CATEGORIES: tuple[str, ...] = tuple(PARTS)
SIZE_WORDS = ("small", "large")
PART_NAMES: tuple[str, ...] = tuple(sorted({part for parts in PARTS.values() for part in parts}))
STUFF: tuple[str, ...] = (
    "sky",
    "mountain",
    "forest",
    "grass",
    "sand",
    "snow",
    "dirt",
    "field",
    "pavement",
    "road",
    "water",
)

_VIVID = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
_FUR = ("brown", "black", "white", "gray", "orange", "yellow")
# Category -> colours its main part may take.
MAIN_COLORS: dict[str, tuple[str, ...]] = {
    "house": ("red", "orange", "yellow", "green", "blue", "pink", "brown", "white", "gray"),
    "car": (*_VIVID, "black", "white", "gray"),
    "truck": (*_VIVID, "black", "white", "gray"),
    "tree": ("green", "orange", "red", "yellow", "pink", "purple", "white"),
    "person": (*_VIVID, "black", "white", "gray"),
    "dog": _FUR,
    "cat": _FUR,
    "bird": ("red", "orange", "yellow", "green", "blue", "pink", "brown", "black", "white"),
    "flower": ("red", "orange", "yellow", "blue", "purple", "pink", "white"),
    "ball": (*_VIVID, "black", "white"),
    "chair": (*_VIVID, "brown", "black", "white"),
    "table": ("red", "orange", "yellow", "green", "blue", "pink", "brown", "black", "white"),
    "lamp": (*_VIVID, "black", "white", "gray"),
    "boat": (*_VIVID, "brown", "black", "white"),
    "kite": _VIVID,
    "balloon": (*_VIVID, "white"),
    "umbrella": (*_VIVID, "black", "white"),
    "mushroom": ("red", "orange", "yellow", "purple", "pink", "brown", "white"),
}

# (category, part) -> colours it may take; parts not named here take one of BRIGHT.
PART_COLORS: dict[tuple[str, str], tuple[str, ...]] = {
    ("house", "roof"): ("red", "brown", "black", "blue", "purple", "gray", "orange"),
    ("house", "door"): ("brown", "black", "blue", "green", "red", "white"),
    ("house", "window"): ("yellow", "blue", "white", "black"),
    ("house", "chimney"): ("brown", "gray", "red"),
    ("car", "roof"): ("white", "black", "gray", "red", "yellow", "blue"),
    ("car", "window"): ("blue", "black", "white", "gray"),
    ("car", "wheel"): ("black",),
    ("car", "light"): ("yellow", "white", "orange"),
    ("truck", "cab"): ("red", "white", "blue", "yellow", "green", "orange"),
    ("truck", "window"): ("blue", "black", "white", "gray"),
    ("truck", "wheel"): ("black",),
    ("truck", "light"): ("yellow", "white", "orange"),
    ("tree", "trunk"): ("brown", "black", "gray"),
    ("person", "pants"): ("blue", "black", "brown", "gray", "white", "green", "purple"),
    ("person", "face"): ("pink", "brown"),
    ("person", "hair"): ("black", "brown", "yellow", "orange", "gray"),
    ("person", "shoe"): ("black", "brown", "red", "white"),
    ("dog", "head"): MAIN_COLORS["dog"],
    ("dog", "ear"): ("brown", "black", "white", "gray"),
    ("dog", "tail"): ("brown", "black", "white", "gray", "orange"),
    ("dog", "leg"): MAIN_COLORS["dog"],
    ("cat", "head"): MAIN_COLORS["cat"],
    ("cat", "ear"): ("brown", "black", "pink", "gray", "white"),
    ("cat", "tail"): MAIN_COLORS["cat"],
    ("bird", "beak"): ("orange", "yellow", "black"),
    ("flower", "center"): ("yellow", "brown", "orange", "white"),
    ("flower", "stem"): ("green",),
    ("flower", "leaf"): ("green",),
    ("chair", "leg"): ("brown", "black", "white", "gray"),
    ("table", "leg"): ("brown", "black", "white", "gray"),
    ("lamp", "bulb"): ("yellow", "white", "orange"),
    ("lamp", "pole"): ("black", "gray", "brown", "white"),
    ("lamp", "base"): ("black", "gray", "brown", "white"),
    ("boat", "sail"): ("white", "yellow", "red", "orange", "pink", "blue"),
    ("boat", "mast"): ("brown", "black", "white"),
    ("balloon", "rope"): ("black", "brown"),
    ("balloon", "basket"): ("brown", "black", "yellow"),
    ("umbrella", "pole"): ("brown", "black", "gray", "white"),
    ("mushroom", "stem"): ("white", "brown", "yellow", "gray"),
    ("mushroom", "spot"): ("white", "yellow", "black", "orange"),
}
BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "white")

# Pairs (category, colour of the main part) that training never sees: 13 of 153.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("house", "pink"),
        ("car", "orange"),
        ("truck", "purple"),
        ("tree", "red"),
        ("person", "yellow"),
        ("cat", "orange"),
        ("bird", "blue"),
        ("flower", "white"),
        ("ball", "green"),
        ("chair", "blue"),
        ("lamp", "red"),
        ("boat", "green"),
        ("umbrella", "pink"),
    }
)


def held_out(category: str, color: str) -> bool:
    """Whether things of this category and main colour are kept out of training scenes.

    Raises:
        ValueError: the category or the colour is not of this world.
    """
    if category not in PARTS or color not in COLORS:
        raise ValueError(f"{color} {category} is not of the world; use a name of COLORS and one of CATEGORIES")
    return (category, color) in HELD_OUT


class Described(NamedTuple):
    """What the label of a region says; "" where it says nothing."""

    noun: str
    color: str
    size: str = ""
    part: str = ""


def described(label: str) -> Described:
    """A label taken apart: "[size] color category", "color stuff" or "color part of the [size] color category".

    Colour and size are those of what the label is of: of a part, not of its owner.

    Raises:
        ValueError: the label is not of the world.
    """
    head, _, owner = label.partition(" of the ")
    words = head.split()
    noun = (owner or head).split()[-1:]
    size = words.pop(0) if words and not owner and words[0] in SIZE_WORDS else ""
    if len(words) != 2 or words[0] not in COLORS or (owner and words[1] not in PART_NAMES):
        noun = []
    if not noun or noun[0] not in (*CATEGORIES, *STUFF):
        raise ValueError(f"region label {label!r} is not of the world, as 'large red car' or 'red roof of the car' is")
    return Described(noun[0], words[0], size, words[1] if owner else "")
