"""What moves in the picture moves in the sample, and what would make it untrue is not done."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mglmm.augment import Augment, AugmentConfig, can_crop, can_mirror, mirror, swap_sides
from mglmm_data.sample import Conversation, Grounding, Mention, Region, Sample, Turn, compose

HEIGHT, WIDTH = 60, 80
STILL = {"photometric": 0.0, "crop": 0.0, "flip": 0.0}
# boxes x1, y1, x2, y2 of a red, a green and a blue square
SQUARES = ((5, 10, 20, 30), (30, 25, 50, 45), (60, 5, 75, 20))


def settings(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**changes)


def picture() -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(SQUARES):
        image[y1:y2, x1:x2] = np.eye(3, dtype=np.uint8)[channel] * 255
    return image


def square(index: int) -> Region:
    x1, y1, x2, y2 = SQUARES[index]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return Region.of_mask(mask, label="left square" if index == 0 else "")


def sample(question="Segment the squares.", pieces=(("the squares", (0, 1, 2)), "."), regions=None, task="", **meta):
    text, phrases = compose(*pieces)
    turns = (Turn("user", question), Turn("assistant", text, phrases))
    regions = tuple(square(index) for index in range(3)) if regions is None else regions
    return Sample(picture(), regions, (Conversation(turns, task=task),), meta={"mirror": "swap", **meta})


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_same_state_gives_the_same_sample():
    augment = Augment(AugmentConfig(flip=0.5, crop=1.0, photometric=0.7))
    first, again, other = (augment(sample(), rng(seed)) for seed in (1, 1, 2))
    assert (first.image == again.image).all() and first.regions == again.regions
    assert (first.image != other.image).any()


def test_doing_nothing_changes_nothing():
    before = sample()
    after = Augment(settings(**STILL))(before, rng())
    assert (after.image == before.image).all() and after.conversations == before.conversations
    assert after.meta["augment"] == ()


def test_light_leaves_the_geometry_alone():
    after = Augment(AugmentConfig(crop=0, flip=0, photometric=1.0))(sample(), rng())
    assert (after.image != sample().image).mean() > 0.5 and after.image.dtype == np.uint8
    assert after.regions == sample().regions


@pytest.mark.parametrize("seed", range(6))
def test_masks_follow_the_pixels(seed):
    after = Augment(AugmentConfig(photometric=0, crop=1.0, flip=0.5, smallest_crop=0.5))(sample(), rng(seed))
    order = after.conversations[0].turns[1].phrases[0].regions
    for index, region in enumerate(after.regions):
        pixels = after.image[region.mask].astype(int)
        channel = pixels.argmax(axis=1)
        assert (channel == index).mean() > 0.9 and region.mask.sum() > 0
    lefts = [bounds[0] for bounds in (after.regions[index].bounds for index in order) if bounds]
    assert len(lefts) == 3
    assert lefts == sorted(lefts)


def test_mirroring_twice_is_the_identity():
    box = Region((HEIGHT, WIDTH), box=(5, 10, 20, 30))
    line = Region((HEIGHT, WIDTH), scribble=((0, 0), (80, 60), (3.5, 4)))
    before = sample(regions=(square(0), square(1), box, Region((HEIGHT, WIDTH), point=(80, 3)), line))
    pieces = (("the squares", (0, 1)), ".")
    before = sample(pieces=pieces, regions=before.regions)
    once, twice = mirror(before), mirror(mirror(before))
    assert (twice.image == before.image).all() and twice.regions == before.regions
    assert twice.conversations == before.conversations
    assert once.regions[2].box == (60, 10, 75, 30) and once.regions[2].mask.sum() == box.mask.sum()
    assert once.regions[0].bounds == once.regions[2].box and once.regions[0].label == "right square"
    assert once.regions[3].point == (0, 3) and once.regions[4].scribble == ((80, 0), (0, 60), (76.5, 4))
    assert once.conversations[0].turns[1].phrases[0].regions == (1, 0)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the back left door", "the back right door"),
        ("The leftmost dog, left of the cat", "The rightmost dog, right of the cat"),
        ("second from the left", "second from the right"),
        ("Left, right-hand; RIGHT", "Right, left-hand; LEFT"),
        ("bright copyright cleft", "bright copyright cleft"),
    ],
)
def test_sides_are_swapped_as_words(text, mirrored):
    assert swap_sides(text)[0] == mirrored and swap_sides(mirrored)[0] == text


def test_spans_follow_the_words():
    pieces = (
        "Left: ",
        ("the left light", (0,)),
        " and ",
        ("the right left one", (1,)),
        ", ",
        ("a hood", (2,)),
        " right.",
    )
    after = mirror(sample(pieces=pieces)).conversations[0].turns[1]
    assert [after.text[p.start : p.end] for p in after.phrases] == ["the right light", "the left right one", "a hood"]
    asked = Turn("user", "What is left of this region?", mentions=(Mention(16, 27, 0),))
    talk = Conversation((asked, Turn("assistant", "A dog.")))
    after = mirror(Sample(picture(), (square(0),), (talk,))).conversations[0].turns[0]
    assert after.text == "What is right of this region?"
    assert [after.text[m.start : m.end] for m in after.mentions] == ["this region"]


def test_lists_keep_the_order_of_their_names():
    names = ("hood", "left door", "left light", "right door", "right light")
    regions = tuple(Region((HEIGHT, WIDTH), box=SQUARES[i % 3], label=name) for i, name in enumerate(names))
    pieces = (("the left door", (1,)), ", ", ("the left light", (2,)), ", ", ("the right light", (4,)), ".")
    after = mirror(sample(pieces=pieces, regions=regions, names=names))
    turn = after.conversations[0].turns[1]
    assert turn.text == "the left light, the right door, the right light."
    assert [phrase.regions for phrase in turn.phrases] == [(4,), (1,), (2,)]
    assert [after.regions[i].label for i in (4, 1, 2)] == ["left light", "right door", "right light"]
    assert all(f"the {after.regions[p.regions[0]].label}" == turn.text[p.start : p.end] for p in turn.phrases)
    told = mirror(sample(pieces=(*pieces[:-1], " and more."), regions=regions)).conversations[0].turns[1].text
    assert told == "the right door, the right light, the left light and more."


@pytest.mark.parametrize(
    "text",
    [
        "A boat right next to a ship.", "A plate was left on a table.", "Food is left over.", "She left the room.",
        "He left his bag.", "There is one slice left.", "The right answer is B.", "Is that right?",
        "People left waiting.",
    ],
)  # fmt: skip
def test_what_may_be_no_side_is_never_mirrored(text):
    unsure = sample(pieces=(text,))
    assert not can_mirror(unsure)
    assert Augment(settings(**{**STILL, "flip": 1}))(unsure, rng()).meta["augment"] == ()


@pytest.mark.parametrize(
    "text",
    [
        "The dog on the left.",
        "A cat to the right of a dog.",
        "It is left of it.",
        "a dog is to the left of a cat",
        "The dog is on the left.",
        "It is at the far left.",
        "the left one",
    ],
)
def test_sides_are_mirrored(text):
    assert Augment(settings(**{**STILL, "flip": 1}))(sample(pieces=(text,)), rng()).meta["augment"] == ("mirror",)


def test_mirroring_is_off_for_a_source_or_by_config():
    for given, config in (
        (sample(mirror="off"), {}),
        (sample(mirror=None), {}),
        (sample(mirror="swap"), {"mirror": "off"}),
    ):
        assert Augment(settings(**{**STILL, "flip": 1, **config}))(given, rng()).meta["augment"] == ()


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("Describe the image.", "caption"),
        ("How many dogs are there?", ""),
        ("Segment the dog on the left.", ""),
        ("Segment the second dog.", ""),
        ("Show the topmost one.", ""),
        ("Segment the middle zebra.", ""),
        ("Segment the man on left.", ""),
        ("Segment the top right bowl.", ""),
    ],
)
def test_no_crop_where_its_words_may_become_false(question, task):
    assert not can_crop(sample(question, task=task), ("caption",))
    assert Augment(settings(**{**STILL, "crop": 1}))(sample(question, task=task), rng()).meta["augment"] == ()


def test_no_crop_of_what_points_nowhere():
    """A crop keeps what is spoken of; of a dog that only words speak of nobody knows where it is."""
    silent = sample("What happens?", pieces=("A dog lies beside a cat.",), task="chat")
    assert not can_crop(silent, ()) and can_crop(sample(pieces=("There is no dog.",), task="absent"), ())
    asked, said = silent.conversations[0].turns  # what the question names does not say where the answer points
    named = replace(asked, text="Is a cat here?", phrases=(Grounding(3, 8, (0,)),))
    assert not can_crop(replace(silent, conversations=(Conversation((named, said), "chat"),)), ())


def test_parts_with_sides_may_be_cropped():
    assert can_crop(sample("Segment the left mirror of the car."), ())


def test_no_crop_cuts_a_region_away_that_is_spoken_of():
    corners = tuple(Region((HEIGHT, WIDTH), point=point) for point in ((1, 1), (79, 1), (1, 59), (79, 59)))
    given = sample(pieces=(("the corners", (0, 1, 2, 3)), "."), regions=corners)
    config = settings(**{**STILL, "crop": 1, "smallest_crop": 0.5})
    for seed in range(5):
        after = Augment(config)(given, rng(seed))
        assert after.meta["augment"] == () and after.regions == corners
    silent = sample(pieces=("There is no dog.",), regions=corners, task="absent")
    after = Augment(config)(silent, rng())
    assert after.meta["augment"] == ("crop",)
    assert any(region.kind == "mask" and not region.mask.any() for region in after.regions)


@pytest.mark.parametrize("seed", range(4))
def test_crops_clip_boxes_and_keep_the_least_share(seed):
    box = Region((HEIGHT, WIDTH), box=(0, 0, 40, 30))
    line = Region((HEIGHT, WIDTH), scribble=tuple((float(x), 30.0) for x in range(10, 71, 5)))
    given = sample(pieces=(("a corner", (0,)), ", ", ("a line", (1,)), "."), regions=(box, line))
    after = Augment(settings(**{**STILL, "crop": 1, "smallest_crop": 0.5, "keep": 0.5}))(given, rng(seed))
    assert after.regions[0].kind == "box" and after.regions[1].kind == "scribble"
    assert len(after.regions[1].scribble or ()) >= 7


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="flipp"):
        settings(flipp=1)
    with pytest.raises(ValueError, match="crop"):
        AugmentConfig(crop=2)
