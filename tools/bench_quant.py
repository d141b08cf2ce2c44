"""What 8 and 4 bits cost and save: memory of the weights, speed, and masks against those of full precision.

`python tools/bench_quant.py [--model bundled|FOLDER] [--quant int8 --quant int4] [--images 4]` answers the same
questions with each kind of weights on this machine and prints

* MB of all weights, and of the decoder layers alone (only they are quantised);
* seconds for each new token, batch of one, and their ratio to full precision;
* how many answers are the same, token for token;
* mean IoU of the masks with those of full precision, at the same answers: the words that full precision said are fed
  to both, so that every `[SEG]` has a partner.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from mglmm import given
from mglmm.encode import user_turn
from mglmm.generate import Generated, GenerationOptions, Run
from mglmm.grounder import DESCRIBE, Grounder, Prepared
from mglmm.quant import tensor_bytes, weight_bytes
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import EVAL_SEED_START

QUESTIONS = (DESCRIBE, "Segment the largest thing.")


class Forced(Run):
    """Says what it is told, then ends; keeps the states."""

    said: list[int]

    def choose(self) -> tuple[list[int], list[float]]:
        (answer,) = self.out
        at = len(answer.ids)
        return [self.said[at] if at < len(self.said) else self.encoder.ids.eos], [0.0]


@dataclass
class Answered:
    """One model's answers to all questions."""

    ids: list[list[int]]
    masks: list[np.ndarray]  # bool[S, q, q] for each question
    seconds: float
    tokens: int


def answer(grounder: Grounder, images: list[np.ndarray], told: list[list[int]] | None = None) -> Answered:
    """All questions about all images, one by one; `told` are the answers to be said instead of the likeliest ones."""
    done = Answered([], [], 0.0, 0)
    for image in images:
        state = grounder.encode([image])
        for question in QUESTIONS:
            prompts = grounder.prompts(state, [Prepared(0, (user_turn(question, ()),), (), ())])
            kind = Run if told is None else Forced
            run = kind(grounder.model, grounder.processor.encoder, state, prompts, grounder.options)
            if told is not None:
                run.said = told[len(done.ids)]  # type: ignore[attr-defined]
            started = time.perf_counter()
            while run.active:
                run.step()
            done.seconds += time.perf_counter() - started
            (out,) = run.out
            done.tokens += len(out.ids)
            done.ids.append(out.ids)
            done.masks.append(masks(grounder, state, out))
    return done


def masks(grounder: Grounder, state, out: Generated) -> np.ndarray:
    return (grounder.decode(state, out.states, [0] * len(out.states)).logits > 0).numpy()


def overlap(first: np.ndarray, second: np.ndarray) -> list[float]:
    """IoU of each mask with its partner; two empty masks agree."""
    both, either = (first & second).sum((1, 2)), (first | second).sum((1, 2))
    return [float(a / b) if b else 1.0 for a, b in zip(both, either, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="bundled, or a checkpoint folder")
    parser.add_argument("--quant", action="append", choices=["int8", "int4"], help="default: both")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    arguments = parser.parse_args()
    images = [make_scene(EVAL_SEED_START + number, held_out="allow").image for number in range(arguments.images)]
    options = GenerationOptions(max_new_tokens=arguments.max_new_tokens).model_dump()
    print(f"{arguments.model}: {len(images)} images x {len(QUESTIONS)} questions on {device()}")
    print(
        f"{'':6}{'weights MB':>12}{'layers MB':>11}{'ms/token':>10}{'ratio':>7}{'same':>8}{'mask IoU':>10}{'worst':>8}"
    )
    full = None
    for kind in ("none", *(arguments.quant or ("int8", "int4"))):
        grounder = given.grounder(arguments.model, options, kind)
        layers = sum(map(tensor_bytes, grounder.model.llava.model.language_model.layers.parameters()))
        answer(grounder, images[:1])  # warm
        free = answer(grounder, images)
        full = free if full is None else full
        forced = answer(grounder, images, full.ids)
        shared = [iou for a, b in zip(full.masks, forced.masks, strict=True) for iou in overlap(a, b)]
        pace, base = (1000 * each.seconds / max(each.tokens, 1) for each in (free, full))
        same = f"{sum(a == b for a, b in zip(full.ids, free.ids, strict=True))}/{len(full.ids)}"
        mean, worst = (np.mean(shared), min(shared)) if shared else (np.nan, np.nan)
        print(
            f"{'fp32' if kind == 'none' else kind:6}{weight_bytes(grounder.model) / 1e6:>12.1f}{layers / 1e6:>11.1f}"
            f"{pace:>10.1f}{pace / base:>6.2f}x{same:>8}{mean:>10.4f}{worst:>8.4f}"
        )


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"


if __name__ == "__main__":
    main()
