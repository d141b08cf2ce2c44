"""Grounded captions: the four GCG sets, the evaluation pair, MGSCData and GranD; spans that point at their phrases."""

import base64
import json
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mglmm.answer import Answer, Instance, Phrase
from mglmm.eval.grounding import Grounding
from mglmm.eval.protocol import Item
from mglmm.eval.text import Vocabulary
from mglmm_data import grandf_forms, masks
from mglmm_data.annotation import Span, ground, unquoted
from mglmm_data.grand import attributes
from mglmm_data.grandf import GranDfSource
from mglmm_data.grandf_forms import find_phrase
from mglmm_data.mgscdata import MgscSource
from mglmm_data.registry import make_source

SIZE = (30, 40)


@pytest.fixture
def golden(shared):
    return shared("golden", "datasets", "data")


def told(sample, number=0):
    """The answer and, for each phrase, its words and the areas of its masks."""
    turn = sample.conversations[number].turns[1]
    return turn.text, {
        turn.text[phrase.start : phrase.end]: [int(sample.regions[i].mask.sum()) for i in phrase.regions]
        for phrase in turn.phrases
    }


def square(x, y, side=8):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.mark.parametrize("form", ["ha", "psg"])
def test_masks_of_a_phrase_are_joined_and_stay_with_it(golden, shared, form):
    draws = json.loads(shared("golden", "datasets", "expected_mglmm.json").read_text())["draws"]
    peer = draws["grandf" if form == "ha" else "psg"][0]
    source = GranDfSource(golden, form=form)
    sample = source.sample(0)
    text, phrases = told(sample)
    assert text == "A man riding a horse on the beach near two dogs."
    assert list(phrases) == ["A man", "a horse", "two dogs"] == peer["selected_labels"]
    assert peer["masks"]["items"][1]["unique_values"] == [0, 1, 2]  # the peer sums the two masks of the horse
    for region, item in zip(sample.regions, peer["masks"]["items"], strict=True):
        assert (region.mask == masks.decode(item["rle_nonzero"])).all()
    apart = GranDfSource(golden, form=form, apart=True).sample(0)
    assert [len(phrase.regions) for phrase in apart.conversations[0].turns[1].phrases] == [1, 2, 2]


def test_a_phrase_without_a_place_goes_with_its_mask(golden):
    source = GranDfSource(golden, form="ha")
    # GLaMM grounds "missing", which is not in the caption, at [-1, -1]: its mask comes before the sky's
    assert told(source.sample(1)) == ("The sky is blue.", {"The sky": [1280]})
    assert source.skipped == {"phrase that is not in its caption": 1}


def test_refcocog_finds_phrases_in_any_case_and_never_shifts_masks(golden, shared):
    draws = json.loads(shared("golden", "datasets", "expected_mglmm.json").read_text())["draws"]
    peer = [masks.decode(item["rle_nonzero"]).sum() for item in draws["refcocog_gcg"][0]["masks"]["items"]]
    assert draws["refcocog_gcg"][0]["selected_labels"] == ["Brown dog", "brown dog"] and peer == [28, 418]
    # MGLMM's second phrase is "the small dog", and its mask there is the large brown dog's
    source = GranDfSource(golden, form="refcocog")
    text, phrases = told(source.sample(0))
    assert text == "The brown dog next to the small dog at the bottom"  # as written, not in lower case
    assert phrases == {"brown dog": [418, 28], "the small dog at the bottom": [108]}
    assert source.skipped == {"phrase that is not in its caption": 1}  # "a zebra"


def test_flickr_leaves_out_what_the_peers_leave_out_and_counts_it(golden):
    source = GranDfSource(golden, form="flickr")
    assert told(source.sample(0)) == (
        "Two young guys with shaggy hair look at their hands.",
        {"Two young guys": [400], "shaggy hair": [100]},
    )
    assert source.skipped == {
        "annotation without an area": 1,
        "image below 32 px": 1,
        "caption of fewer than 3 words": 1,
    }


@settings(max_examples=60)
@given(
    st.text("ab, .", min_size=1, max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=6)
)
def test_spans_never_overlap_and_begin_and_end_with_a_word(text, marks):
    spans = [Span(a, a + n, (i,)) for i, (a, n) in enumerate(marks) if a + n <= len(text) and text[a : a + n].strip()]
    grounded = ground(text, spans)
    end = 0
    for phrase in grounded.phrases:
        words = text[phrase.start : phrase.end]
        assert end <= phrase.start < phrase.end and words == words.strip()
        assert all(
            any(span.start <= phrase.start and phrase.end <= span.end for span in spans if region in span.regions)
            for region in phrase.regions
        )
        end = phrase.end
    kept = {region for phrase in grounded.phrases for region in phrase.regions}
    assert grounded.notes or kept == {region for span in spans for region in span.regions}


