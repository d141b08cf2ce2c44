"""The demo: fixed questions about fixed scenes that training never sees, the truth beside every answer.

Nothing is picked after the fact: the scenes are those of `FIRST_SEED` and the next ones that have such a question, and
each answer is judged by the metric that scores its task in `mglmm eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mglmm.answer import Answer, Instance, Phrase, write_atomically
from mglmm.draw import contact_sheet
from mglmm.eval.protocol import Item, Predict
from mglmm.eval.world import ENTRIES
from mglmm.page import answer_page
from mglmm_data.sample import Region, Sample
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import EVAL_SEED_START, eval_samples
from mglmm_data.world.tasks import TASKS, write

SIZE = 384
"""Side of the scenes, px."""
FIRST_SEED = EVAL_SEED_START + 4_000_000
"""Of the demo's scenes; `mglmm eval` begins far below."""
GALLERY_SEED = EVAL_SEED_START + 5_000_000
GALLERY_SCENES = 24

QUESTIONS = (
    (("panoptic", "all"), ("fine", "attribute"), ("referring", "attribute"), ("absent", "attribute")),
    (("panoptic", "all"), ("referring", "relation"), ("several", "one_phrase"), ("region", "point")),
    (("referring", "part"), ("several", "phrases"), ("reasoning", "present"), ("absent", "relation")),
    (("fine", "ordinal"), ("region", "box"), ("vqa", "count"), ("box", "attribute")),
)
"""(task, kind) of every question, scene by scene."""

TITLES = {
    "panoptic": "everything",
    "fine": "fine-grained",
    "referring": "referring",
    "absent": "no target",
    "several": "several targets",
    "region": "a given region",
    "reasoning": "reasoning",
    "vqa": "a question",
    "box": "a box",
    "grounded_chat": "a later turn of a chat",
    "caption": "a caption",
}

OVERLAP = ("gIoU", 0.5, "overlap {:.2f}")
RIGHT: dict[str, tuple[str, float, str]] = {
    "panoptic": ("recall_noun@0.5", 0.5, "{:.0%} found and named"),
    "fine": ("recall_noun@0.5", 0.5, "{:.0%} found and named"),
    "absent": ("N_acc", 1.0, ""),
    "vqa": ("exact", 1.0, ""),
    "caption": ("exact", 1.0, ""),
    "region": ("category", 1.0, ""),
    "box": ("accuracy@0.5", 0.5, ""),
}
"""Task -> the number that judges an answer, from where on it is right, and its words; the rest go by `OVERLAP`."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One question of the demo with its answer, the true one, and the verdict."""

    item: Item
    answer: Answer
    truth: Answer
    is_right: bool
    verdict: str  # "right, overlap 0.83"

    @property
    def title(self) -> str:
        return TITLES[self.item.conversation.task]

    @property
    def regions(self) -> tuple[Region, ...]:
        """What the user points at, in the order of the prompt's `[region 0]`, `[region 1]`."""
        return self.item.query.regions


def questions() -> list[Item]:
    """The demo's questions; a scene's questions share its image object, so that it is encoded once."""
    items: list[Item] = []
    seed = FIRST_SEED
    for asked in QUESTIONS:
        found: list[Item] | None = None
        while found is None:
            found = questions_about(seed, asked)
            seed += 1
        items += found
    return items


def questions_about(seed: int, asked: Sequence[tuple[str, str]]) -> list[Item] | None:
    """A question of each (task, kind) about one scene; None if the scene lacks one of them."""
    scene = make_scene(seed, SIZE, held_out="allow")
    items = []
    for number, (task, kind) in enumerate(asked):
        regions: list[Region] = []
        told = write(scene, task, np.random.default_rng((seed, number)), regions, kind=kind)
        if told is None:
            return None
        sample = Sample(scene.image, tuple(regions), (told,), id=f"world-{seed}", meta={"scene_seed": seed})
        items.append(Item(sample, told))
    return items


def gallery() -> list[Item]:
    """One question about each of `GALLERY_SCENES` other scenes: task after task, the kinds of each in turn."""
    tasks = [task for task in TITLES if task in TASKS]
    rounds = [number // len(tasks) for number in range(GALLERY_SCENES)]
    drawn = {
        task: list(eval_samples(task, rounds[-1] + 1, GALLERY_SEED + place * 1000, SIZE))
        for place, task in enumerate(tasks)
    }
    samples = [drawn[tasks[number % len(tasks)]][turn] for number, turn in enumerate(rounds)]
    return [Item(sample, sample.conversations[0]) for sample in samples]


def answer_all(predict: Predict, items: Sequence[Item] | None = None) -> list[Shown]:
    """Ask every question (the demo's, if none are given) in one batch and judge the answers."""
    items = questions() if items is None else items
    answers = list(predict([item.query for item in items]))
    return [judged(item, answer) for item, answer in zip(items, answers, strict=True)]


def judged(item: Item, answer: Answer) -> Shown:
    """The verdict by the metric of the item's task in `mglmm.eval.world`."""
    number, enough, words = RIGHT.get(item.conversation.task, OVERLAP)
    entry = next(entry for entry in ENTRIES if any(entry.slices(item)))
    metric = entry.metric()
    metric.update(item, answer)
    numbers = metric.compute()
    if number not in numbers:  # a spoken turn of a chat
        number, enough, words = RIGHT["vqa"]
    value = numbers[number]
    is_right = bool(value >= enough)
    verdict = ", ".join(("right" if is_right else "wrong", *([words.format(value)] if words else [])))
    return Shown(item, answer, gold_answer(item), is_right, verdict)


def gold_answer(item: Item) -> Answer:
    """The true answer, as a perfect model would give it."""
    phrases = []
    for span in item.gold.phrases:
        regions = [item.sample.regions[index] for index in span.regions]
        boxes = item.gold.grounding == "box"
        instances = tuple(Instance(None if boxes else region.mask, region.bounds, 1.0) for region in regions)
        phrases.append(Phrase(item.gold.text[span.start : span.end], (span.start, span.end), instances))
    return Answer(item.gold.text, tuple(phrases), item.sample.image, prompt=item.question.text)


def save(shown: Sequence[Shown], folder: Path) -> list[Path]:
    """Write a picture of each answer, all as `answers.png`, and beside the truth as `demo.png` and `index.html`.

    Returns the last two.
    """
    cells, cards, regions = [], [], []
    for number, each in enumerate(shown, 1):
        each.answer.save(folder / f"{number:02d}-{each.item.conversation.task}.png", each.regions)
        headings = f"{number}. {each.title}: {each.verdict}", f"{number}. the truth"
        for heading, answer in zip(headings, (each.answer, each.truth), strict=True):
            cells.append((heading, answer.plot(each.regions)))
            cards.append((heading, answer))
            regions.append(each.regions)
    sheet, page = folder / "demo.png", folder / "index.html"
    contact_sheet(cells, columns=4).save(sheet)
    contact_sheet(cells[::2], columns=4).save(folder / "answers.png")
    write_atomically(page, answer_page(cards, "Answers on scenes that training never saw", regions).encode("utf-8"))
    return [sheet, page]
