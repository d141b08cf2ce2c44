"""Samples out of WebDataset shards (`shards.py`), any of them by its number.

A `Mixture` draws them shard by shard and shuffled in windows (`mixture.ShardOrder`), so that the order is a pure
function of (seed, step): a run goes on exactly where it stopped without a reader's state, ranks and workers read what
is theirs and nothing else, and how many workers there are changes no loss. What random access would cost far away is
saved by asking for all samples of a batch at once (`fetch`), each by the range of its bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from mglmm_data.images import load_content
from mglmm_data.lines import from_record
from mglmm_data.mixture import ShardOrder
from mglmm_data.reading import OnError, Problems
from mglmm_data.record import parse_record
from mglmm_data.sample import Sample
from mglmm_data.shards import (
    Pieces,
    Shard,
    fetch_pieces,
    is_url,
    list_shards,
    read_pieces,
    read_shards,
    scan,
)

BUFFER = 1000
"""Samples that are shuffled together."""


class ShardSource:
    """Shards as a `Source`.

    Args:
        path: a folder, a file, or a pattern with `*`, `{000000..000009}` or `{a,b}`; here, or a URL that fsspec knows.
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
        self.order = ShardOrder([len(shard) for shard in self.shards], buffer)
        self._held: dict[int, Pieces | ValueError] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of a sample, and its number in it."""
        if not 0 <= index < len(self):
            raise ValueError(f"index is {index}; {self.path} has samples 0..{len(self) - 1}")
        number = bisect_right(self._ends, index)
        return self.shards[number], index - (self._ends[number] - len(self.shards[number]))

    def fetch(self, indices: Sequence[int]) -> None:
        """Get the bytes of the samples that are asked for next; what was fetched before and not asked for is let go."""
        places = {index: self.place(index) for index in indices}
        far = [index for index, (shard, _) in places.items() if is_url(shard.url)]
        self._held = dict(zip(far, fetch_pieces([places[index] for index in far]), strict=True)) if far else {}

    def _pieces(self, index: int) -> Pieces:
        held = self._held.pop(index, None)
        if isinstance(held, ValueError):
            raise held
        return held or read_pieces(*self.place(index))

    def id_of(self, index: int) -> str:
        """The `id` in a sample's json; of one without, or that is not of the format, its shard and number."""
        shard, number = self.place(index)
        try:
            return parse_record(self._pieces(index)[0]).id or f"{Path(shard.url).stem}/{number}"
        except ValueError:  # the sample tells, when it is asked for
            return f"{Path(shard.url).stem}/{number}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of that number; `meta` is its own with the picture's notes.

        Raises:
            ValueError: the shard cannot be read, or the sample is not of the format.
        """
        shard, number = self.place(index)
        line, picture = self._pieces(index)
        try:
            record = parse_record(line)
            loaded = load_content(picture, f"its picture {record.image!r}")
            sample = from_record(record, loaded, Path(shard.url).parent)
        except ValueError as error:
            raise ValueError(f"{shard.url}: sample {number}: {error}") from error
        notes = tuple(dict.fromkeys([*sample.meta.get("notes", ()), *loaded.notes]))
        meta = {"source": "shards", "mirror": self.mirror, **sample.meta, "notes": notes}
        return replace(sample, id=sample.id or f"{Path(shard.url).stem}/{number}", meta=meta)
