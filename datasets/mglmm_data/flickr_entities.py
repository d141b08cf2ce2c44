"""Flickr30k Entities: captions whose phrases are grounded in boxes.

    ROOT/Sentences/NAME.txt     five lines with `[/EN#1/people Two young guys] look at [/EN#2/bodyparts their hands] .`
    ROOT/Annotations/NAME.xml   `<object><name>1</name><bndbox>...`, or `<nobndbox>1</nobndbox>` (a scene, not shown)
    ROOT/train.txt val.txt test.txt

An xml's corners count pixels from 1 and both are inside, so a box is `xmin - 1, ymin - 1, xmax, ymax` here (x2, y2
exclusive). One phrase may have several boxes, one box several names; a phrase with id 0 is not visual.
Source: Plummer et al. 2015, arXiv:1505.04870; github.com/BryanPlummer/flickr30k_entities.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mglmm_data.annotation import check_turns, unasked
from mglmm_data.asking import check_weights, draw, question, told
from mglmm_data.masks import Size
from mglmm_data.reading import OnError, Packed, Pictures, Problems, load_picture, read_box, read_lines, read_text
from mglmm_data.sample import Box, Conversation, Region, Sample, compose
from mglmm_data.world import templates

ENTITY = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\[\]]+)\]")
NOT_VISUAL = "0"
TASKS = ("caption", "locate")
GROUNDED_CAPTION = (
    "Describe this image in one sentence, with a box for each thing you name.",
    "Give a short caption and box what it speaks of.",
    "What does the picture show? Give a box for every phrase.",
    "Caption this picture with boxes.",
)
LOCATE_SEVERAL = ("Where are {x}? Answer with boxes.", "Draw a box around each of {x}.", "Locate {x} with boxes.")


@dataclass(frozen=True)
class Entity:
    """A phrase of a sentence: characters `start:end` of its clean text, the chain's id, its types (people, scene)."""

    start: int
    end: int
    id: str
    types: tuple[str, ...]


class FlickrEntities:
    """The folder as above and the images as a `Source`; a sample is an image.

    Args:
        root: the folder with `Sentences/` and `Annotations/`.
        image_root: the folder of the images (flickr30k-images).
        split: the name of a list in `root` (train, val, test), or the path of a text file of image names.
        tasks: task -> weight, of caption (a sentence, each visual phrase with its boxes) and locate (one phrase).
        turns: questions drawn for each image; None for every sentence or phrase, in order (evaluation).
        on_error: a wrong record is an error (fail), or left out and listed in `problems.found` (count).

    Raises:
        ValueError: a file is missing or damaged, a sentence's markup is broken, a box leaves its image.
    """

    def __init__(
        self,
        root: str | Path,
        image_root: str | Path | Sequence[str | Path],
        *,
        split: str = "train",
        tasks: Mapping[str, float] | None = None,
        turns: int | None = 1,
        seed: int = 0,
        mirror: str = "swap",
        on_error: OnError = "fail",
    ) -> None:
        self.root, self.turns, self.seed, self.mirror = Path(root), check_turns(turns), seed, mirror
        self.tasks = check_weights(tasks, TASKS)
        self.problems = Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What is no problem, counted: phrases that are not visual, visual ones without a box, boxes cut by 1 px."""
        listed = self.root / f"{split}.txt" if not Path(split).suffix else Path(split)
        pictures, kept = Pictures(image_root), []
        for _, line in read_lines(listed):
            name = line.strip().removesuffix(".jpg")
            with self.problems.at(f"{self.root}: image {name}"):
                kept.append(self._record(name, pictures.find(f"{name}.jpg")))
        self._packed = Packed(record for record in kept if record[4])
        self.skipped["image without a phrase to ask for"] = len(kept) - len(self._packed)
        if not len(self._packed):
            raise ValueError(f"{listed} names no image with a grounded sentence{self.problems.why}")

    def _record(self, name: str, path: str) -> tuple[str, str, Size, list[Box], list[Any]]:
        """Name, path, (H, W), boxes, and for each sentence its text and `[start, end, indices of boxes]`."""
        size, boxes, chains, hidden, cut = read_annotation(self.root / "Annotations" / f"{name}.xml")
        self.skipped["box cut at the border"] += cut
        sentences = []
        for number, line in read_lines(self.root / "Sentences" / f"{name}.txt"):
            text, entities = read_sentence(line, f"Sentences/{name}.txt: line {number}")
            phrases = []
            for entity in entities:
                if entity.id == NOT_VISUAL:
                    self.skipped["phrase that is not visual"] += 1
                elif found := chains.get(entity.id):
                    phrases.append((entity.start, entity.end, found))
                else:
                    self.skipped["phrase without a box" if entity.id in hidden else "phrase not annotated"] += 1
            sentences.append((text, phrases))
        return name, path, size, boxes, [told for told in sentences if told[1]]

    def __len__(self) -> int:
        return len(self._packed)

    def id_of(self, index: int) -> str:
        return f"flickr30k/{self._packed[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with questions drawn by (seed, index, epoch); its regions are boxes.

        Raises:
            ValueError: the image is damaged, or of another size than its xml says.
        """
        name, path, size, boxes, sentences = self._packed[index]
        loaded = load_picture(path, tuple(size), f"{self.root}: Annotations/{name}.xml")
        rng = np.random.default_rng([self.seed, index, epoch])
        labels = {box: text[start:end] for text, phrases in sentences for start, end, found in phrases for box in found}
        regions = tuple(
            Region((size[0], size[1]), box=tuple(box), label=labels.get(i, "")) for i, box in enumerate(boxes)
        )
        conversations = self._tell(sentences, rng)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=regions,
            conversations=tuple(conversations),
            id=self.id_of(index),
            meta={
                "source": "flickr_entities",
                "image_id": name,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "references": tuple(text for text, _ in sentences),
                "unasked_regions": unasked(len(regions), conversations),
            },
        )

    def _tell(self, sentences: list[Any], rng: np.random.Generator) -> list[Conversation]:
        every = {
            "caption": [(text, phrases) for text, phrases in sentences],
            "locate": [(text, [phrase]) for text, phrases in sentences for phrase in phrases],
        }
        drawn = draw(every, self.tasks, self.turns, rng)
        return [_write(task, text, phrases, rng) for task, (text, phrases) in drawn]


