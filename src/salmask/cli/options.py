"""Options that several commands share."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.fabric import Fabric
    from torch import Tensor

    from salmask.data import Labelled, SampleTransform
    from salmask.training.run import Loaded

from salmask.files import JSON

__all__ = [
    "DataOptions",
    "InferencePrecision",
    "Normalize",
    "OutputKind",
    "PictureOptions",
    "ProcessOptions",
    "SightOptions",
    "given_options",
    "refuse_unused",
]

_HEARD = 256  # sounds by which a classifier is judged
Normalize = Literal["none", "minmax", "max", "rank"]
InferencePrecision = Literal["auto", "32-true", "bf16-mixed"]
OutputKind = Literal["auto", "logits", "binary", "multilabel", "probabilities"]


def given_options(command: object, names: Iterable[str] | None = None) -> list[str]:
    """Return which fields of a command, among these names (all of them for None), are not at their default."""
    wanted = None if names is None else set(names)
    return [
        field.name
        for field in fields(command)  # type: ignore[arg-type]  # commands are dataclasses
        if (wanted is None or field.name in wanted)
        and getattr(command, field.name)
        != (field.default if field.default_factory is MISSING else field.default_factory())
    ]


def refuse_unused(command: object, names: Iterable[str], why: str) -> None:
    """Raise ValueError where an option is given that what was asked for makes no use of. why: ends "it is ..."."""
    if given := given_options(command, names):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        are, them = ("is", "it") if len(given) == 1 else ("are", "them")
        raise ValueError(f"{options} {are} {why}: leave {them} out")


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How many processes share the work (docs/scale.md)."""

    devices: int = 1
    """Processes on each machine: one a GPU, or so many on the CPU."""
    nodes: int = 1
    """Machines; of several, start the command by torchrun or Slurm on each."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How they share it: ddp where there are several."""
    workers: int = 0
    """Further processes that read pictures, for each of these."""

    def launch(self, *, precision: str = "32-true") -> "Fabric":
        """Start the processes."""
        from salmask.training.processes import launched

        return launched(self.devices, self.nodes, self.strategy, precision=precision)


@dataclass(frozen=True, kw_only=True)
class SightOptions:
    """How the classifier sees a picture, and what its network's answer means."""

    image_size: Annotated[int | None, tyro.conf.arg(aliases=["--size"])] = None
    """Side of the square that the classifier sees; its own where not given."""
    crop: float | None = None
    """Share of the short side that --fit crop keeps, as timm's crop_pct; the classifier's own where not given."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized; as the classifier was trained where not given."""
    fit: Literal["crop", "squash", "pad"] | None = None
    """crop (short side, then centre), squash (the whole picture, pressed to a square) or pad (the whole picture, grey
    beside it); as the classifier was trained, or crop, where not given."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the network's normalisation takes off pictures in [0, 1]; its own where not given."""
    std: tuple[float, ...] | None = None
    """And what it divides by."""
    channels: int | None = None
    """How many channels a new classifier reads; of one that is there, only checked."""
    depth: int | None = None
    """Bits that 16-bit files use, such as 12; by their highest value where not given."""
    window: float | None = None
    """Width of the range of values that is shown of signed pictures, such as 400 for the soft tissue of a CT."""
    level: float | None = None
    """Its centre, such as 40."""
    bands: tuple[int, ...] | None = None
    """Which bands of a file the classifier reads, in its order, counted from 0."""
    colours: tuple[int, int, int] | None = None
    """Which of the classifier's channels are shown as red, green and blue, counted from 0."""
    outputs: OutputKind | None = None
    """What the network returns: logits, binary (one logit z), multilabel (a logit for each label) or probabilities;
    auto finds out, which is the default of a new classifier. Of a run, only checked."""
    output: Annotated[int | str | None, tyro.conf.arg(metavar="KEY|INDEX")] = None
    """Which entry holds it, where the network returns a dictionary or a tuple. Of a run, only checked."""

    domain: Literal["log", "linear"] | None = None
    """Of a classifier of sounds: masks multiply log magnitudes (L-MAC), or magnitudes, so that kept and removed sound
    add up to the sound; as it was trained where not given."""

    def pictures(self) -> JSON:
        """Return the keyword arguments of `load_classifier` that concern pictures and outputs."""
        return {field.name: getattr(self, field.name) for field in fields(SightOptions)}


