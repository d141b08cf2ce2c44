"""Answers: what they accept, how they are cut into pieces, saved and read back."""

import json

import numpy as np
import pytest
from PIL import Image

from mglmm.answer import Answer, Instance, Phrase
from mglmm_data.sample import Region


def blank(height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), 120, np.uint8)


def disc(height: int = 24, width: int = 32) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return (rows - height / 2) ** 2 + (cols - width / 2) ** 2 < 36


@pytest.fixture
def answer() -> Answer:
    text = "A dog beside two cats and no bird."
    masks = [disc(), np.roll(disc(), 4, 1), np.zeros((24, 32), bool)]
    phrases = (
        Phrase("A dog", (0, 5), (Instance(masks[0], (10, 6, 22, 18), 0.75),)),
        Phrase("two cats", (13, 21), (Instance(masks[1], None, 0.5), Instance(None, (1.5, 2, 8, 9), 0.25))),
        Phrase("no bird", (26, 33), (Instance(masks[2], None, 0.125),)),
    )
    return Answer(text, phrases, blank(), ("16-bit image, scaled to 8",), True, prompt="What is [SEG] <b>here</b>?")


@pytest.fixture
def silent() -> Answer:
    return Answer("There is no dog.", (), blank(), prompt="Where is the dog?")


def test_pieces_join_to_the_text(answer, silent):
    assert "".join(piece for piece, _ in answer.pieces) == answer.text
    assert [index for _, index in answer.pieces] == [0, None, 1, None, 2, None]
    assert silent.pieces == [("There is no dog.", None)]


def test_phrase_mask_is_the_union_of_its_masks(answer):
    assert (answer.phrases[1].mask == np.roll(disc(), 4, 1)).all()
    both = Phrase("", (0, 0), (Instance(disc(), None, 1.0), Instance(~disc(), None, 0.5)))
    assert both.mask is not None and both.mask.all() and both.score == 0.75
    assert Phrase("", (0, 0), (Instance(None, (0, 0, 1, 1), 1.0),)).mask is None
    assert Phrase("", (0, 0), ()).score == 0


def test_bounds_come_from_the_box_or_else_from_the_mask():
    assert Instance(disc(), (1, 2, 3, 4), 1.0).bounds == (1, 2, 3, 4)
    assert Instance(disc(), None, 1.0).bounds == (11, 7, 22, 18)
    assert Instance(np.zeros((4, 4), bool), None, 1.0).bounds is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"uint8\(4, 4\); expected uint8\[H, W, 3\]"),
        ({"phrases": (Phrase("dog", (0, 3), ()),)}, "is 'A d', the phrase says 'dog'"),
        ({"phrases": (Phrase("A dog", (0, 99), ()),)}, "0:99 .* leaves"),
        ({"phrases": (Phrase("dog", (2, 5), ()), Phrase("A", (0, 1), ()))}, "out of order"),
        (
            {"phrases": (Phrase("A", (0, 1), (Instance(np.zeros((2, 2), bool), None, 1.0),)),)},
            r"bool\(2, 2\); expected",
        ),
        ({"phrases": (Phrase("A", (0, 1), (Instance(disc().astype(float), None, 1.0),)),)}, "float64"),
    ],
    ids=["image", "text", "span", "order", "size", "dtype"],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Answer(**{"text": "A dog", "phrases": (), "image": blank(), **change})


@pytest.mark.parametrize("which", ["answer", "silent"])
def test_json_round_trip(which, request):
    before: Answer = request.getfixturevalue(which)
    data = json.loads(json.dumps(before.to_json()))
    after = Answer.from_json(data, before.image)
    assert data["image"] == {"height": 24, "width": 32}
    assert (after.text, after.notes, after.truncated, after.prompt) == (
        before.text,
        before.notes,
        before.truncated,
        before.prompt,
    )
    for old, new in zip(before.phrases, after.phrases, strict=True):
        assert (old.text, old.span, old.score) == (new.text, new.span, new.score)
        for one, other in zip(old.instances, new.instances, strict=True):
            assert one.box == other.box and one.score == other.score
            assert (one.mask is None) == (other.mask is None)
            assert one.mask is None or (one.mask == other.mask).all()
    assert after.to_json() == data


def test_json_of_another_image_or_with_a_gap_is_refused(answer):
    data = answer.to_json()
    with pytest.raises(ValueError, match=r"about an image of \(24, 32\), the one given is \(8, 8\)"):
        Answer.from_json(data, blank(8, 8))
    del data["notes"]
    with pytest.raises(ValueError, match="has no 'notes'"):
        Answer.from_json(data, answer.image)


@pytest.mark.parametrize("which", ["answer", "silent"])
@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.html", "a.json"])
def test_save_by_suffix(which, name, request, tmp_path):
    answer: Answer = request.getfixturevalue(which)
    path = answer.save(tmp_path / "new" / name, [Region((24, 32), point=(3.0, 4.0))])
    if path.suffix.lower() in (".png", ".jpg"):
        with Image.open(path) as picture:
            assert picture.width >= 480
    elif path.suffix == ".html":
        assert "<b>here</b>" not in path.read_text("utf-8")
    else:
        assert json.loads(path.read_text("utf-8"))["text"] == answer.text
    assert [item.name for item in path.parent.iterdir()] == [name]


def test_unknown_suffix_names_the_choices(answer, tmp_path):
    with pytest.raises(ValueError, match=r"'a\.gif': the suffix '\.gif' .*\.png, \.jpg .*\.html .*\.json"):
        answer.save(tmp_path / "a.gif")


def test_a_failed_save_leaves_the_old_file(answer, tmp_path, monkeypatch):
    path = answer.save(tmp_path / "a.json")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mglmm.answer.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        answer.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
