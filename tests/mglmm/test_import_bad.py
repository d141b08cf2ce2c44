"""Mistakes with published checkpoints: one sentence with the file and the way out, exit code 2, nothing written."""

import json
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

WEIGHTS = "pytorch_model.bin"


@pytest.fixture
def folder(shared, tmp_path):
    """A copy of LISA's tiny checkpoint that may be damaged, its tower beside it."""
    for name in ("checkpoint", "clip-tiny"):
        shutil.copytree(shared("golden", "lisa", name), tmp_path / "lisa" / name, copy_function=shutil.copyfile)
    for path in (tmp_path / "lisa").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "lisa" / "checkpoint"


def state_of(folder):
    return torch.load(folder / WEIGHTS, weights_only=True)


def settings(folder, **changes):
    """Change config.json; None takes a key out."""
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def cut_safetensors(folder):
    save_file(state_of(folder), folder / "model.safetensors")
    (folder / WEIGHTS).unlink()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def text(folder):
    (folder / WEIGHTS).write_text("<html>not found</html>")


def pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


class Runs:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def code(folder):
    torch.save({**state_of(folder), "extra": Runs()}, folder / WEIGHTS)


def code_in_an_old_file(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Runs()))


def no_tensors(folder):
    torch.save([1, 2], folder / WEIGHTS)


def half(folder):
    state = list(state_of(folder).items())
    (folder / WEIGHTS).unlink()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    torch.save(dict(state[:90]), folder / names[0])
    where = {key: names[index >= 90] for index, (key, _) in enumerate(state)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def half_beside_an_adapter(folder):
    half(folder)
    torch.save({"base_model.model.lm_head.weight": torch.zeros(703, 64)}, folder / "adapter_model.bin")


def half_without_index(folder):
    half(folder)
    (folder / "pytorch_model.bin.index.json").unlink()


def promised(folder):
    half(folder)
    torch.save({"lm_head.weight": torch.zeros(1)}, folder / "pytorch_model-00002-of-00002.bin")


def no_tower(folder):
    shutil.rmtree(folder.parent / "clip-tiny")


def unnamed_tower(folder):
    settings(folder, vision_tower=None, mm_vision_tower=None)


def other_tower(folder):
    config = folder.parent / "clip-tiny" / "config.json"
    config.write_text(json.dumps({"model_type": "siglip"}))


def no_seg(folder):
    added = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({k: v for k, v in added.items() if k != "[SEG]"}))


def more_words(folder):
    added = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({**added, "[REJ]": 703}))


def other_vocabulary(folder):
    settings(folder, vocab_size=32003)


def other_head(folder):
    state = state_of(folder)
    state["lm_head.weight"] = state["lm_head.weight"][:-1].clone()
    torch.save(state, folder / WEIGHTS)


def other_width(folder):
    settings(folder, hidden_size=128)


def no_size(folder):
    settings(folder, hidden_size=None)


def no_config(folder):
    (folder / "config.json").unlink()


def damaged_config(folder):
    (folder / "config.json").write_text('{"hidden_size": 64')


def no_tokenizer(folder):
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json"):
        (folder / name).unlink()


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def missing_key(folder):
    state = state_of(folder)
    del state["model.text_hidden_fcs.0.2.bias"]
    torch.save(state, folder / WEIGHTS)


def half_of_sam(folder):
    state = {key: value for key, value in state_of(folder).items() if "mask_decoder" not in key}
    torch.save(state, folder / WEIGHTS)


def heads(folder):
    settings(folder, num_attention_heads=5)


def rotation(folder):
    settings(folder, rope_scaling={"type": "wild", "factor": 2.0})


def activation(folder):
    settings(folder, hidden_act="swish9")


def words_for_numbers(folder):
    settings(folder, rms_norm_eps="1e-6")


def deep_layer(folder):
    settings(folder, mm_vision_select_layer=-9)


def wide_tower(folder):
    config = folder.parent / "clip-tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 48}))


def cut_tower(folder):
    file = folder.parent / "clip-tiny" / WEIGHTS
    file.write_bytes(file.read_bytes()[:100_000])


def two_families(folder):
    torch.save({**state_of(folder), "model.grounding_encoder.x": torch.zeros(1)}, folder / WEIGHTS)


def stranger(folder):
    torch.save({"net.0.weight": torch.zeros(2)}, folder / WEIGHTS)


def adapter_alone(folder):
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{layer}.lora_A.weight": torch.zeros(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
    torch.save(halves, folder / WEIGHTS)


