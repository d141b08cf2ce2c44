"""Mistakes of a user, through the command line: exit code 2, one sentence that names it and the way out, no traceback.

What is accepted all the same is said in the answer's notes.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mglmm.tokens import MARKERS

# ---- images


def png_header(width, height):
    """A PNG that ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 99) + b"IDAT"


def photo(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


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
    command("ask", path, "What is this?").is_one_sentence(path, *words)


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
    done.is_one_sentence("the prompt is empty", "ask something")


@pytest.mark.parametrize("how", [[], ["--stream"]], ids=["at once", "streamed"])
def test_a_prompt_that_is_not_utf_8(command, photo_file, tiny_checkpoint, how):
    prompt = os.fsdecode("Is it a café?".encode("latin-1"))
    done = command("ask", photo_file, prompt, "--model", tiny_checkpoint, *how)
    done.is_one_sentence("is not text in UTF-8", "caf\\udce9")


@pytest.mark.parametrize("how", [[], ["--stream"]], ids=["at once", "streamed"])
def test_a_question_longer_than_the_context(command, photo_file, tiny_checkpoint, how):
    done = command("ask", photo_file, "Is it a dog? " * 1000, "--model", tiny_checkpoint, *how)
    done.is_one_sentence("tokens long", "room for 2031 beside the image", "ask a shorter one")


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
    command("ask", photo_file, "What is this?", "--region", region).is_one_sentence(*words)


def test_a_region_that_was_not_given(command, photo_file, tiny_checkpoint):
    done = command("ask", photo_file, "What is [region 1]?", "--region", "point:3,3", "--model", tiny_checkpoint)
    done.is_one_sentence("[region 1]", "1 region(s) are given, from 0")


@pytest.mark.parametrize("scene", ["world:", "world:seven", "world:7@9", "world:7@9999", "world:-1", "world:25000000"])
def test_a_scene_that_is_none(command, scene):
    command("ask", scene, "What is this?").is_one_sentence(scene, "world:7@384")


def test_a_file_that_cannot_be_written_is_said_before_the_work(command, photo_file):
    done = command("ask", photo_file, "What is this?", "--out", "answer.tiff", "--model", "/nowhere")
    done.is_one_sentence("answer.tiff", ".png", ".html")
    command("eval", "eval/world", "--out", "report.csv").is_one_sentence("report.csv", ".json, .md, .txt")
    command("eval", "eval/world", "--detail", "long").is_one_sentence("'long'", "short, headlines, full")


@pytest.mark.parametrize(("option", "value"), [("--max-new-tokens", "0"), ("--temperature", "-1")])
def test_an_option_out_of_range(command, photo_file, option, value):
    done = command("ask", photo_file, "What?", option, value)
    done.is_one_sentence(option, "greater than or equal to", "mglmm --help")


# ---- accepted, and said


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(path, exif=exif)


@pytest.mark.parametrize("how", ["--json", "--stream"])
def test_an_answer_that_fills_the_context_is_cut_and_says_so(command, photo_file, tiny_checkpoint, tmp_path, how):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["llava_config"]["text_config"]["max_position_embeddings"] = 60
    (folder / "config.json").write_text(json.dumps(config))
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
    command("ask", path.with_suffix(".jpg"), "What is this?").is_one_sentence("caf\ufffd.jpg does not exist")
    command("cfg", path.with_suffix(".yaml")).is_one_sentence("no config at", "caf?.yaml")


def test_a_marker_in_the_prompt_is_text_and_said(command, photo_file, tiny_checkpoint):
    markers = (*MARKERS, "<s>", "</s>")
    prompt = f"Is {' '.join(markers)} text?"
    answer = json.loads(
        command("ask", photo_file, prompt, "--model", tiny_checkpoint, "--max-new-tokens", "2", "--json").out
    )
    assert answer["prompt"] == prompt
    assert any("plain text" in note and all(marker in note for marker in markers) for note in answer["notes"])
