"""The losses of a grounding step: token cross-entropy, BCE + Dice on masks, and, on the world, prompt distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mglmm.config import LossConfig
from mglmm.inputs import Batch, Output
from mglmm.losses import bce_loss, box_loss, dice_loss
from mglmm.model import Mglmm
from mglmm.train.kin import KinHead, kin_loss, kin_right
from mglmm.train.named import NamedHead, named_loss
from mglmm.train.pretrain import WEIGHTS, Attributes, PixelBatch, PixelPretraining


@dataclass(frozen=True, eq=False)
class Joint:
    """One step of a grounding stage: conversations and, where the recipe asks, pixel pre-training beside them."""

    grounding: Batch
    pixels: PixelBatch | None = None

    def to(self, device: torch.device) -> Joint:
        return Joint(self.grounding.to(device), None if self.pixels is None else self.pixels.to(device))


class GroundingTraining(nn.Module):
    """Model and, on the world, the pre-training heads, whose semantic prompt `[SEG]` projections are drawn to.

    Args:
        model: what trains.
        losses: weights of the sum.
        pixels: the heads over the same bridge; the small backbone alone has them.
        pixels_weight: of the losses of pixel pre-training.
        kin: the head over image tokens; needed with `losses.kin`.
        named: the head over the names in questions; needed with `losses.named`.

    Raises:
        ValueError: losses that need the small backbone, without it.
    """

    def __init__(
        self,
        model: Mglmm,
        losses: LossConfig,
        pixels: PixelPretraining | None = None,
        pixels_weight: float = 1.0,
        kin: KinHead | None = None,
        named: NamedHead | None = None,
    ):
        super().__init__()
        if pixels is None and (losses.distill or losses.where):
            raise ValueError("losses.distill and losses.where need the small backbone and its heads; set both to 0")
        self.model, self.losses, self.pixels, self.pixels_weight = model, losses, pixels, pixels_weight
        self.kin, self.named = kin, named

    def forward(self, batch: Joint) -> dict[str, Tensor]:
        out: Output = self.model(batch.grounding)
        losses = {"ce": token_loss(out, TOKEN_POWER[self.losses.token_weight]), **mask_losses(out, batch.grounding)}
        if self.losses.where > 0:
            losses["where"] = self.where(out, batch.grounding)
        if self.losses.quality > 0:
            losses["quality"] = quality_loss(out, batch.grounding)
        if self.losses.distill > 0:
            assert batch.grounding.attributes is not None
            losses["distill"] = self.distillation(out.prompts, batch.grounding.attributes)
        if self.losses.kin > 0:
            assert self.kin is not None and out.image_tokens is not None and batch.grounding.kin is not None
            logits = self.kin(out.image_tokens)
            losses["kin"] = kin_loss(logits, batch.grounding.kin)
            losses["watch_size"] = kin_right(logits, batch.grounding.kin)
        if self.losses.named > 0:
            assert self.named is not None
            states = out.prompts.new_zeros(0, self.named.dim) if out.named is None else out.named
            losses["named"], losses["watch_named"] = named_loss(self.named(states), batch.grounding)
        if batch.pixels is not None:
            assert self.pixels is not None
            losses |= {f"pixels_{name}": value for name, value in self.pixels(batch.pixels).items()}
        return losses

    def where(self, out: Output, batch: Batch) -> Tensor:
        """Where all prompts point, decoded or not, and all boxes that are spelt, against the boxes of their regions."""
        assert self.pixels is not None and batch.target_boxes is not None
        prompts, wanted = out.prompts, batch.target_boxes
        if out.spelt is not None:
            prompts, wanted = torch.cat([prompts, out.spelt]), torch.cat([wanted, batch.spelt_boxes])
        known = wanted.isfinite().all(1)
        boxes = self.pixels.bridge.look(prompts)
        return box_loss(boxes[known], wanted[known]).mean() if known.any() else boxes.sum() * 0

    def distillation(self, prompts: Tensor, attributes: dict[str, Tensor]) -> Tensor:
        """Squared distance of `[SEG]` prompts to semantic ones, in units of their variance."""
        assert self.pixels is not None
        if not len(prompts):
            return prompts.sum()
        with torch.no_grad():
            wanted = self.pixels.semantic(Attributes(**attributes)).float()
        return F.mse_loss(prompts.float(), wanted) / wanted.var().clamp_min(1e-6)

    def weights(self) -> dict[str, float]:
        own = self.losses.model_dump(exclude={"mask_size", "token_weight"})
        return own | {f"pixels_{name}": self.pixels_weight * value for name, value in WEIGHTS.items()}


TOKEN_POWER = {"token": 0.0, "square": 0.5, "answer": 1.0}
"""`LossConfig.token_weight` as the power of an answer's length that divides the weight of its tokens."""


def token_loss(out: Output, power: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled tokens of the batch; 0 (with a graph) where there are none.

    Args:
        out: of the model.
        power: a token of an answer of n tokens weighs n ** -power in the mean.
    """
    if not len(out.token_labels):
        return out.token_logits.float().sum()
    if not power:
        return F.cross_entropy(out.token_logits.float(), out.token_labels)
    losses = F.cross_entropy(out.token_logits.float(), out.token_labels, reduction="none")
    weights = out.answers.bincount()[out.answers].float() ** -power
    return (losses * weights).sum() / weights.sum()


def mask_losses(out: Output, batch: Batch) -> dict[str, Tensor]:
    """Mean BCE and Dice over all masks of the batch, at the decoder's size or at the image's."""
    logits = out.mask_logits.float()
    if not len(logits):
        return {"bce": logits.sum(), "dice": logits.sum()}
    if not batch.originals:
        return {
            "bce": bce_loss(logits, batch.mask_targets).mean(),
            "dice": dice_loss(logits, batch.mask_targets).mean(),
        }
    bce, dice = [], []
    images = [batch.target_regions[int(number)][0] for number in batch.picked]
    for image, logit, target in zip(images, logits, batch.originals, strict=True):
        full = batch.canvases[image].logits_back(logit[None])
        bce.append(bce_loss(full, target[None].float()))
        dice.append(dice_loss(full, target[None].float()))
    return {"bce": torch.cat(bce).mean(), "dice": torch.cat(dice).mean()}


def quality_loss(out: Output, batch: Batch) -> Tensor:
    """Squared error of the predicted IoU against what the mask really has, at the decoder's size."""
    if not len(out.mask_logits):
        return out.masks.scores.sum() * 0
    inside, wanted = out.mask_logits.detach() > 0, batch.mask_targets > 0.5
    iou = (inside & wanted).sum((1, 2)) / (inside | wanted).sum((1, 2)).clamp_min(1)
    return F.mse_loss(out.masks.scores[:, 0].float(), iou)
