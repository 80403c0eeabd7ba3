"""A run: the folder that a trained masker lives in, with the classifier it was trained for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode

from salmask.classifier import Classifier
from salmask.data import CropFlip, Labelled, SampleTransform, ShortSide, Squash
from salmask.data.streams import Bar
from salmask.files import replace_file
from salmask.masker import Masker
from salmask.training.recipes import Recipe
from salmask.training.released import load_released
from salmask.training.settings import Settings
from salmask.training.train import Batches, train
from salmask.types import Infill

__all__ = [
    "Loaded",
    "Sight",
    "load_checkpoint",
    "load_classifier",
    "load_run",
    "save_classifier",
    "save_run",
    "train_run",
]


RUN = "run.json"


CLASSIFIER = "classifier.safetensors"


@dataclass(frozen=True)
class Sight:
    """How a picture becomes what the classifier sees: size x size pixels, cut or squashed, interpolated so."""

    image_size: int
    fit: str = "crop"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit is 'crop' (short side, then centre) or 'squash', came {self.fit!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is 'bilinear' or 'bicubic', came {self.interpolation!r}")
        if self.image_size < 8:
            raise ValueError(f"an image size of at least 8 is needed, came {self.image_size}")

    def transform(self) -> SampleTransform:
        """Return the transform of evaluation."""
        mode = InterpolationMode(self.interpolation)
        return (ShortSide if self.fit == "crop" else Squash)(self.image_size, interpolation=mode)

    def augmentation(self) -> CropFlip:
        """Return the transform of training: random crop and flip."""
        return CropFlip(self.image_size, interpolation=InterpolationMode(self.interpolation))


@dataclass(frozen=True)
class Loaded:
    """A classifier, the SPEC that names its network, how it wants pictures, and its classes where known."""

    classifier: Classifier
    network: str
    view: Sight
    classes: tuple[str, ...] | None = None

    def seen(
        self, *, image_size: int | None = None, fit: str | None = None, interpolation: str | None = None
    ) -> "Loaded":
        """Return it with what is given of another way from pictures to pixels."""
        own = self.view
        return replace(
            self, view=Sight(image_size or own.image_size, fit or own.fit, interpolation or own.interpolation)
        )


def load_classifier(
    spec: str,
    *,
    image_size: int | None = None,
    fit: str | None = None,
    interpolation: str | None = None,
    layers: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Loaded:
    """Build the classifier that a SPEC names; what is not given comes from the file, the run or the network."""
    if not spec.startswith("timm:"):
        if not (Path(spec) / RUN).is_file():
            raise ValueError(f"{spec!r} is no classifier: expected timm:NAME, timm:NAME@FILE or the folder of a run")
        return load_run(spec)[1].seen(image_size=image_size, fit=fit, interpolation=interpolation)
    name, _, file = spec.removeprefix("timm:").partition("@")
    known = _metadata(Path(file)) if file else {}
    if known.get("network", name) != name:
        raise ValueError(f"{file} holds the weights of {known['network']}, asked for is {name}")
    size = image_size or known.get("image_size")
    try:
        classifier = Classifier.from_timm(
            name,
            pretrained=not file,
            checkpoint=file or None,
            layers=layers,
            image_size=size,
            num_classes=num_classes if not file else None,
        )
    except (OSError, RuntimeError) as error:
        if file:
            raise
        raise ValueError(f"the pretrained weights of {name} cannot be had ({error}): give timm:{name}@FILE") from error
    config = timm.data.resolve_model_data_config(classifier.network)
    view = Sight(
        classifier.image_size,
        fit or known.get("fit", "crop"),
        interpolation or known.get("interpolation") or _interpolation(config["interpolation"]),
    )
    classes = known.get("classes")
    return Loaded(classifier, name, view, tuple(classes) if classes else None)


def save_classifier(path: Path, loaded: Loaded) -> None:
    """Write a classifier's weights with what `load_classifier` needs to build it again."""
    facts = {"network": loaded.network, "classes": loaded.classes, **asdict(loaded.view)}
    weights = {
        name: value.detach().cpu().contiguous() for name, value in loaded.classifier.network.state_dict().items()
    }
    replace_file(path, lambda at: save_file(weights, at, metadata={"format": "pt", "salmask": json.dumps(facts)}))


