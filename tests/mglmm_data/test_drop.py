"""Lists of what to drop: what they name is gone and counted, what fits nothing is an error."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mglmm_data.check import check
from mglmm_data.drop import Dropping
from mglmm_data.export import picture_of
from mglmm_data.mixture import Mixture
from mglmm_data.registry import make_source
from mglmm_data.sample import Conversation, Sample, Turn
from mglmm_data.shards import write_shards


@pytest.fixture
def mine(tmp_path):
    """Spec of a JSONL of six pictures: n0 to n5; that of n2 is cut off, and a seventh line is no json."""
    lines = []
    for number in range(6):
        Image.fromarray(np.full((20, 20, 3), 30 * number, np.uint8)).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "id": f"n{number}", "regions": [{"label": "cat", "box": [5, 5, 9, 9]}]}
        lines.append(json.dumps(line))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    return {"type": "jsonl", "path": str(tmp_path), "tasks": {"panoptic": 1}}


@pytest.fixture
def drop(tmp_path):
    """A function from lines to the path of their list."""

    def write(*lines):
        path = tmp_path / "fix.list"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write


def broken(mine) -> str:
    source: Any = make_source({**mine, "on_error": "count"})
    return source.problems.found[0]


def test_a_list_goes_with_its_data_to_another_folder(mine, drop, tmp_path, monkeypatch):
    """Sentences about records that never became samples name paths; another spelling of them is no other problem."""
    report = check({"mine": mine}, processes=1)
    path = drop(*({**vars(one)} for one in report.problems))
    monkeypatch.chdir(tmp_path.parent)
    source: Any = make_source({**mine, "path": tmp_path.name, "drop": path}, "mine")
    assert len(source) == 5 and source.dropped[0].startswith(f"{path}: line 1: {tmp_path.name}/samples.jsonl")
    moved = tmp_path.rename(tmp_path.parent / "moved")
    assert len(make_source({**mine, "path": str(moved), "drop": str(moved / "fix.list")}, "mine")) == 5
    text = (moved / "samples.jsonl").read_text()
    (moved / "samples.jsonl").write_text(text.replace("{\n", '{"image": "1.png", "regions": "x"}\n'))
    with pytest.raises(ValueError, match="nothing of the kind is wrong here any more.* check the data again and write"):
        make_source({**mine, "path": str(moved), "drop": str(moved / "fix.list")}, "mine")


def test_what_a_check_lists_is_dropped_and_the_rest_is_right(mine, drop):
    report = check({"mine": mine}, processes=1)
    assert [(one.index, one.id) for one in report.problems] == [(None, ""), (2, "n2")]
    path = drop(*({**vars(one)} for one in report.problems))
    source = make_source({**mine, "drop": path}, "mine")
    assert isinstance(source, Dropping) and len(source) == 5
    assert [source.sample(index).id for index in range(5)] == ["n0", "n1", "n3", "n4", "n5"]
    assert [source.id_of(index) for index in range(5)] == ["n0", "n1", "n3", "n4", "n5"]
    assert source.skipped == {"dropped by fix.list": 2} and "n2, unreadable file" in source.dropped[1]
    again = check({"mine": {**mine, "drop": path}}, processes=1).found["mine"]
    assert not again.problems and again.looked_at == 5 and len(again.dropped) == 2
    with pytest.raises(IndexError):
        source.sample(5)


def test_by_hand_an_id_is_enough(mine, drop):
    source = make_source({**mine, "drop": drop({"id": "n2"}, {"id": "n0"}, {"problem": broken(mine)})})
    assert [source.id_of(index) for index in range(len(source))] == ["n1", "n3", "n4", "n5"]
    moved = make_source({**mine, "drop": drop({"id": "n4", "index": 1}, {"problem": broken(mine)})})
    assert [moved.id_of(index) for index in range(len(moved))] == ["n0", "n1", "n2", "n3", "n5"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "fix.list: line 1: is no json"),
        (["[]"], "line 1: is \\[\\] \\(list\\)"),
        ([{"idd": "n1"}], "unknown key 'idd', did you mean 'id'"),
        ([{"id": 3}], "its 'id' is 3 \\(int\\); expected str"),
        ([{"kind": "empty mask"}], "names nothing"),
        ([], "fix.list is empty"),
        ([{"id": "n22"}], "line 1: no sample of source 'mine' has the id 'n22', did you mean 'n2'"),
        ([{"index": 6}], "its index is 6; source 'mine' has samples 0..5"),
        ([{"problem": "gone"}], "nothing of the kind is wrong here any more; check the data again"),
        ([{"id": "n2"}], "line 7: is no json.*add it to .*fix.list"),
        ([{"id": "n1", "source": "a"}, {"id": "n2", "source": "mini"}], "nothing to drop of source 'mine'.*'mini'"),
    ],
)
def test_a_list_that_does_not_fit(mine, drop, lines, words):
    with pytest.raises(ValueError, match=words):
        make_source({**mine, "drop": drop(*lines)}, "mine")


def test_everything_and_twins(mine, drop, tmp_path):
    every = [{"id": f"n{number}"} for number in range(6)]
    with pytest.raises(ValueError, match="drops all 6 samples of the source"):
        make_source({**mine, "drop": drop(*every, {"problem": broken(mine)})})
    (tmp_path / "samples.jsonl").write_text('{"image": "1.png", "id": "a", "conversations": []}\n' * 3)
    with pytest.raises(ValueError, match=r"'a' is the id of 3 samples \(0, 1, 2\); give its index"):
        make_source({**mine, "drop": drop({"id": "a"})})
    assert len(make_source({**mine, "drop": drop({"id": "a", "index": 1})})) == 2
    with pytest.raises(ValueError, match="drop of a source of type 'jsonl' is 3"):
        make_source({**mine, "drop": 3})
    with pytest.raises(ValueError, match="unknown key 'dropp'.*did you mean 'drop'"):
        make_source({**mine, "dropp": "x"})
    with pytest.raises(ValueError, match="no.list does not exist"):
        make_source({**mine, "drop": "no.list"})


def test_samples_of_several_sources_in_one_list(mine, drop):
    path = drop({"id": "n1", "source": "a"}, {"id": "n2", "source": "mine"}, {"problem": broken(mine)})
    assert make_source({**mine, "drop": path}, "mine").id_of(2) == "n3"
    assert make_source({**mine, "drop": path}, "a").id_of(1) == "n2"


def test_dropping_from_a_world_and_from_shards(drop, tmp_path):
    world = make_source({"type": "world", "size": 64, "drop": drop({"index": 1}, {"id": "world-0", "index": 0})})
    assert world.id_of(0) == world.sample(0).id == "world-2"
    image = np.zeros((8, 8, 3), np.uint8)
    samples = [
        Sample(image, (), (Conversation((Turn("user", "?"), Turn("assistant", "!"))),), id=f"n{n}") for n in range(9)
    ]
    write_shards(((sample, *picture_of(sample)) for sample in samples), tmp_path / "tars", 3)
    path = drop({"id": "n1"}, *({"id": f"n{n}"} for n in (3, 4, 5)))
    source = make_source({"type": "shards", "path": str(tmp_path / "tars"), "buffer": 2, "drop": path})
    mixture = Mixture({"shards": source}, seed=1)
    mixture.fetch(range(5))
    drawn = [mixture.sample(step).id for step in range(10)]
    assert Counter(drawn) == dict.fromkeys(("n0", "n2", "n6", "n7", "n8"), 2)
    assert {*drawn[:2]} in ({"n0", "n2"}, {"n6", "n7"}, {"n7", "n8"}, {"n6", "n8"})  # still shard by shard


def test_leaks_are_dropped_by_sample(mine, tmp_path, drop):
    lines = [
        json.dumps({"image": f"{n}.png", "id": f"v{n}{twin}", "conversations": []}) for n in (0, 1) for twin in "ab"
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "1.png", "id": "t", "conversations": []}) + "\n")
    specs = {name: {"type": "jsonl", "path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "val")}
    leaks = check(specs, processes=1).leaks
    assert [(leak.index, leak.id) for leak in leaks] == [(2, "v1a"), (3, "v1b")]
    specs["val"]["drop"] = drop(*({**vars(leak)} for leak in leaks))
    assert not check(specs, processes=1).leaks
