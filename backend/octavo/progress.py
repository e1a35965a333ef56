"""Progress bars for people: on the terminal's stderr, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

OnProgress = Callable[[str, float], None]


@contextmanager
def load_bar(show: bool = True) -> Iterator[OnProgress]:
    """A bar that is told (phase, fraction from 0 to 1); each phase starts it anew."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    with _bar(show, *columns) as bar:
        task = bar.add_task("loading", total=1.0)
        yield lambda phase, fraction: bar.update(task, description=phase, completed=fraction)


@contextmanager
def count_bar(what: str, total: int | None, show: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar of `total` things; each call says that one more is done, with a note to show beside the bar.

    None: nobody knows how many there will be.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with _bar(show, *columns, TextColumn("{task.fields[note]}")) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


def _bar(show: bool, *columns: TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal))
