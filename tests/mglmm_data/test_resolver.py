"""Data sets by name: three layouts, near misses, and what is missing said before a run."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest

from mglmm_data import masks, resolver
from mglmm_data.images import as_large_as
from mglmm_data.layouts import ENTRIES
from mglmm_data.registry import SOURCES, make_source
from mglmm_data.resolver import VARIABLE, discover, resolve, specs_at

GOLDEN = ("golden", "datasets", "data")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_entries_fit_their_sources(name):
    entry = ENTRIES[name]
    parameters = inspect.signature(SOURCES[entry.type]).parameters
    assert {*entry.paths, *entry.fixed} <= parameters.keys()
    needed = {key for key, value in parameters.items() if value.default is inspect.Parameter.empty}
    assert needed <= {*entry.paths, *entry.fixed} and not set(entry.optional) & needed
    assert "split" in parameters or not entry.splits


def test_every_set_of_the_golden_tree_is_found_and_read(shared):
    specs, partly = discover(shared(*GOLDEN))
    assert not partly
    names = {name.partition("/")[0] for name in specs}
    assert names >= {
        *("ade20k", "cocostuff", "mapillary", "paco_lvis", "pascal_part", "coco_panoptic_val", "refclef", "refcoco"),
        *("refcoco+", "refcocog", "grefcoco", "reasonseg", "muse_train", "grandf_ha", "openpsg_gcg", "refcocog_gcg"),
        *("flickr_gcg", "mgscdata", "coco_captions_train", "llava_instruct", "vg_regions", "rec_refcoco_train"),
    }
    for spec in specs.values():
        if spec["type"] != "region_captions":  # its trap, a box outside the image, is test_check's
            source = make_source(spec)
            assert len(source) and source.sample(0).conversations


def test_every_reader_decodes_its_photographs_as_large_as_needed(shared):
    specs, _ = discover(shared(*GOLDEN))
    seen = 0
    for name, spec in specs.items():
        source = make_source({**spec, "on_error": "count"})
        whole = source.sample(0)
        with as_large_as(8):
            small = source.sample(0)
        assert (small.size, small.regions, small.conversations) == (whole.size, whole.regions, whole.conversations)
        assert source.id_of(0) == small.id == whole.id and whole.full_size is None, name
        if str(whole.meta["file"]).endswith(".jpg"):
            seen += 1
            assert 8 <= max(small.image.shape) < 16 and max(whole.size) >= 16, name
    assert seen > 20


GLAMM = {
    "ade20k": "Semantic_Segm/ade20k",
    "mapillary": "Semantic_Segm/mapillary",
    "vlpart/paco": "Semantic_Segm/paco_lvis",
    "vlpart/pascal_part": "Semantic_Segm/pascal_part",
    "refer_seg": "Refer_Segm",
    "coco": "coco_2017",
    "flickr_30k/images": "flikcr_30k/train",
    "GranDf": "GranDf",
    "llava_dataset": "llava_dataset",
}
"""Where GLaMM expects what LISA and MGLMM have at the left."""


def test_glamms_layout_works_as_it_is(shared, tmp_path):
    for ours, theirs in GLAMM.items():
        shutil.copytree(shared(*GOLDEN, *ours.split("/")), tmp_path / theirs)
    shutil.move(tmp_path / "coco_2017" / "train2014", tmp_path / "coco_2014" / "train2014")
    ours, _ = discover(shared(*GOLDEN))
    theirs, partly = discover(tmp_path)
    assert not partly
    for name in ("ade20k/training", "mapillary/training", "paco_lvis", "pascal_part", "refcoco/train", "refclef/train",
                 "grandf_ha", "refcocog_gcg", "flickr_gcg", "llava_instruct", "coco_captions_train"):  # fmt: skip
        one, other = make_source(ours[name]), make_source(theirs[name])
        assert len(one) == len(other)
        assert [one.sample(i).conversations for i in range(len(one))] == [
            other.sample(i).conversations for i in range(len(other))
        ]


def test_every_evaluation_input_is_found(shared, tmp_path):
    """The pair of GCG, REC's test splits and the benchmarks, from the files that there are."""
    root, golden = tmp_path / "data", shared(*GOLDEN)
    shutil.copytree(golden / "coco", root / "coco")
    shutil.copytree(golden / "coco" / "val2017", root / "coco" / "val2014")
    shutil.copytree(golden / "coco" / "val2017", root / "GranDf" / "GranDf_HA_images" / "val_test")
    pair = root / "GranDf" / "annotations" / "val_test"
    pair.mkdir(parents=True)
    image = {"id": 139, "file_name": "000000000139.jpg"}
    mask = masks.encode(np.pad(np.ones((9, 9), bool), ((0, 39), (0, 55))))
    told = {"image_id": 139, "caption": "A room.", "labels": ["A room"]}
    for kind, record in (("caption", told), ("mask", {"image_id": 139, "segmentation": mask})):
        file = pair / f"val_gcg_coco_{kind}_gt.json"
        file.write_text(json.dumps({"images": [image], "annotations": [record]}))
    mdetr = root / "mdetr_annotations"
    mdetr.mkdir()
    rec = json.loads((golden / "RefCoco_Reg" / "mdetr_annotations" / "finetune_refcoco_train.json").read_text())
    for name in ("refcoco_testA", "refcoco+_testB", "refcocog_test"):
        (mdetr / f"finetune_{name}.json").write_text(json.dumps(rec))
    shutil.copytree(shared("data", "vlm_bench"), root / "vlm_bench")
    photo = root / "coco" / "val2014" / "000000000139.jpg"
    shutil.copy(photo, photo.with_name("COCO_val2014_000000310196.jpg"))  # any picture will do
    specs, partly = discover(root)
    assert {*specs} >= {
        *("gcg_val", "rec_refcoco_testA", "rec_refcoco+_testB", "rec_refcocog_test"),
        *("pope_random", "pope_popular", "ferret_bench_ground_conv", "ferret_bench_refer_caption", "llava_bench"),
    }
    assert any("'pointqa_spatial' is not complete: no image_root" in text for text in partly)
    assert make_source(specs["gcg_val"]).sample(0).conversations[0].turns[1].text == "A room."
    assert len(make_source(specs["rec_refcoco_testA"])) == len(make_source(specs["rec_refcocog_test"]))
    assert len(make_source({**specs["pope_random"], "on_error": "count"})) == 6
    assert specs["pope_random"]["image_root"] == [str(root / "coco" / year) for year in ("val2014", "val2017")]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("rec_refcoco_testa", "rec_refcoco_testA"),
        ("gcg_vall", "gcg_val"),
        ("pope_ramdom", "pope_random"),
        ("ferretbench_ground_conv", "ferret_bench_ground_conv"),
        ("pointqa_loca", "pointqa_local"),
        ("visual7w_pointng", "visual7w_pointing"),
        ("llava_bnch", "llava_bench"),
        ("lvis_referring_pont", "lvis_referring_point"),
        ("grt", "grit"),
        ("osprey_short_from", "osprey_short_form"),
    ],
)
def test_the_near_miss_of_a_name(given, meant, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"did you mean {meant!r}")):
        resolve(given, tmp_path)


