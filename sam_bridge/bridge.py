"""What every segmentation backbone offers: images to features, features and prompts to masks.

B images, S the side of the square the backbone reads (px), C x g x g the embedding, K prompts, M masks a prompt,
q the side of the decoder's output. `HfSam` (sam.py) and `SmallBridge` (small.py) implement `SamBridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam_bridge.canvas import Canvas, Size
from sam_bridge.prompt import Prompts, Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What an image costs once, however many prompts follow; frozen features can be cached."""

    embedding: Tensor  # float[B, C, g, g], what the mask decoder attends to
    tokens: Tensor | None = None  # float[B, N, D], the encoder's patch states, for a shared vision tower
    skips: tuple[Tensor, ...] = ()  # float[B, C_i, h_i, w_i], higher resolutions for the mask decoder

    def __len__(self) -> int:
        return len(self.embedding)

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same features with `change` applied to each tensor."""
        tokens = None if self.tokens is None else change(self.tokens)
        return Features(
            embedding=change(self.embedding), tokens=tokens, skips=tuple(change(skip) for skip in self.skips)
        )

    def select(self, index: Tensor | slice) -> Features:
        """Features of the images in `index` (long[n] or bool[B]), repeats allowed."""
        return self.map(lambda value: value[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Features:
        """Move or cast every tensor."""
        return self.map(lambda value: value.to(device=device, dtype=dtype))


@dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """What a decoder answers; slots without a prompt hold zeros."""

    logits: Tensor  # float[B, K, M, q, q] over the whole S x S square, before the sigmoid
    scores: Tensor  # float[B, K, M], predicted IoU (meaningless after training without a loss on it)

    def pick(self, image: Tensor, slot: Tensor) -> Masks:
        """The prompts at (int64[P], int64[P]) alone: `logits` becomes float[P, M, q, q], and so on."""
        return Masks(logits=self.logits[image, slot], scores=self.scores[image, slot])


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Pictures in a model's frame as bytes, a quarter of what floats take on the way to the device.

    B pictures, h x w the frame; `mean` and `std` are of 0..255, RGB.
    """

    values: Tensor  # uint8[B, 3, h, w]
    inner: tuple[Size, ...]  # (rows, columns) that the picture takes of its frame, px; the rest is padding
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> Frames:
        return replace(self, values=self.values.to(device))

    def floats(self) -> Tensor:
        """float32[B, 3, h, w] on the bytes' device: (value - mean) / std per channel, then 0 in the padding.

        Source: segment-anything `modeling/sam.py`, `preprocess`; it pads after normalising, so the fill is the mean
        colour.
        """
        mean, std = (torch.tensor(each, device=self.values.device).view(3, 1, 1) for each in (self.mean, self.std))
        scaled = self.values.float().sub_(mean).div_(std)
        for picture, (rows, columns) in zip(scaled, self.inner, strict=True):
            picture[:, rows:] = 0
            picture[:, :, columns:] = 0
        return scaled

    @classmethod
    def draw(
        cls,
        images: Sequence[Image.Image | np.ndarray],
        canvases: Sequence[Canvas],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Frames:
        """Each image (PIL or uint8[H, W, 3]) in the frame of its canvas; the frames must be of one size."""
        drawn = [canvas.draw(image) for image, canvas in zip(images, canvases, strict=True)]
        inner = tuple(canvas.inner for canvas in canvases)
        return cls(values=torch.stack(drawn), inner=inner, mean=tuple(mean), std=tuple(std))


class SamBridge(Protocol):
    """A segmentation backbone; an `nn.Module` in practice."""

    side: int  # S, px
    prompt_dim: int  # C, the width of a language prompt

    def encode(self, pixel_values: Tensor) -> Features:
        """Images float[B, 3, S, S], normalised (see `preprocess`), to features."""
        ...

    def decode(self, features: Features, prompts: Prompts, multimask: bool = False) -> Masks:
        """One mask (or, with `multimask`, several) per prompt, images x prompts in one call."""
        ...

    def canvas(self, size: Size) -> Canvas:
        """The map of an image of `size` (H, W) into the square."""
        ...

    def preprocess(self, images: Sequence[Image.Image | np.ndarray]) -> tuple[Tensor, list[Canvas]]:
        """Images (PIL or uint8[H, W, 3], any sizes) to float32[B, 3, S, S] and their canvases."""
        ...


def preprocess(
    images: Sequence[Image.Image | np.ndarray],
    *,
    canvas: Callable[[Size], Canvas],
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Tensor, list[Canvas]]:
    """Draw each image into its frame and normalise it; the shared body of `SamBridge.preprocess`.

    Returns:
        float32[B, 3, S, S] on the CPU, and one canvas per image.
    """
    if not images:
        raise ValueError("no images to preprocess; give at least one")
    sizes = [image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width) for image in images]
    canvases = [canvas((int(height), int(width))) for height, width in sizes]
    return Frames.draw(images, canvases, mean, std).floats(), canvases


def decode_ragged(prompts: Prompts, decode_rows: Callable[[Rows], tuple[Tensor, Tensor]]) -> Masks:
    """Run `decode_rows` on the valid prompts only and put the answers back into their slots.

    The usual batch (language states alone) is one call. A batch without any prompt still runs one stand-in row and
    drops it, so that the decoder stays in the graph with gradient 0: else DDP and ZeRO fail and FSDP hangs.

    Args:
        prompts: a batch, padded.
        decode_rows: n rows to logits float[n, M, q, q], scores float[n, M].
    """
    shape = tuple(prompts.valid.shape)
    groups = prompts.groups()
    if not len(groups[0]):
        logits, scores = decode_rows(_stand_in(prompts))
        parts = [(groups[0], logits[:0], scores[:0])]
    else:
        parts = [(rows, *decode_rows(rows)) for rows in groups]
    rows, logits, scores = parts[0]
    if len(parts) == 1 and len(rows) == prompts.valid.numel() and len(rows):
        return Masks(logits=logits.unflatten(0, shape), scores=scores.unflatten(0, shape))
    all_logits = logits.new_zeros((*shape, *logits.shape[1:]))
    all_scores = scores.new_zeros((*shape, *scores.shape[1:]))
    for rows, logits, scores in parts:
        where = (rows.image, rows.slot)
        all_logits, all_scores = all_logits.index_put(where, logits), all_scores.index_put(where, scores)
    return Masks(logits=all_logits, scores=all_scores)


def _stand_in(prompts: Prompts) -> Rows:
    """One row for the first image, of the kind the batch would have had: a language state of zeros, or else a box."""
    zero = torch.zeros(1, dtype=torch.long, device=prompts.valid.device)
    embeds = None
    if prompts.embeds is not None:  # plus the sum of nothing, so that what projects the states is in the graph too
        embeds = prompts.embeds.new_zeros((1, *prompts.embeds.shape[2:])) + prompts.embeds.flatten()[:0].sum()
    box = torch.zeros(1, 4, device=prompts.valid.device) if embeds is None else None
    return Rows(image=zero, slot=zero, points=None, labels=None, boxes=box, masks=None, embeds=embeds)
