"""`salmask report`: the page of an evaluation, from its rows alone."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from salmask.cli.console import Command, say
from salmask.files import Facts

__all__ = ["ReportCommand"]


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Command):
    """Rebuild tables, pictures and index.html of an evaluation from its rows alone."""

    folder: tyro.conf.Positional[Path]
    """The --out of evaluate, score or study, or a folder with its archive, rows.tar.xz."""
    out: Path | None = None
    """Where to write; the folder itself where not given."""
    pack: bool = False
    """Then pack what the report is made from into one file, rows.tar.xz, from which it can be made again."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.report.page import write_report
        from salmask.rows.archive import pack

        write_report(self.folder, out=self.out)
        page = (self.out or self.folder) / "index.html"
        say(f"report: {page}")
        if not self.pack:
            return {"report": page}
        packed = pack(self.folder)
        say(f"packed: {packed}")
        return {"report": page, "packed": packed}
