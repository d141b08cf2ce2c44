"""What a checkpoint is, what it can do, how much memory it needs, and what is missing: `mglmm doctor PATH|MODEL`.

Only shapes are read, never the weights: a 7B checkpoint is looked through in seconds. What `mglmm convert` (for
published checkpoints) or loading (for ours) would refuse is found by the same checks, all of them, and listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from mglmm.checkpoint import check_folder
from mglmm.importers import lisa, lora
from mglmm.importers.convert import check_vocabulary, embedding_rows, llava_config, mglmm_config, wanted_shapes
from mglmm.importers.families import Family, ours_now
from mglmm.importers.keys import Store, open_store, read_json
from mglmm.importers.registry import FAMILIES, OTHERS, detect, located, planned
from mglmm.importers.sizes import KV_TOKENS, cache_bytes, count, memory, parts, size
from mglmm.importers.tokenizer import legacy_tokenizer, original_size
from mglmm.importers.tower import check_tower, find_tower, with_tower
from mglmm.model_config import MglmmConfig
from mglmm.processor import MglmmProcessor
from mglmm.templates import FAMILY_OF, PromptFormat
from mglmm.tokenizer import tokenizer_hash
from sam_bridge.weights import TIED

T = TypeVar("T")

REGIONS = {
    "mask_mean": "regions in: point, box, scribble, mask",
    "glamm": "regions in: box",
    "ferret": "regions in: point, box, scribble, mask",
}
ASK = "questions and captions"
MASKS = ("referring segmentation", "several targets", "reasoning segmentation")
PHRASED = "captions with a mask for each phrase"
TASKS = {
    "lisa": (ASK, *MASKS),
    "glamm": (ASK, *MASKS, PHRASED),
    "mglmm": (ASK, *MASKS, PHRASED, "panoptic and fine-grained captions with masks", "saying that nothing is there"),
    "llava": (ASK,),
    "ferret": (REGIONS["ferret"],),
    "sam": ("masks from points and boxes",),
}
"""What a family was trained for (LISA, GLaMM and MGLMM: their papers)."""


@dataclass
class Diagnosis:
    """What was found."""

    path: str
    family: str = ""
    title: str = ""
    parts: dict[str, int] = field(default_factory=dict)  # part -> parameters
    facts: dict[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)  # fp16, int8, int4 -> bytes of the weights
    cache: int = 0  # bytes of the keys and values of one answer in fp16
    image_tokens: int = 576  # of one image, in the language model
    missing: list[str] = field(default_factory=list)
    next: str = ""  # the command that goes on from here

    @property
    def whole(self) -> bool:
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "whole": self.whole}

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` gives; None, with its sentence among what is missing, where it refuses."""
        try:
            return work()
        except (ValueError, OSError) as error:
            self.missing.append(" ".join(str(error).split()))
            return None


def diagnose(path: str | Path, vision_tower: str | None = None) -> Diagnosis:
    """Look through a checkpoint.

    Args:
        path: a folder, a weights file, `bundled`, or the name of a hub model that is on this machine.
        vision_tower: folder of the CLIP of a published checkpoint; by default the one that config.json names.

    Raises:
        ValueError: there is nothing at `path`, or its keys are of no layout known here.
    """
    where = located(path)
    found = Diagnosis(str(path))
    folder = where if where.is_dir() else where.parent
    if where.is_dir() and lora.is_zero(where):
        look_at_zero(found, where)
        return found
    store = found.attempt(lambda: open_store(where))
    if store is None:
        guess(found, folder)
        return found
    stored, unwrapped = store, lora.unwrap(store)
    store = unwrapped.store
    found.family = family_of(unwrapped, folder)
    if unwrapped.adapters:
        found.facts["adapters"] = f"{len(unwrapped.adapters)} layers, not merged"
    if found.family == "adapter":
        found.title, found.next = "LoRA adapters without their base", f"mglmm merge BASE {path} OUT"
        named = lora.adapter_settings(where).get("base_model_name_or_path")
        found.missing.append(f"the base they were trained on{f' ({named})' * bool(named)}: merge them into it")
    elif found.family == "ours":
        look_at_ours(found, folder, store)
    elif found.family in FAMILIES:
        form = lisa.form_of(found.family, stored.entries)
        store = look_at_published(found, FAMILIES[found.family], form, folder, unwrapped, vision_tower)
        found.next = f"mglmm convert {path} OUT"
    else:
        look_at_part(found, folder)
    found.parts, found.memory = parts(store.shapes), memory(store.shapes)
    found.cache = cache_bytes(store.shapes, found.image_tokens)
    return found


