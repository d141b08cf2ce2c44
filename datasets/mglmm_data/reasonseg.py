"""ReasonSeg: implicit questions about a photograph, whose answer is a mask; and LISA's explanatory answers.

    ROOT/{train,val,test}/NAME.jpg and NAME.json     ROOT/explanatory/train.json

`ROOT` is `ReasonSeg` or a folder above it (`reason_seg/ReasonSeg`). A json holds `text` (expressions of one target),
`is_sentence` and labelme-like `shapes`: `target` counts, `ignore` is neither right nor wrong, `flag` means nothing.
Source: dvlab-research/LISA, `utils/data_processing.py` (shapes are drawn from the largest to the smallest, with their
border) and `utils/reason_seg_dataset.py` (how often an explanation is asked for).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import MARKS, asked, check_turns, choose, locate, unasked
from mglmm_data.masks import FARTHEST, Size
from mglmm_data.reading import Packed, Problems, is_number, load_picture, read_json, shown, take, take_line
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose
from mglmm_data.telling import near

WORDS_ONLY = 0.1
"""Share of explained questions that are answered in words alone; of the rest, half say why beside the mask (LISA)."""
LENGTHS = ("all", "short", "long")
SAY_WHY = ("Say why.", "Please explain why.", "And give the reason.", "Tell me the reason, too.")
EXPLAIN = ("Answer in words.", "Explain in words.", "No mask, please: just tell me.")
HERE = (("It is ", "this region"), ("Here: ", "this region"), ("The answer is ", "this region"))


class ReasonSource:
    """ReasonSeg, one split; a sample is an image with up to `turns` of its texts.

    Args:
        root: the folder above.
        split: train, val or test.
        length: `short` (phrases) or `long` (sentences) takes only those, as the test set's subsets do.
        explain: whether explanations, where there are any (`explanatory/train.json`), are told.
        turns: texts drawn for each image; null asks all of them, in the file's order.

    Raises:
        ValueError: the folder is missing or empty, or (with on_error: fail) a json is malformed or has no image.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        split: str = "train",
        length: str = "all",
        explain: bool = True,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if length not in LENGTHS:
            raise ValueError(f"length is {length!r}{near(length, LENGTHS)}")
        self.turns, self.seed, self.mirror, self.split = check_turns(turns), seed, mirror, split
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        ways = [f"{folder}{split}" for folder in ("", "ReasonSeg/", "reason_seg/ReasonSeg/")]
        self.folder = locate(root, ways, f"folder of ReasonSeg's {split} split", Path.is_dir)
        why = self._explanations(self.folder.parent / "explanatory" / "train.json") if explain else {}
        entries: list[list[Any]] = []
        for path in sorted(self.folder.glob("*.json")):
            with self.problems.at(str(path)):
                if (entry := self._read(path, why)) and length in ("all", "long" if entry[1] else "short"):
                    entries.append(entry)
        if not entries and not self.problems.found:
            raise ValueError(f"{self.folder} has no json with a target (length: {length}); put NAME.jpg and NAME.json")
        self._entries = Packed(entries)

    def _explanations(self, path: Path) -> dict[str, str]:
        """Image -> why, of every image that is explained."""
        told: dict[str, str] = {}
        for number, record in enumerate(read_json(path, list) if path.is_file() else ()):
            with self.problems.at(f"{path}: record number {number}"):
                told[take(record, "image", str)] = take_line(record, "outputs")
        return told

    def _read(self, path: Path, why: dict[str, str]) -> list[Any] | None:
        """[json's stem, whether a sentence, texts, explanation or None], after a check of everything in the json."""
        if not path.with_suffix(".jpg").is_file():
            raise ValueError(f"its image {path.with_suffix('.jpg').name} is missing beside it")
        record, _ = read_latin(path)
        shapes = read_shapes(record)
        if not any(value for value, _ in shapes):
            self.skipped["image without a target"] += 1
            return None
        texts = [" ".join(text.split()) if isinstance(text, str) else text for text in take(record, "text", list)]
        for text in texts:
            if not isinstance(text, str) or not text:
                raise ValueError(f"its 'text' holds {shown(text)}; expected questions or phrases")
        sentence = record.get("is_sentence")
        if not isinstance(sentence, bool) or not texts:
            raise ValueError(f"its 'is_sentence' is {shown(sentence)} and it has {len(texts)} texts; add them")
        return [path.stem, sentence, texts, why.get(f"{path.stem}.jpg")]

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"ReasonSeg/{self.split}/{self._entries[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with texts drawn by (seed, index, epoch); region 0 is the target.

        `meta["ignore_regions"]` are the indices of regions whose pixels count neither way in an evaluation; the answer
        holds what of the target they leave.

        Raises:
            ValueError: the image is damaged or of another size, or the shapes leave no pixel to the target.
        """
        stem, sentence, texts, why = self._entries[index]
        path = self.folder / f"{stem}.json"
        record, notes = read_latin(path)
        size = (record["imageHeight"], record["imageWidth"]) if {"imageHeight", "imageWidth"} <= record.keys() else None
        loaded = load_picture(path.with_suffix(".jpg"), size, str(path))
        try:
            target, ignore = draw_shapes(read_shapes(record), loaded.size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not target.any():
            raise ValueError(f"{path}: its shapes leave no pixel to the target; correct or remove it")
        regions = [Region.of_mask(target)] + [Region.of_mask(ignore, "ignore")] * bool(ignore.any())
        rng = np.random.default_rng([self.seed, index, epoch])
        told = tuple(self._tell(text, sentence, why, rng) for text in choose(texts, self.turns, rng))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=told,
            id=self.id_of(index),
            meta={
                "source": "reasonseg",
                "image_id": stem,
                "file": str(path.with_suffix(".jpg")),
                "notes": (*notes, *loaded.notes),
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
                "ignore_regions": tuple(range(1, len(regions))),
                "unasked_regions": unasked(1, told),
            },
        )

    def _tell(self, text: str, sentence: bool, why: str | None, rng: np.random.Generator) -> Conversation:
        words = text.rstrip(MARKS) or text
        question = text if sentence else asked(wording.QUESTIONS["one"], rng, x=words)
        form = rng.random() if why else 1.0
        if why and form < WORDS_ONLY:
            question, pieces = f"{question} {asked(EXPLAIN, rng)}", [why]
        else:
            opening, phrase = HERE[int(rng.integers(len(HERE)))] if sentence else ("", words)
            pieces = [*([opening] if opening else []), (phrase, (0,)), "."]
            if why and form < (1 + WORDS_ONLY) / 2:
                question, pieces = f"{question} {asked(SAY_WHY, rng)}", [*pieces, f" {why}"]
        answer, phrases = compose(*pieces)
        turns = (Turn("user", question), Turn("assistant", answer, phrases))
        return Conversation(turns, task="reasoning", kind="long" if sentence else "short")


def read_latin(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A json in UTF-8 or, as some of ReasonSeg's are, in cp1252; and a note if it was the latter."""
    raw, notes = path.read_bytes(), ()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text, notes = raw.decode("cp1252"), (f"{path.name} is in cp1252",)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is neither UTF-8 nor cp1252 ({error}); save it as UTF-8") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json ({error}); copy or download it again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds {shown(record)}; expected an object with 'text' and 'shapes'")
    return record, notes