def save_run(folder: Path, masker: Masker, loaded: Loaded, facts: dict[str, Any]) -> None:
    """Write masker, classifier and run.json, each file whole or not at all."""
    save_classifier(folder / CLASSIFIER, loaded)
    masker.save_pretrained(folder)
    content = {
        "format": "salmask run 1",
        "network": loaded.network,
        "taps": loaded.classifier.layers,
        "view": asdict(loaded.view),
        "classes": loaded.classes,
        **facts,
    }
    replace_file(folder / RUN, lambda at: at.write_text(json.dumps(content, indent=2) + "\n"))


def load_run(folder: str | Path) -> tuple[Masker, Loaded]:
    """Load a finished run's masker and classifier. Errors: FileNotFoundError, ValueError for something else."""
    folder = Path(folder)
    if not (folder / RUN).is_file():
        unfinished = (folder / "checkpoint.pt").is_file()
        hint = "it is unfinished, go on with `salmask train --resume`" if unfinished else "expected run.json there"
        raise FileNotFoundError(f"no run in {folder}: {hint}")
    try:
        facts = json.loads((folder / RUN).read_text())
        if facts["format"] != "salmask run 1":
            raise KeyError("format")
        network, taps, view = facts["network"], facts["taps"], Sight(**facts["view"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RUN} does not describe a salmask run ({error!r})") from error
    loaded = load_classifier(f"timm:{network}@{folder / CLASSIFIER}", layers=taps, **asdict(view))
    masker = Masker.from_pretrained(folder)
    masker.fits(loaded.classifier)
    return masker, loaded


def load_checkpoint(path: str | Path) -> tuple[Masker, Loaded]:
    """Load masker and classifier of a checkpoint of the paper's released code. Errors: as `load_released`."""
    masker, classifier, network = load_released(path)
    return masker, Loaded(classifier, network, Sight(224))


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("salmask", "{}"))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic") else "bilinear"


def check_classes(dataset: Labelled, loaded: Loaded) -> None:
    """Raise ValueError where the data's classes cannot be those of the classifier.

    Folders are numbered in the order of their names. Where a classifier does not carry the names of its classes, the
    numbers must at least agree: on part of ImageNet, folder k is not class k of a network for all of it.
    """
    classes, known = len(dataset.classes), loaded.classifier.num_classes
    if classes != known:
        raise ValueError(
            f"the data has {classes} classes, the classifier tells {known} apart: "
            "use a classifier for this data (`salmask classifier`)"
        )


def train_run(
    dataset: Labelled,
    loaded: Loaded,
    *,
    recipe: Recipe,
    settings: Settings,
    batches: Batches,
    out: Path,
    masker_options: Mapping[str, Any],
    facts: Mapping[str, Any],
    infill: Infill | Mapping[str, Infill] | None = None,
    resume: bool = False,
    progress: Bar = iter,
) -> Masker:
    """Train a masker and leave a run's folder: what `load_run` reads.

    masker_options: of `Masker`. infill: of `train`. facts: written to run.json beside the recipe and the settings.
    """
    check_classes(dataset, loaded)
    generator = torch.Generator().manual_seed(settings.seed)
    masker = Masker.for_classifier(loaded.classifier, generator=generator, **masker_options)
    train(
        masker,
        loaded.classifier,
        batches,
        len(dataset),
        recipe=recipe,
        settings=settings,
        out=out,
        infill=infill,
        resume=resume,
        progress=progress,
    )
    masker.classifier = loaded.classifier.fingerprint()  # of the classifier as it came out, where it was trained
    about = {**facts, "recipe": recipe.settings(), "images": len(dataset), "settings": vars(settings)}
    save_run(out, masker, loaded, about)
    return masker
