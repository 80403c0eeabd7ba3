"""`salmask report`: the page of an evaluation, from its rows alone."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from salmask.cli.console import say

__all__ = ["ReportCommand"]


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Rebuild tables, pictures and index.html of an evaluation from its rows alone."""

    folder: tyro.conf.Positional[Path]
    """The --out of evaluate or score."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.report import write_report

        write_report(self.folder)
        say(f"report: {self.folder / 'index.html'}")
