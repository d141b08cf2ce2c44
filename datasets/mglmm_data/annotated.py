"""From what a reader knows about an image to a sample: what the readers of masks with names share.

A reader gives a `Scene`: the picture and its items, each a name and a mask. `Annotated` turns it into regions, grouped
by name and in reading order, and lets a `Teller` ask about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.images import LoadedImage
from mglmm_data.masks import Rle
from mglmm_data.reading import Problems
from mglmm_data.sample import Region, Sample
from mglmm_data.telling import Kind, Named, Teller, check_tasks, reading_order


@dataclass(frozen=True)
class Item:
    """A named mask. A `crowd` is no target of its own, but it makes its name incomplete; `stuff` is not counted.

    What is `hidden` covers no pixel and is there all the same: its name is neither complete nor absent.
    `of` is the object whose part it is; `detail` are words about it; `record` says which annotation it is, in notes.
    """

    name: str
    rle: Rle
    crowd: bool = False
    of: str = ""
    detail: str = ""
    record: str = ""
    stuff: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Scene:
    """What a reader knows about one image.

    `incomplete` are names of which not each instance is marked; `absent` those that are known not to be there (None:
    all others but those of which `Annotated.unsure` is not certain); `notes` what was left out or changed on the way.
    """

    image: LoadedImage
    items: Sequence[Item]
    captions: Sequence[str] = ()
    incomplete: Collection[str] = ()
    absent: Sequence[str] | None = None
    notes: Sequence[str] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    ignored: Rle | None = None  # pixels that nothing is known about


class Laid(NamedTuple):
    """A scene's regions, by name in the set's order, and what was made of its annotations on the way."""

    regions: list[Region]
    named: list[Named]
    crowds: list[int]  # which of the regions
    empty: list[str]  # annotations that cover no pixel
    joined: dict[str, int]  # name -> how many instances its one region is made of, where there were too many


class Annotated:
    """A source of samples out of scenes; a family gives `__len__`, `id_of` and `scene`.

    Args:
        kind: what an item is (`telling.Kind`).
        names: every name the set knows, in its order.
        tasks: task -> weight; each kind has its default.
        turns: questions drawn for each image.
        max_regions: where a name has more instances than this in an image, they are joined into one region.
        object_name: what parts belong to, for kind `parts`.
        vague: names too wide to be said not to be there (`food` beside a pizza).
        mirror: for the augmentation: mirroring swaps left and right in the text ("swap"), or is not done here ("off").
        on_error: `fail` at a bad record, or `count`: leave it out and list it in `problems.found`.
    """

    source = "annotated"

    def __init__(
        self,
        *,
        kind: Kind,
        names: Sequence[str],
        tasks: Mapping[str, float] | None,
        turns: int,
        seed: int,
        problems: Problems,
        max_regions: int = 10,
        object_name: str = "object",
        vague: Collection[str] = (),
        mirror: str = "swap",
        has_captions: bool = False,
    ) -> None:
        if max_regions < 1:
            raise ValueError(f"max_regions is {max_regions}; at least 1 region of a name is kept")
        for place, name in enumerate(names, 1):
            if not name.split():
                raise ValueError(f"name {place} of {len(names)} in a {self.source} set holds no word; rename the class")
        self.kind: Kind = kind
        self.names = tuple(dict.fromkeys(names))
        self.seed, self.max_regions, self.mirror, self.problems = seed, max_regions, mirror, problems
        self.skipped: Counter[str] = Counter()
        """What the files have that is no target, counted by reason."""
        self._order = {name: place for place, name in enumerate(self.names)}
        self._vague = self._order.keys() & set(vague)
        self._wider = {name: ends & self._order.keys() for name in self.names if (ends := _ends(name))}
        self._parts: dict[str, set[str]] = {}
        """` of the bench` -> the names of its parts."""
        for name in self.names if kind == "objects" else ():
            _, of, owner = name.partition(" of the ")
            if of:
                self._parts.setdefault(of + owner, set()).add(name)
        self._teller = Teller(
            kind=kind,
            names=self.names,
            tasks=check_tasks(tasks, kind, has_captions, turns),
            turns=turns,
            object_name=object_name,
        )

    def __len__(self) -> int:
        raise NotImplementedError

    def id_of(self, index: int) -> str:
        """The name of the image at `index`."""
        raise NotImplementedError

    def scene(self, index: int) -> Scene:
        """What is known about the image at `index`."""
        raise NotImplementedError

    def wider(self, here: Iterable[str]) -> set[str]:
        """Names that cover others that are here: `wall` beside `brick wall` is not all of the walls."""
        return {wide for name in here for wide in self._wider.get(name, ())}

    def unsure(self, here: Mapping[str, str]) -> set[str]:
        """Names that may be here although nothing is marked with them: wide ones, objects of parts, further parts.

        Args:
            here: name -> object whose part it is ("" for an object).
        """
        owners = {of or name for name, of in here.items()} if self._parts else set()
        parts = [self._parts.get(wording.part_of("", owner), set()) for owner in owners]
        return self.wider(here).union(self._vague, filter(None, here.values()), *parts)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with questions drawn by (seed, index, epoch).

        `Region.label` is the name. `meta`: source, file, notes, mirror, names, crowd_regions (indices of regions that
        are crowds: no target, and not to be counted as invented), ignore_regions (indices of regions without ground
        truth: they count neither way), empty_masks (the annotations that are left out since they cover no pixel),
        joined (names with more than `max_regions` instances -> how many), and what the family adds.

        Raises:
            ValueError: the image or a mask is damaged or of another size, or nothing can be asked about the image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        scene = self.scene(index)
        regions, named, crowds, empty, joined = self._laid(scene)
        rng = np.random.default_rng([self.seed, index, epoch])
        absent = scene.absent
        if absent is None:
            unsure = self.unsure({item.name: item.of for item in scene.items})
            absent = [name for name in self.names if name not in unsure]
        conversations = self._teller.tell(named, scene.captions, rng, regions=regions, absent=absent)
        if not conversations:
            told = f" ({'; '.join(f'{record} covers no pixel' for record in empty)})" if empty else ""
            raise ValueError(
                f"{self.id_of(index)} ({scene.image.path}): nothing is annotated that the tasks "
                f"{', '.join(self._teller.tasks)} ask about{told}; take it out, or add a task (absent)"
            )
        ignored = () if scene.ignored is None else (len(regions),)
        regions += [Region(scene.image.size, rle=scene.ignored) for _ in ignored]
        return Sample(
            image=scene.image.pixels,
            full_size=scene.image.full_size,
            regions=tuple(regions),
            conversations=conversations,
            id=self.id_of(index),
            meta={
                "source": self.source,
                "file": scene.image.path,
                "notes": (
                    *scene.image.notes,
                    *scene.notes,
                    *(f"{record} covers no pixel; left out" for record in empty),
                ),
                "mirror": self.mirror,
                "names": self.names,
                "crowd_regions": tuple(crowds),
                "ignore_regions": ignored,
                "empty_masks": tuple(empty),
                "joined": joined,
                **scene.meta,
            },
        )

    def _laid(self, scene: Scene) -> Laid:
        regions: list[Region] = []
        named: list[Named] = []
        crowds: list[int] = []
        empty: list[str] = []
        joined: dict[str, int] = {}
        size = scene.image.size
        grouped: dict[str, list[Item]] = {}
        for item in scene.items:
            grouped.setdefault(item.name, []).append(item)
        incomplete = self.wider(grouped).union(scene.incomplete)
        for name in sorted(grouped, key=lambda name: self._order.get(name, len(self._order))):
            items, shown = grouped[name], []
            for item in items:
                if item.hidden:
                    continue
                if not masks.area_of(item.rle):
                    empty.append(f"{item.record or 'an annotation'} ({name})")
                elif item.crowd:
                    crowds.append(len(regions))
                    regions.append(Region(size=size, rle=item.rle, label=name))
                else:
                    shown.append(item)
            complete = len(shown) == len(items) and name not in incomplete
            rles, words = [item.rle for item in shown], [item.detail for item in shown]
            if shown and (self.kind in ("parts", "classes") or len(shown) > self.max_regions):
                complete = complete if self.kind == "classes" else self.kind == "parts"
                if self.kind == "instances":
                    joined[name] = len(shown)
                rles, words = [masks.merged(rles, size)], [""]
            new = [Region(size=size, rle=rle, label=name) for rle in rles]
            order = reading_order(new)
            indices = tuple(range(len(regions), len(regions) + len(new)))
            told = tuple(words[i] for i in order)
            details = told if any(told) else ()
            named.append(Named(name, indices, complete, items[0].of, details, items[0].stuff))
            regions += [new[i] for i in order]
        return Laid(regions, named, crowds, empty, joined)


def _ends(name: str) -> set[str]:
    """`big teddy bear` ends with `teddy bear` and `bear`; `seat of the bench` is no bench."""
    words = name.partition(" of the ")[0].split(" ")
    rest = name.removeprefix(" ".join(words))
    return {" ".join(words[start:]) + rest for start in range(1, len(words))}
