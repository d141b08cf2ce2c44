"""The held-out world: every task of the generator asked free-running, scored, and set beside the same model blind.

`ENTRIES` is the table: which samples feed a line, by which metric, cut into which slices, and what is printed.
Referring, several and absent share their questions' templates, so "present or absent" pools them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from mglmm.config import Strict
from mglmm.eval.calibration import Calibration
from mglmm.eval.grounding import SIZES, WRONG, Grounding
from mglmm.eval.iou import BoxAccuracy, RefSeg
from mglmm.eval.metric import Metric
from mglmm.eval.processes import Processes
from mglmm.eval.protocol import Item, Predict, answered, blind, swapped
from mglmm.eval.report import Report, Row, rows_of, versions
from mglmm.eval.text import ExactMatch, RegionNaming, Vocabulary
from mglmm_data.sample import Sample
from mglmm_data.world.scene import make_scene, statistics
from mglmm_data.world.source import EVAL_SEED_START, WORLD_VERSION, eval_samples
from mglmm_data.world.tasks import TASKS
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, PART_NAMES, SIZE_WORDS, STUFF

VOCABULARY = Vocabulary(
    {
        **dict.fromkeys(PART_NAMES, "part"),
        **dict.fromkeys(STUFF, "stuff"),
        **dict.fromkeys(CATEGORIES, "thing"),
    },
    frozenset(COLORS),
    frozenset(SIZE_WORDS),
)
Slicing = Literal["kind", "seen", "hard"]
"""`kind`: one slice for each kind of the task; `seen`: held-out colours and relations apart from the rest; `hard`:
answers whose smallest region is small, and those with a thing of which much is hidden."""
HIDDEN = 0.25
"""Share of a silhouette from which on a thing counts as heavily occluded."""


class WorldConfig(Strict):
    """What `mglmm eval configs/eval/world.yaml` reads."""

    tasks: tuple[str, ...] = tuple(TASKS)
    count: int = Field(default=200, ge=1)  # samples a task
    counts: Mapping[str, int] = {}  # task -> another number of samples
    seed: int = Field(default=EVAL_SEED_START, ge=EVAL_SEED_START)  # of the first scene; training never sees these
    size: int = Field(default=192, ge=64)  # height and width, px
    batch_size: int = Field(default=32, ge=1)
    blind: bool = True  # score the same predictor on noise, and on images of other scenes, as well
    blind_count: int | None = Field(default=None, ge=1)  # on so many samples of each task; all by default
    blind_seed: int = 0
    resamples: int = Field(default=1000, ge=0)  # of the bootstrap; 0 leaves intervals out

    @field_validator("tasks")
    @classmethod
    def known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise ValueError(f"task {unknown[0] if unknown else 'list'!r} is not one; name some of {', '.join(TASKS)}")
        return tasks

    @field_validator("counts")
    @classmethod
    def known_counts(cls, counts: Mapping[str, int]) -> Mapping[str, int]:
        for task, count in counts.items():
            if task not in TASKS or count < 1:
                raise ValueError(
                    f"{task}: {count} is not a count of a task; give 1 or more for one of {', '.join(TASKS)}"
                )
        return counts


SLICE_ORDER = {"seen": 1, "unseen": 1, "small": 2, "occluded": 2}
"""Where slices stand that are no kinds."""


@dataclass(frozen=True)
class Entry:
    """A line of the table. `headline` are the numbers printed of the whole, `sliced` those of each slice."""

    name: str
    tasks: tuple[str, ...]
    metric: Callable[[], Metric]
    headline: tuple[str, ...]
    slicing: tuple[Slicing, ...] = ()
    sliced: tuple[str, ...] = ()
    grounded: bool | None = None  # take only items whose gold answer has phrases (or has none)

    def slices(self, item: Item) -> Iterator[str]:
        """The slices an item counts in; none if the entry does not take it."""
        if item.conversation.task not in self.tasks or self.grounded not in (None, bool(item.phrases)):
            return
        kind, _, unseen = item.conversation.kind.partition(":")
        yield "all"
        if "kind" in self.slicing:
            yield kind
        if "seen" in self.slicing:
            yield unseen or "seen"
        if "hard" in self.slicing:
            regions = {region for phrase in item.phrases for region in phrase.regions}
            if regions and min(item.sample.regions[region].mask.mean() for region in regions) < SIZES["small"]:
                yield "small"
            if any(item.sample.meta.get("hidden", {}).get(region, 0.0) > HIDDEN for region in regions):
                yield "occluded"


def _panoptic() -> Grounding:
    return Grounding(VOCABULARY, ("thing", "stuff"))


def _parts() -> Grounding:
    return Grounding(VOCABULARY, ("part", "thing", "stuff"))


_MASKS = ("recall@0.5", "recall_noun@0.5", "PQ", "PQ_noun", "SQ")
_FAULTS = ("phrase_F1", "invented", "missed", "repeated")
_BY_SIZE = ("mean_iou/small", "mean_iou/medium", "mean_iou/large")
_CUT: tuple[Slicing, ...] = ("kind", "seen")
_CUT_HARD: tuple[Slicing, ...] = (*_CUT, "hard")

ENTRIES = (
    Entry("referring", ("referring",), RefSeg, ("cIoU", "gIoU", "Pr@0.5", "Pr@0.7"), _CUT_HARD, ("cIoU", "gIoU")),
    Entry("several", ("several",), RefSeg, ("gIoU", "cIoU"), _CUT_HARD, ("gIoU",)),
    Entry(
        "present or absent",
        ("referring", "several", "absent"),
        RefSeg,
        ("N_acc", "T_acc", "false_rejection", "gIoU", "cIoU"),
    ),
    Entry("reasoning", ("reasoning",), RefSeg, ("gIoU", "N_acc", "T_acc"), ("kind",), ("gIoU",)),
    Entry("chat, grounded turn", ("grounded_chat",), RefSeg, ("gIoU",), grounded=True),
    Entry("chat, spoken turn", ("grounded_chat",), lambda: ExactMatch("answer"), ("exact",), grounded=False),
    Entry(
        "panoptic",
        ("panoptic",),
        _panoptic,
        (*(f"{name}/{group}" for group in ("thing", "stuff") for name in _MASKS), *_MASKS, *_FAULTS)
        + ("invented/thing", "missed/thing", "invented/stuff", "missed/stuff")
        + tuple(f"{word}/thing" for word in WRONG)
        + _BY_SIZE,
    ),
    Entry("fine", ("fine",), _parts, (*_MASKS, *_FAULTS, *WRONG, *_BY_SIZE), _CUT_HARD, ("recall_noun@0.5",)),
    Entry("caption", ("caption",), ExactMatch, ("exact",)),
    Entry("vqa", ("vqa",), lambda: ExactMatch("answer"), ("exact",), _CUT, ("exact",)),
    Entry(
        "region naming",
        ("region",),
        lambda: RegionNaming(VOCABULARY),
        ("category", "category_color", "exact"),
        _CUT,
        ("category", "category_color"),
    ),
    Entry("region to mask", ("region",), RefSeg, ("gIoU",), ("kind",), ("gIoU",), grounded=True),
    Entry(
        "confidence",
        ("panoptic", "fine", "referring", "several", "absent", "reasoning"),
        lambda: Calibration(VOCABULARY),
        ("ECE", "confidence", "accuracy"),
    ),
    Entry("box", ("box",), BoxAccuracy, ("accuracy@0.5", "mean_iou"), _CUT_HARD, ("accuracy@0.5",)),
)


@dataclass
class Scores:
    """A metric for every slice of every entry, filled item by item; shards merge."""

    metrics: dict[tuple[str, str], Metric] = field(default_factory=dict)

    def update(self, item: Item, answer: Any) -> None:
        for entry in ENTRIES:
            slices = list(entry.slices(item))
            if not slices:
                continue
            counts = self._metric(entry, "all").measure(item, answer)
            for name in slices:
                self._metric(entry, name).append(counts)

    def merge(self, other: Scores) -> None:
        """Take in another shard's rows."""
        for key, metric in other.metrics.items():
            entry = next(entry for entry in ENTRIES if entry.name == key[0])
            self._metric(entry, key[1]).merge([metric])

    def rows(self, beside: Mapping[str, Scores], resamples: int) -> list[Row]:
        """The table's rows, entry by entry, the whole before its slices."""
        rows: list[Row] = []
        for entry in ENTRIES:
            names = [name for task, name in self.metrics if task == entry.name]
            for name in sorted(names, key=lambda name: (name != "all", SLICE_ORDER.get(name, 0), name)):
                key = (entry.name, name)
                others = {other: scores.metrics[key] for other, scores in beside.items() if key in scores.metrics}
                headline = entry.headline if name == "all" else entry.sliced
                rows += rows_of(self.metrics[key], *key, beside=others, headline=headline, resamples=resamples)
        return rows

    def _metric(self, entry: Entry, name: str) -> Metric:
        key = (entry.name, name)
        if key not in self.metrics:
            self.metrics[key] = entry.metric()
        return self.metrics[key]


