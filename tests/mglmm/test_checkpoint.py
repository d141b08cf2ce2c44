"""Checkpoints: what does not fit is named, and what was there survives a failed save."""

import errno
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mglmm import folders
from mglmm.build import ModelConfig, build
from mglmm.checkpoint import load_checkpoint, load_state, save_checkpoint
from mglmm.folders import replaced_folder

SHIP = Path(__file__).resolve().parents[2] / "tools" / "ship.py"


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, free to break."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def message(folder):
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text
    return text


def test_round_trip_is_exact(tiny, tiny_checkpoint):
    model, processor = load_checkpoint(tiny_checkpoint)
    assert all(torch.equal(value, tiny[0].state_dict()[key]) for key, value in model.state_dict().items())
    assert model.config.tokenizer_hash == tiny[0].config.tokenizer_hash and processor.ids == tiny[1].ids
    assert not model.training


def test_half_saves_half(tiny, tiny_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "half", *tiny, half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", tiny_checkpoint)]
    assert sizes[0] < 0.6 * sizes[1]
    model, _ = load_checkpoint(tmp_path / "half")
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tiny[0].state_dict()[key].half().float())
    assert next(tiny[0].parameters()).dtype == torch.float32


def test_missing_and_extra_keys_are_listed(folder):
    def change(state):
        state["stray.weight"] = torch.zeros(2)
        del state["seg_projection.0.bias"]

    change_weights(folder, change)
    text = message(folder)
    assert "2 keys do not fit" in text and "missing seg_projection.0.bias" in text and "extra stray.weight" in text


def test_other_shapes_are_listed_with_both(folder):
    change_weights(folder, lambda state: state.update({"seg_projection.2.bias": torch.zeros(7)}))
    assert "seg_projection.2.bias: (7,) in the file, (32,) in the model" in message(folder)


def test_many_wrong_keys_are_counted(folder):
    change_weights(folder, lambda state: [state.pop(key) for key in sorted(state)[:20]])
    text = message(folder)
    assert "20 keys do not fit" in text and "and 12 more" in text


def test_other_version(folder):
    change_config(folder, format_version=99, something_new=1)
    assert "format_version is 99, this program reads 1; use the mglmm release that wrote it" in message(folder)


def test_unknown_key_names_the_near_miss(folder):
    change_config(folder, region_gird=4)
    assert "unknown key 'region_gird'" in message(folder) and "did you mean 'region_grid'" in message(folder)


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    assert "damaged or cut short" in message(folder)


def test_another_tokenizer(folder):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    vocab = data["model"]["vocab"]
    first, second = list(vocab)[400:402]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(data))
    assert "the tokenizer beside the weights is not the one they were trained with" in message(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_folder(folder, name):
    (folder / name).unlink()
    assert "holds no" in message(folder)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_no_such_checkpoint(path):
    with pytest.raises(ValueError, match=f"no checkpoint at {path}; give a folder, a hub name"):
        load_checkpoint(path)


# Replacing a folder in one step


@pytest.fixture
def old(tmp_path):
    target = tmp_path / "last"
    target.mkdir()
    (target / "a").write_text("old")
    return target


def test_new_takes_the_place_of_old(old):
    with replaced_folder(old) as fresh:
        (fresh / "b").write_text("new")
        assert (old / "a").read_text() == "old"
    assert [path.name for path in old.iterdir()] == ["b"]
    assert [path.name for path in old.parent.iterdir()] == ["last"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")],
    ids=["disk", "torch"],
)
def test_full_disk_keeps_the_old(old, error):
    with pytest.raises(OSError, match="the checkpoint that was there is intact; free some space"), replaced_folder(old):
        raise error
    assert (old / "a").read_text() == "old" and len(list(old.parent.iterdir())) == 1


def test_full_disk_while_saving_a_model(tiny, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(tiny[1], "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left.*intact"):
        save_checkpoint(folder, *tiny)
    assert (folder / "model.safetensors").read_bytes() == before
    load_checkpoint(folder)


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_failing_rename_keeps_the_old(old, monkeypatch):
    replace = folders.os.replace

    def second_fails(source, target):
        if source.name == ".last.new":
            full_disk()
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", second_fails)
    with pytest.raises(OSError, match="intact"), replaced_folder(old) as fresh:
        (fresh / "b").write_text("new")
    assert (old / "a").read_text() == "old"


def test_other_errors_pass_as_they_are(old):
    with pytest.raises(RuntimeError, match="shapes differ"), replaced_folder(old):
        raise RuntimeError("shapes differ")
    assert (old / "a").read_text() == "old"


def test_first_save_that_fails_says_nothing_of_an_old_one(tmp_path):
    with pytest.raises(OSError) as error, replaced_folder(tmp_path / "deep" / "last"):
        full_disk()
    assert "intact" not in str(error.value) and not (tmp_path / "deep" / "last").exists()


def test_cut_between_renames_is_recovered(folder):
    cut = folder.with_name(".model.old")
    folder.rename(cut)
    load_checkpoint(folder)
    assert not cut.exists()


def test_cut_after_renames_does_not_block_the_next_save(old):
    shutil.copytree(old, old.with_name(".last.old"))
    shutil.copytree(old, old.with_name(".last.new"))
    with replaced_folder(old) as fresh:
        assert not list(fresh.iterdir())
        (fresh / "b").write_text("new")
    assert [path.name for path in old.parent.iterdir()] == ["last"] and (old / "b").exists()


# A run's state


@pytest.mark.parametrize("content", [b"", b"not a zip"])
def test_damaged_state(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a run's state \(.*\)"):
        load_state(path)


def test_state_never_runs_code(tmp_path):
    torch.save({"stage": print}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="cannot be read as a run's state"):
        load_state(tmp_path / "state.pt")


def test_what_ships_may_be_the_mean_of_two_rounds(tiny_sizes, tmp_path, monkeypatch):
    """Of every weight, those that stand under two names (tied embeddings) included."""
    models = []
    for seed in (1, 2):
        model, processor = build(ModelConfig(**tiny_sizes), seed=seed)
        save_checkpoint(tmp_path / str(seed), model, processor)
        models.append(model.state_dict())
    wider = {**tiny_sizes, "language": {**tiny_sizes["language"], "intermediate_size": 80}}
    save_checkpoint(tmp_path / "wider", *build(ModelConfig(**wider)))
    arguments = ["ship.py", str(tmp_path / "1"), "--out", str(tmp_path / "out"), "--average"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "2")])
    for share in (0.5, 0.25):
        runpy.run_path(str(SHIP), run_name="__main__")
        for key, value in load_checkpoint(tmp_path / "out")[0].state_dict().items():
            mean = share * models[0][key] + (1 - share) * models[1][key]
            assert torch.allclose(value, mean, rtol=2e-3, atol=1e-4), key
        monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "2"), "--share", "0.25"])
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "2"), "--share", "1"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SHIP), run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "wider")])
    with pytest.raises(ValueError, match=r"of two models: llava\.\S*mlp\S* differs; average rounds of one model"):
        runpy.run_path(str(SHIP), run_name="__main__")