def _write(task: str, text: str, phrases: list[Any], rng: np.random.Generator) -> Conversation:
    if task == "caption":
        pieces: list[Any] = []
        at = 0
        for start, end, found in phrases:
            pieces += [text[at:start], (text[start:end], tuple(found))]
            at = end
        return told(question(GROUNDED_CAPTION, rng), *compose(*pieces, text[at:]), task=task, kind="grounded")
    ((start, end, found),) = phrases
    several = len(found) > 1
    words = text[start].lower() + text[start + 1 : end]
    asked = question(LOCATE_SEVERAL if several else templates.FIND_BOX, rng, x=words)
    return told(asked, *compose((words, tuple(found)), "."), task=task, kind="several" if several else "one")


def read_sentence(line: str, where: str) -> tuple[str, list[Entity]]:
    """A line with entity markup as clean text, as it stands (tokenised), and its phrases.

    Raises:
        ValueError: a bracket is open, empty or nested; `where` begins the message.
    """
    text, at, entities = "", 0, []
    for match in ENTITY.finditer(line):
        text += line[at : match.start()]
        start = len(text) + len(match[3]) - len(match[3].lstrip())
        text += match[3].rstrip() if match[3].endswith(" ") else match[3]
        if start < len(text):
            entities.append(Entity(start, len(text), match[1], tuple(match[2].strip("/").split("/"))))
        at = match.end()
    text += line[at:]
    if "[/EN#" in text or not text.strip():
        raise ValueError(f"{where} is {line.strip()!r}; expected phrases as [/EN#1/people Two young guys]")
    offset = len(text) - len(text.lstrip())
    return text.strip(), [Entity(e.start - offset, e.end - offset, e.id, e.types) for e in entities]


def read_annotation(path: Path) -> tuple[Size, list[Box], dict[str, list[int]], set[str], int]:
    """An xml as (H, W), boxes, chain id -> indices of its boxes, chains without a box, and how many boxes were cut.

    Raises:
        ValueError: the file is missing or no xml, a field is missing or no number, or a box leaves the image.
    """
    try:
        tree = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as xml ({error}); download it again") from error
    size = (_number(tree, "size/height", path), _number(tree, "size/width", path))
    boxes: list[Box] = []
    chains: dict[str, list[int]] = {}
    hidden: set[str] = set()
    cut = 0
    for item in tree.iterfind("object"):
        names = [(name.text or "").strip() for name in item.iterfind("name")]
        if not names or not all(name.isdigit() for name in names):
            raise ValueError(f"{path}: an object has the names {names}; expected ids of phrases")
        if item.find("bndbox") is None:
            hidden.update(names)
            continue
        x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
        try:
            box, was_cut = read_box((x1 - 1, y1 - 1, x2, y2), size, "xyxy")
        except ValueError as error:
            raise ValueError(f"{path}: the object of phrase {'/'.join(names)}: {error}") from error
        cut += was_cut
        for name in names:
            chains.setdefault(name, []).append(len(boxes))
        boxes.append(box)
    return size, boxes, chains, hidden, cut


def _number(item: ElementTree.Element, key: str, path: Path) -> int:
    text = (item.findtext(key) or "").strip()
    if not text.isdigit():
        raise ValueError(f"{path}: {key} is {text!r}; expected a whole number")
    return int(text)
