"""`salmask inpainter`: a counterfactual infill."""

from dataclasses import dataclass
from pathlib import Path

from salmask.cli.console import Command, progress_bar, say
from salmask.files import Facts
from salmask.training.settings import Precision

__all__ = ["InpainterCommand"]


@dataclass(frozen=True, kw_only=True)
class InpainterCommand(Command):
    """Train an inpainter on a folder of pictures: a counterfactual infill for `train --infill FILE`."""

    data: str
    """As for `train`."""
    out: Path
    """.safetensors file; a picture of what it fills is written beside it."""
    image_size: int = 128
    """Side of the square pictures that it learns from; it fills others too."""
    steps: int = 2000
    """Batches."""
    batch_size: int = 16
    """Pictures a step."""
    lr: float = 1e-3
    """Learning rate, which falls along a cosine."""
    precision: Precision = "32-true"
    """32-true or bf16-mixed."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""
    skip_broken: bool = False
    """Leave out pictures that cannot be decoded, instead of stopping."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.data import open_data
        from salmask.files import writable_file
        from salmask.training.inpainter import train_inpainter

        writable_file(self.out, ".safetensors")
        pictures = open_data(self.data, "train", skip_broken=self.skip_broken)
        errors = train_inpainter(
            pictures,
            out=self.out,
            image_size=self.image_size,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            workers=self.workers,
            seed=self.seed,
            progress=progress_bar("inpainter"),
        )
        shares = ", ".join(f"{name} {value:.4f}" for name, value in errors.items())
        say(f"mean absolute error in the holes: {shares}")
        picture = self.out.with_suffix(".png")
        say(f"inpainter: {self.out}; what it fills: {picture}")
        return {"inpainter": self.out, "picture": picture, "errors": errors}
