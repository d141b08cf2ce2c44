"""What a grounding stage sees: step -> batch, deterministic by seed, resumable without state."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mglmm.config import StageConfig
from mglmm.inputs import Batch
from mglmm.processor import MglmmProcessor, nothing_in
from mglmm.train.features import PHOTO, FeatureFolder
from mglmm.train.grounding import Joint
from mglmm.train.kin import kin_of, world_label
from mglmm.train.pretrain import COLOR_NAMES, NOUNS, PARTS, PixelData
from mglmm_data.batches import Extent, plan
from mglmm_data.images import KnownPhotos, as_large_as, known
from mglmm_data.mixture import Mixture
from mglmm_data.registry import Source, make_tolerant_source
from mglmm_data.sample import Sample


@dataclass(frozen=True)
class LeftOut:
    """What a batch had to do without."""

    conversations: int = 0  # too long for `max_length`
    problems: tuple[str, ...] = ()  # why samples could not be read, with `on_error: count`

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.conversations + other.conversations, self.problems + other.problems)


def open_sources(stage: StageConfig) -> dict[str, Source]:
    """The sources of a stage by name.

    Raises:
        ValueError: one cannot be read; the message names the file.
    """
    return {name: make_tolerant_source(spec, stage.on_error, name) for name, spec in stage.sources.items()}


class GroundingData:
    """Samples of a mixture, augmented, as batches.

    Args:
        sources: the stage's, where they are open already.

    With `batch_window` above 1, the samples of so many consecutive batches are shared out among them by length; which
    sample is in which batch depends on the seed, the rank and the step alone.

    Raises:
        ValueError: a source cannot be read; the message names the file.
    """

    def __init__(
        self,
        stage: StageConfig,
        processor: MglmmProcessor,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sources: dict[str, Source] | None = None,
    ):
        self.stage, self.processor, self.seed = stage, processor, seed
        self.rank, self.world_size = rank, world_size
        self.pixels = None
        if stage.pixels_batch_size:
            self.pixels = PixelData(seed, stage.pixels_batch_size, processor.side, stage.prompts_per_image)
        sources = open_sources(stage) if sources is None else sources
        self.problems = tuple(
            f"source {name!r}: {text}"
            for name, source in sources.items()
            for text in (*getattr(source, "dropped", ()), *getattr(getattr(source, "problems", None), "found", ()))
        )
        """What the sources left out of their files: with `on_error: count`, and by their lists of what to `drop`."""
        times, given = stage.multiplicities, stage.multiplicities or stage.weights
        shares = {name: given.get(name, 1.0) for name in sources}
        self.mixture = Mixture(
            sources,
            None if times else shares,
            multiplicities=shares if times else None,
            temperature=stage.temperature,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self._window: tuple[int, list[list[Sample]], list[str]] = (-1, [], [])
        self.features = None if stage.features is None else FeatureFolder(stage.features)
        self.augment, smallest = None, 1.0
        if stage.augment is not None:
            from mglmm.augment import Augment, AugmentConfig
            from mglmm.config import parse

            self.augment = Augment(parse(AugmentConfig, stage.augment, f"stage {stage.name!r}, augment"))
            smallest = self.augment.config.smallest_crop if self.augment.config.crop else 1.0
        longer, shorter = processor.needed
        self.needed = math.ceil(longer / smallest), math.ceil(shorter / smallest)
        """Longer and shorter side, px, to which photographs are decoded: what a crop shows is as sharp as a whole."""

    def __call__(self, step: int) -> tuple[Joint, LeftOut]:
        """The batch of a micro-step, and what was left out of it."""
        window, place = divmod(step, self.stage.batch_window)
        if self._window[0] != window:
            self._window = (window, *self._read(window))
        _, batches, problems = self._window
        samples = batches[place]
        rng = np.random.default_rng((self.seed, self.rank, step))
        batch, left_out = self.processor.batch(
            samples,
            share_prefix=self.stage.share_prefix,
            max_length=self.stage.max_length,
            masks_per_image=self.stage.masks_per_image,
            original=self.stage.losses.mask_size == "original",
            rng=rng,
            seen=None if self.features is None else self.features.load([sample.meta[PHOTO] for sample in samples]),
        )
        if self.stage.losses.distill > 0:
            batch = replace(batch, attributes=attributes_of(batch, samples))
        if self.stage.losses.kin > 0:
            batch = replace(batch, kin=kin_of(samples, 2 * round(self.processor.encoder.num_image**0.5)))
        pixels = None if self.pixels is None else self.pixels(step, self.rank, self.world_size)
        return Joint(batch, pixels), LeftOut(left_out, () if place else tuple(problems))

    def _read(self, window: int) -> tuple[list[list[Sample]], list[str]]:
        """The samples of a window's batches, and what went wrong with others."""
        num_batches = self.stage.batch_window
        size = num_batches * self.stage.per_device_train_batch_size
        samples, problems = self._draw(range(window * size, (window + 1) * size))
        if len(samples) < num_batches:
            raise ValueError(
                f"only {len(samples)} of {size} samples in a row could be read; the first of them: {problems[0]}; "
                "mend the data, mglmm check-data lists what is wrong"
            )
        if num_batches == 1:
            return [samples], problems
        batches = plan([self._extent(sample) for sample in samples], num_batches, f"{self.seed}:{window}")
        return [[samples[number] for number in batch] for batch in batches], problems

    def _draw(self, numbers: Sequence[int], whole: bool = False) -> tuple[list[Sample], list[str]]:
        samples, problems = [], []
        self.mixture.fetch(numbers)
        for number in numbers:
            try:
                sample = self.sample(number, whole=whole)
                if self.stage.on_error == "count":
                    self._check(sample)
                samples.append(sample)
            except ValueError as error:
                if self.stage.on_error == "fail":
                    raise
                name, index, _ = self.mixture.at(number)
                problems.append(f"source {name!r}, sample {index}: {error}")
        return samples, problems

    def _check(self, sample: Sample) -> None:
        """Raise ValueError where nothing of a sample can be learnt from: said as the processor says it of a batch."""
        rows, left_out = self.processor.encoder.rows(sample, self.stage.share_prefix, self.stage.max_length)
        if not rows:
            raise ValueError(nothing_in([sample], left_out, self.stage.max_length))

    def shown(self, count: int) -> list[Sample]:
        """Those of the first `count` draws that can be read, to be looked at."""
        return [sample for sample in self._draw(range(count), whole=True)[0] if sample.conversations]

    def _extent(self, sample: Sample) -> Extent:
        rows, _ = self.processor.encoder.rows(sample, self.stage.share_prefix, self.stage.max_length)
        masks, most = sum(len(row.targets) for row in rows), self.stage.masks_per_image
        return Extent(tuple(len(row.ids) for row in rows), masks if most is None else min(masks, most))

    def sample(self, number: int, *, whole: bool = False) -> Sample:
        """A draw of this rank, augmented; its photograph decoded `whole`, or only as large as the model needs.

        Where features are kept, no photograph is decoded.
        """
        if self.features is not None and not whole:
            photos = KnownPhotos(self.features.size_of)
            with known(photos):
                return self.features.named(self.mixture.sample(number), photos)
        with nullcontext() if whole else as_large_as(*self.needed):
            sample = self.mixture.sample(number)
        if self.augment is not None:
            sample = self.augment(sample, np.random.default_rng((self.seed, self.rank, number)))
        return sample


