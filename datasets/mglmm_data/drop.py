"""`drop: FILE` in the spec of any source: what a list of `mglmm check-data --fix-list` names is left out, and counted.

A line is a json object. One with an `id` (as lists are written: with the `index` beside it, which tells samples of one
id apart) leaves out a sample; one without is a record that never became a sample, known by the sentence about it, its
`problem`, or, where only one is like it, by what that says is wrong: the same data in another folder is the same data.
Lines of other sources of the list (`source`) are passed over. A line that fits nothing is an error: the data has
changed since, or the list is another one's.
"""

from __future__ import annotations

import difflib
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mglmm_data.mixture import ShardOrder
from mglmm_data.reading import OnError, Problems, read_lines, shown
from mglmm_data.sample import Sample
from mglmm_data.telling import near

if TYPE_CHECKING:
    from mglmm_data.registry import Source

KEYS = {"source": str, "kind": str, "problem": str, "index": int, "id": str, "file": str}
CHUNK = 1000
"""Samples whose ids are looked at together."""


@dataclass(frozen=True)
class Line:
    """A line of a list; `where` is the file and its number."""

    where: str
    source: str = ""
    kind: str = ""
    problem: str = ""
    index: int | None = None
    id: str = ""
    file: str = ""


def read_list(path: str | Path) -> list[Line]:
    """The lines of a list.

    Raises:
        ValueError: the file is missing or not UTF-8, a line is no json object, has an unknown key, or names nothing.
    """
    out = []
    for number, text in read_lines(path):
        where = f"{path}: line {number}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: is no json ({error}); a line is an object, such as {{'id': ...}}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: is {shown(record)}; a line is an object, such as {{'id': ...}}")
        for key, value in record.items():
            if key not in KEYS:
                raise ValueError(f"{where}: unknown key {key!r}{near(key, KEYS)}")
            if isinstance(value, bool) or not isinstance(value, (KEYS[key], type(None))):
                raise ValueError(f"{where}: its {key!r} is {shown(value)}; expected {KEYS[key].__name__}")
        line = Line(where, **{key: value for key, value in record.items() if value is not None})
        if not line.id and not line.problem and line.index is None:
            raise ValueError(f"{where}: names nothing; give the id of a sample")
        out.append(line)
    if not out:
        raise ValueError(f"{path} is empty; write it with mglmm check-data --fix-list, or take drop out")
    return out


def of_source(lines: Sequence[Line], name: str, path: str | Path) -> list[Line]:
    """The lines about a source: those that say its name or none; all, where only one source is in the list.

    Raises:
        ValueError: the list is of several sources, and this is none of them.
    """
    names = {line.source for line in lines if line.source}
    if len(names) > 1 and name not in names:
        raise ValueError(
            f"{path} has nothing to drop of source {name!r}{near(name, names)}; "
            "call the source as the list does, or take drop out"
        )
    return [line for line in lines if len(names) < 2 or line.source in ("", name)]


