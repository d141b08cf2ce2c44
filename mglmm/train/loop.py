"""The training loop: stages in order, resumable at any step with the same losses as without the stop.

Data, picks, dropout and learning rates are functions of the step; model, optimizers and the pre-training heads are
saved. Runs in one process or under `torchrun` / `accelerate launch tools/train.py`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint, load_state, save_state, write_checkpoint
from mglmm.config import StageConfig, TrainConfig, load_config, runs_dir
from mglmm.folders import recover_folder, replaced_folder
from mglmm.precision import has_bf16
from mglmm.train.data import GroundingData, LeftOut, batches, open_sources
from mglmm.train.features import FeatureFolder
from mglmm.train.grounding import GroundingTraining
from mglmm.train.kin import KinData, KinHead, KinTraining
from mglmm.train.log import Log
from mglmm.train.lora import adapters_state, add_lora, load_beside, merged_state, split_lora
from mglmm.train.named import NamedHead
from mglmm.train.optim import build_optimizers, check_groups, gradient_norm, set_rates
from mglmm.train.pretrain import WEIGHTS, PixelData, PixelPretraining
from mglmm.train.processes import over_processes
from mglmm.train.recipe import check_processes, check_recipe
from mglmm_data.registry import Source
from mglmm_data.world.source import WORLD_VERSION
from sam_bridge.small import SmallBridge

NUM_SHOWN = 4
"""Answers in a panel."""
SPREAD_OVER = ("NO", "MULTI_GPU", "MULTI_CPU")
"""Kinds of accelerate's `distributed_type` that recipes run under."""


