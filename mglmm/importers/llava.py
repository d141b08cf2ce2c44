"""LLaVA-1.5 in its original layout to Hugging Face's, from which a model config builds (`llava: FOLDER`).

Source: LLaVA `llava/model/llava_arch.py` (mm_projector_type mlp2x_gelu); transformers `modeling_llava.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mglmm.folders import replaced_folder
from mglmm.importers import convert as making
from mglmm.importers.convert import Converted
from mglmm.importers.families import Family
from mglmm.importers.keys import read_json
from mglmm.importers.lora import Unwrapped, with_adapters
from mglmm.importers.tokenizer import legacy_tokenizer, original_size
from mglmm.importers.tower import check_tower, find_tower, tower_note, with_tower
from mglmm.tokens import IMAGE

FAMILY = Family(name="llava", title="LLaVA", mark="model.mm_projector.", sam="")
INSIDE = "llava."
"""What our own names of a LLaVA's tensors begin with; Hugging Face's do not."""


def convert(
    unwrapped: Unwrapped, path: Path, out: Path, vision_tower: str | None, dtype: torch.dtype | None
) -> Converted:
    """Write Hugging Face's layout to `out`; see `mglmm.importers.convert`.

    Raises:
        ValueError: parts are missing or do not fit, or the projector is LLaVA-1's single Linear.
    """
    folder = path if path.is_dir() else path.parent
    published = read_json(folder / "config.json")
    if "model.mm_projector.weight" in unwrapped.store.entries:
        raise ValueError(
            f"{path} is a LLaVA-1 with one Linear as projector, which Hugging Face's layout has no place for; "
            "take a LLaVA-1.5, or the LISA that was trained from it"
        )
    tower = find_tower(vision_tower, published, folder)
    check_tower(path, unwrapped.store.shapes, tower)
    rows = making.embedding_rows(unwrapped.store)
    tokenizer = legacy_tokenizer(folder, FAMILY.name)
    making.check_vocabulary(folder, original_size(folder), rows, published)
    image = cast(int, tokenizer.convert_tokens_to_ids(IMAGE))
    config = making.llava_config(published, rows, tower.config, image, folder)
    store = with_tower(unwrapped.store, tower)
    names = {layer: ours for layer, *_ in unwrapped.adapters if (ours := FAMILY.ours(layer)) is not None}
    plan = with_adapters(FAMILY.plan(store, None), replace(unwrapped, store=store), names)
    plan.takes = {ours.removeprefix(INSIDE): take for ours, take in plan.takes.items()}
    theirs = FAMILY.theirs(None)
    plan.check(path, store.shapes, wanted_shapes(config), lambda key: theirs(INSIDE + key))
    notes = (*unwrapped.notes, *tower_note(tower, published, vision_tower))
    with replaced_folder(out) as fresh:
        making.write_weights(fresh, plan, store, dtype)
        cast(Any, config).architectures = ["LlavaForConditionalGeneration"]
        config.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        tower.image_processor.save_pretrained(fresh)
    return Converted(FAMILY.name, out, len(plan.takes), making.counted(plan), notes)


def wanted_shapes(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of Hugging Face's model."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {key: tuple(value.shape) for key, value in cast(Any, model).state_dict().items()}
