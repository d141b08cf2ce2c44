"""`merge`: adapters into a base, one of ours or a published one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig

from mglmm.folders import replaced_folder
from mglmm.importers import lora, mglmm_family
from mglmm.importers.convert import Converted, write_weights
from mglmm.importers.families import LANGUAGE, SAM, Family, name_now
from mglmm.importers.keys import Store, open_store, read_json
from mglmm.importers.plan import Plan, Take
from mglmm.importers.registry import FAMILIES, check_out, convert, detect, located, zeroed
from mglmm.templates import FAMILY_OF
from sam_bridge.weights import key_map


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    vision_tower: str | None = None,
    dtype: torch.dtype | None = None,
    sam_decoder_heads: int | None = None,
    lora_alpha: float | None = None,
) -> Converted:
    """Adapters into their base: one of ours, or a published one (which is converted on the way).

    Args:
        base: a folder (of a run, too), `bundled`, or a cached hub name.
        adapter: a peft folder, a weights file with the wrapped model's keys, or DeepSpeed's shards.
        out: see `convert`; so are the others.

    Raises:
        ValueError: the adapters were made for another base; else see `convert`.
    """
    base, adapter, out = located(base), located(adapter), Path(out)
    store = open_store(base) if not lora.is_zero(base) else None
    if store is None or detect(store) != "ours":
        return convert(
            base,
            out,
            vision_tower=vision_tower,
            dtype=dtype,
            sam_decoder_heads=sam_decoder_heads,
            lora_alpha=lora_alpha,
            adapter=adapter,
        )
    check_out(base, out)
    store = store.renamed({key: name_now(key) for key in store.entries})
    with tempfile.TemporaryDirectory(prefix="mglmm-zero-") as scratch:
        more = lora.unwrap(open_store(zeroed(adapter, scratch, "adapter")), lora_alpha)
        unwrapped = lora.merged_with(store, in_our_names(more, store))
        plan = Plan({key: Take(key) for key in store.entries})
        names = {key: key for key in store.entries}
        plan = lora.with_adapters(plan, unwrapped, names)
        with replaced_folder(out) as fresh:
            for file in base.iterdir():
                if file.suffix != ".safetensors" and not file.name.endswith(".index.json") and file.is_file():
                    shutil.copy2(file, fresh / file.name)
            write_weights(fresh, plan, unwrapped.store, dtype)
    return Converted("ours", out, len(plan.takes), {}, (*more.notes, *lora.base_note(adapter, base)))


def in_our_names(adapter: lora.Unwrapped, base: Store) -> lora.Unwrapped:
    """An adapter's checkpoint under the keys of one of our checkpoints, whatever model it was trained on."""
    config = read_json(base.path / "config.json")
    kind = FAMILIES.get(FAMILY_OF.get(str(config.get("prompt_format")), "")) or mglmm_family.FAMILY
    kind = replace(kind, projector=config.get("projector") or kind.projector)
    told = config.get("sam_config") or {}
    sam = {key: value for key, value in told.items() if key not in ("model_type", "transformers_version")}
    segmenter = {kind.sam + theirs: SAM + ours for theirs, ours in key_map(SamConfig(**sam)).items()} if sam else {}
    name = renamer(kind, base.entries, segmenter)
    entries = {
        key if key.startswith(lora.ADAPTER) else name(key): entry for key, entry in adapter.store.entries.items()
    }
    adapters = tuple((name(layer), a, b, scale) for layer, a, b, scale in adapter.adapters)
    return lora.Unwrapped(Store(adapter.store.path, entries), adapters, adapter.notes)


def renamer(kind: Family, ours: Mapping[str, Any], segmenter: Mapping[str, str]) -> Callable[[str], str]:
    """A function from a key of our model, of Hugging Face's LLaVA or of the original layout to our key.

    `segmenter`: ours by the original layout's, for SAM.
    """

    def name(key: str) -> str:
        for candidate in (key, f"llava.{key}", f"{LANGUAGE}{key}", segmenter.get(key), kind.ours(key)):
            if candidate is not None and name_now(candidate) in ours:
                return name_now(candidate)
        return key

    return name
