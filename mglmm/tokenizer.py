"""The bundled tokenizer: byte-fallback BPE, at most 2,048 ids, digits single; frozen under a name.

Nothing encodes to an unknown token: what the vocabulary lacks falls back to bytes. Some rows are reserved, so that
later markers need no new embedding. It was trained once on the world's text and public category names
(`tools/train_tokenizer.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mglmm.tokens import MARKERS, added_tokens

NAME = "bundled-v1"
LIMIT = 2048
NUM_RESERVED = 32
CONTROL = ("<pad>", "<s>", "</s>")

# The 80 object names of COCO (Lin et al. 2014), a public list, and part names of Car-Parts: words users may ask for.
PUBLIC_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic light fire hydrant stop sign parking "
    "meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase "
    "frisbee skis snowboard sports ball kite baseball bat glove skateboard surfboard tennis racket bottle wine "
    "glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot dog pizza donut cake chair "
    "couch potted plant bed dining table toilet tv laptop mouse remote keyboard cell phone microwave oven toaster "
    "sink refrigerator book clock vase scissors teddy bear hair drier toothbrush building sidewalk fence pole sky "
    "tree pavement bumper back front left right door glass light hood mirror tailgate trunk wheel people man "
    "woman child"
)


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the vocabulary on texts; deterministic for the same texts in the same order.

    Raises:
        ValueError: the vocabulary would exceed 2,048 ids.
    """
    pieces = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Digits(individual_digits=True)]
    )
    scratch = Tokenizer(models.BPE())
    scratch.pre_tokenizer = pieces
    room = LIMIT - len(CONTROL) - 256 - len(MARKERS) - NUM_RESERVED
    ascii_letters = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=ascii_letters, min_frequency=2, show_progress=False)
    scratch.train_from_iterator(corpus, trainer)
    learnt = json.loads(scratch.to_str())["model"]
    words = sorted(learnt["vocab"], key=learnt["vocab"].get)
    order = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: index for index, token in enumerate(order)}
    model = models.BPE(vocab=vocab, merges=[tuple(merge) for merge in learnt["merges"]], byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(prepend_scheme="never")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([*MARKERS, *(f"<reserved_{number}>" for number in range(NUM_RESERVED))], special_tokens=True)
    if len(tokenizer) > LIMIT:
        raise ValueError(f"the vocabulary has {len(tokenizer)} ids; {NAME} allows {LIMIT}")
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over vocabulary, merges and added tokens: what a checkpoint's rows mean."""
    model = json.loads(cast(Tokenizer, tokenizer.backend_tokenizer).to_str())["model"]
    content = [sorted(model["vocab"].items()), model.get("merges", []), sorted(added_tokens(tokenizer).items())]
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]