@dataclass(frozen=True, kw_only=True)
class PictureOptions(SightOptions):
    """How pictures get from the disk to the classifier."""

    skip_broken: bool = False
    """Leave out pictures and sounds that cannot be decoded, instead of stopping."""
    max_pixels: int | None = None
    """Pixels of a picture above which it is refused before it is decoded; 179 million where not given."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(PictureOptions):
    """Which pictures, with boxes and pixel masks where there are some."""

    data: str
    """Folder with train/<class>/*, val/<class>/* and, for localization, box tables; or an ILSVRC tree, or pets:DIR,
    wds:PATTERN (shards), hf-dataset:PATH (docs/data.md). Of sounds: such a folder, recordings named
    <class>_<speaker>_<n>.wav (fsdd:DIR), ESC-50 (esc50:DIR), or recordings alone (docs/audio.md)."""
    class_names: Path | None = None
    """File that lists the classifier's classes, one a line in the order of its outputs, where it does not name them
    itself: folders go by these names. Else classes.txt beside the folders."""
    mix: Annotated[tuple[str, ...], tyro.conf.arg(metavar="white:DB|other:DB|FOLDER:DB ...")] = ()
    """Of sounds: put each over noise, another recording of another class, or one of a folder, which is so many decibels
    quieter, or between two numbers of decibels, such as other:-6..6; in training drawn anew at each reading, and of
    several kinds one."""
    mix_share: float = 1.0
    """Share of the sounds that --mix mixes, in training."""
    download: bool = False
    """Fetch Oxford-IIIT Pet into the DIR of pets:DIR, if it is not there."""

    def read(
        self,
        split: str,
        loaded: "Loaded | None" = None,
        *,
        transform: "SampleTransform | None" = None,
        classes: "Sequence[str] | None" = None,
    ) -> "Labelled":
        """Return a split of the data, decoded for a classifier. classes: the classifier's own, or another split's."""
        from salmask.audio.hearing import Hearing
        from salmask.audio.readers import open_sounds
        from salmask.data import LabelledPictures, Reader, open_data

        if loaded is not None and isinstance(loaded.view, Hearing):
            own = classes if self.class_names is None else loaded.named(self.class_names).classes
            return open_sounds(self.data, split, loaded.view, classes=own, skip_broken=self.skip_broken)
        if self.mix:
            raise ValueError("the classifier sees pictures, and --mix is for sounds: leave it out")
        if loaded is not None and classes == loaded.classes:
            if self.class_names is not None:
                loaded = loaded.named(self.class_names)
            classes = loaded.folders(self.data, split)
        data = open_data(
            self.data,
            split,
            transform=transform,
            skip_broken=self.skip_broken,
            classes=classes,
            download=self.download,
            read=Reader() if loaded is None else loaded.reader(max_pixels=self.max_pixels),
            inputs=None if loaded is None else loaded.classifier.inputs,
        )
        several = isinstance(data, LabelledPictures) and data.several
        if several and loaded is not None and not loaded.classifier.multilabel:
            raise ValueError(
                f"pictures in {self.data} have several labels each, and the classifier tells exclusive classes apart: "
                "give --outputs multilabel for a network whose labels are independent"
            )
        return data

    def mixed(self, dataset: "Labelled") -> "Labelled":
        """Return a data set of sounds with the others mixed in that --mix names; the data set itself without --mix.

        Errors: ValueError for several kinds, and for a share: sounds that are measured are all mixed alike.
        """
        from salmask.audio.mixtures import Mixed, read_mix
        from salmask.audio.readers import Sounds

        if not self.mix or not isinstance(dataset, Sounds):
            return dataset
        if len(self.mix) > 1 or self.mix_share != 1:
            raise ValueError(
                f"sounds that are measured are all mixed in one way, got --mix {' '.join(self.mix)} --mix-share "
                f"{self.mix_share:g}: measure once for each kind"
            )
        return Mixed(dataset, *read_mix(self.mix[0], dataset, skip_broken=self.skip_broken))

    def augmentation(self, loaded: "Loaded", dataset: "Labelled") -> "SampleTransform":
        """Return the transform of training, with the sounds mixed in that --mix names."""
        from salmask.audio.mixtures import AnyOf, Mixing, read_mix
        from salmask.audio.readers import Sounds

        own = loaded.view.augmentation()
        if not self.mix or not isinstance(dataset, Sounds):
            return own
        read = [read_mix(one, dataset, skip_broken=self.skip_broken) for one in self.mix]
        kinds = [Mixing(dataset, *one, share=self.mix_share) for one in read]
        mixing = kinds[0] if len(kinds) == 1 else AnyOf(tuple(kinds))
        return lambda sample: own(mixing(sample))

    def check_hears(self, loaded: "Loaded", dataset: "Labelled", split: str) -> None:
        """Warn where a classifier of sounds is at chance on them, as far as some, spread over the split, tell."""
        from salmask.audio.hearing import Hearing
        from salmask.data.flat import UNLABELLED
        from salmask.data.streams import spread
        from salmask.training.classifier import accuracy, warn_of_chance

        some = spread(dataset, _HEARD)
        fits = len(dataset.classes) == loaded.classifier.num_classes
        if isinstance(loaded.view, Hearing) and fits and UNLABELLED not in some.targets:
            warn_of_chance(accuracy(loaded.classifier, some), some.targets, split)

    def bank(self, loaded: "Loaded") -> "Tensor":
        """Return training pictures that fill holes, for explainers with `infill=bank`."""
        from salmask.specs import load_bank

        return load_bank(self.read("train", loaded), loaded.view)

    def data_name(self) -> str:
        """Return the name of the data in a report."""
        return Path(self.data).name
