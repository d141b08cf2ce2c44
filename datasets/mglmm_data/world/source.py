"""The world as a source of samples: index -> scene -> conversations, deterministic by (seed, index)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from mglmm_data.sample import Conversation, Region, Sample
from mglmm_data.world import templates
from mglmm_data.world.scene import Scene, make_scene
from mglmm_data.world.tasks import KINDS, SEVERAL_SHARE, TASKS, write
from mglmm_data.world.view import Target, View, order
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, PART_NAMES, STUFF

WORLD_VERSION = "world-v1"
EVAL_SEED_START = 10_000_000
"""Scene seeds below are for training, from here on for evaluation."""
CALIBRATION_SEED_START = 9_000_000
"""The last million seeds below evaluation: `World` stops before them."""

DEFAULT_TASKS: dict[str, float] = {
    "panoptic": 0.12,
    "fine": 0.08,
    "referring": 0.2,
    "several": 0.08,
    "absent": 0.16,
    "reasoning": 0.06,
    "grounded_chat": 0.06,
    "caption": 0.03,
    "vqa": 0.09,
    "region": 0.07,
    "box": 0.05,
}


class World:
    """Samples of the procedural world without end in practice, several conversations an image.

    Args:
        seed_start: scene seed of index 0; index i has scene `seed_start + i`, up to the last seed of the split.
        tasks: task -> weight, the names of `TASKS`.
        turns: conversations per image.
        size: height = width of the image, px; from several, each sample draws one.
        split: `train` never shows or asks for what is held out; `eval` does, and names it in the kind.
        held_out: what the scenes do with held-out pairs; by default `avoid` in training and `allow` in evaluation.
        kinds: task -> all its kinds and how often each is tried first, where that is not as in `tasks.KINDS`.
        named: whether names of things in questions are grounded, too, for `losses.named` (`losses.kin` sees these
            things as well): what a relation is to, and what would have it if anything did ("*the dog left of* *the red
            ball*": the leftmost dog); the wholes of parts; what `fine` and questions for yes or no ask about.

    Raises:
        ValueError: an unknown task or kind, no positive weight, no turns, or a seed of the other split.
    """

    def __init__(
        self,
        seed_start: int = 0,
        *,
        tasks: Mapping[str, float] | None = None,
        turns: int = 6,
        size: int | Sequence[int] = 192,
        split: Literal["train", "eval"] = "train",
        held_out: Literal["avoid", "allow", "require"] | None = None,
        kinds: Mapping[str, Mapping[str, float]] | None = None,
        named: bool = False,
    ) -> None:
        tasks = DEFAULT_TASKS if tasks is None else tasks
        unknown = [name for name in tasks if name not in TASKS]
        if unknown:
            raise ValueError(f"task {unknown[0]!r} is unknown; use one of {', '.join(TASKS)}")
        if not any(weight > 0 for weight in tasks.values()) or any(weight < 0 for weight in tasks.values()):
            raise ValueError(f"tasks are {dict(tasks)}; give weights of 0 or more, one at least above 0")
        if turns < 1:
            raise ValueError(f"turns is {turns}; give at least 1 conversation per image")
        if split not in ("train", "eval"):
            raise ValueError(f"split is {split!r}; use train or eval")
        first, end = (0, CALIBRATION_SEED_START) if split == "train" else (EVAL_SEED_START, 2 * EVAL_SEED_START)
        if not first <= seed_start < end:
            raise ValueError(
                f"seed_start {seed_start} is not of split {split}: "
                f"training seeds are 0..{CALIBRATION_SEED_START - 1}, "
                f"evaluation seeds {EVAL_SEED_START}..{2 * EVAL_SEED_START - 1}"
            )
        for task, given in (kinds or {}).items():
            if task not in KINDS:
                raise ValueError(f"kinds are given for {task!r}, which is no task; use one of {', '.join(TASKS)}")
            if set(given) != set(KINDS[task]) or min(given.values()) < 0:
                known = ", ".join(KINDS[task])
                raise ValueError(f"kinds of {task!r} are {dict(given)}; give a weight of 0 or more for each of {known}")
        self.kinds = {**KINDS, **(kinds or {})}
        self.seed_start, self.named = seed_start, named
        self.tasks = {name: float(weight) for name, weight in tasks.items() if weight > 0}
        self.turns = turns
        self.sizes = (size,) if isinstance(size, int) else tuple(size)
        self.split = split
        self.held_out: Literal["avoid", "allow", "require"] = held_out or ("avoid" if split == "train" else "allow")
        one, many = self.tasks.get("referring", 0.0), self.tasks.get("several", 0.0)
        self.several_share = many / (one + many) if one + many else SEVERAL_SHARE
        names, weights = tuple(self.tasks), np.array(tuple(self.tasks.values()))
        self._names, self._cumulative = names, np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        """Scenes from `seed_start` to the last seed of the split; those of calibration are left out of training."""
        return (CALIBRATION_SEED_START if self.split == "train" else 2 * EVAL_SEED_START) - self.seed_start

    def id_of(self, index: int) -> str:
        return f"world-{self.seed_start + index}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample at an index; another epoch asks other questions about the same scene.

        Raises:
            ValueError: the index is outside 0..len - 1, or the scene has none of the tasks.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"index is {index}; this world has samples 0..{len(self) - 1}")
        seed = self.seed_start + index
        rng = np.random.default_rng((self.seed_start, index, epoch))
        size = self.sizes[int(rng.integers(len(self.sizes)))]
        scene = make_scene(seed, size, held_out=self.held_out)
        view = View(scene, allow_unseen=self.split == "eval")
        regions: list[Region] = []
        drawn: dict[Target, int] = {}
        conversations: list[Conversation] = []
        while len(conversations) < self.turns:
            first = self._names[min(int(np.searchsorted(self._cumulative, rng.random())), len(self._names) - 1)]
            rest = order(rng, self._names, tuple(self.tasks.values()))
            for task in chain((first,), rest):
                told = write(
                    view,
                    task,
                    rng,
                    regions,
                    drawn=drawn,
                    several_share=self.several_share,
                    kinds=self.kinds,
                    named=self.named,
                )
                if told is not None:
                    conversations.append(told)
                    break
            else:
                raise ValueError(
                    f"scene {seed} has none of the tasks {', '.join(self._names)}; add one every scene has (panoptic)"
                )
        return _sample(scene, regions, conversations)

    def text_corpus(self, count: int) -> Iterator[str]:
        """`count` texts for training a tokenizer: every word and wording once, then turns of samples."""
        texts = chain(_wordings(), (turn.text for turn in chain.from_iterable(self._turns(i) for i in range(count))))
        return (text for text, _ in zip(texts, range(count), strict=False))

    def _turns(self, index: int) -> Iterator:
        return (turn for conversation in self.sample(index).conversations for turn in conversation.turns)


def eval_samples(task: str, count: int, seed: int = EVAL_SEED_START, size: int = 192) -> Iterator[Sample]:
    """`count` samples of held-out worlds with one conversation of `task` each, kinds in turn; no scene twice.

    Raises:
        ValueError: the task is unknown, or the seed is one of training.
    """
    if seed < EVAL_SEED_START:
        raise ValueError(f"seed {seed} is one of training; evaluation seeds start at {EVAL_SEED_START}")
    yield from _samples_of(task, count, seed, size)


def calibration_samples(task: str, count: int, size: int = 192) -> Iterator[Sample]:
    """The same for fitting what is neither trained nor evaluated: from the last million of the training seeds.

    Raises:
        ValueError: the task is unknown.
    """
    yield from _samples_of(task, count, CALIBRATION_SEED_START, size)


def _samples_of(task: str, count: int, seed: int, size: int) -> Iterator[Sample]:
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")
    kinds = tuple(KINDS[task])
    scenes = seed
    for number in range(count):
        told, regions = None, []
        drawn: dict[Target, int] = {}
        while told is None:
            scene = make_scene(scenes, size, held_out="allow")
            rng = np.random.default_rng((scenes, number))
            scenes += 1
            regions, drawn = [], {}
            told = write(scene, task, rng, regions, kind=kinds[number % len(kinds)], drawn=drawn)
        hidden = {
            region: round(1 - scene.things[target.index].visible, 3)
            for target, region in drawn.items()
            if not target.stuff
        }
        yield _sample(scene, regions, [told], hidden)


def _sample(
    scene: Scene, regions: list[Region], conversations: list[Conversation], hidden: Mapping[int, float] | None = None
) -> Sample:
    """`hidden`, in evaluation: region -> the share of its thing's silhouette that other things cover."""
    return Sample(
        scene.image,
        tuple(regions),
        tuple(conversations),
        id=f"world-{scene.seed}",
        meta={"scene_seed": scene.seed, "version": WORLD_VERSION, **({} if hidden is None else {"hidden": hidden})},
    )


def _wordings() -> Iterator[str]:
    """Every word of the vocabulary and every template."""
    yield " ".join((*COLORS, *STUFF, *PART_NAMES))
    yield " ".join(chain.from_iterable((name, templates.plural(name)) for name in CATEGORIES))
    yield " ".join(chain.from_iterable(templates.RELATIONS.values()))
    yield from templates.REGION_WORDS
    yield " ".join((*templates.NUMBERS, *templates.ORDINALS, "leftmost rightmost small large yes no left middle right"))
    for purpose in templates.PURPOSES.values():
        yield from (*purpose.asks, *(templates.negation(words) for words in purpose.asks), purpose.because)
    for name, value in vars(templates).items():
        if name.isupper() and isinstance(value, tuple) and value and isinstance(value[0], str):
            yield from (re.sub(r" ?\{\w+\}", "", text) for text in value)
