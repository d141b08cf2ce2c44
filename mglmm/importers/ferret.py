"""Ferret's spatial-aware visual sampler: a region encoder for models with a CLIP tower, beside the mask mean.

Ferret has no masks, so what is taken from its checkpoints is the sampler (`model.region_geo_sampler.*`; also of the
released deltas to LLaMA, since LLaMA has none). `convert` writes a folder of its own, and `attach` (or
`region_encoder: FOLDER` in a model config) puts it into a model.

Source: ml-ferret `ferret/model/ferret_arch.py` (GeoRegionSampler); Ferret-7B: 512 points, (128, 32) anchors, 24 each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from mglmm.config import parse
from mglmm.folders import replaced_folder
from mglmm.importers.convert import Converted, counted, write_weights
from mglmm.importers.keys import Store, listed, open_store, read_json
from mglmm.importers.lora import without_wrappers
from mglmm.importers.plan import Plan, Take
from mglmm.model import Mglmm
from mglmm.regions_ferret import FerretSampler, FerretSizes

MARK = "model.region_geo_sampler."
BARE = "diff_projector_list."
"""How the keys of a file begin that holds the sampler alone."""
MODEL_TYPE = "mglmm_region_encoder"
PUBLISHED = {"num_points": 512, "anchors": (128, 32), "neighbours": (24, 24)}
NOT_SAMPLER = "of Ferret's language model and projector, which know no masks; only the sampler is taken"
KEYS = {
    r"diff_projector_list\.(\d+)": r"stages.\1.difference",
    r"agg_projector_list\.(\d+)\.net\.0": r"stages.\1.gather",
    r"agg_projector_list\.(\d+)\.norm": r"stages.\1.norm",
    r"flatten_projector": "flatten",
    r"dim_projector": "project",
}
"""Modules of upstream's sampler (patterns) and their names in `FerretSampler`."""

Shapes = Mapping[str, tuple[int, ...]]


def from_upstream(key: str) -> str | None:
    """`dim_projector.weight`, with or without `model.region_geo_sampler.`, to `project.weight`; else None."""
    module, _, leaf = key.removeprefix(MARK).rpartition(".")
    for theirs, ours in KEYS.items():
        if re.fullmatch(theirs, module):
            return f"{re.sub(theirs, ours, module)}.{leaf}"
    return None


def holds_sampler(keys: Iterable[str]) -> bool:
    """Are these the keys of a Ferret, or of its sampler alone."""
    return any(key.startswith((MARK, BARE)) for key in keys)


def widths(shapes: Shapes, where: object) -> tuple[int, int, int, int]:
    """(C, D, anchors of the last stage, stages) of a sampler, under upstream's bare keys.

    Raises:
        ValueError: a layer that tells them is missing, or they contradict each other.
    """
    for key in ("dim_projector.weight", "flatten_projector.weight"):
        if len(shapes.get(key, ())) != 2:
            raise ValueError(f"{where} has no {key} of two dimensions; it is no whole sampler of Ferret: get it again")
    dim, channels = shapes["dim_projector.weight"]
    flat = shapes["flatten_projector.weight"][1]
    if flat % channels:
        raise ValueError(f"{where}: flatten_projector reads {flat} values, which is no multiple of {channels}")
    stages = sum(bool(re.fullmatch(r"diff_projector_list\.\d+\.weight", key)) for key in shapes)
    return channels, dim, flat // channels, stages


def sampler_sizes(
    shapes: Shapes, config: Mapping[str, Any], where: object, given: Mapping[str, Any] | None = None
) -> FerretSizes:
    """Sizes and habits of a published sampler.

    Args:
        shapes: under upstream's bare keys.
        config: the checkpoint's config.json (`sampler_pooler_mode`), or nothing.
        where: named in messages.
        given: fields of `FerretSizes` that overrule what is known.

    Raises:
        ValueError: the weights are not of Ferret-7B's sizes and nobody says which, or the pooling is not known.
    """
    _, _, last, stages = widths(shapes, where)
    found: dict[str, Any] = {**PUBLISHED, **(given or {})}
    if "pooling" not in found:
        if config.get("sampler_pooler_mode") not in ("max", "mean"):
            raise ValueError(
                f"{where}: the weights do not tell how the sampler pools and no config.json says it "
                "(sampler_pooler_mode); give pooling: max (as the released recipe) or mean"
            )
        found["pooling"] = config["sampler_pooler_mode"]
    anchors = tuple(found["anchors"])
    if (len(anchors), anchors[-1]) != (stages, last):
        raise ValueError(
            f"{where} has {stages} stages, the last with {last} anchors; anchors {anchors} do not fit: "
            "give num_points, anchors and neighbours as it was trained"
        )
    habits = {"transpose_compat": True, "corner_compat": True, "knn": "float32"}
    return parse(FerretSizes, {**habits, **found}, f"the sampler in {where}")


def bare_shapes(store: Store) -> dict[str, tuple[int, ...]]:
    """Shapes of the sampler's tensors without their prefix."""
    prefix = MARK if any(key.startswith(MARK) for key in store.entries) else ""
    return {key[len(prefix) :]: shape for key, shape in store.shapes.items() if key.startswith(prefix)}


