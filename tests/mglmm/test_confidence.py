"""The score of an instance: features that are always finite, a fit that finds what made the data, a threshold."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mglmm.confidence import FEATURES, Spoken, confidence, features, fit
from mglmm.grounder import Grounder
from mglmm.model_config import MglmmConfig
from mglmm_data.world.scene import make_scene

TOOL = Path(__file__).resolve().parents[2] / "tools" / "calibrate.py"


def test_features_of_an_empty_and_of_a_full_mask_are_finite():
    for logits in (torch.full((4, 4), -9.0), torch.full((4, 4), 9.0)):
        values = features(logits, 1.0, Spoken((), -50.0, 0.0))
        assert values.shape == (len(FEATURES),) and np.isfinite(values).all()


def test_the_fit_finds_the_probabilities_that_made_the_data():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, len(FEATURES))) * np.arange(1, 8)
    true = [1.0, -0.5, 0.3, 0.0, 0.2, -0.1, 0.05, 0.4]
    chance = np.array([confidence(row, true) for row in values])
    weights = fit(values, rng.random(4000) < chance)
    found = np.array([confidence(row, weights) for row in values])
    assert np.abs(found - chance).mean() < 0.03


def test_a_fit_needs_both_kinds_and_weights_must_be_of_these_features():
    with pytest.raises(ValueError, match="3 instances, 3 of them right; both kinds are needed"):
        fit(np.zeros((3, len(FEATURES))), np.ones(3, bool))
    with pytest.raises(ValueError, match="has 2 weights, 7 features and a bias need 8"):
        confidence(np.zeros(len(FEATURES)), [1.0, 2.0])


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.load()


def test_scores_are_probabilities_where_the_model_has_them(grounder, monkeypatch):
    image = make_scene(10_000_003).image
    monkeypatch.setattr(grounder.model.config, "confidence", None)
    plain = grounder.ask(image)
    monkeypatch.setattr(grounder.model.config, "confidence", [1.0] + [0.0] * len(FEATURES))
    judged = grounder.ask(image)
    assert (plain.score_kind, judged.score_kind) == ("mask_x_text", "probability")
    assert judged.text == plain.text and judged.phrases
    scores = [instance.score for phrase in judged.phrases for instance in phrase.instances]
    assert all(0 < score < 1 for score in scores) and len(set(scores)) > 1


def test_the_no_target_threshold_moves_both_ways(grounder, monkeypatch):
    image = make_scene(10_000_003).image
    questions = [
        (image, f"Segment the {color} {name}.", ()) for name in ("car", "boat", "dog") for color in ("red", "blue")
    ]
    refused = {
        threshold: sum(
            not answer.phrases
            for answer in grounder.ask_many(
                questions, grounder.options.model_copy(update={"no_target_threshold": threshold})
            )
        )
        for threshold in (1e-9, 0.5, 1 - 1e-9)
    }
    assert refused[1e-9] == len(questions) and refused[1 - 1e-9] == 0
    assert refused[1e-9] >= refused[0.5] >= refused[1 - 1e-9]
    for threshold, expected in refused.items():  # without the option it is the checkpoint's
        monkeypatch.setattr(grounder.model.config, "no_target_threshold", threshold)
        assert sum(not answer.phrases for answer in grounder.ask_many(questions)) == expected


def test_a_calibrated_refusal_moves_what_half_means(grounder, monkeypatch):
    """Scale 2 and bias b act as scale 1 and bias b / 2, and as the threshold that b / 2 is the odds of."""
    image = make_scene(10_000_003).image
    questions = [(image, f"Segment the {color} car.", ()) for color in ("red", "blue", "green")]

    def texts(refusal, threshold=0.5):
        monkeypatch.setattr(grounder.model.config, "refusal", refusal)
        options = grounder.options.model_copy(update={"no_target_threshold": threshold, "max_new_tokens": 12})
        return [answer.text for answer in grounder.ask_many(questions, options)]

    for odds in (-40.0, -2.0, 2.0, 40.0):
        assert texts([2.0, 2 * odds]) == texts([1.0, odds])
    for odds in (-2.0, 2.0):
        assert texts([2.0, 2 * odds]) == texts(None, 1 / (1 + np.exp(odds)))
    assert all(text.startswith("There is no") for text in texts([1.0, 40.0]))
    assert not any(text.startswith("There is no") for text in texts([1.0, -40.0]))


def test_both_errors_are_as_frequent_at_an_even_cut():
    even = runpy.run_path(str(TOOL))["even_cut"]
    odds = np.array([-3.0, -2.0, -1.0, 0.5, -0.6, 0.4, 2.0, 3.0])
    absent = np.array([False] * 4 + [True] * 4)
    refused = odds > even(odds, absent)  # one of four is wrong on either side
    assert refused[absent].sum() == 3 and refused[~absent].sum() == 1


def test_a_fit_is_written_into_the_checkpoint_whole_or_not_at_all(tiny_checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    write = runpy.run_path(str(TOOL))["write_config"]
    config = MglmmConfig.from_pretrained(folder)
    config.confidence = [0.25] * (len(FEATURES) + 1)
    write(config, folder)
    assert MglmmConfig.from_pretrained(folder).to_dict() == config.to_dict()
    names, written = sorted(path.name for path in folder.iterdir()), (folder / "config.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    config.confidence = None
    with monkeypatch.context() as patch, pytest.raises(OSError, match="config.json: No space left.*is intact; free"):
        patch.setattr(os, "replace", full)
        write(config, folder)
    assert (folder / "config.json").read_bytes() == written and sorted(p.name for p in folder.iterdir()) == names


def test_calibrating_what_is_no_folder_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["calibrate.py", "bundled"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name="__main__")
    assert "bundled is no folder to write into; give a checkpoint's folder, or --dry-run" in capsys.readouterr().err
