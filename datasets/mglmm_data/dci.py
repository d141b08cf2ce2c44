"""DCI (Densely Captioned Images): SA-1B photographs described in full, mask by mask, as a tree.

    ROOT/complete/*.json (or annotations/)    ROOT/photos/*.jpg (or images/)

A json holds `image`, `short_caption`, `extra_caption` and `mask_data`: index -> `{idx, label, caption, parent,
outer_mask, mask_quality}`. `parent` is -1 below the image itself; `outer_mask` is a PNG in base64; quality 1 is a mask
whose label counts but not its caption, 2 is unusable: it is left out, and its children belong to its parent.
Source: facebookresearch/DCI, `dense_image.py`.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mglmm_data import wording
from mglmm_data.annotation import asked, check_turns, choose, folders
from mglmm_data.masks import Size
from mglmm_data.reading import Pictures, Problems, load_picture, named, read_json, take, take_line
from mglmm_data.sample import Conversation, Mention, Region, Sample, Turn
from mglmm_data.telling import Named, reading_order
from mglmm_data.world.templates import REGION_WORDS

UNUSABLE = 2
ROOT = -1
FOLDERS = ("complete", "annotations", "DCI/complete", "DCI/annotations", "densely_captioned_images/complete", ".")
PHOTOS = ("photos", "images", "imgs", "../SegmentAnything/imgs", ".")


@dataclass
class Node:
    """A mask of the tree: its label in one line, its caption ("" where it does not count), and its children."""

    label: str
    caption: str
    mask: str
    parent: int
    children: list[int] = field(default_factory=list)


class DciSource:
    """DCI; a sample is an image with up to `turns` conversations about it, drawn from its tree.

    About the whole there is the caption, and a list of what is in it (`panoptic`); about a node with children a list of
    its parts (`fine`), and about a node with a caption its description (`region`).

    Args:
        root: the folder above.
        image_root: folder of the photographs.
        turns: conversations drawn for each image; null takes all.

    Raises:
        ValueError: the folders are missing or hold no json.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        image_root: str | Path | None = None,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.turns, self.seed, self.mirror = check_turns(turns), seed, mirror
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        self.folder = folders(root, FOLDERS, "folder of DCI's annotations")[0]
        self.pictures = Pictures(image_root if image_root is not None else folders(root, PHOTOS, "folder of photos"))
        self._files = sorted(path.name for path in self.folder.glob("*.json"))
        if not self._files:
            raise ValueError(f"{self.folder} holds no json; give the folder with DCI's `complete`")

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        return f"DCI/{Path(self._files[index]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with conversations drawn by (seed, index, epoch).

        Every usable mask is a region, parents before children; `meta["parents"]` holds for each the index of its
        parent, -1 below the image. A json is read here and not before.

        Raises:
            ValueError: the json is malformed (a parent that is absent, a ring, a mask of another size ...), or the
                image is missing or damaged.
        """
        path = self.folder / self._files[index]
        with named(str(path)):
            data = read_json(path, dict)
            nodes, caption = read_tree(take(data, "mask_data", dict)), read_caption(data)
            file = self.pictures.find(take(data, "image", str))
        loaded = load_picture(file, None, str(path))
        numbers = _parents_first(nodes)
        place = {number: at for at, number in enumerate(numbers)}
        regions: list[Region] = []
        for number in numbers:
            with named(f"{path}: mask {number}"):
                regions.append(Region.of_mask(read_png(nodes[number].mask, loaded.size), nodes[number].label))
        rng = np.random.default_rng([self.seed, index, epoch])
        told = choose(self._subjects(caption, nodes), self.turns, rng)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=tuple(_tell(task, number, caption, nodes, place, regions, rng) for task, number in told),
            id=self.id_of(index),
            meta={
                "source": "dci",
                "image_id": path.stem,
                "file": file,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
                "parents": tuple(place.get(nodes[number].parent, -1) for number in numbers),
            },
        )

    def _subjects(self, caption: str, nodes: dict[int, Node]) -> list[tuple[str, int]]:
        """What can be told: (task, node)."""
        told = [("caption", ROOT)] * bool(caption)
        told += [("panoptic", ROOT)] * any(node.parent == ROOT for node in nodes.values())
        told += [("fine", number) for number, node in nodes.items() if node.children]
        return told + [("region", number) for number, node in nodes.items() if node.caption]


def read_caption(data: dict[str, Any]) -> str:
    """The short caption and the extra one behind it; "" without a short one."""
    short, extra = (
        " ".join(take(data, key, str).split()) if data.get(key) is not None else ""
        for key in ("short_caption", "extra_caption")
    )
    return f"{short} {extra}".strip() if short else ""


def read_tree(data: dict[str, Any]) -> dict[int, Node]:
    """The usable masks by index, with parents among themselves.

    Raises:
        ValueError: a field is missing or of a wrong type, or a parent is absent or its own descendant.
    """
    raw: dict[int, tuple[Node, int]] = {}
    for key, item in data.items():
        try:
            number, quality = take(item, "idx", int), take(item, "mask_quality", int)
            caption = " ".join(take(item, "caption", str).split()) if quality == 0 else ""
            label = take_line(item, "label") if quality < UNUSABLE else ""
            parent, mask = take(item, "parent", int), take(item, "outer_mask", str)
        except ValueError as error:
            raise ValueError(f"mask {key} {error}") from error
        raw[number] = (Node(label, caption, mask, parent), quality)
    for number, (node, _) in raw.items():
        seen, parent = {number}, node.parent
        while parent != ROOT:
            if parent not in raw:
                raise ValueError(f"mask {number} has the parent {parent}, which is absent")
            if parent in seen:
                raise ValueError(f"mask {number} is below itself (parent {parent})")
            seen.add(parent)
            parent = raw[parent][0].parent
    nodes = {number: node for number, (node, quality) in raw.items() if quality < UNUSABLE}
    for number, node in nodes.items():
        while node.parent != ROOT and node.parent not in nodes:
            node.parent = raw[node.parent][0].parent
        if node.parent != ROOT:
            nodes[node.parent].children.append(number)
    return nodes


def read_png(packed: str, size: Size) -> np.ndarray:
    """A PNG in base64 as `bool[H, W]`: what is not black is in."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(packed, validate=True)), formats=("PNG",)) as image:
            mask = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"its outer_mask is no PNG in base64 ({error})") from error
    if mask.shape != tuple(size):
        raise ValueError(f"its outer_mask is {mask.shape}, its image {tuple(size)} (height, width)")
    if not mask.any():
        raise ValueError("its outer_mask covers no pixel")
    return mask


