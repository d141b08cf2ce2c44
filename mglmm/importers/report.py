"""`mglmm convert` and `mglmm merge`: what was typed, checked, and what was done, told in lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mglmm import importers
from mglmm.given import quiet
from mglmm.importers.convert import DTYPES, Converted
from mglmm.importers.plan import KeyMismatchError

WIDE = 1000
"""Columns of the table: no key is cut short, whatever the terminal."""


def convert(path: Path, out: Path, *, dtype: str | None = None, **settings: Any) -> list[str]:
    """See `mglmm.importers.convert`; `dtype` by name."""
    quiet()
    with tabled():
        return told(importers.convert(path, out, dtype=dtype_of(dtype), **settings))


def merge(base: Path, adapter: Path, out: Path, *, dtype: str | None = None, **settings: Any) -> list[str]:
    """See `mglmm.importers.merge`; `dtype` by name."""
    quiet()
    with tabled():
        return told(importers.merge(base, adapter, out, dtype=dtype_of(dtype), **settings))


@contextlib.contextmanager
def tabled() -> Iterator[None]:
    """Print the whole table of keys that do not fit before the sentence that says so."""
    try:
        yield
    except KeyMismatchError as error:
        table = Table("", "key", "in the files", "expected", box=None)
        for line in error.lines:
            table.add_row(line.what, line.key, shape(line.found), shape(line.wanted))
        Console(width=WIDE).print(table, soft_wrap=True)
        raise


def shape(found: tuple[int, ...] | None) -> str:
    return "" if found is None else " x ".join(map(str, found)) or "scalar"


def dtype_of(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise ValueError(f"--dtype is {name!r}; choose {', '.join(DTYPES)}, or leave it out to keep what is stored")
    return None if name is None else DTYPES[name]


def told(done: Converted) -> list[str]:
    """What a conversion did, in lines."""
    lines = [f"{done.family}: {done.taken} tensors taken"]
    lines += [f"left out: {count} ({reason})" for reason, count in done.ignored.items()]
    lines += [f"note: {note}" for note in done.notes]
    lines += [f"checkpoint {done.folder}", *done.ways]
    return lines
