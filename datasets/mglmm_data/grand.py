"""GranD: SA-1B photographs annotated by a pipeline, as published and in the two forms made of it for training.

    ROOT/referring_expression/*.json   {"sa_1.jpg": [{attribute, bbox, segmentation}]}
    ROOT/caption_grounding/*.json      {"sa_1.jpg": [{caption, details: [{phrase, tokens_positive, segmentation ...}]}]}
    ROOT/*.json                        {"sa_1.jpg": {objects, floating_objects, short_captions, dense_caption ...}}

`ROOT` is `GranD` or the folder above it; names are those in `anno_files.txt`, if there. Of a list of captions alone the
image has the json's name. Boxes are x1, y1, x2, y2. What has no segmentation (the pipeline's levels 3 and 4) is
answered by boxes. Source: mbzuai-oryx/groundingLMM, `GranD/prepare_annotations/`; mglmm, `dataset/`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import (
    Span,
    asked,
    check_turns,
    choose,
    folders,
    ground,
    locate,
    refer,
    region_of,
    unquoted,
)
from mglmm_data.grandf_forms import find_phrase, shift_of
from mglmm_data.masks import Size
from mglmm_data.reading import (
    Pictures,
    Problems,
    load_picture,
    named,
    read_box,
    read_json,
    read_lines,
    shown,
    take,
    take_line,
)
from mglmm_data.sample import Conversation, Region, Sample, Turn
from mglmm_data.telling import near

FORMS = {
    "referring": ("referring_expression", "GranD/referring_expression", "."),
    "caption": ("caption_grounding", "GranD/caption_grounding", "."),
    "full": (".", "GranD"),
}
PHOTOS = ("SegmentAnything/imgs", "../SegmentAnything/imgs", "images", "GranD_Data/images", "../images", ".")
PREFIX = re.compile(r"\b(?:ass)?istant:?\s*", re.IGNORECASE)
"""What the attribute model left before its answers; GLaMM's preparation takes it out, too."""


@dataclass
class Told:
    """What a json says: expressions and captions, each with the objects (segmentation, bbox) that it speaks of."""

    image: str
    expressions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    captions: list[tuple[str, list[tuple[int, int, list[dict[str, Any]]]]]] = field(default_factory=list)


class GranDSource:
    """GranD; a sample is an image with up to `turns` of its expressions and captions.

    Args:
        root: the folder above.
        form: referring, caption or full; says where the jsons lie, each is read as what it is.
        image_root: folder of the SA-1B images.
        turns: conversations drawn for each image; null takes all, in the file's order.

    Raises:
        ValueError: a folder is missing or holds no json.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        form: Literal["referring", "caption", "full"] = "referring",
        image_root: str | Path | None = None,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form is {form!r}{near(form, FORMS)}")
        self.form, self.turns, self.seed, self.mirror = form, check_turns(turns), seed, mirror
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        self.folder = locate(root, FORMS[form], f"folder of GranD ({form})", lambda way: any(way.glob("*.json")))
        self.pictures = Pictures(image_root if image_root is not None else folders(root, PHOTOS, "folder of images"))
        listed = [way / "anno_files.txt" for way in (self.folder, self.folder.parent)]
        names = next((path for path in listed if path.is_file()), None)
        found = [line.strip() for _, line in read_lines(names)] if names else []
        self._files = found or sorted(path.name for path in self.folder.glob("*.json"))

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        return f"GranD/{self.form}/{Path(self._files[index]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with conversations drawn by (seed, index, epoch). A json is read here and not before.

        Raises:
            ValueError: the json is malformed, or the image is missing or damaged.
        """
        path = self.folder / self._files[index]
        with named(str(path)):
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError(f"leaves the folder {self.folder}")
            told = read_record(read_json(path), path)
            file = self.pictures.find(told.image)
        loaded = load_picture(file, None, str(path))
        rng = np.random.default_rng([self.seed, index, epoch])
        regions: list[Region] = []
        notes = list(loaded.notes)
        conversations: list[Conversation] = []
        for subject in choose([*told.expressions, *told.captions], self.turns, rng):
            with named(f"{path}: {subject[0]!r}"):
                conversations.append(_tell(subject, loaded.size, regions, notes, rng))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=tuple(conversations),
            id=self.id_of(index),
            meta={
                "source": "grand",
                "image_id": Path(told.image).stem,
                "file": file,
                "notes": tuple(notes),
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            },
        )


def read_record(data: Any, path: Path) -> Told:
    """A json of any of the forms.

    Raises:
        ValueError: it is of none of them, or a field is missing or of a wrong type.
    """
    if isinstance(data, list):
        data = {f"{path.stem}.jpg": data}
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError(f"holds {shown(data)}; expected an object with one image")
    ((image, record),) = data.items()
    told = Told(image)
    if isinstance(record, dict):
        _read_full(record, told)
        return told
    if not isinstance(record, list):
        raise ValueError(f"its image {image!r} has {shown(record)}; expected a list or an object")
    for item in record:
        if isinstance(item, dict) and "caption" in item:
            told.captions.append(_read_caption(item, {}))
        else:
            told.expressions.append((PREFIX.sub("", take_line(item, "attribute")), item))
    return told


