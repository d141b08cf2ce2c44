"""From an evaluation's config and a checkpoint to a report: the held-out world, or named parts on photographs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from mglmm import given
from mglmm.answer import Answer
from mglmm.config import Strict, override, parse, read_yaml
from mglmm.eval import Predict, Query, Report, mean_mask_baseline, parts_report, score_parts
from mglmm.eval.processes import Processes
from mglmm.eval.report import Row
from mglmm.eval.world import WorldConfig, evaluate_world
from mglmm.grounder import Grounder
from mglmm.quant import Quant
from mglmm_data.registry import Source, make_source
from mglmm_data.sample import Sample

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


class WorldEval(WorldConfig):
    """`kind: world`: every task of the held-out world."""

    kind: Literal["world"] = "world"
    generation: dict[str, Any] = {}  # fields of mglmm.generate.GenerationOptions
    quant: Quant = "none"  # bits that the language model's weights are held in
    limits_count: int = Field(default=0, ge=0)  # samples a task told the answer, see mglmm.eval.limits
    heads: str = ""  # state.pt of the model's run: its semantic prompt is the oracle of the limits


class PartsEval(Strict):
    """`kind: parts`: named parts or classes, each grounded, beside the mean masks of the training images."""

    kind: Literal["parts"] = "parts"
    title: str = "Parts, validation images"
    source: dict[str, Any]  # as in a training stage; its `split` says which images are which, `part` is set here
    validation: dict[str, Any] = {}  # instead of a `split`: what the validation images' source has in place of source's
    batch_size: int = Field(default=8, ge=1)
    generation: dict[str, Any] = {}
    quant: Quant = "none"


KINDS: dict[str, type[WorldEval] | type[PartsEval]] = {"world": WorldEval, "parts": PartsEval}


def read_eval(path: str, overrides: Sequence[str] = ()) -> WorldEval | PartsEval:
    """An evaluation's config with overrides.

    Raises:
        ValueError: see `mglmm.config`; or `kind` is not one.
    """
    data = override(read_yaml(path, "eval"), overrides)
    kind = data.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(KINDS)}"
        raise ValueError(f"{path}: the kind of this evaluation is {kind!r}; {hint}")
    return parse(KINDS[kind], data, path)


def evaluate(
    config: WorldEval | PartsEval,
    model: str = "bundled",
    beside: Sequence[str] = (),
    on_progress: Callable[[str], Progress] | None = None,
    among: Processes | None = None,
) -> Report:
    """Score a checkpoint, and set others beside it.

    Args:
        model: the checkpoint to score: folder, run, hub name or `bundled`.
        beside: checkpoints whose scores stand in columns beside.
        on_progress: the name of a checkpoint -> who is told how far it is.
        among: the processes that share the work; the report of the first is whole. This one alone by default.

    Raises:
        ValueError: a checkpoint or the data cannot be read.
    """
    # Named first, loaded one after the other: two large models need not fit side by side.
    names = {name_of(path): path for path in (model, *beside)}
    if len(names) < 1 + len(beside):
        raise ValueError(f"two of {', '.join((model, *beside))} are called alike; give checkpoints of different names")
    tell, started = on_progress or (lambda _: lambda _done, _total: None), time.monotonic()
    among = among or Processes()
    if isinstance(config, WorldEval):
        return score_world(config, names, tell, started, among)
    if among.count > 1:
        raise ValueError(f"an evaluation of kind {config.kind} runs in one process; start it with mglmm eval")
    return score_photos(config, names, tell, started)


def score_world(
    config: WorldEval, names: Mapping[str, str], tell: Callable[[str], Progress], started: float, among: Processes
) -> Report:
    """The held-out world; each further checkpoint is a column."""
    (first, path), *others = names.items()
    report = score_one(config, path, tell(first), among)
    for name, path in others:
        plain = config.model_copy(update={"blind": False, "resamples": 0, "heads": ""})
        scored = score_one(plain, path, tell(name), among)
        values = {(row.task, row.slice, row.metric): row.value for row in scored.rows}
        rows = (
            replace(row, beside={**row.beside, name: values.get((row.task, row.slice, row.metric), float("nan"))})
            for row in report.rows
        )
        report = replace(report, rows=tuple(rows))
    return replace(report, meta={**report.meta, "seconds": round(time.monotonic() - started, 1)})


def score_one(config: WorldEval, path: str, told: Progress, among: Processes) -> Report:
    """A checkpoint alone; it leaves the memory with this call."""
    grounder, meta = load(path, config)
    check_regions(config, grounder, path)
    limits = limit_rows(config, grounder, among)
    report = evaluate_world(grounder.predict, config, on_progress=told, meta=meta, among=among)
    return replace(report, rows=(*report.rows, *limits))


def check_regions(config: WorldEval, grounder: Grounder, path: str) -> None:
    """Raise ValueError where a model that reads no regions (LISA, MGLMM) would be asked about one."""
    if "region" in config.tasks and grounder.model.config.region_encoder == "none":
        others = ", ".join(task for task in config.tasks if task != "region")
        raise ValueError(f"{path} reads no regions, as the task region needs; leave it out: tasks=[{others}]")


def limit_rows(config: WorldEval, grounder: Grounder, among: Processes) -> list[Row]:
    """The rows of `mglmm.eval.limits`, where they are asked for; the tasks are shared out among the processes."""
    from mglmm.eval.limits import TASKS, limits, load_semantic

    tasks = [task for task in TASKS if task in config.tasks]
    if not config.limits_count or not tasks:
        return []

    semantic = load_semantic(grounder.model, config.heads) if config.heads else None
    counts = {task: min(config.limits_count, config.counts.get(task, config.count)) for task in tasks}
    asked = {"seed": config.seed, "size": config.size, "semantic": semantic}
    own = [
        (number, limits(grounder.model, grounder.processor, tasks=[task], count=counts[task], **asked))
        for number, task in enumerate(tasks)
        if among.asks(number)
    ]
    return [row for _, rows in sorted(among.gather(own), key=lambda task: task[0]) for row in rows]


def score_photos(
    config: PartsEval, names: Mapping[str, str], tell: Callable[[str], Progress], started: float
) -> Report:
    """Parts of the validation images; the mean masks of the training images and further checkpoints are columns."""
    train, validation = photo_sources(config)
    parts = cast(Any, validation).names
    scored = {}
    meta: dict[str, Any] = {}
    for name, path in names.items():
        grounder, facts = load(path, config)
        meta = meta or facts
        counted = counting(grounder.predict, tell(name), len(validation))
        scored[name] = score_parts(counted, samples_of(validation), parts, batch_size=config.batch_size)
        del grounder, counted  # before the next is loaded
    (_, main), *others = scored.items()
    baseline = mean_mask_baseline(samples_of(train), samples_of(validation), parts)
    meta |= {"config": config.model_dump(mode="json"), "seconds": round(time.monotonic() - started, 1)}
    return parts_report(main, {"mean mask": baseline, **dict(others)}, title=config.title, meta=meta)


def photo_sources(config: PartsEval) -> tuple[Source, Source]:
    """The sources of the training and of the validation images.

    Raises:
        ValueError: the source names no parts or classes, or nothing says which images are for validation.
    """
    spec = config.source
    if config.validation:
        specs = [spec, {**spec, **config.validation}]
    else:
        split = spec.get("split") or {}
        if not isinstance(split, Mapping) or not split.get("validation_share"):
            raise ValueError(
                "source.split has no validation_share; give the share of images to validate on, 0 to 1, or say under "
                "`validation` what their source has in place of these keys"
            )
        specs = [{**spec, "split": {**split, "part": part}} for part in ("train", "validation")]
    train, validation = (make_source(each) for each in specs)
    if not getattr(validation, "names", ()):
        raise ValueError(
            f"a source of type {spec.get('type')!r} has no named parts or classes; "
            "use one of masks with names, as coco or folder"
        )
    return train, validation


def samples_of(source: Source) -> Iterator[Sample]:
    return (source.sample(index) for index in range(len(source)))


def counting(predict: Predict, told: Progress, total: int) -> Predict:
    """The same predictor, telling after each batch how many queries it has answered."""
    done = 0

    def predict_and_tell(queries: Sequence[Query]) -> Iterable[Answer]:
        nonlocal done
        answers = predict(queries)
        done += len(queries)
        told(done, total)
        return answers

    return predict_and_tell


def load(path: str, config: WorldEval | PartsEval) -> tuple[Grounder, dict[str, Any]]:
    """A checkpoint, and what a report should remember of it."""
    grounder = given.grounder(path, config.generation, config.quant)
    parameters = sum(parameter.numel() for parameter in grounder.model.parameters())
    meta = {"model": path, "parameters": parameters, "device": str(grounder.model.device)}
    return grounder, meta | {"trained_on": grounder.model.config.trained_on}


def name_of(path: str) -> str:
    """What to call a checkpoint in a table: the name of its run, of its folder, or itself."""
    place = Path(path)
    return place.parent.parent.name if place.parts[-2:] == ("last", "model") else place.name or path
