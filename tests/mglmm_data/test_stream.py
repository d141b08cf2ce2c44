"""Shards: everything once an epoch, shared out among ranks and workers, resumed exactly where it stopped."""

import io
import json
import tarfile
from typing import Any

import fsspec
import numpy as np
import pytest

from mglmm_data.export import picture_of
from mglmm_data.mixture import Mixture
from mglmm_data.registry import make_source
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose
from mglmm_data.shards import list_shards, write_shards
from mglmm_data.stream import ShardSource

COUNT, PER_SHARD = 23, 5


def numbered(number):
    image = np.full((8, 9, 3), number, np.uint8)
    text, phrases = compose((f"thing {number}", (0,)), ".")
    turns = (Turn("user", "What?"), Turn("assistant", text, phrases))
    region = Region.of_mask(image[..., 0] > 4)
    return Sample(image, (region,), (Conversation(turns),), id=f"n{number}", meta={"n": number})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What scans keep does not go into the tester's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    samples = [numbered(number) for number in range(COUNT)]
    write_shards(((sample, *picture_of(sample)) for sample in samples), out, PER_SHARD)
    return out


@pytest.fixture
def source(folder):
    return ShardSource(folder, buffer=4)


def test_shards_hold_what_was_written(source, folder):
    assert [len(shard) for shard in source.shards] == [5, 5, 5, 5, 3] and len(source) == COUNT
    for number in (0, 7, 22):
        sample, told = source.sample(number), numbered(number)
        assert (sample.image == told.image).all() and sample.regions == told.regions and sample.id == told.id
        assert sample.conversations == told.conversations and sample.meta["n"] == number
    assert isinstance(make_source({"type": "shards", "path": str(folder)}), ShardSource)
    with pytest.raises(ValueError, match="index is 23"):
        source.sample(23)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 1), (2, 3), (1, 4)])
