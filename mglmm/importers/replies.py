"""What the published `evaluate` and chat scripts return as text: their tokenizer's decoding, and their clean-up.

Kept apart from `mglmm.formats.read_answer`, which says the same in clean text with spans: these strings exist so that
numbers computed from upstream's output (caption scores, phrase matching) can be computed from ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from mglmm.templates import FAMILIES
from mglmm.tokens import PHRASE_CLOSE, PHRASE_OPEN, SEG, LiteralTokenizer

CONTROL = ("<s>", "</s>", "<unk>")
PHRASE = re.compile(rf"{PHRASE_OPEN}(.*?){PHRASE_CLOSE}")
TAG = re.compile(r"<.*?>")
ASSISTANT = "ASSISTANT: "


@dataclass(frozen=True)
class Reply:
    """An answer as upstream's scripts hand it on."""

    text_output: str  # LISA: the whole conversation; GLaMM and MGLMM: what the assistant said, with its markers
    cleaned: str  # without markers, blanks single (`eval/gcg/infer.py`)
    phrases: tuple[str, ...]  # what stands in <p> </p>, in order


def decode_slow(ids: Iterable[int], literal: LiteralTokenizer) -> str:
    """Ids to text as the slow LLaMA tokenizer of transformers 4.28 to 4.31 did, special tokens kept.

    Runs between added tokens are joined with one blank; within a run a blank comes before `</s>` and its like, and it
    comes where the run begins, not where the token stands (upstream's `convert_tokens_to_string`).

    Args:
        ids: without the image's placeholder, which upstream takes out first.
    """
    names = {index: token for token, index in literal.special.items()}
    runs: list[str] = []
    for added, group in groupby(ids, lambda index: names.get(index, CONTROL[0]) not in CONTROL):
        run = list(group)
        runs += [names[index] for index in run] if added else [decode_run(run, names, literal)]
    return " ".join(runs)


def decode_run(run: Sequence[int], names: dict[int, str], literal: LiteralTokenizer) -> str:
    """A run of plain ids and of `<s>`, `</s>`, `<unk>`."""
    text, plain, special_before = "", [], False
    for position, index in enumerate(run):
        if index in names:
            text += " " if position and not special_before else ""
            text += spoken(plain, literal) + names[index]
            plain, special_before = [], True
        else:
            plain.append(index)
            special_before = False
    return text + spoken(plain, literal)


def spoken(ids: list[int], literal: LiteralTokenizer) -> str:
    """Sentencepiece's decoding: the dummy prefix is no blank."""
    return literal.decode(ids).removeprefix(" ") if ids else ""


def read_reply(ids: Iterable[int], literal: LiteralTokenizer, family: str) -> Reply:
    """What upstream's scripts make of `evaluate`'s output ids (question and answer).

    Args:
        ids: of the whole conversation, `<s>` first, without the image's placeholders.
        family: of `mglmm.formats.FAMILIES`.

    Raises:
        ValueError: the family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    text = decode_slow(ids, literal).replace("\n", "").replace("  ", " ")
    said = text.rsplit(ASSISTANT, 1)[-1]
    cleaned = " ".join(TAG.sub("", said).replace(SEG, "").split()).strip("'").strip()
    output = said if FAMILIES[family].tagged else text
    return Reply(output, cleaned, tuple(phrase.strip() for phrase in PHRASE.findall(said)))
