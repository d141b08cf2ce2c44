"""Prompt formats as data: what stands around an image, a question and an answer; saved by name with a checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mglmm.tokens import PHRASE_CLOSE, PHRASE_OPEN, REGION, SEG, spelt


class PromptFormat(BaseModel):
    """What stands around images and turns, and how text between markers becomes ids.

    `pieces: legacy` is slow LLaMA tokenisation, as the published codes of the family ran it: text between two markers
    is one piece, white space beside markers is dropped, and every piece gets sentencepiece's dummy prefix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    before_image: str
    after_image: str
    first_user: str  # before the first question
    user: str  # before later questions
    assistant: str  # between a question and its answer
    pieces: Literal["own", "legacy"] = "own"  # own: pieces are encoded one by one, with no blanks but their own
    image_start: str | None = None  # tokens around the image
    image_end: str | None = None
    tagged: bool = True  # phrases stand in <p> </p>; without, [SEG] follows the bare words (LISA)
    bare: bool = False  # is a [SEG] without a phrase a proper answer (`It is [SEG].`)
    region: str = REGION  # the token that stands for a given region
    mention: Literal["after", "instead"] = "after"  # it follows the words that speak of the region, or replaces them
    tokens: tuple[str, ...] = ()  # added tokens that the published model was trained with; none for our own models

    @property
    def untrained(self) -> tuple[str, ...]:
        """Markers of ours that the published model never saw; it must not say them."""
        return tuple(marker for marker in spelt(self.region) if marker not in self.tokens) if self.published else ()

    @property
    def published(self) -> bool:
        """Is this how weights of others were trained? Then answers are theirs, unconstrained by our grammar."""
        return self.pieces == "legacy"


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
IM_START, IM_END, BBOX, POINT = "<im_start>", "<im_end>", "<bbox>", "<point>"
REGION_TOKENS = (IM_START, IM_END, BBOX, POINT, SEG, PHRASE_OPEN, PHRASE_CLOSE)  # in GLaMM's order

VICUNA = PromptFormat(
    name="vicuna_v1",
    before_image=f"{SYSTEM} USER: ",
    after_image="\n",
    first_user="",
    user="USER: ",
    assistant=" ASSISTANT: ",
)
"""LLaVA-1.5's conversation `vicuna_v1`, which LISA, GLaMM and MGLMM use."""

LLAVA = VICUNA.model_copy(update={"name": "llava_v1", "pieces": "legacy"})
LISA = LLAVA.model_copy(
    update={
        "name": "lisa",
        "image_start": IM_START,
        "image_end": IM_END,
        "tagged": False,
        "bare": True,
        "tokens": (SEG, IM_START, IM_END),
    }
)
LISA_V0 = LISA.model_copy(
    update={"name": "lisa_v0", "before_image": VICUNA.before_image.replace("human", "user"), "after_image": " "}
)
"""LISA before August 2023 (LISA-13B-llama2-v0): FastChat's `vicuna_v1.1`, whose system prompt speaks of a user."""
GLAMM = LISA.model_copy(
    update={
        "name": "glamm",
        "before_image": f"{SYSTEM} USER: The ",
        "after_image": " provides an overview of the picture.\n",
        "tagged": True,
        "region": BBOX,
        "mention": "instead",
        "tokens": REGION_TOKENS,
    }
)
COMPACT = VICUNA.model_copy(
    update={"name": "compact", "before_image": "", "after_image": "", "first_user": "USER: ", "user": "USER: "}
)
FORMATS = {
    form.name: form
    for form in (COMPACT, VICUNA, LLAVA, LISA, LISA_V0, GLAMM, GLAMM.model_copy(update={"name": "mglmm"}))
}

FAMILIES = {"lisa": LISA, "glamm": GLAMM, "mglmm": FORMATS["mglmm"], "llava": LLAVA}
"""Families of published checkpoints and the format each was trained with."""
FAMILY_OF = {LISA_V0.name: "lisa", **{name: name for name in FAMILIES if name != "llava"}}
"""The family of a format that grounding models of others were trained with."""


def prompt_format(name: str) -> PromptFormat:
    if name not in FORMATS:
        raise ValueError(f"unknown prompt format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]
