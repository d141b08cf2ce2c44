"""Special tokens: how they are spelt, that each is one id, and the tokenizer that knows none of them.

Text of a user or a data set is encoded by `LiteralTokenizer`, a copy of the model's tokenizer without any added token:
who types `[SEG]` gets letters. (`split_special_tokens` does not help for plain added tokens, and a chat template turns
typed markers into real ids: both were tried.) Ids of markers are placed by `encode`, nowhere else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

IMAGE, SEG, PHRASE_OPEN, PHRASE_CLOSE, REGION = "<image>", "[SEG]", "<p>", "</p>", "<region>"
MARKERS = (IMAGE, SEG, PHRASE_OPEN, PHRASE_CLOSE, REGION)
BLANK = "▁"  # how a vocabulary writes a blank


@dataclass(frozen=True)
class SpecialIds:
    """One id for each marker; `pad` may equal `eos`."""

    bos: int
    eos: int
    pad: int
    image: int
    seg: int
    phrase_open: int
    phrase_close: int
    region: int

    @property
    def all(self) -> frozenset[int]:
        return frozenset(vars(self).values())


def spelt(region: str = REGION) -> tuple[str, ...]:
    """The markers as a model spells them, in the order of `MARKERS`; `region` stands for a region (GLaMM: `<bbox>`)."""
    return (*MARKERS[:-1], region)


def add_markers(tokenizer: PreTrainedTokenizerBase, region: str = REGION) -> list[str]:
    """Add the markers a tokenizer lacks; returns those added (the embedding must grow by as many rows)."""
    known = tokenizer.get_vocab()
    missing = [marker for marker in spelt(region) if marker not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
    return missing


def special_ids(tokenizer: PreTrainedTokenizerBase, region: str = REGION) -> SpecialIds:
    """The ids of all markers; `region` as in `spelt`.

    Raises:
        ValueError: a marker is not exactly one token, two share an id, or the tokenizer has no bos or eos.
    """
    vocab, unk = tokenizer.get_vocab(), tokenizer.unk_token_id
    found: dict[str, int] = {}
    for marker in spelt(region):
        if marker not in vocab or vocab[marker] == unk:
            raise ValueError(f"the tokenizer has no token {marker!r}; call mglmm.tokens.add_markers(tokenizer) first")
        found[marker] = vocab[marker]
        if tokenizer.convert_ids_to_tokens(found[marker]) != marker:
            raise ValueError(
                f"marker {marker!r} does not come back from id {found[marker]}; the tokenizer is inconsistent"
            )
    if len(set(found.values())) != len(MARKERS):
        raise ValueError(f"markers share ids: {found}; each needs one of its own")
    bos, eos = cast(int | None, tokenizer.bos_token_id), cast(int | None, tokenizer.eos_token_id)
    if bos is None or eos is None:
        raise ValueError(
            f"the tokenizer has bos {tokenizer.bos_token!r} and eos {tokenizer.eos_token!r}; it needs both"
        )
    pad = cast(int | None, tokenizer.pad_token_id)
    return SpecialIds(bos, eos, eos if pad is None else pad, *(found[marker] for marker in spelt(region)))


class LiteralTokenizer:
    """Text to ids and back without special tokens; `decode(encode(text)) == text` for byte-fallback vocabularies.

    A copy of the tokenizer's pipeline without added tokens, without template, and without the blank that Llama puts
    before every text: pieces of a prompt are encoded one by one, and their blanks are their own. The letter that stands
    for a blank inside the vocabulary (U+2581) is written in bytes, so that a typed one stays itself.

    Raises:
        ValueError: text that spells a marker yields the marker's id even so.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} has no `tokenizers` backend; load the fast tokenizer")
        data = json.loads(backend.to_str())
        data["added_tokens"], data["post_processor"], data["truncation"], data["padding"] = [], None, None, None
        data["normalizer"] = without_prefix(data["normalizer"])
        data["pre_tokenizer"] = without_prefix(data["pre_tokenizer"])
        data["decoder"] = without_prefix(data["decoder"])
        self.backend = Tokenizer.from_str(json.dumps(data))
        self.num_ids = len(tokenizer)
        self.spelt: dict[str, dict[int, str]] = {}
        self.special = {token: index for index, token in sorted((i, t) for t, i in added_tokens(tokenizer).items())}
        vocab = self.backend.get_vocab()
        self.bytes = {index: token for token, index in vocab.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
        named = [vocab.get(f"<0x{byte:02X}>") for byte in BLANK.encode()]
        self.blank = [index for index in named if index is not None] if None not in named else []
        for token, index in self.special.items():
            if index in self.encode(token):
                raise ValueError(
                    f"text {token!r} yields the special id {index} even without added tokens; rename the token"
                )

    def encode(self, text: str) -> list[int]:
        if self.blank and BLANK in text:
            first, *rest = map(self.encode, text.split(BLANK))
            return first + [index for piece in rest for index in (*self.blank, *piece)]
        return self.backend.encode(text, add_special_tokens=False).ids if text else []

    def decode(self, ids: list[int]) -> str:
        """Ids of plain text; special ids must be taken out before."""
        pieces: list[list[int]] = [[]]
        for index in ids:
            pieces[-1].append(index)
            if self.blank and pieces[-1][-3:] == self.blank:
                pieces[-1] = pieces[-1][:-3]
                pieces.append([])
        return BLANK.join(self.backend.decode(piece, skip_special_tokens=False) for piece in pieces)

    def spelling(self, letters: str) -> dict[int, str]:
        """Ids of the plain vocabulary that are spelt with these letters only, and their text."""
        if letters in self.spelt:
            return self.spelt[letters]
        found = self.spelt[letters] = {}
        for token, index in self.backend.get_vocab().items():
            text = chr(int(token[3:5], 16)) if index in self.bytes else token.replace(BLANK, " ")
            if index not in self.special.values() and set(text) <= set(letters):
                found[index] = text
        return found


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every special or added token and its id."""
    added: dict[str, int] = dict(cast(Any, tokenizer).get_added_vocab())
    for token, index in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        added.setdefault(str(token), index)
    return added


def without_prefix(part: Any) -> Any:
    """A stage of a `tokenizers` pipeline without the blank it adds before (or strips from) the start of a text."""
    if not isinstance(part, dict):
        return part
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            kept = [stage for stage in map(without_prefix, part[key]) if stage is not None]
            return {**part, key: kept}
    if part["type"] == "Prepend" or (part["type"] == "Strip" and "content" in part):
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return part