def evaluate_world(
    predict: Predict,
    config: WorldConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    meta: Mapping[str, Any] | None = None,
    among: Processes | None = None,
) -> Report:
    """Ask every task's held-out samples and score the answers.

    Args:
        predict: queries in, one answer each out; called with `config.batch_size` queries of one task.
        config: what is asked, and how often.
        on_progress: called with (samples done, samples in all) after every batch.
        meta: what the report should remember of the model (checkpoint, steps).
        among: the processes that share the batches; all get the report. This one alone by default.

    Raises:
        ValueError: the predictor gives another number of answers than it got queries, or masks of another size.
    """
    among = among or Processes()
    unseeing = {"blind": blind(predict, config.blind_seed), "swapped": swapped(predict)} if config.blind else {}
    found: list[tuple[int, Scores, dict[str, Scores], list[int]]] = []  # of each batch: number, scores, scenes
    plan = {task: config.counts.get(task, config.count) for task in config.tasks}
    number = done = 0
    for task, count in plan.items():
        unasked = (count if config.blind_count is None else config.blind_count) if config.blind else 0
        for items in _batches(eval_samples(task, count, config.seed, config.size), config.batch_size):
            if among.asks(number):
                seeing, beside = Scores(), {name: Scores() for name in unseeing}
                for item, answer in answered(predict, items, config.batch_size):
                    seeing.update(item, answer)
                for name, predictor in unseeing.items():
                    for item, answer in answered(predictor, items[:unasked], config.batch_size):
                        beside[name].update(item, answer)
                found.append((number, seeing, beside, [int(item.sample.meta["scene_seed"]) for item in items]))
            unasked -= len(items[:unasked])
            number += 1
            done += len(items)
            if on_progress is not None:
                on_progress(done, sum(plan.values()))
    scores, others, scenes = Scores(), {name: Scores() for name in unseeing}, {}
    for _, seen, beside, seeds in sorted(among.gather(found), key=lambda batch: batch[0]):
        scores.merge(seen)
        for name, other in others.items():
            other.merge(beside[name])
        scenes |= dict.fromkeys(seeds)
    drawn = [make_scene(seed, config.size) for seed in scenes]
    return Report(
        title=f"Held-out world ({WORLD_VERSION}), free-running, {config.size} px, {len(drawn)} scenes",
        rows=tuple(scores.rows(others, config.resamples)),
        statistics=statistics(drawn),
        meta={"versions": versions(), "config": config.model_dump(mode="json"), "world": WORLD_VERSION, "counts": plan}
        | dict(meta or {}),
    )


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for sample in samples:
        batch.append(Item(sample, sample.conversations[0]))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
