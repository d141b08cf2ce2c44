"""Mistakes of a user, through the command line: exit code 2, one sentence that names it and the way out, no traceback.

What is accepted all the same is said in the answer's notes.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from mglmm.tokens import MARKERS
from mglmm_data import masks

resource = pytest.importorskip("resource")  # to make files small, which a full disk is tried with


def is_one_sentence(done, *words):
    """A mistake as it should be; every one of `words` is in it."""
    lines = done.err.splitlines()
    assert done.code == 2 and len(lines) == 1 and lines[0].startswith("mglmm: "), done
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in {lines[0]!r}"


# ---- images


def png_header(width, height):
    """A PNG that ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 99) + b"IDAT"


def photo(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "photo.png"
    photo().save(path)
    return path


def make_truncated(path):
    photo().save(path)
    path.write_bytes(path.read_bytes()[:-900])


BAD_IMAGES = {
    "missing": (lambda path: None, ["does not exist", "check the path"]),
    "not an image": (lambda path: path.write_text("hello"), ["is not an image", "save it as PNG or JPEG"]),
    "truncated": (make_truncated, ["truncated", "copy or download it again"]),
    "empty": (lambda path: path.write_bytes(b""), ["0 bytes", "copy or download it again"]),
    "one pixel": (lambda path: photo(1, 1).save(path), ["1x1 px", "use a larger one"]),
    "many pixels": (lambda path: path.write_bytes(png_header(16000, 16000)), ["256 megapixels", "scale it down"]),
    "a long side": (lambda path: path.write_bytes(png_header(20000, 10)), ["20000x10 px", "16,384", "scale it down"]),
    "a folder": (lambda path: path.mkdir(), ["is a folder", "give the path of one image"]),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_that_cannot_be_used(command, tmp_path, kind):
    make, words = BAD_IMAGES[kind]
    path = tmp_path / "photo.png"
    make(path)
    is_one_sentence(command("ask", path, "What is this?"), path, *words)


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_the_same_from_a_shell(tmp_path, kind):
    path = tmp_path / "photo.png"
    BAD_IMAGES[kind][0](path)
    done = subprocess.run(
        [sys.executable, "-m", "mglmm.cli", "ask", str(path), "What is this?"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + done.stdout
    assert BAD_IMAGES[kind][1][0] in done.stderr


# ---- what is asked


@pytest.mark.parametrize("prompt", ["", " \n\t"])
@pytest.mark.parametrize("how", [[], ["--stream"]], ids=["at once", "streamed"])
def test_an_empty_prompt(command, photo_file, tiny_checkpoint, prompt, how):
    done = command("ask", photo_file, prompt, "--model", tiny_checkpoint, *how)
    is_one_sentence(done, "the prompt is empty", "ask something")


@pytest.mark.parametrize("how", [[], ["--stream"]], ids=["at once", "streamed"])
def test_a_prompt_that_is_not_utf_8(command, photo_file, tiny_checkpoint, how):
    prompt = os.fsdecode("Is it a café?".encode("latin-1"))
    done = command("ask", photo_file, prompt, "--model", tiny_checkpoint, *how)
    is_one_sentence(done, "is not text in UTF-8", "caf\\udce9")


@pytest.mark.parametrize("how", [[], ["--stream"]], ids=["at once", "streamed"])
def test_a_question_longer_than_the_context(command, photo_file, tiny_checkpoint, how):
    done = command("ask", photo_file, "Is it a dog? " * 1000, "--model", tiny_checkpoint, *how)
    is_one_sentence(done, "tokens long", "room for 2031 beside the image", "ask a shorter one")


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ("box:0,0,41,30", ["(0.0, 0.0, 41.0, 30.0)", "40x30 px", "x1 < x2"]),
        ("box:9,9,9,20", ["not inside"]),
        ("point:40.5,3", ["point (40.5, 3.0)", "outside the image of 40x30 px"]),
        ("point:nan,3", ["outside"]),
        ("scribble:1,1;2,-1", ["(2.0, -1.0)", "outside"]),
        ("scribble:1,1", ["at least 2 points"]),
        ("box:1,2,3", ["'box:1,2,3'", "box:x1,y1,x2,y2", "scribble:"]),
        ("point:here", ["point:x,y"]),
        ("circle:1,2,3", ["circle:1,2,3", "mask:FILE.png"]),
        ("mask:none.png", ["none.png does not exist"]),
        ("mask:small.png", ["small.png", "(5, 5)", "(30, 40)"]),
        ("mask:black.png", ["black.png is all black", "remove it"]),
        ("mask:clear.png", ["clear.png has transparency", "white (255) is in"]),
    ],
)
def test_a_region_that_is_none_or_lies_outside(command, photo_file, region, words):
    Image.new("L", (5, 5), 255).save("small.png")
    Image.new("L", (40, 30)).save("black.png")
    Image.new("RGBA", (40, 30), (255, 255, 255, 9)).save("clear.png")
    is_one_sentence(command("ask", photo_file, "What is this?", "--region", region), *words)


def test_a_region_that_was_not_given(command, photo_file, tiny_checkpoint):
    done = command("ask", photo_file, "What is [region 1]?", "--region", "point:3,3", "--model", tiny_checkpoint)
    is_one_sentence(done, "[region 1]", "1 region(s) are given, from 0")


@pytest.mark.parametrize("scene", ["world:", "world:seven", "world:7@9", "world:7@9999", "world:-1", "world:25000000"])
def test_a_scene_that_is_none(command, scene):
    is_one_sentence(command("ask", scene, "What is this?"), scene, "world:7@384")


def test_a_file_that_cannot_be_written_is_said_before_the_work(command, photo_file):
    done = command("ask", photo_file, "What is this?", "--out", "answer.tiff", "--model", "/nowhere")
    is_one_sentence(done, "answer.tiff", ".png", ".html")
    is_one_sentence(command("eval", "eval/world", "--out", "report.csv"), "report.csv", ".json, .md, .txt")
    is_one_sentence(command("eval", "eval/world", "--detail", "long"), "'long'", "short, headlines, full")


@pytest.mark.parametrize(("option", "value"), [("--max-new-tokens", "0"), ("--temperature", "-1")])
def test_an_option_out_of_range(command, photo_file, option, value):
    done = command("ask", photo_file, "What?", option, value)
    is_one_sentence(done, option, "greater than or equal to", "mglmm --help")


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
    is_one_sentence(command("ask", "world:1@64", "What is this?", "--model", folder), folder, *words)


@pytest.mark.parametrize("name", ["owner/modle", "runs/three steps", "mine/-", "a/" + "b" * 120])
def test_a_mistyped_folder_is_no_hub_name(command, name):
    started = time.monotonic()
    done = command("ask", "world:1@64", "What is this?", "--model", name)
    is_one_sentence(done, f"no checkpoint at {name}, neither a folder nor reachable on the hub", "give a folder")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", [".", ""])
def test_this_folder_is_no_checkpoint(command, name):
    is_one_sentence(command("ask", "world:1@64", "What is this?", "--model", name), "config.json", "mglmm train")


def test_this_folder_is_a_checkpoint(command, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    asked = ["ask", "world:1@64", "What is this?", "--max-new-tokens", "1", "--json"]
    assert command(*asked, "--model", ".").code == 0


# ---- configs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=3", ["'sed'", "did you mean 'seed'"]),
        ("stages.words.lerning_rate=1", ["stages.0.lerning_rate", "did you mean 'learning_rate'"]),
        ("stages.0.losses.dise=1", ["stages.0.losses.dise", "did you mean 'dice'"]),
        ("stages.0.sources.world.sise=64", ["'sise'", "did you mean 'size'"]),
        ("stages.0.train.projektor=1", ["projektor", "projector"]),
        ("stages.0.max_steps=many", ["stages.0.max_steps", "'many'"]),
        ("stages.9.max_steps=1", ["'9'", "words"]),
        ("stages.0.losses.ce=-1", ["stages.0.losses.ce", "greater than or equal to 0", "-1"]),
        ("stages.0.losses.distill=-0.5", ["stages.0.losses.distill", "-0.5"]),
        ("stages.0.train.projector=-1", ["stages.0.train.projector", "greater than 0"]),
        ("stages.0.losses={quality: 1, mask_size: original}", ["stages.0.losses", "set quality: 0"]),
        ("stages.0.max_length=0", ["stages.0.max_length", "greater than 0"]),
        ("stages.0.sources.world.turns=many", ["turns", "'world'", "'many'", "valid integer"]),
        ("stages.0.sources.world.tasks=[vqa]", ["tasks", "['vqa']", "dictionary"]),
        ("stages.0.sources.world.size=null", ["size", "'world'", "None"]),
        ("max_steps", ["'max_steps'", "key=value"]),
    ],
)
def test_a_config_with_a_mistake(command, recipe, override, words):
    is_one_sentence(command("train", recipe, override), *words)


@pytest.mark.parametrize(
    ("missing", "override", "words"),
    [
        ("albumentations", "stages.0.augment={flip: 0.5}", ["pip install 'mglmm[train]'", "augment: null"]),
        ("wandb", "report_to=wandb", ["pip install 'mglmm[train]'", "report_to"]),
    ],
)
def test_an_extra_that_is_not_installed(command, recipe, monkeypatch, missing, override, words):
    monkeypatch.setitem(sys.modules, missing, None)
    is_one_sentence(command("train", recipe, override), missing, *words)


def test_a_config_that_is_not_there_or_not_readable(command, tmp_path):
    is_one_sentence(command("train", "train/wrold"), "train/wrold", "did you mean configs/train/world.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1,")
    is_one_sentence(command("cfg", path), path, "YAML")
    path.write_text("seed: 1\nstages:\n- name: a\n  max_steps: 1\n  max_steps: 2\n")
    is_one_sentence(command("cfg", path), path, "the key 'max_steps' is there twice, again in line 5", "keep one")
    is_one_sentence(
        command("cfg", "train/world", "lora={rank: 1, rank: 2}"), "override", "the key 'rank' is there twice"
    )
    path.write_text("base: &b {a: 1}\nkind: wold\nmerged: {<<: *b, a: 2}")
    is_one_sentence(command("eval", path), "'wold'")  # merging is no repetition
    path.write_text("kind: wold")
    is_one_sentence(command("eval", path), "'wold'", "did you mean 'world'")
    path.write_text("kind: parts\nsource: {type: coco, json_path: '${NOT_SET_ANYWHERE}/a.json'}")
    is_one_sentence(command("eval", path), "NOT_SET_ANYWHERE", "export", ":-default")


# ---- data


@pytest.fixture
def coco(tmp_path, recipe):
    """Write a COCO-style json of one image and give the arguments that train on it, changed by `change(data)`."""

    def arguments(change):
        photo().save(tmp_path / "a.png")
        box = [2, 2, 20, 2, 20, 20, 2, 20]
        data = {
            "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
            "categories": [{"id": 1, "name": "dog"}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": [box], "iscrowd": 0}],
        }
        change(data)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data))
        source = yaml.safe_dump({"photos": {"type": "coco", "json_path": str(path)}}, default_flow_style=True)
        return ["train", recipe, f"stages.words.sources={source}"]

    return arguments


