"""What a family of published checkpoints is, and what all of them share: LLaVA's layout around a SAM.

Keys are looked at without the wrappers of trainers (`base_model.model.`, `module.`); see `lora.py`.
Sources of the layouts: LLaVA `llava/model/llava_arch.py`, LISA `model/LISA.py`, groundingLMM `model/GLaMM.py`, mglmm
`model/mglmm.py`; the same facts stand in `shared/golden/README.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import SamConfig

from mglmm.importers.keys import Store, listed
from mglmm.importers.plan import Plan, Take
from sam_bridge import weights
from sam_bridge.config import parts

TOWER = "vision tower file: "
"""Prefix of keys that come out of the vision tower's own files."""
LANGUAGE = "llava.model.language_model."
CLIP = "llava.model.vision_tower."
PROJECTOR = "llava.model.multi_modal_projector."
SAM = "bridge.sam."
REGION = "region_encoder."
INSIDE_TOWER = "model.vision_tower.vision_tower."
RECOMPUTED = "computed from the config, not learnt"
FROZEN = "the tower's own files are used instead; the family keeps it frozen"
TEXT_HALF = "CLIP's text half, which no model here reads"

OLD_NAMES = {
    "llava.language_model.model.": LANGUAGE,
    "llava.language_model.lm_head.": "llava.lm_head.",
    "llava.multi_modal_projector.": PROJECTOR,
    "llava.vision_tower.": CLIP,
}
"""Where Hugging Face's LLaVA kept its parts before; transformers still writes these names, and reads both."""

SAM_SIZES = (
    "image_encoder.pos_embed",
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.blocks.0.mlp.lin1.weight",
    "image_encoder.neck.0.weight",
    "prompt_encoder.mask_downscaling.3.weight",
    "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight",
    "mask_decoder.iou_prediction_head.layers.0.weight",
)
"""Keys whose shapes tell a SAM's sizes; `sam_bridge.weights.infer_config`."""
PUBLISHED_WIDTH = 256  # of the prompts and the mask decoder of every published SAM
Shapes = Mapping[str, tuple[int, ...]]


def name_now(key: str) -> str:
    """A key of a checkpoint of ours by the name of today."""
    old = next((old for old in OLD_NAMES if key.startswith(old)), "")
    return OLD_NAMES[old] + key.removeprefix(old) if old else key