class Trainer:
    """One run of a recipe.

    Args:
        config: the recipe.
        name: of the run; its folder is `config.output_dir`, else `$MGLMM_RUNS/name`.

    Raises:
        ValueError: the recipe does not fit the model, or the folder holds a run of another recipe.
    """

    def __init__(self, config: TrainConfig, name: str):
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env

        self.config = config
        self.folder = Path(config.output_dir) if config.output_dir else runs_dir() / name
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        cuda = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision="bf16" if config.bf16 and has_bf16(cuda) else "no",
            # A language prompt leaves SAM's geometric prompts and quality head without gradient, whatever the batch.
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                *([InitProcessGroupKwargs(backend="gloo")] if several and not cuda else []),
            ],
        )
        self.sources: list[dict[str, Source] | None] = [None] * len(config.stages)
        """Of each stage, opened before the model is: a large one takes minutes, and a path may be wrong."""
        if not (self.folder / "last" / "state.pt").exists():
            self.sources = [open_sources(stage) for stage in config.stages]
        self.model, self.processor = load_or_build(config)
        self.before = tuple(self.model.config.trained_on or ())
        if config.lora is not None:
            ids = self.processor.ids
            add_lora(self.model, config.lora, (ids.seg, ids.phrase_open, ids.phrase_close, ids.region))
        self.pixels = PixelPretraining(self.model.bridge) if isinstance(self.model.bridge, SmallBridge) else None
        self.kin = KinHead(self.model.config.language().hidden_size)
        self.named = NamedHead(self.model.config.language().hidden_size)
        self.stage_index, self.step = 0, 0
        self.left_out, self.told = 0, ""
        self.found: dict[str, int] = {}
        """What earlier calls could not read -> how often."""
        self.optimizers: list[Optimizer] = []
        """Of the stage under way."""
        self.saved_optimizers: list[dict[str, Any]] | None = None
        """States that the stage's optimizers go on from."""
        self.resume()
        self.check()
        self.log = Log(self.folder, config, self.accelerator.is_main_process, found=self.found)
        if self.told:
            self.log.say(self.told)
        if config.bf16 and not has_bf16(cuda):
            self.log.say("bf16 is true, but this processor has no bfloat16 units: trained in float32, ten times faster")

    def run(self, until: int | None = None) -> Path:
        """Train all stages (or up to `until` steps in this call); returns the folder of the checkpoint."""
        try:
            self.run_stages(math.inf if until is None else until)
        finally:
            self.log.close()
        return self.folder / "last" / "model"

    def run_stages(self, budget: float) -> None:
        for index in range(self.stage_index, len(self.config.stages)):
            self.stage_index = index
            stage = self.config.stages[index]
            for _ in self.run_stage(stage):
                budget -= 1
                if budget <= 0 and self.step < stage.max_steps:
                    self.save()
                    return
            self.stage_index, self.step = index + 1, 0
            self.saved_optimizers, self.sources[index] = None, None
            self.accelerator.free_memory()  # else it keeps the module and the optimizers of every stage
            self.save()
            if budget <= 0:
                break

    def run_stage(self, stage: StageConfig) -> Iterator[int]:
        """The steps of one stage from `self.step` on; yields after each."""
        module, data, groups, weights = self.stage_parts(stage)
        if not self.step:
            self.log.problems(getattr(data, "problems", ()))
        optimizers = build_optimizers(groups, stage)
        if self.saved_optimizers is not None:
            restore(optimizers, self.saved_optimizers)
        module, *optimizers = self.accelerator.prepare(module, *optimizers)
        self.optimizers, self.saved_optimizers = optimizers, None
        module.train()
        self.log.begin(stage, self.step)
        try:
            yield from self.run_steps(stage, module, data, weights)
        finally:  # a later call of `run` goes on from here
            self.saved_optimizers, self.optimizers = [each.state_dict() for each in optimizers], []
            self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)

    def run_steps(
        self,
        stage: StageConfig,
        module: nn.Module,
        data: Callable[[int], tuple[Any, LeftOut]],
        weights: dict[str, float],
    ) -> Iterator[int]:
        """The steps of a stage whose module and optimizers are ready; yields after each."""
        optimizers, accumulate = self.optimizers, stage.gradient_accumulation_steps
        loader = batches(data, stage, self.step, self.config.dataloader_num_workers)
        started = time.monotonic()
        for step in range(self.step, stage.max_steps):
            factor = set_rates(optimizers, step, stage)
            totals: dict[str, float] = {}
            without = LeftOut()
            for micro in range(accumulate):
                batch, left_out = next(loader)
                without += left_out
                torch.manual_seed(
                    hash((self.config.seed, self.stage_index, step, micro, self.accelerator.process_index))
                )
                with self.accelerator.no_sync(module) if micro < accumulate - 1 else self.accelerator.autocast():
                    with self.accelerator.autocast():
                        losses = module(batch.to(self.accelerator.device))
                    loss = weighted(losses, weights)
                    self.accelerator.backward(loss / accumulate)
                for name, value in {**losses, "loss": loss}.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach()) / accumulate
            totals, without = over_processes(self.accelerator, totals, without, stage.on_error == "count")
            self.left_out += without.conversations
            self.log.problems(without.problems)
            norm = float(gradient_norm(optimizers, stage.max_grad_norm))
            if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
                raise ValueError(
                    f"stage {stage.name!r}, step {step}: loss {totals['loss']}, gradient norm {norm}; "
                    f"begin another run (output_dir) from {self.folder / 'last' / 'model'} with a lower learning_rate"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step = step + 1
            rate = stage.learning_rate * factor
            self.log.step(stage, self.step, totals, rate, norm, time.monotonic() - started, self.left_out)
            if self.step % self.config.save_steps == 0 and self.step < stage.max_steps:
                self.save()
            if self.step % self.config.save_steps == 0 or self.step == stage.max_steps:
                self.show(stage, data)
            yield self.step

    def show(self, stage: StageConfig, data: Any) -> None:
        """With wandb: pictures of what the model says to questions of the stage's own data, as a panel."""
        if self.config.report_to != "wandb" or stage.kind != "grounding" or not self.accelerator.is_main_process:
            return
        from mglmm.train.panel import draw_panel

        samples = data.shown(NUM_SHOWN)
        if samples:
            self.log.panel(stage, self.step, draw_panel(self.model, self.processor, samples))

    def check(self) -> None:
        """Find what is wrong with any stage now, not hours later when it begins.

        Raises:
            ValueError: a stage does not fit the model, or one of its sources cannot be read.
        """
        if (kind := self.accelerator.distributed_type) not in SPREAD_OVER:
            raise ValueError(
                f"recipes do not run under {kind.lower()} (they have two optimizers, Muon and AdamW, and each takes "
                "parameters as a whole); start them with torchrun or a plain accelerate config"
            )
        for stage in self.config.stages[self.stage_index :]:
            if stage.features is not None:
                FeatureFolder(stage.features).check(self.model)
            _, _, groups, _ = self.stage_parts(stage)
            check_groups(groups, stage)

    def stage_parts(
        self, stage: StageConfig
    ) -> tuple[nn.Module, Callable[[int], tuple[Any, LeftOut]], dict[str, dict[str, nn.Parameter]], dict[str, float]]:
        """The module whose forward gives losses, its data, what may train, and the losses' weights."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        groups = self.model.parameter_groups()
        if self.config.lora is not None:
            groups = split_lora(self.model, groups)
        if self.pixels is not None:
            groups["heads"] = dict(self.pixels.heads.named_parameters())
            groups["semantic"] = dict(self.pixels.semantic.named_parameters())
            groups["kin"] = dict(self.kin.named_parameters())
        groups["named"] = dict(self.named.named_parameters())
        if stage.kind == "pixels":
            if self.pixels is None:
                raise ValueError(f"stage {stage.name!r} is of kind pixels, which only the small backbone has")
            pixel_data = PixelData(
                self.config.seed, stage.per_device_train_batch_size, self.processor.side, stage.prompts_per_image
            )
            return self.pixels, lambda step: (pixel_data(step, rank, world), LeftOut()), groups, WEIGHTS
        if stage.kind == "kin":
            if self.pixels is None or not self.model.config.image_layers:
                raise ValueError(f"stage {stage.name!r} is of kind kin, for the small backbone with image_layers")
            kin_data = KinData(self.config.seed, stage.per_device_train_batch_size, self.processor.side)
            return (
                KinTraining(self.model, self.kin),
                lambda step: (kin_data(step, rank, world), LeftOut()),
                groups,
                {"kin": 1.0},
            )
        if stage.pixels_batch_size and self.pixels is None:
            raise ValueError(
                f"stage {stage.name!r} sets pixels_batch_size, which only the small backbone has; set it to 0"
            )
        if stage.losses.named and self.processor.form.pieces == "legacy":
            raise ValueError(
                f"stage {stage.name!r} has losses.named, but the prompt format {self.processor.form.name!r} does not "
                "tell at which token a name ends; leave losses.named and the group named out"
            )
        module = GroundingTraining(self.model, stage.losses, self.pixels, stage.pixels_weight, self.kin, self.named)
        seed = self.config.seed + 1000 * self.stage_index
        place = next(place for place, each in enumerate(self.config.stages) if each is stage)
        sources = self.sources[place] = self.sources[place] or open_sources(stage)
        return module, GroundingData(stage, self.processor, seed, rank, world, sources), groups, module.weights()

    def save(self) -> None:
        """Write `last/`: the model as a checkpoint, and what resuming needs; old and new are never mixed."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        state: dict[str, Any] = {
            "stage": self.stage_index,
            "step": self.step,
            "left_out": self.left_out,
            "found": self.log.found,
            "num_processes": self.accelerator.num_processes,
            "recipe": self.config.model_dump_json(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers] or None,
            "pixels": {} if self.pixels is None else heads_state(self.pixels),
            "kin": self.kin.state_dict(),
            "named": self.named.state_dict(),
            "adapters": {} if self.config.lora is None else adapters_state(self.model),
        }
        with replaced_folder(self.folder / "last") as fresh:
            begun = self.config.stages[: self.stage_index + (self.step > 0)]
            self.model.config.trained_on = [*self.before, *(stage.name for stage in begun)]
            if any(sees_world(stage) for stage in begun):
                self.model.config.world_version = WORLD_VERSION
            weights = None if self.config.lora is None else merged_state(self.model)
            write_checkpoint(fresh / "model", self.model, self.processor, state=weights)
            save_state(fresh / "state.pt", state)

    def resume(self) -> None:
        """Take up `last/` where there is one."""
        with self.accelerator.main_process_first():
            recover_folder(self.folder / "last")
        path = self.folder / "last" / "state.pt"
        if not path.exists():
            return
        state = load_state(path)
        saved = json.loads(state["recipe"])
        self.told = check_recipe(saved, self.config, self.folder, state["stage"], state["step"])
        check_processes(state.get("num_processes"), self.accelerator.num_processes, self.folder)
        model, _ = load_checkpoint(path.parent / "model")
        if self.config.lora is None:
            self.model.load_state_dict(model.state_dict())
        else:
            load_beside(self.model, model.state_dict(), state["adapters"])
        if self.pixels is not None:
            load_heads(self.pixels, state["pixels"])
        self.kin.load_state_dict(state.get("kin", {}), strict="kin" in state)
        self.named.load_state_dict(state.get("named", {}), strict="named" in state)
        self.found = state.get("found", {})
        self.stage_index, self.step, self.left_out = state["stage"], state["step"], state["left_out"]
        self.saved_optimizers = state["optimizers"]


