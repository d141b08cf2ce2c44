"""What a GRIT-style instruction can be made of: the boxes, names, relations and texts of an image, from four families.

Every function here reads annotations only; no image is opened. Boxes are x1, y1, x2, y2 in px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mglmm_data import wording
from mglmm_data.flickr_entities import NOT_VISUAL, read_annotation, read_sentence
from mglmm_data.masks import Size
from mglmm_data.reading import (
    Problems,
    name_in,
    read_box,
    read_json,
    read_lines,
    take,
    take_crowd,
    take_id,
    take_list,
    take_size,
)
from mglmm_data.refer import SPLIT_BY, in_split, load_refs, read_ref
from mglmm_data.sample import Box
from mglmm_data.telling import near
from mglmm_data.visual_genome import Annotations


@dataclass
class Facts:
    """What is annotated in one image.

    `exhaustive`: every instance of each of these names has its box, so that all of them can be asked for. `absent`:
    names that annotators looked for and did not find; None where the set looked for its whole vocabulary. `crowded`:
    names that are here in a crowd that one box holds, so not among the objects, and not absent.
    """

    dataset: str
    image: str
    size: Size
    objects: list[tuple[str, Box, list[str]]] = field(default_factory=list)
    relations: list[tuple[str, Box, str, str, Box]] = field(default_factory=list)
    regions: list[tuple[str, Box]] = field(default_factory=list)
    expressions: list[tuple[str, Box]] = field(default_factory=list)
    captions: list[tuple[str, list[tuple[int, int, list[Box]]]]] = field(default_factory=list)
    exhaustive: frozenset[str] = frozenset()
    absent: frozenset[str] | None = None
    crowded: frozenset[str] = frozenset()


def visual_genome(root: str | Path, problems: Problems, *, clip: bool = True) -> Iterator[Facts]:
    """Objects with attributes, relations and regions; boxes are cut at the border, as many of VG's leave it."""
    annotations = Annotations(root, {"objects", "attributes", "relations", "regions"}, clip, problems)
    for image in annotations.images():
        described = {(name, tuple(box)): attributes for box, name, attributes in annotations.of("attributes", image)}
        yield Facts(
            "vg",
            f"{image}.jpg",
            annotations.size(image),
            [
                (name, tuple(box), described.get((name, tuple(box)), []))
                for box, name, _ in annotations.of("objects", image)
            ],
            [(a, tuple(at), how, b, tuple(there)) for a, at, how, b, there in annotations.of("relations", image)],
            [(text.rstrip(" ."), tuple(box)) for box, text in annotations.of("regions", image)],
        )


def categories(path: str | Path, problems: Problems, dataset: str) -> Iterator[Facts]:
    """A COCO-style json of boxes: Objects365, LVIS, COCO. LVIS says itself what it looked for in an image."""
    data, path = read_json(path, dict), Path(path)
    names: dict[int | str, str] = {}
    for number, record in enumerate(take_list(data, "categories", path)):
        with problems.at(f"{path}: category {name_in(record, number)}"):
            names[take_id(record, "id")] = wording.readable(take(record, "name", str).lower().split("_(")[0])
    images: dict[int | str, Facts] = {}
    crowded: dict[int | str, set[str]] = {}
    partly: dict[int | str, set[str]] = {}
    for number, record in enumerate(take_list(data, "images", path)):
        with problems.at(f"{path}: image {name_in(record, number)}"):
            size, image = take_size(record), take_id(record, "id")
            key = "file_name" if "file_name" in record else "coco_url"
            name = take(record, key, str)
            facts = Facts(dataset, name if key == "file_name" else "/".join(name.split("/")[-2:]), size)
            if "neg_category_ids" in record:
                facts.absent = frozenset(_named(record, "neg_category_ids", names))
            if "not_exhaustive_category_ids" in record:
                partly[image] = _named(record, "not_exhaustive_category_ids", names)
            images[image] = facts
    for number, record in enumerate(take_list(data, "annotations", path)):
        with problems.at(f"{path}: annotation {name_in(record, number)}"):
            image, category = take_id(record, "image_id"), take_id(record, "category_id")
            if image not in images or category not in names:
                raise ValueError(f"is of image id {image}, category id {category}; one is not in the file")
            box, _ = read_box(take(record, "bbox", list), images[image].size, "xywh")
            if take_crowd(record):
                crowded.setdefault(image, set()).add(names[category])
            images[image].objects.append((names[category], box, []))
    for image, facts in images.items():
        here = {name for name, _, _ in facts.objects}
        facts.crowded = frozenset(crowded.get(image, ()))
        facts.exhaustive = frozenset(here - facts.crowded - partly.get(image, set()))
        facts.objects = [item for item in facts.objects if item[0] not in facts.crowded]
        yield facts