def test_names_roots_and_keys(shared, tmp_path, monkeypatch):
    root = shared(*GOLDEN)
    monkeypatch.setenv(VARIABLE, f"{tmp_path}:{root}")
    spec = {"type": "dataset", "name": "refcoco", "split": "val", "turns": 1}
    assert len(make_source(spec)) == len(make_source({"type": "dataset", "name": "refcoco/val"})) == 2
    assert resolve("ade20k", root)["root"] == str(root / "ade20k")
    assert resolve("ade20k/validation", [tmp_path, root])["split"] == "validation"
    assert resolve("paco_lvis", root, image_root="elsewhere")["image_root"] == "elsewhere"
    assert list(specs_at("refcoco")) == ["refcoco/train"] and list(specs_at("vg_regions")) == ["vg_regions"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refcocoo", r"no data set 'refcocoo', did you mean 'refcoco'"),
        ("refcoco/tset", r"no split 'tset'.* known: testA, testB, train, val"),
        ("camvid", r"data set 'camvid' is not complete: no root \(tried .*camvid/train.txt"),
        ("lvis_val", r"no json_path \(tried .*lvis_v1_val.json"),
    ],
)
def test_what_is_not_there_is_said(shared, name, words):
    with pytest.raises(ValueError, match=words):
        resolve(name, shared(*GOLDEN))


