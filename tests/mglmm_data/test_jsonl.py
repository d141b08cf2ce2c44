"""Samples as lines of json: nothing is lost on the way out and back, and what is written by hand is checked."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mglmm_data import masks
from mglmm_data.images import LoadedImage, as_large_as
from mglmm_data.jsonl import SCHEMA, JsonlSource, dump_line, tell_of_labels
from mglmm_data.lines import from_record, to_record
from mglmm_data.record import parse_record, schema
from mglmm_data.registry import make_source
from mglmm_data.sample import Conversation, Grounding, Mention, Region, Sample, Turn
from mglmm_data.telling import Teller
from mglmm_data.world.source import World

HEIGHT, WIDTH = 12, 17
WORDS = st.text("ab é漢🐕.,-'\"\\<[", min_size=1, max_size=8)
coordinates = st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT))


@st.composite
def regions(draw):
    kind = draw(st.sampled_from(("mask", "box", "point", "scribble")))
    size, label = (HEIGHT, WIDTH), draw(st.sampled_from(("", "a dog", "Größe")))
    if kind == "mask":
        seed = draw(st.integers(0, 2**32 - 1))
        return Region.of_mask(np.random.default_rng(seed).random(size) < draw(st.floats(0, 1)), label)
    if kind == "box":
        x, y = draw(st.tuples(st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1)))
        return Region(size, box=(x, y, float(WIDTH), float(HEIGHT)), label=label)
    if kind == "point":
        return Region(size, point=draw(coordinates), label=label)
    return Region(size, scribble=tuple(draw(st.lists(coordinates, min_size=2, max_size=4))), label=label)


@st.composite
def turns(draw, role, count):
    text, phrases, mentions = "", [], []
    for piece in draw(st.lists(WORDS, min_size=1, max_size=5)):
        core = piece.strip()
        if core and draw(st.booleans()):
            start = len(text) + piece.index(core)
            index = st.integers(0, count - 1)
            if role == "user":
                mentions.append(Mention(start, start + len(core), draw(index)))
            else:
                found = tuple(draw(st.lists(index, min_size=1, max_size=3)))
                phrases.append(Grounding(start, start + len(core), found))
        text += piece
    return Turn(role, text, tuple(phrases), tuple(mentions), draw(st.sampled_from(("mask", "box"))))


@st.composite
def samples(draw):
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    found = tuple(draw(st.lists(regions(), min_size=1, max_size=4)))
    conversations = []
    for _ in range(draw(st.integers(0, 2))):
        pairs = draw(st.integers(1, 2))
        told = [draw(turns(role, len(found))) for _ in range(pairs) for role in ("user", "assistant")]
        conversations.append(Conversation(tuple(told), draw(st.sampled_from(("", "referring"))), ""))
    meta = draw(st.dictionaries(st.sampled_from(("a", "b")), st.sampled_from((1, 2.5, "x", None, (1, ("y", 2)), {}))))
    return Sample(image, found, tuple(conversations), id=draw(st.sampled_from(("", "s/1"))), meta=meta)


def same(one: Sample, other: Sample) -> None:
    assert (one.image == other.image).all()
    assert one.regions == other.regions and one.conversations == other.conversations
    assert one.id == other.id and one.meta == other.meta


@settings(max_examples=60)
@given(samples())
def test_a_sample_comes_back_from_its_line(sample):
    line = dump_line(to_record(sample, "x.png"))
    assert line.count("\n") == 1
    record = parse_record(line)
    assert record.size == sample.size
    same(from_record(record, LoadedImage(sample.image), SCHEMA.parent), sample)


@settings(max_examples=40)
@given(samples())
def test_phrases_are_written_as_their_words(sample):
    for conversation in to_record(sample, "x.png")["conversations"]:
        for turn in conversation["turns"]:
            for item in [*turn.get("phrases", ()), *turn.get("mentions", ())]:
                assert turn["text"][item["start"] :].startswith(item["text"]) and item["text"]


@settings(max_examples=80)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_masks_survive_rle_and_polygons(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    back = masks.decode(masks.encode(mask), (height, width))
    assert (masks.from_polygons(masks.to_polygons(back), (height, width)) == mask).all()


@pytest.mark.parametrize("counts", ["", "zzz", "\xff", "i46h", "0", "5" * 40])
def test_damaged_rle_is_refused_instead_of_read_beyond_its_end(counts):
    with pytest.raises(ValueError, match="do not fill its size"):
        masks.decode({"size": [30, 40], "counts": counts})


def test_the_schema_that_ships_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(json.dumps(schema()))


@pytest.fixture
def write(tmp_path):
    """Writes lines beside a picture `a.png`, and gives the path."""
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")

    def writing(*lines: object) -> str:
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / "samples.jsonl").write_bytes(b"\n".join(texts) + b"\n")
        return str(tmp_path / "samples.jsonl")

    return writing


def test_a_world_goes_to_a_file_and_back(tmp_path):
    told = World(size=64, turns=3).sample(5)
    Image.fromarray(told.image).save(tmp_path / "a.png")
    (tmp_path / "samples.jsonl").write_text(dump_line(to_record(told, "a.png")), encoding="utf-8")
    back = make_source({"type": "jsonl", "path": str(tmp_path)}).sample(0)
    assert (back.image == told.image).all() and back.regions == told.regions
    assert back.conversations == told.conversations and back.id == told.id
    assert back.meta["scene_seed"] == told.meta["scene_seed"] and back.meta["mirror"] == "off"


def test_what_a_hand_writes_is_enough(write, tmp_path):
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    said = {"role": "assistant", "text": "a dog.", "phrases": [{"text": "a dog", "regions": [0]}]}
    line = {
        "image": "a.png",
        "regions": [{"mask": "m.png"}, {"polygons": [[1, 1, 5, 1, 5, 4, 1, 4]]}],
        "conversations": [{"turns": [{"role": "user", "text": "What?"}, said]}],
    }
    sample = JsonlSource(write({**line, "regions": line["regions"]})).sample(0)
    (phrase,) = sample.conversations[0].turns[1].phrases
    assert (phrase.start, phrase.end) == (0, 5)
    assert (sample.regions[0].mask == np.eye(HEIGHT, WIDTH, dtype=bool)).all()
    assert sample.regions[1].bounds == (1, 1, 5, 4)


def test_lines_without_conversations_are_asked_about(write):
    dog, cat = {"label": "dog", "box": [1, 1, 4, 4]}, {"label": "cat", "box": [6, 1, 9, 4]}
    left = {"label": "dog", "box": [0, 1, 2, 4]}
    source = JsonlSource(write({"image": "a.png", "regions": [dog, left]}, {"image": "a.png", "regions": [cat]}))
    assert source.names == ("cat", "dog") and len(source) == 2
    panoptic = JsonlSource(source.path, tasks={"panoptic": 1}).sample(0)
    answer = panoptic.conversations[0].turns[1]
    assert answer.text == "two dogs." and answer.phrases[0].regions == (1, 0)
    assert panoptic.meta["mirror"] == "swap" and panoptic.meta["names"] == ("cat", "dog")
    drawn = [source.sample(0, epoch).conversations for epoch in range(8)]
    assert len(set(drawn)) > 1 and drawn[3] == source.sample(0, 3).conversations


@pytest.mark.parametrize("keys", [{"conversations": None}, {"meta": {"conversations": []}}])
def test_no_conversations_however_it_is_said(write, keys):
    line = {"image": "a.png", "regions": [{"label": "dog", "box": [1, 1, 4, 4]}]}
    assert JsonlSource(write({**line, "conversations": []}, {**line, **keys})).sample(1).conversations


TURNS = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a dog, a dog"}]


def told(**answer):
    return {"image": "a.png", "regions": [{"box": [1, 1, 4, 4]}], "conversations": [{"turns": [TURNS[0], answer]}]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 1: is no json"),
        (b'{"image": "caf\xe9.png", "conversations": []}', "line 1: is no json in UTF-8"),
        ({"regions": []}, "has no 'image'"),
        ({"image": 3}, "image: Input should be a valid string (found 3 (int))"),
        ({"image": "a.png", "region": []}, "unknown key 'region', did you mean 'regions'"),
        ({"image": "b.png", "conversations": []}, "its image 'b.png' is missing"),
        ({"image": "../a.png", "conversations": []}, "its image '../a.png' leaves the folder"),
        ({"image": "a.png", "height": 5, "width": 5, "conversations": []}, "is for an image of (5, 5)"),
        ({"image": "a.png", "regions": [{"label": "x"}]}, "regions.0: a region has exactly one of"),
        (b'{"image": "a.png", "regions": [{"box": [NaN, 1, 2, 3]}]}', "line 1"),
        ({"image": "a.png", "regions": [{"box": [1, 1, 99, 4]}], "conversations": []}, "region 0: box"),
        ({"image": "a.png", "regions": [{"polygons": [[1, 2, 3]]}], "conversations": []}, "at least 3 points"),
        (
            {"image": "a.png", "regions": [{"polygons": [[1, 2, 3, 4, 5, 60]]}], "conversations": []},
            "y 60.0 is outside",
        ),
        (
            {"image": "a.png", "regions": [{"mask": {"size": [5, 5], "counts": "P1"}}], "conversations": []},
            "the RLE is of size (5, 5), the image of (12, 17)",
        ),
        (
            {"image": "a.png", "regions": [{"mask": {"size": [12, 17], "counts": [3, 4]}}], "conversations": []},
            "counts sum to 7",
        ),
        ({"image": "a.png", "regions": [{"mask": "../m.png"}], "conversations": []}, "leaves the folder"),
        (told(**TURNS[1], phrases=[{"text": "a dog", "regions": [0]}]), "'a dog' is 2 times in"),
        (told(**TURNS[1], phrases=[{"text": "a cat", "regions": [0], "start": 7}]), "stands 'a dog', not 'a cat'"),
        (told(**TURNS[1], phrases=[{"text": "a dog", "regions": [], "start": 7}]), "phrases.0.regions"),
        (told(**TURNS[1], phrases=[{"text": "a dog", "regions": [4], "start": 7}]), "points at region 4 of 1"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(write, line, words):
    path = write(line)
    with pytest.raises(ValueError) as error:
        JsonlSource(path).sample(0)
    assert path in str(error.value) and "line 1" in str(error.value) and words in str(error.value)


def test_bad_lines_can_be_left_out_and_are_counted(write):
    good = {"image": "a.png", "regions": [{"label": "dog", "box": [1, 1, 4, 4]}]}
    source = JsonlSource(write(good, b"{", {"regions": []}, good), on_error="count")
    assert len(source) == 2 and [source.sample(index).id for index in (0, 1)] == ["samples/0", "samples/1"]
    assert [text.split(": ")[1] for text in source.problems.found] == ["line 2", "line 3"]


def test_pictures_are_read_only_as_large_as_needed_and_regions_as_they_are(tmp_path):
    Image.fromarray(np.full((80, 120, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    mask = np.zeros((80, 120), bool)
    mask[20:60, 40:80] = True
    regions = [{"mask": masks.encode(mask)}, {"box": [40, 20, 80, 60]}, {"point": [60, 40]}]
    regions.append({"scribble": [[0, 0], [120, 80]]})
    line = {"image": "a.jpg", "height": 80, "width": 120, "regions": regions, "conversations": []}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    whole = JsonlSource(tmp_path).sample(0)
    with as_large_as(30):
        small = JsonlSource(tmp_path).sample(0)
    assert small.image.shape == (20, 30, 3) and small.size == small.full_size == (80, 120) == whole.size
    assert small.regions == whole.regions and small.regions[0].bounds == small.regions[1].box == (40, 20, 80, 60)
    with as_large_as(61):
        assert JsonlSource(tmp_path).sample(0).full_size is None


def test_missing_and_empty_files(tmp_path, write):
    with pytest.raises(ValueError, match="cannot be read"):
        JsonlSource(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match="holds no sample"):
        JsonlSource(write(b""))
    with pytest.raises(ValueError, match="did you mean 'parts'"):
        JsonlSource(write(b""), kind="part")  # type: ignore[arg-type]


def test_questions_from_labels_know_crowds_empties_and_the_order_of_names(tmp_path):
    size = (20, 40)
    boxes = {"zebra": (1, 1, 5, 9), "mug": (8, 1, 12, 9), "apple": (15, 1, 20, 9), "person": (22, 1, 26, 9)}
    regions = [Region(size, box=box, label=label) for label, box in boxes.items()]
    regions += [Region(size, box=(28, 1, 40, 9), label="person"), Region.of_mask(np.zeros(size, bool), "ghost")]
    meta = {"crowd_regions": (4,)}
    teller = Teller(
        kind="instances", names=sorted({region.label for region in regions}), object_name="object",
        tasks={"panoptic": 1.0, "referring": 1.0, "region": 1.0, "box": 1.0}, turns=40,
    )  # fmt: skip
    silent = Sample(np.zeros((*size, 3), np.uint8), tuple(regions), (), meta=meta)
    told = tell_of_labels(silent, teller, np.random.default_rng(0))
    said = [talk.turns[1].text for talk in told.conversations if talk.task == "panoptic"]
    assert said == ["an apple, a mug, several people, a zebra."], (
        "as the names stand, the crowd and the empty mask apart"
    )
    others = {talk.task: [] for talk in told.conversations} | {"referring": []}
    for talk in told.conversations:
        others[talk.task].append(talk.turns[1].text)
    assert {"region", "box"} <= others.keys() and not any("person" in text for text in others["referring"])
    assert not any("ghost" in text for texts in others.values() for text in texts)
    pointed = [tell_of_labels(silent, teller, np.random.default_rng(seed)).regions for seed in range(4)]
    assert any(len(grown) > len(regions) for grown in pointed), "what a question points with"
