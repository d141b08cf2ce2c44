"""Writing that fails in the middle leaves what was there as it was, and says so."""

import json

import pytest

resource = pytest.importorskip("resource")  # to make files small, which a full disk is tried with


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
    done.last_line().is_one_sentence(run / "last", "the checkpoint that was there is intact", "free some space")
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
    done.is_one_sentence("answer.png", "the file that was there is intact", "free some space")
    assert (tmp_path / "answer.png").read_bytes() == before
    assert not list(tmp_path.glob(".answer*"))
