"""What becomes of every key of a checkpoint, and the table of those that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mglmm.importers.keys import MAX_LISTED, listed


@dataclass(frozen=True)
class Take:
    """A tensor of ours is this one of theirs, plus `scale * b @ a` of each adapter, cut to `shape` where given."""

    key: str
    adapters: tuple[tuple[str, str, float], ...] = ()  # (key of A, key of B, scale)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *(key for a, b, _ in self.adapters for key in (a, b)))


@dataclass(frozen=True)
class Line:
    """One line of the table of a checkpoint that does not fit."""

    what: str  # missing, extra, shape
    key: str  # theirs
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None


class KeyMismatchError(ValueError):
    """A checkpoint's keys do not fit the model that its config describes; `lines` is the table."""

    def __init__(self, message: str, lines: list[Line]):
        super().__init__(message)
        self.lines = lines


@dataclass
class Plan:
    """What becomes of every key: taken (ours -> theirs), or ignored with a reason; the rest is extra."""

    takes: dict[str, Take] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)

    def check(
        self,
        where: object,
        shapes: Mapping[str, tuple[int, ...]],
        wanted: Mapping[str, tuple[int, ...]],
        theirs: Callable[[str], str] = str,
    ) -> None:
        """Compare with the model's state dict.

        Args:
            where: named in the message.
            shapes: theirs.
            wanted: ours, key -> shape, without names that are tied to others.
            theirs: names a key of ours as the files would.

        Raises:
            KeyMismatchError: keys are missing, extra or of another shape; lists them.
        """
        absent = sorted(wanted.keys() - self.takes.keys())
        lines = [Line("missing", theirs(ours), None, wanted[ours]) for ours in absent]
        lines += [Line("extra", key, shapes[key], None) for key in sorted(self.extra)]
        lines += [Line("extra", t.key, shapes[t.key], None) for o, t in sorted(self.takes.items()) if o not in wanted]
        for ours, take in sorted(self.takes.items()):
            if ours in wanted and shapes[take.key] != wanted[ours]:
                lines.append(Line("shape", take.key, shapes[take.key], wanted[ours]))
        if lines:
            raise KeyMismatchError(
                f"{where}: {len(lines)} keys do not fit its config.json: {told(lines)}; "
                "take weights and config.json from one place, whole",
                lines,
            )


def told(lines: list[Line]) -> str:
    """The first lines of a table in words."""
    words = []
    for line in lines[:MAX_LISTED]:
        if line.what == "shape":
            words.append(f"{line.key} is {line.found}, expected {line.wanted}")
        else:
            words.append(f"{line.what} {line.key} {line.found or line.wanted}")
    return listed(words) + (f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else "")
