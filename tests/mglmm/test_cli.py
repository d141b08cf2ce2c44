"""The verbs, on a model with random weights: what they print, what they write, how they end."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from mglmm import checks, console, demo, given
from mglmm.answer import Answer, Instance, Phrase
from mglmm.palette import palette
from mglmm_data.world.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("ask", "demo", "train", "eval", "convert", "doctor", "merge", "check-data", "export", "checks", "cfg")
BRIEF = ("--max-new-tokens", "3")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def answer():
    """ "A cat and a mat." with two masks for the cat and a box for the mat."""
    text, mask = "A cat and a mat.", np.zeros((20, 20), bool)
    mask[:10] = True
    cat = Phrase("A cat", (0, 5), (Instance(mask, None, 0.5), Instance(~mask, None, 0.7)))
    mat = Phrase("a mat", (10, 15), (Instance(None, (1.0, 2.0, 3.0, 4.0), 0.9),))
    return Answer(text, (cat, mat), np.zeros((20, 20, 3), np.uint8), notes=("first",), truncated=True)


# ---- the whole


def test_help_names_every_verb(command):
    done = command("--help")
    assert done.code == 0 and all(verb in done.out for verb in VERBS)
    assert command().out == done.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(command, verb):
    assert command(verb, "--help").code == 0


def test_help_does_not_swallow_brackets(command):
    assert "[region 0]" in command("ask", "--help").out


def test_version(command):
    assert re.fullmatch(r"mglmm \d+\.\d+\.\d+", command("--version").out.strip())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["aks"], "Did you mean 'ask'?"), (["ask"], "Missing argument"), (["ask", "a.png", "--modle", "x"], "--model")],
)
def test_a_slip_of_the_keyboard(command, arguments, words):
    done = command(*arguments)
    assert done.code == 2 and done.err.count("\n") == 1 and words in done.err


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("gone")])
def test_a_bug_keeps_its_traceback(command, monkeypatch, error):
    def broken(_text):
        raise error

    monkeypatch.setattr(given, "picture", broken)
    with pytest.raises(type(error)):
        command("ask", "photo.png", "What?")


def test_an_error_of_another_library_is_a_bug(command, monkeypatch):
    monkeypatch.setattr(given, "picture", lambda _text: np.zeros(3).reshape(2, 2))
    with pytest.raises(ValueError, match="reshape"):
        command("ask", "photo.png", "What?")


def test_debug_shows_the_traceback_of_a_mistake(command):
    for arguments in (["--debug", "ask", "no.png", "What?"], ["ask", "no.png", "What?", "--debug"]):
        with pytest.raises(ValueError, match="no.png does not exist"):
            command(*arguments)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n   lines"), "two lines"),
        (OSError(28, "No space left on device"), "No space left on device; free some space or choose another folder"),
        (PermissionError(13, "Permission denied", "a.png"), "a.png: Permission denied; check the permissions"),
        (FileNotFoundError(2, "No such file or directory", "b"), "b: No such file or directory"),
        (OSError("could not write"), "could not write"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_mistake_is_one_line(error, said):
    assert console.sentence(error) == said


def test_a_reader_that_has_gone_is_no_mistake():
    words = [sys.executable, "-m", "mglmm.cli", "cfg", "train/world"]
    shell = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shell.stdout is not None and shell.stderr is not None
    shell.stdout.close()
    assert b"Traceback" not in shell.stderr.read()
    shell.stderr.close()
    shell.wait()


@pytest.mark.parametrize("verb", ["train", "eval", "demo"])
def test_a_launcher_is_its_verb(verb):
    done = subprocess.run([sys.executable, ROOT / "tools" / f"{verb}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and f"mglmm {verb}" in done.stdout


# ---- ask


def test_ask_prints_and_saves(command, photo, tiny_checkpoint, tmp_path):
    done = command("ask", photo, "What is this?", "--model", tiny_checkpoint, *BRIEF)
    assert done.code == 0 and not done.err
    assert "saved answer.png" in done.out and "note: the answer was cut off" in done.out
    assert Image.open(tmp_path / "answer.png").width >= 40


def test_ask_saves_what_is_wanted(command, photo, tiny_checkpoint, tmp_path):
    wanted = ["a.png", "deep/er/b.html", "c.json"]
    flags = [part for name in wanted for part in ("--out", name)]
    assert command("ask", photo, "What is this?", "--model", tiny_checkpoint, *BRIEF, *flags).code == 0
    assert all((tmp_path / name).stat().st_size for name in wanted)
    assert not (tmp_path / "answer.png").exists()
    assert json.loads((tmp_path / "c.json").read_text())["prompt"] == "What is this?"


def test_ask_as_json_prints_nothing_else(command, photo, tiny_checkpoint, tmp_path):
    done = command("ask", photo, "--model", tiny_checkpoint, *BRIEF, "--json")
    data = json.loads(done.out)
    assert data["prompt"] == "Describe the image and segment everything." and not done.err
    assert not (tmp_path / "answer.png").exists()


def test_ask_takes_every_kind_of_region(command, photo, tiny_checkpoint):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save("mask.png")
    forms = ["box:1,2,30.5,20", "point:3,4", "scribble:1,1;20,5;9,9", "mask:mask.png"]
    flags = [part for form in forms for part in ("--region", form)]
    prompt = "Is [region 1] in [region 0]?"
    done = command("ask", photo, prompt, "--model", tiny_checkpoint, *flags, *BRIEF, "--json", "--out", "a.html")
    assert done.code == 0
    assert json.loads(done.out)["prompt"] == prompt


@pytest.mark.parametrize(
    ("form", "kind", "area"), [("box:0,0,10,10", "box", 100), ("mask:mask.png", "mask", 16), ("point:9,9", "point", 21)]
)
def test_a_region_covers_its_pixels(tmp_path, monkeypatch, form, kind, area):
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save("mask.png")
    region = given.region(form, (30, 40))
    assert region.kind == kind and region.mask.sum() == pytest.approx(area, rel=0.5)


def test_a_scene_of_the_world_stands_for_a_photo(command, tiny_checkpoint):
    first, again, other = (given.picture(f"world:{seed}@64").pixels for seed in (7, 7, 8))
    assert first.shape == (64, 64, 3) and (first == again).all() and (first != other).any()
    assert given.picture("world:7").size == (given.WORLD_SIZE, given.WORLD_SIZE)
    assert command("ask", "world:7@64", "--model", tiny_checkpoint, *BRIEF).code == 0


def test_a_stream_says_what_the_answer_says(command, photo, tiny_checkpoint):
    drawn = ["--temperature", "5", "--no-grammar", "--max-new-tokens", "20"]
    asked = ["ask", photo, "What is this?", "--model", tiny_checkpoint, *drawn]
    text = json.loads(command(*asked, "--json").out)["text"]
    assert text.strip()
    streamed = command(*asked, "--stream")
    assert streamed.code == 0 and streamed.out.startswith(text)


def test_phrases_wear_the_colours_of_the_picture(answer):
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    console.show(screen, answer)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for phrase, color in zip(answer.phrases, palette(2), strict=True):
        code = "38;2;" + ";".join(str(value) for value in color)
        assert re.search(rf"\x1b\[[\d;]*{code}m{phrase.text}\x1b", shown)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert plain[0] == answer.text
    assert " ".join(plain[1].split()) == "1 A cat 2 masks on 100.0% of the image, score 0.60"
    assert " ".join(plain[2].split()) == "2 a mat box 1, 2, 3, 4, score 0.90"
    assert plain[3:] == ["note: the answer was cut off at the token limit", "note: first"]


def test_a_stream_on_a_terminal_ends_with_the_coloured_text(answer):
    from mglmm.grounder import StreamEvent

    events = [StreamEvent(text="A cat"), StreamEvent(phrase=answer.phrases[0]), StreamEvent(text=" and a mat.")]
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    assert console.show_stream(screen, [*events, StreamEvent(answer=answer)]) is answer
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    red, green, blue = palette(1)[0]
    assert f"38;2;{red};{green};{blue}mA cat" in shown and " and a mat." in shown


def test_the_no_target_threshold_is_an_option(command):
    asked = ["ask", "world:10000003", "Segment the purple boat.", "--json", "--no-target-threshold"]
    phrases = {value: json.loads(command(*asked, value).out)["phrases"] for value in ("0.001", "0.999")}
    assert not phrases["0.001"] and phrases["0.999"]
    refused = command(*asked, "2")
    assert refused.code == 2 and "--no-target-threshold" in refused.err


# ---- demo


def test_demo_writes_its_answers_beside_the_truth(command, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "QUESTIONS", (demo.QUESTIONS[3],))  # drawing all of them takes seconds
    monkeypatch.setattr(demo, "SIZE", 96)
    done = command("demo", "--model", tiny_checkpoint, "--out", "shown")
    names = {path.name for path in (tmp_path / "shown").iterdir()}
    assert done.code == 0
    pictures = {"01-fine.png", "02-region.png", "03-vqa.png", "04-box.png", "answers.png", "demo.png"}
    assert names == {*pictures, "index.html"}
    assert re.search(r"\d of 4 right, in \d+ seconds", done.out)
    assert "shown/demo.png" in done.out and "shown/index.html" in done.out
    assert (tmp_path / "shown" / "index.html").read_text().count("the truth") == 4


def test_demo_asks_every_kind_of_question_and_knows_the_truth():
    shown = demo.answer_all(lambda queries: [Answer("", (), query.image) for query in queries])
    asked = {each.item.conversation.task for each in shown}
    assert asked == {"panoptic", "fine", "referring", "absent", "several", "region", "reasoning", "vqa", "box"}
    for each in shown:
        silence_is_right = each.item.conversation.task == "absent"
        assert each.is_right == silence_is_right and each.verdict.startswith("right" if silence_is_right else "wrong")
        assert demo.judged(each.item, each.truth).is_right
    assert len({id(each.item.sample.image) for each in shown}) == len(demo.QUESTIONS)


def test_the_gallery_has_every_task_and_knows_the_truth(monkeypatch):
    monkeypatch.setattr(demo, "SIZE", 96)
    items = demo.gallery()
    assert len(items) == 24 and {item.conversation.task for item in items} == set(TASKS)
    assert len({item.sample.id for item in items}) == 24, "no scene twice"
    assert all(demo.judged(item, demo.gold_answer(item)).is_right for item in items)


# ---- train, then use what came of it


def test_train_then_ask(command, recipe, tmp_path):
    done = command("train", recipe, "stages.words.max_steps=2")
    run = tmp_path / "runs" / "three_steps"
    assert done.code == 0 and f"run {run}\n" in done.err
    assert "mglmm ask PHOTO" in done.err and f"--model {run / 'last' / 'model'}" in done.err
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert "is complete" in command("train", recipe, "stages.words.max_steps=2").err
    assert command("ask", "world:7@64", "--model", run, *BRIEF).code == 0
    other = command("train", recipe, "stages.words.max_steps=3")
    assert other.code == 2 and "stages.0.max_steps" in other.err and "output_dir" in other.err


def test_an_interrupted_run_goes_on(command, recipe, monkeypatch):
    from mglmm.train.loop import Trainer

    whole = Trainer.run

    def stop(self):
        whole(self, until=1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        done = command("train", recipe)
    assert done.code == 130 and "the same command goes on" in done.err
    assert "goes on from stage words, step 1" in command("train", recipe).err


# ---- checks, cfg


def test_checks_name_versions_device_extras_and_places(command):
    done = command("checks")
    assert done.code == 0
    for name in ("python", "mglmm", *checks.CORE, "cpu", "cuda", "MGLMM_RUNS", "MGLMM_SHARED"):
        assert re.search(rf"^.{{20}}{re.escape(name)} ", done.out, re.MULTILINE), name
    for packages in checks.EXTRAS.values():
        assert all(f"({purpose})" in done.out for purpose in packages.values())


def test_checks_know_the_extras_of_the_project():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in checks.EXTRAS.items():
        assert set(packages) == {re.split(r"[^\w-]", line)[0] for line in extras[extra]}


def test_checks_know_the_model_in_the_package(tiny, tiny_checkpoint, tmp_path):
    count = sum(parameter.numel() for parameter in tiny[0].parameters()) / 1e6
    assert f"{count:.2f} M" in checks.bundled(tiny_checkpoint)
    assert "absent" in checks.bundled(tmp_path) and "mglmm train" in checks.bundled(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_cfg_fills_in_every_config_of_the_project(command, path):
    done = command("cfg", path.relative_to(ROOT))
    assert done.code == 0, done.err
    written, filled = yaml.safe_load(path.read_text()), yaml.safe_load(done.out)
    assert set(written) <= set(filled)


def test_cfg_applies_overrides_and_the_environment(command, tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("stages: [{name: a, max_steps: 1, sources: {x: {type: folder, root: '${HERE:-there}/x$1'}}}]")
    assert "root: there/x$1" in command("cfg", path).out
    monkeypatch.setenv("HERE", "elsewhere")
    done = command("cfg", path, "stages.a.max_steps=7")
    assert "root: elsewhere/x$1" in done.out and "max_steps: 7" in done.out
