"""Invertible maps between an image as loaded and the frame a model reads.

Coordinates are continuous: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), a box's x2, y2 are exclusive.
A map is: pad the image (centred, LLaVA only), resize, pad right and bottom (SAM only); each step is affine.

H x W image as loaded, h x w the model's frame, N masks, q the side of a decoder's output over the whole frame.
Sources: segment-anything `utils/transforms.py` (ResizeLongestSide) and `modeling/sam.py` (postprocess_masks);
LLaVA `mm_utils.py` (expand2square).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(height, width), px."""

Resample = Literal["bilinear", "bicubic"]

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """One image's way into a model's frame and back; build it with `longest_side`, `resize` or `pad_square`."""

    image: Size  # as loaded, px
    padded: Size  # after padding in image px; equals `image` where the map does not pad first
    origin: tuple[int, int]  # (x, y) of the image's corner inside `padded`, image px
    inner: Size  # `padded` after the resize, model px, at the frame's upper left corner
    frame: Size  # what the model reads, model px
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        for name in ("image", "padded", "inner", "frame"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"canvas {name} size is {getattr(self, name)}; both sides must be at least 1 px")
        if self.inner[0] > self.frame[0] or self.inner[1] > self.frame[1]:
            raise ValueError(
                f"inner size {self.inner} exceeds the frame {self.frame}; use Canvas.longest_side to fit it"
            )

    @classmethod
    def longest_side(cls, size: Size, side: int, *, resample: Resample = "bilinear") -> Canvas:
        """SAM's map: the longest side becomes `side`, zeros fill the square at the right and bottom.

        Sizes round as upstream, `int(x * scale + 0.5)`; a side that would vanish keeps 1 px (upstream fails there).
        """
        _check(size)
        scale = side / max(size)
        inner = (max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5)))
        return cls(image=size, padded=size, origin=(0, 0), inner=inner, frame=(side, side), resample=resample)

    @classmethod
    def resize(cls, size: Size, frame: Size, *, resample: Resample = "bilinear") -> Canvas:
        """Plain resize to `frame` (h, w), aspect ratio not kept."""
        _check(size)
        return cls(image=size, padded=size, origin=(0, 0), inner=frame, frame=frame, resample=resample)

    @classmethod
    def pad_square(cls, size: Size, side: int, *, resample: Resample = "bicubic") -> Canvas:
        """LLaVA's map: pad to a centred square in image px (odd rest goes right or below), then resize to `side`."""
        _check(size)
        longest = max(size)
        origin = ((longest - size[1]) // 2, (longest - size[0]) // 2)
        square = (longest, longest)
        return cls(image=size, padded=square, origin=origin, inner=(side, side), frame=(side, side), resample=resample)

    @classmethod
    def crop_square(cls, size: Size, side: int, *, resample: Resample = "bicubic") -> Canvas:
        """CLIP's map: the centred square of the image's shorter side, resized to `side`; the rest is not seen.

        For points, boxes and masks; pixels come from CLIP's own processor. To within half a pixel (it crops after it
        resizes).
        """
        _check(size)
        shortest = min(size)
        origin = ((shortest - size[1]) // 2, (shortest - size[0]) // 2)
        square = (shortest, shortest)
        return cls(image=size, padded=square, origin=origin, inner=(side, side), frame=(side, side), resample=resample)

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) model px per image px."""
        return self.inner[1] / self.padded[1], self.inner[0] / self.padded[0]

    def draw(self, image: Image.Image | np.ndarray, *, fill: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
        """Draw the image into the frame.

        Args:
            image: PIL image (converted to RGB) or uint8[H, W, 3].
            fill: RGB 0..255 of every padded pixel.

        Returns:
            uint8[3, h, w]; may share the image's memory where nothing changes.

        Raises:
            ValueError: the image has another size or dtype than this canvas was built for.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"expected uint8[H, W, 3], got {image.dtype}{list(image.shape)}; convert to 8-bit RGB first"
                )
            pixels = np.require(image, requirements=["C", "W"])  # as PyTorch takes it; copies only where it must
        else:
            pixels = np.array(image.convert("RGB"))
        found = (pixels.shape[0], pixels.shape[1])
        if found != self.image:
            raise ValueError(
                f"the image is {found} (height, width), this canvas was built for {self.image}; build one per image"
            )
        drawn = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.padded != self.image:
            drawn = _placed(drawn, self.padded, self.origin, fill)
        if self.inner != self.padded:
            drawn = resized(drawn, self.inner, self.resample)
        return drawn if self.inner == self.frame else _placed(drawn, self.frame, (0, 0), fill)

    def apply_image(self, image: Image.Image | np.ndarray, *, fill: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
        """`draw`, as a picture of its own: uint8[h, w, 3]."""
        return np.array(self.draw(image, fill=fill).permute(1, 2, 0).numpy(), order="C")

    def points(self, xy: Array) -> Array:
        """float[..., 2] (x, y) from image px to model px; an integer input comes back as float."""
        return self._affine(xy, forward=True)

    def points_back(self, xy: Array) -> Array:
        """float[..., 2] (x, y) from model px to image px; not clipped to the image."""
        return self._affine(xy, forward=False)

    def boxes(self, xyxy: Array) -> Array:
        """float[..., 4] x1, y1, x2, y2 from image px to model px."""
        return self._affine(xyxy, forward=True)

    def boxes_back(self, xyxy: Array) -> Array:
        """float[..., 4] x1, y1, x2, y2 from model px to image px; not clipped to the image."""
        return self._affine(xyxy, forward=False)

    def masks(self, masks: np.ndarray | Tensor, size: Size | None = None) -> Tensor:
        """Share of every frame cell that each mask covers, exact (box filter), 0 in the padding.

        Args:
            masks: bool or float[N, H, W], image px.
            size: (rows, columns) that divide the whole frame; None: the frame's own pixels.

        Returns:
            float32[N, rows, columns] in 0..1; `> 0.5` is the mask in model px.

        Raises:
            ValueError: the masks have another size than the image.
        """
        masks_NHW = torch.as_tensor(masks)
        if masks_NHW.ndim != 3 or tuple(masks_NHW.shape[1:]) != self.image:
            raise ValueError(
                f"masks of shape {tuple(masks_NHW.shape)} do not fit; expected (N, {self.image[0]}, {self.image[1]})"
            )
        rows, columns = size or self.frame
        down = _overlap(rows, self.frame[0] / self.scale[1], self.image[0], self.origin[1]).to(masks_NHW.device)
        across = _overlap(columns, self.frame[1] / self.scale[0], self.image[1], self.origin[0]).to(masks_NHW.device)
        return down @ masks_NHW.float() @ across.T

    def grid(self, mask: np.ndarray | Tensor, cells: int) -> Tensor:
        """Coverage of each patch cell by one mask, to pool features with: bool[H, W] -> float32[cells, cells]."""
        return self.masks(torch.as_tensor(mask)[None], (cells, cells))[0]

    def logits_back(self, logits: Tensor) -> Tensor:
        """Bring mask logits over the whole frame back to image px, as SAM's `postprocess_masks`.

        Args:
            logits: float[N, q, q] before the sigmoid, any dtype.

        Returns:
            float32[N, H, W]; a pixel is in the mask where it is above 0.
        """
        frame_N1hw = F.interpolate(logits[:, None].float(), self.frame, mode="bilinear", align_corners=False)
        inner_N1hw = frame_N1hw[..., : self.inner[0], : self.inner[1]]
        padded_N1HW = F.interpolate(inner_N1hw, self.padded, mode="bilinear", align_corners=False)
        (x, y), (height, width) = self.origin, self.image
        return padded_N1HW[:, 0, y : y + height, x : x + width]

    def _affine(self, values: Array, *, forward: bool) -> Array:
        pairs = values.shape[-1] // 2
        if isinstance(values, Tensor):
            values = values if values.is_floating_point() else values.float()
            scale, origin = values.new_tensor(self.scale * pairs), values.new_tensor(self.origin * pairs)
        else:
            scale, origin = np.array(self.scale * pairs), np.array(self.origin * pairs, float)
        return (values + origin) * scale if forward else values / scale - origin  # pyright: ignore


def resized(pixels: Tensor, size: Size, resample: Resample) -> Tensor:
    """uint8[3, H, W] at another size: Pillow's filters by PyTorch's kernels for bytes.

    A third of Pillow's time here; on photographs one value in ten thousand is a grey level apart.
    """
    return F.interpolate(pixels[None], size, mode=resample, antialias=True)[0]


def _placed(pixels: Tensor, size: Size, origin: tuple[int, int], fill: tuple[int, int, int]) -> Tensor:
    """uint8[3, h, w] at `origin` (x, y) of a picture of `size` that is `fill` elsewhere."""
    out = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).expand(3, *size).contiguous()
    out[:, origin[1] : origin[1] + pixels.shape[1], origin[0] : origin[0] + pixels.shape[2]] = pixels
    return out


def _check(size: Size) -> None:
    if min(size) < 1:
        raise ValueError(f"the image is of size {size} (height, width); both sides must be at least 1 px")


@lru_cache(maxsize=64)
def _overlap(cells: int, extent: float, pixels: int, origin: int) -> Tensor:
    """float32[cells, pixels]: share of cell i (of `cells` over `extent` px) on pixel j; pixel 0 begins at `origin`."""
    edges = torch.linspace(0, extent, cells + 1, dtype=torch.float64)
    starts = torch.arange(pixels, dtype=torch.float64) + origin
    left = torch.maximum(edges[:-1, None], starts)
    right = torch.minimum(edges[1:, None], starts + 1)
    return ((right - left).clamp(min=0) * cells / extent).float()
