"""Visual conversations without regions: LLaVA-Instruct-150k and every set in its form.

Source of the format: Liu et al. 2023, Visual Instruction Tuning; `llava_instruct_150k.json` is a list of
`{id, image, conversations: [{from: human|gpt, value}]}`, with `<image>` once, in the first question, before or behind
its words. In `llava_v1_5_mix665k.json` some records have no image; they are counted and left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mglmm_data.index import Records, Strings, walk
from mglmm_data.reading import OnError, Pictures, Problems, load_picture, name_in, take
from mglmm_data.sample import Conversation, Sample, Turn

IMAGE = "<image>"
MARK = re.compile(r"\s*<image>\s*")
SPEAKERS = ("human", "gpt")


class LlavaInstruct:
    """A json of visual conversations and the images as a `Source`; a sample is a record, its turns in their order.

    Args:
        path: the json.
        image_root: the folder of the images (COCO train2017 for the 150k), or several.
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: the json is damaged, a record is malformed, an image is missing, or nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        self.path, self.mirror = Path(path), mirror
        self.problems = Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What the json has that is no sample and no problem: records without an image."""
        self._names, self._files, self._records = Strings(), Strings(), Records(self.path)
        pictures = Pictures(image_root)
        for number, (key, start, end, record) in enumerate(walk(self.path, self.problems)):
            if key:
                raise ValueError(f"{self.path} holds an object at its top, with {key!r}; expected a list of records")
            with self.problems.at(f"{self.path}: record {name_in(record, number)}"):
                read_conversation(record)
                if "image" not in record:
                    self.skipped["record without an image"] += 1
                    continue
                self._files.append(pictures.find(take(record, "image", str)))
                self._names.append(str(record.get("id", f"number {number}")))
                self._records.append(start, end)
        if not self._records:
            raise ValueError(f"{self.path} has no conversation about an image; check the file")

    def __len__(self) -> int:
        return len(self._records)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{self._names[index]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The record at `index`, the same in every epoch.

        Raises:
            ValueError: the image is damaged, or the json has changed since.
        """
        path, texts = self._files[index], read_conversation(self._records[index])
        loaded = load_picture(path, None, f"{self.path}: record {self._names[index]}")
        turns = tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=(),
            conversations=(Conversation(turns, task="chat"),),
            id=self.id_of(index),
            meta={
                "source": "llava_instruct",
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
            },
        )


def read_conversation(record: Any) -> list[str]:
    """The texts of a record, question and answer in turn, with `<image>` taken out of the first question.

    Raises:
        ValueError: a field is missing or of another type, the speakers do not alternate, a text is empty, or `<image>`
            is missing, there twice, or in another turn.
    """
    texts: list[str] = []
    told = take(record, "conversations", list)
    for number, turn in enumerate(told):
        speaker, text = take(turn, "from", str), take(turn, "value", str)
        if speaker != SPEAKERS[number % 2]:
            raise ValueError(f"turn {number} is from {speaker!r}; human and gpt take turns, human begins")
        expected = 1 if number == 0 and "image" in record else 0
        if text.count(IMAGE) != expected:
            where = "once, in the first question" if "image" in record else "only where the record has an image"
            raise ValueError(f"turn {number} has {IMAGE} {text.count(IMAGE)} times; it stands {where}")
        texts.append((MARK.sub(" ", text) if expected else text).strip())
        if not texts[-1]:
            raise ValueError(f"turn {number} is empty")
    if not texts or len(texts) % 2:
        raise ValueError(f"has {len(texts)} turns; every question has an answer")
    return texts
