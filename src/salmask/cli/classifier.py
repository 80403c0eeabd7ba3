"""`salmask classifier`: a classifier for data that has none."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmask.training.run import Loaded

from salmask.cli.console import Command, progress_bar, say
from salmask.cli.options import DataOptions, refuse_unused
from salmask.files import JSON, Facts
from salmask.training.settings import Precision

__all__ = ["ClassifierCommand"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCommand(Command, DataOptions):
    """Train or fine-tune a classifier on a folder of pictures, for data that has none."""

    network: str | None = None
    """timm:NAME, or timm:NAME@FILE to go on from weights; early:INPUTS:NAME or late:INPUTS:NAME of several inputs;
    of sounds audio:cnn14-w16-d4-m40 (width, depth, mel bands;
    the default) or audio:timm/NAME."""
    audio: bool = False
    """The data are sounds."""
    sample_rate: int | None = None
    """Of sounds: samples a second that are heard; those of the first file where not given."""
    seconds: float | None = None
    """Of sounds: how much of each is heard; what 95 of 100 do not exceed where not given."""
    n_fft: int | None = None
    """Of sounds: samples a window; 23 milliseconds where not given."""
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

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.classifier.named import full_spec
        from salmask.data import has_split
        from salmask.files import writable_file
        from salmask.training.classifier import FitSettings, accuracy, fit_classifier, warn_of_chance
        from salmask.training.run import save_classifier
        from salmask.training.unfinished import discard

        if not self.audio:
            refuse_unused(self, ("sample_rate", "seconds", "n_fft"), "of sounds, and --audio is not given")
        unused = "for the classes of a network that is there; those of a new one are the folders of its data"
        refuse_unused(self, ("class_names",), unused)
        settings = FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            seed=self.seed,
            workers=self.workers,
        )
        writable_file(self.out, ".safetensors")
        loaded = self._sounds() if self.audio else self._pictures()
        pictures = self.read("train", loaded)
        kept = self.out.with_suffix(".unfinished")
        fit_classifier(
            loaded.classifier,
            pictures,
            settings=settings,
            augment=self.augmentation(loaded, pictures),
            progress=progress_bar("training"),
            unfinished=kept,
        )
        save_classifier(self.out, loaded)
        discard(kept)
        spec = f"{full_spec(loaded.network)}@{self.out}"
        say(f"classifier: {spec}")
        share = None
        if self.audio or has_split(self.data, "val"):
            val = self.read("val", loaded, transform=loaded.view.transform(), classes=pictures.classes)
            share = accuracy(loaded.classifier, val)
            say(f"accuracy on val: {share:.3f}")
            if self.audio:
                warn_of_chance(share, val.targets, "val")
        return {"file": self.out, "classifier": spec, "accuracy": share}

    def _pictures(self) -> "Loaded":
        """Return the untrained classifier of the data's classes of pictures."""
        import torch

        from salmask.classifier import Classifier
        from salmask.classifier.inputs import check_count
        from salmask.training.run import Loaded, Sight, load_classifier

        if self.network is None:
            raise ValueError("name a network with --network, such as timm:resnet18; for sounds give --audio")
        if self.image_size is not None:
            Sight(self.image_size)  # for its clear error, before anything of that size is made
        classes = tuple(self.read("train").classes)
        if len(classes) < 2:
            raise ValueError(f"a classifier tells at least two classes apart, {self.data} has {classes[0]} alone")
        name = self.network.removeprefix("timm:")
        torch.manual_seed(self.seed)  # timm draws first weights from torch's global generator
        fused = name.startswith(("early:", "late:"))
        if "@" in name or fused:
            refuse_unused(self, ("pretrained",), f"for a network that begins anew, and {self.network} does not")
            loaded = load_classifier(self.network, num_classes=len(classes) if fused else None, **self.pictures())
            if loaded.classifier.num_classes != len(classes):
                raise ValueError(
                    f"{name} tells {loaded.classifier.num_classes} classes apart, {self.data} has "
                    f"{len(classes)}: go on from weights for these classes, or begin anew"
                )
        else:
            channels = 3 if self.channels is None else self.channels
            check_count(channels)
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
        return replace(loaded, classes=classes)

    def _sounds(self) -> "Loaded":
        """Return the untrained classifier of the data's classes of sounds."""
        import torch

        from salmask.audio.hearing import Hearing
        from salmask.audio.network import sound_network
        from salmask.audio.readers import open_sounds, survey
        from salmask.classifier import Classifier
        from salmask.training.run import Loaded

        name = (self.network or "audio:cnn14-w16-d4-m40").removeprefix("audio:")
        rate, seconds = survey(self.data, "train", skip_broken=self.skip_broken)
        rate = rate if self.sample_rate is None else self.sample_rate
        hearing = Hearing.at(rate, seconds if self.seconds is None else self.seconds, n_fft=self.n_fft)
        classes = tuple(open_sounds(self.data, "train", hearing).classes)
        if len(classes) < 2:
            raise ValueError(f"a classifier tells at least two classes apart, {self.data} has {len(classes)}")
        torch.manual_seed(self.seed)  # first weights are drawn from torch's global generator
        network = sound_network(name, hearing, len(classes), pretrained=self.pretrained)
        classifier = Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=hearing.image_size)
        return Loaded(classifier, f"audio:{name}", hearing, classes).seen(**self.pictures())
