"""What a grounding stage sees: step -> batch, deterministic by seed, resumable without state."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mglmm.config import StageConfig
from mglmm.inputs import Batch
from mglmm.processor import MglmmProcessor
from mglmm.train.grounding import Joint
from mglmm.train.pretrain import COLOR_NAMES, NOUNS, PARTS, PixelData
from mglmm_data.mixture import Mixture
from mglmm_data.registry import make_source
from mglmm_data.sample import Sample


class GroundingData:
    """Samples of a mixture, augmented, as batches.

    Raises:
        ValueError: a source cannot be read; the message names the file.
    """

    def __init__(self, stage: StageConfig, processor: MglmmProcessor, seed: int, rank: int = 0, world_size: int = 1):
        self.stage, self.processor, self.seed = stage, processor, seed
        self.rank, self.world_size = rank, world_size
        self.pixels = None
        if stage.pixels_batch_size:
            self.pixels = PixelData(seed, stage.pixels_batch_size, processor.side, stage.prompts_per_image)
        sources = {name: make_source(spec) for name, spec in stage.sources.items()}
        weights = {name: stage.weights.get(name, 1.0) for name in sources}
        self.mixture = Mixture(sources, weights, seed=seed, rank=rank, world_size=world_size)
        self.augment = None
        if stage.augment is not None:
            from mglmm.augment import Augment, AugmentConfig
            from mglmm.config import parse

            self.augment = Augment(parse(AugmentConfig, stage.augment, f"stage {stage.name!r}, augment"))

    def __call__(self, step: int) -> tuple[Joint, int]:
        """The batch of a micro-step, and how many conversations were too long for it."""
        size = self.stage.per_device_train_batch_size
        samples = [self.sample(step * size + number) for number in range(size)]
        rng = np.random.default_rng((self.seed, self.rank, step))
        batch, left_out = self.processor.batch(
            samples,
            share_prefix=self.stage.share_prefix,
            max_length=self.stage.max_length,
            masks_per_image=self.stage.masks_per_image,
            original=self.stage.losses.mask_size == "original",
            rng=rng,
        )
        if self.stage.losses.distill > 0:
            batch = replace(batch, attributes=attributes_of(batch, samples))
        pixels = None if self.pixels is None else self.pixels(step, self.rank, self.world_size)
        return Joint(batch, pixels), left_out

    def sample(self, number: int) -> Sample:
        sample = self.mixture.sample(number)
        if self.augment is not None:
            sample = self.augment(sample, np.random.default_rng((self.seed, self.rank, number)))
        return sample


def attributes_of(batch: Batch, samples: list[Sample]) -> dict[str, Tensor]:
    """What each `[SEG]` of a batch should find, read from the labels of world regions.

    Labels are "[size] color category", "color stuff" or "color part of the [size] color category".

    Raises:
        ValueError: a label is not of the world; distillation needs world samples.
    """
    noun, part, color = [], [], []
    for image, index in batch.target_regions:
        region = samples[image].regions[index]
        words, _, owner = region.label.partition(" of the ")
        head = words.split()
        whole = (owner or words).split()
        if not head or whole[-1] not in NOUNS:
            raise ValueError(
                f"region label {region.label!r} of {samples[image].id} is not of the world; set distill: 0"
            )
        noun.append(NOUNS.index(whole[-1]))
        part.append(PARTS.index(head[-1]) if owner else 0)
        named = [word for word in (head if not owner else head[:-1]) if word in COLOR_NAMES]
        color.append(COLOR_NAMES.index(named[0]) if named else 0)
    return {
        "noun": torch.tensor(noun, dtype=torch.long),
        "part": torch.tensor(part, dtype=torch.long),
        "color": torch.tensor(color, dtype=torch.long),
        "box": torch.nan_to_num(cast(Tensor, batch.target_boxes)),
    }


class Steps(Dataset):
    """A callable of the step as a map-style data set, for a DataLoader's workers.

    A `ValueError` (a damaged image, say) is handed over instead of raised: a worker that raises turns its sentence into
    a traceback in the main process. Where it happened travels along as a note.
    """

    def __init__(self, data: Any, length: int):
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Any:
        try:
            return self.data(step)
        except ValueError as error:
            error.add_note(traceback.format_exc())
            return error


def one_thread(_worker: int) -> None:
    """A worker draws and encodes; it must not take the trainer's cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
