"""DeepSpeed's ZeRO checkpoints, written by DeepSpeed itself: put together by its own converter, no code run.

The fixture trains on two processes without a GPU (gloo). Without DeepSpeed only the checks that come before it run.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mglmm.checkpoint import load_checkpoint
from mglmm.importers import convert, merge
from mglmm.importers.lora import from_zero, is_zero, zero_folder

MAKER = '''
import sys
from pathlib import Path

import deepspeed
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

state_file, language_file, out = map(Path, sys.argv[1:])
TRAINED = ("lora_", "embed_tokens", "lm_head", "mask_decoder", "text_hidden_fcs")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo: nothing is compiled
deepspeed.init_distributed(dist_backend="gloo")


def named(state):
    """Nested modules with the parameters and buffers of a state dict."""
    root = nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        inner = root
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, nn.Module())
            inner = inner._modules[part]
        if "inv_freq" in key or "gaussian" in key or not value.is_floating_point():
            inner.register_buffer(name, value)
        else:
            inner.register_parameter(name, nn.Parameter(value, any(word in key for word in TRAINED)))
    return root


def engine(model, stage, rate):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = {"type": "AdamW", "params": {"lr": rate, "torch_adam": True}}
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    settings = {"train_micro_batch_size_per_gpu": 1, "optimizer": optimizer, "zero_optimization": zero}
    return deepspeed.initialize(model=model, model_parameters=trained, config=settings)[0]


for stage in (2, 3):
    engine(named(load_file(state_file)), stage, 0.0).save_checkpoint(out / f"whole{stage}")

torch.manual_seed(0)
sizes = dict(vocab_size=703, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
language = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
language.load_state_dict(load_file(language_file))
model = get_peft_model(language, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
trainer = engine(model, 2, 0.01)
for step in range(3):
    ids = torch.randint(0, 703, (1, 12), generator=torch.Generator().manual_seed(step))
    trainer.backward(trainer(input_ids=ids, labels=ids).loss)
    trainer.step()
trainer.save_checkpoint(out / "trained")
if torch.distributed.get_rank() == 0:
    save_file(trainer.module.merge_and_unload().state_dict(), out / "by_peft.safetensors")
'''
LANGUAGE = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
OURS = {"model.": "llava.model.language_model.", "lm_head.": "llava.lm_head."}
SHARD = "zero_pp_rank_{}_mp_rank_00_{}_states.pt"


@pytest.fixture(scope="module")
def lisa(shared, tmp_path_factory):
    """A copy of LISA's tiny checkpoint, its tower beside it."""
    root = tmp_path_factory.mktemp("lisa")
    for name in ("checkpoint", "clip-tiny"):
        shutil.copytree(shared("golden", "lisa", name), root / name, copy_function=shutil.copyfile)
    return root / "checkpoint"