def sampler_plan(store: Store) -> Plan:
    """What becomes of every key of a Ferret or of its sampler's file."""
    plan = Plan()
    whole = any(key.startswith(MARK) for key in store.entries)
    for key in store.entries:
        ours = from_upstream(key) if key.startswith(MARK) or not whole else None
        if ours is not None:
            plan.takes[ours] = Take(key)
        elif whole and not key.startswith(MARK):
            plan.ignored[key] = NOT_SAMPLER
        else:
            plan.extra.append(key)
    return plan


def sampler_shapes(channels: int, dim: int, sizes: FerretSizes) -> dict[str, tuple[int, ...]]:
    """Key -> shape of our sampler."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in FerretSampler(channels, dim, sizes).state_dict().items()}


def convert(path: str | Path, out: str | Path, *, dtype: torch.dtype | None = None, **given: Any) -> Converted:
    """The sampler of a Ferret checkpoint (a folder, or a file with the sampler alone) to a folder of ours.

    Args:
        out: the folder to write; replaced in one step where it holds a region encoder already.
        dtype: of the weights; by default as stored.
        given: fields of `FerretSizes`, where the checkpoint is not of Ferret-7B's sizes or tells no pooling.

    Raises:
        ValueError: the file is damaged, holds no sampler, or its keys do not fit each other (they are listed).
        OSError: writing failed.
    """
    path, out = Path(path), Path(out)
    store = open_store(path)
    store = store.renamed({key: without_wrappers(key) for key in store.entries})
    if not holds_sampler(store.entries):
        raise ValueError(
            f"{path} holds no sampler of Ferret (no {MARK}* and no {BARE}*; its keys begin with "
            f"{listed(sorted({key.split('.')[0] for key in store.entries}))}); give a Ferret checkpoint"
        )
    if out.exists() and not (out.is_dir() and is_ours(out)) and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no region encoder of ours; give a new folder")
    beside = (path if path.is_dir() else path.parent) / "config.json"
    shapes = bare_shapes(store)
    sizes = sampler_sizes(shapes, read_json(beside) if beside.exists() else {}, path, given)
    channels, dim, _, _ = widths(shapes, path)
    plan = sampler_plan(store)
    plan.check(path, store.shapes, sampler_shapes(channels, dim, sizes))
    content = {
        "model_type": MODEL_TYPE,
        "region_encoder": "ferret",
        "channels": channels,
        "dim": dim,
        "region_config": sizes.model_dump(mode="json"),
    }
    with replaced_folder(out) as fresh:
        write_weights(fresh, plan, store, dtype)
        (fresh / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Converted("ferret", out, len(plan.takes), counted(plan))


def is_ours(folder: Path) -> bool:
    """Is this a folder that `convert` wrote."""
    config = folder / "config.json"
    return config.exists() and read_json(config).get("model_type") == MODEL_TYPE


def load_sampler(folder: str | Path, dtype: torch.dtype = torch.float32) -> FerretSampler:
    """The sampler in a folder that `convert` wrote, in eval mode.

    Raises:
        ValueError: the folder is something else, or its weights do not fit its config.json.
    """
    folder = Path(folder)
    if not is_ours(folder):
        raise ValueError(f"{folder} is no region encoder of ours; write one with mglmm convert FERRET {folder}")
    content = read_json(folder / "config.json")
    try:
        sizes = FerretSizes(**content["region_config"])
        channels, dim = int(content["channels"]), int(content["dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error}); convert the checkpoint again") from None
    store = open_store(folder)
    Plan({key: Take(key) for key in store.entries}).check(folder, store.shapes, sampler_shapes(channels, dim, sizes))
    sampler = FerretSampler(channels, dim, sizes)
    sampler.load_state_dict(store.read(store.entries))
    return cast(FerretSampler, sampler.to(dtype).eval())


def attach(model: Mglmm, folder: str | Path) -> None:
    """Put a converted sampler in the place of a model's region encoder; its config remembers it when saved.

    Regions are then given at the resolution of the CLIP tower's square, so build the processor after this.

    Raises:
        ValueError: the model has no CLIP tower, or its widths are not those the sampler was trained with.
    """
    config = model.config
    if config.vision != "clip":
        raise ValueError("Ferret's sampler reads a CLIP tower, but the model's vision is shared; set vision: clip")
    sampler = load_sampler(folder, model.dtype)
    have = (config.tower().hidden_size, config.language().hidden_size)
    want = (sampler.project.in_features, sampler.project.out_features)
    if have != want:
        raise ValueError(
            f"the sampler in {folder} reads a CLIP tower {want[0]} wide and writes to a language model {want[1]} wide, "
            f"this model's are {have[0]} and {have[1]}; take the sampler of a Ferret of the same size"
        )
    config.region_encoder, config.region_grid = "ferret", config.tower_side
    config.region_config = sampler.sizes.model_dump(mode="json")
    model.region_encoder = sampler.to(model.device)
