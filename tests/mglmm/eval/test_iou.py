"""Referring segmentation against the published evaluators' own numbers, and small cases one can count by hand."""

import json

import numpy as np
import pytest

from mglmm.answer import Answer, Instance, Phrase
from mglmm.eval.iou import PROTOCOLS, BoxAccuracy, RefSeg, box_iou, mask_iou, match
from mglmm.eval.protocol import Item
from mglmm_data import masks
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose


def square(x1, y1, x2, y2, size=(10, 10)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared("golden", "metrics", "refseg_pairs.json").parent
    images = json.loads((folder / "refseg_pairs.json").read_text())
    decoded = [[{k: v if k == "pred_nt" else masks.decode(v) for k, v in e.items()} for e in image] for image in images]
    return decoded, json.loads((folder / "refseg_expected.json").read_text())


def scored(protocol, images):
    metric = RefSeg(protocol)
    for entry in (entry for image in images for entry in image):
        counts = metric.counts(entry["pred"], entry["gt"], rejected=entry["pred_nt"], ignored=entry["ignore"])
        metric.append(counts)
    return metric.compute()


@pytest.mark.parametrize(
    ("protocol", "case"), [("rela", "pred_nt_from_flag"), ("rela-empty-mask", "pred_nt_from_empty_mask")]
)
def test_parity_with_the_authors_of_grefcoco(golden, protocol, case):
    images, expected = golden
    ours, theirs = scored(protocol, images), expected["rela"][case]["grefcoco"]
    for name in ("gIoU", "cIoU", "Pr@0.7", "Pr@0.8", "Pr@0.9"):
        assert 100 * ours[name] == pytest.approx(theirs[name], abs=1e-9)
    assert (ours["N_acc"], ours["T_acc"]) == pytest.approx((theirs["N_acc"], theirs["T_acc"]), abs=1e-12)


@pytest.mark.parametrize("protocol", ["lisa", "gsva", "mglmm"])
def test_parity_with_the_peers_in_float32(golden, protocol):
    images, expected = golden
    lisa, gsva, mglmm = expected["lisa"], expected["gsva"]["grefcoco"], expected["mglmm_ref"]["plain"]
    ours, theirs = scored(protocol, images), {"lisa": lisa, "gsva": gsva, "mglmm": mglmm}[protocol]
    assert (ours["gIoU"], ours["cIoU"]) == pytest.approx((theirs["giou"], theirs["ciou"]), abs=1e-6)
    if protocol == "gsva":
        assert (ours["N_acc"], ours["T_acc"]) == pytest.approx((theirs["N_acc"], theirs["T_acc"]))


def test_parity_with_masks_of_an_image_merged(golden):
    images, expected = golden
    theirs = next(value for name, value in expected["mglmm_ref"].items() if name.startswith("enable_merge"))
    merged = []
    for image in images:
        predicted = np.logical_or.reduce([entry["pred"] for entry in image])
        gold = np.logical_or.reduce([entry["gt"] & ~entry["ignore"] for entry in image])
        merged.append([{"pred": predicted, "gt": gold, "ignore": np.zeros_like(gold), "pred_nt": False}])
    ours = scored("mglmm", merged)
    assert (ours["gIoU"], ours["cIoU"]) == pytest.approx((theirs["giou"], theirs["ciou"]), abs=1e-6)


@pytest.mark.parametrize(
    ("predicted", "gold", "rejected", "expected"),
    [
        (square(0, 0, 4, 4), square(0, 0, 4, 4), False, {"gIoU": 1, "cIoU": 1, "T_acc": 1, "Pr@0.9": 1}),  # perfect
        (square(0, 0, 4, 2), square(0, 0, 4, 4), False, {"gIoU": 0.5, "Pr@0.5": 1, "Pr@0.7": 0}),  # half
        (square(0, 0, 0, 0), square(0, 0, 4, 4), True, {"gIoU": 0, "cIoU": 0, "false_rejection": 1}),  # rejected target
        (square(0, 0, 0, 0), square(0, 0, 0, 0), True, {"gIoU": 1, "N_acc": 1}),  # rightly rejected
        (square(0, 0, 2, 2), square(0, 0, 0, 0), False, {"gIoU": 0, "cIoU": 0, "N_acc": 0}),  # invented target
    ],
    ids=["perfect", "half", "rejected target", "rejected absent", "invented"],
)
def test_one_expression(predicted, gold, rejected, expected):
    metric = RefSeg()
    metric.append(metric.counts(predicted, gold, rejected=rejected))
    scores = metric.compute()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_masks_of_an_answer_are_joined():
    regions = (Region.of_mask(square(0, 0, 4, 10)), Region.of_mask(square(6, 0, 10, 10)))
    text, spans = compose(("the dogs", (0, 1)), ".")
    conversation = Conversation((Turn("user", "Segment the dogs."), Turn("assistant", text, spans)))
    item = Item(Sample(np.zeros((10, 10, 3), np.uint8), regions, (conversation,)), conversation)
    instances = tuple(Instance(region.mask, None, 1.0) for region in regions)
    metric = RefSeg()
    metric.update(item, Answer("the dogs.", (Phrase("the dogs", (0, 8), instances),), item.sample.image))
    metric.update(item, Answer("the dogs.", (Phrase("the dogs", (0, 8), instances[:1]),), item.sample.image))
    assert metric.compute()["gIoU"] == pytest.approx((1 + 0.5) / 2)
    assert metric.compute()["cIoU"] == pytest.approx((80 + 40) / 160)


@pytest.mark.parametrize(("protocol", "expected"), [("lisa", 1.0), ("mglmm", 0.5)])
def test_pixels_that_a_sample_ignores_are_left_out_by_lisa_and_background_of_mglmm(protocol, expected):
    target, ignored = square(0, 0, 5, 4), square(5, 0, 10, 4)
    text, spans = compose(("the dog", (0,)), ".")
    conversation = Conversation((Turn("user", "Segment the dog."), Turn("assistant", text, spans)))
    regions = (Region.of_mask(target), Region.of_mask(ignored, "ignore"))
    pixels, meta = np.zeros((10, 10, 3), np.uint8), {"ignore_regions": (1,)}  # as ReasonSeg's reader writes it
    item = Item(Sample(pixels, regions, (conversation,), meta=meta), conversation)
    metric = RefSeg(protocol)
    metric.update(item, Answer(text, (Phrase("the dog", (0, 7), (Instance(target | ignored, None, 1.0),)),), pixels))
    assert metric.compute()["gIoU"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_merged_shards_equal_one_pass(protocol):
    rng = np.random.default_rng(0)
    whole, shards = RefSeg(protocol), [RefSeg(protocol), RefSeg(protocol)]
    for index in range(12):
        predicted, gold = rng.random((2, 8, 8)) > 0.6
        counts = whole.counts(predicted, gold & (index % 3 > 0), rejected=index % 4 == 0)
        whole.append(counts)
        shards[index // 6].append(counts)
    merged = RefSeg(protocol).merge(shards)
    assert merged.compute() == whole.compute()
    assert merged.intervals(100) == whole.intervals(100)


def test_intervals_hold_the_score_and_shrink():
    rng = np.random.default_rng(1)
    few, many = RefSeg(), RefSeg()
    for index in range(400):
        counts = few.counts(rng.random((6, 6)) > 0.5, square(0, 0, 3, 6, (6, 6)), rejected=False)
        many.append(counts)
        if index < 20:
            few.append(counts)
    widths = {}
    for name, metric in (("few", few), ("many", many)):
        low, high = metric.intervals()["gIoU"]
        assert low < metric.compute()["gIoU"] < high
        widths[name] = high - low
    assert widths["many"] < widths["few"] / 2


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match=r"protocol 'rels' is unknown; choose one of rela"):
        RefSeg("rels")
    with pytest.raises(ValueError, match=r"float64\(10, 10\); bring it to image pixels"):
        RefSeg().counts(np.zeros((10, 10)), square(0, 0, 1, 1), rejected=False)
    with pytest.raises(ValueError, match="cannot merge 'refseg/lisa' into 'refseg/rela'"):
        RefSeg().merge([RefSeg("lisa")])


def test_iou_of_masks_and_boxes():
    gold = [square(2, 0, 6, 4), square(9, 9, 10, 10)]
    assert mask_iou([square(0, 0, 4, 4)], gold) == pytest.approx(np.array([[1 / 3, 0]]))
    assert box_iou([(0, 0, 4, 4)], [(2, 0, 6, 4)]) == pytest.approx(np.array([[1 / 3]]))
    assert mask_iou([], [square(0, 0, 1, 1)]).shape == (0, 1)
    assert match(np.zeros((0, 1))) == []


def test_matching_prefers_more_pairs_over_more_overlap():
    overlaps = np.array([[0.95, 0.5], [0.5, 0.0]])  # the greedy choice (0, 0) would leave one pair only
    assert sorted(match(overlaps, 0.5)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(0, 0, 4, 4)], 1.0),
        ([], 0.0),  # absent counts as wrong
        ([(6, 6, 9, 9), (0, 0, 4, 4)], 0.0),  # only the first is read
    ],
    ids=["right", "absent", "second guess"],
)
def test_box_accuracy(boxes, expected):
    text, spans = compose(("the dog", (0,)), ".")
    turn = Turn("assistant", text, spans, grounding="box")
    conversation = Conversation((Turn("user", "Give the box of the dog."), turn))
    regions = (Region.of_mask(square(0, 0, 4, 4)),)
    item = Item(Sample(np.zeros((10, 10, 3), np.uint8), regions, (conversation,)), conversation)
    instances = tuple(Instance(None, box, 1.0) for box in boxes)
    metric = BoxAccuracy()
    metric.update(item, Answer("the dog.", (Phrase("the dog", (0, 7), instances),), item.sample.image))
    assert metric.compute()["accuracy@0.5"] == expected


def test_an_answer_that_was_cut_refuses_nothing():
    sample = Sample(np.zeros((10, 10, 3), np.uint8), (), ())
    talk = Conversation((Turn("user", "Segment the cup."), Turn("assistant", "There is no cup.")))
    for truncated, right in ((False, 1), (True, 0)):
        metric = RefSeg()
        metric.update(Item(sample, talk), Answer("I see the", (), sample.image, truncated=truncated))
        assert metric.compute()["N_acc"] == metric.compute()["gIoU"] == right


def test_numbers_say_how_many_items_they_are_of():
    metric = RefSeg()
    mask = square(0, 0, 4, 4)
    for gold in (mask, mask, np.zeros_like(mask)):
        metric.append(metric.counts(mask, gold, rejected=False))
    counts = {name: metric.count_of(name) for name in ("gIoU", "N_acc", "T_acc", "Pr@0.5")}
    assert counts == {"gIoU": 3, "N_acc": 1, "T_acc": 2, "Pr@0.5": 2}