def test_nested_and_equal_spans():
    text = "the man with a red hat"
    nested = ground(text, [Span(0, 22, (0,)), Span(13, 22, (1,))])
    assert [(text[p.start : p.end], p.regions) for p in nested.phrases] == [("the man", (0,)), ("a red hat", (1,))]
    same = ground(text, [Span(0, 22, (0,)), Span(0, 7, (0,)), Span(0, 22, (2,))])
    assert [(text[p.start : p.end], p.regions) for p in same.phrases] == [(text, (0, 2))] and len(same.notes) == 1
    with pytest.raises(ValueError, match="leaves the text of 22 characters"):
        ground(text, [Span(5, 23, (0,))])


@pytest.mark.parametrize(
    ("phrase", "number", "found"),
    [
        ("DOG", 0, (2, 5)),
        ("dog", 1, (11, 14)),
        ("dog", 5, (11, 14)),
        ("do", 0, None),
        ("a  dog", 0, (0, 5)),
        ("", 0, None),
    ],
)
def test_phrases_are_found_as_words(phrase, number, found):
    assert find_phrase("a dog, the dog", phrase, number) == found


def test_quotation_marks_come_off():
    assert unquoted(' "A dog." ') == ("A dog.", 2) and unquoted("A") == ("A", 0) and unquoted('""') == ("", 0)


@pytest.fixture
def write(tmp_path):
    """A GCG file of one record: `write(record)` gives the arguments of its source."""
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "a.jpg")

    def writing(record, name="g.json"):
        (tmp_path / name).write_text(json.dumps(record))
        return {"path": tmp_path / name, "image_root": tmp_path}

    return writing


def record():
    return {
        "file_name": "a.jpg",
        "caption": "A dog and a cat",
        "groundings": {
            "A dog": {"token_positives": [0, 5], "rle_masks": [masks.encode(square(1, 1))]},
            "a cat": {"token_positives": [10, 15], "rle_masks": [masks.encode(square(20, 9))]},
        },
    }


def test_offsets_that_count_the_quotation_mark(write):
    one: dict[str, Any] = record() | {"caption": '"A dog and a cat"'}
    for item in one["groundings"].values():
        item["token_positives"] = [at + 1 for at in item["token_positives"]]
    assert list(told(GranDfSource(form="ha", **write([one])).sample(0))[1]) == ["A dog", "a cat"]


@pytest.mark.parametrize("counted", [0, 2], ids=["clean", "as written"])
def test_offsets_that_count_blanks_before_a_caption(write, counted, monkeypatch):
    monkeypatch.setattr(grandf_forms, "MIN_SIDE", 8)
    marks = [{"tokens_positive": [[at + counted, at + 5 + counted]], "sam_mask": masks.encode(square(at, 3))}
             for at in (0, 12)]  # fmt: skip
    found = [{"image_id": 1, "area": 64, "bbox": [0, 0, 8, 8], **mark} for mark in marks]
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1], "caption": "  A man walks a dog ."}
    source = GranDfSource(form="flickr", **write({"images": [image], "annotations": found}))
    assert told(source.sample(0)) == ("A man walks a dog .", {"A man": [64], "a dog": [64]})
    found[0]["tokens_positive"] = [[-1, -1]]
    with pytest.raises(ValueError, match="is at characters"):
        GranDfSource(form="flickr", **write({"images": [image], "annotations": found}))


