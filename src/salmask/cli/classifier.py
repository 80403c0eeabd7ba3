"""`salmask classifier`: a classifier for data that has none."""

from dataclasses import dataclass, replace
from pathlib import Path

from salmask.cli.console import progress_bar, say
from salmask.cli.options import DataOptions
from salmask.files import JSON
from salmask.training.settings import Precision

__all__ = ["ClassifierCommand"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCommand(DataOptions):
    """Train or fine-tune a classifier on a folder of pictures, for data that has none."""

    network: str
    """timm:NAME, or timm:NAME@FILE to go on from weights."""
    out: Path
    """.safetensors file for the weights."""
    pretrained: bool = False
    """Begin with timm's pretrained weights."""
    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 64
    """Pictures a step."""
    lr: float = 0.1
    """Top of the one-cycle learning rate."""
    precision: Precision = "auto"
    """auto (bf16-mixed where the hardware is faster at it), 32-true, bf16-mixed or 16-mixed."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> None:
        """Run the command."""
        import torch

        from salmask.classifier import Classifier
        from salmask.data import has_split
        from salmask.files import writable_folder
        from salmask.training.classifier import FitSettings, accuracy, fit_classifier
        from salmask.training.run import Loaded, Sight, load_classifier, save_classifier

        writable_folder(self.out.parent)
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out names a .safetensors file, got {self.out}")
        if self.image_size is not None:
            Sight(self.image_size)  # for its clear error, before anything of that size is made
        classes = tuple(self.read("train").classes)
        if len(classes) < 2:
            raise ValueError(f"a classifier tells at least two classes apart, {self.data} has {classes[0]} alone")
        name = self.network.removeprefix("timm:")
        torch.manual_seed(self.seed)  # timm draws first weights from torch's global generator
        if "@" in name:
            loaded = load_classifier(self.network, **self.pictures())
            if loaded.classifier.num_classes != len(classes):
                raise ValueError(
                    f"{name} tells {loaded.classifier.num_classes} classes apart, {self.data} has "
                    f"{len(classes)}: go on from weights for these classes, or begin anew"
                )
        else:
            channels = 3 if self.channels is None else self.channels
            given: JSON = {name: value for name in ("mean", "std") if (value := getattr(self, name)) is not None}
            colours: JSON = {} if channels == 3 else {"mean": [0.5] * channels, "std": [0.25] * channels}
            built = Classifier.from_timm(
                name,
                pretrained=self.pretrained,
                num_classes=len(classes),
                image_size=self.image_size,
                channels=channels,
                **colours | given,
            )
            loaded = Loaded(built, name, Sight(built.image_size)).seen(**self.pictures())
        loaded = replace(loaded, classes=classes)
        pictures = self.read("train", loaded)
        settings = FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            seed=self.seed,
            workers=self.workers,
        )
        fit_classifier(
            loaded.classifier,
            pictures,
            settings=settings,
            augment=loaded.view.augmentation(),
            progress=progress_bar("training"),
        )
        save_classifier(self.out, loaded)
        say(f"classifier: timm:{loaded.network}@{self.out}")
        if has_split(self.data, "val"):
            val = self.read("val", loaded, transform=loaded.view.transform(), classes=pictures.classes)
            say(f"accuracy on val: {accuracy(loaded.classifier, val):.3f}")
