"""Images, regions and text to what the model reads; saved beside the weights.

Two frames: the bridge's square (longest side, padded right and bottom) and, with a CLIP tower, CLIP's own square.
CLIP's pixels come from transformers' PIL image processor by name: the same with and without torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.encode import Encoder, pad_rows
from mglmm.formats import prompt_format
from mglmm.inputs import Batch, Seen
from mglmm.model_config import MglmmConfig
from mglmm.pieces import Tokens
from mglmm.tokens import LiteralTokenizer, special_ids
from mglmm_data.sample import Region, Sample
from sam_bridge import small
from sam_bridge.bridge import Frames
from sam_bridge.canvas import Canvas, Size
from sam_bridge.sam import PIXEL_MEAN, PIXEL_STD

FILE = "processor_config.json"


class MglmmProcessor:
    """What stands between samples and the model; needs a tokenizer and the model's config, no weights.

    Args:
        tokenizer: with the markers of `mglmm.tokens`.
        config: of the model.
        clip: the CLIP image processor; with `vision: clip` only.

    Raises:
        ValueError: tokenizer and config do not belong together.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: MglmmConfig, clip: CLIPImageProcessorPil | None = None
    ):
        self.tokenizer, self.config, self.clip = tokenizer, config, clip
        self.form = prompt_format(config.prompt_format)
        self.ids = special_ids(tokenizer, self.form.region)
        for name, found in (("seg_token_id", self.ids.seg), ("region_token_id", self.ids.region)):
            if getattr(config, name) != found:
                raise ValueError(
                    f"the config's {name} is {getattr(config, name)}, the tokenizer's {found}; they must agree"
                )
        if config.image_token_id != self.ids.image:
            raise ValueError(f"the config's image token is {config.image_token_id}, the tokenizer's {self.ids.image}")
        if (clip is None) != (config.vision == "shared"):
            raise ValueError(
                f"vision is {config.vision}: a CLIP image processor must {'not ' * (clip is not None)}be given"
            )
        self.literal = LiteralTokenizer(tokenizer)
        if config.small_config is not None:
            self.side = int(config.small_config["side"])
            self.mask_side, grid = self.side // 2, self.side // small.PATCH
            self.mean, self.std = (small.PIXEL_MEAN,) * 3, (small.PIXEL_STD,) * 3
        else:
            vision = (config.sam_config or {})["vision_config"]
            vision = vision if isinstance(vision, dict) else vision.to_dict()
            self.side, grid = int(vision["image_size"]), int(vision["image_size"]) // int(vision["patch_size"])
            self.mask_side, self.mean, self.std = 4 * grid, PIXEL_MEAN, PIXEL_STD
        if clip is not None:
            grid = config.tower_grid
        self.encoder = Encoder(self.literal, self.ids, self.form, grid**2)

    def canvas(self, size: Size) -> Canvas:
        """The bridge's frame of an image of `size` (H, W)."""
        return Canvas.longest_side(size, self.side)

    def region_canvas(self, size: Size) -> Canvas:
        """The frame regions are pooled in: the one whose tokens the language model sees.

        CLIP's processor resizes the shorter side and crops the centre (`clip_frame: crop`); with square pixels padded
        first nothing is lost, so images are padded to a square by default (LLaVA's `image_aspect_ratio: pad`).
        """
        if self.clip is None:
            return self.canvas(size)
        if self.config.clip_frame == "crop":
            return Canvas.crop_square(size, self.config.tower_side)
        return Canvas.pad_square(size, self.config.tower_side)

    @property
    def needed(self) -> tuple[int, int]:
        """(longer, shorter) side, px, from which on a larger picture shows the model nothing more."""
        if self.clip is None:
            return self.side, 1
        tower = self.config.tower_side
        return (self.side, tower) if self.config.clip_frame == "crop" else (max(self.side, tower), 1)

    def pixels(
        self, images: Sequence[np.ndarray], sizes: Sequence[Size] | None = None
    ) -> tuple[Frames, Frames | None, tuple[Canvas, ...]]:
        """uint8[H, W, 3] images to the bridge's frames, CLIP's or None, and the canvases of the bridge's.

        `sizes` are the pictures' own (H, W), px, where images were decoded smaller: the canvases are for those.
        """
        shapes = [(image.shape[0], image.shape[1]) for image in images]
        canvases = tuple(self.canvas(size) for size in sizes or shapes)
        drawn = [replace(own, image=shape, padded=shape) for own, shape in zip(canvases, shapes, strict=True)]
        frames = Frames.draw(images, drawn, self.mean, self.std)
        if self.clip is None:
            return frames, None, canvases
        return frames, self.clip_frames(images), canvases

    def clip_frames(self, images: Sequence[np.ndarray]) -> Frames:
        """uint8[H, W, 3] images in CLIP's frame, resized by its own processor."""
        assert self.clip is not None
        if self.config.clip_frame == "pad":
            red, green, blue = (int(255 * value) for value in self.clip.image_mean)
            shapes = [(image.shape[0], image.shape[1]) for image in images]
            squares = [Canvas.pad_square(shape, max(shape)) for shape in shapes]
            fill = (red, green, blue)
            images = [square.apply_image(image, fill=fill) for square, image in zip(squares, images, strict=True)]
        pictures = [Image.fromarray(image) for image in images]
        found = self.clip(images=pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        side = (found.shape[2], found.shape[3])
        scale = self.clip.rescale_factor if self.clip.do_rescale else 1.0
        mean, std = (self.clip.image_mean, self.clip.image_std) if self.clip.do_normalize else ([0.0] * 3, [1.0] * 3)
        mean, std = (tuple(value / scale for value in each) for each in (mean, std))
        return Frames(values=found, inner=(side,) * len(found), mean=mean, std=std)

    def coverage(self, regions: Sequence[Region]) -> Tensor:
        """float[G, g, g]: share of each cell of the region grid that a region covers."""
        cells = self.config.region_grid
        if not regions:
            return torch.zeros(0, cells, cells)
        return torch.stack([self.region_canvas(region.size).grid(region.mask, cells) for region in regions])

    def region_boxes(self, regions: Sequence[Region]) -> Tensor:
        """float32[G, 4]: tight boxes of regions, xyxy, shares of the frame they are pooled in; NaN where empty.

        With `box_frame: image` in the region encoder's config (GLaMM's weights) they are shares of the image's own
        sides, whatever part of it CLIP sees.
        """
        if (self.config.region_config or {}).get("box_frame") == "image":
            return square_boxes([(Canvas.resize(region.size, (1, 1)), region) for region in regions])
        return square_boxes([(self.region_canvas(region.size), region) for region in regions])

    def said(self, tokens: Tokens, regions: Sequence[Region]) -> tuple[tuple[int, ...], Tensor]:
        """Where earlier answers in a prompt ground something: places in its ids, and boxes as `Batch.target_boxes`."""
        segs = [place for place, token in enumerate(tokens.ids) if token == self.ids.seg]
        found = [*zip(segs, tokens.targets, strict=True), *tokens.spelt]
        boxes = square_boxes([(self.canvas(regions[index].size), regions[index]) for _, index in found])
        return tuple(place for place, _ in found), boxes

    def batch(
        self,
        samples: Sequence[Sample],
        *,
        share_prefix: bool = True,
        max_length: int = 2048,
        masks_per_image: int | None = None,
        original: bool = False,
        rng: np.random.Generator | None = None,
        seen: Seen | None = None,
    ) -> tuple[Batch, int]:
        """Samples to one training batch, and how many conversations did not fit into `max_length`.

        Args:
            samples: one image each.
            share_prefix: conversations of an image in one row; else one row each, with the image repeated.
            masks_per_image: decode at most so many masks of an image, drawn by `rng`; None decodes all.
            original: mask targets at the size of the image instead of the decoder's.
            seen: what the encoders make of the images, in place of their pixels.

        Raises:
            ValueError: no conversation of any sample fits, or none has one.
        """
        if seen is None:
            pixels, clip, canvases = self.pixels([each.image for each in samples], [each.size for each in samples])
        else:
            pixels, clip, canvases = None, None, tuple(self.canvas(sample.size) for sample in samples)
        rows, row_image, left_out = [], [], 0
        for index, sample in enumerate(samples):
            found, lost = self.encoder.rows(sample, share_prefix, max_length)
            rows += found
            row_image += [index] * len(found)
            left_out += lost
        if not rows:
            raise ValueError(nothing_in(samples, left_out, max_length))
        given = [(i, index) for i, row in zip(row_image, rows, strict=True) for index in row.given]
        targets = [(i, index) for i, row in zip(row_image, rows, strict=True) for index in row.targets]
        spelt = [(number, place, index) for number, row in enumerate(rows) for place, index in row.spelt]
        named = [(number, place, index) for number, row in enumerate(rows) for place, index in row.named]

        def places(found: Sequence[tuple[int, int, int]]) -> torch.Tensor:
            return torch.tensor([(row, place) for row, place, _ in found], dtype=torch.long).view(-1, 2)

        def boxes_of(found: Sequence[tuple[int, int, int]]) -> torch.Tensor:
            return square_boxes([(canvases[row_image[r]], samples[row_image[r]].regions[i]) for r, _, i in found])

        picked = pick([image for image, _ in targets], masks_per_image, rng)
        chosen = [targets[number] for number in picked]
        size = 0 if original else self.mask_side
        masks = [
            canvases[i].masks(samples[i].regions[r].mask[None], (size, size))[0] for i, r in chosen if not original
        ]
        batch = Batch(
            pixels=pixels,
            clip_pixels=clip,
            seen=seen,
            row_image=torch.tensor(row_image),
            **pad_rows(rows, self.ids.pad),
            region_masks=self.coverage([samples[i].regions[r] for i, r in given]),
            region_image=torch.tensor([i for i, _ in given], dtype=torch.long),
            region_boxes=self.region_boxes([samples[i].regions[r] for i, r in given]),
            picked=torch.tensor(picked, dtype=torch.long),
            mask_targets=torch.stack(masks) if masks else torch.zeros(len(chosen) if original else 0, size, size),
            originals=tuple(torch.from_numpy(samples[i].regions[r].mask) for i, r in chosen) if original else (),
            canvases=canvases,
            target_regions=tuple(targets),
            target_boxes=square_boxes([(canvases[i], samples[i].regions[r]) for i, r in targets]),
            spelt=places(spelt),
            spelt_boxes=boxes_of(spelt),
            named=places(named),
            named_boxes=boxes_of(named),
        )
        return batch, left_out

    def save_pretrained(self, folder: str | Path) -> None:
        """Tokenizer files and, with a CLIP tower, its image processor's."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if self.clip is not None:
            self.clip.save_pretrained(folder)
        content = {"processor_class": type(self).__name__, "prompt_format": self.form.name}
        Path(folder, FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> MglmmProcessor:
        """From a folder (or hub name) written by `save_pretrained` beside the model."""
        config = MglmmConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        clip = CLIPImageProcessorPil.from_pretrained(folder) if config.vision == "clip" else None
        return cls(tokenizer, config, clip)


def pick(images: Sequence[int], limit: int | None, rng: np.random.Generator | None) -> list[int]:
    """Positions to decode: all, or at most `limit` of each image, drawn at random, in order."""
    if limit is None:
        return list(range(len(images)))
    rng = rng or np.random.default_rng(0)
    chosen: list[int] = []
    for image in sorted(set(images)):
        own = [position for position, each in enumerate(images) if each == image]
        chosen += own if len(own) <= limit else rng.choice(own, limit, replace=False).tolist()
    return sorted(chosen)


def square_boxes(regions: Sequence[tuple[Canvas, Region]]) -> torch.Tensor:
    """Tight boxes of regions in their squares: float32[M, 4], xyxy, shares of the side; NaN where a mask is empty."""
    boxes = np.full((len(regions), 4), np.nan, np.float32)
    for row, (canvas, region) in zip(boxes, regions, strict=True):
        if region.bounds is not None:
            row[:] = canvas.boxes(np.asarray(region.bounds, np.float32)) / canvas.frame[0]
    return torch.from_numpy(boxes)


AutoProcessor.register(MglmmConfig, MglmmProcessor)


def nothing_in(samples: Sequence[Sample], left_out: int, max_length: int | None) -> str:
    """What to say of samples that leave no row to learn from, after so many conversations were too long."""
    names = ", ".join(repr(sample.id) for sample in samples)
    if not left_out:
        return f"sample {names} has no conversation to learn from; give it one, or leave it out"
    return f"sample {names}: none of {left_out} conversations fits into max_length {max_length}; raise it"
