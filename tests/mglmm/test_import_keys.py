"""Checkpoints in every shape they come in: shards, wrappers, adapters, parts; LoRA merges exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from mglmm.checkpoint import load_checkpoint
from mglmm.importers import convert, merge
from mglmm.importers.convert import write_weights
from mglmm.importers.keys import open_store
from mglmm.importers.lora import without_wrappers
from mglmm.importers.plan import KeyMismatchError


def weights(folder):
    """All tensors of a folder that we wrote."""
    return {key: value for file in Path(folder).glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.fixture
def copy(shared, tmp_path):
    """A function from a family to a copy of its tiny checkpoint that may be changed, its tower beside it."""

    def make(family):
        for folder in shared("golden", family).iterdir():
            if folder.is_dir():
                shutil.copytree(folder, tmp_path / folder.name, copy_function=shutil.copyfile)
        for path in tmp_path.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return tmp_path / "checkpoint"

    return make


def test_a_table_names_what_is_missing_extra_and_of_another_shape(copy, tmp_path):
    folder = copy("lisa")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["model.norm.weight"]
    state["model.stranger.weight"] = torch.zeros(3)
    state["model.mm_projector.bias"] = torch.zeros(65)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(KeyMismatchError, match="3 keys do not fit its config.json: missing .*norm.weight") as caught:
        convert(folder, tmp_path / "out")
    assert {(line.what, line.key) for line in caught.value.lines} == {
        ("missing", "model.norm.weight"),
        ("extra", "model.stranger.weight"),
        ("shape", "model.mm_projector.bias"),
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards_give_the_same_checkpoint(copy, tmp_path, suffix, indexed):
    folder = copy("mglmm")
    convert(folder, tmp_path / "whole")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-{number:05}-of-00003.{suffix}" for number in (1, 2, 3)]
    save = save_file if suffix == "safetensors" else torch.save
    where = {}
    for number, name in enumerate(names):
        part = {key: value for index, (key, value) in enumerate(state.items()) if index % 3 == number}
        where |= dict.fromkeys(part, name)
        save(part, folder / name)
    if indexed:
        index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
        (folder / index).write_text(json.dumps({"weight_map": where}))
    convert(folder, tmp_path / "out")
    found, wanted = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_leftovers_beside_the_weights_are_not_read(copy, tmp_path):
    """Trainers leave optimizers, ZeRO shards and indexes behind; whole weights go before what is not whole."""
    folder = copy("mglmm")
    convert(folder, tmp_path / "plain")
    step = folder / "global_step7"
    step.mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (step / name).write_bytes(b"not read")
    for name in ("optimizer.pt", "training_args.bin", "optimizer-00001-of-00002.bin", "optimizer-00002-of-00002.bin"):
        (folder / name).write_bytes(b"not read")
    promised = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(promised))
    (note,) = [note for note in convert(folder, tmp_path / "again").notes if "DeepSpeed" in note]
    assert note.startswith("DeepSpeed's shards in ") and "were left out, whole weights lie beside them" in note
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    for number in (1, 2):
        part = {key: value for index, (key, value) in enumerate(state.items()) if index % 2 == number - 1}
        torch.save(part, folder / f"pytorch_model-{number:05}-of-00002.bin")
    convert(folder, tmp_path / "parts")
    found = [weights(tmp_path / name) for name in ("plain", "again", "parts")]
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in found[0])


def test_several_output_shards_load(copy, tmp_path, monkeypatch):
    folder = copy("lisa")
    convert(folder, tmp_path / "whole")
    monkeypatch.setattr(write_weights, "__defaults__", (None, 200_000, ""))
    convert(folder, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 3
    whole, parts = (load_checkpoint(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_dtype_and_save_load_round_trip(copy, tmp_path):
    convert(copy("glamm"), tmp_path / "out", dtype=torch.float16)
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float16}
    model, processor = load_checkpoint(tmp_path / "out")
    from mglmm.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "again", model, processor)
    again, _ = load_checkpoint(tmp_path / "again")
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert again.config.region_config == model.config.region_config


def test_adapters_of_a_subset_merge_to_the_released_weights(shared, copy, tmp_path):
    folder = copy("lisa")
    convert(folder, tmp_path / "released")
    done = merge(folder, shared("golden", "lisa", "lora_unmerged_subset.safetensors"), tmp_path / "merged")
    assert any("16" in note for note in done.notes)
    found, wanted = weights(tmp_path / "merged"), weights(tmp_path / "released")
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) < 1e-6


def unmerged(shared, folder):
    """The state of the wrapped model, as zero_to_fp32 gives it: every key that was recorded."""
    facts = json.loads(shared("golden", "lisa", "golden.json").read_text())
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    part = load_file(shared("golden", "lisa", "lora_unmerged_subset.safetensors"))
    tower = torch.load(shared("golden", "lisa", "clip-tiny", "pytorch_model.bin"), weights_only=True)
    inside = {f"model.vision_tower.vision_tower.{key}": value for key, value in tower.items()}
    plain = {**state, **inside}
    return {key: part[key] if key in part else plain[without_wrappers(key)] for key in facts["peft_full_key_list"]}


def test_a_wrapped_models_whole_state_converts(shared, copy, tmp_path):
    folder = copy("lisa")
    convert(folder, tmp_path / "released")
    state = unmerged(shared, folder)
    facts = json.loads(shared("golden", "lisa", "golden.json").read_text())
    assert state.keys() == set(facts["peft_full_key_list"])
    torch.save(state, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "merged", lora_alpha=16)
    found, wanted = weights(tmp_path / "merged"), weights(tmp_path / "released")
    assert found.keys() == wanted.keys()
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) < 1e-6


def test_a_wrapped_models_whole_state_merges_into_what_was_converted(shared, copy, tmp_path, command):
    """What zero_to_fp32 gives holds SAM, the tower and the embedding whole; the layers stand beside their adapters."""
    folder = copy("lisa")
    convert(folder, tmp_path / "released")
    state = unmerged(shared, folder)
    decoder = "base_model.model.model.visual_model.mask_decoder.iou_token.weight"
    state[decoder] = state[decoder] + 1
    torch.save(state, tmp_path / "state.bin")
    done = command("merge", tmp_path / "released", tmp_path / "state.bin", tmp_path / "merged", "--lora-alpha", "16")
    assert done.code == 0, done.err
    found, wanted = weights(tmp_path / "merged"), weights(tmp_path / "released")
    assert found.keys() == wanted.keys()
    wanted["bridge.sam.mask_decoder.iou_token.weight"] += 1
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) < 1e-6


@pytest.mark.parametrize("ours", [True, False])
def test_adapters_outside_the_language_model(copy, tmp_path, ours):
    """peft's `target_modules: [q_proj]` hits SAM's decoder and the tower, too; a saved copy has the adapter's name."""
    folder = copy("lisa")
    convert(folder, tmp_path / "plain")
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.self_attn.q_proj"
    decoder = "model.visual_model.mask_decoder.transformer.layers.0.self_attn.q_proj"
    a, b, first = torch.randn(2, 32), torch.randn(32, 2), torch.randn(64, 64)
    part = {"base_model.model.model.text_hidden_fcs.0.0.modules_to_save.mine.weight": first}
    for layer in (tower, decoder):
        part |= {f"base_model.model.{layer}.lora_A.mine.weight": a.clone()}
        part |= {f"base_model.model.{layer}.lora_B.mine.weight": b.clone()}
    (tmp_path / "adapter").mkdir()
    save_file(part, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    merge(tmp_path / "plain" if ours else folder, tmp_path / "adapter", tmp_path / "merged")
    found, plain = weights(tmp_path / "merged"), weights(tmp_path / "plain")
    changed = {key for key in plain if not torch.equal(found[key], plain[key])}
    wanted = {"llava.model.vision_tower.encoder.layers.1.self_attn.q_proj.weight", "seg_projection.0.weight",
              "bridge.sam.mask_decoder.transformer.layers.0.self_attn.q_proj.weight"}  # fmt: skip
    assert found.keys() == plain.keys() and changed == wanted
    assert torch.equal(found["seg_projection.0.weight"], first)
    assert all(torch.allclose(found[key], plain[key] + 3.0 * b @ a, atol=1e-5) for key in changed if "q_proj" in key)


@pytest.mark.parametrize("ours", [True, False])
def test_a_peft_adapter_merges_into_ours_and_into_theirs(copy, tmp_path, ours):
    folder = copy("mglmm")
    convert(folder, tmp_path / "plain")
    layer, rows = "model.layers.1.self_attn.v_proj", "model.embed_tokens.weight"
    a, b = torch.randn(2, 64), torch.randn(64, 2)
    embedding = torch.randn(707, 64)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    part = {
        f"base_model.model.{layer}.lora_A.weight": a,
        f"base_model.model.{layer}.lora_B.weight": b,
        "base_model.model." + rows.replace(".weight", ".modules_to_save.default.weight"): embedding,
    }
    save_file(part, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "peft_type": "LORA"}))
    merge(tmp_path / "plain" if ours else folder, adapter, tmp_path / "merged")
    found, plain = weights(tmp_path / "merged"), weights(tmp_path / "plain")
    language = "llava.model.language_model."
    key = f"{language}layers.1.self_attn.v_proj.weight"
    assert torch.allclose(found[key], plain[key] + 3.0 * b @ a, atol=1e-6)
    assert torch.equal(found[f"{language}embed_tokens.weight"], embedding)
    same = found.keys() - {key, f"{language}embed_tokens.weight"}
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[each], plain[each]) for each in same)
    load_checkpoint(tmp_path / "merged")


