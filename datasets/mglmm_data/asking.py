"""Which questions are asked about an annotated image: drawn by task weights, and worded about given regions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mglmm_data.masks import Size
from mglmm_data.sample import Box, Conversation, Mention, Region, Turn
from mglmm_data.telling import near

PLACE = re.compile(r"\{(r\d?)\}")
ORDINAL = {"r": "this region", "r1": "the first region", "r2": "the second region"}


def check_weights(tasks: Mapping[str, float] | None, known: Sequence[str]) -> dict[str, float]:
    """Task -> weight as given, above 0; every known task alike for None.

    Raises:
        ValueError: a task is unknown, a weight is not a positive number, or there is no task.
    """
    chosen = dict.fromkeys(known, 1.0) if tasks is None else dict(tasks)
    for task, weight in chosen.items():
        if task not in known:
            raise ValueError(f"no task {task!r} in this source{near(task, known)}")
        if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(f"the weight of task {task!r} is {weight}; give a number above 0, or take the task out")
    if not chosen:
        raise ValueError(f"tasks is empty; choose of {', '.join(known)}")
    return {task: float(weight) for task, weight in chosen.items()}


def draw(
    subjects: Mapping[str, Sequence[Any]], weights: Mapping[str, float], turns: int | None, rng: np.random.Generator
) -> list[tuple[str, Any]]:
    """Up to `turns` tasks with a subject each, none twice; all of them in their order for None (evaluation)."""
    left = {task: list(subjects[task]) for task in weights if subjects.get(task)}
    if turns is None:
        return [(task, subject) for task in left for subject in left[task]]
    chosen: list[tuple[str, Any]] = []
    while left and len(chosen) < turns:
        shares = np.array([weights[task] for task in left])
        task = list(left)[int(rng.choice(len(left), p=shares / shares.sum()))]
        chosen.append((task, left[task].pop(int(rng.integers(len(left[task]))))))
        if not left[task]:
            del left[task]
    return chosen


def question(wordings: Sequence[str], rng: np.random.Generator, regions: Sequence[int] = (), **words: str) -> Turn:
    """One of the wordings as a user's turn; `{r}`, or `{r1}` and `{r2}`, speak of the given regions in their order."""
    template = str(wordings[int(rng.integers(len(wordings)))])
    text, mentions, at, told = "", [], 0, iter(regions)
    for place in PLACE.finditer(template):
        text += template[at : place.start()].format(**words)
        start, spoken = len(text), ORDINAL[place[1]]
        text += spoken if text else spoken[0].upper() + spoken[1:]
        mentions.append(Mention(start, len(text), next(told)))
        at = place.end()
    return Turn("user", text + template[at:].format(**words), mentions=tuple(mentions))


def told(asked: Turn, text: str, phrases: tuple[Any, ...] = (), *, task: str, kind: str = "") -> Conversation:
    """A question and its answer, whose phrases come out as boxes."""
    return Conversation((asked, Turn("assistant", text, phrases, grounding="box")), task=task, kind=kind)


def given(box: Box, size: Size, point_share: float, rng: np.random.Generator, label: str = "") -> Region:
    """A region as a user gives it: the point in the middle of its box with this probability, else the box.

    Ferret asks with points and boxes half and half (arXiv:2310.07704, section 4; `train.py` of apple/ml-ferret).
    """
    if rng.random() < point_share:
        return Region(size, point=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), label=label)
    return Region(size, box=box, label=label)
