"""Osprey-724K: questions about regions that are given as masks; and its description benchmark.

* `osprey_{conversation,detail_description,short_form,part_level,lvis_positive_negative}.json`: a list of
  `{file_name, height, width, annotation: [{segmentation, bbox}], conversations | description}`. In the text a region
  is `<region1>`, where it is named at all; `description[i]` is `<region1>: words`.
* `questions.json` with `answers.json` beside it: `{question_id, image, text with <region>, annotation}`, one each.

Source: CircleRadon/Osprey, `osprey/datasets/osprey_724k.py`, `osprey/eval/`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import asked, check_segmentation, check_turns, choose, region_of, unasked
from mglmm_data.index import Records, walk
from mglmm_data.masks import Size
from mglmm_data.reading import (
    Packed,
    Pictures,
    Problems,
    load_picture,
    named,
    read_json,
    shown,
    take,
    take_line,
    take_size,
)
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn

SHORT = " Answer the question using a single word or phrase."
SHORT_FILES = ("short_form", "part_level")
REGION = re.compile(r"<region\s*(\d*)>")
Said = tuple[str, str]


class OspreySource:
    """One json of Osprey; a sample is an image with its regions and up to `turns` questions.

    Args:
        path: the json.
        image_root: folder of COCO's photographs (train2017, or train2014 with the long names).
        turns: questions of an image. A conversation stays whole, since its later questions lean on the earlier; of
            descriptions, which stand alone, that many are drawn. null takes all.

    Raises:
        ValueError: the json or an image is missing, or (with on_error: fail) a record is malformed.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path,
        *,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.path, self.turns, self.seed, self.mirror = Path(path), check_turns(turns), seed, mirror
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        self.pictures = Pictures(image_root)
        self.short = any(name in self.path.stem for name in SHORT_FILES)
        self._answers: dict[Any, str] = {}
        beside = self.path.with_name("answers.json")
        if self.path.name == "questions.json" and beside.is_file():
            for number, record in enumerate(read_json(beside, list)):
                with self.problems.at(f"{beside}: record number {number}"):
                    self._answers[take(record, "question_id", int)] = take_line(record, "text")
        self._store = Records(self.path)
        entries: list[list[Any]] = []
        for number, (_, start, end, record) in enumerate(walk(self.path, self.problems)):
            with self.problems.at(f"{self.path}: record number {number}"):
                file, marks, said, _ = self._read(record)
                size = take_size(record) if "question_id" not in record else None
                for mark in marks:
                    if not check_segmentation(mark, size):
                        raise ValueError("has a region with an empty segmentation")
                if not said:
                    self.skipped["image without a question"] += 1
                    continue
                entries.append([number, self._find(file), size])
                self._store.append(start, end)
        if not entries and not self.problems.found:
            raise ValueError(f"{self.path} holds no question about a region; give one of Osprey's jsons")
        self._entries = Packed(entries)

    def _read(self, record: Any) -> tuple[str, list[Any], list[Said], bool]:
        """Image file, segmentations, questions with answers, and whether these stand alone."""
        if isinstance(record, dict) and "question_id" in record:
            mark = take(take(record, "annotation", dict), "segmentation", object)
            said = [(take_line(record, "text"), self._answers.get(take(record, "question_id", int), ""))]
            return take(record, "image", str), [mark], said, True
        marks = [take(item, "segmentation", object) for item in take(record, "annotation", list)]
        file, said = take(record, "file_name", str), list[Said]()
        if "description" in record:
            for number, text in enumerate(take(record, "description", list)):
                told = re.match(r"<region\s*(\d+)>:\s*(.+)", text, re.DOTALL) if isinstance(text, str) else None
                if told is None:
                    raise ValueError(f"its description {number} is {shown(text)}; expected '<region1>: words'")
                said.append((f"<region{told[1]}>", " ".join(told[2].split())))
                self._check_numbers(said[-1][0], len(marks))
            return file, marks, said, True
        talk = take(record, "conversations", list)
        for human, gpt in zip(talk[::2], talk[1::2], strict=len(talk) % 2 == 0):
            if (take(human, "from", str), take(gpt, "from", str)) != ("human", "gpt"):
                raise ValueError("its conversations do not alternate human, gpt")
            said.append((take_line(human, "value"), take_line(gpt, "value")))
            self._check_numbers(said[-1][0], len(marks))
        if len(talk) % 2:
            raise ValueError(f"its conversations are {len(talk)} turns; each question has an answer")
        return file, marks, said, False

    def _check_numbers(self, text: str, count: int) -> None:
        for number in REGION.findall(text):
            if number and not 1 <= int(number) <= count:
                raise ValueError(f"speaks of <region{number}>, it has {count} regions")

    def _find(self, file: str) -> str:
        """The file's name below the image folder: as it is, or its number alone (`COCO_train2014_X` is X)."""
        for name in (file, file.rsplit("_", 1)[-1]):
            try:
                self.pictures.find(name)
            except ValueError:
                continue
            return name
        self.pictures.find(file)
        return file

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"{self.path.stem}/{self._entries[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`; regions are the masks, and questions mention them.

        Raises:
            ValueError: the image is damaged or of another size, or a mask does not decode or covers no pixel.
        """
        number, file, size = self._entries[index]
        where = f"{self.path}: record number {number}"
        path = self.pictures.find(file)
        loaded = load_picture(path, None if size is None else (size[0], size[1]), where)
        _, marks, said, loose = self._read(self._store[index])
        regions = tuple(self._region(mark, loaded.size, where) for mark in marks)
        rng = np.random.default_rng([self.seed, index, epoch])
        told = self._tell(said, len(regions), loose, rng)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=regions,
            conversations=told,
            id=self.id_of(index),
            meta={
                "source": "osprey",
                "image_id": Path(file).stem,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
                "unasked_regions": unasked(len(regions), told),
            },
        )

    def _region(self, segmentation: Any, size: Size, where: str) -> Region:
        with named(where):
            return region_of(segmentation, size)

    def _tell(self, said: list[Said], count: int, loose: bool, rng: np.random.Generator) -> tuple[Conversation, ...]:
        if loose:
            told = choose(said, self.turns, rng)
            return tuple(Conversation(self._turns([one], count, rng), task="region", kind="detail") for one in told)
        return (Conversation(self._turns(said, count, rng), task="region", kind="short" if self.short else "talk"),)

    def _turns(self, said: list[Said], count: int, rng: np.random.Generator) -> tuple[Turn, ...]:
        """A conversation's turns; where its questions name no region, the first one begins with all of them."""
        turns: list[Turn] = []
        if not any(REGION.search(question) for question, _ in said):
            names = " and ".join(", ".join(f"<region{i + 1}>" for i in range(count)).rsplit(", ", 1))
            opening = f"There {'is 1 region' if count == 1 else f'are {count} regions'} in the picture: {names}. "
            said = [(opening + said[0][0], said[0][1]), *said[1:]]
        for question, reply in said:
            if REGION.fullmatch(question):
                question = asked(wording.QUESTIONS["region"], rng, r=question)
            text, mentions = mentioned(question + SHORT * self.short)
            turns += [Turn("user", text, mentions=mentions), Turn("assistant", mentioned(reply)[0])]
        return tuple(turns)


def mentioned(text: str) -> tuple[str, tuple[Mention, ...]]:
    """`<region2>` as the words `region 2` (`<region>` as `region 1`), and where they stand."""
    out, mentions, last = "", list[Mention](), 0
    for match in REGION.finditer(text):
        out += text[last : match.start()]
        if out.lower().endswith("region "):  # `the region <region1>` is `the region 1`
            out = out[: -len("region ")]
        words = f"region {match[1] or 1}"
        mentions.append(Mention(len(out), len(out) + len(words), int(match[1] or 1) - 1))
        out, last = out + words, match.end()
    return out + text[last:], tuple(mentions)
