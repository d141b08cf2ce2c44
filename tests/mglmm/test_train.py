"""Training: every stage runs, a stop changes nothing, and what trains is what the recipe names."""

import gc
import json
import weakref

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from mglmm.checkpoint import load_checkpoint
from mglmm.config import StageConfig, TrainConfig, parse
from mglmm.train import loop
from mglmm.train.data import GroundingData
from mglmm.train.loop import Trainer
from mglmm.train.lora import merged_state
from mglmm.train.optim import build_optimizers
from mglmm.train.pretrain import PixelPretraining, first_scene

WORLD = {"world": {"type": "world", "size": 64, "turns": 3}}
PIXELS = {
    "name": "pixels",
    "kind": "pixels",
    "max_steps": 3,
    "per_device_train_batch_size": 1,
    "warmup_steps": 1,
    "train": {"encoder": 1, "mask_decoder": 1, "heads": 1, "semantic": 1},
}
KIN = {**PIXELS, "name": "kin", "kind": "kin", "max_steps": 2, "train": {"projector": 1, "kin": 1}}
WORDS = {
    "name": "words",
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "optim": "muon",
    "warmup_steps": 1,
    "train": {"projector": 1, "language_model": 1, "seg_projection": 1, "region_encoder": 1, "mask_decoder": 0.3},
    "losses": {"distill": 1.0},
    "masks_per_image": 2,
    "sources": WORLD,
}


