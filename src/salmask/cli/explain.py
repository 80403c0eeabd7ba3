"""`salmask explain`: pictures, or sounds, with their maps."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from salmask.cli.console import progress_bar, say
from salmask.cli.options import Normalize, PictureOptions
from salmask.files import JSON

__all__ = ["ExplainCommand"]


@dataclass(frozen=True, kw_only=True)
class ExplainCommand(PictureOptions):
    """Explain pictures: a PNG (picture, mask, kept, removed, probabilities) and the raw map (.npy) of each; of sounds
    the spectrogram, and what is kept and removed as .wav."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Picture files, or folders of them; sounds, where the classifier hears."""
    explainer: str | None = None
    """Folder of a run, a released checkpoint (.chk), or a name such as gradcam or rise:masks=500; where neither it nor
    a classifier is given, the masker for photographs that comes with the package (`imagenet`)."""
    out: Path = Path("explained")
    """Folder for the pictures."""
    list: bool = False
    """List all explainers by name with their settings, and do nothing else."""
    classifier: str | None = None
    """timm:NAME, timm:NAME@FILE or a run's folder, for explainers by name."""
    target: str | None = None
    """Class to explain, by name or index; the predicted one where not given."""
    normalize: Normalize | None = None
    """How maps outside [0, 1] are shown."""
    top: int = 3
    """How many class probabilities are shown."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.audio.hearing import Hearing
        from salmask.cli.explain_files import Shown, explain_files
        from salmask.cli.explain_sounds import explain_sounds
        from salmask.specs import SHIPPED, list_explainers, load_explainer
        from salmask.training.run import load_classifier

        if self.list:
            say(list_explainers())
            return
        explainer = self.explainer or (None if self.classifier else SHIPPED)
        if explainer is None:
            raise ValueError("name an explainer with --explainer: a run's folder, or a name that --list shows")
        loaded = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        name, method, own = load_explainer(explainer, loaded=loaded)
        own = own.seen(**self.pictures())
        shown = Shown(self.target, self.normalize, self.top)
        options: JSON = {"out": self.out, "shown": shown, "skip_broken": self.skip_broken, "say": say}
        options["progress"] = progress_bar("explaining")
        if isinstance(own.view, Hearing):
            written = explain_sounds(self.images, name, method, own, **options)
        else:
            written = explain_files(self.images, name, method, own, max_pixels=self.max_pixels, **options)
        for path in written:
            say(str(path))
