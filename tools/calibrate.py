"""Fit the probabilities that there is no target and that an instance is right, on scenes that nothing else sees.

    python tools/calibrate.py RUN/last/model            # fits, and writes it into the checkpoint's config
    python tools/calibrate.py RUN/last/model --count 50 --dry-run

Source of the scenes: the last million training seeds, which neither a recipe nor an evaluation reaches. See
mglmm/confidence.py, and `GenerationOptions.no_target_threshold`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm.answer import Answer, write_atomically
from mglmm.confidence import FEATURES, confidence, fit
from mglmm.eval.calibration import BINS, judged
from mglmm.eval.protocol import Item
from mglmm.eval.world import VOCABULARY
from mglmm.generate import Generated
from mglmm.grounder import Grounder
from mglmm.model_config import MglmmConfig
from mglmm_data.world.source import calibration_samples

PRESENT, ABSENT = ("referring", "several"), ("absent",)
"""Tasks that share their wordings; what they ask for is there, and is not."""
TASKS = ("panoptic", "fine", "referring", "several", "absent", "reasoning")
BATCH = 32


class Listening(Grounder):
    """A grounder that keeps the evidence of every instance it scores and the odds of every refusal, in order."""

    heard: list[np.ndarray]
    odds: list[float]

    def finish(self, pixels: Any, images: Any, prepared: Any, generated: Sequence[Generated]) -> list[Answer]:
        self.odds += [each.refusal for each in generated]
        return super().finish(pixels, images, prepared, generated)

    def evidence(self, *arguments: Any) -> np.ndarray:
        values = super().evidence(*arguments)
        self.heard.append(values)
        return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--count", type=int, default=150, help="questions a task")
    parser.add_argument("--dry-run", action="store_true", help="fit and print, but write nothing")
    arguments = parser.parse_args()
    if not arguments.dry_run and not Path(arguments.checkpoint).is_dir():
        parser.error(f"{arguments.checkpoint} is no folder to write into; give a checkpoint's folder, or --dry-run")
    grounder = Listening.load(arguments.checkpoint)
    assert isinstance(grounder, Listening)
    config = grounder.model.config
    config.refusal, config.no_target_threshold = fit_refusals(grounder, 4 * arguments.count)
    config.confidence = [0.0] * (len(FEATURES) + 1)  # so that evidence is asked for
    values, right = [], []
    for task in TASKS:
        items = [Item(s, s.conversations[0]) for s in calibration_samples(task, arguments.count)]
        for start in range(0, len(items), BATCH):
            grounder.heard = []
            batch = items[start : start + BATCH]
            answers = grounder.predict([item.query for item in batch])
            pairs = zip(batch, answers, strict=True)
            verdicts = [is_right for item, answer in pairs for _, is_right in judged(item, answer, VOCABULARY)]
            assert len(verdicts) == len(grounder.heard)
            values += grounder.heard
            right += verdicts
        print(f"{task}: {len(right)} instances so far, {np.mean(right):.0%} right")
    x, y = np.stack(values), np.array(right)
    half = np.arange(len(x)) % 2 == 0
    trial = fit(x[half], y[half])
    scores = np.array([confidence(row, trial) for row in x[~half]])
    print(f"ECE of a fit on one half, measured on the other: {expected_error(scores, y[~half]):.3f}")
    config.confidence = fit(x, y)
    for name, weight in zip((*FEATURES, "bias"), config.confidence, strict=True):
        print(f"{name:14}{weight:8.3f}")
    if not arguments.dry_run:
        write_config(config, Path(arguments.checkpoint))
        print(f"written to {arguments.checkpoint}")


def fit_refusals(grounder: Listening, count: int) -> tuple[list[float], float]:
    """Scale and bias that make the odds of "There is no" a probability, where half of what is asked for is there.

    Returns:
        [scale, bias], and the probability at which what is there is refused as often as what is not there is found.
    """
    config, options = grounder.model.config, grounder.options
    config.refusal, grounder.odds, grounder.heard = None, [], []
    # The first token says it; with a budget of one, the grammar would let no phrase begin.
    grounder.options = options.model_copy(update={"max_new_tokens": 1, "grammar": False})
    absent = []
    for task in (*PRESENT, *ABSENT * len(PRESENT)):  # so that both kinds weigh the same
        items = [Item(s, s.conversations[0]) for s in calibration_samples(task, count)]
        for start in range(0, len(items), BATCH):
            grounder.predict([item.query for item in items[start : start + BATCH]])
        absent += [task in ABSENT] * len(items)
    grounder.options = options
    odds, wrong = np.clip(grounder.odds, -30, 30), np.array(absent)
    scale, bias = fit(odds[:, None], wrong)
    if scale <= 0:
        raise SystemExit(f"the odds of a refusal tell nothing (scale {scale:.3f}); train further, nothing was written")
    even = even_cut(odds, wrong)
    threshold = 1 / (1 + math.exp(-bias - scale * even))
    for name, cut in (("as it is", 0.0), ("calibrated", -bias / scale), ("even errors", even)):
        refused = odds > cut
        print(f"{name}: {refused[wrong].mean():.3f} of absent refused, {1 - refused[~wrong].mean():.3f} of present not")
    print(f"refusal: scale {scale:.3f}, bias {bias:.3f}; even errors from {threshold:.3f} on")
    return [scale, bias], threshold


def even_cut(odds: np.ndarray, absent: np.ndarray) -> float:
    """The odds above which to refuse, so that both errors are as frequent: absent things found, present ones refused.

    Args:
        odds: float[n], log-odds of a refusal.
        absent: bool[n], what should be refused.
    """
    cuts = np.sort(odds)
    cuts = (cuts[1:] + cuts[:-1]) / 2
    found = np.searchsorted(np.sort(odds[absent]), cuts) / absent.sum()
    refused = 1 - np.searchsorted(np.sort(odds[~absent]), cuts) / (~absent).sum()
    return float(cuts[np.abs(found - refused).argmin()])


def write_config(config: MglmmConfig, folder: Path) -> None:
    """Replace `config.json` in one step: a full disk or a crash leaves the checkpoint as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        write_atomically(folder / "config.json", (Path(scratch) / "config.json").read_bytes())


def expected_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over equal bins."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    return sum(abs((scores - right)[place == each].sum()) for each in range(BINS)) / len(scores)


if __name__ == "__main__":
    main()
