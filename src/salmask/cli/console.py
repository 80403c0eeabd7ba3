"""What the commands say: progress, lines, a table; and how they were called."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TypeVar

from salmask.files import Facts

__all__ = ["print_table", "progress_bar", "say", "typed_command"]

T = TypeVar("T")


def progress_bar(what: str) -> Callable[[Iterable[T]], Iterator[T]]:
    """Return a wrapper that shows a progress bar with rate and time left on a terminal, and nothing elsewhere."""

    def wrap(items: Iterable[T]) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        total = len(items) if isinstance(items, Sized) else None
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=total, rate="")
            for item in items:
                yield item
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, rate=f"{speed:.2f}/s" if speed else "")

    return wrap


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_table(summary: Mapping[str, Facts], names: Iterable[str]) -> None:
    """Print explainers against a few metrics."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in names if any(name in row for row in summary.values())]
    table = Table("explainer", *shown)
    for explainer, row in summary.items():
        table.add_row(explainer, *(f"{row[name]['mean']:.3f}" if name in row else "" for name in shown))
    Console(width=max(80, 24 + 14 * len(shown))).print(table)


def typed_command() -> str:
    """Return the command as it was typed."""
    return "salmask " + " ".join(shlex.quote(part) for part in sys.argv[1:])
