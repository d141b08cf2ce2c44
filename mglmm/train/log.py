"""What a run writes while it goes: lines and a bar on the terminal, JSON lines in its folder, wandb when asked."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from mglmm.answer import write_atomically
from mglmm.config import StageConfig, TrainConfig

if TYPE_CHECKING:
    from rich.progress import Task

NUM_LISTED = 20
"""Problems that are listed on the terminal when a run ends."""


SPEED_SECONDS = 300
"""Steps per second and the time left are of the last minutes; a step of a large model takes some itself."""


class Log:
    """Means over `logging_steps`, to the terminal (rich), to `log.jsonl` and to wandb.

    wandb gets `train/<value>` and `answers` over `global_step`, which counts through all stages; one run folder is one
    wandb run, however often it is taken up again (its id is in `wandb_id.txt`).

    Args:
        folder: of the run; made where it is not there.
        config: the recipe.
        is_main: whether this process writes; the others only take the same calls.
        console: where lines go, stderr by default; the bar is shown only where that is a terminal.
        found: what earlier sessions of the run could not read -> how often.

    Raises:
        ValueError: wandb is asked for and not installed, or `wandb_id.txt` is damaged.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        is_main: bool,
        console: Console | None = None,
        found: Mapping[str, int] | None = None,
    ):
        self.config, self.is_main, self.folder = config, is_main, folder
        self.sums: dict[str, float] = {}
        self.count = 0
        self.wandb: Any = None
        self.found: dict[str, int] = {**(found or {})}
        """What could not be read and was left out -> how often."""
        ends = accumulate(stage.max_steps for stage in config.stages)
        self.before = {stage.name: end - stage.max_steps for stage, end in zip(config.stages, ends, strict=True)}
        """Name of a stage -> steps of the stages before it."""
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self.console = console or Console(stderr=True)
        self.bar = stage_bar(self.console)
        if config.report_to == "wandb":
            self.wandb = start_wandb(folder, config)

    def say(self, text: str) -> None:
        """A line of its own on the terminal."""
        if self.is_main:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def begin(self, stage: StageConfig, step: int) -> None:
        """A stage begins, or goes on from `step`: from now on a terminal shows a bar for it."""
        if not self.is_main:
            return
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        name = f"{stage.name} ({list(self.before).index(stage.name) + 1}/{len(self.before)})"
        self.bar.add_task(name, total=stage.max_steps, completed=step, loss="-")
        self.bar.start()

    def step(
        self,
        stage: StageConfig,
        step: int,
        values: dict[str, float],
        rate: float,
        norm: float,
        seconds: float,
        left: int,
    ) -> None:
        for name, value in {**values, "grad_norm": norm}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if self.is_main and self.bar.task_ids:
            self.bar.update(self.bar.task_ids[0], completed=step, loss=f"{values['loss']:.3f}")
        if step % self.config.logging_steps and step != stage.max_steps:
            return
        means = {name: round(value / self.count, 5) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        if not self.is_main:
            return
        row = {"stage": stage.name, "step": step, "learning_rate": rate, "seconds": round(seconds, 1), **means}
        if left:
            row["conversations_left_out"] = left
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = " ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "grad_norm")
        self.console.print(f"[bold]{stage.name}[/] {step}/{stage.max_steps} {shown}", highlight=False)
        if self.wandb is not None:
            train = {f"train/{key}": value for key, value in row.items()}
            self.wandb.log({"global_step": self.before[stage.name] + step, **train})

    def problems(self, found: Sequence[str]) -> None:
        """Samples that could not be read (`on_error: count`): kept for the end, and in `problems.jsonl` at once."""
        for text in found:
            self.found[text] = self.found.get(text, 0) + 1
            if self.is_main and self.found[text] == 1:
                with (self.folder / "problems.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"problem": text}) + "\n")

    def panel(self, stage: StageConfig, step: int, picture: Any) -> None:
        """A picture of answers after a step: kept as PNG in the run's folder, and wandb's `answers`."""
        if not self.is_main:
            return
        picture.save(self.folder / f"{stage.name}-{step:06d}.png")
        if self.wandb is not None:
            import wandb

            image = wandb.Image(picture, caption=f"{stage.name}, step {step}")
            self.wandb.log({"global_step": self.before[stage.name] + step, "answers": image})

    def close(self) -> None:
        if self.is_main:
            self.bar.stop()
        if self.is_main and self.found:
            total, kept = sum(self.found.values()), self.folder / "problems.jsonl"
            lines = [
                f"left out, unreadable or on a list of what to drop: {total}, {len(self.found)} different, in {kept}"
            ]
            lines += [f"  {count} x {text}" for text, count in list(self.found.items())[:NUM_LISTED]]
            for line in lines:
                self.say(line)
        if self.wandb is not None:
            self.wandb.finish()


class Speed(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:.2f} steps/s", style="progress.data.speed")


def stage_bar(console: Console) -> Progress:
    """A bar below the lines: stage, step, loss, steps per second, time left; nothing in a file, a pipe or a log."""
    return Progress(
        TextColumn("{task.description}", style="bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        Speed(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
        speed_estimate_period=SPEED_SECONDS,
        transient=True,
        disable=not (console.is_interactive and console.file.isatty()),  # FORCE_COLOR makes no terminal of a file
    )


def start_wandb(folder: Path, config: TrainConfig) -> Any:
    """The wandb run of a run's folder: a new one, or the one that it had."""
    try:
        import wandb
    except ImportError:
        raise ValueError("report_to: wandb needs wandb: pip install 'mglmm[train]'") from None

    run = wandb.init(
        project="mglmm",
        name=folder.name,
        dir=folder,
        id=wandb_id(folder / "wandb_id.txt"),
        resume="allow",
        config=config.model_dump(mode="json"),
        allow_val_change=True,  # what does not change the losses may differ from the run that is taken up again
    )
    # Not wandb's own step: it only grows, and a killed run goes on from its last checkpoint, which is further back.
    run.define_metric("global_step", hidden=True)
    run.define_metric("*", step_metric="global_step")
    return run


def wandb_id(path: Path) -> str:
    """The id kept in a file; where there is none, a new one, which is kept.

    Raises:
        ValueError: the file holds no id.
    """
    if not path.exists():
        write_atomically(path, f"{uuid.uuid4().hex[:8]}\n".encode())
    found = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w-]{1,64}", found, re.ASCII):
        raise ValueError(f"{path} holds {found!r}, not the id of a wandb run; delete it to begin a new one")
    return found