def family_of(unwrapped: lora.Unwrapped, folder: Path) -> str:
    """A name of `FAMILIES` or `OTHERS`, `adapter` or `tower`; checkpoints of ours and CLIPs say so in their config."""
    store = unwrapped.store
    if lora.is_bare(unwrapped) or (unwrapped.adapters and "model.embed_tokens.weight" not in store.entries):
        return "adapter"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = str(config.get("model_type"))
    if store.path.is_dir() and kind == MglmmConfig.model_type:
        return "ours"
    return "tower" if store.path.is_dir() and kind.startswith("clip") else detect(store)


def look_at_zero(found: Diagnosis, folder: Path) -> None:
    """Are all ranks' shards there, and what puts them together."""
    found.title, found.family = "DeepSpeed ZeRO shards", "zero"
    found.attempt(lambda: lora.zero_folder(folder))
    if find_spec("deepspeed") is None:
        found.missing.append("DeepSpeed, whose own converter puts the shards together: pip install deepspeed")
    if (folder / "config.json").is_file():
        found.next = f"mglmm convert {found.path} OUT"
    else:
        found.next = f"mglmm merge BASE {found.path} OUT (config.json and the tokenizer are the base's)"


def guess(found: Diagnosis, folder: Path) -> None:
    """What config.json says where the weights do not speak."""
    if (folder / "config.json").is_file():
        config = found.attempt(lambda: read_json(folder / "config.json")) or {}
        named = ", ".join(config.get("architectures") or ()) or config.get("model_type", "")
        found.facts["config.json says"] = str(named)
    found.title = "weights that cannot be read"


def look_at_published(
    found: Diagnosis,
    kind: Family,
    form: PromptFormat,
    folder: Path,
    unwrapped: lora.Unwrapped,
    vision_tower: str | None,
) -> Store:
    """Every check of a conversion, none of them stopping the others; returns the tensors, the tower's among them."""
    store = unwrapped.store
    found.title, found.tasks = f"{kind.title}, as published", TASKS[kind.name]
    if kind.region_encoder != "none" and any(key.startswith(kind.regions) for key in store.entries):
        found.tasks += (REGIONS[kind.region_encoder],)
    config = found.attempt(lambda: read_json(folder / "config.json"))
    tokenizer = found.attempt(lambda: legacy_tokenizer(folder, kind.name))
    rows = found.attempt(lambda: embedding_rows(store))
    if tokenizer is not None and rows is not None:
        found.attempt(lambda: check_vocabulary(folder, original_size(folder), rows, config or {}))
    tower = found.attempt(lambda: find_tower(vision_tower, config or {}, folder)) if config else None
    sam = found.attempt(lambda: kind.sam_config(store.shapes, None))
    if tower is not None:
        found.attempt(lambda: check_tower(folder, unwrapped.store.shapes, tower))
        store = with_tower(store, tower)
        found.image_tokens = (int(tower.config.image_size) // int(tower.config.patch_size)) ** 2  # type: ignore[arg-type]
        found.facts["vision tower"] = f"{tower.where}, {tower.config.image_size} px"
    elif not any("vision_tower" in key for key in store.entries):
        found.facts["vision tower"] = "not found, and not in the memory below (a CLIP ViT-L/14 takes 0.6 GB in fp16)"
    if config is None or tokenizer is None or rows is None or tower is None or sam is None:
        return store
    kind = kind.as_stored(store.shapes, config)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in ("<image>", "[SEG]", form.region)}  # type: ignore[arg-type]

    def compare() -> None:
        region = kind.region_config(store.shapes, config) if kind.region_config is not None else None
        llava = llava_config(config, rows, tower.config, ids["<image>"], folder)
        settings = {"seg_token_id": ids["[SEG]"], "region_token_id": ids[form.region], "prompt_format": form.name}
        wanted = wanted_shapes(mglmm_config(kind, llava, sam, region, **settings))
        plan = planned(kind, store, unwrapped, sam)
        found.facts["keys"] = f"{len(plan.takes)} taken, {len(plan.ignored)} left out with a reason"
        plan.check(folder, store.shapes, wanted, kind.theirs(sam))

    found.attempt(compare)
    return store


