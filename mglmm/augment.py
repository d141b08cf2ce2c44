"""Augmentation of samples: light, blur, noise; cropping in; mirroring, with the words for left and right.

What moves with the pixels: masks, boxes, points, scribbles, reading order, and in mirrored samples the text with its
spans. What would make a sample untrue is not done: a crop that cuts a spoken-of region away, or that a caption, a count
or a place in the frame would not survive; a mirror where "left" or "right" may not mean a side. albumentations stays
behind this interface: version 2.0.8 is the last under MIT, its successor is AGPL and installs the same name.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from mglmm_data.sample import Box, Grounding, Point, Region, Sample, Turn, compose
from mglmm_data.telling import reading_order

SIDES = re.compile(r"\b(left|right)(?=\b|most\b|ward\b|wards\b|hand\b)", re.IGNORECASE)
OPPOSITE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
UNSURE = re.compile(
    r"(?<!\bthe )\bright (?:next|beside|behind|in|above|below|under|over|on|at|by|near|now|away|after|before|there|here"
    r"|up|down|outside|inside|against|through|into|out|off)\b"
    r"|\b(?:is|are|was|were|be|been|being|has|have|had|all) (?:right|left)\b(?! (?:of|to)\b)"
    r"|(?<!\bthe )\bleft (?:behind|alone|over|out|open|on|in|at|by|for|with|after|unattended)\b|\bleft-?overs?\b"
    r"|(?<!\bthe )\bleft (?:the|an?|his|her|its|their|my|our|your|him|them|us|waiting|standing|lying)\b"
    r"|\b(?:is|are|was|were|has|have) [^.,;?!]{0,30}(?<!\bthe )(?<!\bfar )(?<!\btop )(?<!\bbottom )\bleft[.?!]?$"
    r"|\bright (?:answer|angle|way|choice|amount|size|time|kind|place|order)s?\b|\b(?:that|this|it) (?:right|left)\b"
    r"|clockwise\b",
    re.IGNORECASE,
)
"""Uses of left and right that are no sides ("right next to", "was left open"); a sample with one is never mirrored."""
FRAME = re.compile(
    r"\b(?:on|at|to|from|in) (?:the )?(?:left|right|top|bottom|middle|center|centre)\b(?! of\b)"
    r"|\b(?:middle|cent(?:er|re))\b(?! of\b)|\bfar (?:left|right)\b|\b(?:top|bottom|upper|lower) (?:left|right)\b"
    r"|\b(?:left|right|top|bottom|upper|lower)-?most\b"
    r"|\bin the (?:upper|lower|foreground|background)\b"
    r"|\b(?:first|second|third|fourth|fifth|sixth|last)\b|\bhow many\b|\bcount\b|\bnumber of\b|\bcorner\b",
    re.IGNORECASE,
)
"""Words whose truth a crop may change: a place in the frame, a place in a row, a count."""


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """Strengths and chances; `augment: null` trains without."""

    photometric: float = Field(default=0.5, ge=0, le=1)  # chance of each photometric change, on its own
    brightness: float = Field(default=0.2, ge=0, lt=1)  # at most, share of full range
    contrast: float = Field(default=0.2, ge=0, lt=1)  # at most, share
    hue: float = Field(default=4.0, ge=0, le=90)  # at most, OpenCV's half degrees; more makes colour words false
    saturation: float = Field(default=20.0, ge=0, le=255)  # at most, of 255
    blur: float = Field(default=1.0, ge=0)  # Gaussian sigma at most, px
    noise: float = Field(default=0.04, ge=0, le=1)  # standard deviation at most, share of full range
    jpeg: int = Field(default=50, ge=1, le=100)  # lowest quality
    crop: float = Field(default=0.5, ge=0, le=1)  # chance of a crop, scaled back to the image's size
    smallest_crop: float = Field(default=0.6, gt=0, le=1)  # share of each side
    keep: float = Field(default=0.2, ge=0, le=1)  # least share of itself every region spoken of keeps, or no crop
    crop_tries: int = Field(default=4, ge=1)
    whole_tasks: tuple[str, ...] = ("caption", "vqa")  # tasks about the whole picture: no crop
    flip: float = Field(default=0.5, ge=0, le=1)  # chance of mirroring
    mirror: Literal["swap", "off"] = "swap"  # swap the text's sides where the source allows it, or never mirror


class Augment:
    """`Augment(config)(sample, rng)` gives a changed sample of the same size, the same for the same state of `rng`.

    `meta["augment"]` names what was done to the geometry: "crop", "mirror".
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        _albumentations()  # said now where it is missing, not in a worker

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Mirror, crop and change the light of a sample.

        Args:
            sample: regions of any kind; those no turn speaks of move along and may end up empty.
            rng: the only source of chance; the number of draws from it depends on the sample.
        """
        config = self.config
        done: tuple[str, ...] = ()
        if rng.random() < config.flip and config.mirror == "swap" and can_mirror(sample):
            sample = mirror(sample)
            done = ("mirror",)
        if rng.random() < config.crop and can_crop(sample, config.whole_tasks):
            for _ in range(config.crop_tries):
                cropped = self._crop(sample, rng)
                if cropped is not None:
                    sample, done = cropped, (*done, "crop")
                    break
        if config.photometric > 0:
            image = self._photometric(int(rng.integers(2**31)))(image=sample.image)["image"]
            sample = replace(sample, image=np.ascontiguousarray(image))
        return replace(sample, meta={**sample.meta, "augment": done})

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """A crop with every region that is spoken of, or None."""
        height, width = sample.size
        lowest = max(2, round(self.config.smallest_crop * height))
        A = _albumentations()
        crop = A.RandomSizedCrop(min_max_height=(lowest, height), size=sample.size, w2h_ratio=width / height, p=1)
        return _move(sample, crop, keep=self.config.keep, seed=int(rng.integers(2**31)))

    def _photometric(self, seed: int) -> Any:
        A, config = _albumentations(), self.config
        changes: list[Any] = []
        if config.brightness or config.contrast:
            changes.append(
                A.RandomBrightnessContrast(
                    brightness_limit=config.brightness, contrast_limit=config.contrast, p=config.photometric
                )
            )
        if config.hue or config.saturation:
            changes.append(
                A.HueSaturationValue(
                    hue_shift_limit=config.hue,
                    sat_shift_limit=config.saturation,
                    val_shift_limit=0,
                    p=config.photometric,
                )
            )
        if config.blur:
            changes.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, max(0.1, config.blur)), p=config.photometric))
        if config.noise:
            changes.append(A.GaussNoise(std_range=(0.0, config.noise), p=config.photometric))
        if config.jpeg < 100:
            changes.append(A.ImageCompression(quality_range=(config.jpeg, 100), p=config.photometric))
        return A.Compose(changes, seed=seed)


def can_mirror(sample: Sample) -> bool:
    """Whether mirroring leaves the text true once its sides are swapped.

    Its source must say so, `meta["mirror"] == "swap"` (the world does not: its scenes are endless and its lists go from
    left to right), and no "left" or "right" may be unsure.
    """
    return sample.meta.get("mirror") == "swap" and not any(UNSURE.search(turn.text) for turn in _turns(sample))


def can_crop(sample: Sample, whole_tasks: tuple[str, ...]) -> bool:
    """Whether a crop leaves the text true as long as what it speaks of stays in: no count, no place in the frame, and
    nothing said that points nowhere (of what is not there, it stays true).
    """
    for conversation in sample.conversations:
        points = any(turn.mentions or (turn.phrases and turn.role == "assistant") for turn in conversation.turns)
        refuses = conversation.task == "absent" or conversation.kind in ("none", "absent")
        if conversation.task in whole_tasks or not (points or refuses):
            return False
    return not any(FRAME.search(turn.text) for turn in _turns(sample))


def mirror(sample: Sample) -> Sample:
    """The sample seen in a mirror: pixels, regions, reading order, and left and right in text and labels."""
    moved = _move(sample, _albumentations().HorizontalFlip(p=1), mirrored=True)
    if moved is None:
        raise AssertionError("without `keep` nothing is refused")
    regions = tuple(replace(region, label=swap_sides(region.label)[0]) for region in moved.regions)
    names = {name: place for place, name in enumerate(sample.meta.get("names", ()))}

    def swapped(turn: Turn) -> Turn:
        turn = _swap_turn(turn)
        labels = [regions[phrase.regions[0]].label for phrase in turn.phrases]
        return _in_order(turn, [names[label] for label in labels]) if names.keys() >= set(labels) else turn

    conversations = tuple(
        replace(conversation, turns=tuple(swapped(turn) for turn in conversation.turns))
        for conversation in moved.conversations
    )
    return replace(moved, regions=regions, conversations=conversations)


def _in_order(turn: Turn, places: list[int]) -> Turn:
    """A turn that is a list, `the left door, the right door.`, sorted by the places of its phrases; others as they are.

    Lists follow the set's order of names (`meta["names"]`), which exchanging left and right would break.
    """
    ends = [0, *(phrase.end for phrase in turn.phrases)]
    gaps = [turn.text[end : phrase.start] for end, phrase in zip(ends, turn.phrases, strict=False)]
    if gaps != ["", *[", "] * (len(turn.phrases) - 1)]:
        return turn
    pieces: list[str | tuple[str, tuple[int, ...]]] = []
    for _, phrase in sorted(zip(places, turn.phrases, strict=True), key=lambda item: item[0]):
        pieces += [*([", "] if pieces else []), (turn.text[phrase.start : phrase.end], phrase.regions)]
    text, phrases = compose(*pieces, turn.text[ends[-1] :])
    return replace(turn, text=text, phrases=phrases)


def swap_sides(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Exchange left and right (leftmost, right-hand, ...) in a text.

    Returns:
        The text, and for each exchange (where it ended in the old text, by how many characters the text grew).
    """
    growth = [(found.end(), len(_opposite(found[0])) - len(found[0])) for found in SIDES.finditer(text)]
    return SIDES.sub(lambda found: _opposite(found[0]), text), growth


