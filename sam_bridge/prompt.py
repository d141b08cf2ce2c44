"""Prompts for a mask decoder, ragged over the images of a batch.

B images, K the largest number of prompts of one image, P points, T language tokens a prompt, C the decoder's width,
q the side of a low-resolution mask. Geometry is in model px (see `Canvas.points`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

KINDS = ("points", "boxes", "masks", "embeds")
"""Order of the last axis of `Prompts.counts`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What asks for one mask; any combination of the four, at least one.

    points: float[P, 2] x, y in model px, with labels: int[P] (1 on the object, 0 off it, -1 not a point).
    box: float[4] x1, y1, x2, y2 in model px.  mask: float[1, q, q] logits.  embeds: float[T, C] projected states.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    box: Tensor | None = None
    mask: Tensor | None = None
    embeds: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise ValueError("a prompt's points need labels (1 on the object, 0 off it), and labels need points")
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError("an empty prompt; give points, a box, a mask or embeds")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """n prompts of one make-up, without padding: what a decoder runs on."""

    image: Tensor  # long[n], which image of the batch
    slot: Tensor  # long[n], which prompt of that image
    points: Tensor | None  # float[n, P, 2], model px
    labels: Tensor | None  # long[n, P]
    boxes: Tensor | None  # float[n, 4], model px
    masks: Tensor | None  # float[n, 1, q, q], logits
    embeds: Tensor | None  # float[n, T, C]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """A batch of prompts, padded; an image may have none. Build it with `pack` or `language`."""

    valid: Tensor  # bool[B, K]
    points: Tensor | None = None  # float[B, K, P, 2], model px
    labels: Tensor | None = None  # long[B, K, P]
    boxes: Tensor | None = None  # float[B, K, 4], model px
    masks: Tensor | None = None  # float[B, K, 1, q, q], logits
    embeds: Tensor | None = None  # float[B, K, T, C]
    counts: Tensor | None = None  # long[B, K, 4] of KINDS: how much of the padded tensors is real; None: all of it

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise ValueError("prompt points need labels (1 on the object, 0 off it), and labels need points")
        for name in (*KINDS, "labels", "counts"):
            value = getattr(self, name)
            if value is not None and value.shape[:2] != self.valid.shape:
                raise ValueError(
                    f"prompt {name} has shape {tuple(value.shape)}; the first two sizes must be (images, prompts) = "
                    f"{tuple(self.valid.shape)}"
                )

    @classmethod
    def pack(cls, images: Sequence[Sequence[Prompt]]) -> Prompts:
        """Pad ragged prompts, one list per image; prompts of different make-up may stand side by side.

        Raises:
            ValueError: masks of different sides, or embeds of different width, in one batch.
        """
        shape = (len(images), max((len(prompts) for prompts in images), default=0))
        flat = [(i, k, prompt) for i, prompts in enumerate(images) for k, prompt in enumerate(prompts)]
        valid = torch.zeros(shape, dtype=torch.bool)
        counts = torch.zeros((*shape, len(KINDS)), dtype=torch.long)
        for i, k, prompt in flat:
            valid[i, k] = True
            sizes = (
                _length(prompt.points),
                int(prompt.box is not None),
                int(prompt.mask is not None),
                _length(prompt.embeds),
            )
            counts[i, k] = torch.tensor(sizes)

        def padded(name: str) -> Tensor | None:
            found = [(i, k, value) for i, k, prompt in flat if (value := getattr(prompt, name)) is not None]
            if not found:
                return None
            tails = sorted({tuple(value.shape[1:]) for _, _, value in found})
            if len(tails) > 1:
                raise ValueError(
                    f"prompts of one batch have {name} of different shapes {tails}; bring them to one shape"
                )
            stacked = pad_sequence([value for _, _, value in found], batch_first=True)
            where = (torch.tensor([i for i, _, _ in found]), torch.tensor([k for _, k, _ in found]))
            where = tuple(index.to(stacked.device) for index in where)
            return stacked.new_zeros((*shape, *stacked.shape[1:])).index_put(where, stacked)

        packed = {name: padded(field) for name, field in zip(KINDS, ("points", "box", "mask", "embeds"), strict=True)}
        labels = padded("labels")
        device = next((value.device for value in packed.values() if value is not None), torch.device("cpu"))
        return cls(
            valid=valid.to(device), counts=counts.to(device), labels=None if labels is None else labels.long(), **packed
        )

    @classmethod
    def language(cls, states: Sequence[Tensor]) -> Prompts:
        """Projected language states, one float[k, C] or float[k, T, C] per image (k may be 0); keeps the gradient."""
        states = [state[:, None] if state.ndim == 2 else state for state in states]
        embeds_BKTC = pad_sequence(list(states), batch_first=True)
        lengths = torch.tensor([len(state) for state in states], device=embeds_BKTC.device)
        valid = torch.arange(embeds_BKTC.shape[1], device=embeds_BKTC.device) < lengths[:, None]
        return cls(valid=valid, embeds=embeds_BKTC)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Prompts:
        """Move every tensor; a dtype reaches only the floating ones."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device, dtype) for f in fields(self)})

    def groups(self) -> list[Rows]:
        """The valid prompts by make-up, so that a decoder meets no padded token; at least one group, maybe of 0 rows.

        A padded point would be attended to and change the mask (transformers' label -10 does); equal lengths do not.
        """
        image, slot = self.valid.nonzero(as_tuple=True)
        if self.counts is None or not len(image):
            return [self._rows(image, slot, None)]
        kinds, which = self.counts[image, slot].unique(dim=0, return_inverse=True)
        return [self._rows(image[which == i], slot[which == i], count) for i, count in enumerate(kinds.tolist())]

    def _rows(self, image: Tensor, slot: Tensor, counts: list[int] | None) -> Rows:
        def take(name: str, kind: str, *, ragged: bool = False) -> Tensor | None:
            value = getattr(self, name)
            count = None if counts is None else counts[KINDS.index(kind)]
            if value is None or count == 0:
                return None
            rows = value[image, slot]
            return rows[:, :count] if ragged else rows

        return Rows(
            image=image,
            slot=slot,
            points=take("points", "points", ragged=True),
            labels=take("labels", "points", ragged=True),
            boxes=take("boxes", "boxes"),
            masks=take("masks", "masks"),
            embeds=take("embeds", "embeds", ragged=True),
        )


def _length(value: Tensor | None) -> int:
    return 0 if value is None else len(value)


def _to(value: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if value is None else value.to(device=device, dtype=dtype if value.is_floating_point() else None)
