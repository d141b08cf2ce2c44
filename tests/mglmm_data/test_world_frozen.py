"""`world-v1` is a benchmark: its scenes and questions stay as they are, or its version changes."""

import hashlib

from mglmm_data.world.source import WORLD_VERSION, eval_samples
from mglmm_data.world.tasks import TASKS

FROZEN = {"world-v1": ("c791a64bacbd02f0", "71db4c151f54651f")}
"""Version -> digests of questions and answers, and of what is where. Changed scenes need a new version."""


def digests() -> tuple[str, str]:
    texts, places = hashlib.sha256(), hashlib.sha256()
    for task in TASKS:
        for sample in eval_samples(task, 8):
            for turn in sample.conversations[0].turns:
                texts.update(f"{sample.id} {turn.text} {turn.phrases}\n".encode())
            for region in sample.regions:
                places.update(f"{region.label} {[round(v) for v in region.bounds or ()]}\n".encode())
    return texts.hexdigest()[:16], places.hexdigest()[:16]


def test_the_benchmark_has_not_moved():
    assert digests() == FROZEN[WORLD_VERSION], "the held-out world changed: give it a new WORLD_VERSION and digests"
