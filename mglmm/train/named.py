"""Where the things stand that a question names, told half-way up the language model.

"The dog left of the red ball" takes steps: where is the red ball, which dog is the leftmost, and is that left of the
ball. Trained by the answer alone, a step is learnt only as far as the others work. A head that is never shipped reads
boxes from the states of names' last tokens after half of the layers ("the dog left of": the leftmost dog, for if any
dog is left of the ball, it is). The other half can then compare.

K names.
"""

from __future__ import annotations

from torch import Tensor, nn

from mglmm.inputs import Batch
from mglmm.losses import box_loss
from sam_bridge.small import centred, corners


class NamedHead(nn.Module):
    """States float[K, D] to boxes float[K, 4], xyxy, shares of the square; a box may reach past its edge."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))

    def forward(self, states: Tensor) -> Tensor:
        return corners(self.layers(states).float().sigmoid())


def named_loss(boxes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean box loss of what questions name, and the mean distance of the centres (shares of the side), to watch.

    Both are 0 where nothing is named (the loss with a graph); such batches pull the logged distance down.
    """
    known = batch.named_boxes.isfinite().all(1)
    if not known.any():
        return boxes.sum() * 0, boxes.detach().sum() * 0
    boxes, wanted = boxes[known], batch.named_boxes[known]
    off = (centred(boxes.detach()) - centred(wanted))[:, :2]
    return box_loss(boxes, wanted).mean(), off.norm(dim=1).mean()
