"""How the world's samples are worded: questions, articles and plurals, what things are for, and the held-out relations.

`{x}` stands for an expression ("the red dog"), `{r}` for the words that point at a given region. Questions for what is
there and for what is not there are drawn from the same lists: a wording used only for absent things gives them away
(feasibility.md, pitfall 1).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

HELD_OUT_PERCENT = 8

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
PLURALS = {"person": "people"}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below",),
}
"""Relation between the centres of two things -> its wordings."""

FIND_ONE = (
    "Segment {x}.",
    "Where is {x}?",
    "Find {x}.",
    "Please find {x} in this image.",
    "Show me {x}.",
    "Can you segment {x}?",
    "Mark {x} in the picture.",
    "Which pixels belong to {x}?",
    "Please highlight {x}.",
    "Point out {x}.",
)
FIND_SEVERAL = (
    "Segment {x}.",
    "Where are {x}?",
    "Find {x}.",
    "Please find {x} in this image.",
    "Show me {x}.",
    "Can you segment {x}?",
    "Mark {x} in the picture.",
    "Please highlight {x}.",
)
FIND_BOX = (
    "Give the box of {x}.",
    "Where is {x}? Answer with a box.",
    "Draw a box around {x}.",
    "What is the bounding box of {x}?",
    "Locate {x} with a box.",
    "Find {x} and give its box.",
)
PANOPTIC = (
    "Describe and segment everything.",
    "Describe the image and segment everything you mention.",
    "Segment everything in this image.",
    "What is in this image? Segment all of it.",
    "List everything you see with masks.",
    "Name and segment all regions of the picture.",
    "Please give a caption with a mask for every phrase.",
    "Write a description of the scene and ground each phrase.",
)
FINE = (
    "Segment the parts of {x}.",
    "Describe {x} part by part with masks.",
    "What parts does {x} have? Segment them.",
    "Name and segment every part of {x}.",
    "List the parts of {x} with masks.",
    "Please segment {x} into its parts.",
    "Show me each part of {x}.",
    "Which parts of {x} can you see? Mark them.",
)
CAPTION = (
    "Describe this image in one sentence.",
    "What does the picture show?",
    "Give a short caption.",
    "Write one sentence about this image.",
    "Please caption this picture.",
    "What is this a picture of?",
)
REASONING = (
    "Segment {x}.",
    "Is there {x}? Show me.",
    "I am looking for {x}. Where is it?",
    "Can you find {x}?",
    "Find {x} and say why.",
    "Please mark {x} in this image.",
)
COUNT = ("How many {x} are there?", "How many {x} do you see?", "Count the {x}.", "What is the number of {x}?")
COLOR = ("What color is {x}?", "Which color does {x} have?", "Name the color of {x}.")
WHERE = {
    "x": (
        "Is {x} on the left, in the middle or on the right?",
        "Which third of the image is {x} in: left, middle or right?",
    ),
    "y": (
        "Is {x} at the top, in the middle or at the bottom?",
        "Which third of the image is {x} in: top, middle or bottom?",
    ),
}
EXISTS = ("Is there {x} in the image?", "Is there {x}?", "Do you see {x}?", "Can you see {x} here?")

REGION_WORDS = ("this region", "the region", "the marked region")
NAME_THING = (
    "What is {r}?",
    "Name {r}.",
    "Describe {r} in a few words.",
    "What do you see in {r}?",
    "Tell me what {r} shows.",
)
NAME_THING_MASK = (
    "What is {r}? Segment it.",
    "Name {r} and segment it.",
    "Describe {r} with a mask.",
    "What do you see in {r}? Mark it.",
    "Tell me what {r} shows and segment it.",
)
NAME_PART = (
    "What part is {r}?",
    "Name the part in {r}.",
    "Which part does {r} show?",
    "What part do you see in {r}?",
    "Tell me which part {r} is.",
)
NAME_PART_MASK = (
    "What part is {r}? Segment it.",
    "Name the part in {r} and segment it.",
    "Which part does {r} show? Mark it.",
    "What part do you see in {r}? Segment it.",
    "Tell me which part {r} is and segment it.",
)

LATER_COLOR = ("What color is it?", "And its color?", "Which color does it have?")
LATER_GROUND = ("What is it on?", "And what does it stand on?", "What is the ground below it?")
LATER_PART = ("Segment its {x}.", "Where is its {x}?", "Show me its {x}.", "And its {x}?")
LATER_NEIGHBOR = ("Is there {x} {relation} it?", "Do you see {x} {relation} it?")
LATER_EXTREME = ("Which one is the {x}?", "Segment the {x} one.", "Show me the {x} one.")


@dataclass(frozen=True)
class Purpose:
    """What a category is for: questions ("something to sail in"), the reason given, and who else could serve."""

    asks: tuple[str, ...]
    because: str
    also: tuple[str, ...] = ()


PURPOSES: dict[str, Purpose] = {
    "house": Purpose(("somewhere to live", "somewhere a family could sleep"), "people can live in a house"),
    "car": Purpose(
        ("something to drive to the beach in", "something to keep in a garage"), "a car can be driven", ("truck",)
    ),
    "truck": Purpose(
        ("something to move heavy cargo with", "something that could carry bricks"),
        "a truck can carry heavy loads",
        ("car", "boat"),
    ),
    "tree": Purpose(
        ("something that gives shade", "something with branches to climb"), "a tree has many branches", ("umbrella",)
    ),
    "person": Purpose(("someone who could walk the dog", "someone to talk to"), "a person can walk and talk"),
    "dog": Purpose(("something that barks", "something to take out on a leash"), "a dog barks and likes walks"),
    "cat": Purpose(("something that purrs", "something that chases mice"), "a cat purrs and hunts mice"),
    "bird": Purpose(("something that sings in the morning", "something that lays eggs"), "a bird sings and lays eggs"),
    "flower": Purpose(
        ("something that smells sweet", "something a bee would visit"), "a flower has a sweet smell", ("tree",)
    ),
    "ball": Purpose(("something to kick", "something to play catch with"), "a ball can be kicked and thrown"),
    "chair": Purpose(("something to sit on", "something with a seat"), "a chair is made to sit on"),
    "table": Purpose(("something to put plates on", "somewhere to have dinner"), "a table holds plates and food"),
    "lamp": Purpose(
        ("something that gives light", "something to read by at night"), "a lamp gives light", ("car", "truck")
    ),
    "boat": Purpose(("something to sail in", "something to cross the water in"), "a boat can sail on water"),
    "kite": Purpose(
        ("something to fly on a string", "something to play with in the wind"), "a kite flies in the wind", ("balloon",)
    ),
    "balloon": Purpose(
        ("something to travel through the air in", "something lifted by hot air"), "a balloon is lifted by hot air"
    ),
    "umbrella": Purpose(
        ("something to keep you dry in the rain", "something to hold over your head"),
        "an umbrella keeps off the rain",
        ("house", "tree"),
    ),
    "mushroom": Purpose(
        ("something to gather for a soup", "something to pick in the woods"), "a mushroom can be eaten", ("flower",)
    ),
}


def held_out_relation(category: str, color: str, relation: str) -> bool:
    """Whether training never asks for a relation (left, right, above, below, on) with such a thing; about 8 %."""
    return zlib.crc32(f"{color} {category} {relation}".encode()) % 100 < HELD_OUT_PERCENT


def article(words: str) -> str:
    """ "red dog" to "a red dog", "orange ball" to "an orange ball"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(noun: str) -> str:
    """ "red dog" to "red dogs", "person" to "people"; the last word is the noun."""
    head, _, last = noun.rpartition(" ")
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    else:
        last += "s"
    return f"{head} {last}".strip()


def join(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def negation(ask: str) -> str:
    """ "something to sail in" to "nothing to sail in"."""
    for word, none in (("something", "nothing"), ("someone", "no one"), ("somewhere", "nowhere")):
        if ask.startswith(word):
            return none + ask.removeprefix(word)
    raise ValueError(f"{ask!r} must begin with something, someone or somewhere")