def attributes_of(batch: Batch, samples: list[Sample]) -> dict[str, Tensor]:
    """What each `[SEG]` of a batch should find, read from the labels of world regions.

    Raises:
        ValueError: a label is not of the world; distillation needs world samples.
    """
    labels = [(samples[image].id, samples[image].regions[index].label) for image, index in batch.target_regions]
    found = [world_label(label, where, "distill") for where, label in labels]
    return {
        "noun": torch.tensor([NOUNS.index(each.noun) for each in found], dtype=torch.long),
        "part": torch.tensor([PARTS.index(each.part) for each in found], dtype=torch.long),
        "color": torch.tensor([COLOR_NAMES.index(each.color) for each in found], dtype=torch.long),
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


def worker_options(workers: int) -> dict[str, Any]:
    """How a DataLoader starts so many workers; with 0 this process reads."""
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "worker_init_fn": one_thread, "multiprocessing_context": "fork"}


def batches(data: Callable[[int], Any], stage: StageConfig, step: int, workers: int) -> Iterator[Any]:
    """What `data` gives for each micro-step of a stage from `step` on, drawn ahead by worker processes.

    Raises:
        ValueError: a sample cannot be read; the message names its file.
    """
    accumulate = stage.gradient_accumulation_steps
    first, last = step * accumulate, stage.max_steps * accumulate
    window = stage.batch_window  # a worker takes a whole window, so that no other reads its samples again
    starts = [first, *range(first - first % window + window, last, window)]
    loader = DataLoader(
        Steps(data, last),
        batch_sampler=[list(range(a, b)) for a, b in zip(starts, [*starts[1:], last], strict=True)],
        collate_fn=list,
        prefetch_factor=(4 if window == 1 else 2) if workers else None,
        **worker_options(workers),
    )
    for items in loader:
        for item in items:
            if isinstance(item, ValueError):
                raise item
            yield item