def _read_full(record: dict[str, Any], told: Told) -> None:
    objects = {take(item, "id", int): item for item in take(record, "objects", list)}
    for item in list(objects.values()):
        told.expressions += [(words, item) for words in attributes(item)]
    if "floating_objects" in record:
        objects |= {take(item, "id", int): item for item in take(record, "floating_objects", list)}
    captions = [*_list(record, "short_captions"), *filter(None, [record.get("dense_caption")])]
    told.captions += [_read_caption(item, objects) for item in captions]
    phrases = take(take(record, "relationships", dict), "grounding", list) if "relationships" in record else []
    for text in take(record, "captions", list) if "captions" in record and not captions else []:
        caption, _ = unquoted(take_line({"caption": text}, "caption"))
        marks = []
        for item in phrases:
            where = find_phrase(caption, take_line(item, "phrase"))
            if where is not None:
                marks.append((*where, [_object(objects, one) for one in take(item, "object_ids", list)]))
        if marks:
            told.captions.append((caption, marks))


def attributes(item: dict[str, Any]) -> list[str]:
    """What is said about an object; of several, those that name it, or else the first (GLaMM's preparation)."""
    given = item.get("attributes")
    texts = [given] if isinstance(given, str) else _list(item, "attributes")
    said = [PREFIX.sub("", take_line({"attribute": text}, "attribute")) for text in texts]
    labels = [wording.readable(take({"label": label}, "label", str)) for label in _list(item, "labels")]
    naming = [words for words in said if any(label in words for label in labels)]
    return said if len(said) < 2 else naming or said[:1]


def _list(record: dict[str, Any], key: str) -> list[Any]:
    """A list that may be absent, or null."""
    return take(record, key, list) if record.get(key) is not None else []


def _object(objects: dict[int, dict[str, Any]], number: Any) -> dict[str, Any]:
    if take({"id": number}, "id", int) not in objects:
        raise ValueError(f"speaks of object {number}, which is absent")
    return objects[number]


def _read_caption(item: Any, objects: dict[int, dict[str, Any]]) -> tuple[str, list[tuple[int, int, list[Any]]]]:
    raw = take(item, "caption", str)
    caption, cut = unquoted(raw)
    phrases: list[str | None] = []
    marks: list[tuple[int, int, list[Any]]] = []
    for detail in take(item, "details", list):
        if not isinstance(detail, dict):
            raise ValueError(f"its details hold {shown(detail)}; expected objects")
        if detail.get("tokens_positive") in (None, [-1, -1]):
            continue
        where = take(detail, "tokens_positive", list)
        if len(where) == 1 and isinstance(where[0], list):
            where = where[0]
        if len(where) != 2 or not all(isinstance(at, int) and not isinstance(at, bool) for at in where):
            raise ValueError(
                f"its phrase {detail.get('phrase')!r} has the tokens_positive {where}; expected [start, end]"
            )
        if detail.get("segmentation") is not None or not objects:
            found = [detail]
        else:
            numbers = take(detail, "ids", list) if "ids" in detail else [take(detail, "id", int)]
            found = [_object(objects, number) for number in numbers]
        marks.append((where[0], where[1], found))
        phrases.append(take(detail, "phrase", str) if detail.get("phrase") is not None else None)
    shift = shift_of(raw, caption, cut, [(phrase, *mark[:2]) for phrase, mark in zip(phrases, marks, strict=True)])
    return caption, [(start + shift, end + shift, found) for start, end, found in marks]


def _tell(subject: Any, size: Size, regions: list[Region], notes: list[str], rng: np.random.Generator) -> Conversation:
    text, about = subject
    if isinstance(about, dict):
        regions.append(_region(about, size, text, notes))
        wordings = "box" if regions[-1].kind == "box" else "one"
        return refer(
            text, (len(regions) - 1,), rng, wordings=wordings, task="box" if wordings == "box" else "referring"
        )
    spans: list[Span] = []
    begin = len(regions)
    for start, end, objects in about:
        places = range(len(regions), len(regions) + len(objects))
        regions += [_region(item, size, text[start:end], notes) for item in objects]
        spans.append(Span(start, end, tuple(places)))
    grounded = ground(text, spans)
    notes += grounded.notes
    boxed = any(region.kind == "box" for region in regions[begin:])
    answer = Turn("assistant", grounded.text, grounded.phrases, grounding="box" if boxed else "mask")
    question = asked(wording.QUESTIONS["grounded_box" if boxed else "grounded"], rng)
    return Conversation((Turn("user", question), answer), task="caption", kind="grounded")


def _region(item: dict[str, Any], size: Size, label: str, notes: list[str]) -> Region:
    """An object's mask; its box where it has none."""
    if item.get("segmentation") is None:
        box, cut = read_box(take(item, "bbox", list), size, "xyxy", clip=True)  # a detector's, some leave the image
        notes += [f"the box of {label!r} is cut at the border"] * cut
        return Region(size=size, box=box, label=label)
    return region_of(item["segmentation"], size, label)
