"""`salmask export`: classifier and masker as one graph, for use without Python's training code."""

from dataclasses import asdict, dataclass
from pathlib import Path

from salmask.cli.console import Command, say
from salmask.files import Facts

__all__ = ["ExportCommand"]


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Command):
    """Write classifier and masker as one graph, images -> logits and masks, and compare it with the library
    (docs/export.md)."""

    out: Path
    """FILE.onnx, or FILE.pt2 of torch.export."""
    explainer: str = "imagenet"
    """Folder of a run, or the masker for photographs that comes with the package (`imagenet`)."""
    image_size: int | None = None
    """Side of the pictures with which it is tried out; the classifier's own where not given."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.data.sight import Sight
        from salmask.explain.exported import check_export, export_pass
        from salmask.explain.learned import Learned
        from salmask.specs import load_explainer

        check_export(self.out)
        given = None if self.image_size is None else Sight(self.image_size).image_size
        name, explainer, own = load_explainer(self.explainer, loaded=None)
        if not isinstance(explainer, Learned):
            raise ValueError(f"a trained masker can be exported: name the folder of a run, got {name}")
        size = given or own.view.image_size
        agreement = export_pass(explainer, own.classifier, self.out, image_size=size)
        say(f"{self.out}: {agreement}")
        return {"file": self.out, **asdict(agreement)}
