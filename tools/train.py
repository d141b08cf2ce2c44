"""Train by a recipe in one or several processes: `torchrun --nproc_per_node 2 tools/train.py CONFIG key=value ...`

`accelerate launch tools/train.py CONFIG` does the same; on processors set ACCELERATE_USE_CPU=true and use torchrun.
"""

import sys

from mglmm.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
