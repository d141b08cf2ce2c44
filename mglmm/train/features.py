"""What frozen encoders make of photographs, kept in a folder; a stage with `features: FOLDER` reads it back.

A photograph is known by the hash of its file, wherever it lies and in whichever data sets it is. A folder belongs to
one pair of encoders, whose hash stands in `features.json`; `train.caching` fills it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mglmm.answer import write_atomically
from mglmm.inputs import Seen
from mglmm.model import Mglmm
from mglmm_data.images import KnownPhotos
from mglmm_data.sample import Sample
from sam_bridge.bridge import Features
from sam_bridge.canvas import Size

FILE = "features.json"
PHOTO = "photo"
"""Key of `Sample.meta`: the name under which a sample's photograph is kept."""


class NoPhotoError(ValueError):
    """A sample without a photograph of its own: drawn, or put together."""


class FeatureFolder:
    """`FOLDER/ab/abcd....safetensors` for each photograph, float16: the bridge's features and the CLIP layers in use.

    Nothing is read before it is asked for, so that it travels to the loader's workers.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def size_of(self, name: str) -> Size | None:
        """(H, W), px, of a photograph that is kept; None of another."""
        if name not in self:
            return None
        with self._opened(name) as file:
            height, width = json.loads(file.metadata()["size"])
        return height, width

    def load(self, names: Sequence[str]) -> Seen:
        """What was seen of photographs of these names, as one batch."""
        kept: list[dict[str, Tensor]] = []
        for name in names:
            with self._opened(name) as file:
                kept.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        joined = {key: torch.stack([each[key] for each in kept]) for key in kept[0]}
        skips = tuple(joined[f"skip.{number}"] for number in range(sum(key.startswith("skip.") for key in joined)))
        features = Features(embedding=joined["embedding"], tokens=joined.get("tokens"), skips=skips)
        layers = [key.removeprefix("layer.") for key in joined if key.startswith("layer.")]
        return Seen(features, {int(layer): joined[f"layer.{layer}"] for layer in layers})

    def write(self, names: Sequence[str], sizes: Sequence[Size], seen: Seen) -> None:
        """Keep a batch; each photograph in one step, so that a stopped run leaves no half of one."""
        features, states = seen.features, seen.states
        tensors = {"embedding": features.embedding, **{f"skip.{i}": skip for i, skip in enumerate(features.skips)}}
        if features.tokens is not None and not states:  # with a CLIP tower nobody reads them
            tensors["tokens"] = features.tokens
        tensors |= {f"layer.{layer}": state for layer, state in states.items()}
        halves = {key: value.to("cpu", torch.float16) for key, value in tensors.items()}
        for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
            one = {key: value[number].clone(memory_format=torch.contiguous_format) for key, value in halves.items()}
            write_atomically(self.path(name), save(one, metadata={"size": json.dumps(size)}))

    def begin(self, model: Mglmm) -> None:
        """Make the folder the one of this model's encoders.

        Raises:
            ValueError: it holds what other encoders see.
        """
        if (self.folder / FILE).is_file():
            return self.check(model)
        write_atomically(self.folder / FILE, json.dumps({"encoders": fingerprint(model)}).encode())

    def check(self, model: Mglmm) -> None:
        """Raises:
        ValueError: nothing is kept in the folder, or what other encoders see.
        """
        path = self.folder / FILE
        if not path.is_file():
            raise ValueError(f"{self.folder} holds no features (no {FILE}); fill it first: mglmm cache RECIPE")
        if json.loads(path.read_text(encoding="utf-8")).get("encoders") != fingerprint(model):
            raise ValueError(
                f"{self.folder} holds what other encoders see; name another folder under features, "
                "or delete it, and run mglmm cache RECIPE"
            )

    def named(self, sample: Sample, photos: KnownPhotos) -> Sample:
        """A sample that was read among `photos`, with its photograph's name in `meta`.

        Raises:
            ValueError: it has no photograph of its own, or nothing is kept of it.
        """
        name = name_in(sample, photos)
        if name not in self:
            raise ValueError(
                f"{sample.id}: {self.folder} holds no features of its photograph ({name}); run mglmm cache RECIPE again"
            )
        return replace(sample, meta={**sample.meta, PHOTO: name})

    def _opened(self, name: str) -> safe_open:
        try:
            return safe_open(self.path(name), "pt")
        except SafetensorError as error:
            raise ValueError(
                f"{self.path(name)} is damaged ({error}); delete it, and run mglmm cache RECIPE again"
            ) from error


def name_in(sample: Sample, photos: KnownPhotos) -> str:
    """The name of the one photograph that was opened for a sample.

    Raises:
        NoPhotoError: none was opened, or several.
    """
    if len(photos.opened) != 1:
        raise NoPhotoError(
            f"{sample.id}: its picture comes from {len(photos.opened) or 'no'} photographs; "
            "features are kept of one file a sample, train this source without them"
        )
    return photos.opened[0]


def fingerprint(model: Mglmm) -> str:
    """A hash of what decides what is seen: the encoders' weights, as float32, and how pictures reach them."""
    found, config, groups = hashlib.blake2b(digest_size=16), model.config, model.parameter_groups()
    layers = [] if config.vision == "shared" else [model.feature_layer, *model.region_layers]
    found.update(json.dumps([config.vision, config.clip_frame, model.bridge.side, layers]).encode())
    for group in ("encoder", "vision_tower"):
        for key, value in sorted(groups.get(group, {}).items()):
            found.update(key.encode())
            found.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()
