"""Checkpoints that cannot be used, through the command line: one sentence that names what is wrong and the way out."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

# ---- checkpoints


def config_with(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def nested(place, value):
    """Set one key deep inside config.json; None takes it out."""

    def change(folder):
        path = folder / "config.json"
        config = part = json.loads(path.read_text())
        *walk, last = place.split(".")
        for key in walk:
            part = part[key]
        part[last] = value
        if value is None:
            del part[last]
        path.write_text(json.dumps(config))

    return change


def other_shapes(folder):
    """One weight gone, one too many, one of another shape."""
    weights = load_file(folder / "model.safetensors")
    weights["nobody.knows"] = weights.pop("seg_projection.0.bias")
    weights["seg_projection.2.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])


BAD_CHECKPOINTS = {
    "other keys": (
        other_shapes,
        [
            "3 keys",
            "missing seg_projection.0.bias",
            "extra nobody.knows",
            "seg_projection.2.bias: (3,) in the file, (32,)",
        ],
    ),
    "other sizes": (config_with(region_grid=16, small_config={"side": 64}), ["keys do not fit", "and", "more"]),
    "other version": (config_with(format_version=99), ["format_version is 99", "use the mglmm release that wrote it"]),
    "unknown key": (config_with(reed_offset=0), ["'reed_offset'", "did you mean 'read_offset'"]),
    "a misspelt size": (nested("small_config.dept", 2), ["small_config.dept", "did you mean 'depth'", "put back"]),
    "a size in words": (nested("small_config.side", "64"), ["small_config.side is '64'", "valid integer"]),
    "a short stem": (nested("small_config.stem", [8, 8]), ["small_config.stem"]),
    "no size": (nested("small_config.side", None), ["small_config has no 'side'"]),
    "small_config of a list": (config_with(small_config=[1]), ["small_config is [1]"]),
    "a misspelt language": (nested("llava_config.text_confg", {}), ["'text_confg'", "did you mean 'text_config'"]),
    "no language": (nested("llava_config.text_config", None), ["llava_config has no 'text_config'"]),
    "a misspelt width": (
        nested("llava_config.text_config.hiden_size", 32),
        ["'hiden_size' in llava_config.text_config", "did you mean 'hidden_size'", "put back the config.json"],
    ),
    "a width in words": (nested("llava_config.text_config.hidden_size", "a"), ["text_config.hidden_size is 'a'"]),
    "heads that do not fit": (nested("llava_config.text_config.num_attention_heads", 3), ["text_config", "multiple"]),
    "a wrong layer": (nested("llava_config.vision_feature_layer", "x"), ["'vision_feature_layer'", "'x'"]),
    "no image token": (nested("llava_config.image_token_index", None), ["llava_config has no 'image_token_index'"]),
    "a grid in words": (config_with(region_grid="16"), ["region_grid is '16'", "valid integer"]),
    "an empty grid": (config_with(region_grid=0), ["region_grid is 0"]),
    "a wrong confidence": (config_with(confidence="high"), ["confidence is 'high'"]),
    "a wrong threshold": (config_with(no_target_threshold=1.0), ["no_target_threshold is 1.0", "above 0 and below 1"]),
    "a wrong refusal": (config_with(refusal=[-1.0, 0.0]), ["refusal is [-1.0, 0.0]", "a scale above 0 and a bias"]),
    "a wrong dtype": (config_with(dtype="float33"), ["float33"]),
    "another model": (config_with(model_type="llama"), ["'llama'", "'mglmm'"]),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "copy it again"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["holds no config.json", "mglmm train"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["safetensors", "copy the whole folder"]),
    "cut weights": (cut, ["cut short", "copy it again"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json", "copy the whole folder"]),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer", "copy the whole"]),
    "no folder": (shutil.rmtree, ["no checkpoint at", "give a folder"]),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used(command, tiny_checkpoint, tmp_path, kind):
    change, words = BAD_CHECKPOINTS[kind]
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    change(folder)
    command("ask", "world:1@64", "What is this?", "--model", folder).is_one_sentence(folder, *words)


@pytest.mark.parametrize("name", ["owner/modle", "runs/three steps", "mine/-", "a/" + "b" * 120])
def test_a_mistyped_folder_is_no_hub_name(command, name):
    started = time.monotonic()
    done = command("ask", "world:1@64", "What is this?", "--model", name)
    done.is_one_sentence(f"no checkpoint at {name}, neither a folder nor reachable on the hub", "give a folder")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", [".", ""])
def test_this_folder_is_no_checkpoint(command, name):
    command("ask", "world:1@64", "What is this?", "--model", name).is_one_sentence("config.json", "mglmm train")


def test_this_folder_is_a_checkpoint(command, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    asked = ["ask", "world:1@64", "What is this?", "--max-new-tokens", "1", "--json"]
    assert command(*asked, "--model", ".").code == 0
