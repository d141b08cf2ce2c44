"""A model of a few thousand parameters with random weights: everything runs, nothing it says means anything."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

TINY = {
    "vision": "shared",
    "tokenizer": "bundled",
    "prompt_format": "compact",
    "small": {
        "side": 64,
        "stem": (8, 8, 16),
        "dim": 32,
        "depth": 1,
        "heads": 1,
        "prompt_dim": 32,
        "decoder_heads": 2,
        "decoder_mlp": 32,
    },
    "language": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "region_grid": 16,
}


@pytest.fixture(scope="session")
def tiny_sizes():
    """The tiny model's config, as a mapping that `ModelConfig` reads."""
    return TINY


@pytest.fixture(scope="session")
def tiny(tiny_sizes):
    """(model, processor) with random weights; do not change them."""
    from mglmm.build import ModelConfig, build

    model, processor = build(ModelConfig(**tiny_sizes))
    return model.eval(), processor


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny, tmp_path_factory):
    """The folder of the tiny model as a checkpoint; copy it before changing anything in it."""
    from mglmm.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, *tiny)
    return folder


@dataclass(frozen=True)
class Rounding:
    """How near a recording is met behind GLaMM's region encoder, which rounds to bfloat16 (4e-3 of a value)."""

    states: float
    loss: float  # relative
    sampled: float  # by RoIAlign, relative and absolute


@pytest.fixture(scope="session")
def rounding():
    """Which way it rounds hangs on the last bits of the tower and of sums: processors differ, also two with the same
    units (AVX-512 BF16 without AMX: 4e-3 in what is sampled, 2e-4 in a loss).
    """
    return Rounding(3e-2, 1e-3, 2**-5)


@pytest.fixture(scope="session")
def converted(shared, tmp_path_factory):
    """A function from a family to its recorded checkpoint, converted; copy it before changing anything in it."""
    from mglmm.importers import convert

    root = tmp_path_factory.mktemp("converted")

    def folder(family):
        out = root / family
        return out if out.exists() else convert(shared("golden", family, "checkpoint"), out).folder

    return folder


@dataclass(frozen=True)
class Done:
    """What came of a command line."""

    code: int
    out: str
    err: str

    def is_one_sentence(self, *words):
        """A mistake as it should be; every one of `words` is in it."""
        lines = self.err.splitlines()
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("mglmm: "), self
        for word in words:
            assert str(word) in lines[0], f"{word!r} is not in {lines[0]!r}"

    def last_line(self):
        """Training says where its run is before it begins; the mistake is the last line."""
        assert "Traceback" not in self.err
        return Done(self.code, self.out, self.err.splitlines()[-1])


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `mglmm ...` in this process, in an empty folder; a bug comes through as its exception."""
    from transformers.utils import logging

    from mglmm.cli import run

    verbosity = logging.get_verbosity()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGLMM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def photo_file(tmp_path):
    """A picture of noise, 40 x 30 px."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def recipe(tmp_path, tiny_sizes):
    """A YAML of three steps on small worlds, from nothing; returns its path."""
    model = tmp_path / "tiny.yaml"
    model.write_text(yaml.safe_dump(tiny_sizes))
    stage = {
        "name": "words",
        "max_steps": 3,
        "per_device_train_batch_size": 1,
        "train": {"projector": 1, "language_model": 1, "seg_projection": 1, "mask_decoder": 1},
        "sources": {"world": {"type": "world", "turns": 1, "size": 64}},
    }
    path = tmp_path / "three_steps.yaml"
    plan = {"model": str(model), "num_threads": 1, "dataloader_num_workers": 0, "logging_steps": 1, "save_steps": 1}
    path.write_text(yaml.safe_dump({**plan, "stages": [stage]}))
    return path


@pytest.fixture
def pillow(monkeypatch):
    """Pictures are resized as published codes do it: a grey level shows in what is compared to 1e-4.

    That ours is Pillow's to a grey level is tested in tests/sam_bridge/test_canvas.py.
    """
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def resized(pixels, size, resample):
        picture = Image.fromarray(np.array(pixels.permute(1, 2, 0))).resize(size[::-1], filters[resample])
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    monkeypatch.setattr("sam_bridge.canvas.resized", resized)
