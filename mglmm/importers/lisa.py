"""LISA (v0, v1, explanatory; 7B and 13B): LLaVA with one Linear as projector, CLIP at 224 px, SAM ViT-H.

v0 kept SAM and the projection beside the language model, in files of their own, and had another system prompt.
Source: LISA `model/LISA.py` and `chat.py` (v0: before August 23, 2023); https://huggingface.co/xinlai/LISA-7B-v1.
"""

from collections.abc import Iterable

from mglmm.importers.families import Family
from mglmm.importers.lora import OUTSIDE, PREFIXES
from mglmm.templates import FAMILIES, LISA_V0, PromptFormat

FAMILY = Family(name="lisa", title="LISA", mark="model.visual_model.", sam="model.visual_model.", projector="linear")


def form_of(family: str, keys: Iterable[str]) -> PromptFormat:
    """The prompt format that a checkpoint of a family was trained with, by its keys as stored."""
    first = any(key.removeprefix(wrapper).startswith(OUTSIDE[0]) for key in keys for wrapper in ("", *PREFIXES))
    return LISA_V0 if first and family == "lisa" else FAMILIES[family]
