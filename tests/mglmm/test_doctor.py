"""`mglmm doctor`: what checkpoints are, what they can do, what they weigh, and everything that is missing at once."""

import gzip
import json
import shutil
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mglmm.config import BUNDLED
from mglmm.importers import doctor
from mglmm.importers.doctor import diagnose
from mglmm.importers.sizes import cache_bytes, in_layers, memory, parts

PEERS = {"lisa": "LISA", "glamm": "GLaMM", "mglmm": "MGLMM"}


@pytest.fixture
def published(shared, tmp_path):
    """A function that copies a published checkpoint with its vision tower beside it; returns its folder."""

    def copy(family):
        root = shared("golden", family)
        for folder in root.iterdir():
            if folder.is_dir():
                shutil.copytree(folder, tmp_path / folder.name, copy_function=shutil.copyfile)
        return tmp_path / "checkpoint"

    return copy


@pytest.mark.parametrize("family", PEERS)
def test_published_checkpoints_are_known(family, shared, command):
    folder = shared("golden", family, "checkpoint")
    done = command("doctor", folder)
    assert (done.code, done.err) == (0, "")
    assert f"{PEERS[family]}, as published" in done.out and "referring segmentation" in done.out
    assert f"mglmm convert {folder} OUT" in " ".join(done.out.split())
    found = json.loads(command("doctor", folder, "--json").out)
    assert (found["family"], found["whole"], found["missing"]) == (family, True, [])
    assert set(found["parts"]) - {"region encoder"} == {
        "language model", "projector", "segmenter", "[SEG] projection", "vision tower",
    }  # fmt: skip
    assert ("region encoder" in found["parts"]) == ("regions in: box" in found["tasks"]) == (family == "glamm")
    assert found["memory"]["fp16"] == 2 * sum(found["parts"].values())
    assert found["memory"]["fp16"] > found["memory"]["int8"] > found["memory"]["int4"]


def test_the_bundled_model_is_whole(command):
    found = json.loads(command("doctor", "bundled", "--json").out)
    assert found["whole"] and found["family"] == "ours"
    stored = load_file(BUNDLED / "model.safetensors")
    assert sum(found["parts"].values()) == sum(value.numel() for value in stored.values())
    assert "regions in: point, box, scribble, mask" in found["tasks"]


def test_a_saved_checkpoint_is_whole(tiny_checkpoint, command):
    assert command("doctor", tiny_checkpoint).code == 0


@pytest.mark.parametrize(
    ("name", "layers", "inner", "vocab"),
    [("lisa/lisa7b", 32, 4096, 32003), ("glamm/glamm7b", 32, 4096, 32007), ("mglmm/mglmm7b", 32, 4096, 32007)],
)
def test_real_sizes(name, layers, inner, vocab, shared):
    """The key manifests of the published 7B checkpoints: LLaMA-7B's count, SAM ViT-H's, and int4 well below half."""
    manifest = json.loads(gzip.decompress(shared("golden", f"{name}_key_manifest.json.gz").read_bytes()))
    shapes = {key: tuple(shape) for key, shape in manifest.items()}
    counted = parts(shapes)
    llama = layers * (4 * inner**2 + 3 * inner * 11008 + 2 * inner) + 2 * vocab * inner + inner
    assert counted["language model"] == llama
    assert counted["segmenter"] == pytest.approx(641.1e6, rel=1e-3)
    assert "other" not in counted
    needed = memory(shapes)
    assert needed["fp16"] == 2 * sum(counted.values())
    quantised = sum(prod(shape) for key, shape in shapes.items() if in_layers(key))
    assert quantised == layers * (4 * inner**2 + 3 * inner * 11008)
    assert needed["fp16"] - needed["int8"] == quantised
    assert needed["int4"] < 0.4 * needed["fp16"]
    assert cache_bytes(shapes, 256) == 2 * 2 * layers * inner * (256 + 512)


def test_everything_missing_is_listed_at_once(published, command):
    folder = published("lisa")
    shutil.rmtree(folder.parent / "clip-tiny")
    (folder / "added_tokens.json").unlink()
    done = command("doctor", folder)
    assert done.code == 1
    said = " ".join(done.out.split())
    assert "has no [SEG]" in said and "vision tower" in said and "--vision-tower" in said
    assert "LISA, as published" in said and "next" not in said.split()


