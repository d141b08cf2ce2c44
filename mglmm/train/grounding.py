"""The losses of a grounding step: token cross-entropy, BCE + Dice on masks, and, on the world, prompt distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mglmm.config import LossConfig
from mglmm.inputs import Batch, Output
from mglmm.losses import bce_loss, dice_loss
from mglmm.model import Mglmm
from mglmm.train.pretrain import Attributes, SemanticPrompt


class GroundingTraining(nn.Module):
    """Model and, where there is one, the frozen semantic prompt that `[SEG]` projections are drawn to."""

    def __init__(self, model: Mglmm, losses: LossConfig, semantic: SemanticPrompt | None = None):
        super().__init__()
        if losses.distill > 0 and semantic is None:
            raise ValueError(
                "losses.distill needs the semantic prompt of a pixels stage; run one before, or set losses.distill=0"
            )
        self.model, self.losses, self.semantic = model, losses, semantic

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out: Output = self.model(batch)
        losses = {"ce": token_loss(out), **mask_losses(out, batch)}
        if self.losses.distill > 0:
            assert self.semantic is not None and batch.attributes is not None
            losses["distill"] = self.distillation(out.prompts, batch.attributes)
        return losses

    def distillation(self, prompts: Tensor, attributes: dict[str, Tensor]) -> Tensor:
        """Squared distance of `[SEG]` prompts to semantic ones, in units of their variance."""
        assert self.semantic is not None
        if not len(prompts):
            return prompts.sum()
        with torch.no_grad():
            wanted = self.semantic(Attributes(**attributes)).float()
        return F.mse_loss(prompts.float(), wanted) / wanted.var().clamp_min(1e-6)

    def weights(self) -> dict[str, float]:
        return self.losses.model_dump(exclude={"mask_size"})


def token_loss(out: Output) -> Tensor:
    """Mean cross-entropy over the labelled tokens of the batch; 0 (with a graph) where there are none."""
    if not len(out.token_labels):
        return out.token_logits.float().sum()
    return F.cross_entropy(out.token_logits.float(), out.token_labels)


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
