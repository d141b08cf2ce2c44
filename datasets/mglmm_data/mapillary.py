"""Mapillary Vistas v1.2 (66 classes) and v2.0 (124): road scenes; instances too where their maps are there.

The config's `labels` are the classes in the order of the label maps' numbers, `readable` their words. Classes that say
nothing (`void--unlabeled`, `dynamic`, `ground`, `static`) and 255 are no targets. In `instances/` a pixel holds class *
256 + instance.
Source: Neuhold et al., ICCV 2017; the data set's README; LISA's layout `mapillary/{config_v2.0.json, training/...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mglmm_data import masks
from mglmm_data.annotated import Item, Scene
from mglmm_data.images import load_photo
from mglmm_data.index import Strings
from mglmm_data.labelmap import LabelMaps, first_folder, pair, read_labels
from mglmm_data.reading import Problems, read_json, take, take_line, take_list
from mglmm_data.telling import near

VERSIONS = ("v2.0", "v1.2")
VOID = frozenset(f"void--{name}" for name in ("unlabeled", "dynamic", "ground", "static"))
UNLABELLED = 255


class MapillarySource(LabelMaps):
    """A Mapillary Vistas folder as a `Source`.

    Args:
        root: the folder with `config_v2.0.json` (or v1.2, or `config.json`) and `training/`.
        split: training, validation (or `train`, `val`).
        version: v2.0 or v1.2.
        tasks, turns, seed, mirror, on_error: as in `CocoSource`.

    Raises:
        ValueError: the config, a folder or an image is missing, or a label has no name.
    """

    source = "mapillary"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "training",
        version: str = "v2.0",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if version not in VERSIONS:
            raise ValueError(f"version is {version!r}{near(version, VERSIONS)}")
        split = {"train": "training", "val": "validation", "test": "testing"}.get(split, split)
        classes, self._counted = read_config(root, version)
        labels = first_folder(root, (f"{split}/{version}/labels", f"{split}/labels"), "label maps")
        images = first_folder(root, (f"{split}/images",), "photographs")
        problems = Problems(on_error)
        pairs = pair(images, labels, problems)
        super().__init__(
            pairs,
            {number: words for number, words in classes.items() if words},
            ignore=(UNLABELLED, *(number for number, words in classes.items() if not words)),
            problems=problems,
            tasks=tasks,
            turns=turns,
            seed=seed,
            mirror=mirror,
        )
        instances = labels.parent / "instances"
        found = instances.is_dir()
        self._instances = Strings(str(instances / Path(path).name) for _, path in pairs) if found else None
        if found:
            self._teller.kind = self.kind = "instances"

    def scene(self, index: int) -> Scene:
        """The classes of an image, and the instances of those that have them."""
        if self._instances is None:
            return super().scene(index)
        loaded = load_photo(self._images[index])
        path = self._instances[index]
        codes = read_labels(path, loaded.size).astype(np.int32)
        items, rles = [], masks.rles_of_labels((codes >> 8).astype(np.uint8))
        for item in self._items(rles, path):
            if item.name not in self._counted:
                items.append(item)
                continue
            inside = masks.decode(item.rle)
            items += [Item(item.name, masks.encode(inside & (codes == code))) for code in np.unique(codes[inside])]
        return Scene(loaded, items, ignored=self._unknown(rles, loaded.size))


def read_config(root: str | Path, version: str) -> tuple[dict[int, str], set[str]]:
    """Number -> words ("" for what is no target), and the words of classes that have instances."""
    names = (f"config_{version}.json", "config.json")
    path = next((Path(root) / name for name in names if (Path(root) / name).is_file()), Path(root) / names[0])
    classes: dict[int, str] = {}
    counted: set[str] = set()
    labels = take_list(read_json(path, dict), "labels", path)
    if not labels:
        raise ValueError(f"{path}: its list 'labels' is empty; download the config again")
    for number, label in enumerate(labels):
        try:
            words, name = take_line(label, "readable").lower(), take(label, "name", str)
        except ValueError as error:
            raise ValueError(f"{path}: label {number}: {error}; download the config again") from error
        classes[number] = "" if name in VOID else words
        if label.get("instances"):
            counted.add(words)
    return classes, counted
