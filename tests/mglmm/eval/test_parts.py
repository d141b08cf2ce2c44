"""Part mIoU counted by hand, and the mean-mask baseline where the best constant answer is known."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from mglmm.answer import Answer, Instance, Phrase
from mglmm.eval.parts import PartsIou, fit_mean_masks, mean_mask_baseline, naming, parts_report, score_parts
from mglmm.eval.protocol import Item, void_of
from mglmm.eval.report import Report
from mglmm.evaluate import photo_sources, read_eval
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose

NAMES = ("hood", "front_glass", "glass", "wheel")


@pytest.fixture
def make_car(square):
    def make(hood, wheels=()):
        regions = [
            Region.of_mask(square(*hood), "hood"),
            *(Region.of_mask(square(*wheel), "wheel") for wheel in wheels),
        ]
        phrases = [("the hood", (0,))]
        if wheels:
            phrases += [", ", ("two wheels", tuple(range(1, 1 + len(wheels))))]
        text, spans = compose(*phrases)
        conversation = Conversation((Turn("user", "Segment the parts."), Turn("assistant", text, spans)), "fine")
        return Sample(np.zeros((20, 20, 3), np.uint8), tuple(regions), (conversation,))

    return make


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("the hood", "hood"),
        ("Two wheels", "wheel"),
        ("the front glass", "front glass"),  # the longest name wins
        ("a glass", "glass"),
        ("front_glass", "front glass"),
        ("glassy wheelbarrow", ""),
    ],
)
def test_phrases_name_parts(phrase, name):
    assert PartsIou(NAMES).name_of(phrase) == name


def test_counts_by_hand(make_car, make_answer, square):
    car = make_car((0, 0, 10, 10), [(0, 15, 2, 17), (10, 15, 12, 17)])

    def predict(queries):
        half_hood, spurious = square(0, 0, 5, 10), square(18, 18, 20, 20)
        return [make_answer(("the hood", [half_hood]), ", ", ("the glass", [spurious])) for _ in queries]

    metric = score_parts(predict, [car, car], NAMES)
    scores = metric.compute()
    assert scores["IoU/hood"] == pytest.approx(0.5)
    assert scores["IoU/wheel"] == 0  # absent from the answer, in the union nevertheless
    assert scores["IoU/glass"] == 0  # not in the gold
    assert np.isnan(scores["IoU/front glass"])  # nowhere: not averaged
    assert scores["mIoU"] == pytest.approx(0.5 / 3)


def test_echoed_gold_is_perfect_and_silence_is_not(make_car, echo_gold, say_nothing):
    from mglmm.eval.protocol import Item

    cars = [make_car((0, 0, 10, 10), [(0, 15, 2, 17)]), make_car((3, 3, 9, 9))]
    metric = PartsIou(NAMES)
    for car in cars:
        item = Item(car, car.conversations[0])
        metric.update(item, echo_gold(item))
    assert metric.compute()["mIoU"] == 1
    assert score_parts(say_nothing, cars, NAMES).compute()["mIoU"] == 0


def test_mean_masks_take_what_most_images_share(make_car):
    train = [make_car((0, 0, 10, 10)), make_car((0, 0, 10, 10)), make_car((10, 10, 20, 20))]
    baseline = mean_mask_baseline(train, [make_car((0, 0, 10, 10))], NAMES)
    assert baseline.compute()["IoU/hood"] == pytest.approx(1, abs=0.02)
    assert 1 / 3 <= fit_mean_masks(train, NAMES).thresholds["hood"] < 2 / 3


def test_mean_masks_may_be_told_which_parts_are_there(make_car):
    train = [make_car((0, 0, 10, 10), [(0, 14, 4, 18)])]
    told = mean_mask_baseline(train, [make_car((0, 0, 10, 10))], NAMES).compute()
    everywhere = mean_mask_baseline(train, [make_car((0, 0, 10, 10))], NAMES, told_presence=False).compute()
    assert np.isnan(told["IoU/wheel"]) and everywhere["IoU/wheel"] == 0
    assert told["mIoU"] == pytest.approx(2 * everywhere["mIoU"])


def test_pixels_without_truth_count_neither_way(make_car):
    car = make_car((0, 0, 10, 10))
    everywhere = np.zeros((20, 20), bool)
    everywhere[:10] = True  # the hood, and as much beside it
    beside = everywhere.copy()
    beside[:, :10] = False
    unknown = replace(
        car,
        regions=(*car.regions, Region.of_mask(beside)),
        meta={**car.meta, "ignore_regions": (len(car.regions),)},
    )
    scored = [
        PartsIou(NAMES).counts_outside(void_of(each), {"hood": everywhere}, PartsIou(NAMES).gold(each))
        for each in (car, unknown)
    ]
    assert [each["union/hood"] for each in scored] == [200, 100] and scored[1]["intersection/hood"] == 100
    # so do they where the mean masks of the training images are scored: here these cover twice what is there
    train = [make_car((0, 0, 20, 10))]
    assert mean_mask_baseline(train, [car], NAMES).compute()["IoU/hood"] == pytest.approx(0.5, abs=0.05)
    assert mean_mask_baseline(train, [unknown], NAMES).compute()["IoU/hood"] == pytest.approx(1, abs=0.05)


def test_report_stands_beside_the_baseline(make_car, say_nothing, tmp_path):
    cars = [make_car((0, 0, 10, 10))] * 3
    report = parts_report(score_parts(say_nothing, cars, NAMES), {"mean mask": mean_mask_baseline(cars, cars, NAMES)})
    row = report.row("parts", "mIoU")
    assert (row.value, row.count) == (0, 3) and row.beside["mean mask"] == pytest.approx(1, abs=0.02)
    assert Report.load(report.save(tmp_path / "parts.json")).row("parts", "IoU/hood").value == 0


def test_errors(make_item, say_nothing):
    with pytest.raises(ValueError, match=r"made: no conversation asks for parts or classes \(tasks \[''\]\)"):
        score_parts(say_nothing, [make_item("How many?", "2").sample], NAMES)
    with pytest.raises(ValueError, match="needs a training sample with a named part"):
        fit_mean_masks([], NAMES)
    with pytest.raises(ValueError, match="part names must be given, each once"):
        PartsIou(["hood", "Hood"])


@pytest.mark.parametrize("name", ["parts", "camvid", "coco_mini"])
def test_every_shipped_evaluation_of_photographs_has_what_to_ask(shared, monkeypatch, name):
    monkeypatch.setenv("MGLMM_SHARED", str(shared("data").parent))
    _, validation = photo_sources(cast(Any, read_eval(name)))
    assert len(validation) > 10
    sample = validation.sample(0)
    assert naming(sample).turns[-1].phrases and PartsIou(cast(Any, validation).names).gold(sample)


def test_what_points_at_a_part_is_no_part_of_it():
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    regions = (Region.of_mask(mask, "door"), Region((8, 8), box=(0, 0, 8, 8), label="door"))
    assert (PartsIou(["door"]).gold(Sample(np.zeros((8, 8, 3), np.uint8), regions, ()))["door"] == mask).all()


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("an orange chair", "chair"),
        ("a person on a skateboard", "person"),
        ("two teddy bears", "teddy bear"),
        ("the sky", ""),
    ],
)
def test_a_phrase_names_its_head(phrase, name):
    assert PartsIou(["orange", "chair", "person", "skateboard", "bear", "teddy bear"]).name_of(phrase) == name


def test_crowds_are_no_parts_and_what_is_ignored_counts_neither_way():
    door, crowd, void = (np.zeros((8, 8), bool) for _ in range(3))
    door[:2], crowd[4:6], void[6:] = True, True, True
    regions = tuple(Region.of_mask(mask, "door") for mask in (door, crowd, void))
    turns = (Turn("user", "Parts?"), Turn("assistant", "the door.", ()))
    sample = Sample(np.zeros((8, 8, 3), np.uint8), regions, (Conversation(turns),))
    sample.meta.update(crowd_regions=(1,), ignore_regions=(2,))
    metric, everything = PartsIou(["door"]), door | crowd | void
    phrases = (Phrase("the door", (0, 8), (Instance(everything, None, 1.0),)),)
    said = Answer("the door", phrases, sample.image)
    metric.update(Item(sample, sample.conversations[0]), said)
    assert metric.compute()["mIoU"] == 1