def half_an_adapter(folder):
    key = "model.layers.0.self_attn.q_proj.lora_A.weight"
    torch.save({**state_of(folder), key: torch.zeros(2, 64)}, folder / WEIGHTS)


def zero(folder):
    (folder / WEIGHTS).unlink()
    (folder / "global_step10").mkdir()
    (folder / "global_step10" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")


CASES = [
    (cut, [], "pytorch_model.bin is damaged, cut short"),
    (cut_safetensors, [], "model.safetensors is damaged or cut short"),
    (empty, [], "pytorch_model.bin is damaged"),
    (text, [], "pytorch_model.bin is damaged"),
    (pointer, [], "is a Git LFS pointer"),
    (code, [], "pytorch_model.bin holds code"),
    (code_in_an_old_file, [], "pytorch_model.bin holds code"),
    (no_tensors, [], "holds no flat state dict of tensors, but list"),
    (half, [], "holds 1 of 2 shards; missing are pytorch_model-00002-of-00002.bin"),
    (half_beside_an_adapter, [], "holds 1 of 2 shards; missing are pytorch_model-00002-of-00002.bin"),
    (half_without_index, [], "holds 1 of 2 shards; missing are pytorch_model-00002-of-00002.bin"),
    (promised, [], "its index promises 203 tensors"),
    (None, ["--family", "glamm"], "is a checkpoint of lisa, not of glamm"),
    (None, ["--family", "llama"], "unknown family 'llama'; known: lisa"),
    (None, ["--dtype", "int8"], "--dtype is 'int8'; choose float32"),
    (no_tower, [], "trained with the vision tower ../clip-tiny, which is not on this machine.*--vision-tower"),
    (None, ["--vision-tower", "nowhere"], "--vision-tower nowhere is no folder"),
    (None, ["--vision-tower", "openai/clip-vit-large-patch14"], "hf download openai/clip-vit-large-patch14"),
    (unnamed_tower, [], "names no vision tower.*--vision-tower"),
    (other_tower, [], "is a 'siglip', not a CLIP"),
    (no_seg, [], r"the tokenizer has no \[SEG\]"),
    (more_words, [], "the tokenizer has 704 tokens, the embedding 703 rows"),
    (other_vocabulary, [], "vocab_size is 32003, the embedding has 703 rows"),
    (other_head, [], "the token embedding has 703 rows, the output head 702"),
    (other_width, [], "keys do not fit its config.json"),
    (no_size, [], "config.json lacks hidden_size"),
    (no_config, [], "config.json is missing"),
    (damaged_config, [], "config.json is damaged"),
    (no_tokenizer, [], "holds neither tokenizer.model"),
    (no_weights, [], "holds no weights"),
    (missing_key, [], r"1 keys do not fit its config.json: missing model.text_hidden_fcs.0.2.bias \(32,\); take"),
    (half_of_sam, [], "5 keys of its SAM are missing.*model.visual_model.mask_decoder.iou_token.weight"),
    (heads, [], r"config.json describes no LLaMA \(.*not a multiple of the number of attention heads \(5\)"),
    (rotation, [], "config.json describes no LLaMA .*rope_scaling of type 'wild' is unknown; known: linear"),
    (activation, [], "config.json describes no LLaMA .*hidden_act 'swish9' is unknown"),
    (words_for_numbers, [], "config.json describes no LLaMA .*rms_norm_eps' expected float, got str"),
    (deep_layer, [], "mm_vision_select_layer is -9, but the vision tower has 3 layers.*--vision-tower"),
    (wide_tower, [], "clip-tiny is 48 wide, the projector of .* reads 32; give the CLIP .* --vision-tower"),
    (cut_tower, [], "clip-tiny/pytorch_model.bin is damaged, cut short"),
    (two_families, [], "has keys of lisa and of glamm"),
    (stranger, [], "is of no family known here"),
    (adapter_alone, [], "mglmm merge BASE"),
    (half_an_adapter, [], "half of the adapter of model.layers.0.self_attn.q_proj is missing"),
    (zero, [], "pip install deepspeed|optim_states.pt is damaged"),
]


@pytest.mark.parametrize(("damage", "options", "said"), CASES, ids=[
    damage.__name__ if damage else options[-1] for damage, options, _ in CASES])  # fmt: skip
def test_convert_says_what_is_wrong(command, folder, tmp_path, damage, options, said):
    if damage is not None:
        damage(folder)
    done = command("convert", folder, tmp_path / "out", *options)
    assert done.code == 2
    assert re.search(said, done.err), done.err
    assert done.err.startswith("mglmm: ")
    assert len(done.err.strip().splitlines()) == 1
    assert "printed" not in done.out
    assert not (tmp_path / "out").exists()


def test_other_things_are_not_overwritten(command, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    done = command("convert", folder, tmp_path / "out")
    assert (done.code, "not empty and holds no checkpoint" in done.err) == (2, True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"
    assert command("convert", folder, folder).code == 2
    assert (folder / WEIGHTS).exists()
    assert "no checkpoint at" in command("convert", tmp_path / "nowhere", tmp_path / "new").err


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"layers.0.self_attn.q_proj": (128, 128)}, "made for another base: 1 of 1 do not fit"),
        ({"layers.7.self_attn.q_proj": (64, 64)}, "layers.7.self_attn.q_proj.weight is not in it"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_an_adapter_of_another_base(command, folder, tmp_path, part, said, ours):
    base = folder
    if ours:
        assert command("convert", folder, tmp_path / "ours").code == 0
        base = tmp_path / "ours"
    state = {}
    for layer, (out, wide) in part.items():
        state[f"base_model.model.model.{layer}.lora_A.weight"] = torch.zeros(2, wide)
        state[f"base_model.model.model.{layer}.lora_B.weight"] = torch.zeros(out, 2)
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    done = command("merge", base, tmp_path / "adapter", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    save_file({"lm_head.weight": torch.zeros(5, 64)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "was made for another base" in command("merge", base, tmp_path / "adapter", tmp_path / "out").err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"use_dora": True}, "merge_and_unload"),
        ({"bias": "lora_only"}, "merge_and_unload"),
        ({"peft_type": "VERA"}, "merge_and_unload"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is pissa_niter_16, which changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is olora, which changed the base"),
    ],
)
def test_adapters_that_are_no_plain_sum(command, folder, tmp_path, setting, said):
    (tmp_path / "adapter").mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, **setting}))
    done = command("merge", folder, tmp_path / "adapter", tmp_path / "out")
    assert done.code == 2
    assert said in done.err


