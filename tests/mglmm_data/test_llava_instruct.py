"""LLaVA-Instruct's form: turns in order, `<image>` out of the text, wrong records named."""

import json

import numpy as np
import pytest
from PIL import Image

from mglmm_data import reading
from mglmm_data.llava_instruct import LlavaInstruct, read_conversation
from mglmm_data.registry import make_source


def record(*values, **more):
    told = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "7", "image": "a.png", "conversations": told, **more}


@pytest.fixture
def write(tmp_path):
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.png")

    def writing(*records):
        (tmp_path / "chat.json").write_text(json.dumps(records))
        return tmp_path / "chat.json"

    return writing


def test_the_golden_tree_as_the_peers_read_it(shared):
    data = shared("golden", "datasets", "data")
    source = make_source(
        {
            "type": "llava_instruct",
            "path": data / "llava_dataset/llava_instruct_150k.json",
            "image_root": data / "coco/train2017",
        }
    )
    turns = source.sample(0).conversations[0].turns
    assert [turn.text for turn in turns] == ["What is in the picture?", "A dog.", "What color?", "Brown."]
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2
    assert len(source) == 2 and source.sample(1).conversations[0].turns[0].text == "Describe it."
    draws = json.loads(shared("golden", "datasets", "expected_glamm.json").read_text())["draws"]["llava_instruct"]
    assert turns[1].text in draws[0]["conversations"][0] and turns[3].text in draws[0]["conversations"][0]


@pytest.mark.parametrize("text", ["<image>\nHow many?", "How many?\n<image>", "<image> How many? "])
def test_the_image_mark_is_no_text(text):
    assert read_conversation(record(text, "Two.\nOr three.")) == ["How many?", "Two.\nOr three."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record("How many?", "Two."), r"turn 0 has <image> 0 times; it stands once, in the first question"),
        (record("<image>Who?", "He.", "And <image>?", "She."), r"turn 2 has <image> 1 times"),
        (record("<image>Who?"), r"has 1 turns; every question has an answer"),
        (record(), r"has 0 turns"),
        (record("<image>", "Two."), r"turn 0 is empty"),
        (record("<image>Who?", " "), r"turn 1 is empty"),
        (record("<image>Who?", 3), r"its 'value' is 3 \(int\); expected text"),
        ({"id": "7", "image": "a.png"}, r"has no 'conversations'"),
        (record("<image>Who?", "He.", image=["a.png"]), r"its 'image' is \['a.png'\] \(list\)"),
        (record("<image>Who?", "He.", image="../a.png"), r"its image '../a.png' leaves the folder"),
        (record("<image>Who?", "He.", image="b.png"), r"its image 'b.png' is missing"),
        (record("<image>Who?", "He.", conversations=[{"from": "gpt", "value": "x"}]), r"turn 0 is from 'gpt'"),
    ],
)
def test_a_wrong_record_is_named_or_counted(write, tmp_path, wrong, message):
    path = write(wrong, record("<image>Who?", "He.", id=8))
    with pytest.raises(ValueError, match=f"chat.json: record 7: {message}"):
        LlavaInstruct(path, tmp_path)
    source = LlavaInstruct(path, tmp_path, on_error="count")
    assert len(source) == len(source.problems.found) == 1


def test_records_without_an_image_are_counted(write, tmp_path):
    text_only = record("Who?", "He.")
    del text_only["image"]
    source = LlavaInstruct(write(text_only, record("<image>Who?", "He.")), tmp_path)
    assert len(source) == 1 and source.skipped["record without an image"] == 1
    with pytest.raises(ValueError, match="no conversation about an image"):
        LlavaInstruct(write(text_only), tmp_path)


def test_a_record_in_latin_1_is_one_wrong_record(write, tmp_path):
    path = write(record("<image>Who?", "cafe"), record("<image>Who is “she”?", "He.", id=8))
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))
    with pytest.raises(ValueError, match=r"chat.json: record\[0\] \(id 7\): it holds text that is not UTF-8"):
        LlavaInstruct(path, tmp_path)
    source = LlavaInstruct(path, tmp_path, on_error="count")
    assert [source.id_of(i) for i in range(len(source))] == ["chat/8"] and len(source.problems.found) == 1
    assert source.sample(0).conversations[0].turns[0].text == "Who is “she”?"


def test_a_json_of_another_form_is_named(tmp_path):
    (tmp_path / "chat.json").write_text('{"images": [1]}')
    with pytest.raises(ValueError, match=r"chat.json holds an object at its top, with 'images'; expected a list"):
        LlavaInstruct(tmp_path / "chat.json", tmp_path)


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_a_long_json_is_read_in_pieces(write, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    records = [record("<image>Who is “she”?", "{[" * n, id=n) for n in range(1, 30)]
    assert list(reading.stream_json(write(*records))) == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', "cannot be read as json .it begins with .*expected a list"),
        (b"", "cannot be read as json .it begins with .*; expected a list"),
        (b'[{"id": 1' + b"0" * 5000 + b"}]", "cannot be read as json .Exceeds the limit"),
        (b'[{"id": 1', "cannot be read as json"),
        (b'[{"id": 1} nonsense' + b" " * 100 + b"]", "cannot be read as json"),
        ('[{"id": "\xe9"}]'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_damaged_json_is_named(tmp_path, content, message):
    (tmp_path / "chat.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"chat.json {message}"):
        list(reading.stream_json(tmp_path / "chat.json"))
