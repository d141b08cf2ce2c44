"""Tokenizers of the LISA family as those models were trained: slow LLaMA tokenisation, on today's `tokenizers`.

The rule (recorded with transformers 4.28 and 4.31, `shared/golden/README.md`): split the prompt at the added tokens,
strip white space on both sides of them, though not beside `<s>` and `</s>`, and encode each piece by itself with
sentencepiece's dummy prefix. Later releases of transformers put the prefix elsewhere. Here the rule is in the saved
`tokenizer.json` (added tokens that swallow the blanks around them, a prefix for every piece), so that
`AutoTokenizer.from_pretrained(OUT)(prompt)` follows it too (but for the separators U+001C to U+001F, white space to
Python alone); `mglmm.encode` follows it to the letter, without reading text for tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from mglmm.templates import FAMILIES
from mglmm.tokens import BLANK, add_markers

CONTROL = ("<unk>", "<s>", "</s>")


def legacy_tokenizer(folder: str | Path, family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a published checkpoint; its ids stay, and the markers of ours that it lacks follow behind them.

    Args:
        folder: holds `tokenizer.model` (or `tokenizer.json`) and the added tokens.
        family: one of `mglmm.formats.FAMILIES`.

    Raises:
        ValueError: the files are missing or damaged, contradict each other, or lack a token that the family needs.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    folder = Path(folder)
    model, added = vocabulary(folder), added_ids(folder)
    check_ids(folder, family, model["vocab"], added)
    backend = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    swallows = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    backend.add_tokens([AddedToken(token, **swallows) for token in sorted(added, key=lambda token: added[token])])
    wrong = [token for token, index in added.items() if backend.token_to_id(token) != index]
    if wrong:
        raise ValueError(f"{folder}: the added tokens {sorted(wrong)} do not get the ids they were trained with")
    start = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", start)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    add_markers(tokenizer, FAMILIES[family].region)
    return tokenizer


def original_size(folder: str | Path) -> int:
    """Ids of the tokenizer as published; the token embedding must have as many rows (or more, where it is padded)."""
    folder = Path(folder)
    return len(vocabulary(folder)["vocab"].keys() | added_ids(folder).keys())


def vocabulary(folder: Path) -> dict[str, Any]:
    """`vocab` (piece -> id) and `merges` of the sentencepiece model (or of `tokenizer.json`).

    Raises:
        ValueError: neither file is there, or it cannot be read.
    """
    model, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    if not model.is_file() and not fast.is_file():
        raise ValueError(
            f"{folder} holds neither tokenizer.model nor tokenizer.json; copy the tokenizer's files beside the weights"
        )
    try:
        if model.is_file():
            with TemporaryDirectory() as alone:  # what lies beside it must not have a say here
                shutil.copyfile(model, Path(alone, model.name))
                backend = cast(Tokenizer, LlamaTokenizer.from_pretrained(alone).backend_tokenizer)
            content = json.loads(backend.to_str())["model"]
        else:
            content = json.loads(fast.read_text(encoding="utf-8"))["model"]
        vocab, merges = dict(content["vocab"]), list(content["merges"])
    except Exception as error:  # sentencepiece, protobuf and tokenizers each raise their own
        found = model if model.is_file() else fast
        raise ValueError(f"{found} cannot be read as a tokenizer ({type(error).__name__}); copy it again") from error
    return {"vocab": vocab, "merges": [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]}


def added_ids(folder: Path) -> dict[str, int]:
    """Added tokens and their ids, without `<s>`, `</s>` and `<unk>`.

    Raises:
        ValueError: the files of the tokenizer contradict each other.
    """
    found: dict[str, int] = {}
    origin: dict[str, str] = {}
    for name, entries in added_entries(folder).items():
        for token, index in entries.items():
            if token in CONTROL:
                continue
            if found.setdefault(token, index) != index:
                raise ValueError(
                    f"{folder}: {token!r} is id {found[token]} in {origin[token]} and {index} in {name}; "
                    "restore the tokenizer's files from where the weights came from"
                )
            origin.setdefault(token, name)
    return found


def added_entries(folder: Path) -> dict[str, dict[str, int]]:
    """What each file of the tokenizer says of added tokens."""
    found: dict[str, dict[str, int]] = {}
    if "added_tokens.json" in (said := read_json(folder, "added_tokens.json")):
        found["added_tokens.json"] = dict(said["added_tokens.json"])
    decoder = read_json(folder, "tokenizer_config.json").get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if decoder:
        found["tokenizer_config.json"] = {entry["content"]: int(index) for index, entry in decoder.items()}
    fast = read_json(folder, "tokenizer.json").get("tokenizer.json", {}).get("added_tokens")
    if fast:
        found["tokenizer.json"] = {entry["content"]: int(entry["id"]) for entry in fast}
    return found


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """{name: content}, or nothing where the file is not there."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        return {name: json.loads(path.read_text(encoding="utf-8"))}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None


def check_ids(folder: Path, family: str, vocab: dict[str, int], added: dict[str, int]) -> None:
    """Raise ValueError where tokens of the family are missing or ids are not counted through."""
    missing = [token for token in CONTROL if token not in vocab]
    missing += [token for token in FAMILIES[family].tokens if token not in added and token not in vocab]
    if missing:
        raise ValueError(
            f"{folder}: the tokenizer has no {', '.join(missing)}, which {family} writes; take the tokenizer's files "
            "from the fine-tuned checkpoint, not from its base model"
        )
    ids = sorted([*vocab.values(), *(index for token, index in added.items() if token not in vocab)])
    if ids != list(range(len(ids))):
        gap = next(expected for expected, index in enumerate(ids) if expected != index)
        raise ValueError(
            f"{folder}: the tokenizer's ids are not counted through (id {gap} is missing or double); "
            "its files do not belong together, copy them again"
        )
