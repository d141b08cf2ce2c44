"""The index of large json files: what it finds, what it keeps, and how damage is named."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mglmm_data.coco import CocoSource
from mglmm_data.index import Groups, Records, Strings, walk
from mglmm_data.reading import Problems

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(data=st.dictionaries(st.text(min_size=1, max_size=5), st.lists(VALUES, max_size=4)), spaces=st.booleans())
def test_walk_finds_every_record_where_it_stands(tmp_path_factory, data, spaces):
    path = tmp_path_factory.mktemp("walk") / "a.json"
    text = json.dumps(data, ensure_ascii=False, indent=1 if spaces else None)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    raw, lists, found = path.read_bytes(), set[str](), []
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return  # a lone surrogate, which no json file holds
    for key, start, end, _ in walk(path, lists=lists):
        found.append((key, json.loads(raw[start:end])))
    assert found == [(key, value) for key, values in data.items() for value in values]
    assert lists == set(data)


def test_records_and_groups_and_strings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"image": i % 3, "name": f"größe {i}"} for i in range(10)], ensure_ascii=False))
    records, keys = Records(path), []
    for _, start, end, record in walk(path):
        records.append(start, end)
        keys.append(record["image"] if record["image"] != 1 else -1)
    groups, names = Groups(keys, 4), Strings(f"größe {i}" for i in range(10))
    assert [groups[i].tolist() for i in range(4)] == [[0, 3, 6, 9], [], [2, 5, 8], []] and len(groups) == 4
    again = pickle.loads(pickle.dumps(records))  # a worker process gets it that way
    assert [record["name"] for record in again.many([7, 2])] == [names[7], names[2]]
    assert again[-1]["name"] == names[-1] and names[8:] == ["größe 8", "größe 9"]
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json has changed since it was read"):
        again[0]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"a": [{"id": 1}, {"id": 2', r"cannot be read as json \(a\[1\]"),
        (b'{"a": [1 2]}', r"after a\[0\]: expected ','"),
        (b'{"a" [1]}', r"expected ':'"),
        (b"hello", "begins with 'hello'"),
        (b"", "begins with ''"),
        (b'{"a": [{"id": 7, "x": NaN}]}', r"a\[0\] \(id 7\): it holds NaN"),
        (b'{"a": [{"id": 7, "x": -Infinity}]}', r"a\[0\] \(id 7\): it holds -Infinity"),
        (b'{"a": [{"id": 1}, {"id": 7, "x": "caf\xe9"}]}', r"a\[1\] \(id 7\): it holds text that is not UTF-8"),
    ],
)
def test_damage_is_named(tmp_path, content, match):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json.*{match}"):
        list(walk(tmp_path / "a.json"))


def test_bad_records_can_be_counted(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": 1}, {"id": 2, "x": NaN}, {"id": 3}]')
    problems = Problems("count")
    assert [record["id"] for *_, record in walk(tmp_path / "a.json", problems)] == [1, 3]
    (message,) = problems.found
    assert "record[1] (id 2)" in message


def test_every_record_that_is_not_utf8_is_listed(tmp_path):
    rows = [b'{"id": %d, "x": "caf\xe9"}' % number for number in range(3)] + [b'{"id": 3, "x": "caf\xc3\xa9"}']
    (tmp_path / "a.json").write_bytes(b'{"a": [' + b",".join(rows) + b'], "\xe9": [1]}')
    problems = Problems("count")
    assert [record for *_, record in walk(tmp_path / "a.json", problems)] == [{"id": 3, "x": "café"}]
    assert [text.split(": ")[1] for text in problems.found] == [
        *(f"a[{n}] (id {n})" for n in range(3)),
        "its first level",
    ]


def test_raw_and_escaped_letters_may_stand_together(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"caf\xc3\xa9": ["caf\xc3\xa9 \\u4e2d", "\\u00c3\\u00a9", "\xc3\xa0 la"]}')
    found = [(key, record) for key, _, _, record in walk(tmp_path / "a.json")]
    assert found == [("café", text) for text in ("café 中", "Ã©", "à la")]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"b\.json does not exist"):
        list(walk(tmp_path / "b.json"))


def test_a_sample_costs_less_than_a_kilobyte(tmp_path):
    rng = np.random.default_rng(0)
    polygon = [[float(value) for value in rng.random(60).round(3) * 40] for _ in range(8)]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 40} for i in range(200)]
    annotations = [
        {"id": i, "image_id": i % 200, "category_id": 1, "segmentation": [polygon[i % 8]]} for i in range(1400)
    ]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    for image in images:
        (tmp_path / image["file_name"]).touch()
    source = CocoSource(tmp_path / "a.json")
    assert len(source) == 200 and len(pickle.dumps(source)) / 200 < 400