def read_shapes(record: dict[str, Any]) -> list[tuple[bool, np.ndarray]]:
    """(whether a target, points `float64[N, 2]` in px) of every shape that is not a `flag`, checked."""
    shapes: list[tuple[bool, np.ndarray]] = []
    for number, shape in enumerate(take(record, "shapes", list)):
        label, points = take(shape, "label", str).lower(), take(shape, "points", list)
        if "flag" in label:
            continue
        if len(points) < 3:
            raise ValueError(f"its shape {number} ({label}) has {len(points)} points, it needs at least 3")
        for point in points:
            if not isinstance(point, list) or len(point) != 2:
                raise ValueError(f"its shape {number} ({label}) has the point {shown(point)}; expected [x, y]")
            for value in point:
                if not is_number(value) or abs(value) > FARTHEST:
                    raise ValueError(f"its shape {number} ({label}) has the point {shown(point)}; expected numbers")
        shapes.append(("ignore" not in label, np.array(points, np.float64)))
    return shapes


def draw_shapes(shapes: list[tuple[bool, np.ndarray]], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Target and ignored pixels, `bool[H, W]` each: shapes are painted from the largest to the smallest.

    Raises:
        ValueError: a shape lies outside the image.
    """
    drawn: list[tuple[bool, np.ndarray]] = []
    for number, (target, points) in enumerate(shapes):
        low, high = points.min(0), points.max(0)
        if high.min() < 0 or low[0] > size[1] or low[1] > size[0]:
            raise ValueError(f"shape {number} lies outside the image of {size[1]}x{size[0]} px; correct or remove it")
        drawn.append((target, paint(points, size)))
    labels = np.zeros(size, np.uint8)
    for target, mask in sorted(drawn, key=lambda item: -int(item[1].sum())):
        labels[mask] = 1 if target else 2
    return labels == 1, labels == 2


def paint(points: np.ndarray, size: Size) -> np.ndarray:
    """A polygon with its border as `bool[H, W]`, pixel for pixel as OpenCV 4 painted the published masks.

    Coordinates are cut to whole pixels. OpenCV 5 rounds an edge that falls between two pixels to the other side, so the
    spans of version 4 (fixed point with 16 bits, half a pixel rounds up) are laid over its border.
    """
    corners = points.astype(np.int32)
    (left, top_row), (right, bottom_row) = np.maximum(corners.min(0), 0), np.minimum(corners.max(0) + 1, size[::-1])
    corners -= np.array([left, top_row], np.int32)
    out, size = np.zeros(size, bool), (int(bottom_row - top_row), int(right - left))
    if min(size) < 1:
        return out
    canvas = np.zeros(size, np.uint8)
    cv2.polylines(canvas, [corners], True, (1,))
    cv2.fillPoly(canvas, [corners], (1,))
    first, second = corners.astype(np.int64), np.roll(corners, -1, axis=0).astype(np.int64)
    down = (first[:, 1] < second[:, 1])[:, None]
    top, bottom = np.where(down, first, second), np.where(down, second, first)
    slanted = bottom[:, 1] > top[:, 1]
    top, bottom = top[slanted], bottom[slanted]
    rows = bottom[:, 1] - top[:, 1]
    run = (bottom[:, 0] - top[:, 0]) << 16
    step = np.sign(run) * (np.abs(run) // np.maximum(rows, 1))
    edge = np.repeat(np.arange(len(rows)), rows)
    below = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    y, x = top[edge, 1] + below, (top[edge, 0] << 16) + below * step[edge]
    order = np.lexsort((x, y))
    y, x = y[order][::2], (x[order] + (1 << 15)) >> 16
    inside = (y >= 0) & (y < size[0])
    change = np.zeros((size[0], size[1] + 1), np.int16)
    np.add.at(change, (y[inside], np.clip(x[::2][inside], 0, size[1])), 1)
    np.add.at(change, (y[inside], np.clip(x[1::2][inside] + 1, 0, size[1])), -1)
    filled = np.cumsum(change, axis=1, dtype=np.int16)[:, :-1] > 0
    out[top_row:bottom_row, left:right] = canvas.astype(bool) | filled
    return out
