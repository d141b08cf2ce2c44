"""A GRIT-style instruction set from public annotations: what Ferret was trained on was never released.

After Ferret (arXiv:2310.07704, section 4): objects, relations, region descriptions and expressions in both directions
(region to text, text to region), grounded captions, and spatial negative mining of two kinds:

* image-conditioned: a name of the vocabulary that is not in this image is asked for;
* semantics-conditioned: what is in the image is asked for with one word exchanged for an analogous one (man and woman,
  blue and yellow, two and three), and the text of no annotation here contains it. Ferret had GPT-4 make these up; here
  they come from `ANALOGUES`.

Records have the form that Ferret's loader reads (`train.py` of apple/ml-ferret), with `words` beside it: the words each
location belongs to. What is written for an image depends on the seed and the image alone. Whether a region is given as
a point or as a box is drawn when a record is read (`grit.py`), as in Ferret.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import JOINTS
from mglmm_data.grit_facts import Facts
from mglmm_data.sample import Box
from mglmm_data.telling import near

Piece = str | tuple[str, list[Box]]
ANALOGUES: tuple[tuple[str, ...], ...] = (
    ("man", "woman", "boy", "girl"),
    ("men", "women", "boys", "girls"),
    ("cat", "dog", "horse", "cow", "sheep", "elephant", "bear", "zebra", "giraffe"),
    ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ("apple", "orange", "banana", "carrot", "pear"),
    ("fork", "knife", "spoon"),
    ("cup", "bowl", "bottle", "plate"),
    ("chair", "couch", "bed", "bench", "table"),
    ("shirt", "jacket", "dress", "sweater", "coat"),
    ("hat", "helmet", "scarf"),
    ("red", "blue", "green", "yellow", "black", "white", "brown", "orange", "pink", "purple", "gray"),
    ("left", "right"),
    ("small", "large"),
    ("young", "old"),
    ("wooden", "metal", "plastic"),
    ("one", "two", "three", "four", "five"),
    ("sitting", "standing", "walking", "running"),
)
"""Words of one row exclude each other of the same thing."""
ROWS = {word: [row for row in ANALOGUES if word in row] for words in ANALOGUES for word in words}
WHAT = (("What is", "the object", "?"), ("What do you see at", "the place", "?"), ("Name", "the object", "."))
DESCRIBE = (
    ("Describe", "the region", "."),
    ("Give a short description of", "the area", "."),
    ("What can be seen in", "the region", "?"),
)
LOCATE = ("Where is {x}?", "What is the location of {x} in the image?", "Locate {x}.", "Find {x} and give its box.")
LOCATE_SEVERAL = ("Where are {x}?", "Locate {x}.", "Find {x} and give their boxes.")
RELATED: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "person people human man men woman women boy girl child children kid baby guy lady player skier rider crowd",
        "vehicle car truck bus van train motorcycle bike bicycle taxi suv",
        "animal cat dog horse cow sheep elephant bear zebra giraffe bird",
        "food pizza sandwich cake fruit apple banana orange vegetable salad",
        "clothes clothing shirt jacket dress coat pants jeans shorts",
        "plane airplane aircraft jet",
        "bike bicycle motorbike motorcycle",
        "couch sofa",
        "tv television monitor screen",
        "phone cellphone telephone",
        "cup mug glass",
        "road street",
        "grass lawn field",
        "plant tree bush flower",
        "building house tower",
    )
)
"""A name is not asked for as absent where a word of its row is said: a set that speaks of a man has a person too."""
AMOUNTS: dict[str, int] = {
    "object": 2, "attribute": 1, "relation": 1, "region": 1, "region_location": 1, "expression": 2, "caption": 1,
    "category": 1, "negative_image": 1, "negative_semantic": 1,
}  # fmt: skip
"""Kind of record -> how many of it are made for an image, at most."""


class GritBuilder:
    """Instruction records from facts, and how many of each kind were made.

    Args:
        facts: called twice, once for the vocabulary; so it gives a fresh iterator each time.
        amounts: kind -> records an image, at most; kinds that are not named keep the number of `AMOUNTS`.
        min_count: names seen less often than this are not in the vocabulary of negatives.

    Raises:
        ValueError: a kind is unknown, or a number is below 0.
    """

    def __init__(
        self,
        facts: Callable[[], Iterable[Facts]],
        *,
        seed: int = 0,
        amounts: Mapping[str, int] | None = None,
        min_count: int = 1,
    ) -> None:
        for kind, amount in (amounts or {}).items():
            if kind not in AMOUNTS:
                raise ValueError(f"no kind of record {kind!r}{near(kind, AMOUNTS)}")
            if amount < 0:
                raise ValueError(f"the amount of {kind!r} is {amount}; give 0 or more")
        self.facts, self.seed, self.amounts = facts, seed, {**AMOUNTS, **(amounts or {})}
        counted: dict[str, Counter[str]] = {}
        for item in facts():
            counted.setdefault(item.dataset, Counter()).update(name for name, _, _ in item.objects)
        self.vocabulary = {
            dataset: sorted(name for name, count in names.items() if count >= min_count)
            for dataset, names in counted.items()
        }
        self.statistics: Counter[str] = Counter()
        """Records by data set and kind, and images, turns and locations, of what was made so far."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every record, in the order of the facts."""
        for facts in self.facts():
            self.statistics[f"{facts.dataset}: images"] += 1
            key = f"{self.seed}:{facts.dataset}:{facts.image}".encode()
            rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big"))
            for kind, amount in self.amounts.items():
                subjects = getattr(self, f"_{kind}")(facts, rng)
                order = rng.permutation(len(subjects))[:amount]
                for number, place in enumerate(order):
                    yield self._record(facts, kind, number, *subjects[place])

    def _record(self, facts: Facts, kind: str, number: int, asked: list[Piece], told: list[Piece]) -> dict[str, Any]:
        turns = [_turn("human", asked), _turn("gpt", told)]
        self.statistics[f"{facts.dataset}: {kind}"] += 1
        self.statistics["turns"] += 2
        self.statistics["locations"] += sum(len(boxes) for _, boxes, _ in turns)
        name = facts.image.rsplit(".", 1)[0].replace("/", "_")
        return {
            "id": f"{facts.dataset}_{name}_{kind}_{number}",
            "image": facts.image,
            "image_w": facts.size[1],
            "image_h": facts.size[0],
            "conversations": [turn for turn, _, _ in turns],
            "box_x1y1x2y2": [boxes for _, boxes, _ in turns],
            "words": [words for _, _, words in turns],
            "location_instruction": True,
            "dataset": f"{facts.dataset}_{kind}",
        }

    def _object(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [(_given(WHAT, rng, box), [f"It is {wording.counted(name, 1)}."]) for name, box, _ in facts.objects]

    def _attribute(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [
            (["What does ", (wording.definite(name), [box]), " look like?"],
             [f"{wording.definite(name).capitalize()} is {_listed(attributes)}."])
            for name, box, attributes in facts.objects if attributes
        ]  # fmt: skip

    def _relation(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [
            (["What is the relationship between ", ("the first object", [box]), " and ", ("the second", [there]), "?"],
             [(f"The {name}", [box]), f" {how} ", (f"the {other}", [there]), "."])
            for name, box, how, other, there in facts.relations
        ]  # fmt: skip

    def _region(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [(_given(DESCRIBE, rng, box), [f"{text}."]) for text, box in facts.regions]

    def _region_location(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [([_located(text, rng)], [(text, [box]), "."]) for text, box in facts.regions]

    def _expression(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        return [([_located(text, rng)], [(text, [box]), "."]) for text, box in facts.expressions]

    def _caption(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        out = []
        for text, spans in facts.captions:
            pieces: list[Piece] = []
            at = 0
            for start, end, boxes in spans:
                pieces += [text[at:start], (text[start:end], boxes)]
                at = end
            asked = "Describe the image in one sentence, with the location of what you name."
            out.append(([asked], [*pieces, text[at:]]))
        return out

    def _category(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        out = []
        for name in sorted(facts.exhaustive):
            boxes = [box for other, box, _ in facts.objects if other == name]
            words = wording.definite(wording.plural(name) if len(boxes) > 1 else name)
            out.append(([_located(words, rng)], [(words.capitalize(), boxes), "."]))
        return out

    def _negative_image(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        """Ask for a name that is not here: one the annotators did not find, else one of the whole vocabulary."""
        if facts.absent is None and not facts.exhaustive and not facts.objects:
            return []  # captions and expressions alone do not tell what is absent
        names = self.vocabulary[facts.dataset] if facts.absent is None else sorted(facts.absent)
        said = _said(facts)
        absent = [name for name in names if not _mentioned(name, said)]
        if len(absent) > 50:
            absent = [absent[i] for i in rng.permutation(len(absent))[:50]]
        return [([_located(wording.definite(name), rng)], [wording.not_there(name)]) for name in absent]

    def _negative_semantic(self, facts: Facts, rng: np.random.Generator) -> list[Any]:
        """Ask for what is here with one word exchanged; only where no text of the image has the new phrase's words."""
        said, out = _said(facts), []
        texts = [text for text, _ in facts.expressions]
        texts += [caption[start:end] for caption, spans in facts.captions for start, end, _ in spans]
        texts += [f"{attributes[0]} {name}" for name, _, attributes in facts.objects if attributes]
        texts += [name for name, _, _ in facts.objects]
        for text in dict.fromkeys(text.lower().rstrip(" .") for text in texts):
            words = text.split()
            for place in range(len(words)):
                others = [other for other in _analogues(words, place) if not any(other in told for told in said)]
                if others:
                    new = " ".join([*words[:place], str(rng.choice(others)), *words[place + 1 :]])
                    out.append(([_located(wording.definite(new), rng)], [wording.not_there(new)]))
        return out


def _analogues(words: list[str], place: int) -> list[str]:
    """What may stand for the word at `place`. An orange is a fruit by itself and a colour before what it describes.

    Elsewhere (`orange on the left`, `man in orange`) it may be either, and is not exchanged.
    """
    rows = ROWS.get(words[place], [])
    if len(rows) > 1:
        describes = any(word not in JOINTS for word in words[place + 1 : place + 2])
        rows = rows[1:] if describes else rows[:1] if len(words) == 1 else []
    return [other for row in rows for other in row if other != words[place]]


def _said(facts: Facts) -> list[set[str]]:
    """The words of each text and name of an image."""
    texts = [text for text, _ in (*facts.regions, *facts.expressions, *facts.captions)]
    texts += [" ".join([name, *attributes]) for name, _, attributes in facts.objects]
    texts += [f"{name} {how} {other}" for name, _, how, other, _ in facts.relations]
    texts += facts.crowded
    return [{word.strip(",.'\"") for word in text.lower().split()} for text in texts]


def _mentioned(name: str, said: list[set[str]]) -> bool:
    """Whether a text of the image has the name's last word or one that may mean the same, in singular or plural."""
    last = name.split()[-1]
    like = {last}.union(*(row for row in RELATED if last in row))
    like |= {wording.plural(word) for word in like} | ({last[:-1]} if last.endswith("s") else set())
    return any(not like.isdisjoint(words) for words in said)


def _given(wordings: tuple[tuple[str, str, str], ...], rng: np.random.Generator, box: Box) -> list[Piece]:
    front, words, end = wordings[int(rng.integers(len(wordings)))]
    return [f"{front} ", (words, [box]), end]


def _located(words: str, rng: np.random.Generator) -> str:
    return str(rng.choice(LOCATE_SEVERAL if wording.is_plural(words) else LOCATE)).format(x=words)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _turn(speaker: str, pieces: list[Piece]) -> tuple[dict[str, str], list[list[float]], list[str]]:
    """A turn of Ferret's form, its boxes, and the words of each."""
    text, boxes, words = "", [], []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        text += piece[0]
        for box in piece[1]:
            text += f" <bbox_location{len(boxes)}>"
            boxes.append([float(value) for value in box])
            words.append(piece[0])
    return {"from": speaker, "value": text}, boxes, words
