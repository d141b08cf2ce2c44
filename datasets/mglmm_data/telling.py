"""From named regions of a photograph to conversations about it: what the COCO and folder sources share.

A conversation is one question and its answer; `turns` is how many are drawn for a picture, none of them twice. What is
drawn depends on the generator alone, so a sample is the same for the same (seed, index, epoch).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked

from mglmm_data import wording
from mglmm_data.sample import Conversation, Mention, Region, Turn, compose
from mglmm_data.world import templates

TASKS = ("fine", "panoptic", "referring", "absent", "caption", "region", "box")
Kind = Literal["instances", "parts", "classes", "objects"]
"""What an annotation is: an object; a part of the one object shown; all there is of a class (a label map); an object or
a part of one (`seat of the bench`)."""
SERVED: dict[Kind, tuple[str, ...]] = {
    "parts": ("fine", "referring", "absent", "caption", "region", "box"),
    "instances": ("panoptic", "referring", "absent", "caption", "region", "box"),
    "classes": ("panoptic", "referring", "absent", "caption", "region"),
    "objects": TASKS,
}
"""The tasks that annotations of a kind can serve; what is said of a class as a whole has no sensible box."""
SEVERAL_SHARE = 0.35
"""How often an absent target is asked for in the plural; among present ones of COCO it is about as often."""
DEFAULT_TASKS: dict[Kind, dict[str, float]] = {
    "parts": {"fine": 2.0, "referring": 1.0, "absent": 1.0},
    "instances": {"panoptic": 2.0, "referring": 1.0, "absent": 1.0, "caption": 1.0},
    "classes": {"panoptic": 2.0, "referring": 2.0, "absent": 1.0, "region": 1.0},
    "objects": {"panoptic": 1.0, "fine": 1.0, "referring": 2.0, "absent": 1.0, "region": 1.0, "box": 1.0},
}


@dataclass(frozen=True)
class Named:
    """A name and its regions in an image, in reading order; not `complete` where not each one is marked on its own.

    `of` is the object whose part this is (`seat of the bench`: `bench`); `details` are words about each region; `stuff`
    is not counted (`the sky`).
    """

    name: str
    regions: tuple[int, ...]
    complete: bool = True
    of: str = ""
    details: tuple[str, ...] = ()
    stuff: bool = False


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Split:
    """A fixed part of a set of files: `part` is `train`, `validation` or `all`.

    Files are ordered by a hash of seed and name, and the first `validation_share` (0..1) of them are for validation; so
    the split does not depend on the order in the json, nor on any library's random numbers.
    """

    validation_share: float = 0.2
    seed: int = 0
    part: str = "all"

    def __post_init__(self) -> None:
        if self.part not in ("train", "validation", "all"):
            raise ValueError(f"split.part is {self.part!r}{near(self.part, ('train', 'validation', 'all'))}")
        if not 0 <= self.validation_share <= 1:
            raise ValueError(
                f"split.validation_share is {self.validation_share}; give a share between 0 and 1, e.g. 0.2"
            )

    def __call__(self, names: Iterable[str]) -> set[str]:
        """The names that belong to this part."""
        ordered = sorted(set(names), key=lambda name: hashlib.sha256(f"{self.seed}:{name}".encode()).digest())
        count = round(self.validation_share * len(ordered))
        return set({"train": ordered[count:], "validation": ordered[:count], "all": ordered}[self.part])


def near(given: object, known: Iterable[str]) -> str:
    """The end of an error about a name: the near miss, if there is one, and what is known."""
    known = sorted(known)
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(str(given).casefold(), folded, n=1)
    return (f", did you mean {folded[close[0]]!r}?" if close else ";") + f" known: {', '.join(known)}"


def make_split(split: Split | Mapping[str, Any] | None) -> Split:
    """A `Split` from a mapping out of a config; None is everything."""
    if isinstance(split, Split):
        return split
    keys = tuple(Split.__dataclass_fields__)
    for key in split or ():
        if key not in keys:
            raise ValueError(f"unknown key {key!r} in split{near(key, keys)}")
    try:
        return Split(**(split or {}))
    except ValidationError as error:
        found = error.errors()[0]
        if found["type"] == "value_error":
            raise ValueError(found["msg"].removeprefix("Value error, ")) from None
        raise ValueError(f"split.{found['loc'][0]} is {found['input']!r}: {found['msg']}") from None


def check_tasks(tasks: Mapping[str, float] | None, kind: Kind, has_captions: bool, turns: int) -> dict[str, float]:
    """The task weights to use: those given, or the default of this kind of annotation."""
    if turns < 1:
        raise ValueError(f"turns is {turns}; at least 1 question is asked about an image")
    chosen = dict(DEFAULT_TASKS[kind] if tasks is None else tasks)
    if tasks is None and not has_captions:
        chosen.pop("caption", None)
    known = SERVED[kind]
    for task, weight in chosen.items():
        if task not in known:
            raise ValueError(f"no task {task!r} for annotations of kind {kind!r}{near(task, known)}")
        if weight < 0:
            raise ValueError(f"the weight of task {task!r} is {weight}; give 0 or more")
    if chosen.get("caption") and not has_captions:
        raise ValueError("task 'caption' needs captions; give the path of a captions json, or take the task out")
    chosen = {task: float(weight) for task, weight in chosen.items() if weight > 0}
    if not chosen:
        raise ValueError("no task has a weight above 0; give at least one, e.g. tasks: {referring: 1}")
    return chosen


def reading_order(regions: Sequence[Region]) -> list[int]:
    """Indices of regions from left to right by the centre of their boxes, ties from top to bottom; empty ones last."""

    def place(index: int) -> tuple[float, float]:
        bounds = regions[index].bounds
        return ((bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2) if bounds else (np.inf, np.inf)

    return sorted(range(len(regions)), key=place)


def pointed(region: Region, kind: str, rng: np.random.Generator) -> Region:
    """How a user points at a region: its box, or a point well inside it (at least half as deep as the deepest)."""
    bounds = region.bounds
    if bounds is None:
        raise ValueError(f"region {region.label!r} is empty; nothing can point at it")
    if kind == "box":
        return Region(size=region.size, box=bounds, label=region.label)
    left, top, right, bottom = (round(side) for side in bounds)
    inside = np.pad(region.mask[top:bottom, left:right], 1).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    choice = int(rng.integers(len(rows)))
    point = (left + float(columns[choice]) + 0.5, top + float(rows[choice]) + 0.5)
    return Region(size=region.size, point=point, label=region.label)


class Teller:
    """Draws conversations about one kind of annotation.

    Args:
        names: every name the set knows, in its order; absent targets come from here.
        object_name: what parts belong to ("car"); unused for instances.
    """

    def __init__(
        self, *, kind: Kind, names: Sequence[str], tasks: Mapping[str, float], turns: int, object_name: str
    ) -> None:
        self.kind, self.names, self.tasks, self.turns = kind, tuple(names), dict(tasks), turns
        self.object_name = object_name

    def subjects(
        self,
        named: Sequence[Named],
        captions: Sequence[str],
        *,
        with_regions: bool = False,
        absent: Sequence[str] | None = None,
    ) -> dict[str, list[Any]]:
        """What each wanted task could be about in an image; tasks about which nothing can be asked are left out.

        Args:
            with_regions: regions may be asked about (`region`, `box`).
            absent: names that are known not to be there; by default all that are not named.
        """
        here = {item.name for item in named}
        told = [item for item in named if item.regions]
        clear = [item for item in told if item.complete]
        every: dict[str, list[Any]] = {
            "fine": self._groups(told),
            "panoptic": [[item for item in told if not item.of]] if any(not item.of for item in told) else [],
            "referring": clear,
            "absent": [name for name in (self.names if absent is None else absent) if name not in here],
            "caption": list(captions),
            "region": [(item, place) for item in clear for place in range(len(item.regions))] if with_regions else [],
            "box": [item for item in clear if len(item.regions) == 1 and not item.stuff] if with_regions else [],
        }
        return {task: every[task] for task in self.tasks if every[task]}

    def _groups(self, told: Sequence[Named]) -> list[list[Named]]:
        """The parts that are listed together: all of them, or those of each object."""
        if self.kind != "objects":
            return [list(told)] if told else []
        owners = dict.fromkeys(item.of for item in told if item.of)
        return [[item for item in told if item.of == owner] for owner in owners]

    def asks(self, named: Sequence[Named], *, num_captions: int, num_absent: int) -> bool:
        """Whether there is anything to ask about an image, without drawing it."""
        told = [item for item in named if item.regions]
        clear = any(item.complete for item in told)
        answers = {
            "fine": bool(self._groups(told)),
            "panoptic": any(not item.of for item in told),
            "referring": clear,
            "absent": num_absent > 0,
            "caption": num_captions > 0,
            "region": clear,
            "box": any(item.complete and len(item.regions) == 1 and not item.stuff for item in told),
        }
        return any(answers[task] for task in self.tasks)

    def tell(
        self,
        named: Sequence[Named],
        captions: Sequence[str],
        rng: np.random.Generator,
        *,
        regions: list[Region] | None = None,
        absent: Sequence[str] | None = None,
    ) -> tuple[Conversation, ...]:
        """Up to `turns` different conversations; fewer where an image has not more to ask about, none where nothing.

        Args:
            regions: of the sample; those a user points with are appended. None: no such questions.
            absent: as in `subjects`.
        """
        choices = self.subjects(named, captions, with_regions=regions is not None, absent=absent)
        left = {task: list(subjects) for task, subjects in choices.items()}
        conversations: list[Conversation] = []
        while left and len(conversations) < self.turns:
            weights = np.array([self.tasks[task] for task in left])
            task = list(left)[int(rng.choice(len(left), p=weights / weights.sum()))]
            subject = left[task].pop(int(rng.integers(len(left[task]))))
            if not left[task]:
                del left[task]
            if task == "region":
                item, place = subject
                conversations.append(self._name_region(item, place, regions if regions is not None else [], rng))
            else:
                conversations.append(self._write(task, subject, rng))
        return tuple(conversations)

    def _name_region(self, item: Named, place: int, regions: list[Region], rng: np.random.Generator) -> Conversation:
        """The user points at a region, with a mask, a box or a point; the answer names it."""
        target = item.regions[place]
        kind = ("mask", "box", "point")[int(rng.integers(3))]
        if kind != "mask":
            regions.append(pointed(regions[target], kind, rng))
        words = templates.REGION_WORDS[int(rng.integers(len(templates.REGION_WORDS)))]
        asked = templates.NAME_PART if item.of or self.kind == "parts" else templates.NAME_THING
        question = asked[int(rng.integers(len(asked)))]
        start = question.index("{r}")
        given = target if kind == "mask" else len(regions) - 1
        mention = Mention(start, start + len(words), given)
        if self.kind == "parts" or item.of:
            name = wording.definite(item.name)
        else:
            name = item.name if self.kind == "classes" or item.stuff else wording.counted(item.name, 1)
        detail = item.details[place] if item.details else ""
        answer = f"{name}, {detail}." if detail else f"{name}."
        user = Turn("user", question.format(r=words), mentions=(mention,))
        return Conversation((user, Turn("assistant", answer)), task="region", kind=kind)

    def _write(self, task: str, subject: Any, rng: np.random.Generator) -> Conversation:
        kind, asked, name, several = "", task, self.object_name, False
        if task in ("fine", "panoptic"):
            name = subject[0].of or name
            text, phrases = wording.listing([(self._listed(item), item.regions) for item in subject])
        elif task in ("referring", "box"):
            several = len(subject.regions) > 1
            name = wording.plural(subject.name) if several else subject.name
            text, phrases = compose((wording.definite(name), subject.regions), ".")
        elif task == "absent":
            several = self.kind in ("instances", "objects") and bool(rng.random() < SEVERAL_SHARE)
            name = wording.plural(subject) if several else subject
            text, phrases = wording.not_there(name), ()
        else:
            text, phrases = subject, ()
        about = wording.definite(name)
        if task in ("referring", "absent", "box"):
            kind = "several" if several else "unique"
            asked = "box" if task == "box" else "several" if several or wording.is_plural(name) else "one"
            if self.kind == "parts":
                about += f" of the {self.object_name}"
            elif several and about.startswith("the "):
                about = f"all {about}"
        wordings = wording.QUESTIONS[asked]
        question = wordings[int(rng.integers(len(wordings)))].format(x=about)
        answer = Turn("assistant", text, phrases, grounding="box" if task == "box" else "mask")
        return Conversation((Turn("user", question), answer), task=task, kind=kind)

    def _listed(self, item: Named) -> str:
        if item.of:
            part = item.name.removesuffix(wording.part_of("", item.of))
            return wording.definite(wording.plural(part) if len(item.regions) > 1 else part)
        if self.kind in ("parts", "classes") or item.stuff:
            return wording.definite(item.name)
        return wording.counted(item.name, len(item.regions) if item.complete else None)
