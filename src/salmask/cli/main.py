"""The command line: what a user types becomes a command, and bad input one clear line.

Each command is a frozen dataclass in a file of its own: its fields are the options, calling it does the job. Heavy
imports stand inside the calls, so that `--help` answers at once. Every command ends with a non-zero exit on bad input,
and says where its results are.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import tyro

from salmask.cli.classifier import ClassifierCommand
from salmask.cli.completion import CompletionCommand
from salmask.cli.console import Command, carry_out, typed_command
from salmask.cli.convert import ConvertCommand
from salmask.cli.demo import DemoCommand
from salmask.cli.doctor import DoctorCommand
from salmask.cli.evaluate import EvaluateCommand
from salmask.cli.explain import ExplainCommand
from salmask.cli.export import ExportCommand
from salmask.cli.inpainter import InpainterCommand
from salmask.cli.layers import LayersCommand
from salmask.cli.overview import asked_for, overview
from salmask.cli.pooling import PoolingCommand
from salmask.cli.report import ReportCommand
from salmask.cli.sanity import SanityCommand
from salmask.cli.score import ScoreCommand
from salmask.cli.serve import ServeCommand
from salmask.cli.share import ShareCommand
from salmask.cli.study import StudyCommand
from salmask.cli.train import TrainCommand

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, type[Command]] = MappingProxyType(
    {
        "demo": DemoCommand,
        "classifier": ClassifierCommand,
        "train": TrainCommand,
        "inpainter": InpainterCommand,
        "pooling": PoolingCommand,
        "explain": ExplainCommand,
        "evaluate": EvaluateCommand,
        "export": ExportCommand,
        "score": ScoreCommand,
        "study": StudyCommand,
        "sanity": SanityCommand,
        "report": ReportCommand,
        "serve": ServeCommand,
        "share": ShareCommand,
        "layers": LayersCommand,
        "convert": ConvertCommand,
        "doctor": DoctorCommand,
        "completion": CompletionCommand,
    }
)
"""The commands, by the word that is typed."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for bad input (one clear line), 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal cannot show, as stderr does
    if (about := asked_for(words)) is not None:
        sys.stdout.write(overview(every="--all" in about))
        return 0 if words else 2
    if words[0] == "help":
        words = [*words[1:], "--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            carry_out(_parsed(words))
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"salmask: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        if _is_first():
            sys.stderr.write(f"salmask: interrupted; {_how_to_go_on(words)}\n")
        return 130
    return 0


_GOES_ON = frozenset({"train", "classifier", "pooling", "study", "evaluate", "score", "demo"})


def _how_to_go_on(words: Sequence[str]) -> str:
    """Return what becomes of an interrupted command, with the line that goes on."""
    line = typed_command(words)
    if words[0] == "serve":
        return "the page is closed"
    if words[0] == "train" and "--resume" not in words:
        line += " --resume"
    if words[0] in _GOES_ON or (words[0] == "explain" and any(word.startswith("--data") for word in words)):
        return f"what was finished is kept, go on with: {line}"
    return f"begin anew with: {line}"


def _parsed(arguments: list[str]) -> Command:
    """Return the command that was typed. A value that its record refuses is an error as any other, in one line."""
    message = io.StringIO()
    colours = "NO_COLOR" not in os.environ and sys.stdout.isatty() and sys.stderr.isatty()
    tyro._experimental_options["ansi_codes"] = colours  # tyro itself looks at stdout alone
    try:
        with contextlib.redirect_stderr(message):
            command: Command = tyro.extras.subcommand_cli_from_dict(dict(COMMANDS), args=arguments, prog="salmask")
    except SystemExit:
        words = " ".join(re.sub(r"[\u2500-\u257f]|-{3,}", " ", message.getvalue()).split())
        if (refused := re.search(r"Error parsing \S+: (.*?) For full helptext", words)) is not None:
            raise ValueError(refused[1]) from None
        sys.stderr.write(message.getvalue())
        raise
    return command


def _is_first() -> bool:
    """Return whether this is the first of several processes, which says what all of them have to say."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    if not _is_first():
        return
    sys.stderr.write(f"salmask: {' '.join(str(message).split())}\n")


if __name__ == "__main__":
    sys.exit(main())