def test_vision_tower_can_be_given(published, shared, command):
    folder = published("lisa")
    shutil.rmtree(folder.parent / "clip-tiny")
    assert command("doctor", folder).code == 1
    assert command("doctor", folder, "--vision-tower", shared("golden", "lisa", "clip-tiny")).code == 0


def test_truncated_weights(published, command):
    folder = published("lisa")
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = command("doctor", folder)
    assert done.code == 1
    assert "pytorch_model.bin" in done.out and "download it again" in " ".join(done.out.split())
    assert "LISAForCausalLM" in done.out


def test_half_of_the_shards(tmp_path, command):
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "model-00001-of-00002.safetensors")
    done = command("doctor", tmp_path)
    assert done.code == 1
    assert "holds 1 of 2 shards" in " ".join(done.out.split())


def test_shards_of_deepspeed(tmp_path, command, monkeypatch):
    """Which halves are not there, what puts them together, and whether there is a base to merge into."""
    step = tmp_path / "run" / "global_step5"
    step.mkdir(parents=True)
    for name in ("0_mp_rank_00_model", "0_mp_rank_00_optim", "1_mp_rank_00_model"):
        (step / f"zero_pp_rank_{name}_states.pt").touch()
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    done = command("doctor", tmp_path / "run")
    said = " ".join(done.out.split())
    assert done.code == 1
    assert "lacks zero_pp_rank_1_mp_rank_00_optim_states.pt" in said and "pip install deepspeed" in said
    (step / "zero_pp_rank_1_mp_rank_00_optim_states.pt").touch()
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    done = command("doctor", tmp_path / "run")
    assert done.code == 0 and "mglmm merge BASE" in done.out
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "mglmm convert" in command("doctor", tmp_path / "run").out


def test_adapters_name_their_base(tmp_path, command):
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "base_model_name_or_path": "xinlai/LISA-7B-v1"}')
    done = command("doctor", tmp_path)
    assert done.code == 1
    assert "the base they were trained on (xinlai/LISA-7B-v1): merge them into it" in " ".join(done.out.split())


def test_vocabulary_that_does_not_fit(published, command):
    folder = published("lisa")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32003}))
    done = command("doctor", folder)
    assert done.code == 1
    assert "vocab_size is 32003, the embedding has 703 rows" in " ".join(done.out.split())


def test_keys_that_do_not_fit(tiny_checkpoint, tmp_path, command):
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(state) if key.startswith("seg_projection"))
    state["surplus"] = torch.zeros(2)
    state["seg_projection.2.weight"] = torch.zeros(3, 3)
    del state[key]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    done = command("doctor", folder)
    said = " ".join(done.out.split())
    assert done.code == 1
    assert f"1 missing keys: {key}" in said and "1 extra keys: surplus" in said
    assert "1 wrongly shaped keys: seg_projection.2.weight" in said


def test_parts_of_models_are_named(shared, command):
    done = command("doctor", shared("golden", "lisa", "clip-tiny"))
    assert done.code == 0 and "a CLIP" in done.out and "--vision-tower" in done.out
    done = command("doctor", shared("golden", "lisa", "lora_unmerged_subset.safetensors"))
    assert done.code == 1 and "LoRA adapters without their base" in done.out


@pytest.mark.parametrize(
    ("path", "advice"), [("owner/name", "hf download owner/name"), ("/no/where", "check the path")]
)
def test_nothing_there(path, advice, command):
    done = command("doctor", path)
    assert (done.code, done.out) == (2, "")
    assert f"no checkpoint at {path} on this machine" in done.err and advice in done.err


def test_foreign_weights(tmp_path, command):
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    done = command("doctor", tmp_path)
    assert done.code == 2 and "of no family known here" in done.err


def test_a_file_that_holds_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model.norm.weight": Code()}, tmp_path / "pytorch_model.bin")
    found = diagnose(Path(tmp_path))
    assert not found.whole and "holds code" in found.missing[0]
