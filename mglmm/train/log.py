"""What a run writes while it goes: a line on the terminal, JSON lines in its folder, wandb when asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mglmm.config import StageConfig, TrainConfig

NUM_LISTED = 20
"""Problems that are listed on the terminal when a run ends."""


class Log:
    """Means over `logging_steps`, to the terminal (rich), to `log.jsonl` and to wandb."""

    def __init__(self, folder: Path, config: TrainConfig, is_main: bool):
        self.config, self.is_main, self.folder = config, is_main, folder
        self.sums: dict[str, float] = {}
        self.count = 0
        self.wandb: Any = None
        self.found: dict[str, int] = {}
        """What could not be read and was left out -> how often."""
        if not is_main:
            return
        from rich.console import Console

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self.console = Console(stderr=True)
        if config.report_to == "wandb":
            try:
                import wandb
            except ImportError:
                raise ValueError("report_to: wandb needs wandb: pip install 'mglmm[train]'") from None

            self.wandb = wandb.init(project="mglmm", name=folder.name, dir=folder, config=config.model_dump())

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
            self.wandb.log({f"{stage.name}/{key}": value for key, value in row.items() if not isinstance(value, str)})

    def problems(self, found: Sequence[str]) -> None:
        """Samples that could not be read (`on_error: count`): kept for the end, and in `problems.jsonl` at once."""
        for text in found:
            self.found[text] = self.found.get(text, 0) + 1
            if self.is_main and self.found[text] == 1:
                with (self.folder / "problems.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"problem": text}) + "\n")

    def panel(self, name: str, picture: Any) -> None:
        """A picture of an answer, for wandb; kept as PNG in the run's folder either way."""
        if not self.is_main:
            return
        picture.save(self.folder / f"{name}.png")
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(picture)})

    def close(self) -> None:
        if self.is_main and self.found:
            total, kept = sum(self.found.values()), self.folder / "problems.jsonl"
            lines = [f"left out because they could not be read: {total}, {len(self.found)} different, in {kept}"]
            lines += [f"  {count} x {text}" for text, count in list(self.found.items())[:NUM_LISTED]]
            for line in lines:
                self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        if self.wandb is not None:
            self.wandb.finish()
