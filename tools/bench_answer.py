"""Answers: cached and batched, against the same model run as the published codes of this family run theirs.

`python tools/bench_answer.py [--model bundled|FOLDER|CONFIG.yaml|tiny] [--quick]` answers the same questions both ways
in one run and prints token passes, seconds, and their ratios:

* ours: images encoded once, the prefix of an image run once for all its questions, KV cache, rows that end leave the
  batch, all masks of all answers decoded in one call;
* theirs (LISA, GLaMM, MGLMM): one question at a time, its image encoded anew, no cache: everything said so far runs
  again for every token, and masks are decoded answer by answer.

Both choose greedily, and what they say is compared. A config (YAML) gives that size with random weights.

Then, with `--imported PATH` (a published LISA, GLaMM or MGLMM checkpoint, converted on the way, or one already
converted; by default the tiny LISA of the fixtures beside the project, `none` leaves it out), answers of exactly 32,
128 and 512 tokens: as its authors' code runs it (no cache; the whole sequence and CLIP for every token), and cached.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mglmm.build import LanguageSizes, ModelConfig, build
from mglmm.checkpoint import load_checkpoint
from mglmm.config import load_config
from mglmm.config_check import SmallSizes
from mglmm.encode import user_turn
from mglmm.generate import GenerationOptions, Prompted, Run
from mglmm.grounder import Grounder, Prepared
from mglmm.inputs import ImageState
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import EVAL_SEED_START

QUESTIONS = (
    "Describe the image and segment everything.",
    "Segment the car.",
    "What is in the image?",
    "Where is the tree?",
    "Segment all parts of every object.",
    "How many cars are there?",
    "Find the red one.",
    "Is there a boat?",
)


class Uncached(Run):
    """One answer whose every token costs a full pass over all that stands before it."""

    def start(self, images: ImageState, prompts: Sequence[Prompted]) -> None:
        (self.prompt,), self.images = prompts, images
        self.ids, self.said = self.encoder.prefix().ids + self.prompt.ids, []
        self.run_all()

    def advance(self, going: list[int], tokens: list[int]) -> None:
        if not going:
            self.active = []
            return
        chosen = torch.tensor([[tokens[0]]], device=self.hidden.device)
        self.said.append(self.read_back(self.model.get_input_embeddings()(chosen)))  # boxes are read back here, too
        self.run_all()
        (answer,) = self.out
        if self.model.config.read_offset == 0 and tokens[0] == self.encoder.ids.seg:
            answer.states.append(self.hidden[0])
        if len(answer.ids) >= self.options.max_new_tokens:
            self.active = []

    def run_all(self) -> None:
        self.read(self.images.tokens)

    def read(self, image_tokens: torch.Tensor) -> None:
        """One pass over image, question and what has been said."""
        asked = torch.tensor([self.ids], device=image_tokens.device)
        embeds = torch.cat([self.model.embed(asked, image_tokens, self.prompt.regions), *self.said], 1)
        self.hidden = self.language(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]


class Published(Uncached):
    """As LISA, GLaMM and MGLMM answer: CLIP, too, reads the image again for every token."""

    def __init__(self, clip_pixels: torch.Tensor, *settings: Any):
        self.clip_pixels = clip_pixels
        super().__init__(*settings)

    @torch.no_grad()
    def run_all(self) -> None:
        llava = self.model.llava
        states = self.model.clip_states(self.clip_pixels)[cast(int, llava.config.vision_feature_layer)]
        patches = states[:, 1:] if llava.config.vision_feature_select_strategy == "default" else states
        self.read(llava.model.multi_modal_projector(patches))


def exactly(grounder: Grounder, image: np.ndarray, length: int, published: bool) -> list[list[int]]:
    """An answer of `length` tokens, as published or cached; its end is forbidden, so that both say equally much."""
    grounder.cached = None
    state = grounder.encode([image])
    prompts = grounder.prompts(state, [Prepared(0, (user_turn(QUESTIONS[1], ()),), (), ())])
    settings = (grounder.model, grounder.processor.encoder, state, prompts, GenerationOptions(max_new_tokens=length))
    _, clip, _ = grounder.processor.pixels([image])
    if clip is None:
        raise SystemExit("this model has no CLIP tower; give a published LISA, GLaMM or MGLMM to --imported")
    run = Published(clip.to(state.tokens.device).floats(), *settings) if published else Run(*settings)
    run.banned = torch.cat([run.banned, torch.tensor([grounder.processor.ids.eos])])
    while run.active:
        run.step()
    (out,) = run.out
    grounder.decode(state, out.states, [0] * len(out.states))
    return [out.ids]


def imported(path: str, lengths: Sequence[int]) -> None:
    """Token passes, CLIP passes and seconds of a published checkpoint, both ways."""
    fixture = Path(os.environ.get("MGLMM_SHARED") or "../shared", "golden", "lisa", "checkpoint")
    folder = fixture if path == "fixture" else Path(path)
    if path == "fixture" and not folder.is_dir():
        print(f"no fixture at {folder}; set MGLMM_SHARED, or give a published checkpoint: --imported PATH")
        return
    with tempfile.TemporaryDirectory() as scratch:
        config = folder / "config.json"
        if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != "mglmm":
            from mglmm.importers import convert

            folder = convert(folder, Path(scratch, "converted")).folder
        grounder = Grounder(*load_checkpoint(folder))
    image = make_scene(EVAL_SEED_START, held_out="allow").image
    tower, clips = grounder.model.llava.model.vision_tower, []
    tower.register_forward_pre_hook(lambda *_: clips.append(1))
    passes = Passes(grounder)
    exactly(grounder, image, 4, published=False)  # warm
    print(f"{path} ({grounder.processor.form.name}): one question; tokens through the language model, CLIP, seconds")
    print(f"{'T':>5}{'as published':>26}{'cached':>26}{'fewer passes':>15}{'faster':>9}   same answer")
    for length in lengths:
        found = []
        for published in (True, False):
            clips.clear()
            found.append((*passes.of(lambda p=published, n=length: exactly(grounder, image, n, p)), len(clips)))
        (said, slow, many, often), (repeated, fast, few, once) = found
        print(
            f"{length:>5}{many:>12,}{often:>6}{slow:>7.1f}s{few:>12,}{once:>6}{fast:>7.2f}s"
            f"{many / few:>14.1f}x{slow / fast:>8.1f}x   {'yes' if said == repeated else 'no'}"
        )


def ours(grounder: Grounder, pixels: list[np.ndarray]) -> list[list[int]]:
    """All questions about all images in one batch."""
    return answer(grounder, Run, pixels, [(image, text) for image in range(len(pixels)) for text in QUESTIONS])


def theirs(grounder: Grounder, pixels: list[np.ndarray]) -> list[list[int]]:
    """One question at a time, nothing kept."""
    return [said for image in pixels for text in QUESTIONS for said in answer(grounder, Uncached, [image], [(0, text)])]


def answer(
    grounder: Grounder, kind: type[Run], pixels: list[np.ndarray], asked: list[tuple[int, str]]
) -> list[list[int]]:
    grounder.cached = None
    images = grounder.encode(pixels)
    prepared = [Prepared(image, (user_turn(text, ()),), (), ()) for image, text in asked]
    run = kind(grounder.model, grounder.processor.encoder, images, grounder.prompts(images, prepared), grounder.options)
    while run.active:
        run.step()
    grounder.finish(pixels, images, prepared, run.out)
    return [out.ids for out in run.out]


class Passes:
    """Counts the tokens that run through the language model."""

    def __init__(self, grounder: Grounder):
        self.tokens = 0
        grounder.model.llava.model.language_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _module: object, _args: object, given: dict) -> None:
        rows, length = given["inputs_embeds"].shape[:2]
        self.tokens += rows * length

    def of(self, work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float, int]:
        """What the work gives, its seconds, its tokens."""
        self.tokens, started = 0, time.perf_counter()
        return work(), time.perf_counter() - started, self.tokens


def load(name: str, options: GenerationOptions) -> Grounder:
    if name == "tiny":
        small = SmallSizes(side=64, stem=(8, 8, 16), dim=32, depth=1, heads=1, prompt_dim=32, decoder_heads=2)
        language = LanguageSizes(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
        return Grounder(*build(ModelConfig(small=small, language=language, region_grid=16)), options)
    if name.endswith((".yaml", ".yml")):
        return Grounder(*build(load_config(ModelConfig, name)), options)
    return Grounder(*load_checkpoint(name), options)


def batched(model: str, count: int, limit: int) -> None:
    """All questions about `count` scenes, at most `limit` tokens each: ours against theirs."""
    grounder = load(model, GenerationOptions(max_new_tokens=limit))
    pixels = [make_scene(EVAL_SEED_START + number, held_out="allow").image for number in range(count)]
    passes = Passes(grounder)
    answer(grounder, Run, pixels[:1], [(0, QUESTIONS[0])])  # warm

    said, seconds, tokens = passes.of(lambda: ours(grounder, pixels))
    repeated, slow, many = passes.of(lambda: theirs(grounder, pixels))
    equal = sum(first == second for first, second in zip(said, repeated, strict=True))
    length = np.mean([len(ids) for ids in said])
    print(f"{model}: {count} images x {len(QUESTIONS)} questions, {length:.1f} tokens an answer")
    print(f"{'':24}{'token passes':>14}{'seconds':>10}")
    print(f"{'cached, batched':24}{tokens:>14,}{seconds:>10.2f}")
    print(f"{'uncached, one by one':24}{many:>14,}{slow:>10.2f}")
    print(f"{'ratio':24}{many / tokens:>13.1f}x{slow / seconds:>9.1f}x")
    print(f"the same answers: {equal} of {len(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="bundled, a checkpoint folder, a model config, tiny, none")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="one image, 16 tokens")
    parser.add_argument("--imported", default="fixture", help="a published checkpoint, a converted one, fixture, none")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="T, with --imported")
    arguments = parser.parse_args()
    if arguments.model != "none":
        quick = (1, 16) if arguments.quick else (arguments.images, arguments.max_new_tokens)
        batched(arguments.model, *quick)
    if arguments.imported != "none":
        imported(arguments.imported, arguments.lengths[:1] if arguments.quick else arguments.lengths)


if __name__ == "__main__":
    main()
