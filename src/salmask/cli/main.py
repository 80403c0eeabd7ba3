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
from collections.abc import Callable, Mapping
from types import MappingProxyType

import tyro

from salmask.cli.classifier import ClassifierCommand
from salmask.cli.convert import ConvertCommand
from salmask.cli.demo import DemoCommand
from salmask.cli.evaluate import EvaluateCommand
from salmask.cli.explain import ExplainCommand
from salmask.cli.export import ExportCommand
from salmask.cli.inpainter import InpainterCommand
from salmask.cli.layers import LayersCommand
from salmask.cli.pooling import PoolingCommand
from salmask.cli.report import ReportCommand
from salmask.cli.sanity import SanityCommand
from salmask.cli.score import ScoreCommand
from salmask.cli.serve import ServeCommand
from salmask.cli.study import StudyCommand
from salmask.cli.train import TrainCommand

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, type] = MappingProxyType(
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
        "layers": LayersCommand,
        "convert": ConvertCommand,
    }
)
"""The commands, by the word that is typed."""

_ABOUT = "Saliency maps by masking: what a classifier's decision rests on."


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for bad input (one clear line), 130 when interrupted."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            command = _parsed(arguments)
            command()
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"salmask: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"salmask: interrupted; what was finished is kept{_GO_ON.get(_word(arguments), '')}\n")
        return 130
    return 0


_GO_ON = {
    "train": ": go on with the same command and --resume",
    "study": ": the same command goes on",
    "evaluate": ": the same command goes on",
    "score": ": the same command goes on",
    "demo": ": the same command goes on",
    "explain": ": the same command explains all pictures again",
}


def _word(arguments: list[str] | None) -> str:
    return next(iter(sys.argv[1:] if arguments is None else arguments), "")


def _parsed(arguments: list[str] | None) -> Callable[[], None]:
    """Return the command that was typed. A value that its record refuses is an error as any other, in one line."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS), args=arguments, prog="salmask", description=_ABOUT
            )
    except SystemExit:
        words = " ".join(re.sub(r"[\u2500-\u257f]|-{3,}", " ", message.getvalue()).split())
        if (refused := re.search(r"Error parsing \S+: (.*?) For full helptext", words)) is not None:
            raise ValueError(refused[1]) from None
        sys.stderr.write(message.getvalue())
        raise
    return command


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        return  # the first of several processes says it
    sys.stderr.write(f"salmask: {' '.join(str(message).split())}\n")


if __name__ == "__main__":
    sys.exit(main())