def look_at_ours(found: Diagnosis, folder: Path, store: Store) -> None:
    """The checks of loading, on shapes."""
    found.title = "a checkpoint of mglmm"
    found.next = f'mglmm ask PHOTO "What is in this image?" --model {found.path}'
    found.attempt(lambda: check_folder(folder))
    config = found.attempt(lambda: MglmmConfig.from_pretrained(folder))
    if config is None:
        return
    form = config.prompt_format
    found.image_tokens = int((config.llava_config or {}).get("image_seq_length") or found.image_tokens)
    family = FAMILY_OF.get(form)
    found.tasks = TASKS[family] if family else (ASK, *MASKS, PHRASED, "boxes out")
    found.tasks += (REGIONS[config.region_encoder],) if config.region_encoder in REGIONS else ()
    found.facts["prompt format"] = form
    if config.trained_on:
        found.facts["trained on"] = ", ".join(config.trained_on)
    processor = found.attempt(lambda: MglmmProcessor.from_pretrained(folder))
    if processor is not None and config.tokenizer_hash and config.tokenizer_hash != tokenizer_hash(processor.tokenizer):
        found.missing.append("the tokenizer that the weights were trained with: the files beside them are others")
    wanted = wanted_shapes(config)
    have = ours_now(store.shapes)
    one = {"llava.lm_head.weight"} if config.tie_word_embeddings else set()  # stored as the token embedding
    absent = sorted(wanted.keys() - have.keys() - one)
    for what, keys in (
        ("missing", absent),
        ("extra", sorted(key for key in have.keys() - wanted.keys() if not key.endswith(TIED))),
        ("wrongly shaped", sorted(key for key in wanted.keys() & have.keys() if wanted[key] != have[key])),
    ):
        if keys:
            found.missing.append(f"{len(keys)} {what} keys: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}")


def look_at_part(found: Diagnosis, folder: Path) -> None:
    """A LLaVA or a SAM: a part of a model, not one that grounds."""
    if found.family == "tower":
        found.title, found.next = (
            "a CLIP",
            f"give it to a conversion: mglmm convert PATH OUT --vision-tower {found.path}",
        )
        return
    name = "llava" if found.family.startswith("llava") else found.family
    found.title, found.tasks = OTHERS[found.family][1], TASKS.get(name, ())
    if name not in TASKS:
        return
    found.next = {
        "ferret": f"mglmm convert {found.path} OUT (its sampler becomes a region encoder)",
        "sam": f"name it as `sam: {found.path}` in a model config (configs/model/llava_7b_sam_h.yaml)",
        "llava": f"mglmm convert {found.path} OUT, then name it as `llava: OUT` in a model config",
        "llava-hf": f"name it as `llava: {found.path}` in a model config (configs/model/llava_7b_sam_h.yaml)",
    }[found.family]
    if found.family == "llava":
        found.attempt(lambda: legacy_tokenizer(folder, "llava"))
    found.facts["masks"] = (
        "none before training: it has no [SEG]" if name == "llava" else "from prompts, not from words"
    )


def lines(found: Diagnosis) -> list[tuple[str, str]]:
    """A diagnosis to be printed: (what, text)."""
    told = [("checkpoint", found.path), ("what", found.title)]
    told += [(name, text) for name, text in found.facts.items()]
    total = sum(found.parts.values())
    if total:
        told.append(("parameters", f"{count(total)} ({', '.join(f'{n} {count(c)}' for n, c in found.parts.items())})"))
    told += [("can do", ", ".join(found.tasks) or "nothing by itself")] if found.parts else []
    told += [(f"weights in {kind}", size(number)) for kind, number in found.memory.items()]
    if found.cache:
        told.append(("keys and values", f"{size(found.cache)} for an image and {KV_TOKENS} tokens in fp16"))
    told += [("missing", text) for text in found.missing]
    if found.whole and found.next:
        told.append(("next", found.next))
    return told
