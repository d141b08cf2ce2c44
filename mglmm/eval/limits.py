"""What limits a model on the held-out world: its masks when told the answer, and when told what to look for.

Three ways to the same masks. *Free*: the model speaks, the table of `eval.world`. *Told*: it reads the true answer and
only its `[SEG]` states are its own (teacher forcing). *Oracle*: the masks of the true category, part, colour and box,
prompted through the semantic prompt of pixel pre-training; what is missing then is the pixels' fault. Where told and
oracle agree the link from language to mask is no bottleneck; where free lies below told, the words are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mglmm.checkpoint import load_state
from mglmm.eval.report import Row
from mglmm.inputs import Batch
from mglmm.model import Mglmm
from mglmm.processor import MglmmProcessor
from mglmm.train.data import attributes_of
from mglmm.train.grounding import token_loss
from mglmm.train.pretrain import Attributes, PixelPretraining, SemanticPrompt
from mglmm_data.sample import Sample
from mglmm_data.world.source import eval_samples
from sam_bridge.small import SmallBridge

TASKS = ("referring", "panoptic", "fine", "several")


def limits(
    model: Mglmm,
    processor: MglmmProcessor,
    *,
    tasks: Sequence[str] = TASKS,
    count: int,
    seed: int,
    size: int,
    batch_size: int = 16,
    semantic: SemanticPrompt | None = None,
) -> list[Row]:
    """Rows `told` and `oracle` of every grounded task: mean IoU and share over 0.5 of its regions, and cross-entropy.

    Args:
        tasks: some of `TASKS`.
        count: samples a task, the first of those that `eval.world` asks free-running.
        semantic: the prompt of the run's pixel pre-training; without it there is no oracle.
    """
    rows = []
    for task in tasks:
        told: list[float] = []
        oracle: list[float] = []
        entropies: list[tuple[float, int]] = []
        samples = eval_samples(task, count, seed, size)
        while batch := list(islice(samples, batch_size)):
            told_here, oracle_here, entropy = measure(model, processor, batch, semantic)
            told += told_here
            oracle += oracle_here
            entropies.append(entropy)
        tokens = sum(number for _, number in entropies)
        entropy = sum(value * number for value, number in entropies) / tokens
        rows.append(Row(task, "told", "cross-entropy", entropy, tokens, protocol="limits"))
        for name, overlaps in (("told", told), ("oracle", oracle)):
            if overlaps:
                found = np.array(overlaps)
                rows.append(Row(task, name, "mean_iou", float(found.mean()), len(found), protocol="limits"))
                rows.append(Row(task, name, "over@0.5", float((found >= 0.5).mean()), len(found), protocol="limits"))
    return rows


@torch.no_grad()
def measure(
    model: Mglmm, processor: MglmmProcessor, samples: list[Sample], semantic: SemanticPrompt | None
) -> tuple[list[float], list[float], tuple[float, int]]:
    """IoU of every region of the true answers, told and by the oracle, and (cross-entropy, tokens)."""
    batch, left_out = processor.batch(samples)
    if left_out:
        raise ValueError(f"{left_out} true answers of {samples[0].id} to {samples[-1].id} do not fit into the context")
    out = model(batch.to(model.device))
    told = list(overlaps(out.mask_logits, batch, samples))
    oracle: list[float] = []
    if semantic is not None and len(out.mask_logits):
        wanted = {key: value.to(model.device) for key, value in attributes_of(batch, samples).items()}
        assert batch.pixels is not None
        image = model.encode_image(batch.pixels.to(model.device).floats())
        index = torch.tensor([number for number, _ in batch.target_regions], device=model.device)
        masks = model.decode_masks(image.features, semantic(Attributes(**wanted)), index)
        oracle = list(overlaps(masks.logits[:, 0], batch, samples))
    return told, oracle, (float(token_loss(out)), len(out.token_labels))


def overlaps(logits: Tensor, batch: Batch, samples: list[Sample]) -> Iterator[float]:
    """IoU of each `[SEG]`'s mask, at image size, with its region."""
    for (image, region), logit in zip(batch.target_regions, logits.float().cpu(), strict=True):
        mask = (batch.canvases[image].logits_back(logit[None])[0] > 0).numpy()
        true = samples[image].regions[region].mask
        yield float((mask & true).sum() / max((mask | true).sum(), 1))


def load_semantic(model: Mglmm, path: str | Path) -> SemanticPrompt:
    """The semantic prompt out of a run's `state.pt`.

    Raises:
        ValueError: the model has no small backbone, or the file holds no such prompt.
    """
    if not isinstance(model.bridge, SmallBridge):
        raise ValueError(f"{path}: the oracle is of the small backbone, this model has another")
    state: dict[str, Any] = load_state(Path(path))
    own = {key: value for key, value in state.get("pixels", {}).items() if key.startswith("semantic.")}
    if not own:
        raise ValueError(f"{path} holds no semantic prompt; give the state.pt of a run with a pixels stage")
    heads = PixelPretraining(model.bridge)
    heads.semantic.load_state_dict({key.removeprefix("semantic."): value for key, value in own.items()})
    return heads.semantic.to(model.device).eval()
