"""Where the things stand that a question names, told half-way up the language model.

"The dog left of the red ball" is answered in two steps: where is the red ball, and which dog is left of there. Trained
by the answer alone, the first step is learnt only as far as the second one works. A head that is never shipped reads
the box from the state of the name's last token after half of the layers. The other half can then compare.

K names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mglmm.inputs import Batch
from mglmm.losses import box_loss


class NamedHead(nn.Module):
    """States float[K, D] to boxes float[K, 4], xyxy, shares of the square; a box may reach past its edge."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))

    def forward(self, states: Tensor) -> Tensor:
        center, size = self.layers(states).float().sigmoid().chunk(2, -1)
        return torch.cat([center - size / 2, center + size / 2], -1)


def named_loss(boxes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean box loss of what questions name, and the mean distance of the centres (shares of the side), to watch.

    Both are 0 where nothing is named (the loss with a graph); such batches pull the logged distance down.
    """
    known = batch.named_boxes.isfinite().all(1)
    if not known.any():
        return boxes.sum() * 0, boxes.detach().sum() * 0
    boxes, wanted = boxes[known], batch.named_boxes[known]
    centers = [(each[:, :2] + each[:, 2:]) / 2 for each in (boxes.detach(), wanted)]
    return box_loss(boxes, wanted).mean(), (centers[0] - centers[1]).norm(dim=1).mean()
