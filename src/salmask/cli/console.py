"""What the commands say: progress, lines, a table, the result; and how they were called.

Every command is a `Command` and returns its result, a table of facts. What becomes of it is decided here alone:

| option | on stdout | on stderr |
|---|---|---|
| | what the command says | progress, warnings, errors |
| --quiet | the paths of what was written; what the command says, where nothing is | warnings, errors |
| --json | the result, one JSON object | all else |
"""

import contextlib
import io
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from salmask.files import Facts

__all__ = ["Command", "carry_out", "count_bar", "print_table", "progress_bar", "say", "typed_command"]

T = TypeVar("T")
_EVERY = 30.0  # seconds between lines of progress where there is no terminal
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What all commands share. Calling one does the job and returns the result; None: another process has it."""

    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print only where the result is (or the result, where nothing is written), warnings and errors."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on stdout, and all else on stderr."""

    def __call__(self) -> Facts | None:
        """Run the command."""
        raise NotImplementedError


def carry_out(command: Command) -> None:
    """Run a command and print what --quiet and --json leave of it."""
    stdout = sys.stdout
    said: io.StringIO | None = io.StringIO() if command.quiet else None
    target = sys.stderr if command.json and said is None else said or stdout
    hushed, disabled = _quiet.set(command.quiet), logging.root.manager.disable
    if command.quiet:
        logging.disable(max(disabled, logging.INFO))
    try:
        with contextlib.redirect_stdout(target):
            result = command()
    finally:
        _quiet.reset(hushed)
        logging.disable(disabled)
    if result is None:
        return
    if command.json:
        stdout.write(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False) + "\n")
    elif said is not None:
        paths = [*_paths(result)]
        stdout.write("".join(f"{path}\n" for path in paths) if paths else said.getvalue())
    stdout.flush()


def _plain(value: object) -> object:
    """Return a result as JSON has it: paths as texts, what is no finite number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(one)


def progress_bar(what: str, *, every: float = _EVERY) -> Callable[[Iterable[T]], Iterator[T]]:
    """Return a wrapper that shows how far items are: on a terminal a bar with rate and time left.

    Elsewhere it writes a line with the same numbers every so many seconds, and nothing of what takes less. Both go to
    stderr.
    """

    def wrap(items: Iterable[T]) -> Iterator[T]:
        from rich.console import Console

        console = Console(stderr=True)
        if _quiet.get():
            return iter(items)
        return _bar(console, what, items) if console.is_interactive else _lines(what, items, every)

    return wrap


def _bar(console: object, what: str, items: Iterable[T]) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    assert isinstance(console, Console)
    text, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=_count(items), rate="")
        for item in items:
            yield item
            speed = bar.tasks[task].speed
            bar.update(task, advance=1, rate=f"{speed:.2f}/s" if speed else "")


@contextlib.contextmanager
def count_bar(what: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """Yield a function (count, total, seconds left or None) that moves a bar, for what is counted by its own clock.

    Without a terminal, and under --quiet, there is no bar: whoever counts prints lines of his own. What is printed
    meanwhile stands above the bar, and stays on stdout where that is no terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if _quiet.get() or not console.is_interactive:
        yield lambda count, total, left: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    clock = TextColumn("{task.fields[left]}")
    with Progress(*columns, clock, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=None, left="")

        def move(count: int, total: int, left: float | None) -> None:
            bar.update(task, completed=count, total=total, left="" if left is None else f"{_clock(left)} left")

        yield move


def _lines(what: str, items: Iterable[T], every: float) -> Iterator[T]:
    total, start = _count(items), time.monotonic()
    shown = start
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= every and number != total:
            shown, rate = now, number / max(now - start, 1e-9)
            left = "" if total is None else f"/{total}"
            end = "" if total is None else f", {_clock((total - number) / rate)} left"
            sys.stderr.write(f"{what}: {number}{left}, {rate:.2f}/s{end}\n")
            sys.stderr.flush()


def _count(items: Iterable[object]) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


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


def typed_command(arguments: Iterable[str] | None = None) -> str:
    """Return the command as it was typed: these arguments, or those of this process."""
    return "salmask " + " ".join(shlex.quote(part) for part in (sys.argv[1:] if arguments is None else arguments))