@pytest.fixture(scope="module")
def zero(shared, lisa, tmp_path_factory):
    """Folder with what DeepSpeed wrote on two processes: `whole2`, `whole3` (LISA with adapters), `trained`."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("zero")
    state = torch.load(lisa / "pytorch_model.bin", weights_only=True)
    language = {key: value for key, value in state.items() if key.startswith(LANGUAGE) and "inv_freq" not in key}
    save_file(language, root / "language.safetensors")
    unmerged = load_file(shared("golden", "lisa", "lora_unmerged_subset.safetensors"))
    inside = {f"base_model.model.{key}": value for key, value in state.items()}
    save_file({**inside, **unmerged}, root / "state.safetensors")
    (root / "maker.py").write_text(MAKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(root / name) for name in ("maker.py", "state.safetensors", "language.safetensors")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *given, str(root)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture
def copy(zero, tmp_path):
    """A function from one of the checkpoints to a copy that may be damaged."""
    return lambda name: Path(shutil.copytree(zero / name, tmp_path / "zero" / name))


def weights(folder):
    return {key: value for file in Path(folder).glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_whole_wrapped_model_converts_from_its_shards(zero, lisa, tmp_path, capfd, stage):
    """The shards, config.json and the tokenizer in one folder, as a trainer leaves them."""
    convert(lisa, tmp_path / "released")
    folder = tmp_path / "training" / "checkpoint"
    shutil.copytree(zero / f"whole{stage}", folder)
    for file in lisa.iterdir():
        if file.suffix != ".bin":
            shutil.copyfile(file, folder / file.name)
    shutil.copytree(lisa.parent / "clip-tiny", folder.parent / "clip-tiny")
    capfd.readouterr()
    done = convert(folder, tmp_path / "out", lora_alpha=16)
    assert not any(capfd.readouterr()), "what DeepSpeed prints is not for the user"
    assert done.family == "lisa"
    found, wanted = weights(tmp_path / "out"), weights(tmp_path / "released")
    assert found.keys() == wanted.keys()
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) < 1e-6
    load_checkpoint(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("inner", [False, True], ids=["checkpoint", "its step"])
def test_trained_adapters_merge_as_peft_merges_them(zero, lisa, tmp_path, inner):
    (step,) = (path for path in (zero / "trained").iterdir() if path.is_dir())
    merge(lisa, step if inner else zero / "trained", tmp_path / "out", lora_alpha=16)
    convert(lisa, tmp_path / "before")
    found, before, peft = (
        *map(weights, (tmp_path / "out", tmp_path / "before")),
        load_file(zero / "by_peft.safetensors"),
    )
    changed = 0
    for key, value in peft.items():
        mark = next(mark for mark in OURS if key.startswith(mark))
        ours = OURS[mark] + key.removeprefix(mark)
        assert torch.allclose(found[ours], value, atol=1e-6), key
        changed += not torch.equal(found[ours], before[ours])
    assert changed == 4  # q and v of two layers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "optim"])
def test_code_in_a_shard_is_not_run(copy, tmp_path, command, lisa, kind):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = copy("whole3")
    (file,) = folder.rglob(SHARD.format(1, kind))
    state = torch.load(file, weights_only=False)  # what DeepSpeed wrote above
    torch.save({**state, "client": Trap()}, file)
    done = command("merge", lisa, folder, tmp_path / "out")
    assert done.code == 2
    assert f"{file.name} holds code (posix.mkdir), not only tensors; it was not run" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("whole2", SHARD.format(1, "optim"), "Expected 2 .* but found 1 files; copy the shards of all ranks"),
        ("whole2", SHARD.format(0, "optim"), "Expected 2 .* but found 1 files; copy the shards of all ranks"),
        ("whole2", "mp_rank_00_model_states.pt", "can't find .*model_states.pt.*; copy the shards of all ranks"),
        ("whole2", "*_optim_states.pt", "can't find .*optim_states.pt.*; copy the shards of all ranks"),
        ("whole3", SHARD.format(1, "optim"), "lacks zero_pp_rank_1_mp_rank_00_optim_states.pt; copy the shards"),
        ("whole3", SHARD.format(0, "model"), "lacks zero_pp_rank_0_mp_rank_00_model_states.pt; copy the shards"),
        ("whole3", SHARD.format(1, "*"), "Expected 2 .* but found 1 files; copy the shards of all ranks"),
    ],
)
def test_a_part_of_the_shards_is_not_enough(copy, command, lisa, tmp_path, name, lost, said):
    folder = copy(name)
    for file in list(folder.rglob(lost)):
        file.unlink()
    done = command("merge", lisa, folder, tmp_path / "out")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=said):
        from_zero(folder, tmp_path / "scratch")


@pytest.mark.slow
def test_a_shard_cut_short(copy, tmp_path):
    folder = copy("whole2")
    (file,) = folder.rglob(SHARD.format(1, "optim"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{file.name} is damaged, cut short"):
        from_zero(folder, tmp_path / "scratch")


@pytest.fixture
def steps(tmp_path):
    """Empty files under the names that DeepSpeed gives, two steps of stage 2."""
    for step in (5, 9):
        (tmp_path / "run" / f"global_step{step}").mkdir(parents=True)
        for name in ("mp_rank_00_model_states.pt", "bf16_" + SHARD.format(0, "optim")):
            (tmp_path / "run" / f"global_step{step}" / name).touch()
    return tmp_path / "run"


def test_the_step_that_latest_names(steps):
    assert is_zero(steps)
    with pytest.raises(ValueError, match=r"several steps \(.*global_step5, .*global_step9\); give one folder"):
        zero_folder(steps)
    (steps / "latest").write_text("global_step9\n")
    assert zero_folder(steps) == steps / "global_step9"
    assert zero_folder(steps / "global_step5") == steps / "global_step5"
    (steps / "latest").write_text("global_step11")
    with pytest.raises(ValueError, match="latest names 'global_step11', where there are no shards"):
        zero_folder(steps)


def test_the_only_step_is_found_wherever_it_lies(steps):
    shutil.rmtree(steps / "global_step5")
    assert zero_folder(steps.parent) == steps / "global_step9"


def test_halves_of_stage_three_are_counted(steps):
    folder = steps / "global_step9"
    (folder / "mp_rank_00_model_states.pt").rename(folder / SHARD.format(0, "model"))
    assert zero_folder(folder) == folder
    (folder / SHARD.format(1, "model")).touch()
    with pytest.raises(ValueError, match="lacks zero_pp_rank_1_mp_rank_00_optim_states.pt"):
        zero_folder(folder)


def test_without_deepspeed_the_way_out_is_named(steps, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match="pip install deepspeed, or run the zero_to_fp32.py that lies beside them"):
        from_zero(steps / "global_step5", steps / "scratch")