def _opposite(word: str) -> str:
    return OPPOSITE.get(word, OPPOSITE[word.lower()])


def _swap_turn(turn: Turn) -> Turn:
    text, growth = swap_sides(turn.text)

    def at(place: int) -> int:
        return place + sum(change for end, change in growth if end <= place)

    phrases = tuple(replace(phrase, start=at(phrase.start), end=at(phrase.end)) for phrase in turn.phrases)
    mentions = tuple(replace(mention, start=at(mention.start), end=at(mention.end)) for mention in turn.mentions)
    return replace(turn, text=text, phrases=phrases, mentions=mentions)


def _turns(sample: Sample) -> Iterator[Turn]:
    return (turn for conversation in sample.conversations for turn in conversation.turns)


def _spoken_of(sample: Sample) -> set[int]:
    """Indices of the regions that a phrase or a mention points at."""
    return {region for turn in _turns(sample) for region in turn.regions}


def _move(
    sample: Sample, change: Any, *, mirrored: bool = False, keep: float | None = None, seed: int = 0
) -> Sample | None:
    """Apply a geometric change of albumentations to pixels and regions, and read phrases in their new order.

    Returns:
        None where a region that is spoken of keeps less than the share `keep` of itself.
    """
    masked = [index for index, region in enumerate(sample.regions) if region.rle is not None]
    corners = [_points(region) for region in sample.regions]
    frame = [(0.0, 0.0), (float(sample.size[1]), float(sample.size[0]))]
    data: dict[str, Any] = {
        "image": sample.image if sample.full_size is None else np.zeros(sample.size, np.uint8),
        "keypoints": np.array([*frame, *itertools.chain.from_iterable(corners)], np.float32),
    }
    if masked:
        data["masks"] = [sample.regions[index].mask.astype(np.uint8) for index in masked]
    A = _albumentations()
    keypoints = A.KeypointParams(format="xy", remove_invisible=False)
    out = A.Compose([change], keypoint_params=keypoints, seed=seed)(**data)
    # albumentations mirrors x to W - 1 - x, as between pixel centres; ours are edges of pixels, W - x.
    points = np.asarray(out["keypoints"], np.float64)[:, :2] + (1.0 if mirrored else 0.0, 0.0)
    zoom = float(np.prod(np.abs(points[1] - points[0]))) / (sample.size[0] * sample.size[1])
    moved_masks = dict(zip(masked, out.get("masks", ()), strict=True))
    spoken_of, regions, place = _spoken_of(sample), [], len(frame)
    for index, region in enumerate(sample.regions):
        own = points[place : place + len(corners[index])]
        place += len(corners[index])
        moved, share = _moved(region, own, moved_masks.get(index), zoom)
        if keep is not None and index in spoken_of and share < keep:
            return None
        regions.append(moved)

    def reread(phrase: Grounding) -> Grounding:
        order = reading_order([regions[index] for index in phrase.regions])
        return replace(phrase, regions=tuple(phrase.regions[place] for place in order))

    conversations = tuple(
        replace(
            conversation,
            turns=tuple(
                replace(turn, phrases=tuple(reread(phrase) for phrase in turn.phrases)) for turn in conversation.turns
            ),
        )
        for conversation in sample.conversations
    )
    image = np.ascontiguousarray(out["image"]) if sample.full_size is None else _cut(sample, points[:2])
    return replace(sample, image=image, regions=tuple(regions), conversations=conversations)


