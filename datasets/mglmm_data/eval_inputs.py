"""Questions of published benchmarks as samples: an image, what is asked about which regions, and the reference answer.

The readers of the files are in `benchmarks.py`. Regions of a question are mentions, boxes of a reference are grounded
phrases (`grounding="box"`); what a score needs besides (question id, category, choices) is in `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.masks import Size
from mglmm_data.reading import OnError, Packed, Pictures, Problems, load_picture, read_box, with_both_halves
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn, compose

Spoken = Sequence[Any]
"""Text in pieces: plain text, or `[words, region]` in a question and `[words, [regions]]` in an answer."""
ROUNDED = 0.005
"""So far above 1 a share of the image may be: Ferret-Bench's own boxes reach 1.002."""


@dataclass(frozen=True)
class Asked:
    """One question of a benchmark, as its file has it.

    `regions` are `{"box": x1 y1 x2 y2 px}`, `{"share": the same, 0..1}`, `{"point": x y px}` or `{"mask": RLE}`; `size`
    is (H, W) where the file has it.
    """

    id: int | str
    image: str
    question: Spoken
    answer: Spoken
    regions: list[dict[str, Any]] = field(default_factory=list)
    size: Size | None = None
    task: str = ""
    kind: str = ""
    more: dict[str, Any] = field(default_factory=dict)


class Benchmark:
    """A benchmark's questions and the images as a `Source`; a sample is a question, the same in every epoch.

    Args:
        name: pope, ferret_bench, llava_bench, lvis_referring, pointqa, pointqa_lines, visual7w.
        path: its file, or for ferret_bench the folder of `question.jsonl` and `answer.jsonl`.
        image_root: the folder of the images, or several.
        options: of that benchmark's reader in `benchmarks.py`, e.g. `{"shape": "point"}` for lvis_referring.
        clip_boxes: cut boxes at the border, counted; off, a box that leaves its image by more than 1 px is an error.
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: the benchmark or an option is unknown, a file is damaged, a record malformed, an image missing.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        options: Mapping[str, Any] | None = None,
        clip_boxes: bool = False,
        on_error: OnError = "fail",
    ) -> None:
        from mglmm_data.benchmarks import read_benchmark  # its readers build `Asked`

        self.name, self.path, self.clip, self.problems = name, Path(path), clip_boxes, Problems(on_error)
        pictures, kept = Pictures(with_both_halves(image_root)), []
        for asked in read_benchmark(name, self.path, self.problems, **(options or {})):
            with self.problems.at(f"{self.path}: question {asked.id}"):
                if asked.size is not None:
                    for region in asked.regions:
                        place(region, asked.size, clip_boxes)
                kept.append(asdict(asked) | {"image": pictures.find(asked.image)})
        self._packed = Packed(kept)
        if not kept:
            raise ValueError(f"{self.path} has no question whose image is there{self.problems.why}")

    def __len__(self) -> int:
        return len(self._packed)

    def id_of(self, index: int) -> str:
        return f"{self.name}/{self._packed[index]['id']}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The question at `index`.

        Raises:
            ValueError: the image is damaged or of another size, or a region is not in it.
        """
        asked = Asked(**self._packed[index])
        where = f"{self.path}: question {asked.id}"
        loaded = load_picture(asked.image, asked.size, where)
        try:
            regions = tuple(place(region, loaded.size, self.clip) for region in asked.regions)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct it, or use the images that were annotated") from error
        answer, phrases = compose(*(piece if isinstance(piece, str) else tuple(piece) for piece in asked.answer))
        turns = (ask(asked.question), Turn("assistant", answer, phrases, grounding="box"))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=regions,
            conversations=(Conversation(turns, task=asked.task, kind=asked.kind),),
            id=self.id_of(index),
            meta={
                "source": self.name,
                "question_id": asked.id,
                "file": asked.image,
                "notes": loaded.notes,
                "mirror": "off",
                **asked.more,
            },
        )


def ask(pieces: Spoken) -> Turn:
    """A user's turn from its pieces."""
    text, mentions = "", []
    for piece in pieces:
        words = piece if isinstance(piece, str) else piece[0]
        if not isinstance(piece, str):
            mentions.append(Mention(len(text), len(text) + len(words), piece[1]))
        text += words
    return Turn("user", text, mentions=tuple(mentions))


def place(region: Mapping[str, Any], size: Size, clip: bool) -> Region:
    """A region of an `Asked` in an image of `size` (H, W)."""
    ((kind, value),) = region.items()
    if kind == "point":
        return Region(size, point=(float(value[0]), float(value[1])))
    if kind == "mask":
        return Region(size, rle=value)
    if kind == "share":
        over = max(*(-v for v in value), *(v - 1 for v in value))
        if over > ROUNDED and not clip:
            raise ValueError(f"its box {value} leaves the image by {over:.3f} of it; shares are from 0 to 1")
        value = np.clip(value, 0, 1) * np.tile(size[::-1], 2)
    return Region(size, box=read_box([float(v) for v in value], size, "xyxy", clip=clip)[0])
