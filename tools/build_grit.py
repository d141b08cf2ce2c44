"""Write a GRIT-style instruction set from public annotations, and print what it holds.

    python tools/build_grit.py grit.jsonl visual_genome=data/visual_genome@visual_genome/images \\
        refer=data/refer_seg/refcoco@coco/train2014 flickr=data/flickr_entities lvis=lvis_v1_train.json

Each source is KIND=PATH, with `@FOLDER` to put before its image names. KIND: visual_genome (a folder), refer (the
folder of refs and instances), flickr (the folder of Flickr30k Entities), lvis, objects365, coco (a json with boxes).
The same seed writes the same file. Train on it with `type: grit`.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial

from mglmm_data import grit_facts
from mglmm_data.grit_build import AMOUNTS, GritBuilder
from mglmm_data.grit_facts import Facts
from mglmm_data.reading import Problems

SPLIT = ("refer", "flickr")
KINDS = {"visual_genome": grit_facts.visual_genome, "refer": grit_facts.refer, "flickr": grit_facts.flickr_entities}
KINDS |= {name: partial(grit_facts.categories, dataset=name) for name in ("lvis", "objects365", "coco")}


def every(sources: list[str], split: str, problems: Problems) -> Iterator[Facts]:
    """The facts of all sources, in their order."""
    for source in sources:
        kind, _, place = source.partition("=")
        path, _, folder = place.partition("@")
        if kind not in KINDS or not path:
            raise SystemExit(f"{source!r} is not KIND=PATH; KIND is one of {', '.join(KINDS)}")
        for facts in KINDS[kind](path, problems, **({"split": split} if kind in SPLIT else {})):
            facts.image = f"{folder.rstrip('/')}/{facts.image}" if folder else facts.image
            yield facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the jsonl to write")
    parser.add_argument("sources", nargs="+", metavar="KIND=PATH[@FOLDER]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", help="of refer and flickr")
    parser.add_argument("--min-count", type=int, default=1, help="rarer names are not asked for as absent")
    parser.add_argument(
        "--amount", nargs="*", default=[], metavar="KIND=N", help=f"records an image, of {list(AMOUNTS)}"
    )
    parser.add_argument("--on-error", choices=("fail", "count"), default="fail")
    args = parser.parse_args()
    amounts = {kind: int(number) for kind, _, number in (item.partition("=") for item in args.amount)}
    problems = Problems(args.on_error)
    try:
        builder = GritBuilder(
            lambda: every(args.sources, args.split, problems), seed=args.seed, amounts=amounts, min_count=args.min_count
        )
        problems.found.clear()  # the second pass finds them again
        with open(args.out, "w", encoding="utf-8") as file:
            for record in builder:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except ValueError as error:
        raise SystemExit(str(error)) from error
    total = sum(count for key, count in builder.statistics.items() if ": " in key and not key.endswith("images"))
    negative = sum(count for key, count in builder.statistics.items() if "negative" in key)
    for key, count in sorted(builder.statistics.items()):
        print(f"{key:40} {count:10,}")
    print(f"{'records':40} {total:10,}")
    print(f"{'negative':40} {negative:10,}  ({negative / max(total, 1):.1%})")
    for message in problems.found:
        print(f"left out: {message}")
    print(f"left out: {len(problems.found)}; written: {args.out}")
