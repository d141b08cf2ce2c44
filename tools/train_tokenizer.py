"""Train the bundled tokenizer on the world's text: `python tools/train_tokenizer.py --out mglmm/bundled`."""

import argparse

from mglmm.formats import FORMATS
from mglmm.tokenizer import PUBLIC_NAMES, tokenizer_hash, train_tokenizer
from mglmm_data.world.source import World

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write the tokenizer's files to")
    parser.add_argument("--texts", type=int, default=12000, help="texts of the world to train on")
    args = parser.parse_args()
    form = FORMATS["compact"]
    frame = f"{form.first_user}{form.assistant}"
    corpus = [frame] * 200 + list(World(0).text_corpus(args.texts)) + [f" {PUBLIC_NAMES}"] * 3
    words = sorted({word for text in corpus for word in text.split()})
    corpus += [" " + " ".join(words)] * 3
    tokenizer = train_tokenizer(corpus)
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} ids, hash {tokenizer_hash(tokenizer)}, written to {args.out}")
