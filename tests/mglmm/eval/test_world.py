"""The held-out world's table: a model that knows everything, one that says nothing, one that is blind."""

import pickle

import numpy as np
import pytest

from mglmm.config import parse
from mglmm.eval.grounding import WRONG
from mglmm.eval.processes import Processes
from mglmm.eval.protocol import Item
from mglmm.eval.report import Report
from mglmm.eval.world import ENTRIES, Scores, WorldConfig, evaluate_world
from mglmm_data.world.source import eval_samples
from mglmm_data.world.tasks import TASKS

CONFIG = WorldConfig(count=7, size=96, batch_size=4, resamples=20)
FAULTS = ("invented", "missed", "repeated", "false_rejection", "ECE", *WRONG)


@pytest.fixture(scope="module")
def seeing(echo_gold):
    """A predictor that knows the gold, but only where the image is the sample's own."""
    known = {}
    for task in TASKS:
        for sample in eval_samples(task, CONFIG.count, CONFIG.seed, CONFIG.size):
            item = Item(sample, sample.conversations[0])
            known[sample.image.tobytes(), str(item.query.prompt)] = echo_gold(item)

    def predict(queries, blank):
        return [known.get((query.image.tobytes(), str(query.prompt)), blank([query])[0]) for query in queries]

    return predict


@pytest.fixture(scope="module")
def report(seeing, say_nothing):
    return evaluate_world(lambda queries: seeing(queries, say_nothing), CONFIG, meta={"checkpoint": "none"})


def test_a_perfect_model_is_perfect_everywhere(report):
    for row in report.rows:
        if not row.metric.startswith(("masks_per_image", "share/")):
            expected = 0 if row.metric.split("/")[0] in FAULTS else 1
            assert row.value == pytest.approx(expected, abs=1e-6), (row.task, row.slice, row.metric)
    assert {row.task for row in report.rows} == {entry.name for entry in ENTRIES}


def test_blind_stands_beside_and_silence_scores_nothing(report):
    for task, metric in (
        ("referring", "cIoU"),
        ("panoptic", "recall@0.5/thing"),
        ("caption", "exact"),
        ("box", "accuracy@0.5"),
    ):
        row = report.row(task, metric)
        assert (row.value, row.beside["blind"], row.count, row.headline) == (1, 0, CONFIG.count, True)
        assert row.beside["swapped"] == 0
    assert report.row("present or absent", "N_acc").beside["blind"] == 1  # who says nothing rejects rightly
    assert report.row("present or absent", "T_acc").beside["blind"] == 0


def test_two_processes_give_the_table_of_one(seeing, say_nothing, report):
    """Each asks every other batch; what one hears of the other goes through a pickle, as between processes."""
    asked, boxes = {0: 0, 1: 0}, {}

    def share(rank, others):
        def gather(found):
            boxes[rank] = pickle.dumps(found)
            return [*others, *found]

        def predict(queries):
            asked[rank] += len(queries)
            return seeing(queries, say_nothing)

        return evaluate_world(predict, CONFIG, meta={"checkpoint": "none"}, among=Processes(rank, 2, gather))

    share(1, [])
    whole = share(0, pickle.loads(boxes[1]))
    assert whole.to_json() == report.to_json()
    assert 0 < asked[0] < sum(asked.values()) == 3 * len(TASKS) * CONFIG.count


def test_slices_partition_the_whole(report):
    counts = {row.slice: row.count for row in report.rows if (row.task, row.metric) == ("referring", "cIoU")}
    assert set(counts) >= {"all", "attribute", "size", "relation", "ordinal", "part"}
    assert sum(counts[kind] for kind in ("attribute", "size", "relation", "ordinal", "part")) == counts["all"]
    assert counts.get("seen", 0) + counts.get("unseen", 0) == counts["all"]


def test_report_remembers_where_it_comes_from(report, tmp_path):
    again = Report.load(report.save(tmp_path / "world.json"))
    assert again.meta["checkpoint"] == "none" and again.meta["config"]["size"] == 96
    assert again.statistics["mean_things"] >= 3 and len(again.rows) == len(report.rows)
    assert "blind" in report.markdown() and "median_thing_share" in report.text()


def test_merged_shards_equal_one_pass(echo_gold):
    whole, shards = Scores(), [Scores(), Scores()]
    for index, sample in enumerate(eval_samples("referring", 6, CONFIG.seed, 96)):
        item = Item(sample, sample.conversations[0])
        for scores in (whole, shards[index // 3]):
            scores.update(item, echo_gold(item))
    shards[0].merge(shards[1])
    for key, metric in whole.metrics.items():
        assert np.array_equal(shards[0].metrics[key].rows, metric.rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": ["refering"]}, "task 'refering' is not one; name some of"),
        ({"counts": {"vqa": 0}}, "vqa: 0 is not a count"),
        ({"cuont": 3}, "unknown key 'cuont'; did you mean 'count'"),
        ({"seed": 5}, "greater than or equal to 10000000"),
    ],
)
def test_config_mistakes_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        parse(WorldConfig, data, "world.yaml")


def test_hard_cases_are_cut_out_of_the_whole(report):
    counts = {row.slice: row.count for row in report.rows if (row.task, row.metric) == ("fine", "recall_noun@0.5")}
    assert 0 < counts["small"] <= counts["all"]


def test_blind_may_be_asked_less(seeing, say_nothing):
    asked = {True: 0, False: 0}

    def predict(queries):
        for query in queries:
            asked[query.sample_id in drawn and query.image.tobytes() in drawn[query.sample_id]] += 1
        return say_nothing(queries)

    config = CONFIG.model_copy(update={"tasks": ("referring",), "blind_count": 3})
    drawn = {s.id: {s.image.tobytes()} for s in eval_samples("referring", config.count, config.seed, config.size)}
    report = evaluate_world(predict, config)
    assert asked == {True: config.count, False: 2 * 3}  # on noise, and on images of other scenes
    assert report.row("present or absent", "T_acc").beside["blind"] == 0
