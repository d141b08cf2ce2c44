"""What a user calls data on the command line, and samples of it on a page.

A config with sources, a source's own file or folder, the name of a data set below `MGLMM_DATA`, or a folder that holds
data sets in one of the layouts that `mglmm_data.resolver` knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mglmm.answer import Answer
from mglmm.config import TrainConfig, find_config, parse, read_yaml
from mglmm.demo import gold_answer
from mglmm.eval.protocol import Item
from mglmm.page import answer_page
from mglmm_data.check import Report
from mglmm_data.reading import OnError, Problems
from mglmm_data.registry import Source, make_tolerant_source
from mglmm_data.resolver import specs_at
from mglmm_data.sample import Region, Sample
from mglmm_data.telling import near

MAX_PROBLEMS = 20
"""Problems of a source that are printed; the rest are in the files that are written."""


def specs_of(text: str, root: str | None = None) -> dict[str, dict[str, Any]]:
    """name -> spec of each source that `text` means; `root` is where data sets lie, by default `MGLMM_DATA`.

    Raises:
        ValueError: there is no such thing; the near miss is named.
    """
    if Path(text).suffix.lower() in (".yaml", ".yml") or (not Path(text).exists() and "/" in text and _is_config(text)):
        return specs_of_config(text)
    return specs_at(text, root)


def _is_config(text: str) -> bool:
    try:
        return find_config(text).is_file()
    except ValueError:
        return False


def specs_of_config(path: str) -> dict[str, dict[str, Any]]:
    """The sources of a recipe's stages, of an evaluation, or of a plain `sources:` mapping.

    Raises:
        ValueError: the config cannot be read, or names no source.
    """
    data = read_yaml(path)
    if "stages" in data:
        out: dict[str, dict[str, Any]] = {}
        for stage in parse(TrainConfig, data, path).stages:
            for name, spec in stage.sources.items():
                if spec not in out.values():
                    out[name if name not in out else f"{stage.name}/{name}"] = dict(spec)
        found = out
    elif isinstance(data.get("source"), dict):
        found = {Path(path).stem: dict(data["source"])}
    else:
        found = data.get("sources", {"": data} if "type" in data else {})
    if not isinstance(found, dict) or not found or not all(isinstance(spec, dict) for spec in found.values()):
        raise ValueError(f"{path} names no source; give a recipe, or `sources: {{mine: {{type: folder, root: mine}}}}`")
    return {name or Path(path).stem: spec for name, spec in found.items()}


def check_lines(report: Report) -> Iterable[tuple[str, str]]:
    """(style, text) of each line that tells what a check found."""
    for name, found in report.found.items():
        yield "bold", name
        pieces = [counted(found.samples, "sample"), counted(len(found.images), "image")]
        pieces += [counted(count, kind) for kind, count in found.regions.most_common()]
        pieces += [counted(len(found.categories), "category"), counted(found.phrases, "phrase")]
        looked = "" if found.looked_at == found.samples else f" (looked at {found.looked_at:,})"
        yield "", f"  {', '.join(pieces)}{looked}"
        if found.tasks:
            yield "dim", "  asked: " + ", ".join(f"{task} {count:,}" for task, count in found.tasks.most_common())
        if found.joined:
            names = ", ".join(f"{name} {count:,}" for name, count in found.joined.most_common())
            yield "dim", f"  joined, more of a name in a picture than max_regions: {names} (instances)"
        left_out = ", ".join(f"{what} {count:,}" for what, count in found.skipped.most_common() if count)
        if left_out:
            yield "dim", f"  left out by rule: {left_out}"
        for text in found.dropped[:MAX_PROBLEMS]:
            yield "dim", f"    {' '.join(text.split())}"
        if len(found.dropped) > MAX_PROBLEMS:
            yield "dim", f"    ... and {len(found.dropped) - MAX_PROBLEMS:,} more in the list"
        yield from _problem_lines([(problem.kind, problem.problem) for problem in found.problems])
    yield from _problem_lines([(problem.kind, problem.problem) for problem in report.leaks])
    count = len(report.problems)
    yield ("red", counted(count, "problem")) if count else ("green", "nothing wrong")


def counted(count: int, noun: str) -> str:
    """ "1 mask", "2 masks", "2 boxes"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _problem_lines(problems: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for kind in dict.fromkeys(kind for kind, _ in problems):
        texts = [text for each, text in problems if each == kind]
        yield "yellow", f"  {kind}: {len(texts):,}"
        for text in texts[:MAX_PROBLEMS]:
            yield "", f"    {' '.join(text.split())}"
        if len(texts) > MAX_PROBLEMS:
            yield "dim", f"    ... and {len(texts) - MAX_PROBLEMS:,} more; --fix-list FILE has all of them"


def page_of(report: Report, title: str) -> str:
    """A page with up to three samples of each source: questions, answers, masks."""
    told: list[tuple[str, Answer]] = []
    regions: list[list[Region]] = []
    for name, found in report.found.items():
        for index in found.shown:
            for heading, answer, given in answers_of(report.sources[name].sample(index)):
                told.append((f"{name}, sample {index}: {heading}", answer))
                regions.append(given)
    return answer_page(told, title, regions)


def answers_of(sample: Sample) -> Iterable[tuple[str, Answer, list[Region]]]:
    """(heading, the answer as the data has it, given regions) for each turn; for a sample without any, its regions."""
    for conversation in sample.conversations:
        for turn in range(1, len(conversation.turns), 2):
            item = Item(sample, conversation, turn)
            given = [sample.regions[mention.region] for mention in item.question.mentions]
            yield f"{sample.id} {conversation.task}".strip(), gold_answer(item), given
    if not sample.conversations:
        yield sample.id, Answer("", (), sample.image, notes=("no conversation",)), list(sample.regions)


def one_of(specs: Mapping[str, dict[str, Any]], name: str | None, text: str) -> tuple[str, dict[str, Any]]:
    """Name and spec of the source that is meant where `text` has several.

    Raises:
        ValueError: there are several and none is named, or the name is none of them.
    """
    if name is None:
        if len(specs) > 1:
            raise ValueError(f"{text} has {len(specs)} sources; say which with --name: {', '.join(specs)}")
        return next(iter(specs.items()))
    if name not in specs:
        raise ValueError(f"{text} has no source {name!r}{near(name, specs)}")
    return name, specs[name]


def error_policy(text: str) -> OnError:
    """`fail` or `count`.

    Raises:
        ValueError: it is neither.
    """
    return "count" if Problems(text).on_error == "count" else "fail"


def open_source(spec: Mapping[str, Any], on_error: str, name: str = "") -> Source:
    """The source of a spec, tolerant where that is asked for."""
    return make_tolerant_source(spec, error_policy(on_error), name)


def limit_of(spec: Mapping[str, Any], limit: int | None) -> int | None:
    """How many samples to write; the world never ends, so it needs a number.

    Raises:
        ValueError: the world without a limit.
    """
    if spec.get("type") == "world" and limit is None:
        raise ValueError("the world has ten million scenes; say how many with --limit")
    return limit
