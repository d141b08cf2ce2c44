"""What flows between encoding, model and losses.

I images, R rows of tokens (a row is one image with the conversations that share it), L tokens, M `[SEG]` in the batch
(row by row, left to right), P of them decoded, G given regions, K names in questions, q the decoder's mask side, S the
square's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sam_bridge.bridge import Features, Frames, Masks
from sam_bridge.canvas import Canvas

IGNORE = -100
PADDING = -1
PREFIX = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's inputs. Tensors move with `to`; the rest stays."""

    pixels: Frames | None  # of I images, S x S, what the bridge's encoder reads; None where `seen` is given
    clip_pixels: Frames | None  # of I images, s x s, what a CLIP tower reads; None when the encoder is shared
    row_image: Tensor  # int64[R], the image of each row
    input_ids: Tensor  # int64[R, L], right-padded
    labels: Tensor  # int64[R, L], the id itself where it carries loss, else IGNORE
    position_ids: Tensor  # int64[R, L], restarting at every conversation
    segments: Tensor  # int64[R, L], PREFIX, 1.. for conversations, PADDING
    region_masks: Tensor  # float[G, h, w], coverage of given regions on the region grid
    region_image: Tensor  # int64[G]
    picked: Tensor  # int64[P], which of the M [SEG] have their mask decoded
    mask_targets: Tensor  # float[P, q, q] in 0..1, or [P, 0, 0] when losses are taken at original size
    originals: tuple[Tensor, ...] = ()  # bool[H, W] for each picked mask, at original size
    canvases: tuple[Canvas, ...] = ()  # of each image
    target_regions: tuple[tuple[int, int], ...] = ()  # (image, region of its sample) of all M [SEG]
    target_boxes: Tensor | None = None  # float[M, 4], xyxy, shares of S; NaN where a mask is empty
    attributes: dict[str, Tensor] | None = None  # of all M regions, for distillation (world only)
    kin: Tensor | None = None  # int64[I, g, g, 4], what things are among their kind (world only); see `train.kin`
    region_boxes: Tensor | None = None  # float[G, 4], xyxy, shares of the regions' frame; NaN where a region is empty
    spelt: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    """int64[Q, 2]: row and column of the first token of a box that is spelt behind a phrase."""
    spelt_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # float[Q, 4], as `target_boxes`
    named: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    """int64[K, 2]: row and column of the last token of a name in a question."""
    named_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # float[K, 4], as `target_boxes`
    seen: Seen | None = None  # of I images, in place of their pixels

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{f.name: move(getattr(self, f.name), device) for f in fields(self)})


def move(value: Any, device: torch.device | str) -> Any:
    """Tensors of a field to a device, whatever holds them."""
    if isinstance(value, Tensor | Frames | Seen):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(item.to(device) for item in value)
    return value


@dataclass(frozen=True, eq=False)
class Seen:
    """What frozen encoders make of an image, before anything that trains; it can be kept (`train.features`)."""

    features: Features
    states: dict[int, Tensor]  # layer of the CLIP tower -> float[I, 1 + N, d]; none when the encoder is shared

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Seen:
        states = {layer: state.to(device=device, dtype=dtype) for layer, state in self.states.items()}
        return Seen(self.features.to(device, dtype), states)


@dataclass(frozen=True, eq=False)
class ImageState:
    """What an image costs once, however many prompts follow."""

    tokens: Tensor  # float[I, N, D], in the language model's width
    features: Features
    maps: tuple[Tensor, ...]  # float[I, C_i, h_i, w_i], to pool regions from


@dataclass(frozen=True, eq=False)
class Output:
    """What a forward pass gives; logits only where there is a label, masks only where they were picked."""

    token_logits: Tensor  # float[T, V]
    token_labels: Tensor  # int64[T]
    prompts: Tensor  # float[M, C], projected [SEG] states
    masks: Masks  # of the P picked ones: logits float[P, 1, q, q] over the square, scores float[P, 1]
    states: Tensor  # float[M, D], the [SEG] states themselves
    answers: Tensor  # int64[T], the answer (a run of labels) that each token is of
    spelt: Tensor | None = None  # float[Q, C], projected states that begin a box; None without `box_feedback`
    image_tokens: Tensor | None = None  # float[I, N, D], as the language model reads them
    named: Tensor | None = (
        None  # float[K, D], states where questions name something, after half of the layers (rounded up)
    )

    @property
    def mask_logits(self) -> Tensor:
        """float[P, q, q]."""
        return self.masks.logits[:, 0]
