"""`salmask serve`: a page in the browser."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salmask.cli.console import Command
from salmask.cli.options import SightOptions
from salmask.cli.quick import import_networks
from salmask.files import Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salmask.serve import Example
    from salmask.training.run import Loaded

__all__ = ["ServeCommand"]

_BESIDE = ("gradcam", "layercam", "center")


@dataclass(frozen=True, kw_only=True)
class ServeCommand(Command, SightOptions):
    """A page in the browser: drop a picture, see mask, kept, removed and their probabilities, side by side."""

    explainer: tuple[str, ...] = ()
    """Folders of runs, and names such as gradcam or rise:masks=500, which stand side by side; else the masker for
    photographs that comes with the package, beside Grad-CAM, LayerCAM and a box in the middle."""
    classifier: str | None = None
    """timm:NAME, timm:NAME@FILE or any other SPEC, for explainers by name; the first run's own where not given."""
    examples: Path | None = None
    """Folder with pictures that the page offers; photographs of scikit-image for networks that know ImageNet."""
    host: str = "127.0.0.1"
    """Who can reach the page: 127.0.0.1 this machine alone, 0.0.0.0 every machine of the network."""
    port: int = 7860
    """Where the page listens; 0 takes a free port."""
    max_megabytes: float = 20
    """Size of a file above which it is refused."""
    max_pixels: int = 50_000_000
    """Pixels of a picture above which it is refused before it is decoded."""
    seed: int = 0
    """Of explainers that draw."""

    def __call__(self) -> Facts:
        """Run the command."""
        import_networks()
        from salmask.serve import Limits, Looks, build_page, serve
        from salmask.specs import SHIPPED, load_explainers
        from salmask.training.run import load_classifier

        limits = Limits(self.max_megabytes)
        loaded = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        names = self.explainer or (_BESIDE if loaded else (SHIPPED, *_BESIDE))
        chosen = load_explainers(names, loaded=loaded, sight=self.pictures(), seed=self.seed)
        looks = Looks(chosen.explainers, chosen.base, max_pixels=self.max_pixels)
        page = build_page(looks, self._examples(chosen.base), limits=limits)
        address = serve(page, host=self.host, port=self.port, limits=limits, block=False)
        sys.stderr.write(f"the page is at {address} (Ctrl-C ends it)\n")  # at once, also with --quiet
        page.block_thread()
        return {"address": address}

    def _examples(self, base: "Loaded") -> "Sequence[Example]":
        from salmask.classifier.imagenet import class_names
        from salmask.data.endings import list_pictures
        from salmask.data.photographs import photographs
        from salmask.serve import Example

        if self.examples is not None:
            read = base.reader(max_pixels=self.max_pixels)
            names = list_pictures(self.examples) if self.examples.is_dir() else []
            if not names:
                raise ValueError(f"no pictures in {self.examples}: name a folder with examples (--examples)")
            return [Example(name, read(self.examples / name)) for name in names[:24]]
        if base.classes == class_names():
            return [Example(name, image) for name, image in photographs()]
        return ()
