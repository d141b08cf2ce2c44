"""Put a trained checkpoint into the package, in half precision: `python tools/ship.py RUN/last/model`."""

import argparse
import shutil
import tempfile
from pathlib import Path

from mglmm.checkpoint import load_checkpoint, save_checkpoint
from mglmm.config import BUNDLED

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder of the checkpoint to ship")
    parser.add_argument("--out", default=str(BUNDLED), help="folder to write its files into; other files there stay")
    args = parser.parse_args()
    model, processor = load_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(Path(scratch) / "model", model, processor, half=True)
        for file in sorted((Path(scratch) / "model").iterdir()):
            shutil.copyfile(file, Path(args.out) / file.name)
            print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