class Dropping:
    """A source without what a list names.

    `skipped` counts what was dropped, `dropped` lists it, a sentence each; `problems.found` is what is wrong in the
    files besides.

    Args:
        inner: the whole source, made with `on_error: count`.
        path: the list.
        name: of the source, for lists of several.
        on_error: what becomes of problems that the list does not name.

    Raises:
        ValueError: the list is malformed, a line of it fits nothing here, nothing is left, or, with `fail`, something
            else is wrong in the source's files.
    """

    def __init__(self, inner: Source, path: str | Path, name: str = "", on_error: OnError | str = "fail") -> None:
        self.inner, self.path = inner, path
        self.name = f"source {name!r}" if name else "the source"
        found = list(getattr(getattr(inner, "problems", None), "found", ()))
        self.dropped: list[str] = []
        dropped: set[int] = set()
        known: set[str] = set()
        alike: dict[str, list[str]] = {}
        for text in found:
            alike.setdefault(_gist(text), []).append(text)
        for line in of_source(read_list(path), name, path):
            if line.id or line.index is not None:
                dropped.add(index := self._index(line))
                self.dropped.append(
                    f"{line.where}: {line.id or inner.id_of(index)}{f', {line.kind}' * bool(line.kind)}"
                )
            elif line.problem in found:
                known.add(line.problem)
                self.dropped.append(f"{line.where}: {line.problem}")
            elif len(same := alike.get(_gist(line.problem), [])) == 1:
                known.update(same)
                self.dropped.append(f"{line.where}: {same[0]}")
            else:
                raise ValueError(
                    f"{line.where}: nothing of the kind is wrong here any more{_closest(line.problem, found)}"
                )
        self.problems = Problems(on_error)
        for text in found:
            if text not in known:
                self.problems.found.append(text)
        if on_error == "fail" and self.problems.found:
            raise ValueError(
                f"{self.problems.found[0]}; correct or remove it, add it to {path}, "
                "or set on_error: count to leave it out"
            )
        self._dropped = sorted(dropped)
        self._before = [index - place for place, index in enumerate(self._dropped)]  # samples that stay before each
        if len(self) < 1:
            raise ValueError(f"{path} drops all {len(inner)} samples of {self.name}; take the source out")
        self.skipped: Counter[str] = Counter(getattr(inner, "skipped", {}))
        self.skipped[f"dropped by {Path(path).name}"] += len(dropped) + len(known)
        self.order = self._order(getattr(inner, "order", None))

    def _index(self, line: Line) -> int:
        """The sample that a line means."""
        count = len(self.inner)
        if line.index is not None and 0 <= line.index < count and line.id in ("", self.inner.id_of(line.index)):
            return line.index
        if not line.id:
            raise ValueError(f"{line.where}: its index is {line.index}; {self.name} has samples 0..{count - 1}")
        found = [index for index, identity in self._ids() if identity == line.id]
        if len(found) == 1:
            return found[0]
        if found:
            first = ", ".join(map(str, found[:5]))
            raise ValueError(f"{line.where}: {line.id!r} is the id of {len(found)} samples ({first}); give its index")
        close = _closest(line.id, [identity for _, identity in self._ids()])
        raise ValueError(f"{line.where}: no sample of {self.name} has the id {line.id!r}{close}")

    def _ids(self) -> Iterator[tuple[int, str]]:
        fetch = getattr(self.inner, "fetch", None)
        for start in range(0, len(self.inner), CHUNK):
            numbers = range(start, min(start + CHUNK, len(self.inner)))
            if fetch is not None:
                fetch(numbers)
            yield from ((number, self.inner.id_of(number)) for number in numbers)

    def _order(self, order: ShardOrder | None) -> ShardOrder | None:
        """The same shards with fewer samples."""
        if order is None:
            return None
        lengths, begin = [], 0
        for length in order.lengths:
            gone = bisect_left(self._dropped, begin + length) - bisect_left(self._dropped, begin)
            lengths.append(length - gone)
            begin += length
        return ShardOrder(lengths, order.buffer)

    def __len__(self) -> int:
        return len(self.inner) - len(self._dropped)

    def _inside(self, index: int) -> int:
        """The number in the whole source of a sample that stays."""
        return index + bisect_right(self._before, index)

    def id_of(self, index: int) -> str:
        return self.inner.id_of(self._inside(index))

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample at an index among those that stay."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        return self.inner.sample(self._inside(index), epoch)

    def fetch(self, indices: Sequence[int]) -> None:
        """As the whole source's, where it has one."""
        fetch: Any = getattr(self.inner, "fetch", None)
        if fetch is not None:
            fetch([self._inside(index) for index in indices])


def _gist(problem: str) -> str:
    """What a sentence says is wrong: without the folders that its files lie in, and without the way out."""
    return re.sub(r"[^\s'\"(]*[/\\]", "", re.split(r"; | in \S*/", problem)[0])


def _closest(text: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    again = "check the data again and write a new list"
    return f", did you mean {close[0]!r}? If not, {again}" if close else f"; {again}"