BAD = {
    "no caption": (lambda r: r.pop("caption"), "has no 'caption'"),
    "caption of another type": (lambda r: r.update(caption=3), "its 'caption' is 3"),
    "no groundings": (lambda r: r.pop("groundings"), "has no 'groundings'"),
    "positions": (lambda r: r["groundings"]["A dog"].update(token_positives=[0]), "'A dog' has the token_positives"),
    "nan": (lambda r: r["groundings"]["A dog"].update(token_positives=[0, float("nan")]), "NaN"),
    "leaves the caption": (
        lambda r: r["groundings"]["a cat"].update(token_positives=[10, 99]),
        "'a cat' is at characters 10:99 of a caption of 15",
    ),
    "no masks": (lambda r: r["groundings"]["A dog"].update(rle_masks=[]), "'A dog' has no mask"),
    "other size": (
        lambda r: r["groundings"]["A dog"].update(rle_masks=[{"size": [9, 9], "counts": "0"}]),
        r"RLE is of size \[30, 40\], its image of \[9, 9\]",
    ),
    "damaged": (
        lambda r: r["groundings"]["A dog"]["rle_masks"][0].update(counts="zz"),
        "phrase 'A dog': the RLE's counts do not fill",
    ),
    "image": (lambda r: r.update(file_name="b.jpg"), "its image 'b.jpg' is missing"),
    "root": (lambda r: r.update(file_name="../b.jpg"), "leaves the folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_names_file_and_record(write, name):
    change, message = BAD[name]
    one = record()
    change(one)
    with pytest.raises(ValueError, match=rf"g\.json: .*(number 0|\[0\]).*{message}"):
        GranDfSource(form="ha", **write([one])).sample(0)


def test_masks_of_another_image_and_latin_1(write, tmp_path):
    one = record()
    for item in one["groundings"].values():
        item["rle_masks"] = [masks.encode(np.ones((9, 9), bool))]
    with pytest.raises(ValueError, match=r"g\.json: record number 0: phrase 'A dog': .*\[9, 9\].*\[30, 40\]"):
        GranDfSource(form="ha", **write([one])).sample(0)
    arguments = write([record()])
    (tmp_path / "g.json").write_bytes(json.dumps([record()]).replace("dog", "caf\u00e9").encode("latin-1"))
    with pytest.raises(ValueError, match=r"g\.json: record\[0\].* text that is not UTF-8"):
        GranDfSource(form="ha", **arguments)
    with pytest.raises(ValueError, match="form is 'pgs', did you mean 'psg'"):
        GranDfSource(form="pgs")


@pytest.mark.parametrize("height", [None, "30", 10**400])
def test_the_size_of_refcocog_is_checked(write, height):
    refs = [{"sentence": "a dog", "segmentation": [[1, 1, 9, 1, 9, 9]]}]
    one = {"7": {"img_file_name": "a.jpg", "caption": "A dog", "refs": refs, "height": height, "width": 40}}
    with pytest.raises(ValueError, match=r"g\.json: record number 0: its 'height' is"):
        GranDfSource(form="refcocog", **write([one]))


def pair():
    captions = {
        "images": [{"id": "a"}],
        "annotations": [{"image_id": "a", "caption": '"A dog and a cat"', "labels": ["a cat", "a dog"], "id": 0}],
    }
    found = [{"image_id": "a", "segmentation": masks.encode(square(x, 5)), "category_id": 1} for x in (20, 1)]
    return captions, {"annotations": found}


def test_the_evaluation_pair(write):
    captions, found = pair()
    write(found, "val_gcg_coco_mask_gt.json")
    source = GranDfSource(form="eval", **write(captions, "val_gcg_coco_caption_gt.json"))
    turn = source.sample(0).conversations[0].turns[1]
    regions = source.sample(0).regions
    bounds = {turn.text[p.start : p.end]: regions[p.regions[0]].bounds for p in turn.phrases}
    boxes = {words: box[0] for words, box in bounds.items() if box}
    assert turn.text == "A dog and a cat" and boxes == {"A dog": 1, "a cat": 20}
    found["annotations"].pop()
    write(found, "val_gcg_coco_mask_gt.json")
    with pytest.raises(ValueError, match=r"caption_gt\.json: annotation number 0: has 2 labels, .*mask_gt\.json has 1"):
        GranDfSource(form="eval", **write(captions, "val_gcg_coco_caption_gt.json"))


def test_every_label_of_the_evaluation_pair_counts(write):
    labels = ["a dog", "the sky", "a dog", "A cat", "the dog"]
    one = {"image_id": "a", "caption": "A cat and a dog. The dog sits.", "labels": labels}
    captions = {"images": [{"id": "a"}], "annotations": [one]}
    found = [masks.encode(square(x, 5)) for x in (1, 10, 20, 30, 1)]
    write({"annotations": [{"image_id": "a", "segmentation": rle} for rle in found]}, "val_gcg_coco_mask_gt.json")
    source = GranDfSource(form="eval", **write(captions, "val_gcg_coco_caption_gt.json"))
    sample = source.sample(0)
    words, regions = zip(*sample.meta["gcg_labels"], strict=True)
    assert list(words) == labels  # in the file's order, `the sky` with its mask
    for region, rle in zip(regions, found, strict=True):
        assert (sample.regions[region].mask == masks.decode(rle)).all()
    assert regions[0] == regions[4] and source.skipped == {"phrase that is not in its caption": 1}

    def recall(*xs):
        metric = Grounding(Vocabulary({"dog": "thing"}, frozenset(), frozenset()))
        instances = tuple(Instance(square(x, 5), None, 1.0) for x in xs)
        answer = Answer("a dog", (Phrase("a dog", (0, 5), instances),), sample.image)
        metric.update(Item(sample, sample.conversations[0]), answer)
        return metric.compute()["recall@0.5"]

    assert recall(10) == 1 / 5 and recall(1, 10, 20, 30) == 4 / 5 and recall(1, 1, 10, 20, 30) == 1


def test_an_evaluation_caption_that_says_none_of_its_labels(write):
    captions, found = pair()
    captions["annotations"][0]["caption"] = "Nothing."
    write(found, "val_gcg_coco_mask_gt.json")
    sample = GranDfSource(form="eval", **write(captions, "val_gcg_coco_caption_gt.json")).sample(0)
    assert told(sample) == ("Nothing.", {}) and sample.meta["gcg_labels"] == (("a cat", 0), ("a dog", 1))


def test_mgsc_root_and_subtree(golden, shared):
    files = json.loads(shared("golden", "datasets", "expected_mglmm.json").read_text())["mgsc_convert"]["files"]
    sample = MgscSource(golden, turns=None).sample(0)
    captions = [one["caption"].strip('"') for one in files["all_mgsc_caption_gt.json"]["annotations"]]
    assert [told(sample, number)[0] for number in (0, 1)] == captions[:2]
    assert told(sample, 0)[1] == {"a man": [375], "a horse": [500]}
    assert told(sample, 1)[1] == {"a hat": [24], "a white shirt": [120]}
    assert "a man" in sample.conversations[1].turns[0].text
    for region, item in zip(sample.regions, files["all_mgsc_mask_gt.json"]["annotations"], strict=True):
        assert (region.mask == masks.decode(item["segmentation"])).all()
    # the converter swaps width and height: its images are 48 x 64 where the masks are 48 high and 64 wide
    assert files["all_mgsc_caption_gt.json"]["images"][0]["width"] == 48 and sample.size == (48, 64)
    for nodes in ("root", "subtree"):
        kinds = {c.kind for c in MgscSource(golden, nodes=nodes, turns=None).sample(0).conversations}
        assert kinds == {nodes}


def pack(mask):
    rle = masks.encode(mask)
    return json.dumps({"size": rle["size"], "counts": base64.b64encode(rle["counts"].encode()).decode()})


MGSC_BAD = {
    "no field": (lambda n: n.pop("obj_1"), "has no 'obj_1'"),
    "no label": (lambda n: n["obj_1"].pop("label"), "has no 'label'"),
    "no json": (lambda n: n["obj_1"].update(mask="{"), "'obj_1' has a mask that is no json with base64"),
    "no base64": (lambda n: n["obj_1"].update(mask='{"size": [30, 40], "counts": "%"}'), "no json with base64"),
    "other size": (lambda n: n["obj_1"].update(mask=pack(np.ones((9, 9), bool))), r"obj_1.*\[9, 9\].*\[30, 40\]"),
    "other tag": (lambda n: n.update(gcg_labels=["obj_2"]), "has the tag <obj_1>, which is not among gcg_labels"),
    "open": (lambda n: n.update(gcg_caption="A <obj_1>dog"), "opens <obj_1> and does not close it"),
    "closed": (lambda n: n.update(gcg_caption="A dog</obj_1>"), "closes </obj_1>, which is not open"),
    "nested": (lambda n: n.update(gcg_caption="<obj_1>A <obj_1>dog</obj_1></obj_1>"), "opens <obj_1> inside"),
    "empty mask": (lambda n: n["obj_1"].update(mask=pack(np.zeros(SIZE, bool))), "covers no pixel"),
    "image": (lambda n: n.update(file_name="b.jpg"), "'b.jpg' is missing"),
}


@pytest.mark.parametrize("name", MGSC_BAD)
def test_bad_nodes_of_mgsc(tmp_path, name):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "a.jpg")
    (tmp_path / "annotations").mkdir()
    node = {"file_name": "a.jpg", "label": "root", "type": "root", "gcg_caption": "<obj_1>A dog</obj_1>."}
    node |= {"gcg_labels": ["obj_1"], "obj_1": {"label": "a dog", "mask": pack(square(1, 1))}}
    MGSC_BAD[name][0](node)
    (tmp_path / "annotations" / "n.json").write_text(json.dumps([node]))
    with pytest.raises(ValueError, match=rf"n\.json: .*{MGSC_BAD[name][1]}"):
        MgscSource(tmp_path, split="all").sample(0)


def test_a_split_that_leaves_its_folder(golden, tmp_path):
    shutil.copytree(golden / "MGLMM_gcg_new", tmp_path / "m")
    (tmp_path / "m" / "MGLMM_train_split.txt").write_text("../../x.json\n")
    with pytest.raises(ValueError, match=r"x\.json: leaves the folder"):
        MgscSource(tmp_path / "m", image_root=golden / "SegmentAnything" / "imgs")


def grand(tmp_path, data, **options):
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "sa_1.jpg")
    (tmp_path / "j").mkdir(exist_ok=True)
    (tmp_path / "j" / "sa_1.json").write_text(json.dumps(data))
    spec = {"type": "grand", "root": tmp_path / "j", "form": "full", "image_root": tmp_path, "turns": None}
    return make_source(spec | options).sample(0)


