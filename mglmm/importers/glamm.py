"""GLaMM (FullScope, GCG, RefSeg, RegCap): LLaVA-1.5's projector, CLIP at 336 px, SAM ViT-H, boxes in by `<bbox>`.

Source: groundingLMM `model/GLaMM.py`, `model/layers.py`.
"""

from collections.abc import Mapping
from typing import Any

from mglmm.importers.families import Family, Shapes
from mglmm.regions_glamm import KEYS, GlammSizes, from_upstream

REGIONS = "model.region_encoder."
INNER = f"{REGIONS}roi_align.updims.weight"


def region_config(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder as the released weights were trained; its inner width is read off the weights.

    Raises:
        ValueError: the weights lack the layer that tells it.
    """
    if INNER not in shapes:
        raise ValueError(f"the checkpoint has no {INNER}, from which the region encoder's width is read; get it whole")
    return GlammSizes.published(inner=shapes[INNER][1]).model_dump()


def to_upstream(key: str) -> str:
    """Their name of a key of our region encoder; the way back of `from_upstream`."""
    module, _, leaf = key.rpartition(".")
    theirs = {f"body.{ours}": theirs for theirs, ours in KEYS.items()}
    return f"{theirs.get(module, module)}.{leaf}"


FAMILY = Family(
    name="glamm",
    title="GLaMM",
    mark="model.grounding_encoder.",
    sam="model.grounding_encoder.",
    region_encoder="glamm",
    regions=REGIONS,
    region_config=region_config,
    region_key=from_upstream,
    region_name=to_upstream,
)
