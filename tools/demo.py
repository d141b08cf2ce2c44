"""Answer the questions of the demo: `python tools/demo.py --out outputs/demo`, the same as `mglmm demo`."""

import sys

from mglmm.cli import run

if __name__ == "__main__":
    sys.exit(run(["demo", *sys.argv[1:]]))