def test_grand_in_its_forms(tmp_path):
    dog, cat = masks.encode(square(1, 1)), masks.encode(square(20, 9))
    said = grand(
        tmp_path, {"sa_1.jpg": [{"attribute": "istant: a black dog", "bbox": [1, 1, 9, 9], "segmentation": dog}]}
    )
    assert told(said) == ("a black dog.", {"a black dog": [64]})
    details = [
        {"phrase": "a dog", "tokens_positive": [0, 5], "id": 3, "segmentation": dog},
        {"phrase": "cats", "tokens_positive": None, "id": 4, "segmentation": cat},
    ]
    caption = {"caption": '"A dog beside cats"', "details": details}
    assert told(grand(tmp_path, [caption])) == ("A dog beside cats", {"A dog": [64]})
    details[0]["tokens_positive"] = [1, 6]  # counts the quotation mark
    assert told(grand(tmp_path, [caption])) == ("A dog beside cats", {"A dog": [64]})
    full = {
        "objects": [
            {"id": 3, "bbox": [1, 1, 9, 9], "segmentation": dog, "labels": ["dog"], "attributes": ["one dog", "it is"]},
            {"id": 4, "bbox": [20, 9, 28, 17], "segmentation": cat, "labels": ["cat"], "attributes": None},
        ],
        "floating_objects": [],
        "short_captions": [{"caption": "A dog", "details": [{"phrase": "A dog", "tokens_positive": [0, 5], "id": 3}]}],
        "dense_caption": {
            "caption": "Dogs, a cat",
            "details": [
                {"phrase": "Dogs", "tokens_positive": [0, 4], "ids": [3, 4]},
                {"phrase": "a cat", "tokens_positive": [6, 11], "ids": [4]},
            ],
        },
    }
    sample = grand(tmp_path, {"sa_1.jpg": full})
    assert [told(sample, number) for number in range(3)] == [
        ("one dog.", {"one dog": [64]}),
        ("A dog", {"A dog": [64]}),
        ("Dogs, a cat", {"Dogs": [64, 64], "a cat": [64]}),
    ]
    full["dense_caption"]["details"][0]["ids"] = [9]
    with pytest.raises(ValueError, match=r"sa_1\.json: speaks of object 9, which is absent"):
        grand(tmp_path, {"sa_1.jpg": full})


@pytest.mark.parametrize("level", ["level_3_dense_caption", "level_4_extra_context"])
def test_real_grand_records_are_answered_by_their_own_boxes(shared, tmp_path, level):
    folder = shared("data", "grand_samples", "GranD", level, "in_context_examples")
    record = json.loads((folder / "sa_302406.json").read_text())["sa_302406.jpg"]
    Image.new("RGB", (2250, 1500)).save(tmp_path / "sa_302406.jpg")
    source = make_source({"type": "grand", "root": folder, "form": "full", "image_root": tmp_path, "turns": None})
    sample = source.sample(0)
    boxes = [one["bbox"] for one in [*record["objects"], *record["floating_objects"]]]
    inside = np.clip(boxes, 0, (2250, 1500, 2250, 1500))
    assert all(np.abs(inside - region.box).sum(1).min() < 1e-6 for region in sample.regions)
    assert len(sample.conversations) == sum(len(attributes(one)) for one in record["objects"]) + 2 == 21
    text, phrases = told(sample, -1)
    assert text == record["captions"][1] and list(phrases)[1:] == [
        "outdoor seating",
        "tables and chairs",
        "the vibrant atmosphere",
    ]
    assert "cut at the border" in sample.meta["notes"][0]