def set_segmentation(value):
    return lambda data: data["annotations"][0].update(segmentation=value)


def set_file(name):
    return lambda data: data["images"][0].update(file_name=name)


BAD_DATA = {
    "missing image": (set_file("b.png"), ["instances.json", "image 1 is missing", "b.png", "set image_root"]),
    "four numbers": (set_segmentation([[1, 2, 3, 4]]), ["instances.json", "annotation 7", "4 numbers", "6 or more"]),
    "other RLE": (
        set_segmentation(dict(masks.encode(np.ones((5, 5), bool)))),
        ["annotation 7", "[5, 5]", "[30, 40]", "correct or remove it"],
    ),
    "no json": (lambda data: data.pop("annotations"), ["instances.json", "annotations"]),
    "counts of null": (set_segmentation({"size": [30, 40], "counts": None}), ["annotation 7", "its RLE has no counts"]),
    "no counts": (set_segmentation({"size": [30, 40]}), ["annotation 7", "its RLE has no counts"]),
    "size of null": (
        set_segmentation({"size": None, "counts": "0"}),
        ["annotation 7", "size is None", "[height, width]"],
    ),
    "no category name": (lambda data: data["categories"][0].pop("name"), ["category 1", "has no 'name'"]),
    "category name of null": (
        lambda data: data["categories"][0].update(name=None),
        ["category 1", "'name' is None", "expected text"],
    ),
    "no word": (lambda data: data["categories"][0].update(name="_"), ["category 1 is called '_'", "rename or skip"]),
    "a list for an id": (lambda data: data["annotations"][0].update(category_id=[1]), ["annotation 7", "[1]"]),
    "outside": (
        set_segmentation([[50, 2, 60, 2, 60, 9]]),
        ["annotation 7", "outside the image", "remove it"],
    ),
    "an image that is none": (
        lambda data: data["images"].append(None),
        ["instances.json: image at byte", "is None", "expected an object"],
    ),
    "a category that is none": (
        lambda data: data["categories"].insert(0, "dog"),
        ["category at byte", "is 'dog'", "expected an object"],
    ),
    "an annotation that is none": (
        lambda data: data["annotations"].append([1]),
        ["annotation at byte", "is [1]", "expected an object"],
    ),
    "an image without a name": (set_file(None), ["image 1", "'file_name' is None", "expected text"]),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_with_a_mistake(command, coco, kind):
    change, words = BAD_DATA[kind]
    is_one_sentence(command(*coco(change)), *words)


BAD_MASKS = {
    "NaN": (set_segmentation([[2, 2, 20, float("nan"), 20, 20]]), ["id 7", "it holds NaN, which is no number"]),
    "far away": (
        set_segmentation([[2, 2, 20, 1e300, 20, 20]]),
        ["annotation 7", "a polygon holds 1e+300, far outside"],
    ),
    "words": (set_segmentation([[2, 2, "20", 2, 20, 20]]), ["annotation 7", "holds '20' (str); expected numbers"]),
    "short RLE": (set_segmentation({"size": [30, 40], "counts": "0:"}), ["annotation 7", "do not fill", "(30, 40)"]),
    "cut RLE": (set_segmentation({"size": [30, 40], "counts": "`"}), ["annotation 7", "do not fill", "(30, 40)"]),
    "empty RLE": (set_segmentation({"size": [30, 40], "counts": ""}), ["counts"]),
    "plain RLE": (set_segmentation({"size": [30, 40], "counts": [0, 10]}), ["counts sum to 10", "1200 pixels"]),
    "negative RLE": (
        set_segmentation({"size": [30, 40], "counts": [1201, -1]}),
        ["annotation 7", "whole numbers from 0"],
    ),
}
"""What is found when the mask is drawn."""


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_mask_that_cannot_be_drawn(command, coco, kind):
    change, words = BAD_MASKS[kind]
    is_one_sentence(last_line(command(*coco(change))), "instances.json: annotation", *words, "correct or remove it")


def test_a_mistake_in_a_later_stage_is_said_before_the_first_begins(command, recipe, tmp_path):
    plan = yaml.safe_load(recipe.read_text())
    later = plan["stages"][0] | {"name": "later", "sources": {"photos": {"type": "coco", "json_path": "none.json"}}}
    recipe.write_text(yaml.safe_dump(plan | {"stages": [*plan["stages"], later]}))
    is_one_sentence(command("train", recipe), "none.json does not exist")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_only_the_pixels_tell_is_said_by_a_worker_too(command, coco, tmp_path, workers):
    arguments = [*coco(lambda data: data["images"][0].update(height=31)), f"dataloader_num_workers={workers}"]
    is_one_sentence(last_line(command(*arguments)), tmp_path / "a.png", "30", "31")
    make_truncated(tmp_path / "a.png")
    is_one_sentence(last_line(command(*arguments)), tmp_path / "a.png", "truncated")


def last_line(done):
    """Training says where its run is before it begins; the mistake is the last line."""
    assert "Traceback" not in done.err
    return type(done)(done.code, done.out, done.err.splitlines()[-1])


def test_a_run_goes_on_with_as_many_processes(command, recipe, tmp_path):
    assert command("train", recipe).code == 0
    path = tmp_path / "runs" / "three_steps" / "last" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state["num_processes"] == 1
    torch.save({**state, "num_processes": 2}, path)
    is_one_sentence(command("train", recipe), "a run of 2 processes, this is one of 1", "torchrun --nproc_per_node 2")


def test_conversations_of_which_none_fits(command, recipe):
    done = command("train", recipe, "stages.0.max_length=20")
    is_one_sentence(last_line(done), "sample 'world", "none of 1 conversations fits into max_length 20", "raise it")


# ---- a full disk


@pytest.fixture
def small_files():
    """Let no file of this process grow beyond so many bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["weights", "state"])
def test_a_full_disk_leaves_the_old_checkpoint_intact(command, recipe, tmp_path, monkeypatch, small_files, what):
    from mglmm.train.loop import Trainer

    whole = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: whole(self, until=1))
        assert command("train", recipe).code == 0
    run = tmp_path / "runs" / "three_steps"
    before = contents(run / "last")
    sizes = {path.name: len(content) for path, content in before.items()}
    weights, state = sizes["model.safetensors"], sizes["state.pt"]
    assert state > 1.2 * weights > 1.2 * sizes["tokenizer.json"], "the limits below hit another file"
    small_files(int(0.9 * weights) if what == "weights" else int(0.9 * state))
    done = command("train", recipe)
    small_files(resource.RLIM_INFINITY)
    is_one_sentence(last_line(done), run / "last", "the checkpoint that was there is intact", "free some space")
    assert ("state.pt" in done.err) == (what == "state")
    assert contents(run / "last") == before
    assert not list(run.glob(".*"))
    assert command("train", recipe).code == 0  # with space again, the run goes on
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_full_disk_leaves_the_old_picture_intact(command, photo_file, tiny_checkpoint, tmp_path, small_files):
    asked = ["ask", photo_file, "What is this?", "--model", tiny_checkpoint, "--max-new-tokens", "2"]
    assert command(*asked).code == 0
    before = (tmp_path / "answer.png").read_bytes()
    small_files(500)
    done = command(*asked)
    small_files(resource.RLIM_INFINITY)
    is_one_sentence(done, "answer.png", "the file that was there is intact", "free some space")
    assert (tmp_path / "answer.png").read_bytes() == before
    assert not list(tmp_path.glob(".answer*"))


# ---- accepted, and said


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(path, exif=exif)


@pytest.mark.parametrize("how", ["--json", "--stream"])
def test_an_answer_that_fills_the_context_is_cut_and_says_so(command, photo_file, tiny_checkpoint, tmp_path, how):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    llava = json.loads((folder / "config.json").read_text())["llava_config"]
    llava["text_config"]["max_position_embeddings"] = 60
    config_with(llava_config=llava)(folder)
    drawn = ["--max-new-tokens", "90", "--temperature", "5", "--no-grammar", how, "--out", "a.json"]
    assert command("ask", photo_file, "What is this?", "--model", folder, *drawn).code == 0
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer["truncated"] and "the answer ends where this model's context of 60 tokens does" in answer["notes"]


def gray16(path):
    Image.fromarray(np.full((30, 40), 30000, np.uint16)).save(path)


ACCEPTED = {
    "16 bits": (".png", gray16, "16 bits a channel"),
    "CMYK": (".jpg", lambda p: photo().convert("CMYK").save(p), "CMYK"),
    "alpha": (".png", lambda p: Image.new("RGBA", (40, 30), (9, 9, 9, 90)).save(p), "over white"),
    "animated": (
        ".gif",
        lambda p: photo().save(p, save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "2 frames",
    ),
    "rotated": (".jpg", rotated, "EXIF orientation (6)"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_was_done_to_an_image_is_said(command, tmp_path, tiny_checkpoint, kind):
    suffix, make, words = ACCEPTED[kind]
    path = tmp_path / f"photo{suffix}"
    make(path)
    asked = ["ask", path, "What is this?", "--model", tiny_checkpoint, "--max-new-tokens", "2"]
    notes = json.loads(command(*asked, "--json").out)["notes"]
    assert any(words in note and str(path) in note for note in notes)
    shown = command(*asked)
    assert shown.code == 0 and words in shown.out


def test_a_file_whose_name_is_not_utf_8(command, tmp_path, tiny_checkpoint):
    path = tmp_path / os.fsdecode("café.png".encode("latin-1"))
    gray16(path)
    asked = ["--model", tiny_checkpoint, "--max-new-tokens", "2"]
    (note,) = json.loads(command("ask", path, "What is this?", *asked, "--json").out)["notes"][-1:]
    assert "caf\ufffd.png has 16 bits" in note
    assert command("ask", path, "What is this?", *asked).code == 0
    done = command("ask", path, "What is this?", *asked, "--out", path.with_suffix(".html"))
    assert done.code == 0 and "saved" in done.out and path.with_suffix(".html").stat().st_size
    is_one_sentence(command("ask", path.with_suffix(".jpg"), "What is this?"), "caf\ufffd.jpg does not exist")
    is_one_sentence(command("cfg", path.with_suffix(".yaml")), "no config at", "caf?.yaml")


def test_a_marker_in_the_prompt_is_text_and_said(command, photo_file, tiny_checkpoint):
    markers = (*MARKERS, "<s>", "</s>")
    prompt = f"Is {' '.join(markers)} text?"
    answer = json.loads(
        command("ask", photo_file, prompt, "--model", tiny_checkpoint, "--max-new-tokens", "2", "--json").out
    )
    assert answer["prompt"] == prompt
    assert any("plain text" in note and all(marker in note for marker in markers) for note in answer["notes"])