def test_without_a_root(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match="export MGLMM_DATA="):
        resolve("refcoco")
    with pytest.raises(ValueError, match="data folder .*nowhere does not exist"):
        resolve("refcoco", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs a name"):
        make_source({"type": "dataset"})
    with pytest.raises(ValueError, match="did you mean 'refcoco'"):
        specs_at("refcoc")
    with pytest.raises(ValueError, match="holds no data that is known here"):
        specs_at(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt is no data"):
        specs_at(str(tmp_path / "a.txt"))


def test_a_path_says_what_it_is(tmp_path):
    for name, found in (
        ("a.jsonl", {"type": "jsonl", "path": "a.jsonl"}),
        ("c.tar", {"type": "shards", "path": "c.tar"}),
    ):
        path = tmp_path / name
        path.write_text("")
        kind, (key, _) = list(found.items())
        assert specs_at(str(path)) == {path.stem: dict([kind, (key, str(path))])}
    assert specs_at(str(tmp_path)) == {tmp_path.name: {"type": "shards", "path": str(tmp_path)}}
    (tmp_path / "samples.jsonl").write_text("")
    assert specs_at(str(tmp_path))[tmp_path.name]["type"] == "jsonl"
    assert specs_at("world") == {"world": {"type": "world"}}
    assert specs_at("memory://bucket")["bucket"] == {"type": "shards", "path": "memory://bucket"}
    assert resolver.roots_of([tmp_path]) == [tmp_path]


@pytest.mark.parametrize(
    ("place", "kinds"),
    [
        ("lvis", ["lvis"]),
        ("coco_panoptic/sample_data", ["coco", "coco_panoptic"]),
        ("coco_panoptic/sample_data/panoptic_examples.json", ["coco_panoptic"]),
        ("refcoco_eval", ["rec"] * 3),
        ("labelme_voc/data_annotated", ["labelme"]),
        ("labelme_voc/data_dataset_coco", ["coco"]),
        ("labelme_voc/data_dataset_voc", ["voc"]),
        ("coco128_seg", ["yolo"]),
        ("camvid", ["camvid", "camvid"]),
        ("carparts", ["carparts"]),
        ("fashionpedia", ["fashionpedia"]),
        ("ade20k_sceneparsing", ["ade20k"]),
    ],
)
def test_jsons_and_folders_are_known_by_what_is_in_them(shared, place, kinds):
    specs = specs_at(str(shared("data", *place.split("/"))))
    assert sorted(spec["type"] for spec in specs.values()) == kinds
    for spec in specs.values():
        if spec["type"] in ("labelme", "voc", "yolo", "camvid", "carparts", "fashionpedia", "ade20k"):
            assert make_source(spec).sample(0).conversations


def test_a_json_that_its_keys_do_not_tell(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    for path in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(ValueError, match=r"a\.json.* a json whose keys do not tell its type; write a config"):
            specs_at(str(path))
    (tmp_path / "a.json").write_text('{"images": [], "categories": [], "annotations": [{"segmentation": []}]}')
    assert specs_at(str(tmp_path / "a.json")) == {"a": {"type": "coco", "json_path": str(tmp_path / "a.json")}}
