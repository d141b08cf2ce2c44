"""MUSE (PixelLM): reasoning questions about a COCO photograph with several targets.

    ROOT/MUSE_{train,val,test}.json    ROOT is `reason_seg/MUSE` or a folder above it

A record holds `questions`, `answers` (for each question its targets, with a segmentation) and, in some, `text_answers`,
in which `{seg}` stands behind what a target is called, in the targets' order. Questions with a box in their text,
`[12, 23, 34, 45]`, ask about coordinates and are left out, as by MGLMM's reader (`multi_reason_seg.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import Span, check_segmentation, check_turns, choose, ground, locate, region_of
from mglmm_data.index import Records, walk
from mglmm_data.reading import Packed, Pictures, Problems, load_picture, named, take, take_line, take_size
from mglmm_data.sample import Conversation, Grounding, Region, Sample, Turn, compose
from mglmm_data.telling import reading_order

FOLDERS = ("coco", "../coco", "../../coco", "coco_2017", "coco_2014", "../coco_2017", "../coco_2014", ".", "..")
SEG = re.compile(r"\s*\{+\s*seg\s*\}+", re.IGNORECASE)
"""`{seg}`, and `{{seg}}` where a format string was written out as it was."""
BOX = re.compile(r"\[[^\]]*\d[^\]]*\]")
END = "</s>"


class MuseSource:
    """One split of MUSE; a sample is an image with up to `turns` of its questions.

    Args:
        root: the folder above.
        split: train, val or test.
        path: the json itself, where it is not found below `root`.
        image_root: the folder that holds `train2014`, `train2017` ..., or the photographs.
        turns: questions drawn for each image; null asks all of them, in the file's order.

    Raises:
        ValueError: the json or an image is missing, or (with on_error: fail) a record is malformed.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        split: str = "train",
        path: str | Path | None = None,
        image_root: str | Path | None = None,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.turns, self.seed, self.mirror, self.split = check_turns(turns), seed, mirror, split
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        ways = [f"{folder}MUSE_{split}.json" for folder in ("", "MUSE/", "reason_seg/MUSE/")]
        self.path = Path(path) if path is not None else locate(root, ways, f"MUSE_{split}.json")
        places = [Path(root) / way for way in FOLDERS if (Path(root) / way).is_dir()]
        self.pictures = Pictures(image_root if image_root is not None else places)
        self._store = Records(self.path)
        entries: list[list[Any]] = []
        for number, (_, start, end, record) in enumerate(walk(self.path, self.problems)):
            with self.problems.at(f"{self.path}: record number {number}"):
                file, asked = self._check(record)
                if asked:
                    entries.append([number, len(self._store), file, asked])
                    self._store.append(start, end)
                else:
                    self.skipped["image without a question"] += 1
        if not entries and not self.problems.found:
            raise ValueError(f"{self.path} holds no question with a target; give a split of MUSE")
        self._entries = Packed(entries)

    def _check(self, record: Any) -> tuple[str, list[int]]:
        """The image's file and the numbers of the questions to ask, after a check of all of them."""
        size, file = take_size(record), self._file(record)
        questions, answers = take(record, "questions", list), take(record, "answers", list)
        told = take(record, "text_answers", list) if record.get("text_answers") else [None] * len(questions)
        if not len(questions) == len(answers) == len(told):
            raise ValueError(
                f"has {len(questions)} questions, {len(answers)} answers and {len(told)} text_answers; "
                "each question has one of them"
            )
        asked: list[int] = []
        for number, (targets, text) in enumerate(zip(answers, told, strict=True)):
            question = take_line({"question": questions[number]}, "question")
            if BOX.search(question):
                self.skipped["question with a box"] += 1
                continue
            drawn = [check_segmentation(take(target, "segmentation", object), size) for target in _list(targets)]
            if not drawn or not all(drawn):
                self.skipped["question with a target that has no mask"] += 1
                continue
            found = len(drawn) if text is None else len(SEG.findall(take_line({"text_answer": text}, "text_answer")))
            if found != len(drawn):
                raise ValueError(f"its text answer {text!r} marks {found} targets, {len(drawn)} are listed")
            for target in targets:
                called(target)
            asked.append(number)
        return file, asked

    def _file(self, record: dict[str, Any]) -> str:
        """The first of the ways in which the photograph may lie below the image folders."""
        name = take(record, "file_name" if "file_name" in record else "coco_url", str)
        ways = [name]
        if "file_name" not in record:
            ways = ["/".join(name.split("/")[-2:]), name.split("/")[-1]]
        elif "/" not in name:
            year = re.match(r"COCO_(train|val)2014_", name)
            ways = [f"{year[1]}2014/{name}"] if year else [f"{folder}/{name}" for folder in ("train2017", "val2017")]
            ways += [name]
        for way in ways[:-1]:
            try:
                self.pictures.find(way)
            except ValueError:
                continue
            return way
        self.pictures.find(ways[-1])
        return ways[-1]

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"MUSE/{self.split}/{self._entries[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with questions drawn by (seed, index, epoch); every target is a region.

        Raises:
            ValueError: the image is damaged or of another size, or a mask does not decode or covers no pixel.
        """
        number, row, file, asked = self._entries[index]
        where = f"{self.path}: record number {number}"
        record, path = self._store[row], self.pictures.find(file)
        loaded = load_picture(path, take_size(record), where)
        rng = np.random.default_rng([self.seed, index, epoch])
        regions: list[Region] = []
        conversations: list[Conversation] = []
        for question in choose(asked, self.turns, rng):
            targets = record["answers"][question]
            places: list[int] = []
            for target in targets:
                with named(f"{where}: question {question}"):
                    region = region_of(target["segmentation"], loaded.size, called(target)[0])
                places.append(len(regions))
                regions.append(region)
            with named(f"{where}: question {question}"):
                text, phrases = self._answer(record, question, targets, places, regions)
            turns = (Turn("user", " ".join(record["questions"][question].split())), Turn("assistant", text, phrases))
            kind = "several" if len(targets) > 1 else "one"
            conversations.append(Conversation(turns, task="reasoning", kind=kind))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=tuple(conversations),
            id=self.id_of(index),
            meta={
                "source": "muse",
                "image_id": Path(file).stem,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            },
        )

    def _answer(
        self, record: dict[str, Any], question: int, targets: list[Any], places: list[int], regions: list[Region]
    ) -> tuple[str, tuple[Grounding, ...]]:
        text = record["text_answers"][question] if record.get("text_answers") else None
        if text is not None:
            return marked_answer(text, targets, places)
        return listed_answer(targets, places, regions)


def _list(value: Any) -> list[Any]:
    return take({"targets": value}, "targets", list)


def plain(category: str) -> str:
    """A category without LVIS' explanation: `cup_(drink)` becomes `cup`."""
    return wording.readable(category.split("_(")[0].split(" (")[0])