def load_or_build(config: TrainConfig) -> tuple[Any, Any]:
    """The model a recipe starts from: a model config builds one, anything else is a checkpoint."""
    if config.model.endswith((".yaml", ".yml")):
        return build(load_config(ModelConfig, config.model), seed=config.seed)
    torch.manual_seed(config.seed)  # of what is drawn beside the checkpoint: heads, adapters
    return load_checkpoint(config.model)


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum that trains; `watch_*` values only go to the log."""
    return torch.stack([weights[name] * value for name, value in losses.items() if "watch" not in name]).sum()


def heads_state(pixels: PixelPretraining) -> dict[str, Tensor]:
    """Weights of the pre-training heads alone; the bridge is in the model."""
    return {key: value for key, value in pixels.state_dict().items() if not key.startswith("bridge.")}


def load_heads(pixels: PixelPretraining, state: dict[str, Tensor]) -> None:
    """Take up what `heads_state` gave; it must be all of it."""
    wanted = heads_state(pixels).keys()
    if odd := sorted(wanted ^ state.keys()):
        raise ValueError(f"the run's pre-training heads are not those of this program: {odd[0]}; begin another run")
    pixels.load_state_dict(state, strict=False)


def restore(optimizers: list[Optimizer], states: list[dict[str, Any]]) -> None:
    if len(states) != len(optimizers):
        raise ValueError(
            f"the run saved {len(states)} optimizers, this stage has {len(optimizers)}; was the recipe changed?"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def sees_world(stage: StageConfig) -> bool:
    """Does a stage learn from world scenes."""
    return stage.kind != "grounding" or any(spec.get("type") == "world" for spec in stage.sources.values())
