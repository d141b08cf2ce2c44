"""Fills the folders of a recipe's `features`: `mglmm cache RECIPE`.

SAM's and CLIP's towers stay as they were in the published recipes, and are most of a step; here they see every
photograph once. Stopped, the same command goes on; a photograph that is kept already costs a look at its file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from mglmm.config import TrainConfig
from mglmm.model import Mglmm
from mglmm.precision import has_bf16
from mglmm.processor import MglmmProcessor
from mglmm.train.data import Steps, worker_options
from mglmm.train.features import FeatureFolder, NoPhotoError, name_in
from mglmm.train.loop import load_or_build
from mglmm_data.images import KnownPhotos, as_large_as, known
from mglmm_data.reading import read_sample
from mglmm_data.registry import Source, make_tolerant_source
from sam_bridge.bridge import Frames
from sam_bridge.canvas import Size


@dataclass
class Cached:
    """What `cache` did: photographs seen now, samples whose photograph was kept already, what could not be read."""

    written: int = 0
    there: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Photo:
    """A photograph that is not kept yet, in the encoders' frames."""

    name: str
    size: Size
    pixels: Frames
    clip_pixels: Frames | None


class Photos:
    """Index of a source -> its photograph, or None where that is kept."""

    def __init__(self, source: Source, folder: FeatureFolder, processor: MglmmProcessor) -> None:
        self.source, self.folder, self.processor = source, folder, processor

    def __call__(self, index: int) -> Photo | None:
        photos = KnownPhotos(self.folder.size_of)
        with as_large_as(*self.processor.needed), known(photos):
            sample = read_sample(self.source, index)
        name = name_in(sample, photos)
        if name in self.folder:
            return None
        return Photo(name, sample.size, *self.processor.pixels([sample.image], [sample.size])[:2])


def cache(config: TrainConfig, on_progress: Callable[[str, int, int], None] | None = None) -> Cached:
    """Keep what the encoders see of every photograph of the stages that have `features`.

    Args:
        config: the recipe.
        on_progress: called with (source, samples done, samples in all).

    Raises:
        ValueError: no stage has `features`, a folder is of other encoders, a source draws its pictures, or a sample
            cannot be read and its stage's `on_error` is `fail`.
    """
    stages = [stage for stage in config.stages if stage.features is not None]
    if not stages:
        raise ValueError("no stage of the recipe has features; add features: FOLDER to those that should read them")
    model, processor = load_or_build(config)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    done = Cached()
    for stage in stages:
        folder = FeatureFolder(str(stage.features))
        folder.begin(model)
        for name, spec in stage.sources.items():
            source = make_tolerant_source(spec, stage.on_error, name)
            loader: Any = DataLoader(
                Steps(Photos(source, folder, processor), len(source)),
                batch_size=stage.per_device_train_batch_size,
                collate_fn=list,
                **worker_options(config.dataloader_num_workers),
            )
            finished = 0
            for items in loader:
                for item in items:
                    if isinstance(item, ValueError):
                        if stage.on_error == "fail" or isinstance(item, NoPhotoError):
                            raise item
                        done.problems += (f"source {name!r}: {item}",)
                # a worker that read ahead may not have known what an earlier batch wrote
                fresh = {item.name: item for item in items if isinstance(item, Photo)}
                fresh = {key: item for key, item in fresh.items() if key not in folder}
                keep(model, folder, list(fresh.values()), config.bf16)
                done.written += len(fresh)
                done.there += sum(not isinstance(item, ValueError) for item in items) - len(fresh)
                finished += len(items)
                if on_progress is not None:
                    on_progress(name, finished, len(source))
    return done


def keep(model: Mglmm, folder: FeatureFolder, photos: Sequence[Photo], bf16: bool) -> None:
    """See photographs, in one batch, and write what was seen."""
    if not photos:
        return
    device = model.device
    frames = [each.pixels.to(device).floats() for each in photos]
    clip = [each.clip_pixels.to(device).floats() for each in photos if each.clip_pixels is not None]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, bf16 and has_bf16(device.type == "cuda")):
        seen = model.see(torch.cat(frames), torch.cat(clip) if clip else None)
    folder.write([each.name for each in photos], [each.size for each in photos], seen)
