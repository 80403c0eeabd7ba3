"""`salmask sanity`: do the maps change when the weights do?"""

from dataclasses import dataclass
from pathlib import Path

from salmask.cli.console import Command, progress_bar, say
from salmask.cli.options import DataOptions, refuse_unused
from salmask.files import Facts

__all__ = ["SanityCommand"]


@dataclass(frozen=True, kw_only=True)
class SanityCommand(Command, DataOptions):
    """Do the maps change when the weights do? Randomise layer after layer: rows, a curve, picture strips."""

    explainer: str
    """Folder of a run, or a name such as gradcam."""
    out: Path
    """Folder for sanity.csv, curve.png and the strips."""
    split: str = "val"
    """Which part of the data."""
    classifier: str | None = None
    """SPEC of the classifier, for an explainer by name."""
    limit: int = 16
    """How many pictures, spread over the split."""
    masker: bool = False
    """Randomise the learned masker's own weights instead of the classifier's."""
    as_released: bool = False
    """Draw new weights as the paper's released code does, not as the layers themselves do."""
    seed: int = 0
    """Of the weights that are drawn."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.data.streams import spread
        from salmask.evaluation.checks import check_sanity
        from salmask.specs import load_explainer
        from salmask.training.run import load_classifier

        refuse_unused(self, ("mix",), "for `train`, `evaluate` and `classifier`, and this takes sounds as they are")
        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        _, explainer, loaded = load_explainer(self.explainer, loaded=base, seed=self.seed, bank=self.bank)
        dataset = self.read(self.split, loaded, transform=loaded.view.transform())
        written = check_sanity(
            explainer,
            loaded,
            spread(dataset, self.limit),
            out=self.out,
            masker=self.masker,
            released=self.as_released,
            seed=self.seed,
            progress=progress_bar("randomising"),
        )
        for path in written:
            say(str(path))
        return {"written": written}
