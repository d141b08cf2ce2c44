"""`Sample` as one plain json object: what a line of our JSONL and a `.json` in a shard hold.

The models below are the format: `schema()` gives them as a JSON Schema, `sample.schema.json` beside this file. What is
written by hand may leave out more than what we write: a phrase's place in the text where the phrase is there once,
the size, and all conversations (questions are then drawn from the regions' labels).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mglmm_data.masks import Size
from mglmm_data.reading import shown
from mglmm_data.telling import near

Whole = Annotated[int, Field(ge=0)]
Pair = tuple[float, float]


class Plain(BaseModel):
    """Base of the format: nothing is converted, unknown keys and NaN are refused."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class RleRecord(Plain):
    """A mask as COCO RLE of the image's size; it may overlap others and have holes."""

    size: tuple[int, int]
    """Height and width of the image, px."""
    counts: str | list[Whole]
    """Compressed (text) or plain (a list of run lengths), column by column."""


class RegionRecord(Plain):
    """A part of the image: exactly one of mask, polygons, box, point, scribble; px of the image as loaded."""

    label: str = ""
    """What it shows."""
    mask: RleRecord | str | None = None
    """COCO RLE, or the path of a black and white picture (white is in), relative to the file."""
    polygons: list[list[float]] | None = None
    """x1, y1, x2, y2, ... each; joined by logical or."""
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2; x2 and y2 are exclusive."""
    point: Pair | None = None
    """x, y."""
    scribble: list[Pair] | None = None
    """Two or more points."""

    @model_validator(mode="after")
    def one_geometry(self) -> RegionRecord:
        names = ("mask", "polygons", "box", "point", "scribble")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a region has exactly one of {', '.join(names)}; this one has {given or 'none'}")
        return self


class PhraseRecord(Plain):
    """Words of an answer, or what a question names, and the regions they are grounded in."""

    text: str
    """The words, as they stand in the turn's text."""
    regions: Annotated[list[Whole], Field(min_length=1)]
    """Indices of the sample's regions, from 0, in reading order."""
    start: Whole | None = None
    """Where the words begin, in characters from 0; may be left out where they are there once."""


class MentionRecord(Plain):
    """Words of a question that speak of a given region."""

    text: str
    """The words, as they stand in the turn's text."""
    region: Whole
    """Index of the sample's region, from 0."""
    start: Whole | None = None
    """Where the words begin, in characters from 0; may be left out where they are there once."""


class TurnRecord(Plain):
    """One utterance, in clean text: no <p>, no [SEG], no coordinates."""

    role: Literal["user", "assistant"]
    text: str
    phrases: list[PhraseRecord] = []
    mentions: list[MentionRecord] = []
    grounding: Literal["mask", "box"] = "mask"
    """How the phrases are to come out."""


class ConversationRecord(Plain):
    """Turns that see each other: user, assistant, user, assistant ..."""

    turns: list[TurnRecord]
    task: str = ""
    kind: str = ""


class SampleRecord(Plain):
    """One image with regions and conversations about it; conversations do not see each other."""

    image: str
    """Path of the picture, relative to the file (or to image_root), inside its folder."""
    height: Annotated[int, Field(ge=1)] | None = None
    """Height of the image, px; given, the picture must be of it."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Width of the image, px; given, the picture must be of it."""
    id: str = ""
    regions: list[RegionRecord] = []
    conversations: list[ConversationRecord] | None = None
    """Left out, questions are drawn from the labels of the regions."""
    meta: dict[str, Any] = {}
    """Anything else that is worth keeping."""

    @property
    def size(self) -> Size | None:
        """(H, W), px, where both are given."""
        return (self.height, self.width) if self.height is not None and self.width is not None else None


PARTS: dict[Any, type[Plain]] = {
    "regions": RegionRecord,
    "mask": RleRecord,
    "conversations": ConversationRecord,
    "turns": TurnRecord,
    "phrases": PhraseRecord,
    "mentions": MentionRecord,
}
"""Key -> what its list or object holds."""


def schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SampleRecord.model_json_schema()}


def parse_record(line: bytes | str) -> SampleRecord:
    """One line of json as a record.

    Raises:
        ValueError: what is wrong, each mistake with its place; the caller puts file and line before it.
    """
    try:
        return SampleRecord.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(item) for item in error.errors(include_url=False)[:3])) from None


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in ("RleRecord", "str"))
    if error["type"] == "json_invalid":
        told = error["msg"].removeprefix("Invalid JSON: ")
        return f"is no json in UTF-8 ({re.sub(r' at line [0-9]+ column', ' at column', told)})"
    if error["type"] == "extra_forbidden":
        model = next((PARTS[part] for part in reversed(error["loc"][:-1]) if part in PARTS), SampleRecord)
        return f"unknown key {where!r}{near(error['loc'][-1], model.model_fields)}"
    if error["type"] == "missing":
        return f"has no {where!r}"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if error["type"] == "value_error" else f" (found {shown(error['input'])})"
    return f"{where}: {message}{found}" if where else message
