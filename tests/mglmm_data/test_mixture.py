"""The mixture is a function of (seed, step): resumable, fair, and shared out among ranks."""

import inspect
from collections import Counter
from typing import Any

import pytest

from mglmm_data import registry
from mglmm_data.mixture import BLOCK, Mixture, permute
from mglmm_data.registry import Source, make_source


class Numbers:
    """A source of a given length whose samples say where they come from."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, epoch: int = 0) -> Any:
        return index, epoch

    def id_of(self, index: int) -> str:
        return str(index)


SOURCES = {"small": Numbers(7), "large": Numbers(90), "endless": Numbers(10_000_000)}
WEIGHTS = {"small": 1.0, "large": 3.0, "endless": 4.0}


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 1000])
def test_permute_is_one(length):
    assert sorted(permute(i, length, "a") for i in range(length)) == list(range(length))
    assert length < 64 or [permute(i, length, "a") for i in range(length)] != [
        permute(i, length, "b") for i in range(length)
    ]


def test_resuming_needs_no_state():
    first, resumed, other = (Mixture(SOURCES, WEIGHTS, seed=seed) for seed in (1, 1, 2))
    sequence = [first.at(step) for step in range(300)]
    assert [resumed.at(step) for step in (299, 150, 0)] == [sequence[step] for step in (299, 150, 0)]
    assert sequence != [other.at(step) for step in range(300)]


def test_weights_are_kept_within_a_block():
    mixture = Mixture(SOURCES, WEIGHTS)
    counts = Counter(mixture.at(step)[0] for step in range(BLOCK))
    assert counts == {"small": 125, "large": 375, "endless": 500}
    early = Counter(mixture.at(step)[0] for step in range(200))
    assert all(abs(early[name] / 200 - counts[name] / BLOCK) < 0.1 for name in SOURCES)


def test_every_index_once_an_epoch_and_epochs_in_order():
    mixture = Mixture(SOURCES, WEIGHTS, seed=4)
    drawn = [mixture.at(step) for step in range(2 * BLOCK)]
    for name, length in (("small", 7), ("large", 90)):
        own = [(index, epoch) for source, index, epoch in drawn if source == name]
        assert [epoch for _, epoch in own] == [place // length for place in range(len(own))]
        orders = []
        for start in range(0, len(own) - length, length):
            order = [index for index, _ in own[start : start + length]]
            assert sorted(order) == list(range(length))
            orders.append(order)
        assert orders[0] != orders[1]
    assert len({index for source, index, _ in drawn if source == "endless"}) == BLOCK


def test_ranks_share_one_sequence():
    alone = Mixture(SOURCES, WEIGHTS, seed=5)
    whole = [alone.at(step) for step in range(90)]
    ranks = [Mixture(SOURCES, WEIGHTS, seed=5, rank=rank, world_size=3) for rank in range(3)]
    assert [ranks[step % 3].at(step // 3) for step in range(90)] == whole


def test_a_tiny_weight_is_still_drawn_and_samples_come_from_their_source():
    mixture = Mixture({"a": Numbers(3), "b": Numbers(3)}, {"a": 1.0, "b": 1e-9})
    assert Counter(mixture.at(step)[0] for step in range(BLOCK)) == {"a": BLOCK - 1, "b": 1}
    assert mixture.sample(0) == mixture.at(0)[1:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_holds_each_source_so_many_times_whole(world_size):
    sources = {"a": Numbers(7), "b": Numbers(40), "c": Numbers(10)}
    times = {"a": 3.0, "b": 1.0, "c": 0.5}
    ranks = [
        Mixture(sources, multiplicities=times, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    length = ranks[0].epoch_length
    assert length == 21 + 40 + 5
    draws = [ranks[draw % world_size].at(draw // world_size) for draw in range(2 * length)]
    for epoch in range(2):
        seen = Counter((name, index) for name, index, _ in draws[epoch * length : (epoch + 1) * length])
        assert all(seen["a", index] == 3 for index in range(7)) and all(seen["b", index] == 1 for index in range(40))
        assert sum(count for (name, _), count in seen.items() if name == "c") == 5
    # half of `c` in each epoch of the mixture, so after two all of it, none twice
    assert Counter(index for name, index, _ in draws if name == "c") == Counter(range(10))
    assert {seen for name, _, seen in draws if name == "a"} == set(range(6))
    assert draws[:length] != draws[length:]
    passes = ranks[0].passes(2 * length)
    assert passes["a"] == pytest.approx(6 * world_size) and passes["c"] == pytest.approx(world_size)


def test_without_weights_every_source_is_seen_once_an_epoch():
    mixture = Mixture({"a": Numbers(5), "b": Numbers(9)})
    assert len({mixture.at(step)[:2] for step in range(14)}) == mixture.epoch_length == 14


def test_temperature_bends_the_shares():
    counts = {}
    for temperature in (1, 2, 1e9):
        mixture = Mixture({"a": Numbers(9), "b": Numbers(9)}, {"a": 9, "b": 1}, temperature=temperature)
        counts[temperature] = Counter(mixture.at(step)[0] for step in range(BLOCK))
    assert [counts[t]["b"] for t in (1, 2, 1e9)] == [100, 250, 500]
    assert Mixture({"a": Numbers(9)}, {"a": 2}).epoch_length is None
    assert Mixture({"a": Numbers(10)}, {"a": 2}).passes(25) == {"a": 2.5}


@pytest.mark.parametrize(
    ("sources", "weights", "options", "match"),
    [
        ({}, {}, {}, "at least one source"),
        ({"world": Numbers(1)}, {"wrld": 1}, {}, "'wrld', which is not a source, did you mean 'world'"),
        ({"a": Numbers(1)}, {}, {}, "source 'a' has weight None"),
        ({"a": Numbers(1)}, {"a": -1}, {}, "source 'a' has weight -1"),
        ({"a": Numbers(0)}, {"a": 1}, {}, "source 'a' is empty"),
        ({"a": Numbers(1)}, {"a": 1}, {"rank": 2, "world_size": 2}, "rank is 2 of world_size 2"),
        ({"a": Numbers(1)}, {"a": 1}, {"multiplicities": {"a": 1}}, "give one of them"),
        ({"a": Numbers(1)}, None, {"multiplicities": {"a": 0}}, "source 'a' has multiplicity 0"),
        ({"a": Numbers(1)}, None, {"multiplicities": {"b": 1}}, "multiplicity for 'b', which is not a source"),
        ({"a": Numbers(1)}, {"a": float("nan")}, {}, "source 'a' has weight nan"),
        ({"a": Numbers(1)}, {"a": 1}, {"temperature": 0}, "temperature is 0"),
        ({"a": Numbers(1)}, None, {"temperature": 2}, "temperature is 2, which bends weights"),
    ],
)
def test_wrong_mixtures_are_named(sources, weights, options, match):
    with pytest.raises(ValueError, match=match):
        Mixture(sources, weights, **options)


def test_registry_names_near_misses(tmp_path):
    for spec, match in (
        ({}, "needs a type; known: .*coco, .*folder, .*world"),
        ({"type": "cocoo"}, "no source of type 'cocoo', did you mean 'coco'"),
        ({"type": "coco", "json_pth": "x"}, "unknown key 'json_pth' .* did you mean 'json_path'"),
        ({"type": "coco"}, "needs 'json_path'"),
        ({"type": "folder", "root": tmp_path}, "is not a folder"),
    ):
        with pytest.raises(ValueError, match=match):
            make_source(spec)


def test_registry_builds_the_world():
    source = make_source({"type": "world", "turns": 1, "size": 64})
    assert isinstance(source, Source) and len(source) > 1_000_000
    assert source.sample(3).conversations == source.sample(3).conversations


def test_registry_checks_values_by_the_hints_of_every_source(tmp_path):
    for kind, made in registry.SOURCES.items():
        parameters = inspect.signature(made, eval_str=True).parameters
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters.values()), kind
    given = {"root": str(tmp_path), "json_path": "a.json", "turns": "many"}
    for kind in ("grefcoco", "lvis", "coco", "refer"):
        known = inspect.signature(registry.SOURCES[kind]).parameters
        with pytest.raises(ValueError, match=f"turns of a source of type '{kind}' is 'many': .*valid integer"):
            make_source({"type": kind} | {key: value for key, value in given.items() if key in known})