@pytest.fixture
def make(tmp_path, tiny_sizes):
    """A function from stages and keys to a `Trainer` on the tiny model, in a folder of the given name."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**tiny_sizes, "image_layers": 1}))

    def trainer(folder, *stages, **keys):
        plan = {
            "model": str(tmp_path / "tiny.yaml"),
            "output_dir": str(tmp_path / folder),
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "save_steps": 100,
            "num_threads": 1,
            "stages": list(stages),
        }
        return Trainer(parse(TrainConfig, {**plan, **keys}, "test"), folder)

    yield trainer
    AcceleratorState._reset_state(reset_partial_state=True)  # one process, several precisions


def log(trainer):
    """What was logged, without the clock."""
    rows = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def same(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items()) and first.keys() == second.keys()


def test_resuming_gives_the_same_losses_and_weights(make):
    """Three kinds of stage, Muon, accumulation, picked masks and distillation; stops inside and between stages."""
    words = {**WORDS, "losses": {"distill": 1.0, "kin": 1.0}, "train": {**WORDS["train"], "kin": 1}}
    stages = ({**PIXELS, "max_steps": 2}, KIN, words)
    whole = make("whole", *stages)
    whole.run()
    rows = log(whole)
    steps = {"pixels": 2, "kin": 2, "words": 3}
    assert [(row["stage"], row["step"]) for row in rows] == [(n, s + 1) for n in steps for s in range(steps[n])]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert {"ce", "bce", "dice", "distill", "kin"} <= rows[-1].keys() and rows[0]["learning_rate"] > 0
    for until in (2, 1, 1, 1, 5):
        cut = make("cut", *stages)
        cut.run(until=until)
    assert log(cut) == rows
    assert same(whole.model.state_dict(), cut.model.state_dict())
    assert same(whole.model.state_dict(), load_checkpoint(cut.folder / "last" / "model")[0].state_dict())
    config = load_checkpoint(cut.folder / "last" / "model")[0].config
    assert config.trained_on == ["pixels", "kin", "words"] and config.world_version


def test_heads_learn_over_an_encoder_that_holds_still(make):
    trainer = make("run", {**PIXELS, "max_steps": 2, "train": {"heads": 1, "semantic": 1}})
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    heads = {key: value.clone() for key, value in loop.heads_state(trainer.pixels).items()}
    trainer.run()
    after = loop.heads_state(trainer.pixels)
    assert same(before, trainer.model.state_dict())
    assert {"fine_noun", "token_box", "bce"} <= log(trainer)[0].keys()
    assert all(not torch.equal(value, after[key]) for key, value in heads.items() if key.endswith("weight"))


def test_seeds_see_other_scenes_and_other_heads_are_refused(make):
    assert len({first_scene(seed) // 20_000 for seed in range(12)}) > 10
    trainer = make("run", PIXELS)
    heads = loop.heads_state(trainer.pixels)
    heads["heads.elsewhere"] = heads.pop("heads.token.bias")
    with pytest.raises(ValueError, match="pre-training heads are not those of this program: heads.elsewhere"):
        loop.load_heads(trainer.pixels, heads)


def test_kin_needs_layers_to_teach(make, tiny_checkpoint):
    with pytest.raises(ValueError, match="stage 'kin' is of kind kin, for the small backbone with image_layers"):
        make("run", KIN, model=str(tiny_checkpoint))


def test_workers_change_nothing(make):
    short = {**WORDS, "max_steps": 2, "losses": {}}
    here, there = make("here", short), make("there", short, dataloader_num_workers=1)
    here.run()
    there.run()
    assert log(here) == log(there)


def test_a_finished_run_stays_as_it_is(make):
    stage = {**PIXELS, "max_steps": 1}
    make("run", stage).run()
    again = make("run", stage)
    before = log(again)
    assert again.run() == again.folder / "last" / "model"
    assert log(again) == before


def test_a_stage_under_way_is_not_yet_what_was_trained_on(make):
    trainer = make("run", {**PIXELS, "max_steps": 1}, WORDS)
    trainer.run(until=1)
    assert load_checkpoint(trainer.folder / "last" / "model")[0].config.trained_on == ["pixels"]


def test_a_folder_of_another_recipe_is_refused(make):
    make("run", PIXELS).run(until=1)
    other = {**PIXELS, "learning_rate": 0.5}
    with pytest.raises(ValueError, match=r"holds a run whose 'stages.0.learning_rate' is 0.001, this recipe has 0.5"):
        make("run", other)
    with pytest.raises(ValueError, match=r"'seed' is 0, this recipe has 4; give another output_dir"):
        make("run", PIXELS, seed=4)
    make("run", PIXELS, logging_steps=7, save_steps=3)  # what does not change the losses may differ


def test_what_has_not_begun_may_differ(make, capsys):
    pixels = {**PIXELS, "max_steps": 2}
    make("run", pixels, {**WORDS, "max_steps": 4}).run(until=3)
    longer = make("run", pixels, {**WORDS, "max_steps": 3}, {**WORDS, "name": "more", "max_steps": 1})
    assert "stage words goes on at step 1 of 3, no longer 4" in capsys.readouterr().err
    longer.run(until=1)
    with pytest.raises(ValueError, match="stage 'words' has 2 steps behind it, max_steps is 2; give more"):
        make("run", pixels, {**WORDS, "max_steps": 2})
    with pytest.raises(ValueError, match=r"a run whose 'stages.0.max_steps' is 2, this recipe has 5"):
        make("run", {**PIXELS, "max_steps": 5}, {**WORDS, "max_steps": 3})
    make("run", pixels, {**WORDS, "max_steps": 3}).run()


def test_a_run_of_an_older_program_goes_on(make):
    """Keys that came later take their defaults."""
    trainer = make("run", PIXELS)
    trainer.run(until=1)
    path = trainer.folder / "last" / "state.pt"
    state = torch.load(path, weights_only=True)
    recipe = json.loads(state["recipe"])
    del recipe["stages"][0]["masks_per_image"], recipe["lora"], state["named"]
    torch.save({**state, "recipe": json.dumps(recipe)}, path)
    assert make("run", PIXELS).step == 1


def test_an_exception_and_a_second_call_change_nothing(make, monkeypatch):
    """The trainer that was stopped goes on with its own optimizers, as well as a new one with the saved ones."""
    whole = make("whole", WORDS)
    whole.run()
    cut = make("cut", WORDS)
    log_step = cut.log.step

    def stop(stage, step, *rest):
        log_step(stage, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cut.log, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    cut.run(until=1)
    assert same(whole.model.state_dict(), cut.model.state_dict()) and log(cut) == log(whole)


def test_optimizer_states_are_gathered_only_to_be_saved(make, monkeypatch):
    trainer = make("run", {**PIXELS, "max_steps": 4}, save_steps=2)
    gathered = []
    real = torch.optim.AdamW.state_dict
    monkeypatch.setattr(torch.optim.AdamW, "state_dict", lambda self: gathered.append(trainer.step) or real(self))
    trainer.run()
    assert gathered == [0, 2, 4], "by accelerate before step 1, by the save after step 2, and when the stage ends"


def test_a_stage_leaves_neither_module_nor_optimizers_behind(make, monkeypatch):
    made = []

    def build(groups, stage):
        optimizers = build_optimizers(groups, stage)
        made.extend(weakref.ref(optimizer) for optimizer in optimizers)
        return optimizers

    monkeypatch.setattr(loop, "build_optimizers", build)
    trainer = make("run", {**PIXELS, "max_steps": 1}, {**WORDS, "losses": {}, "max_steps": 1}, bf16=True)
    trainer.run()
    gc.collect()
    assert len(made) == 3 and not any(reference() for reference in made)
    assert not trainer.accelerator._models and not trainer.accelerator._optimizers
    assert trainer.pixels.forward.__func__ is PixelPretraining.forward, "not wrapped once for each stage"


def test_accumulation_is_the_mean_of_its_parts(make):
    stage = {**WORDS, "losses": {}, "optim": "adamw", "learning_rate": 1e-12, "per_device_train_batch_size": 1}
    parts = make("parts", {**stage, "gradient_accumulation_steps": 1, "max_steps": 2})
    parts.run()
    together = make("together", {**stage, "max_steps": 1})
    together.run()
    for name in ("loss", "ce", "bce", "dice"):
        mean = sum(row[name] for row in log(parts)) / 2
        assert log(together)[0][name] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("name", ["projector", "mask_decoder", "encoder"])
def test_only_named_groups_move(make, name):
    stage = {**WORDS, "losses": {}, "train": {name: 1.0}, "max_steps": 1, "gradient_accumulation_steps": 1}
    trainer = make("run", stage)
    groups = trainer.model.parameter_groups()
    before = {key: {k: p.clone() for k, p in members.items()} for key, members in groups.items()}
    trainer.run()
    for key, members in groups.items():
        moved = any(not torch.equal(parameter, before[key][k]) for k, parameter in members.items())
        assert moved == (key == name), key


def test_original_sized_masks_and_bf16(make):
    stage = {**WORDS, "losses": {"mask_size": "original"}, "max_steps": 1}
    trainer = make("run", stage, bf16=True)
    trainer.run()
    assert log(trainer)[0]["bce"] > 0
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_a_processor_without_bf16_trains_in_float32_and_says_so(make, monkeypatch, capsys):
    monkeypatch.setattr(loop, "has_bf16", lambda cuda: False)
    trainer = make("run", {**WORDS, "losses": {}, "max_steps": 1}, bf16=True)
    assert trainer.accelerator.mixed_precision == "no"
    assert "no bfloat16 units: trained in float32" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run(make):
    trainer = make("run", {**WORDS, "losses": {}})
    trainer.model.seg_projection[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"stage 'words', step 0: loss nan.*lower learning_rate"):
        trainer.run()


def test_pixels_need_the_small_backbone(make):
    trainer = make("run", WORDS)
    trainer.pixels = None
    with pytest.raises(ValueError, match="of kind pixels, which only the small backbone has"):
        trainer.stage_parts(parse(StageConfig, PIXELS, "test"))


# Adapters


LORA = {**WORDS, "losses": {}, "optim": "adamw", "learning_rate": 1e-2, "train": {"lora": 1.0, "token_rows": 1.0}}
ADAPTERS = {"rank": 2, "dropout": 0.2, "targets": ["q_proj", "v_proj"]}


def test_adapters_train_alone_and_are_merged_into_the_checkpoint(make):
    trainer = make("run", LORA, lora=ADAPTERS)
    before = {key: value.clone() for key, value in merged_state(trainer.model).items()}
    folder = trainer.run()
    model, processor = load_checkpoint(folder)
    after = model.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    name = "llava.model.language_model."
    embedding = {f"{name}embed_tokens.weight", "llava.lm_head.weight"}
    assert moved == {*(f"{name}layers.0.self_attn.{part}.weight" for part in ("q_proj", "v_proj")), *embedding}
    rows = (before[f"{name}embed_tokens.weight"] != after[f"{name}embed_tokens.weight"]).any(1).nonzero()[:, 0]
    ids = processor.ids
    assert set(rows.tolist()) <= {ids.seg, ids.phrase_open, ids.phrase_close, ids.region} and len(rows) >= 2

    stage = parse(StageConfig, LORA, "test")
    batch = GroundingData(stage, processor, 0)(0)[0].grounding
    with torch.no_grad():
        trainer.model.eval()
        assert torch.allclose(trainer.model(batch).states, model(batch).states, atol=1e-5)


def test_resuming_adapters_is_exact(make):
    """Dropout included."""
    whole = make("whole", LORA, lora=ADAPTERS)
    whole.run()
    for until in (1, 2):
        cut = make("cut", LORA, lora=ADAPTERS)
        cut.run(until=until)
    assert log(cut) == log(whole)
    assert same(whole.model.state_dict(), cut.model.state_dict())


def test_adapters_do_not_go_on_over_other_weights(make, monkeypatch):
    make("cut", LORA, lora=ADAPTERS).run(until=1)
    monkeypatch.setattr(loop, "load_or_build", lambda config, load=loop.load_or_build: other_weights(load(config)))
    with pytest.raises(ValueError, match=r"this run began with is another one now \(.*q_proj.weight differs"):
        make("cut", LORA, lora=ADAPTERS)


def other_weights(loaded):
    with torch.no_grad():
        for name, value in loaded[0].named_parameters():
            if "q_proj" in name:
                value.add_(0.1)
    return loaded


def test_with_adapters_the_language_model_is_frozen(make):
    with pytest.raises(ValueError, match=r"trains \['language_model'\], but this model has the groups .*'lora'"):
        make("run", {**LORA, "train": {"language_model": 1.0}}, lora=ADAPTERS).run()
    with pytest.raises(ValueError, match=r"lora.targets is \['nothing'\]: "):
        make("run", LORA, lora={**ADAPTERS, "targets": ["nothing"]})


# Logs


def test_wandb_offline(make, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = make("run", {**WORDS, "losses": {}, "max_steps": 1}, report_to="wandb")
    trainer.run()
    runs = list((trainer.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1 and runs[0].stat().st_size > 0
    assert [path.name for path in trainer.folder.glob("*.png")] == ["words-000001.png"], "the panel of answers"


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_sharded_parameters_are_refused_before_anything_trains(make, monkeypatch, kind):
    trainer = make("run", WORDS)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", kind)
    with pytest.raises(ValueError, match=f"recipes do not run under {kind.lower()} .*; start them with torchrun"):
        trainer.check()
