"""`Sample` to a plain record and back; the record's form is in `record.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks
from mglmm_data.folder import read_mask
from mglmm_data.images import LoadedImage
from mglmm_data.masks import Size
from mglmm_data.reading import SLACK, Pictures, shown
from mglmm_data.record import MentionRecord, PhraseRecord, RegionRecord, SampleRecord, TurnRecord
from mglmm_data.sample import Conversation, Grounding, Mention, Region, Sample, Turn


def to_record(sample: Sample, image: str) -> dict[str, Any]:
    """A sample as a plain json object whose picture is at the path `image`; `from_record` gives the same sample back.

    Raises:
        ValueError: something in `meta` is no plain value.
    """
    record: dict[str, Any] = {"image": image, "height": sample.size[0], "width": sample.size[1]}
    record |= {"id": sample.id} if sample.id else {}
    record["regions"] = [_region(region) for region in sample.regions]
    record["conversations"] = [
        {
            "turns": [_turn(turn) for turn in conversation.turns],
            **{key: value for key in ("task", "kind") if (value := getattr(conversation, key))},
        }
        for conversation in sample.conversations
    ]
    return record | ({"meta": _plain(sample.meta, sample.id)} if sample.meta else {})


def _region(region: Region) -> dict[str, Any]:
    out: dict[str, Any] = {"label": region.label} if region.label else {}
    if region.rle is not None:
        size = [int(side) for side in region.rle["size"]]
        return out | {"mask": {"size": size, "counts": region.rle["counts"]}}
    if region.scribble is not None:
        return out | {"scribble": [[float(x), float(y)] for x, y in region.scribble]}
    name = "box" if region.box is not None else "point"
    return out | {name: [float(value) for value in region.box or region.point or ()]}


def _turn(turn: Turn) -> dict[str, Any]:
    def piece(span: Grounding | Mention) -> dict[str, Any]:
        return {"text": turn.text[span.start : span.end], "start": span.start}

    out: dict[str, Any] = {"role": turn.role, "text": turn.text}
    if turn.phrases:
        out["phrases"] = [piece(span) | {"regions": [int(i) for i in span.regions]} for span in turn.phrases]
    if turn.mentions:
        out["mentions"] = [piece(span) | {"region": int(span.region)} for span in turn.mentions]
    return out | ({"grounding": turn.grounding} if turn.grounding != "mask" else {})


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(f"{where}: meta holds {shown(value)}, which json does not know; turn it into text or numbers")


def from_record(record: SampleRecord, loaded: LoadedImage, folder: Path) -> Sample:
    """The sample of a record and its picture; `folder` is where the paths of masks count from.

    Raises:
        ValueError: the picture is of another size, a region leaves it or is damaged, a phrase is not in its text or is
            there more than once, or anything else that `Sample` refuses.
    """
    size = loaded.size
    if record.size is not None and record.size != size:
        raise ValueError(f"is for an image of {record.size} (height, width), {record.image} is {size}")
    regions = []
    for number, region in enumerate(record.regions):
        try:
            regions.append(_read_region(region, size, folder))
        except ValueError as error:
            raise ValueError(f"region {number}: {error}") from None
    conversations = tuple(
        Conversation(tuple(_read_turn(turn) for turn in item.turns), task=item.task, kind=item.kind)
        for item in record.conversations or ()
    )
    return Sample(
        image=loaded.pixels,
        full_size=loaded.full_size,
        regions=tuple(regions),
        conversations=conversations,
        id=record.id,
        meta=_frozen(record.meta),
    )


def _read_region(record: RegionRecord, size: Size, folder: Path) -> Region:
    if isinstance(record.mask, str):
        return Region.of_mask(read_mask(Path(Pictures(folder).find(record.mask)), size), record.label)
    if record.mask is not None:
        rle = masks.packed({"size": list(record.mask.size), "counts": record.mask.counts}, size)
        return Region(size, rle=rle, label=record.label)
    if record.polygons is not None:
        for polygon in record.polygons:
            for values, side, axis in ((polygon[0::2], size[1], "x"), (polygon[1::2], size[0], "y")):
                outside = [value for value in values if not -SLACK <= value <= side + SLACK]
                if outside:
                    raise ValueError(f"a polygon's {axis} {outside[0]} is outside the image of {size[1]}x{size[0]} px")
        return Region.of_mask(masks.from_polygons(record.polygons, size), record.label)
    scribble = tuple(record.scribble) if record.scribble is not None else None
    return Region(size, box=record.box, point=record.point, scribble=scribble, label=record.label)


def _read_turn(record: TurnRecord) -> Turn:
    phrases = tuple(Grounding(*_place(record.text, item), tuple(item.regions)) for item in record.phrases)
    mentions = tuple(Mention(*_place(record.text, item), item.region) for item in record.mentions)
    return Turn(record.role, record.text, phrases, mentions, record.grounding)


def _place(text: str, item: PhraseRecord | MentionRecord) -> tuple[int, int]:
    """Characters start:end of a phrase in its turn's text."""
    if item.start is None:
        if not item.text or text.count(item.text) != 1:
            found = text.count(item.text) if item.text else 0
            raise ValueError(
                f"{item.text!r} is {found} times in {text!r}; give its start, counted in characters from 0"
            )
        start = text.index(item.text)
    else:
        start = item.start
        found = text[start : start + len(item.text)]
        if found != item.text:
            raise ValueError(f"at {start} of {text!r} stands {found!r}, not {item.text!r}; correct its start")
    return start, start + len(item.text)


def _frozen(value: Any) -> Any:
    """Lists out of json as tuples, as readers have them in `meta`."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
