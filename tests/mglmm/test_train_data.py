"""What a stage reads: batches of like length, and samples that cannot be read."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mglmm.build import ModelConfig, build
from mglmm.config import StageConfig, TrainConfig, load_config
from mglmm.inputs import PADDING
from mglmm.train.data import GroundingData, LeftOut
from mglmm.train.loop import Trainer
from mglmm_data import masks
from mglmm_data.batches import Extent, filled

WORLD = {"type": "world", "turns": 3, "size": 64}


def stage(**changes):
    plain = {"name": "words", "max_steps": 3, "per_device_train_batch_size": 2, "sources": {"world": WORLD}}
    return StageConfig(**{**plain, **changes})


def rows(data, steps):
    return [data(step)[0].grounding.input_ids for step in steps]


def test_a_window_holds_the_same_samples_in_batches_of_like_length(tiny):
    plain, windowed = (GroundingData(stage(batch_window=window), tiny[1], seed=4) for window in (1, 6))
    pad = tiny[1].ids.pad

    def contents(batches):
        return sorted(tuple(row[row != pad].tolist()) for batch in batches for row in batch)

    def share(batches):
        return filled([[Extent((int((row != pad).sum()),)) for row in batch] for batch in batches])

    one, other = rows(plain, range(6)), rows(windowed, range(6))
    assert contents(one) == contents(other) and share(other) > max(0.9, share(one))
    again = GroundingData(stage(batch_window=6), tiny[1], seed=4)
    assert all(torch.equal(again(step)[0].grounding.input_ids, other[step]) for step in (4, 1))


@pytest.mark.parametrize("name", ["world", "world_on"])
def test_nine_tenths_of_the_tokens_of_shipped_recipes_are_not_padding(name):
    recipe = load_config(TrainConfig, f"configs/train/{name}.yaml")
    _, processor = build(load_config(ModelConfig, "configs/model/bundled.yaml"), seed=0)
    for each in recipe.stages:
        if each.kind == "grounding":
            read = GroundingData(each, processor, recipe.seed)
            segments = [read(step)[0].grounding.segments for step in range(each.batch_window)]
            there = sum(int((one != PADDING).sum()) for one in segments) / sum(one.numel() for one in segments)
            assert there >= 0.9, each.name


@pytest.fixture
def damaged(tmp_path):
    """A JSONL of four pictures, of which the third is cut off and the line of the fourth is no json."""
    lines = []
    for number in range(4):
        Image.fromarray(np.full((40, 40, 3), 60 * number, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "regions": [{"label": "dog", "box": [5, 5, 30, 30]}]}))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines[:3], "{"]) + "\n")
    return {"type": "jsonl", "path": str(tmp_path), "tasks": {"panoptic": 1}}


def test_what_cannot_be_read_stops_or_is_counted(tiny, damaged):
    with pytest.raises(ValueError, match=r"samples.jsonl: line 4: is no json"):
        GroundingData(stage(sources={"mine": damaged}), tiny[1], seed=0)
    data = GroundingData(stage(sources={"mine": damaged}, on_error="count", per_device_train_batch_size=3), tiny[1], 0)
    assert len(data.problems) == 1 and "line 4" in data.problems[0]
    batch, left_out = data(0)
    assert batch.grounding.pixels is not None
    assert len(batch.grounding.pixels) == 2 and len(data.shown(3)) == 2
    assert len(left_out.problems) == 1 and "2.png is truncated or damaged" in left_out.problems[0]
    assert "source 'mine', sample 2" in left_out.problems[0]
    assert LeftOut() == LeftOut(0, ())


def test_what_cannot_be_learnt_from_is_counted_too(tiny, tmp_path):
    """No conversation, one that is too long, a box of what covers no pixel: beside a sound sample none ends the run."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "0.png")
    empty = masks.encode(np.zeros((40, 40), bool))
    asked = {"role": "user", "text": "Give the box of the dog."}
    box = {"role": "assistant", "text": "the dog", "grounding": "box", "phrases": [{"text": "the dog", "regions": [0]}]}
    long = [{"role": "user", "text": "What?"}, {"role": "assistant", "text": "word " * 500}]
    fine = [{"role": "user", "text": "What?"}, {"role": "assistant", "text": "Nothing."}]
    lines = [
        {"conversations": []},
        {"conversations": [{"turns": long}]},
        {
            "regions": [{"mask": {"size": [40, 40], "counts": empty["counts"]}}],
            "conversations": [{"turns": [asked, box]}],
        },
        {"conversations": [{"turns": fine}]},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"image": "0.png", **line}) + "\n" for line in lines))
    source = {"type": "jsonl", "path": str(tmp_path)}
    given = stage(sources={"mine": source}, on_error="count", per_device_train_batch_size=4, max_length=200)
    batch, left_out = GroundingData(given, tiny[1], 0)(0)
    told = "\n".join(left_out.problems)
    assert len(left_out.problems) == 3, told
    assert len(batch.grounding.input_ids) == 1 and len(left_out.problems) == 3
    assert "has no conversation to learn from" in told and "fits into max_length" in told and "is empty" in told
    assert len(GroundingData(given, tiny[1], 0).shown(4)) == 1


