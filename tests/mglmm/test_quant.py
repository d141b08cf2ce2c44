"""Weights in 8 and 4 bits: less memory, nearly the same answers, and a sentence where the library is not there."""

import importlib.util

import pytest
import torch

from mglmm import quant
from mglmm.checkpoint import load_checkpoint
from mglmm.generate import GenerationOptions
from mglmm.grounder import Grounder
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import eval_samples

needs = {
    kind: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for kind, name in quant.BACKENDS.items()
}
KINDS = [pytest.param(kind, marks=mark) for kind, mark in needs.items()]


@pytest.fixture(scope="module")
def image():
    return make_scene(10_000_003, 96, held_out="allow").image


@pytest.fixture(scope="module")
def full():
    return load_checkpoint("bundled")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_decoder_layers_are_quantised(kind, full, image):
    model, processor = load_checkpoint("bundled", quant=kind)
    layers = "llava.model.language_model.layers."
    plain = dict(full.named_parameters())
    changed = set()
    for name, value in model.named_parameters():
        if quant.tensor_bytes(value) != plain[name].nbytes:
            changed.add(name)
        else:
            assert torch.equal(value, plain[name]), name
    linear = {name for name in plain if name.startswith(layers) and name.endswith("_proj.weight")}
    assert changed == linear and len(linear) == 7 * model.config.language().num_hidden_layers
    saved = sum(plain[name].nbytes for name in linear)
    left = quant.weight_bytes(model) - (quant.weight_bytes(full) - saved)
    assert left < saved / (3.5 if kind == "int8" else 6)
    answer = Grounder(model, processor, GenerationOptions(max_new_tokens=24)).ask(image, "Segment everything.")
    assert answer.text.strip()


@pytest.mark.parametrize(
    ("kind", "bound"), [pytest.param("int8", 0.01, marks=needs["int8"]), pytest.param("int4", 0.1, marks=needs["int4"])]
)
def test_states_stay_close(kind, bound, full):
    model, processor = load_checkpoint("bundled", quant=kind)
    batch, _ = processor.batch([*eval_samples("panoptic", 1)])
    with torch.no_grad():
        wanted, found = (each(batch).states for each in (full, model))
    assert (found - wanted).norm() / wanted.norm() < bound


@pytest.mark.parametrize("kind", list(quant.BACKENDS))
def test_absent_library_is_named(kind, monkeypatch, command):
    monkeypatch.setattr(quant, "find_spec", lambda name: None)
    done = command("ask", "world:3@96", "Segment the tree.", "--quant", kind)
    assert done.code == 2
    assert f"{kind} weights need {quant.BACKENDS[kind]}, which is not installed: pip install 'mglmm[quant]'" in done.err


def test_unknown_kind_is_refused(command):
    done = command("ask", "world:3@96", "--quant", "int2")
    assert (done.code, done.out) == (2, "")
    assert "quant is 'int2'; choose one of none, int8, int4" in done.err


def test_no_quantisation_is_the_default(full):
    assert quant.quantization_config("none") is None
    assert quant.weight_bytes(full) == sum(p.nbytes for p in full.parameters())
