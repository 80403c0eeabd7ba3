"""`salmask pooling`: attention pooling beside a frozen classifier."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from salmask.cli.console import Command, progress_bar, say, typed_command
from salmask.cli.options import DataOptions, refuse_unused
from salmask.files import JSON, Facts

__all__ = ["PoolingCommand"]


@dataclass(frozen=True, kw_only=True)
class PoolingCommand(Command, DataOptions):
    """Train a query stream that takes the place of a frozen classifier's average pooling (CA-Stream)."""

    classifier: str
    """timm:NAME, torchvision:NAME, hf:NAME or one's own module.py:function, each with @FILE for weights of a file; or a
    run's folder."""
    out: Path
    """Folder of the run: the stream and its classifier. Named as --classifier it is the classifier with the stream, as
    --explainer its raw attention."""
    recipe: Literal["sgd", "adamw"] = "sgd"
    """sgd (steps) or adamw (cosine), the two of the source."""
    layers: tuple[int, ...] | None = None
    """Which of the classifier's layers are attended to (`salmask layers`); all of a stride of 4 or more where not
    given. The map that the head pools is always the last stage."""
    begin: Literal["source", "average"] = "source"
    """First weights: as the source draws them, or as the average pooling, whose logits the stream then begins with."""
    epochs: float = 30.0
    """Full passes over the data."""
    batch_size: int = 64
    """Pictures a step."""
    lr: float | None = None
    """Top of the learning rate; the recipe's own where not given."""
    weight_decay: float | None = None
    """Weight decay; the recipe's own where not given."""
    crops: bool = False
    """Pass random crops and flips through the whole network in every step; else the maps of whole pictures are
    computed once and kept."""
    memory: float = 8.0
    """GiB that kept maps may take."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> Facts:
        """Run the command."""
        import torch

        from salmask.data import has_split
        from salmask.files import in_use, writable_folder
        from salmask.pooling import Pooled, QueryStream
        from salmask.training.classifier import accuracy
        from salmask.training.pooling import GIB, CroppedPictures, Maps, PoolingSettings, fit_stream, save_pooling
        from salmask.training.run import check_classes, check_labels, load_classifier
        from salmask.training.unfinished import discard

        if not self.memory > 0:
            raise ValueError(f"memory is a number of GiB above 0, got {self.memory}")
        if self.crops:
            refuse_unused(self, ("memory",), "for maps that are kept, and --crops keeps none")
        refuse_unused(self, ("mix",), "for `train`, `evaluate` and `classifier`, and this takes sounds as they are")
        settings = PoolingSettings(
            recipe=self.recipe,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=self.seed,
            workers=self.workers,
        )
        loaded = load_classifier(self.classifier, **self.pictures())
        view = loaded.view
        whole = self.read("train", loaded, transform=view.transform(), classes=loaded.classes)
        check_labels(whole)
        check_classes(whole, loaded)
        loaded = replace(loaded, classes=loaded.classes or tuple(whole.classes))
        generator = torch.Generator().manual_seed(self.seed)
        stream = QueryStream.for_classifier(
            loaded.classifier, layers=self.layers, generator=generator, begin=self.begin
        )
        pooled = Pooled(loaded.classifier, stream)
        kept = self.out / "unfinished"
        with in_use(writable_folder(self.out)):
            if self.crops:
                pictures = self.read("train", loaded, classes=loaded.classes)
                fit_stream(
                    pooled,
                    CroppedPictures(pictures, view.augmentation()),
                    settings=settings,
                    progress=progress_bar("training"),
                    unfinished=kept,
                )
            else:
                maps = Maps.of(pooled, whole, limit=self.memory * GIB, progress=progress_bar("maps"))
                fit_stream(pooled, maps, settings=settings, progress=progress_bar("training"), unfinished=kept)
            about = {
                "data": self.data,
                "settings": vars(settings),
                "crops": self.crops,
                "begin": self.begin,
                "command": typed_command(),
            }
            save_pooling(self.out, pooled, loaded, about)
            discard(kept)
        say(f"run: {self.out}")
        result: JSON = {"run": self.out}
        if has_split(self.data, "val"):
            val = self.read("val", loaded, transform=view.transform(), classes=loaded.classes)
            own, attended = (accuracy(one, val) for one in (loaded.classifier, pooled))
            say(f"accuracy on val: {own:.3f} as it was, {attended:.3f} with the stream")
            result["accuracy"] = {"as it was": own, "with the stream": attended}
        return result