def test_an_epoch_is_shared_out_without_duplicates(source, world_size, num_workers):
    """A DataLoader's worker takes each `num_workers`th batch of its rank; an epoch holds each sample once."""
    ranks = [
        Mixture({"shards": source}, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)
    ]  # fmt: skip
    steps = range(-(-2 * COUNT // world_size))
    drawn = {
        (rank, worker): [mixture.at(step)[1:] for step in steps if step // 2 % num_workers == worker]
        for rank, mixture in enumerate(ranks)
        for worker in range(num_workers)
    }
    first = [index for each in drawn.values() for index, epoch in each if epoch == 0]
    second = [index for each in drawn.values() for index, epoch in each if epoch == 1]
    assert sorted(first) == list(range(COUNT)) == sorted(second)
    lengths = [len([1 for _, epoch in each if epoch == 0]) for each in drawn.values()]
    assert max(lengths) - min(lengths) <= 2 and len(drawn) == world_size * num_workers


def test_orders_differ_by_epoch_and_seed_and_are_shuffled(source):
    one, other = Mixture({"s": source}, seed=1), Mixture({"s": source}, seed=2)
    first, second = ([one.at(epoch * COUNT + place)[1] for place in range(COUNT)] for epoch in (0, 1))
    assert first != second and first != sorted(first) and first != [other.at(place)[1] for place in range(COUNT)]


def test_a_mixture_draws_shard_by_shard(source):
    mixture = Mixture({"shards": source}, seed=5)
    drawn = [mixture.at(step)[1] for step in range(COUNT)]
    assert sorted(drawn) == list(range(COUNT))
    shards = [source.place(index)[0].url for index in drawn]
    assert max(len(set(shards[at : at + 4])) for at in range(0, COUNT - 4, 4)) <= 2
    assert [mixture.at(step)[1] for step in (20, 3)] == [drawn[20], drawn[3]]


def test_shards_at_a_url_and_by_pattern(folder):
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/bucket/{path.name}", path.read_bytes())
    source = ShardSource("memory://bucket", buffer=4)
    assert len(source) == COUNT and source.sample(21).id == "n21"
    few = ShardSource("memory://bucket/{000001..000002}.tar")
    assert len(few) == 10 and few.sample(0).id == "n5"
    assert len(list_shards(folder / "00000[0-1].tar")) == 2
    assert [len(list_shards(f"{folder}/{name}.tar")) for name in ("*", "00000{0,3}", "0000{00..01}")] == [5, 2, 2]
    assert list_shards("{a,b}/{08..10}.tar") == [f"{f}/{n}.tar" for f in "ab" for n in ("08", "09", "10")]
    with pytest.raises(ValueError, match=r"memory://bucket/000008.tar cannot be read"):
        ShardSource("memory://bucket/{000008..000009}.tar")


def test_what_lies_far_away_is_asked_for_in_one_go(folder, monkeypatch):
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/far/{path.name}", path.read_bytes())
    mixture = Mixture({"far": ShardSource("memory://far", buffer=4), "near": ShardSource(folder)}, seed=2)
    asked = []
    ranges = type(files).cat_ranges

    def counted(self, paths, starts, ends, **options):
        asked.append(sum(ends) - sum(starts))
        return ranges(self, paths, starts, ends, **options)

    monkeypatch.setattr(type(files), "cat_ranges", counted)
    numbers = range(10, 20)
    plain = [mixture.sample(number) for number in numbers]
    far = [number for number in numbers if mixture.at(number)[0] == "far"]
    assert len(asked) == len(far) > 2
    mixture.fetch(numbers)
    assert asked[-1] == sum(asked[:-1])  # one request more, for the same bytes
    again = [mixture.sample(number) for number in numbers]
    assert len(asked) == len(far) + 1 and [one.id for one in again] == [one.id for one in plain]
    with monkeypatch.context() as patch:
        patch.setattr(type(files), "cat_ranges", lambda self, paths, *_, **__: [self.cat_file(path) for path in paths])
        with pytest.raises(ValueError, match="000001.tar comes whole .* its server knows no ranges"):
            mixture.sources["far"].sample(6)
    files.pipe("/far/000000.tar", b"cut")
    source: Any = mixture.sources["far"]
    source.fetch([0, 6])
    assert source.sample(6).id == "n6"
    with pytest.raises(ValueError, match=r"far/000000.tar ends inside sample 0"):
        source.sample(0)


def test_without_an_index_shards_are_scanned(folder, tmp_path):
    for path in folder.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = ShardSource(tmp_path)
    assert len(source) == COUNT and source.sample(13).id == "n13"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mglmm_data.shards._scan", None)  # what the first scan found was kept
        assert ShardSource(tmp_path).sample(13).id == "n13"
    (tmp_path / "000002.tar").write_bytes((folder / "000004.tar").read_bytes())
    assert len(ShardSource(tmp_path)) == COUNT - 2  # and is not believed of a shard that changed
    (tmp_path / "000002.tar").write_bytes((folder / "000002.tar").read_bytes())
    stale = json.loads((folder / "index.json").read_text())
    stale["shardlist"][0]["filesize"] = 1
    (tmp_path / "index.json").write_text(json.dumps(stale))
    assert ShardSource(tmp_path).sample(2).id == "n2"
    (tmp_path / "index.json").write_text('{"shards": []}')  # another program's
    assert ShardSource(tmp_path).sample(2).id == "n2"


def pack(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_what_is_wrong_with_a_shard_is_said(tmp_path, folder):
    with pytest.raises(ValueError, match="holds no shard"):
        ShardSource(tmp_path)
    with pytest.raises(ValueError, match="no range of shards"):
        ShardSource(str(tmp_path / "{a..b}.tar"))
    pack(tmp_path / "a.tar", ("x.json", b"{}"))
    with pytest.raises(ValueError, match=r"a.tar: sample 'x': has no picture"):
        ShardSource(tmp_path)
    pack(tmp_path / "a.tar", ("x.json", b"{"), ("x.jpg", b"no"), ("x.txt", b"?"))
    with pytest.raises(ValueError, match=r"a.tar: sample 0: is no json"):
        ShardSource(tmp_path).sample(0)
    pack(tmp_path / "a.tar", ("x.json", b'{"image": "x.jpg"}'), ("x.jpg", b"no"))
    with pytest.raises(ValueError, match=r"a.tar: sample 0: its picture 'x.jpg' is not an image"):
        ShardSource(tmp_path).sample(0)
    (tmp_path / "b.tar").write_bytes(b"nothing" * 200)
    with pytest.raises(ValueError, match=r"b.tar is no tar file, cut off or damaged"):
        ShardSource(tmp_path)
    assert len(ShardSource(tmp_path, on_error="count").problems.found) == 1
    with pytest.raises(ValueError, match="buffer is 0"):
        ShardSource(folder, buffer=0)


@pytest.mark.parametrize("damage", ["between members", "in a header", "header", "behind the end"])
def test_a_cut_shard_is_refused_by_name(tmp_path, damage):
    members = [(f"{n}.{kind}", b"{}") for n in range(3) for kind in ("json", "jpg")]
    pack(tmp_path / "a.tar", *members)
    whole = (tmp_path / "a.tar").read_bytes()
    at = 4 * 1024  # the third sample's header
    cut = {"between members": whole[:at], "in a header": whole[: at + 99], "behind the end": whole * 2}
    (tmp_path / "a.tar").write_bytes(cut.get(damage, whole[:at] + b"?" * 99 + whole[at + 99 :]))
    with pytest.raises(ValueError, match=r"a.tar is no tar file, cut off or damaged .*copy or write it again"):
        ShardSource(tmp_path)
    pack(tmp_path / "b.tar", *members)
    source = ShardSource(tmp_path, on_error="count")
    assert len(source) == 3 and len(source.problems.found) == 1


def test_a_sample_without_its_picture_is_left_out_alone(tmp_path):
    pack(tmp_path / "a.tar", ("x.json", b"{}"), ("x.jpg", b""), ("y.json", b"{}"), ("z.json", b"{}"), ("z.jpg", b""))
    for _ in range(2):  # what a scan keeps does not hide it
        source = ShardSource(tmp_path, on_error="count")
        assert len(source) == 2 and "a.tar: sample 'y': has no picture" in source.problems.found[0]


def test_questions_are_drawn_from_labels_where_there_are_none(tmp_path):
    picture, suffix = picture_of(numbered(9))
    regions = [{"label": "dog", "box": [4, 1, 6, 4]}, {"label": "dog", "box": [0, 1, 2, 4]}]
    pack(
        tmp_path / "a.tar", ("x.json", json.dumps({"image": "x", "regions": regions}).encode()), (f"x{suffix}", picture)
    )
    sample = ShardSource(tmp_path, tasks={"panoptic": 1}).sample(0)
    answer = sample.conversations[0].turns[1]
    assert answer.text == "two dogs." and answer.phrases[0].regions == (1, 0) and sample.meta["mirror"] == "swap"
    absent = ShardSource(tmp_path, tasks={"absent": 1}, names=["cat"]).sample(0)
    assert "no cat" in absent.conversations[0].turns[1].text
