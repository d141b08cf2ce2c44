"""Any source as files that others read: our JSONL, COCO json, WebDataset shards.

Pictures are copied as they are where their file shows what the sample does; else (rotated, drawn, 16 bits, transparent)
the pixels are written as PNG. What a format cannot hold is counted in `Exported.left_out`.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mglmm_data.jsonl import SCHEMA, dump_line, portable
from mglmm_data.lines import to_record
from mglmm_data.reading import OnError, Problems
from mglmm_data.registry import Source
from mglmm_data.sample import Region, Sample
from mglmm_data.shards import write_shards

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@dataclass
class Exported:
    """What was written, what the format has no room for, and samples that could not be read (`on_error: count`)."""

    folder: Path
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def read_all(
    source: Source,
    done: Exported,
    *,
    limit: int | None = None,
    epoch: int = 0,
    on_error: OnError = "fail",
    on_progress: Progress | None = None,
) -> Iterator[Sample]:
    """The samples of a source in order, counted in `done`.

    Raises:
        ValueError: a sample cannot be read, with `on_error: fail`; or `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give at least 1")
    count, problems = min(len(source), limit or len(source)), Problems(on_error)
    for index in range(count):
        sample = None
        with problems.at(f"sample {index}"):
            sample = source.sample(index, epoch)
        done.problems = problems.found
        if sample is not None:
            done.samples += 1
            if joined := sample.meta.get("joined"):
                done.left_out["instances that max_regions joined"] += sum(joined.values())
            yield sample
        if on_progress is not None:
            on_progress(index + 1, count)


def picture_of(sample: Sample) -> tuple[bytes, str]:
    """The bytes of a sample's picture and their suffix: the file itself where nothing was changed, else PNG."""
    file = Path(str(sample.meta.get("file", "")))
    if file.suffix.lower() in (".jpg", ".jpeg", ".png") and file.is_file() and not sample.meta.get("notes"):
        with Image.open(file) as opened:
            unchanged = (
                opened.size == sample.size[::-1] and opened.mode in ("RGB", "L") and "augment" not in sample.meta
            )
        if unchanged:
            return file.read_bytes(), file.suffix.lower()
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue(), ".png"


class Pictures:
    """Writes pictures into a folder, each once however many samples it has, under names that do not clash.

    Args:
        root: what the returned paths count from; made if it is not there.
        folder: below `root`.
    """

    def __init__(self, root: Path, folder: str = "images") -> None:
        self.root, self.folder = root, folder
        (root / folder).mkdir(parents=True, exist_ok=True)
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def save(self, sample: Sample) -> str:
        """The path of the sample's picture, relative to `root`, with forward slashes."""
        origin = str(sample.meta.get("file", ""))
        if origin and origin in self._names:
            return self._names[origin]
        content, suffix = picture_of(sample)
        stem = re.sub(r"[^\w.-]+", "_", Path(origin).stem or sample.id or "image").strip("._") or "image"
        name, number = stem, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name.lower())
        path = f"{self.folder}/{name}{suffix}" if self.folder else f"{name}{suffix}"
        (self.root / path).write_bytes(content)
        if origin:
            self._names[origin] = path
        return path


def label_of(sample: Sample, number: int) -> str:
    """What a region shows: its label, else the first phrase that it grounds, else "object"."""
    if sample.regions[number].label:
        return sample.regions[number].label
    for conversation in sample.conversations:
        for turn in conversation.turns:
            for phrase in turn.phrases:
                if number in phrase.regions:
                    return turn.text[phrase.start : phrase.end]
    return "object"


def no_objects(sample: Sample) -> dict[int, str]:
    """Indices of masks and boxes that are no objects -> what they are: pixels to ignore, or what a user points with.

    Of the last, only questions speak, and they have no name, or that of a mask with the same bounds
    (`telling.pointed`); a named box without a mask is an object that is asked about, as Visual Genome's are.
    """
    turns = [turn for conversation in sample.conversations for turn in conversation.turns]
    grounded = {number for turn in turns if turn.role == "assistant" for number in turn.regions}
    mentioned = {number for turn in turns if turn.role == "user" for number in turn.regions}
    objects = {(region.label, region.bounds) for region in sample.regions if region.kind == "mask"}
    boxes = {number: sample.regions[number] for number in mentioned - grounded if sample.regions[number].kind == "box"}
    out = dict.fromkeys(sample.meta.get("ignore_regions", ()), "regions to ignore")
    return out | {i: "box prompts" for i, box in boxes.items() if not box.label or (box.label, box.bounds) in objects}


def to_jsonl(samples: Iterable[Sample], out: Path, done: Exported) -> None:
    """`samples.jsonl`, its schema, and `images/`; `type: jsonl` reads it back, nothing is lost."""
    pictures = Pictures(out)
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(dump_line(to_record(portable(sample), pictures.save(sample))))
    shutil.copyfile(SCHEMA, out / SCHEMA.name)


def to_coco(samples: Iterable[Sample], out: Path, done: Exported) -> None:
    """`annotations.json` with masks as RLE, `captions.json` if there are captions, and `images/`.

    A region's label is its category. Samples of one picture become one image, and a region that several of them have
    is written once. Points, scribbles, what is no object (`no_objects`) and all text but captions have no place in it.
    """
    pictures = Pictures(out)
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    written: set[tuple[Any, ...]] = set()
    for sample in samples:
        path = pictures.save(sample)
        height, width = sample.size
        new = {"id": len(images) + 1, "file_name": path, "height": height, "width": width}
        image_id = images.setdefault(path, new)["id"]
        crowds, aside = set(sample.meta.get("crowd_regions", ())), no_objects(sample)
        for number, region in enumerate(sample.regions):
            if number in aside:
                done.left_out[aside[number]] += 1
                continue
            annotation = _annotation(region, number in crowds)
            if annotation is None:
                done.left_out[f"{region.kind} regions"] += 1
                continue
            label = label_of(sample, number)
            category = categories.setdefault(label, len(categories) + 1)
            same = (image_id, category, str(annotation["segmentation"]), tuple(annotation["bbox"]))
            if same not in written:
                written.add(same)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **annotation}
                )
        for conversation in sample.conversations:
            if conversation.task == "caption":
                text = conversation.turns[-1].text
                captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": text})
            else:
                done.left_out["conversations"] += 1
    head = {"info": {"description": "written by mglmm export"}, "licenses": [], "images": list(images.values())}
    listed = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    _write(out / "annotations.json", {**head, "categories": listed, "annotations": annotations})
    if captions:
        _write(out / "captions.json", {**head, "annotations": captions})


def _annotation(region: Region, is_crowd: bool) -> dict[str, Any] | None:
    """What COCO has of a region; None for a point or a scribble."""
    if region.kind not in ("mask", "box"):
        return None
    x1, y1, x2, y2 = region.bounds or (0.0, 0.0, 0.0, 0.0)
    area = float(region.mask.sum()) if region.rle is not None else (x2 - x1) * (y2 - y1)
    return {
        "segmentation": region.rle if region.rle is not None else [],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
        "iscrowd": int(is_crowd),
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def to_webdataset(samples: Iterable[Sample], out: Path, done: Exported) -> None:
    """`000000.tar` ... with `KEY.json` (a line of our JSONL) and `KEY.jpg` or `.png`; `type: shards` reads it back."""
    write_shards(((sample, *picture_of(sample)) for sample in samples), out)


Writer = Callable[[Iterable[Sample], Path, Exported], None]
WRITERS: dict[str, Writer] = {"jsonl": to_jsonl, "coco": to_coco, "webdataset": to_webdataset}
"""format -> what writes it into a folder; `mglmm.data_export` adds those that need an `Answer`."""
