"""Shards: everything once an epoch, shared out among ranks and workers, resumed exactly where it stopped."""

import io
import itertools
import json
import tarfile

import fsspec
import numpy as np
import pytest

from mglmm_data.export import picture_of
from mglmm_data.mixture import Mixture
from mglmm_data.registry import make_source
from mglmm_data.sample import Conversation, Region, Sample, Turn, compose
from mglmm_data.shards import list_shards, write_shards
from mglmm_data.stream import ShardSource, ShardStream, part_range

COUNT, PER_SHARD = 23, 5


def numbered(number):
    image = np.full((8, 9, 3), number, np.uint8)
    text, phrases = compose((f"thing {number}", (0,)), ".")
    turns = (Turn("user", "What?"), Turn("assistant", text, phrases))
    region = Region.of_mask(image[..., 0] > 4)
    return Sample(image, (region,), (Conversation(turns),), id=f"n{number}", meta={"n": number})


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
    readers = [
        ShardStream(source, seed=1, rank=rank, world_size=world_size, worker=worker, num_workers=num_workers)
        for rank in range(world_size)
        for worker in range(num_workers)
    ]
    lengths = [reader.epoch_length for reader in readers]
    assert sum(lengths) == COUNT and max(lengths) - min(lengths) <= 1
    for epoch in (0, 1):
        drawn = [
            [reader.at(epoch * reader.epoch_length + i)[0] for i in range(reader.epoch_length)] for reader in readers
        ]
        assert sorted(index for each in drawn for index in each) == list(range(COUNT))
    touched = [{source.place(index)[0].url for index in each} for each in drawn]
    assert sum(map(len, touched)) <= len(source.shards) + len(readers) - 1  # only the cuts are read by two


def test_orders_differ_by_epoch_and_seed_and_are_shuffled(source):
    one, other = ShardStream(source, seed=1), ShardStream(source, seed=2)
    first = [one.at(place)[0] for place in range(COUNT)]
    assert first != [one.at(COUNT + place)[0] for place in range(COUNT)] != sorted(first)
    assert first != [other.at(place)[0] for place in range(COUNT)] and first != sorted(first)
    assert [epoch for _, epoch in map(one.at, (0, COUNT - 1, COUNT, 2 * COUNT))] == [0, 0, 1, 2]


@pytest.mark.parametrize("start", [0, 1, 4, 6, 22, 23, 40])
def test_a_stream_goes_on_exactly_where_it_stopped(source, start):
    stream = ShardStream(source, seed=3, rank=1, world_size=2)
    whole = [sample.id for sample in itertools.islice(stream.samples(), 60)]
    assert whole == [f"n{stream.at(place)[0]}" for place in range(60)]
    assert [sample.id for sample in itertools.islice(stream.samples(start), 20)] == whole[start : start + 20]


def test_a_mixture_draws_shard_by_shard(source):
    mixture = Mixture({"shards": source}, seed=5)
    drawn = [mixture.at(step)[1] for step in range(COUNT)]
    assert sorted(drawn) == list(range(COUNT))
    shards = [source.place(index)[0].url for index in drawn]
    assert max(len(set(shards[at : at + 4])) for at in range(0, COUNT - 4, 4)) <= 2


def test_shards_at_a_url_and_by_pattern(folder):
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/bucket/{path.name}", path.read_bytes())
    source = ShardSource("memory://bucket", buffer=4)
    assert len(source) == COUNT and source.sample(21).id == "n21"
    few = ShardSource("memory://bucket/{000001..000002}.tar")
    assert len(few) == 10 and few.sample(0).id == "n5"
    assert len(list_shards(folder / "00000[0-1].tar")) == 2
    with pytest.raises(ValueError, match=r"memory://bucket/000008.tar cannot be read"):
        ShardSource("memory://bucket/{000008..000009}.tar")


def test_without_an_index_shards_are_scanned(folder, tmp_path):
    for path in folder.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = ShardSource(tmp_path)
    assert len(source) == COUNT and source.sample(13).id == "n13"
    stale = json.loads((folder / "index.json").read_text())
    stale["shardlist"][0]["filesize"] = 1
    (tmp_path / "index.json").write_text(json.dumps(stale))
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
    with pytest.raises(ValueError, match=r"a.tar: sample 'x' has no picture"):
        ShardSource(tmp_path)
    pack(tmp_path / "a.tar", ("x.json", b"{"), ("x.jpg", b"no"), ("x.txt", b"?"))
    with pytest.raises(ValueError, match=r"a.tar: sample 0: is no json"):
        ShardSource(tmp_path).sample(0)
    pack(tmp_path / "a.tar", ("x.json", b'{"image": "x.jpg"}'), ("x.jpg", b"no"))
    with pytest.raises(ValueError, match=r"a.tar: sample 0: its picture 'x.jpg' is not an image"):
        ShardSource(tmp_path).sample(0)
    (tmp_path / "b.tar").write_bytes(b"nothing" * 200)
    with pytest.raises(ValueError, match=r"b.tar is no tar file, or damaged"):
        ShardSource(tmp_path)
    assert len(ShardSource(tmp_path, on_error="count").problems.found) == 1
    with pytest.raises(ValueError, match="buffer is 0"):
        ShardSource(folder, buffer=0)
    with pytest.raises(ValueError, match="rank is 2 of world_size 2"):
        ShardStream(ShardSource(folder), rank=2, world_size=2)
    with pytest.raises(ValueError, match="cannot be shared out to 24 workers"):
        ShardStream(ShardSource(folder), num_workers=24)


def test_parts_of_a_line_follow_each_other():
    parts = [part_range(10, part, 3) for part in range(3)]
    assert parts == [(0, 3), (3, 3), (6, 4)]
