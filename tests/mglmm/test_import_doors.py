"""An imported checkpoint behind the doors that ours have: ask, eval, train with adapters, merge; the memory it took."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mglmm.checkpoint import load_checkpoint
from mglmm_data.masks import decode

LANGUAGE = "llava.model.language_model."

RECIPE = {
    "num_threads": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "stages": [
        {
            "name": "more",
            "max_steps": 2,
            "per_device_train_batch_size": 1,
            "share_prefix": True,
            "train": {"lora": 1.0, "token_rows": 1.0, "seg_projection": 1.0, "mask_decoder": 1.0},
            "losses": {"distill": 0, "where": 0, "quality": 0},
            "sources": {"world": {"type": "world", "turns": 1, "size": 64}},
        }
    ],
}


QUESTION = "Can you segment the dog in this image?"


@pytest.mark.parametrize(("family", "image"), [("lisa", "img_a"), ("glamm", "img_b"), ("mglmm", "img_b")])
def test_ask(command, shared, converted, family, image):
    asked = command("ask", shared("golden", family, f"{image}.png"), QUESTION, "--model", converted(family), "--json")
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["phrases"][0]["instances"]


def test_layers_too_narrow_for_four_bits(command, shared, converted):
    asked = command("ask", shared("golden", "lisa", "img_a.png"), "--model", converted("lisa"), "--quant", "int4")
    assert asked.code == 2
    assert "rows of a multiple of 64, this model's intermediate_size is 96; use --quant int8" in asked.err


def test_eight_bits_answer_the_same(command, shared, converted):
    pytest.importorskip("torchao")
    picture = shared("golden", "lisa", "img_a.png")
    masks, texts = [], []
    for quant in ("none", "int8"):
        asked = command("ask", picture, QUESTION, "--model", converted("lisa"), "--quant", quant, "--json")
        assert asked.code == 0, asked.err
        answer = json.loads(asked.out)
        texts.append(answer["text"])
        masks.append(decode(answer["phrases"][0]["instances"][0]["segmentation"]))
    assert texts[0] == texts[1]
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() >= 0.98


def test_boxes_reach_their_place(command, shared, converted):
    """What `--region` gives stands where upstream's `<bbox>` stood: the recorded answers about one and two boxes."""
    facts = json.loads(shared("golden", "glamm", "golden.json").read_text())
    cases = {case["name"]: case for case in facts["evaluate"] if case["boxes_xyxy_px"]}
    assert set(cases) == {"region", "region2", "region_other_box"}
    for name in ("region", "region2"):
        case = cases[name]
        question = case["question"]
        for number in range(len(case["boxes_xyxy_px"])):
            question = question.replace("<bbox>", f"[region {number}]", 1)
        boxes = [word for box in case["boxes_xyxy_px"] for word in ("--region", f"box:{','.join(map(str, box))}")]
        picture = shared("golden", "glamm", f"{case['image']}.png")
        asked = command("ask", picture, question, *boxes, "--model", converted("glamm"), "--json")
        assert asked.code == 0, asked.err
        assert json.loads(asked.out)["text"] == case["cleaned"]
    refused = command("ask", picture, "What is it?", *boxes, "--model", converted("lisa"))
    assert refused.code == 2 and "model reads none; ask without regions" in refused.err


def test_train_ask_and_merge(command, shared, converted, tmp_path):
    """Training goes on with adapters; what it saves is asked, and is a base for further adapters."""
    recipe = tmp_path / "more.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": str(converted("lisa"))}))
    trained = command("train", recipe)
    assert trained.code == 0, trained.err
    run = tmp_path / "runs" / "more"
    asked = command("ask", shared("golden", "lisa", "img_a.png"), QUESTION, "--model", run, "--json")
    assert asked.code == 0, asked.err
    before, after = (load_checkpoint(path)[0].state_dict() for path in (converted("lisa"), run / "last" / "model"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    language = {key for key in changed if key.startswith(LANGUAGE)}
    rows = {f"{LANGUAGE}embed_tokens.weight", "llava.lm_head.weight"}
    assert {key.split(".")[-2] for key in language - rows} == {"q_proj", "v_proj"}
    assert all(key.startswith(("bridge.sam.", "seg_projection.")) for key in changed - language - rows)
    layer = "base_model.model.model.layers.1.self_attn.v_proj"
    a, b = torch.randn(2, 64), torch.randn(64, 2)
    (tmp_path / "adapter").mkdir()
    halves = {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    save_file(halves, tmp_path / "adapter" / "adapter_model.safetensors")
    merged = command("merge", run, tmp_path / "adapter", "merged", "--lora-alpha", "6")
    assert merged.code == 0, merged.err
    key = f"{LANGUAGE}layers.1.self_attn.v_proj.weight"
    assert torch.allclose(load_checkpoint("merged")[0].state_dict()[key], after[key] + 3.0 * b @ a, atol=1e-5)


@pytest.mark.parametrize("family", ["mglmm", "glamm"])
def test_training_on_other_families(command, converted, tmp_path, family):
    recipe = tmp_path / "more.yaml"
    short = [{**RECIPE["stages"][0], "max_steps": 1}]
    recipe.write_text(yaml.safe_dump({**RECIPE, "stages": short, "model": str(converted(family))}))
    trained = command("train", recipe)
    assert trained.code == 0, trained.err
    assert (tmp_path / "runs" / "more" / "last" / "model" / "config.json").is_file()


def test_eval(command, converted):
    few = ["count=1", "size=64", "blind=false", "resamples=0", "limits_count=0", "generation.max_new_tokens=6"]
    for family, tasks in (("lisa", "[referring, vqa]"), ("mglmm", "[panoptic]"), ("glamm", "[region]")):
        done = command("eval", "eval/world", *few, f"tasks={tasks}", "--model", converted(family), "--out", "r.json")
        assert done.code == 0, done.err
        rows = json.loads(Path("r.json").read_text())["rows"]
        asked = " ".join(row["task"] for row in rows)
        assert all(task in asked for task in tasks.strip("[]").split(", ")), asked
    done = command("eval", "eval/world", *few, "tasks=[vqa, region]", "--model", converted("lisa"))
    assert done.code == 2
    assert "lisa reads no regions, as the task region needs; leave it out: tasks=[vqa]" in done.err


def test_eval_in_eight_bits(command, converted):
    few = ["count=1", "size=64", "blind=false", "resamples=0", "limits_count=0", "generation.max_new_tokens=6"]
    asked = ["eval", "eval/world", *few, "tasks=[referring]", "--model", converted("lisa")]
    wrong = command(*asked, "--quant", "int2")
    assert wrong.code == 2 and "quant" in wrong.err and "int4" in wrong.err
    pytest.importorskip("torchao")
    done = command(*asked, "--quant", "int8", "--out", "r.json")
    assert done.code == 0, done.err
    assert json.loads(Path("r.json").read_text())["meta"]["config"]["quant"] == "int8"


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_a_conversion_needs_little_memory(shared, shards):
    tool = Path(__file__).resolve().parents[2] / "tools" / "bench_convert.py"
    keys = shared("golden", "lisa")
    done = subprocess.run(
        [sys.executable, tool, "--keys", keys, "--shards", str(shards)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peak memory" in done.stdout
