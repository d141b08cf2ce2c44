"""What a grounded phrase leaves behind: the box it points to is added to the input of the token that says so.

The state that emits `[SEG]`, or the first letter of a box, is the last one of its place: nothing that later tokens
attend to knows where it came to point. Read back, the box tells a list where it has got to, and a box only has to be
spelt. In training the true box is read back, a little off; in generation the one the bridge's decoder looks at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BANDS = 10
"""Frequencies of each coordinate: waves from four sides of the square down to 1/128 of one."""
OFF = (0.08, 0.005)
"""Standard deviation of what training adds: a share of the box's own width or height, and a share of the side."""


class BoxFeedback(nn.Module):
    """Boxes float[B, 4] (xyxy, shares of the square's side) to what is added to inputs, float[B, D]; zero at first."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8 * BANDS, dim), nn.GELU(), nn.Linear(dim, dim))
        silence(self.mlp[2])

    def forward(self, boxes: Tensor) -> Tensor:
        """Rows that are not finite (an empty mask has no box) add nothing."""
        known = boxes.isfinite().all(1, keepdim=True)
        bands = 2.0 ** torch.arange(BANDS, device=boxes.device) * torch.pi / 2
        angles = (boxes.nan_to_num()[..., None] * bands).flatten(1)
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(next(self.parameters()).dtype)
        return self.mlp(waves) * known


def silence(layer: nn.Module) -> None:
    """Zero a layer, so that a model that gains it says what it said before."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def a_little_off(boxes: Tensor) -> Tensor:
    """Boxes float[B, 4] as they are read back in training, moved by normal noise of the size `OFF`."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + torch.randn_like(boxes) * (OFF[0] * size + OFF[1])