def called(target: dict[str, Any]) -> list[str]:
    """What a target is called: its rephrased name, if it has one, and its category; one of them at least."""
    names = [take_line(target, "rephrased_name")] if target.get("rephrased_name") not in (None, "") else []
    if not names or "category_name" in target:
        names.append(plain(take_line(target, "category_name")))
    if not all(names):
        raise ValueError(f"its 'category_name' is {target['category_name']!r}, which is no word")
    return names


def marked_answer(text: str, targets: Sequence[Any], places: Sequence[int]) -> tuple[str, tuple[Grounding, ...]]:
    """A text with `{seg}` behind each target, without the marks, and the target's name before its mark as the phrase.

    Where the name is not between a mark and the one before, the word before the mark is the phrase; marks that follow
    one another without a word between share a phrase.
    """
    out, spans = "", list[Span]()
    pieces = SEG.split(text.replace(END, "").strip())
    for piece, target, place in zip(pieces, targets, places, strict=False):
        start = len(out)
        out += piece
        if not piece.strip(" ,;.") and spans:
            spans.append(Span(spans[-1].start, spans[-1].end, (place,)))
            continue
        begin, end = start, start
        for name in called(target):
            found = [*re.finditer(rf"\b{re.escape(name.lower())}\w*", piece.lower())]
            if found:
                begin, end = start + found[-1].start(), start + found[-1].end()
                break
        if not out.strip():
            raise ValueError(f"its text answer {text!r} has nothing before its mark")
        if begin == end:
            end = len(out.rstrip())
            begin = out.rfind(" ", 0, end) + 1
        spans.append(Span(begin, max(end, begin + 1), (place,)))
    grounded = ground((out + pieces[-1]).rstrip(), spans)
    return grounded.text, grounded.phrases


def listed_answer(
    targets: Sequence[Any], places: Sequence[int], regions: Sequence[Region]
) -> tuple[str, tuple[Grounding, ...]]:
    """`The brown dog and two cups.`: targets of one name are one phrase, in reading order."""
    members_of: dict[str, list[int]] = {}
    for target, place in zip(targets, places, strict=True):
        members_of.setdefault(called(target)[0], []).append(place)
    pieces: list[str | tuple[str, tuple[int, ...]]] = []
    for number, (name, members) in enumerate(members_of.items()):
        words = wording.counted(name, len(members))
        order = reading_order([regions[place] for place in members])
        if number:
            pieces.append(" and " if number == len(members_of) - 1 else ", ")
        pieces.append((words if number else words[0].upper() + words[1:], tuple(members[i] for i in order)))
    return compose(*pieces, ".")
