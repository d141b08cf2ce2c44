"""Training: conversations that share their image's prefix, against the image repeated for each of them.

`python tools/bench_train.py [--model CONFIG.yaml|bundled|FOLDER] [--quick]` trains on the same conversations both ways,
side by side in one run, and prints conversations a second and their ratio for 1, 3, 6 and 10 conversations an image.
A step is forward and backward with LISA's losses over a frozen encoder. Both ways give
the same token losses (see `tests/mglmm/test_model.py`), and decode as many masks.
"""

import argparse
import math
import time

import torch

from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint
from mglmm.config import LossConfig, load_config
from mglmm.inputs import Batch
from mglmm.train.grounding import GroundingTraining, Joint
from mglmm.train.loop import weighted
from mglmm_data.sample import Sample
from mglmm_data.world.source import World

CONVERSATIONS = (1, 3, 6, 10)
TRAINED = ("projector", "language_model", "seg_projection", "region_encoder", "mask_decoder")


def step(training: GroundingTraining, batch: Batch) -> tuple[float, float]:
    """Seconds of a forward and a backward pass, and the loss."""
    started = time.perf_counter()
    loss = weighted(training(Joint(batch)), training.weights())
    loss.backward()
    training.zero_grad(set_to_none=True)
    return time.perf_counter() - started, float(loss.detach())


def apart(sample: Sample) -> list[Sample]:
    """The image once for each of its conversations."""
    return [Sample(sample.image, sample.regions, (one,), sample.id) for one in sample.conversations]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="configs/model/bundled.yaml", help="a model config, or a checkpoint")
    parser.add_argument("--images", type=int, default=4, help="images a step")
    parser.add_argument("--steps", type=int, default=4, help="steps timed")
    parser.add_argument("--quick", action="store_true", help="one image, two steps, 1 and 3 conversations")
    arguments = parser.parse_args()
    is_config = arguments.model.endswith((".yaml", ".yml"))
    model, processor = (
        build(load_config(ModelConfig, arguments.model)) if is_config else load_checkpoint(arguments.model)
    )
    for name, members in model.parameter_groups().items():
        for parameter in members.values():
            parameter.requires_grad_(name in TRAINED)
    training = GroundingTraining(model, LossConfig()).train()
    images, steps = (1, 2) if arguments.quick else (arguments.images, arguments.steps)

    print(f"{arguments.model}: {images} images a step, {steps} steps, {torch.get_num_threads()} threads")
    print(f"{'conversations an image':24}{'shared, 1/s':>14}{'repeated, 1/s':>15}{'ratio':>8}{'tokens':>8}")
    for count in CONVERSATIONS[:2] if arguments.quick else CONVERSATIONS:
        world = World(turns=count, size=processor.side)
        seconds, tokens = [0.0, 0.0], [0, 0]
        for number in range(steps):
            samples = [world.sample(number * images + image) for image in range(images)]
            ways = (samples, [one for sample in samples for one in apart(sample)])
            batches = [processor.batch(chosen, max_length=100_000)[0] for chosen in ways]  # nothing is left out
            best = [math.inf, math.inf]
            for way in (0, 1, 1, 0, 0, 1):  # the first of each warms up; the faster of the others counts
                spent, loss = step(training, batches[way])
                assert math.isfinite(loss)
                best[way] = min(best[way], spent)
            for way in (0, 1):
                seconds[way] += best[way]
                tokens[way] += batches[way].input_ids.numel()
        shared, repeated = (images * count * steps / each for each in seconds)
        saved = tokens[1] / tokens[0]
        print(f"{count:<24}{shared:>14.1f}{repeated:>15.1f}{shared / repeated:>7.1f}x{saved:>7.1f}x", flush=True)


if __name__ == "__main__":
    main()