@pytest.mark.parametrize("prefix", ["llava.model.language_model.", "language_model.model.", "model."])
def test_an_adapter_merges_into_what_training_saved(tmp_path, command, prefix):
    """transformers saves our models under LLaVA's older names; adapters may speak either, or the language model's."""
    a, b = torch.randn(2, 192), torch.randn(192, 2)
    layer = f"base_model.model.{prefix}layers.0.self_attn.q_proj"
    (tmp_path / "adapter").mkdir()
    state = {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 3}')
    done = command("merge", "bundled", tmp_path / "adapter", tmp_path / "out")
    assert done.code == 0, done.err
    before, after = (load_checkpoint(path)[0].state_dict() for path in ("bundled", tmp_path / "out"))
    key = "llava.model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(after[key], before[key] + 1.5 * b @ a, rtol=1e-3, atol=1e-3)  # stored in float16
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != key)


def test_the_projector_is_the_one_stored(copy, tmp_path, command):
    """Forks of LISA begin at LLaVA-1.5, whose projector has two layers; adapters may hold it whole."""
    folder = copy("lisa")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    two = {"0.weight": torch.randn(64, 32), "0.bias": torch.randn(64), "2.weight": torch.randn(64, 64),
           "2.bias": torch.randn(64)}  # fmt: skip
    kept = {key: value for key, value in state.items() if "mm_projector" not in key}
    torch.save(kept | {f"model.mm_projector.{key}": value for key, value in two.items()}, folder / "pytorch_model.bin")
    assert command("doctor", folder).code == 0
    convert(folder, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out")[0].config.projector == "mlp"
    new = torch.randn(64, 64)
    (tmp_path / "adapter").mkdir()
    save_file({"base_model.model.model.mm_projector.2.weight": new}, tmp_path / "adapter" / "adapter_model.safetensors")
    for base in (folder, tmp_path / "out"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
        found = weights(tmp_path / "merged")
        assert torch.equal(found["llava.model.multi_modal_projector.linear_2.weight"], new)
        assert torch.equal(found["llava.model.multi_modal_projector.linear_1.weight"], two["0.weight"])


def test_a_state_inside_a_trainers_file_is_found(copy, tmp_path):
    folder = copy("lisa")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({"module": state}, folder / "pytorch_model.bin")
    assert set(open_store(folder).entries) == set(state)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert set(open_store(folder).entries) == set(state)


def test_glamm_that_was_trained_without_regions(copy, tmp_path, command):
    folder = copy("glamm")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {key: value for key, value in state.items() if "region_encoder" not in key}
    torch.save(kept, folder / "pytorch_model.bin")
    assert "region encoder's width is read; get it whole" in command("convert", folder, tmp_path / "out").err
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "with_region": False}))
    assert command("doctor", folder).code == 0
    assert command("convert", folder, tmp_path / "out").code == 0
    assert load_checkpoint(tmp_path / "out")[0].config.region_encoder == "none"


