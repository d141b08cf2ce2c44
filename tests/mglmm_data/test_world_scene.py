"""The world's scenes keep their promises: exact masks, sizes, distractors, occlusion, and pairs held out."""

from __future__ import annotations

import numpy as np
import pytest

from mglmm_data.world import vocabulary as words
from mglmm_data.world.scene import Scene, dense_targets, make_scene, statistics
from mglmm_data.world.source import World
from mglmm_data.world.vocabulary import described

FIRST = 10_000_000  # seeds of evaluation


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(FIRST + k) for k in range(60)]


def test_same_seed_same_scene():
    one, other = make_scene(7, 128), make_scene(7, 128)
    assert one.things == other.things and one.stuff == other.stuff
    assert np.array_equal(one.image, other.image) and np.array_equal(one.leaves, other.leaves)
    assert not np.array_equal(one.image, make_scene(8, 128).image)


@pytest.mark.parametrize("size", [96, 320])
def test_another_size_is_the_same_scene(scenes, size):
    for scene in scenes[:6]:
        other = make_scene(scene.seed, size)
        assert other.image.shape == (size, size, 3) and other.leaves.shape == (size, size)
        assert [(t.category, t.color, t.size) for t in other.things] == [
            (t.category, t.color, t.size) for t in scene.things
        ]
        assert [s.name for s in other.stuff] == [s.name for s in scene.stuff]
        pick = (np.arange(192) * size) // 192
        for index in range(len(scene.things)):
            one, same = scene.thing_mask(index), other.thing_mask(index)[np.ix_(pick, pick)]
            assert (one & same).sum() / (one | same).sum() > 0.6


def test_every_pixel_is_one_leaf(scenes):
    for scene in scenes:
        assert scene.image.dtype == np.uint8 and scene.leaves.dtype == np.uint8
        leaves = [part.leaf for thing in scene.things for part in thing.parts] + [s.leaf for s in scene.stuff]
        assert len(leaves) == len(set(leaves))
        assert set(np.unique(scene.leaves).tolist()) == set(leaves)
        masks = [scene.thing_mask(k) for k in range(len(scene.things))]
        masks += [scene.stuff_mask(k) for k in range(len(scene.stuff))]
        assert (np.sum(masks, axis=0) == 1).all()


def test_things_say_what_their_masks_say(scenes):
    for scene in scenes:
        for index, thing in enumerate(scene.things):
            mask = scene.thing_mask(index)
            rows, cols = np.nonzero(mask)
            assert thing.box == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
            assert thing.area == mask.sum() == sum(part.area for part in thing.parts)
            parts = [scene.part_mask(index, part.name) for part in thing.parts]
            assert (np.any(parts, axis=0) == mask).all()
            assert {part.name for part in thing.parts} <= set(words.PARTS[thing.category])
            main = thing.parts[0]
            assert main.name == words.PARTS[thing.category][0] and main.color == thing.color
            assert all(part.color != thing.color for part in thing.parts[1:])


def test_reading_order_and_sky_first(scenes):
    for scene in scenes:
        centers = [(t.box[0] + t.box[2], t.box[1] + t.box[3]) for t in scene.things]
        assert centers == sorted(centers)
        assert scene.stuff[0].name == "sky"
        assert len({s.name for s in scene.stuff}) == len(scene.stuff)


def test_rules_of_size(scenes):
    for scene in scenes:
        assert 3 <= len(scene.things) <= 8
        assert 2 <= len({t.category for t in scene.things}) <= 4
        assert 2 <= len(scene.stuff) <= 4
        for thing in scene.things:
            assert thing.area >= 40 and thing.visible >= 0.40
            if thing.size:
                kin = [t.size for t in scene.things if t.category == thing.category]
                assert {"small", "large"} == set(kin)


def test_things_stand_where_they_belong(scenes):
    for scene in scenes:
        if any(thing.category == "boat" for thing in scene.things):
            assert "water" in [s.name for s in scene.stuff]


def test_statistics_of_the_world(scenes):
    found = statistics(scenes)
    assert found["share_with_distractors"] >= 0.6
    assert 0.012 <= found["median_thing_share"] <= 0.03
    assert 0.45 <= found["max_occlusion"] <= 0.6
    assert found["occluded_share"] >= 0.15
    assert 4 <= found["mean_things"] <= 7


def test_statistics_of_nothing():
    with pytest.raises(ValueError, match="no scenes; give at least one"):
        statistics([])