def ours_now(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Keys of a checkpoint of ours by the names of today."""
    return {name_now(key): shape for key, shape in shapes.items()}


@dataclass(frozen=True)
class Family:
    """One published layout."""

    name: str
    title: str  # as people write it
    mark: str  # a prefix of keys that only this family has
    sam: str  # prefix of SAM's official keys; empty where there is no SAM
    projector: str = "mlp"  # see `MglmmConfig.projector`
    region_encoder: str = "none"
    regions: str = ""  # prefix of the region encoder's keys
    region_config: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]] | None = None
    region_key: Callable[[str], str | None] | None = None  # their key behind `regions` -> ours behind region_encoder.
    region_name: Callable[[str], str] | None = None  # and back

    def as_stored(self, shapes: Shapes, config: Mapping[str, Any]) -> Family:
        """The family with the projector that is stored (forks put LLaVA-1.5's under LISA's layout, and the reverse).

        Without its region encoder where config.json says (`with_region`) that it was trained so.
        """
        found = next((name for name, key in PROJECTOR_OF.items() if key in shapes), self.projector)
        if found != self.projector:
            return replace(self, projector=found).as_stored(shapes, config)
        if config.get("with_region") is False and not any(key.startswith(self.regions) for key in shapes):
            return replace(self, region_encoder="none", region_config=None)
        return self

    def region_settings(
        self, shapes: Shapes, config: Mapping[str, Any], given: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        """`MglmmConfig.region_config` of a checkpoint, `given` on top of what the family was trained with.

        Raises:
            ValueError: settings are given, but the family reads no regions.
        """
        if self.region_config is None:
            if given:
                raise ValueError(
                    f"{self.title} reads no regions; leave the settings of a region encoder out: {dict(given)}"
                )
            return None
        return {**self.region_config(shapes, config), **(given or {})}

    def strip(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """SAM's keys and shapes without their prefix."""
        return {key[len(self.sam) :]: shape for key, shape in shapes.items() if key.startswith(self.sam)}

    def sam_config(self, shapes: Shapes, decoder_heads: int | None) -> SamConfig:
        """SAM's sizes; see `decoder_heads_of`.

        Raises:
            ValueError: keys that tell them are missing.
        """
        inner = self.strip(shapes)
        missing = [self.sam + key for key in SAM_SIZES if key not in inner]
        if missing:
            raise ValueError(
                f"{len(missing)} keys of its SAM are missing, from which sizes are read: {listed(missing)}; "
                "the checkpoint is not whole: download it again"
            )
        return weights.infer_config(inner, decoder_heads=decoder_heads or decoder_heads_of(inner))

    def plan(self, store: Store, sam: SamConfig | None) -> Plan:
        """What becomes of every key of a checkpoint and of its vision tower's files."""
        plan = Plan()
        sam_keys = (
            {} if sam is None else {self.sam + theirs: SAM + ours for theirs, ours in weights.key_map(sam).items()}
        )
        inside = any(key.startswith(INSIDE_TOWER) for key in store.entries)
        for key in store.entries:
            if (reason := ignored(key, inside)) is not None:
                plan.ignored[key] = reason
                continue
            ours = sam_keys.get(key) or self.ours(key)
            if ours is None:
                plan.extra.append(key)
            else:
                plan.takes[ours] = Take(key)
        return plan

    def theirs(self, sam: SamConfig | None) -> Callable[[str], str]:
        """A function from our keys to theirs, for messages; what has no name of theirs keeps ours."""
        names = {} if sam is None else {SAM + ours: self.sam + theirs for theirs, ours in weights.key_map(sam).items()}
        layers = {ours: f"{number}." if number else "" for number, ours in PLACES[self.projector].items()}

        def name(key: str) -> str:
            if found := re.fullmatch(rf"{re.escape(PROJECTOR)}(.*?)(weight|bias)", key):
                return f"model.mm_projector.{layers.get(found[1], found[1])}{found[2]}"
            for ours, theirs in STARTS.items():
                if key.startswith(ours):
                    return theirs + key.removeprefix(ours)
            if self.region_name is not None and key.startswith(REGION):
                return self.regions + self.region_name(key.removeprefix(REGION))
            return names.get(key, key)

        return name

    def ours(self, key: str) -> str | None:
        """Our name of a key; None where there is none."""
        if key.startswith(TOWER):
            return CLIP + bare(key[len(TOWER) :])
        if key.startswith(INSIDE_TOWER):
            return CLIP + bare(key[len(INSIDE_TOWER) :])
        if key == "lm_head.weight":
            return "llava.lm_head.weight"
        if re.match(r"model\.(embed_tokens|layers|norm)\.", key):
            return LANGUAGE + key[len("model.") :]
        if found := re.fullmatch(r"model\.text_hidden_fcs\.0\.(0|2)\.(weight|bias)", key):
            return f"seg_projection.{found[1]}.{found[2]}"
        if found := re.fullmatch(r"model\.mm_projector\.(?:(0|2)\.)?(weight|bias)", key):
            return PROJECTOR + PLACES[self.projector].get(found[1] or "", "?") + found[2]
        if self.region_key is not None and key.startswith(self.regions):
            inner = self.region_key(key[len(self.regions) :])
            return None if inner is None else REGION + inner
        return None


STARTS = {
    LANGUAGE: "model.",
    "llava.lm_head.": "lm_head.",
    CLIP: f"{TOWER}vision_model.",
    "seg_projection.": "model.text_hidden_fcs.0.",
}
PROJECTOR_OF = {"linear": "model.mm_projector.weight", "mlp": "model.mm_projector.0.weight"}
"""Keys that tell one kind of projector from the other."""
PLACES = {"linear": {"": ""}, "mlp": {"0": "linear_1.", "2": "linear_2."}}
"""Layers of a projector by their number upstream; a number the family does not have becomes a key nobody wants."""


def bare(key: str) -> str:
    """A key of CLIP's vision tower as transformers 5 names it."""
    return key.removeprefix("vision_model.")


def ignored(key: str, inside: bool) -> str | None:
    """Why a key is left out on purpose; None where it must find its place. `inside`: the checkpoint holds the tower."""
    if key.endswith("rotary_emb.inv_freq"):
        return RECOMPUTED
    name = key.removeprefix(TOWER).removeprefix(INSIDE_TOWER)
    tower = name != key
    if tower and name.endswith("embeddings.position_ids"):
        return RECOMPUTED
    if key.startswith(TOWER):
        if name.startswith(("text_model.", "text_projection.", "logit_scale", "visual_projection.")):
            return TEXT_HALF
        if inside:
            return "the checkpoint holds the vision tower itself"
    return None


def decoder_heads_of(inner: Shapes) -> int:
    """Attention heads of SAM's mask decoder: 8 as in every published SAM; fewer where a head would be under 8 wide.

    Shapes do not tell them; `--sam-decoder-heads` does.
    """
    return max(1, min(8, inner["mask_decoder.iou_token.weight"][-1] // 8))


def heads_note(sam: SamConfig) -> tuple[str, ...]:
    """What to say of the mask decoder's heads where it is not of the published width."""
    decoder = parts(sam).decoder
    if decoder.hidden_size == PUBLISHED_WIDTH:
        return ()
    return (
        f"SAM's mask decoder is {decoder.hidden_size} wide, not {PUBLISHED_WIDTH}; nothing tells its attention heads, "
        f"{decoder.num_attention_heads} were taken (--sam-decoder-heads)",
    )