def test_llava_in_its_original_layout(copy, tmp_path, command):
    """A LLaVA-1.5 is MGLMM without SAM and projection; Hugging Face's model of the result has the same weights."""
    from mglmm.build import ModelConfig, build

    folder = copy("mglmm")
    convert(folder, tmp_path / "whole")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {key: value for key, value in state.items() if "segment_encoder" not in key and "text_hidden" not in key}
    torch.save(kept, folder / "pytorch_model.bin")
    done = command("convert", folder, tmp_path / "llava")
    assert done.code == 0, done.err
    assert "llava:" in done.out
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    whole = weights(tmp_path / "whole")
    for key, value in model.state_dict().items():
        assert torch.equal(value, whole[f"llava.{key}"]), key
    from sam_bridge.config import sam_config
    from sam_bridge.sam import HfSam

    sizes = sam_config(side=64, hidden=16, depth=1, heads=1, window=2, global_layers=(0,), width=16, decoder_heads=2,
                       decoder_mlp=16)  # fmt: skip
    HfSam.from_config(sizes).sam.save_pretrained(tmp_path / "sam")
    built, processor = build(ModelConfig(llava=str(tmp_path / "llava"), sam=str(tmp_path / "sam"), vision="clip"))
    assert built.llava.lm_head.weight.shape[0] >= len(processor.tokenizer)
    assert command("convert", tmp_path / "llava", tmp_path / "new").err.endswith("llava_7b_sam_h.yaml)\n")


def test_a_single_linear_projector_has_no_place_in_hugging_faces_llava(copy, tmp_path):
    folder = copy("lisa")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {key: value for key, value in state.items() if "visual_model" not in key and "text_hidden" not in key}
    torch.save(kept, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="LLaVA-1 with one Linear"):
        convert(folder, tmp_path / "out")
