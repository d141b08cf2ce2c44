"""Data sets by name: three layouts, near misses, and what is missing said before a run."""

import inspect
import shutil

import pytest

from mglmm_data import resolver
from mglmm_data.registry import SOURCES, make_source
from mglmm_data.resolver import ENTRIES, VARIABLE, discover, resolve, specs_at

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
        ("b.json", {"type": "coco", "json_path": "b.json"}),
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
