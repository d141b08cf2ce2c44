"""Segmentation backbones behind one interface, and the geometry between an image and a model's frame."""

from sam_bridge.bridge import Features, Masks, SamBridge, decode_ragged, preprocess
from sam_bridge.canvas import Canvas, Size
from sam_bridge.prompt import Prompt, Prompts, Rows

__all__ = [
    "Canvas",
    "Features",
    "Masks",
    "Prompt",
    "Prompts",
    "Rows",
    "SamBridge",
    "Size",
    "decode_ragged",
    "preprocess",
]