def test_a_batch_of_nothing_is_an_error(tiny, damaged):
    data = GroundingData(stage(sources={"mine": damaged}, on_error="count", per_device_train_batch_size=1), tiny[1], 0)
    with pytest.raises(ValueError, match=r"only 0 of 1 samples in a row could be read.*check-data"):
        for step in range(3):
            data(step)


def test_a_run_lists_at_its_end_what_it_left_out(command, recipe, damaged):
    plan = yaml.safe_load(recipe.read_text())
    plan["stages"][0] |= {"sources": {"mine": damaged}, "on_error": "count", "per_device_train_batch_size": 3}
    recipe.write_text(yaml.safe_dump(plan))
    done = command("train", recipe)
    assert done.code == 0, done.err
    assert "left out, unreadable or on a list of what to drop: 4, 2 different" in done.err
    assert "3 x source 'mine', sample 2" in done.err and "line 4: is no json" in done.err


def test_what_was_left_out_is_kept_over_a_stop(recipe, damaged, tmp_path):
    """Counted over both sessions, and each problem once in the file."""
    plan = yaml.safe_load(recipe.read_text())
    plan["stages"][0] |= {"sources": {"mine": damaged}, "on_error": "count", "per_device_train_batch_size": 3}
    whole, cut = (
        Trainer(TrainConfig(**plan | {"output_dir": str(tmp_path / name)}), "run") for name in ("whole", "cut")
    )
    whole.run()
    cut.run(until=1)
    cut = Trainer(cut.config, "run")
    cut.run()
    assert cut.log.found == whole.log.found and sum(whole.log.found.values()) == 4
    assert len((cut.folder / "problems.jsonl").read_text().splitlines()) == len(whole.log.found) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"multiplicities": {"wrld": 1}}, "multiplicities name \\['wrld'\\]"),
        ({"multiplicities": {"world": 1}, "weights": {"world": 1}}, "instead of weights"),
        ({"temperature": 0}, "greater than 0"),
        ({"on_error": "skip"}, "'fail' or 'count'"),
    ],
)
def test_a_stage_refuses_what_contradicts_itself(changes, words):
    with pytest.raises(ValueError, match=words):
        stage(**changes)


def test_multiplicities_reach_the_mixture(tiny):
    sources = {"a": {**WORLD, "seed_start": 8_999_995}, "b": {**WORLD, "seed_start": 8_999_990}}
    data = GroundingData(stage(sources=sources, multiplicities={"a": 2}), tiny[1], 0)
    assert data.mixture.epoch_length == 2 * 5 + 10
