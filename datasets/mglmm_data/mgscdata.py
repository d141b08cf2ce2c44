"""MGSCData: captions of SA-1B images at several granularities, of the whole (root) and of one object (subtree).

    ROOT/annotations/*.json    ROOT/MGLMM_{train,val}_split.txt    images SegmentAnything/imgs

`ROOT` is `MGLMM_gcg_new` or the folder above it. A json holds the nodes of one image: `gcg_caption` with
`<key>words</key>` around what is grounded, `gcg_labels` with the keys, and for each key a field of the node with
`label` and `mask`, a json text `{"size": [h, w], "counts": <base64 of a compressed RLE>}`.
Source: mglmm, `dataset/gcg_datasets/MGLMM_gcg_ds.py`, `mgscdata/convert.py` (which swaps width and height).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.annotation import Span, asked, check_segmentation, check_turns, choose, folders, ground, locate
from mglmm_data.masks import Size
from mglmm_data.reading import Pictures, Problems, load_picture, named, read_json, read_lines, take, take_line
from mglmm_data.sample import Conversation, Region, Sample, Turn
from mglmm_data.telling import near

TAG = re.compile(r"<(/?)([\w-]+)>")
NODES = ("all", "root", "subtree")
FOLDERS = ("../SegmentAnything/imgs", "SegmentAnything/imgs", "../SegmentAnything", "images", ".")
Part = tuple[str, list[tuple[str, int, int]]]
"""A caption without tags, and (key, start, end) of what they were around."""


class MgscSource:
    """MGSCData, one split; a sample is an image with up to `turns` of its nodes as conversations.

    Args:
        root: the folder above.
        split: train or val: the names in `MGLMM_<split>_split.txt`; all: every json.
        nodes: all, root or subtree, as the benchmark's three parts.
        image_root: folder of the SA-1B images.
        turns: nodes drawn for each image; null takes all of them, in the file's order.

    Raises:
        ValueError: a file is missing, or (with on_error: fail) a node is malformed.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        split: str = "train",
        nodes: str = "all",
        image_root: str | Path | None = None,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if nodes not in NODES:
            raise ValueError(f"nodes is {nodes!r}{near(nodes, NODES)}")
        self.turns, self.seed, self.mirror, self.nodes, self.split = check_turns(turns), seed, mirror, nodes, split
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        ways = ("annotations", "MGLMM_gcg_new/annotations")
        self.folder = locate(root, ways, "folder of MGSCData's annotations", Path.is_dir)
        places = folders(self.folder.parent, FOLDERS, "folder of SA-1B's images") if image_root is None else image_root
        self.pictures = Pictures(places)
        names = sorted(path.name for path in self.folder.glob("*.json"))
        if split != "all":
            listed = self.folder.parent / f"MGLMM_{split}_split.txt"
            names = [line.strip() for _, line in read_lines(listed)]
        self._files: list[str] = []
        for name in names:
            with self.problems.at(str(self.folder / name)):
                found, left_out = self._nodes(name)
                self.skipped["node without a caption or a label"] += left_out
                for node in found:
                    read_parts(node)
                if found:
                    self.pictures.find(take(found[0], "file_name", str))
                    self._files.append(name)
                else:
                    self.skipped["image without a node"] += 1
        if not self._files and not self.problems.found:
            raise ValueError(f"{self.folder} has no node of kind {nodes!r} in split {split!r}; take another")

    def _nodes(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """The nodes of an image with something grounded, of the wanted kind; and how many have nothing."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"leaves the folder {self.folder}; give a name inside it")
        found: list[dict[str, Any]] = []
        empty = 0
        for number, node in enumerate(read_json(path, list)):
            try:
                root = take(node, "label", str) == "root"
                if not take(node, "gcg_caption", str).strip() or not take(node, "gcg_labels", list):
                    empty += 1
                elif self.nodes in ("all", "root" if root else "subtree"):
                    found.append({**node, "number": number})
            except ValueError as error:
                raise ValueError(f"node {number}: {error}") from error
        return found, empty

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        return f"MGSC/{self.split}/{Path(self._files[index]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with nodes drawn by (seed, index, epoch); `Region.label` is the key's label.

        Raises:
            ValueError: the image is damaged or of another size, or a mask does not decode or covers no pixel.
        """
        name = self._files[index]
        nodes, _ = self._nodes(name)
        where = str(self.folder / name)
        path = self.pictures.find(nodes[0]["file_name"])
        loaded = load_picture(path, None, where)
        rng = np.random.default_rng([self.seed, index, epoch])
        regions: list[Region] = []
        notes: list[str] = list(loaded.notes)
        conversations: list[Conversation] = []
        for node in choose(nodes, self.turns, rng):
            caption, tags = read_parts(node)
            spans: list[Span] = []
            for key, start, end in tags:
                with named(f"{where}: node {node['number']}: {key}"):
                    label, rle = read_key(node, key, loaded.size)
                    mask = masks.decode(rle, loaded.size)
                    if not mask.any():
                        raise ValueError("its mask covers no pixel")
                spans.append(Span(start, end, (len(regions),)))
                regions.append(Region.of_mask(mask, label))
            with named(f"{where}: node {node['number']}"):
                grounded = ground(caption, spans)
            notes += grounded.notes
            root = node["label"] == "root"
            about = wording.definite(subject_of(node))
            question = asked(wording.QUESTIONS["grounded" if root else "subtree"], rng, x=about)
            turns = (Turn("user", question), Turn("assistant", grounded.text, grounded.phrases))
            conversations.append(Conversation(turns, task="caption", kind="root" if root else "subtree"))
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=tuple(conversations),
            id=self.id_of(index),
            meta={
                "source": "mgscdata",
                "image_id": Path(path).stem,
                "file": path,
                "notes": tuple(notes),
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            },
        )


