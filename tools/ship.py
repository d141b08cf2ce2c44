"""Put a trained checkpoint into the package, in half precision: `python tools/ship.py RUN/last/model`.

`--average bundled` ships the mean of its weights and those that are in the package: two rounds of one recipe, the
second from where the first ended, were better averaged than either (see the model card). `--share 0.35` gives the new
weights less of a say. Calibrate what comes of it.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from mglmm.checkpoint import load_checkpoint, save_checkpoint
from mglmm.config import BUNDLED
from mglmm.model import Mglmm


def average(model: Mglmm, other: Mglmm, share: float = 0.5) -> None:
    """Give `model` the mean of both weights, of which its own have this share.

    Raises:
        ValueError: they are of two architectures.
    """
    own, theirs = model.state_dict(), other.state_dict()
    differ = [
        key for key in {*own, *theirs} if key not in own or key not in theirs or own[key].shape != theirs[key].shape
    ]
    if differ:
        raise ValueError(f"the checkpoints are of two models: {sorted(differ)[0]} differs; average rounds of one model")
    # all means first: tied weights stand there under two names
    mean = {key: (share * own[key].float() + (1 - share) * theirs[key].float()).to(own[key].dtype) for key in own}
    model.load_state_dict(mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of the checkpoint to ship")
    parser.add_argument("--average", metavar="CHECKPOINT", help="the mean with this one's weights, too")
    parser.add_argument("--share", type=float, default=0.5, help="of the checkpoint in that mean, above 0 and below 1")
    parser.add_argument("--out", default=str(BUNDLED), help="folder to write its files into; other files there stay")
    args = parser.parse_args()
    if not 0 < args.share < 1:
        parser.error(f"--share is {args.share}; give more than 0 and less than 1")
    model, processor = load_checkpoint(args.checkpoint)
    if args.average:
        average(model, load_checkpoint(args.average)[0], args.share)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(Path(scratch) / "model", model, processor, half=True)
        for file in sorted((Path(scratch) / "model").iterdir()):
            shutil.copyfile(file, Path(args.out) / file.name)
            print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
