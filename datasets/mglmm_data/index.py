"""Large annotation files, read once and left on disk: where each record stands, and which belong to which image.

A json of 100,000 annotations is walked once at start-up. Kept are arrays (byte offsets, ids) and packed names, so a
sample costs some tens of bytes; a record is parsed again from the file when its sample is read. The file is scanned as
latin-1, in which a character is a byte: the structure of a UTF-8 json is ASCII, so the offsets are those of the file. A
record with other bytes in it is parsed again from its own.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data.reading import Problems

SPACE = re.compile(r"[ \t\n\r]*").match
COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match
LEFT_OUT = object()


class Strings(Sequence[str]):
    """Many short texts as one block of bytes and their ends: 8 bytes each beside the text itself."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        self.extend(texts)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class Groups:
    """Records by the group (an image) they belong to: `groups[i]` are their numbers, `int64[n]`, in file order.

    Args:
        keys: group of each record, 0 .. num_groups - 1; -1 belongs to none.
    """

    def __init__(self, keys: Sequence[int] | np.ndarray | array, num_groups: int) -> None:
        flat = np.asarray(keys, np.int64)
        kept = np.flatnonzero(flat >= 0)
        self._order = kept[np.argsort(flat[kept], kind="stable")].astype(np.int32)
        self._ends = np.searchsorted(flat[self._order], np.arange(num_groups + 1))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, group: int) -> np.ndarray:
        return self._order[self._ends[group] : self._ends[group + 1]]


class Records(Sequence[Any]):
    """Records of a json file by number, parsed when asked for; only where they begin and end is kept.

    Raises (on access):
        ValueError: the file has changed since it was walked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._starts, self._ends = array("q"), array("q")
        self._stamp = _stamp(self.path)

    def append(self, start: int, end: int) -> None:
        """Keep the record at bytes `start:end` of the file."""
        self._starts.append(start)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.many(range(*index.indices(len(self))))
        return self.many([range(len(self))[index]])[0]

    def many(self, indices: Iterable[int]) -> list[Any]:
        """Several records, with the file opened once."""
        if _stamp(self.path) != self._stamp:
            raise ValueError(f"{self.path} has changed since it was read; start again")
        found = []
        with self.path.open("rb", buffering=0) as file:
            for index in indices:
                file.seek(self._starts[index])
                raw = file.read(self._ends[index] - self._starts[index])
                try:
                    found.append(json.loads(raw.decode("utf-8")))
                except UnicodeDecodeError as error:
                    at = self._starts[index] + error.start
                    raise ValueError(f"{self.path}: byte {at} is no UTF-8 text; save the file as UTF-8") from error
        return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the annotations") from error
    return state.st_size, state.st_mtime_ns


def walk(
    path: str | Path, problems: Problems | None = None, lists: set[str] | None = None
) -> Iterator[tuple[str, int, int, Any]]:
    """Every record of a json file with its place: `(key, start, end, record)`, in file order.

    Of an object whose values are lists, each element, under the list's key; its other values whole, under their key.
    Of a list, each element, under "".

    Args:
        problems: takes records that hold NaN, infinity or text that is no UTF-8, which are then left out.
        lists: takes the keys whose values are lists, the empty ones too.

    Raises:
        ValueError: the file is missing, no json or cut off, or has such a record; the message names where.
    """
    path = Path(path)
    problems = problems or Problems()
    text, bad = _text(path), list[str]()
    is_ascii = text.isascii()
    scan = json.JSONDecoder(parse_constant=bad.append).raw_decode

    def value(at: int, name: str, number: int | None = None) -> tuple[Any, int]:
        try:
            found, end = scan(text, at)
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
            raise _cut(path, _where(name, number), str(error)) from error
        wrong = f"{bad[0]}, which is no number" if bad else ""
        if not is_ascii and not (part := text[at:end]).isascii():
            try:
                found = json.loads(part.encode("latin-1").decode("utf-8"))
            except UnicodeDecodeError as error:
                wrong = f"text that is not UTF-8 (byte {at + error.start}); save the file as UTF-8"
        if not wrong:
            return found, end
        bad.clear()
        told = f" (id {found['id']})" if isinstance(found, dict) and "id" in found else ""
        with problems.at(f"{path}: {_where(name, number)}{told}"):
            raise ValueError(f"it holds {wrong}")
        return LEFT_OUT, end

    start = _skip(text, 3 if text.startswith("\xef\xbb\xbf") else 0)
    if text[start : start + 1] == "[":
        yield from _elements(path, text, "", start, value)
    elif text[start : start + 1] == "{":
        at = _skip(text, start + 1)
        while text[at : at + 1] != "}":
            key, at = value(at, "its first level")
            at = _expect(path, text, _skip(text, at), ":", f"after {key!r}")
            if text[at : at + 1] == "[" and key is not LEFT_OUT:
                if lists is not None:
                    lists.add(str(key))
                at = yield from _elements(path, text, str(key), at, value)
            else:
                found, end = value(at, str(key))
                if found is not LEFT_OUT and key is not LEFT_OUT:
                    yield str(key), at, end, found
                at = end
            at = _skip(text, at)
            if text[at : at + 1] != "}":
                at = _expect(path, text, at, ",", f"after {key!r}")
    else:
        raise ValueError(
            f"{path} cannot be read as json (it begins with {text[start : start + 9]!r}); download it again"
        )


def _elements(
    path: Path, text: str, key: str, at: int, value: Callable[[int, str, int], tuple[Any, int]]
) -> Iterator[tuple[str, int, int, Any]]:
    """The elements of the list that begins at `at`; returns (`yield from`) the place behind it."""
    name, number = key or "record", 0
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        found, end = value(at, name, number)
        if found is not LEFT_OUT:
            yield key, at, end, found
        if comma := COMMA(text, end):
            at = comma.end()
        else:
            at = _skip(text, end)
            if text[at : at + 1] != "]":
                _expect(path, text, at, ",", f"after {_where(name, number)}")
        number += 1
    return at + 1


def _where(name: str, number: int | None) -> str:
    return name if number is None else f"{name}[{number}]"


def _skip(text: str, at: int) -> int:
    found = SPACE(text, at)
    assert found  # it fits everywhere
    return found.end()


def _expect(path: Path, text: str, at: int, sign: str, where: str) -> int:
    if text[at : at + 1] != sign:
        raise _cut(path, where, f"expected {sign!r} at byte {at}, found {text[at : at + 9]!r}")
    return _skip(text, at + 1)


def _cut(path: Path, where: str, what: str) -> ValueError:
    return ValueError(f"{path} cannot be read as json ({where}: {what}); export or download it again")


def _text(path: Path) -> str:
    """The file as latin-1 reads it."""
    try:
        return path.read_bytes().decode("latin-1")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the annotations") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); check the path of the annotations") from error
