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

import numpy as np
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked

from mglmm_data import wording
from mglmm_data.sample import Conversation, Region, Turn, compose

TASKS = ("fine", "panoptic", "referring", "absent", "caption")
Kind = Literal["instances", "parts"]
SEVERAL_SHARE = 0.35
"""How often an absent target is asked for in the plural; among present ones of COCO it is about as often."""
DEFAULT_TASKS: dict[Kind, dict[str, float]] = {
    "parts": {"fine": 2.0, "referring": 1.0, "absent": 1.0},
    "instances": {"panoptic": 2.0, "referring": 1.0, "absent": 1.0, "caption": 1.0},
}


@dataclass(frozen=True)
class Named:
    """A name and its regions in an image, in reading order; not `complete` where not each one is marked on its own."""

    name: str
    regions: tuple[int, ...]
    complete: bool = True


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
    close = difflib.get_close_matches(str(given), known, n=1)
    return (f", did you mean {close[0]!r}?" if close else ";") + f" known: {', '.join(known)}"


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
    listing = "fine" if kind == "parts" else "panoptic"
    known = [task for task in TASKS if task not in ("fine", "panoptic") or task == listing]
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

    def subjects(self, named: Sequence[Named], captions: Sequence[str]) -> dict[str, list[Any]]:
        """What each wanted task could be about in an image; tasks about which nothing can be asked are left out."""
        here = {item.name for item in named}
        every: dict[str, list[Any]] = {
            "fine": [[item for item in named if item.regions]] if any(item.regions for item in named) else [],
            "referring": [item for item in named if item.complete and item.regions],
            "absent": [name for name in self.names if name not in here],
            "caption": list(captions),
        }
        every["panoptic"] = every["fine"]
        return {task: every[task] for task in self.tasks if every[task]}

    def tell(
        self, named: Sequence[Named], captions: Sequence[str], rng: np.random.Generator
    ) -> tuple[Conversation, ...]:
        """Up to `turns` different conversations; fewer where an image has not more to ask about, none where nothing."""
        left = {task: list(subjects) for task, subjects in self.subjects(named, captions).items()}
        conversations: list[Conversation] = []
        while left and len(conversations) < self.turns:
            weights = np.array([self.tasks[task] for task in left])
            task = list(left)[int(rng.choice(len(left), p=weights / weights.sum()))]
            subject = left[task].pop(int(rng.integers(len(left[task]))))
            if not left[task]:
                del left[task]
            conversations.append(self._write(task, subject, rng))
        return tuple(conversations)

    def _write(self, task: str, subject: Any, rng: np.random.Generator) -> Conversation:
        kind, asked, name, several = "", task, self.object_name, False
        if task in ("fine", "panoptic"):
            text, phrases = wording.listing([(self._listed(item), item.regions) for item in subject])
        elif task == "referring":
            several = len(subject.regions) > 1
            name = wording.plural(subject.name) if several else subject.name
            text, phrases = compose((wording.definite(name), subject.regions), ".")
        elif task == "absent":
            several = self.kind == "instances" and bool(rng.random() < SEVERAL_SHARE)
            name = wording.plural(subject) if several else subject
            text, phrases = wording.not_there(name), ()
        else:
            text, phrases = subject, ()
        about = wording.definite(name)
        if task in ("referring", "absent"):
            kind = "several" if several else "unique"
            asked = "several" if several or wording.is_plural(name) else "one"
            if self.kind == "parts":
                about += f" of the {self.object_name}"
            elif several and about.startswith("the "):
                about = f"all {about}"
        wordings = wording.QUESTIONS[asked]
        question = wordings[int(rng.integers(len(wordings)))].format(x=about)
        return Conversation((Turn("user", question), Turn("assistant", text, phrases)), task=task, kind=kind)

    def _listed(self, item: Named) -> str:
        if self.kind == "parts":
            return wording.definite(item.name)
        return wording.counted(item.name, len(item.regions) if item.complete else None)