def _parents_first(nodes: dict[int, Node]) -> list[int]:
    """Numbers of the nodes, each after its parent."""
    order, left = [], [number for number, node in nodes.items() if node.parent == ROOT]
    while left:
        order.append(left.pop(0))
        left += nodes[order[-1]].children
    return order


def _tell(
    task: str,
    number: int,
    caption: str,
    nodes: dict[int, Node],
    place: dict[int, int],
    regions: list[Region],
    rng: np.random.Generator,
) -> Conversation:
    if task == "caption":
        turns = (
            Turn("user", asked(wording.QUESTIONS["caption"], rng)),
            Turn("assistant", caption),
        )
        return Conversation(turns, task=task)
    if task == "region":
        words = REGION_WORDS[int(rng.integers(len(REGION_WORDS)))]
        question = asked(wording.QUESTIONS["region"], rng, r=words)
        at = question.index(words)
        mention = Mention(at, at + len(words), place[number])
        turns = (Turn("user", question, mentions=(mention,)), Turn("assistant", nodes[number].caption))
        return Conversation(turns, task=task, kind="caption")
    children = [child for child, node in nodes.items() if node.parent == number]
    named: dict[str, list[int]] = {}
    for child in children:
        named.setdefault(nodes[child].label, []).append(place[child])
    listed: list[Named] = []
    for label, members in named.items():
        order = reading_order([regions[member] for member in members])
        listed.append(Named(label, tuple(members[at] for at in order)))
    text, phrases = wording.listing([(wording.counted(item.name, len(item.regions)), item.regions) for item in listed])
    about = wording.definite(nodes[number].label) if number != ROOT else ""
    question = asked(wording.QUESTIONS["panoptic" if number == ROOT else "fine"], rng, x=about)
    return Conversation((Turn("user", question), Turn("assistant", text, phrases)), task=task)