def test_an_adapter_that_names_another_base_is_noted(command, folder, tmp_path):
    """Adapters of one 7B fit another 7B in every size; only their config tells."""
    (tmp_path / "adapter").mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    for name, noted in (("xinlai/LISA-7B-v1", True), (f"/somewhere/{folder.name}", False)):
        content = {"r": 2, "lora_alpha": 4, "base_model_name_or_path": name}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
        done = command("merge", folder, tmp_path / "adapter", tmp_path / "out")
        assert done.code == 0, done.err
        assert (f"note: the adapters say that they were trained on {name}; the base given is" in done.out) == noted


@pytest.mark.parametrize("key", [
    "model.visual_model.mask_decoder.transformer.layers.1.cross_attn_image_to_token.k_proj.weight",
    "model.visual_model.prompt_encoder.not_a_point_embed.weight",
    "model.mm_projector.bias",
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
])  # fmt: skip
def test_whatever_is_missing_is_named_as_it_was_published(command, folder, tmp_path, monkeypatch, key):
    state = state_of(folder)
    del state[key]
    torch.save(state, folder / WEIGHTS)
    monkeypatch.setenv("COLUMNS", "60")
    done = command("convert", folder, tmp_path / "out")
    assert done.code == 2
    assert key in done.err
    assert key == "lm_head.weight" or ["missing", key] in [line.split()[:2] for line in done.out.splitlines()]


def test_a_tower_of_another_name_is_noted(command, folder, shared, tmp_path):
    done = command("convert", folder, tmp_path / "out", "--vision-tower",
                   shared("golden", "mglmm", "clip-vit-tiny-patch14-112"))  # fmt: skip
    assert done.code == 0
    assert re.search("note: the vision tower is .*patch14-112, 112 px; config.json names ../clip-tiny", done.out)


def test_keys_that_do_not_fit_are_printed_as_a_table(command, folder, tmp_path):
    state = state_of(folder)
    del state["model.norm.weight"]
    torch.save({**state, "model.stranger.weight": torch.zeros(3, 2)}, folder / WEIGHTS)
    done = command("convert", folder, tmp_path / "out")
    rows = [line.split() for line in done.out.splitlines()]
    assert ["missing", "model.norm.weight", "64"] in rows
    assert ["extra", "model.stranger.weight", "3", "x", "2"] in rows
