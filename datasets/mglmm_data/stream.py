"""Samples out of WebDataset shards (`shards.py`), any of them by its number.

A `Mixture` draws them shard by shard and shuffled in windows (`mixture.ShardOrder`), so that the order is a pure
function of (seed, step): a run goes on exactly where it stopped without a reader's state, ranks and workers read what
is theirs and nothing else, and how many workers there are changes no loss. What random access would cost far away is
saved by asking for all samples of a batch at once (`fetch`), each by the range of its bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from mglmm_data.images import load_content
from mglmm_data.jsonl import tell_of_labels
from mglmm_data.lines import from_record
from mglmm_data.mixture import ShardOrder
from mglmm_data.reading import OnError, Problems
from mglmm_data.record import parse_record
from mglmm_data.sample import Sample
from mglmm_data.shards import Pieces, Shard, fetch_pieces, is_url, read_pieces, read_shards
from mglmm_data.telling import Kind, Teller, check_tasks, near

BUFFER = 1000
"""Samples that are shuffled together."""


class ShardSource:
    """Shards as a `Source`.

    Args:
        path: a folder, a file, or a pattern with `*`, `{000000..000009}` or `{a,b}`; here, or a URL that fsspec knows.
        buffer: samples that are shuffled together; ranks that draw side by side read from the same few shards.
        kind, tasks, turns, object_name, seed: for samples without conversations, how questions are drawn from the
            labels, as in `JsonlSource`.
        names: labels that may be asked for where they are absent; what is in shards is known only when it is read.
        mirror: for the augmentation, where a sample's `meta` does not say it; by default "swap" for drawn questions,
            "off" for written ones.
        on_error: a shard that cannot be read, or a sample without json or picture, is an error (`fail`), or left out
            and kept in `problems.found` (`count`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        buffer: int = BUFFER,
        kind: Kind = "instances",
        tasks: Mapping[str, float] | None = None,
        turns: int = 1,
        object_name: str = "object",
        names: Sequence[str] = (),
        seed: int = 0,
        mirror: str | None = None,
        on_error: OnError = "fail",
    ) -> None:
        if buffer < 1:
            raise ValueError(f"buffer is {buffer}; at least 1 sample is held")
        if kind not in ("instances", "parts"):
            raise ValueError(f"kind is {kind!r}{near(kind, ('instances', 'parts'))}")
        self.path, self.buffer, self.seed, self.mirror = path, buffer, seed, mirror
        self.problems = Problems(on_error)
        self._teller = Teller(
            kind=kind,
            names=names,
            tasks=check_tasks(tasks, kind, False, turns),
            turns=turns,
            object_name=object_name,
        )
        self.shards = read_shards(path, self.problems)
        self._ends = list(accumulate(len(shard) for shard in self.shards))
        if not self._ends or not self._ends[-1]:
            wrong = f" ({self.problems.found[0]})" if self.problems.found else ""
            raise ValueError(f"{path} holds no sample{wrong}; write shards with mglmm export --format webdataset")
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

        Where it has no conversations, they are drawn by (seed, index, epoch).

        Raises:
            ValueError: the shard cannot be read, or the sample is not of the format.
        """
        shard, number = self.place(index)
        line, picture = self._pieces(index)
        try:
            record = parse_record(line)
            loaded = load_content(picture, f"its picture {record.image!r}")
            sample = from_record(record, loaded, Path(shard.url).parent)
            if record.conversations is None:
                sample = tell_of_labels(sample, self._teller, np.random.default_rng([self.seed, index, epoch]))
        except ValueError as error:
            raise ValueError(f"{shard.url}: sample {number}: {error}") from error
        notes = tuple(dict.fromkeys([*sample.meta.get("notes", ()), *loaded.notes]))
        mirror = self.mirror or ("swap" if record.conversations is None else "off")
        meta = {"source": "shards", "mirror": mirror, **sample.meta, "notes": notes}
        return replace(sample, id=sample.id or f"{Path(shard.url).stem}/{number}", meta=meta)
