"""The verbs about data: check-data, export, cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mglmm.console import by_name, progress, say

Data = Annotated[
    str,
    typer.Argument(
        help="A config with sources, a folder or file of data, the name of a data set below MGLMM_DATA, or world.",
        show_default=False,
    ),
]
Root = Annotated[str | None, typer.Option(help="Where data sets lie; by default MGLMM_DATA.")]


def check_data(
    data: Data,
    root: Root = None,
    page: Annotated[Path | None, typer.Option(help=".html with three samples of each source.")] = None,
    fix_list: Annotated[Path | None, typer.Option(help=".jsonl with what to mend or drop, a problem a line.")] = None,
    out: Annotated[Path | None, typer.Option(help=".json with every count.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many samples of each source.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many read (default: one a core).")] = None,
) -> int:
    """Read all data as training would, count it, and say what is wrong; exit code 1 if anything is."""
    from mglmm import given, sources
    from mglmm.answer import write_atomically
    from mglmm_data.check import check

    for path, suffix in ((page, ".html"), (fix_list, ".jsonl"), (out, ".json")):
        given.check_files([path] if path else [], [suffix])
    specs = sources.specs_of(data, root)
    console = Console()
    with progress() as bars:
        report = check(specs, processes=processes, limit=limit, on_progress=by_name(bars))
    for style, line in sources.check_lines(report):
        console.print(Text(line, style=style), soft_wrap=True)
    for path, content in (
        (page, lambda: sources.page_of(report, f"Data: {data}")),
        (fix_list, lambda: "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in report.problems)),
        (out, lambda: json.dumps(report.to_json(), ensure_ascii=False, indent=1)),
    ):
        if path is not None:
            write_atomically(path, content().encode("utf-8"))
            say(console, f"saved {path}")
    return 1 if report.problems else 0


def export(
    source: Data,
    out: Annotated[Path, typer.Argument(help="A folder; a new or empty one.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="jsonl, coco, labelme, label-studio or webdataset.")] = "jsonl",
    name: Annotated[str | None, typer.Option(help="Which source, where a config or folder has several.")] = None,
    root: Root = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Write so many samples.")] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Of which epoch questions are drawn.")] = 0,
    on_error: Annotated[str, typer.Option(help="fail, or count: leave out what cannot be read, and list it.")] = "fail",
) -> int:
    """Write a source as files: our JSONL, COCO json, labelme, Label Studio, WebDataset shards."""
    from mglmm import sources
    from mglmm.data_export import export as write

    found, spec = sources.one_of(sources.specs_of(source, root), name, source)
    console = Console()
    with progress() as bars:
        bar = bars.add_task(form)
        done = write(
            sources.open_source(spec, on_error, found),
            out,
            form,
            limit=sources.limit_of(spec, limit),
            epoch=epoch,
            on_error=sources.error_policy(on_error),
            on_progress=lambda count, total: bars.update(bar, completed=count, total=total),
        )
    say(console, f"saved {done.samples:,} samples in {done.folder}")
    for what, count in done.left_out.items():
        if count:
            say(console, f"not in this format: {count:,} {what}")
    for text in done.problems:
        say(console, f"left out: {' '.join(text.split())}")
    return 1 if done.problems else 0


def cache(
    config: Annotated[str, typer.Argument(help="A recipe, or its name under configs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, for example stages.0.features=FOLDER.")
    ] = None,
) -> int:
    """Keep what frozen encoders see of a recipe's photographs, where its stages have features: FOLDER."""
    from mglmm import given
    from mglmm.config import TrainConfig, load_config

    recipe = load_config(TrainConfig, config, overrides or ())
    given.quiet()
    from mglmm.train.caching import cache as fill

    console = Console()
    with progress() as bars:
        done = fill(recipe, by_name(bars))
    folders = ", ".join(dict.fromkeys(str(stage.features) for stage in recipe.stages if stage.features))
    say(console, f"{done.written:,} photographs seen, {done.there:,} samples of photographs seen before: {folders}")
    for text in done.problems:
        say(console, f"left out: {' '.join(text.split())}")
    return 1 if done.problems else 0