def flickr_entities(root: str | Path, problems: Problems, split: str = "train") -> Iterator[Facts]:
    """Captions of Flickr30k Entities with the boxes of their phrases."""
    root = Path(root)
    for _, line in read_lines(root / f"{split}.txt"):
        name = line.strip().removesuffix(".jpg")
        with problems.at(f"{root}: image {name}"):
            size, boxes, chains, _, _ = read_annotation(root / "Annotations" / f"{name}.xml")
            facts = Facts("flickr", f"{name}.jpg", size)
            for number, text in read_lines(root / "Sentences" / f"{name}.txt"):
                clean, entities = read_sentence(text, f"Sentences/{name}.txt: line {number}")
                spans = [
                    (e.start, e.end, [boxes[i] for i in chains[e.id]])
                    for e in entities
                    if e.id != NOT_VISUAL and e.id in chains
                ]
                if spans:
                    facts.captions.append((clean, spans))
            yield facts


def refer(path: str | Path, problems: Problems, split: str = "train") -> Iterator[Facts]:
    """Expressions of RefCOCO, RefCOCO+ or RefCOCOg, from the folder of one, with its `instances.json`.

    Its partition is the one that papers report; for another give the file itself (`refcocog/refs(google).p`). The
    folder's name is the data set's.
    """
    refs = _refs_in(Path(path))
    instances = refs.parent / "instances.json"
    data = read_json(instances, dict)
    images, found = ({}, {})
    for key, kept in (("images", images), ("annotations", found)):
        for number, record in enumerate(take_list(data, key, instances)):
            with problems.at(f"{instances}: {key[:-1]} {name_in(record, number)}"):
                kept[take_id(record, "id")] = record
    dataset = refs.absolute().parent.name
    facts: dict[Any, Facts] = {}
    splits: set[str] = set()
    for number, ref in enumerate(load_refs(refs)):
        with problems.at(f"{refs}: ref {name_in(ref, number, 'ref_id')}"):
            splits.add(take(ref, "split", str))
            if not in_split(ref["split"], split):
                continue
            told = read_ref(ref, dataset == "grefcoco")
            if told["image"] not in images:
                raise ValueError(f"is of image id {told['image']}, which is not in instances.json")
            image = images[told["image"]]
            here = facts.setdefault(told["image"], Facts(dataset, take(image, "file_name", str), take_size(image)))
            if len(told["anns"]) != 1 or told["anns"][0] not in found:
                raise ValueError(f"its annotations are {told['anns']}; expected one that is in instances.json")
            box, _ = read_box(take(found[told["anns"][0]], "bbox", list), here.size, "xywh")
            here.expressions += [(sentence, box) for sentence in told["sents"]]
    if not facts:
        raise ValueError(f"{refs} has nothing in split {split!r}{near(split, splits)}")
    yield from facts.values()


def _refs_in(path: Path) -> Path:
    """The file of expressions in a folder: the only one, or the partition that papers report; a file is itself."""
    if path.is_file():
        return path
    files = [*sorted(path.glob("refs(*).p")), *sorted(path.glob("refs(*).json"))]
    if not files:
        raise ValueError(f"{path} has no refs(unc).p or refs(umd).p; give the folder of one data set")
    reported = f"refs({SPLIT_BY.get(path.absolute().name)})"
    alone = len({file.stem for file in files}) == 1
    chosen = [file for file in files if alone or file.stem == reported]
    if not chosen:
        raise ValueError(f"{path} has {', '.join(file.name for file in files)}; give one of them, as {files[0]}")
    return chosen[0]


def _named(record: Any, key: str, names: dict[int | str, str]) -> set[str]:
    """The names of a list of category ids; LVIS's own lists hold ids of its older version too."""
    return {names[i] for i in take(record, key, list) if isinstance(i, (int, str)) and i in names}
