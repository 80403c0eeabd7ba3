"""`salmask convert`: a run from a checkpoint of the paper's released code."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from salmask import __version__
from salmask.cli.console import Command, say, typed_command
from salmask.files import Facts

__all__ = ["ConvertCommand"]


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(Command):
    """Make a run of a checkpoint that the paper's released code (or CASM's) has written."""

    checkpoint: tyro.conf.Positional[Path]
    """Its .chk file."""
    out: Path
    """Folder of the run, for `explain` and `evaluate`."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.files import writable_folder
        from salmask.training.run import load_checkpoint, save_run

        run = load_checkpoint(self.checkpoint)
        facts = {"converted": self.checkpoint.name, "command": typed_command(), "version": __version__}
        save_run(writable_folder(self.out), run.masker, run.loaded, facts)
        say(f"run: {self.out}")
        return {"run": self.out}
