"""Answers and mistakes on a terminal: phrases in the colours they wear on the picture, one sentence for a mistake."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

    from mglmm.answer import Answer, Phrase
    from mglmm.grounder import StreamEvent

OURS = ("mglmm", "sam_bridge", "mglmm_data")
NOT_SAID = "(no text)"


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the user's and its message says so: a `ValueError` raised in our code, or any `OSError`.

    A `ValueError` out of the depth of another library is a bug of ours, and keeps its traceback.
    """
    return isinstance(error, OSError) or (isinstance(error, ValueError) and raised_in(error.__traceback__) in OURS)


def raised_in(trace: TracebackType | None) -> str:
    """Top-level package of the innermost frame."""
    name = ""
    while trace is not None:
        name, trace = str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_next
    return name.partition(".")[0]


def sentence(error: BaseException) -> str:
    """The message on one line; the system's own errors get the file and the way out that they lack."""
    if isinstance(error, OSError) and error.strerror:
        advice = {errno.ENOSPC: "free some space or choose another folder", errno.EACCES: "check the permissions"}
        where = f"{error.filename}: " if error.filename else ""
        what = f"{where}{error.strerror}"
        return f"{what}; {advice[error.errno]}" if error.errno in advice else what
    return " ".join(str(error).split()) or type(error).__name__


def say(console: Console, text: str) -> None:
    """A line as it is: no markup, no wrapping, so that paths can be copied; what is not UTF-8 becomes `?`."""
    console.print(Text(text.encode("utf-8", "replace").decode()), soft_wrap=True)


def colored(text: str, phrases: Sequence[Phrase]) -> Text:
    """`text` with its phrases in the colours of the picture."""
    from mglmm.palette import palette

    out = Text(text)
    for phrase, (red, green, blue) in zip(phrases, palette(len(phrases)), strict=True):
        out.stylize(f"bold rgb({red},{green},{blue})", *phrase.span)
    return out


def legend(answer: Answer) -> Iterable[Text]:
    """A line for each phrase: its number on the picture, what it is, how sure the model is of it."""
    from mglmm.palette import ink_on, palette

    pixels = answer.size[0] * answer.size[1]
    for number, (phrase, color) in enumerate(zip(answer.phrases, palette(len(answer.phrases)), strict=True), 1):
        (red, green, blue), (r, g, b) = color, ink_on(color)
        masks = [instance.mask for instance in phrase.instances if instance.mask is not None]
        boxes = [instance.box for instance in phrase.instances if instance.mask is None and instance.box is not None]
        found = []
        if masks:
            share = float(sum(mask.sum() for mask in masks)) / pixels
            found.append(f"{len(masks)} mask{'s' * (len(masks) > 1)} on {share:.1%} of the image")
        found += [f"box {', '.join(f'{value:.0f}' for value in box)}" for box in boxes]
        line = Text(f" {number} ", style=f"bold rgb({r},{g},{b}) on rgb({red},{green},{blue})")
        line.append(f" {phrase.text.strip() or NOT_SAID}", style="default on default not bold")
        line.append(
            f"  {', '.join(found) or 'nothing found'}, score {phrase.score:.2f}", style="dim not bold on default"
        )
        yield line


def show(console: Console, answer: Answer) -> None:
    """Print the text of an answer and what belongs below it."""
    console.print(colored(answer.text, answer.phrases) if answer.text.strip() else Text(NOT_SAID))
    show_below(console, answer)


def show_below(console: Console, answer: Answer) -> None:
    """Print the phrases and the notes."""
    from mglmm.draw import notes_of

    for line in legend(answer):
        console.print(line)
    for note in notes_of(answer):
        console.print(Text(f"note: {note}", style="yellow"))


def show_stream(console: Console, events: Iterable[StreamEvent]) -> Answer:
    """Print an answer while it comes, on a terminal with its colours, and what belongs below it; returns the answer."""
    from rich.live import Live

    text, phrases, answer = "", [], None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for event in events:
            text += event.text
            phrases += [event.phrase] if event.phrase is not None else []
            answer = event.answer or answer
            if live is not None:
                live.update(colored(text, phrases), refresh=True)
            else:
                console.file.write(event.text)
                console.file.flush()
    assert answer is not None, "a stream ends with the answer"
    if not console.is_terminal:
        console.file.write("\n")
    show_below(console, answer)
    return answer


def progress() -> Progress:
    """Bars on stderr, one a task; nothing where it is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Console(stderr=True)
    return Progress(*columns, console=bars, disable=not bars.is_terminal)


def by_name(bars: Progress) -> Callable[[str, int, int], None]:
    """(name, done, in all) told to one bar a name, which begins when its name is first told."""
    shown: dict[str, Any] = {}

    def told(name: str, done: int, total: int) -> None:
        if name not in shown:
            shown[name] = bars.add_task(name)
        bars.update(shown[name], completed=done, total=total)

    return told
