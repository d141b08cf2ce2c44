"""SA-1B: photographs with masks that have no names; the task is to segment what a point or a box is on.

    ROOT/sa_NAME.jpg and ROOT/sa_NAME.json, in one folder, or in folders (`sa_000000/`) of it

A json holds `image` (image_id, width, height, file_name) and `annotations` (segmentation as RLE, bbox x, y, w, h,
point_coords, predicted_iou, stability_score). Source: facebookresearch/segment-anything, README "Dataset".
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mglmm_data import wording
from mglmm_data.annotation import asked, check_turns, region_of
from mglmm_data.masks import Size
from mglmm_data.reading import (
    Pictures,
    Problems,
    load_picture,
    name_in,
    named,
    read_box,
    read_json,
    shown,
    take,
    take_id,
    take_size,
)
from mglmm_data.sample import Conversation, Grounding, Mention, Region, Sample, Turn
from mglmm_data.telling import near
from mglmm_data.world.templates import REGION_WORDS

PROMPTS = ("point", "box", "both")


class Sa1bSource:
    """SA-1B; a sample is an image with `turns` of its masks, each asked for by a point or a box.

    Args:
        root: the folder above.
        image_root: folder of the photographs; by default they lie beside their jsons.
        prompt: point, box, or both (either with the same chance).
        least_iou: masks whose `predicted_iou` is below this are left out.
        turns: masks drawn for each image; null takes all of them, in the file's order.

    Raises:
        ValueError: the folder holds no json, or an image is missing.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        image_root: str | Path | None = None,
        prompt: Literal["point", "box", "both"] = "both",
        least_iou: float = 0.0,
        turns: int | None = 3,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"prompt is {prompt!r}{near(prompt, PROMPTS)}")
        self.root, self.prompt, self.least_iou = Path(root), prompt, least_iou
        self.turns, self.seed, self.mirror = check_turns(turns), seed, mirror
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        self._files = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*.json"))
        if not self._files:
            raise ValueError(f"{self.root} holds no json; give the folder of SA-1B's sa_*.json")
        self.pictures = Pictures(image_root if image_root is not None else self.root)

    def __len__(self) -> int:
        return len(self._files)

    def id_of(self, index: int) -> str:
        return f"SA-1B/{Path(self._files[index]).stem}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with masks and prompts drawn by (seed, index, epoch).

        The prompt and its mask are two regions; the answer grounds the words of the prompt. A json is read here and
        not before: there are eleven million.

        Raises:
            ValueError: the json is malformed, or the image is missing, damaged or of another size.
        """
        file = self._files[index]
        where = str(self.root / file)
        with named(where):
            data = read_json(self.root / file, dict)
            image = take(data, "image", dict)
            size, name, identity = take_size(image), take(image, "file_name", str), take_id(image, "image_id")
            folder = Path(file).parent.as_posix()
            path = self.pictures.find(name if folder == "." else f"{folder}/{name}")
            every, annotations = take(data, "annotations", list), []
        for number, annotation in enumerate(every):
            with named(f"{where}: annotation {name_in(annotation, number)}"):
                if self._good(annotation):
                    annotations.append(annotation)
        loaded = load_picture(path, size, where)
        rng = np.random.default_rng([self.seed, index, epoch])
        order = rng.permutation(len(annotations)) if self.turns is not None else range(len(annotations))
        regions: list[Region] = []
        conversations: list[Conversation] = []
        for number in list(order)[: self.turns]:
            annotation = annotations[number]
            with named(f"{where}: annotation {name_in(annotation, number)}"):
                given, mask = self._pair(annotation, size, rng)
            conversations.append(_ask(len(regions), given.kind, rng))
            regions += [given, mask]
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=tuple(conversations),
            id=self.id_of(index),
            meta={
                "source": "sa1b",
                "image_id": identity,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            },
        )

    def _good(self, annotation: Any) -> bool:
        if not isinstance(annotation, dict):
            raise ValueError(f"its annotations hold {shown(annotation)}; expected objects")
        return "predicted_iou" not in annotation or take(annotation, "predicted_iou", float) >= self.least_iou

    def _pair(self, annotation: dict[str, Any], size: Size, rng: np.random.Generator) -> tuple[Region, Region]:
        """The prompt and the mask of an annotation."""
        target = region_of(take(annotation, "segmentation", dict), size)
        box, _ = read_box(take(annotation, "bbox", list), size, "xywh")
        if self.prompt == "box" or (self.prompt == "both" and rng.random() < 0.5):
            return Region(size=size, box=box), target
        points = take(annotation, "point_coords", list)
        if not points or not isinstance(points[0], list) or len(points[0]) != 2:
            raise ValueError(f"its 'point_coords' is {shown(points)}; expected [[x, y]]")
        x, y = (float(take({"coordinate": value}, "coordinate", float)) for value in points[0])
        return Region(size=size, point=(x, y)), target


def _ask(place: int, kind: str, rng: np.random.Generator) -> Conversation:
    """A question about the region at `place`, answered by the mask behind it."""
    words = REGION_WORDS[int(rng.integers(len(REGION_WORDS)))]
    question = asked(wording.QUESTIONS["prompted"], rng, r=words)
    at = question.index(words)
    mention = Mention(at, at + len(words), place)
    answer = Turn("assistant", f"{words}.", (Grounding(0, len(words), (place + 1,)),))
    return Conversation((Turn("user", question, mentions=(mention,)), answer), task="prompted", kind=kind)