def _pairs(scene: Scene) -> list[tuple[str, str]]:
    return [(thing.category, thing.color) for thing in scene.things]


def test_held_out_pairs_are_kept_apart(scenes):
    for seed in range(40):
        assert not any(words.held_out(*pair) for pair in _pairs(make_scene(seed, held_out="avoid")))
    for seed in range(20):
        assert any(words.held_out(*pair) for pair in _pairs(make_scene(FIRST + seed, held_out="require")))
    assert any(words.held_out(*pair) for scene in scenes for pair in _pairs(scene))


def test_most_colors_of_a_category_are_seen_in_training():
    pairs = [(category, color) for category, colors in words.MAIN_COLORS.items() for color in colors]
    assert set(words.HELD_OUT) <= set(pairs)
    assert 0.06 <= len(words.HELD_OUT) / len(pairs) <= 0.10
    for category, colors in words.MAIN_COLORS.items():
        assert sum(words.held_out(category, color) for color in colors) <= 1


def test_vocabulary_hangs_together():
    assert set(words.MAIN_COLORS) == set(words.PARTS) == set(words.CATEGORIES)
    assert all(2 <= len(parts) <= 5 for parts in words.PARTS.values())
    assert all(part in words.PARTS[category] for category, part in words.PART_COLORS)
    assert {color for colors in words.PART_COLORS.values() for color in colors} <= set(words.COLORS)


def test_dense_targets_repeat_the_scene(scenes):
    scene = scenes[0]
    dense = dense_targets(scene)
    side = scene.leaves.shape[0]
    for index, thing in enumerate(scene.things):
        mask = dense["thing"] == index
        assert (mask == scene.thing_mask(index)).all()
        assert (dense["category"][mask] == words.CATEGORIES.index(thing.category)).all()
        assert np.allclose(dense["box"][mask], np.array(thing.box) / side)
        for part in thing.parts:
            here = scene.part_mask(index, part.name)
            assert (dense["part"][here] == 1 + words.PART_NAMES.index(part.name)).all()
            assert (dense["color"][here] == list(words.COLORS).index(part.color)).all()
    for index, region in enumerate(scene.stuff):
        mask = scene.stuff_mask(index)
        assert (dense["category"][mask] == len(words.CATEGORIES) + words.STUFF.index(region.name)).all()
        assert (dense["thing"][mask] == -1).all() and (dense["part"][mask] == 0).all()
        rows, cols = np.nonzero(mask)
        box = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]) / side
        assert np.allclose(dense["box"][mask], box)


def test_a_things_color_is_seen_in_the_picture(scenes):
    """The main part's mean colour is nearer to its own name than to most others, whatever the light."""
    palette = np.array(list(words.COLORS.values()), float)
    ranks = []
    for scene in scenes:
        for index, thing in enumerate(scene.things):
            mean = scene.image[scene.part_mask(index, thing.parts[0].name)].mean(0)
            order = np.argsort(((palette - mean) ** 2).sum(1)).tolist()
            ranks.append(order.index(list(words.COLORS).index(thing.color)))
    assert np.mean(np.array(ranks) == 0) > 0.85 and max(ranks) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed -1 is negative; use 0"),
        ({"seed": 0, "size": 32}, "size 32 px is too small.*use 64"),
        ({"seed": 0, "held_out": "never"}, "held_out is 'never'; use"),
    ],
)
def test_errors_name_the_value_and_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(**arguments)


def test_part_that_is_not_there(scenes):
    with pytest.raises(ValueError, match="shows no 'propeller'; it shows"):
        scenes[0].part_mask(0, "propeller")
    with pytest.raises(ValueError, match="mauve car is not of the world"):
        words.held_out("car", "mauve")


def test_labels_of_the_world_come_apart_and_others_are_named():
    assert described("large red car") == ("car", "red", "large", "")
    assert described("gray road") == ("road", "gray", "", "")
    assert described("black wheel of the small red car") == ("car", "black", "", "wheel")
    for label in ("", "red wug", "car", "blurry car", "red red car", "red wug of the car", "red wheel of the wug"):
        with pytest.raises(ValueError, match=f"region label '{label}' is not of the world, as 'large red car'"):
            described(label)


def test_every_label_of_the_world_can_be_taken_apart():
    source = World(size=96)
    labels = {region.label for index in range(20) for region in source.sample(index).regions}
    parts = [described(label) for label in labels if label]
    assert {bool(found.part) for found in parts} == {bool(found.size) for found in parts} == {True, False}
