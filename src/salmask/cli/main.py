"""The command line: what a user types becomes a command, and bad input one clear line.

Each command is a frozen dataclass in a file of its own: its fields are the options, calling it does the job. Heavy
imports stand inside the calls, so that `--help` answers at once. Every command ends with a non-zero exit on bad input,
and says where its results are.
"""

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
from salmask.cli.inpainter import InpainterCommand
from salmask.cli.report import ReportCommand
from salmask.cli.sanity import SanityCommand
from salmask.cli.score import ScoreCommand
from salmask.cli.study import StudyCommand
from salmask.cli.train import TrainCommand

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, type] = MappingProxyType(
    {
        "demo": DemoCommand,
        "classifier": ClassifierCommand,
        "train": TrainCommand,
        "inpainter": InpainterCommand,
        "explain": ExplainCommand,
        "evaluate": EvaluateCommand,
        "score": ScoreCommand,
        "study": StudyCommand,
        "sanity": SanityCommand,
        "report": ReportCommand,
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
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS), args=arguments, prog="salmask", description=_ABOUT
            )
            command()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"salmask: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("salmask: interrupted; what was finished is kept\n")
        return 130
    return 0


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"salmask: {' '.join(str(message).split())}\n")


if __name__ == "__main__":
    sys.exit(main())
