"""What limits a model: masks of the told answer, and of an oracle."""

import pytest
import torch

from mglmm.checkpoint import load_checkpoint
from mglmm.eval.limits import TASKS, limits, load_semantic
from mglmm.evaluate import evaluate, read_eval
from mglmm.train.pretrain import PixelPretraining
from mglmm_data.world.source import EVAL_SEED_START

ASKED = {"count": 2, "seed": EVAL_SEED_START, "size": 192, "batch_size": 2}


@pytest.fixture(scope="module")
def bundled():
    return load_checkpoint("bundled")


def test_rows_of_every_task_and_an_oracle_only_with_its_prompt(bundled, tmp_path):
    rows = limits(*bundled, **ASKED)
    assert {(row.task, row.slice) for row in rows} == {(task, "told") for task in TASKS}
    values = {(row.task, row.metric): row.value for row in rows}
    assert values["panoptic", "mean_iou"] > 0.5, "trained weights, told what is there"
    assert values["panoptic", "cross-entropy"] < 1.5

    heads = PixelPretraining(bundled[0].bridge)
    path = tmp_path / "state.pt"
    torch.save({"pixels": {f"semantic.{key}": value for key, value in heads.semantic.state_dict().items()}}, path)
    rows = limits(*bundled, **ASKED, semantic=load_semantic(bundled[0], path))
    assert {(row.task, row.slice) for row in rows} == {(task, which) for task in TASKS for which in ("told", "oracle")}


def test_a_state_without_the_prompt_is_refused(bundled, tmp_path):
    torch.save({"pixels": {}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="holds no semantic prompt; give the state.pt of a run with a pixels stage"):
        load_semantic(bundled[0], tmp_path / "state.pt")


def test_the_table_of_an_evaluation_has_them(tmp_path):
    path = tmp_path / "world.yaml"
    path.write_text("kind: world\ncount: 1\ntasks: [referring]\nblind: false\nresamples: 0\nlimits_count: 1\n")
    report = evaluate(read_eval(str(path)))
    assert 0 <= report.row("referring", "mean_iou", "told").value <= 1