def subject_of(node: dict[str, Any]) -> str:
    """What a node is about: `1: a man` is about a man."""
    if not (subject := take_line(node, "label").split(":", 1)[-1].strip()):
        raise ValueError(f"its 'label' is {node['label']!r}, which names nothing")
    return subject


def read_parts(node: dict[str, Any]) -> Part:
    """A node's caption without its tags, and what they were around; every key is checked.

    Raises:
        ValueError: a tag does not close or nests, is not among the keys, or a key has no field, label or mask.
    """
    try:
        return _parts(node)
    except ValueError as error:
        raise ValueError(f"node {node.get('number')}: {error}") from error


def _parts(node: dict[str, Any]) -> Part:
    subject_of(node)
    caption = " ".join(node["gcg_caption"].split()).strip('"').strip()
    text, tags, opened, last = "", list[tuple[str, int, int]](), None, 0
    keys = [take({"key": key}, "key", str) for key in node["gcg_labels"]]
    for match in TAG.finditer(caption):
        if match[2] not in keys:
            raise ValueError(f"its caption has the tag {match[0]}, which is not among gcg_labels {keys}")
        text += caption[last : match.start()]
        last = match.end()
        if not match[1]:
            if opened is not None:
                raise ValueError(f"its caption opens {match[0]} inside <{opened[0]}>; close that first")
            opened = (match[2], len(text))
        else:
            if opened is None or opened[0] != match[2]:
                raise ValueError(f"its caption closes {match[0]}, which is not open")
            if text[opened[1] :].strip():
                tags.append((*opened, len(text)))
            opened = None
    if opened is not None:
        raise ValueError(f"its caption opens <{opened[0]}> and does not close it")
    for key, _, _ in tags:
        read_key(node, key)
    return text + caption[last:], tags


def read_key(node: dict[str, Any], key: str, size: Size | None = None) -> tuple[str, dict[str, Any]]:
    """A key's label and its mask as a COCO RLE.

    Raises:
        ValueError: the node has no such field, or its mask is no json, no base64, or of another size than `size`.
    """
    field = take(node, key, dict)
    label, packed = take_line(field, "label"), take(field, "mask", str)
    try:
        rle = json.loads(packed)
        counts = base64.b64decode(take(rle, "counts", str), validate=True).decode("ascii")
    except (json.JSONDecodeError, binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"its {key!r} has a mask that is no json with base64 counts ({error})") from error
    own = take(rle, "size", list)
    if len(own) != 2 or not all(isinstance(side, int) and side > 0 for side in own):
        raise ValueError(f"its {key!r} has a mask of size {own}; expected [height, width]")
    check_segmentation({"size": own, "counts": counts}, size or (own[0], own[1]))
    return label, {"size": own, "counts": counts}
