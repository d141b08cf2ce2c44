"""The command line: `mglmm ask | demo | train | cache | eval | convert | merge | doctor | check-data | export | ...`.

Everything heavy is imported inside a verb, so that help and mistakes in what was typed come at once. A mistake of the
user is one line on stderr and exit code 2; a bug keeps its traceback. Verbs about checkpoints are in `cli_models`,
about data in `cli_data`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import mglmm
from mglmm import cli_data, cli_models
from mglmm.console import is_mistake, progress, say, sentence

if TYPE_CHECKING:
    from mglmm.config import TrainConfig

app = typer.Typer(
    name="mglmm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model that grounds what it says in pixels.",
)
MISTAKE, INTERRUPTED = 2, 130
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer brings its own click, older ones the real one

Config = Annotated[str, typer.Argument(help="A YAML file, or its name under configs/.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, for example stages.0.max_steps=100.")
]
Model = Annotated[str, typer.Option(help="A checkpoint's or a run's folder, a hub name, or bundled.")]


def main() -> NoReturn:
    """The `mglmm` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. `--debug` anywhere shows the traceback of mistakes, too."""
    debug = "--debug" in arguments
    given = [argument for argument in arguments if argument != "--debug"]
    try:
        return int(app(given or ["--help"], prog_name="mglmm", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except USAGE_ERROR as error:
        return complain(f"{error.format_message().rstrip('.')} (see mglmm --help)")
    except (ValueError, OSError) as error:
        if debug or not is_mistake(error):
            raise
        return complain(sentence(error))


def complain(message: str) -> int:
    """One line on stderr; returns the exit code of a mistake."""
    say(Console(stderr=True), f"mglmm: {message}")
    return MISTAKE


def version(wanted: bool) -> None:
    if wanted:
        Console().print(f"mglmm {mglmm.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a mistake; may stand anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def ask(
    image: Annotated[str, typer.Argument(help="An image file, or world:SEED@SIZE (a scene).", show_default=False)],
    prompt: Annotated[str | None, typer.Argument(help=r"The question; \[region 0] is the first --region.")] = None,
    model: Model = "bundled",
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="box:x1,y1,x2,y2  point:x,y  scribble:x,y;x,y;...  mask:FILE.png, in pixels; may be repeated."
        ),
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help=".png, .jpg, .html or .json; may be repeated (default: answer.png).")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it comes.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest answer.")] = 0.0,
    no_grammar: Annotated[bool, typer.Option("--no-grammar", help="Do not keep phrases well-formed.")] = False,
    no_target_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.999,
            help="From which probability on the answer says that nothing is there (default: the model's).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead; a picture only with --out.")] = False,
    quant: Annotated[str, typer.Option(help="Hold the language model in int8 or int4: less memory.")] = "none",
) -> None:
    """Ask about an image: prints the answer and draws its masks."""
    from mglmm import given
    from mglmm.console import show, show_stream

    console = Console()
    files = out or ([] if as_json else [Path("answer.png")])
    given.check_files(files, given.ANSWER_FILES)
    picture = given.picture(image)
    regions = [given.region(text, picture.size) for text in region or ()]
    generation = {"max_new_tokens": max_new_tokens, "temperature": temperature, "grammar": not no_grammar}
    generation["no_target_threshold"] = no_target_threshold
    grounder = given.grounder(model, generation, quant)
    asked: dict[str, Any] = {"regions": regions} | ({} if prompt is None else {"prompt": prompt})
    if as_json:
        answer = grounder.ask(picture, **asked)
        typer.echo(json.dumps(answer.to_json(), ensure_ascii=False))
    elif stream:
        answer = show_stream(console, grounder.stream(picture, **asked))
    else:
        answer = grounder.ask(picture, **asked)
        show(console, answer)
    for path in files:
        where = answer.save(path, regions)
        if not as_json:
            say(console, f"saved {where}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A folder; made where it is not there.")] = Path("outputs/demo"),
    model: Model = "bundled",
    gallery: Annotated[bool, typer.Option("--gallery", help="24 scenes, every task in turn, instead.")] = False,
) -> None:
    """Answer fixed questions about scenes that training never saw, the truth beside each."""
    started = time.monotonic()
    from mglmm import demo as shows
    from mglmm import given
    from mglmm.console import colored

    console = Console()
    grounder = given.grounder(model)
    with console.status("answering ..."):
        shown = shows.answer_all(grounder.predict, shows.gallery() if gallery else None)
    with console.status("drawing ..."):
        sheet, page = shows.save(shown, out)
    table = Table("", "asked", "answered", "truth", "verdict", show_lines=True, box=None, padding=(0, 1, 1, 0))
    for number, each in enumerate(shown, 1):
        answer, truth = (colored(told.text, told.phrases) for told in (each.answer, each.truth))
        verdict = Text(each.verdict, style="green" if each.is_right else "red")
        table.add_row(str(number), Text(each.answer.prompt), answer, truth, verdict)
    console.print(table)
    right = sum(each.is_right for each in shown)
    say(console, f"{right} of {len(shown)} right, in {time.monotonic() - started:.0f} seconds")
    say(console, f"all on one picture: {sheet}")
    say(console, f"a page to open in a browser: {page}")


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Train by a recipe; the same command again goes on where a run was stopped."""
    from mglmm import given
    from mglmm.config import TrainConfig, find_config, load_config

    recipe = load_config(TrainConfig, config, overrides or ())
    given.quiet()
    from mglmm.train.loop import Trainer

    trainer = Trainer(recipe, find_config(config, recipe.room).stem)
    console = Console(stderr=True, quiet=not trainer.accelerator.is_main_process)
    say(console, f"run {trainer.folder}{standing(recipe, trainer.stage_index, trainer.step)}")
    try:
        folder = trainer.run()
    except KeyboardInterrupt:
        say(console, "stopped; the same command goes on from the last checkpoint")
        raise
    finally:
        trainer.accelerator.end_training()
    say(console, f"checkpoint {folder}")
    say(console, f'ask with it: mglmm ask PHOTO "What is in this image?" --model {folder}')