def _cut(sample: Sample, frame: np.ndarray) -> np.ndarray:
    """The picture of a sample that was decoded smaller than it is, changed as its regions are.

    Args:
        frame: float[2, 2], where the corners (0, 0) and (W, H) of the whole picture came to lie, x, y px.
    """
    height, width = sample.image.shape[:2]
    full, low, extent = np.array(sample.size[::-1], float), frame[0], frame[1] - frame[0]
    begin, end = (-low / extent * full, (full - low) / extent * full)  # what is seen now, px of the picture before
    image = sample.image
    if extent[0] < 0:
        image, begin[0], end[0] = image[:, ::-1], full[0] - begin[0], full[0] - end[0]
    scale = (width, height) / full
    box = np.clip([*begin * scale, *end * scale], 0.0, (width, height, width, height))
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=tuple(box)))


def _points(region: Region) -> list[Point]:
    """What moves as points: a box's corners, a point, a scribble; nothing for a mask."""
    if region.box is not None:
        return [(region.box[0], region.box[1]), (region.box[2], region.box[3])]
    return list(region.scribble or ()) if region.point is None else [region.point]


def _moved(region: Region, points: np.ndarray, mask: np.ndarray | None, zoom: float) -> tuple[Region, float]:
    """A region after the change, and the share of it (0..1) that is still in the frame.

    Args:
        points: float[N, 2], `_points(region)` moved; they may lie outside.
        mask: uint8[H, W], the region's mask moved, for a region that has one.
        zoom: new area of what had area 1.
    """
    height, width = region.size
    gone = Region.of_mask(np.zeros(region.size, bool), region.label)
    if mask is not None:
        before = int(region.mask.sum())
        share = float(mask.sum()) / (before * zoom) if before else 1.0
        return Region.of_mask(mask.astype(bool), region.label), share
    inside = np.clip(points, 0.0, (width, height))
    if region.box is not None:
        (x1, y1), (x2, y2) = points
        low, high = inside.min(axis=0), inside.max(axis=0)
        new: Box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        share = (new[2] - new[0]) * (new[3] - new[1]) / (abs(x2 - x1) * abs(y2 - y1))
        return (replace(region, box=new), share) if share > 0 else (gone, 0.0)
    kept = [(float(x), float(y)) for x, y in inside[np.abs(inside - points).max(axis=1) < 1e-3]]
    share = len(kept) / len(points)
    if region.point is not None:
        return (replace(region, point=kept[0]), 1.0) if kept else (gone, 0.0)
    return (replace(region, scribble=tuple(kept)), share) if len(kept) >= 2 else (gone, 0.0)


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks PyPI for its newest version when imported
    try:
        import albumentations
    except ImportError:
        raise ValueError("augment needs albumentations: pip install 'mglmm[train]', or set augment: null") from None

    return albumentations
