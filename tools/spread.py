"""How far runs of one recipe lie apart: a shortened budget, several seeds, the scores on the way and in the end.

`python tools/spread.py [configs/train/world.yaml] [--share 0.05] [--seeds 1 2 3]` runs the recipe with every stage
shortened to its share, evaluates after each stage that speaks and half-way through the last one (held-out world,
free-running), and prints the scores of each point and seed, their mean and their spread (greatest less smallest).
Runs and scores are kept below --out: what is done is not done again, a stopped run goes on, and two seeds may run at
the same time as two programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mglmm.config import TrainConfig, override, parse, read_yaml, runs_dir
from mglmm.eval.world import WorldConfig, evaluate_world
from mglmm.grounder import Grounder
from mglmm.train.loop import Trainer

METRICS = {
    "referring": ("cIoU", "gIoU"),
    "present or absent": ("N_acc", "T_acc"),
    "panoptic": ("recall@0.5/thing", "phrase_F1", "PQ"),
    "fine": ("recall@0.5", "phrase_F1"),
    "vqa": ("exact",),
}
"""Entry of the world's report and what of it is compared."""
ASKED = ("referring", "absent", "panoptic", "fine", "vqa")


def shortened(recipe: str, share: float, seed: int, folder: Path) -> TrainConfig:
    """The recipe with another seed and every stage as long as its share of it."""
    data = read_yaml(recipe, "train")
    for stage in data["stages"]:
        stage["max_steps"] = max(2, round(stage["max_steps"] * share))
        stage["warmup_steps"] = min(stage.get("warmup_steps", 50), stage["max_steps"] // 8)
    return parse(TrainConfig, override(data, [f"seed={seed}", f"output_dir={folder}"]), recipe)


def points(config: TrainConfig) -> dict[str, int]:
    """Where scores are taken: name -> steps from the beginning."""
    out, done = {}, 0
    for stage in config.stages:
        if stage.kind == "grounding":
            if stage is config.stages[-1]:
                out[f"half of {stage.name}"] = done + stage.max_steps // 2
            out[stage.name] = done + stage.max_steps
        done += stage.max_steps
    return out


def scores(model: Path, count: int) -> dict[str, float]:
    """The compared scores of a checkpoint, by "task metric"."""
    asked = WorldConfig(tasks=ASKED, count=count, blind=False, resamples=0)
    report = evaluate_world(Grounder.load(model).predict, asked)
    return {f"{task} {name}": report.row(task, name).value for task, names in METRICS.items() for name in names}


def run_seed(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Train one seed as far as it is not yet, keep its scores in `seed-N.json`, and return them by point."""
    config = shortened(arguments.recipe, arguments.share, seed, arguments.out / f"seed-{seed}")
    kept = arguments.out / f"seed-{seed}.json"
    asked = {"recipe": config.model_dump(mode="json"), "count": arguments.count}
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {**asked, "scores": {}}
    if {key: known[key] for key in asked} != asked:
        raise SystemExit(f"{kept} is of another recipe, share or count; give another --out, or delete it and the run")
    for name, steps in points(config).items():
        if name in known["scores"]:
            continue
        trainer = Trainer(config, f"seed-{seed}")
        done = sum(stage.max_steps for stage in config.stages[: trainer.stage_index]) + trainer.step
        if done > steps:
            raise SystemExit(f"{trainer.folder} is at step {done}, past {name!r} at {steps}; delete it and {kept}")
        model = trainer.run(until=steps - done) if done < steps else trainer.folder / "last" / "model"
        known["scores"][name] = scores(model, arguments.count)
        kept.write_text(json.dumps(known, indent=1))
    return known["scores"]


def table(runs: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Table:
    """Scores of every seed: one block a point."""
    drawn = Table("after", "score", *(f"seed {seed}" for seed in runs), "mean", "spread")
    first = next(iter(runs.values()))
    for point in first:
        for name in first[point]:
            values = [run[point][name] for run in runs.values()]
            told = (sum(values) / len(values), max(values) - min(values))
            drawn.add_row(point, name, *(f"{value:.3f}" for value in (*values, *told)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="configs/train/world.yaml")
    parser.add_argument("--share", type=float, default=0.05, help="of each stage's steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--count", type=int, default=100, help="held-out samples a task")
    parser.add_argument("--out", type=Path, default=runs_dir() / "spread")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Console().print(table({seed: run_seed(arguments, seed) for seed in arguments.seeds}))


if __name__ == "__main__":
    main()
