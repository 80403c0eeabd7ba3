"""`salmask demo`: the main job on built-in data."""

from dataclasses import dataclass
from pathlib import Path

from salmask.cli.console import Command, print_table, progress_bar, say
from salmask.files import Facts

__all__ = ["DemoCommand"]


@dataclass(frozen=True, kw_only=True)
class DemoCommand(Command):
    """Main job on built-in data: train a classifier and two maskers, explain, compare, report."""

    out: Path = Path("demo")
    """Folder for everything that is made; open index.html in it."""
    seed: int = 0
    """Of the data and of the trainings."""
    quick: bool = False
    """Tiny settings, to see that everything runs; the numbers mean nothing."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.cli.builtin import run_demo

        summary = run_demo(self.out, seed=self.seed, quick=self.quick, say=say, progress=progress_bar)
        say(f"report: {self.out / 'index.html'}")
        print_table(summary, ("le", "f1", "mask_mean", "acc_kept", "acc_removed"))
        return {"report": self.out / "index.html", "summary": summary}
