"""Samples out of shards (`shards.py`), read in big sequential pieces.

The order is a pure function of (seed, epoch): shards are permuted and laid end to end, the line is cut into equal parts
for ranks and their workers, and each part is shuffled in windows of `buffer` consecutive samples. A window is to memory
and disk what a shuffle buffer is, but position n of a reader is known in closed form, so resuming is exact and costs
nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

from mglmm_data.lines import from_record
from mglmm_data.mixture import permute
from mglmm_data.reading import OnError, Problems
from mglmm_data.record import parse_record
from mglmm_data.sample import Sample
from mglmm_data.shards import Shard, list_shards, load_bytes, open_file, read_pieces, read_shards, scan

BUFFER = 1000
"""Samples that are shuffled together."""


class ShardSource:
    """Shards as a `Source`: any sample by its number; a `Mixture` draws them shard by shard (`shard_order`).

    Args:
        path: a folder, a file, or a pattern with `*` or `{000000..000009}`; here, or a URL that fsspec knows.
        buffer: samples that are shuffled together; ranks that draw side by side read from the same few shards.
        mirror: for the augmentation, where a sample's `meta` does not say it.
        on_error: a shard that cannot be read is an error (`fail`), or left out and kept in `problems.found` (`count`).
    """

    def __init__(
        self, path: str | Path, *, buffer: int = BUFFER, mirror: str = "off", on_error: OnError = "fail"
    ) -> None:
        if buffer < 1:
            raise ValueError(f"buffer is {buffer}; at least 1 sample is held")
        self.path, self.buffer, self.mirror, self.problems = path, buffer, mirror, Problems(on_error)
        self.shards: list[Shard] = []
        try:
            self.shards = read_shards(path)
        except ValueError:
            if on_error == "fail":
                raise
            for url in list_shards(path):
                with self.problems.at(url):
                    self.shards.append(scan(url))
        self._ends = list(accumulate(len(shard) for shard in self.shards))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{path} holds no sample; write shards with mglmm export --format webdataset")
        self._line = lru_cache(maxsize=2)(self._shard_line)

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of a sample, and its number in it."""
        if not 0 <= index < len(self):
            raise ValueError(f"index is {index}; {self.path} has samples 0..{len(self) - 1}")
        number = bisect_right(self._ends, index)
        return self.shards[number], index - (self._ends[number] - len(self.shards[number]))

    def _shard_line(self, key: str) -> tuple[list[int], list[int]]:
        """The order of the shards that `key` chooses, and where each ends when they are laid end to end."""
        count = len(self.shards)
        order = [permute(place, count, f"{key}:shards") for place in range(count)]
        return order, list(accumulate(len(self.shards[number]) for number in order))

    def shard_order(self, position: int, key: str, part: int = 0, num_parts: int = 1) -> int:
        """The index at a position of one part of an epoch; `key` chooses the order, the same for all parts.

        Positions of a part count from 0 to `part_length(part, num_parts) - 1`.
        """
        begin, length = part_range(len(self), part, num_parts)
        window, place = divmod(position, self.buffer)
        size = min(self.buffer, length - window * self.buffer)
        along = begin + window * self.buffer + permute(place, size, f"{key}:{part}:{window}")
        order, ends = self._line(key)
        which = bisect_right(ends, along)
        number = order[which]
        return self._ends[number] - len(self.shards[number]) + along - (ends[which] - len(self.shards[number]))

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of that number; `meta` is its own with the picture's notes.

        Raises:
            ValueError: the shard cannot be read, or the sample is not of the format.
        """
        shard, number = self.place(index)
        with open_file(shard.url) as file:
            return self.decode(shard, number, *read_pieces(file, shard, number))

    def decode(self, shard: Shard, number: int, line: bytes, picture: bytes) -> Sample:
        """A sample from the bytes of its json and of its picture."""
        where = f"{shard.url}: sample {number}"
        try:
            record = parse_record(line)
            loaded = load_bytes(picture, record.image)
            sample = from_record(record, loaded.pixels, Path(shard.url).parent)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        notes = tuple(dict.fromkeys([*sample.meta.get("notes", ()), *loaded.notes]))
        meta = {"source": "shards", "mirror": self.mirror, **sample.meta, "notes": notes}
        return replace(sample, id=sample.id or f"{Path(shard.url).stem}/{number}", meta=meta)


def part_range(length: int, part: int, num_parts: int) -> tuple[int, int]:
    """Begin and length of one of `num_parts` parts of a line: they follow each other and differ by one at most."""
    begin, end = length * part // num_parts, length * (part + 1) // num_parts
    return begin, end - begin


class ShardStream:
    """One worker's share of the shards, in order, for ever: `for sample in stream.samples(start)`.

    Ranks and workers read different samples, so that each shard is read by as few as possible. A window's samples are
    read in the order in which they lie in the files, and handed out shuffled.

    Args:
        source: the shards.
        seed: of the order.
        rank, world_size, worker, num_workers: who reads; the share is that of one worker of one rank.
    """

    def __init__(
        self,
        source: ShardSource,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        worker: int = 0,
        num_workers: int = 1,
    ) -> None:
        if not 0 <= rank < world_size or not 0 <= worker < num_workers:
            raise ValueError(
                f"rank is {rank} of world_size {world_size}, worker {worker} of num_workers {num_workers}; "
                "both are counted from 0"
            )
        self.source, self.seed = source, seed
        self.part, self.num_parts = rank * num_workers + worker, world_size * num_workers
        self.epoch_length = part_range(len(source), self.part, self.num_parts)[1]
        if self.epoch_length < 1:
            raise ValueError(f"{len(source)} samples cannot be shared out to {self.num_parts} workers; use fewer")

    def at(self, position: int) -> tuple[int, int]:
        """(index, epoch) of this worker's sample number `position`, counted from 0."""
        epoch, place = divmod(position, self.epoch_length)
        return self.source.shard_order(place, f"{self.seed}:{epoch}", self.part, self.num_parts), epoch

    def samples(self, start: int = 0) -> Iterator[Sample]:
        """This worker's samples from `start` on; after a stop at n, `samples(n)` goes on exactly there."""
        position = start
        while True:
            epoch, place = divmod(position, self.epoch_length)
            end = min((place // self.source.buffer + 1) * self.source.buffer, self.epoch_length)
            indices = [self.at(epoch * self.epoch_length + each)[0] for each in range(place, end)]
            held = self._read(indices)
            for index in indices:
                yield self.source.decode(*self.source.place(index), *held.pop(index))
            position += len(indices)

    def _read(self, indices: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        """The undecoded pieces of samples, read shard by shard from front to back."""
        held: dict[int, tuple[bytes, bytes]] = {}
        opened: tuple[str, IO[bytes] | None] = ("", None)
        try:
            for index in sorted(indices):
                shard, number = self.source.place(index)
                if opened[0] != shard.url or opened[1] is None:
                    if opened[1] is not None:
                        opened[1].close()
                    opened = (shard.url, open_file(shard.url))
                held[index] = read_pieces(opened[1], shard, number)
        finally:
            if opened[1] is not None:
                opened[1].close()
        return held
