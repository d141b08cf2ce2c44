"""The doors: which family a checkpoint is of, `convert` and `merge`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from mglmm.config import BUNDLED
from mglmm.folders import replaced_folder
from mglmm.importers import convert as making
from mglmm.importers import ferret, glamm, lisa, llava, lora, mglmm_family
from mglmm.importers.convert import Converted
from mglmm.importers.families import INSIDE_TOWER, TOWER, Family, heads_note
from mglmm.importers.keys import Store, listed, open_store, read_json
from mglmm.importers.plan import Plan
from mglmm.importers.tokenizer import legacy_tokenizer, original_size
from mglmm.importers.tower import check_tower, find_tower, tower_folder, tower_note, with_tower
from mglmm.model_config import MglmmConfig
from mglmm.processor import MglmmProcessor
from mglmm.templates import PromptFormat
from mglmm.tokenizer import tokenizer_hash
from mglmm.tokens import special_ids

FAMILIES: dict[str, Family] = {each.FAMILY.name: each.FAMILY for each in (lisa, glamm, mglmm_family)}
OTHERS = {
    "llava": ("model.mm_projector.", "LLaVA in its original layout"),
    "llava-hf": ("multi_modal_projector.", "a LLaVA in Hugging Face's layout"),
    "ferret": (ferret.MARK, "a Ferret, or its sampler alone"),
    "sam": ("image_encoder.patch_embed.", "an official SAM"),
    "ours": ("llava.", "a checkpoint of ours"),
}
"""Layouts that are no grounding model of others, and what tells them."""
WAYS = {
    "llava": "mglmm convert writes it in Hugging Face's layout",
    "llava-hf": "name it as `llava:` in a model config (configs/model/llava_7b_sam_h.yaml)",
    "sam": "name it as `sam:` in a model config (configs/model/llava_7b_sam_h.yaml)",
    "ferret": "mglmm convert writes its sampler as a region encoder",
    "ours": "it needs no conversion: mglmm ask --model FOLDER",
}


def located(path: str | Path) -> Path:
    """The folder or file meant: a path, the last checkpoint of a run's folder, `bundled`, or a cached hub name.

    Raises:
        ValueError: there is none.
    """
    where = BUNDLED if str(path) == "bundled" else Path(path).expanduser()
    if where.exists():
        last = where / "last" / "model"
        return last if (last / "config.json").is_file() else where
    cached = tower_folder(str(path), Path())
    if cached is None:
        hub = str(path).count("/") == 1 and not str(path).startswith((".", "/", "~"))
        way = f"download it (hf download {path})" if hub else "check the path"
        raise ValueError(f"no checkpoint at {path} on this machine; {way}")
    return cached


def detect(store: Store) -> str:
    """The family of a checkpoint by its keys, wrappers taken off; a name of `FAMILIES` or `OTHERS`.

    Raises:
        ValueError: the keys are of no layout known here, or of two.
    """
    keys = [lora.without_wrappers(key) for key in store.entries]
    if ferret.holds_sampler(keys):
        return "ferret"
    found = [family.name for family in FAMILIES.values() if any(key.startswith(family.mark) for key in keys)]
    if not found:
        marks = {name: mark for name, (mark, _) in OTHERS.items()}
        found = [
            name for name, mark in marks.items() if any(key.removeprefix("model.").startswith(mark) for key in keys)
        ]
        found = found or [name for name, mark in marks.items() if any(key.startswith(mark) for key in keys)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{store.path} has keys of {' and of '.join(found)}; it is not one checkpoint")
    groups = sorted({".".join(key.split(".")[:2]) for key in keys})
    if any(lora.LORA.fullmatch(key) for key in keys):
        raise ValueError(
            f"{store.path} holds adapters without the model they belong to; merge them into their base: "
            f"mglmm merge BASE {store.path} OUT"
        )
    raise ValueError(
        f"{store.path} is of no family known here (its keys begin with {listed(groups)}); known are "
        f"{', '.join([*FAMILIES, *OTHERS])}"
    )


def agreed(store: Store, named: str | None = None) -> str:
    """The family that the keys tell; `named` must be the same.

    Raises:
        ValueError: no such family, or another one than named.
    """
    if named is not None and named not in FAMILIES and named not in OTHERS:
        raise ValueError(f"unknown family {named!r}; known: {', '.join([*FAMILIES, *OTHERS])}")
    found = detect(store)
    if named is not None and named != found:
        what = FAMILIES[found].mark if found in FAMILIES else OTHERS[found][0]
        raise ValueError(
            f"{store.path} is a checkpoint of {found}, not of {named}: its keys hold {what}*; "
            f"leave --family out, or give --family {found}"
        )
    return found


def family_of(store: Store, named: str | None = None) -> Family:
    """The family of a grounding checkpoint; see `agreed`.

    Raises:
        ValueError: it is no grounding checkpoint.
    """
    found = agreed(store, named)
    if found in FAMILIES:
        return FAMILIES[found]
    raise ValueError(f"{store.path} is {OTHERS[found][1]}, not a grounding model to convert; {WAYS[found]}")


def convert(
    path: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    vision_tower: str | None = None,
    dtype: torch.dtype | None = None,
    sam_decoder_heads: int | None = None,
    lora_alpha: float | None = None,
    adapter: str | Path | None = None,
    region: Mapping[str, Any] | None = None,
) -> Converted:
    """A published checkpoint to one of ours.

    Args:
        path: a folder with weights, config.json and the tokenizer's files.
        out: the folder to write; replaced in one step where it is a checkpoint already.
        family: what the caller takes it for; by default its keys tell.
        vision_tower: folder (or cached hub name) of the CLIP; by default the one that config.json names.
        dtype: of the weights; by default as stored.
        sam_decoder_heads: attention heads of SAM's mask decoder; see `families.decoder_heads_of`.
        lora_alpha: of unmerged adapters, where nothing beside them says it.
        adapter: adapters (peft folder, or a weights file) to merge while converting.
        region: sizes and habits of the region encoder that overrule what the family was trained with; fields of
            `GlammSizes` (`box_side`) and `FerretSizes` (`pooling`, `transpose_compat`, `knn`).

    Raises:
        ValueError: the checkpoint is damaged, incomplete, of another family, or its parts do not fit; says which.
        OSError: writing failed.
    """
    path, out = located(path), Path(out)
    check_out(path, out)
    with tempfile.TemporaryDirectory(prefix="mglmm-zero-") as scratch:
        stored = open_store(zeroed(path, scratch, "base"))
        unwrapped = lora.unwrap(stored, lora_alpha)
        if adapter is not None:
            more = lora.unwrap(open_store(zeroed(located(adapter), scratch, "adapter")), lora_alpha)
            unwrapped = lora.merged_with(unwrapped.store, more)
            unwrapped = replace(unwrapped, notes=(*unwrapped.notes, *lora.base_note(located(adapter), path)))
        elif lora.is_bare(unwrapped):
            raise ValueError(
                f"{path} holds adapters, not the weights they were trained on; "
                f"merge them into their base: mglmm merge BASE {path} {out}"
            )
        name = agreed(unwrapped.store, family)
        if name == "llava":
            return llava.convert(unwrapped, path, out, vision_tower, dtype)
        if name == "ferret":
            return ferret.convert(path, out, dtype=dtype, **(region or {}))
        kind, form = family_of(unwrapped.store), lisa.form_of(name, stored.entries)
        return convert_family(kind, form, unwrapped, path, out, vision_tower, dtype, sam_decoder_heads, region)


def convert_family(
    kind: Family,
    form: PromptFormat,
    unwrapped: lora.Unwrapped,
    path: Path,
    out: Path,
    vision_tower: str | None,
    dtype: torch.dtype | None,
    sam_decoder_heads: int | None,
    region: Mapping[str, Any] | None = None,
) -> Converted:
    """`convert` for a grounding model; see there."""
    folder = path if path.is_dir() else path.parent
    published = read_json(folder / "config.json")
    kind = kind.as_stored(unwrapped.store.shapes, published)
    tower = find_tower(vision_tower, published, folder)
    rows = making.embedding_rows(unwrapped.store)
    tokenizer = legacy_tokenizer(folder, kind.name)
    making.check_vocabulary(folder, original_size(folder), rows, published)
    ids = special_ids(tokenizer, form.region)
    shapes = unwrapped.store.shapes
    check_tower(path, shapes, tower)
    sam = kind.sam_config(shapes, sam_decoder_heads)
    config = making.mglmm_config(
        kind,
        making.llava_config(published, rows, tower.config, ids.image, folder),
        sam,
        kind.region_settings(shapes, published, region),
        seg_token_id=ids.seg,
        region_token_id=ids.region,
        prompt_format=form.name,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    processor = MglmmProcessor(tokenizer, config, tower.image_processor)
    store = with_tower(unwrapped.store, tower)
    plan = planned(kind, store, unwrapped, sam)
    plan.check(path, store.shapes, making.wanted_shapes(config), kind.theirs(sam))
    with replaced_folder(out) as fresh:
        making.write_weights(fresh, plan, store, dtype)
        cast(Any, config).architectures = ["Mglmm"]
        config.save_pretrained(fresh)
        processor.save_pretrained(fresh)
    notes = (*unwrapped.notes, *zero_note(path), *tower_note(tower, published, vision_tower))
    notes += () if sam_decoder_heads else heads_note(sam)
    return Converted(kind.name, out, len(plan.takes), making.counted(plan), notes)


def planned(kind: Family, store: Store, unwrapped: lora.Unwrapped, sam: Any) -> Plan:
    """The plan of a checkpoint with its tower, adapters in their places."""
    plan = kind.plan(store, sam)
    names = {take.key: ours for ours, take in plan.takes.items()}
    names |= {INSIDE_TOWER + key.removeprefix(TOWER): names[key] for key in [*names] if key.startswith(TOWER)}
    return lora.with_adapters(plan, lora.Unwrapped(store, unwrapped.adapters), names)


def zeroed(path: Path, scratch: str, name: str) -> Path:
    """The path, or where DeepSpeed's shards of it were put together."""
    return lora.from_zero(path, Path(scratch, name)) if lora.is_zero(path) else path


def zero_note(path: Path) -> tuple[str, ...]:
    """What to say where a folder holds whole weights and DeepSpeed's shards beside them."""
    if not path.is_dir() or lora.is_zero(path) or not any(path.rglob(lora.ZERO)):
        return ()
    return (
        f"DeepSpeed's shards in {path} were left out, whole weights lie beside them; to take them give their folder",
    )


def check_out(path: Path, out: Path) -> None:
    """Raise ValueError where writing `out` would destroy something else than a checkpoint of ours."""
    if out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise ValueError(f"{out} is the checkpoint itself; give another folder to write to")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder to write to")
    if out.is_dir() and any(out.iterdir()):
        config = out / "config.json"
        if not config.exists() or read_json(config).get("model_type") not in (MglmmConfig.model_type, "llava"):
            raise ValueError(f"{out} is not empty and holds no checkpoint; give a new folder")