def standing(recipe: TrainConfig, stage_index: int, step: int) -> str:
    """How far a run is that is taken up again; empty for a new one."""
    if stage_index == len(recipe.stages):
        return " is complete"
    return f" goes on from stage {recipe.stages[stage_index].name}, step {step}" if stage_index or step else ""


@app.command("eval")
def evaluate(
    config: Config,
    overrides: Overrides = None,
    model: Model = "bundled",
    beside: Annotated[list[str] | None, typer.Option(help="Another checkpoint beside; may be repeated.")] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help=".json, .md, .txt, or .png: a reliability plot; may be repeated.")
    ] = None,
    detail: Annotated[str, typer.Option(help="short, headlines or full.")] = "headlines",
    quant: Annotated[str | None, typer.Option(help="int8 or int4, as `quant=` in the config.")] = None,
) -> None:
    """Score a checkpoint: the held-out world, or named parts on photographs."""
    from mglmm import given
    from mglmm.answer import REPORTS
    from mglmm.eval.processes import processes
    from mglmm.evaluate import evaluate as score
    from mglmm.evaluate import read_eval

    given.check_files(out or (), REPORTS)
    chosen = given.detail(detail)
    settings = read_eval(config, [*(overrides or ()), *([f"quant={quant}"] if quant else ())])
    among = processes()
    with progress() as bars:

        def told(name: str) -> Any:
            bar = bars.add_task(name, total=None, visible=among.first)
            return lambda done, total: bars.update(bar, completed=done, total=total)

        report = score(settings, model, tuple(beside or ()), told, among)
    if not among.first:
        return
    console = Console()
    typer.echo(report.text(detail=chosen, width=max(console.width, 120)))
    for path in out or ():
        say(console, f"saved {report.save(path)}")


about_data = (cli_data.check_data, cli_data.export, cli_data.cache)
for verb in (cli_models.convert, cli_models.doctor, cli_models.merge, *about_data):
    app.command(verb.__name__.replace("_", "-"))(verb)


@app.command()
def checks() -> None:
    """What is installed, which device there is, and where things are."""
    from mglmm.checks import facts

    console, last = Console(), ""
    for group, name, found in facts():
        line = Text(f"{group if group != last else '':20}", style="bold").append(f"{name:24}{found}", style="not bold")
        console.print(line, soft_wrap=True)
        last = group


@app.command()
def cfg(config: Config, overrides: Overrides = None) -> None:
    """Print a config as it is read: defaults filled in, overrides and environment applied."""
    import yaml

    from mglmm.given import config_of

    typer.echo(yaml.safe_dump(config_of(config, overrides or ()), sort_keys=False, allow_unicode=True).rstrip())


if __name__ == "__main__":
    main()
