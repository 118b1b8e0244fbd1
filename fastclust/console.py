"""What the command line prints: results on stdout; errors, remarks and, on a terminal only, progress bars on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

OUT = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
_state = {"bars": True}


def first_speaks(here: bool) -> None:
    """Print results, remarks and bars only where this is the first of several processes; errors wherever they are."""
    OUT.quiet = not here
    _state["bars"] = here


def say(line: str) -> None:
    """Print a line of a result."""
    OUT.print(printable(line))


def complain(line: str, style: str | None = None) -> None:
    """Print a line on stderr."""
    ERR.print(printable(line), style=style)


def end(left_out: Sequence[tuple[str, str]]) -> None:
    """Name the images that were left out, and exit with 3 where there are any."""
    for path, reason in left_out:
        complain(f"left out: {path}: {reason}")
    if left_out:
        raise typer.Exit(3)


def printable(text: str) -> str:
    """Return text with whatever is not a printable character, such as what moves or colours a terminal, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress_bars() -> Iterator[Any]:
    """Yield a callback (step, done, total, remark) that draws bars with rates and time left on a terminal."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=ERR, disable=not (ERR.is_terminal and _state["bars"])) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int | None, remark: str) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, remark=remark, rate="")
            task = next(one for one in bars.tasks if one.id == tasks[step])
            rate = f"{task.speed:.1f}/s" if task.speed else ""
            bars.update(tasks[step], completed=done, total=total, remark=printable(remark), rate=rate)

        yield report
