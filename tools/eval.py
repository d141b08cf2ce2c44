"""Score a checkpoint: `python tools/eval.py configs/eval/world.yaml --model RUN`, the same as `mglmm eval`."""

import sys

from mglmm.cli import run

if __name__ == "__main__":
    sys.exit(run(["eval", *sys.argv[1:]]))
