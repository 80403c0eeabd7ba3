"""Fine-tunings of one start on built-in pictures with two cues: what each relies on has a right answer.

The start has learned ten outlines (`data.synthetic`). From there, with a new head each, networks learn the four classes
of `data.cues` in three ways, which differ in what the second cue says in training:

    shape    the second cue says any class: the outline alone helps                           without the shortcut
    both     both cues always say the label: a network is free to use either                  with it
    second   the second cue always says the label, the outline four times in five             with it, and better

Networks of one way differ in the order of the pictures and in the first weights of the head. What a network follows is
measured, and not taken from how it was trained: on pictures whose cues are in conflict it says the class of one cue.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from salmask.classifier import Classifier
from salmask.data import Labelled, cached
from salmask.data.cues import CUES, CuePictures
from salmask.data.sight import Sight
from salmask.data.synthetic import SHAPES, Synthetic
from salmask.files import replace_file
from salmask.training.classifier import FitSettings, accuracy, fit_classifier
from salmask.training.run import Loaded, load_classifier, save_classifier

__all__ = ["FineTuning", "TwoCues", "small_network"]

NETWORK = "salmask.study.two_cues:small_network"
FIRST = "shape"
_CHANCE = 0.25
_COLOURS = {"mean": (0.4,) * 3, "std": (0.25,) * 3}


def small_network(classes: int = 4) -> nn.Module:
    """Return a network of four convolutions with batch norm, of strides 2, 4, 8 and 8: 75,000 weights."""

    def stage(ins: int, outs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(ins, outs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)
        )

    stages = [stage(3, 24, 2), stage(24, 48, 2), stage(48, 64, 2), stage(64, 64, 1)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


@dataclass(frozen=True)
class FineTuning:
    """One of the trainings: its name, what the cues say in its pictures, and the seed of its order and its head."""

    name: str
    cues: Mapping[str, float]
    seed: int


@dataclass(frozen=True)
class TwoCues:
    """The built-in study's data and networks.

    second: the cue beside the outline, "mark" or "texture". each: networks of each of the three ways. pictures, epochs:
    of a fine-tuning; start_pictures, start_epochs: of the start. Errors: ValueError for a second cue that is none.
    """

    second: str = "mark"
    each: int = 3
    side: int = 48
    pictures: int = 1600
    epochs: float = 6.0
    start_pictures: int = 3000
    start_epochs: float = 6.0
    seed: int = 0
    _drawn: dict[tuple[object, ...], Labelled] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.second not in CUES or self.second == FIRST:
            others = " or ".join(cue for cue in CUES if cue != FIRST)
            raise ValueError(f"expected {others} as the second cue, got {self.second!r}")
        if self.each < 1:
            raise ValueError(f"expected at least one network of each kind, got {self.each}: raise --networks")

    @cached_property
    def fine_tunings(self) -> tuple[FineTuning, ...]:
        """All trainings; the names tell how each was trained."""
        ways = {
            FIRST: {FIRST: 1.0, self.second: _CHANCE},
            "both": {FIRST: 1.0, self.second: 1.0},
            self.second: {FIRST: 0.8, self.second: 1.0},
        }
        return tuple(
            FineTuning(f"{way} {number + 1}", cues, 100 * self.seed + 10 * place + number + 1)
            for place, (way, cues) in enumerate(ways.items())
            for number in range(self.each)
        )

    def train_set(self, cues: Mapping[str, float] | None = None) -> Labelled:
        """Return training pictures; without cues given, those on which both say the label."""
        return self._pictures(self.pictures, 10 * self.seed + 1, cues or {FIRST: 1.0, self.second: 1.0})

    def val_set(self, count: int) -> Labelled:
        """Return pictures that no network has seen, on which both cues say the label."""
        return self._pictures(count, 10 * self.seed + 2, {FIRST: 1.0, self.second: 1.0})

    def conflict_set(self, count: int) -> CuePictures:
        """Return pictures that no network has seen, whose cues never say the same; the label is the outline's."""
        return CuePictures(count, seed=10 * self.seed + 3, size=self.side, cues={FIRST: 1.0, self.second: 0.0})

    def alone_sets(self, count: int) -> dict[str, CuePictures]:
        """Return for each cue pictures that no network has seen, on which it is alone and says the label."""
        return {
            cue: CuePictures(count, seed=10 * self.seed + 4 + place, size=self.side, cues={cue: 1.0})
            for place, cue in enumerate((FIRST, self.second))
        }

    def networks(self, folder: Path, say: Callable[[str], None]) -> dict[str, Loaded]:
        """Return all fine-tuned networks, trained and written to a folder as far as they are not there."""
        for tuning in self.fine_tunings:
            path = _file(folder, tuning)
            if not path.is_file():
                loaded = self._fine_tune(self._start(folder, say), tuning)
                right = accuracy(loaded.classifier, self.val_set(200))
                save_classifier(path, loaded)
                say(f"network {tuning.name}: {right:.3f} of new pictures right, cues {dict(tuning.cues)} in training")
        return {one.name: load_classifier(f"{NETWORK}@{_file(folder, one)}") for one in self.fine_tunings}

    def _pictures(self, count: int, seed: int, cues: Mapping[str, float]) -> Labelled:
        key = (count, seed, *cues.items())
        if key not in self._drawn:
            self._drawn[key] = cached(CuePictures(count, seed=seed, size=self.side, cues=cues))
        return self._drawn[key]

    def _start(self, folder: Path, say: Callable[[str], None]) -> Path:
        path = folder / "start.safetensors"
        if not path.is_file():
            pictures = cached(Synthetic(self.start_pictures, seed=self.seed, size=self.side))
            classifier = self._new(len(SHAPES), self.seed)
            settings = FitSettings(epochs=self.start_epochs, lr=0.1, seed=self.seed, precision="32-true")
            fit_classifier(classifier, pictures, settings=settings)
            state = {name: value.cpu().contiguous() for name, value in classifier.network.state_dict().items()}
            replace_file(path, partial(save_file, state))
            say(f"start: a network for {len(SHAPES)} outlines, trained on {len(pictures)} pictures")
        return path

    def _fine_tune(self, start: Path, tuning: FineTuning) -> Loaded:
        classifier = self._new(4, tuning.seed)
        own = classifier.network.state_dict()
        body = {name: value for name, value in load_file(start).items() if value.shape == own[name].shape}
        classifier.network.load_state_dict({**own, **body})  # the head, which tells other classes apart, stays new
        pictures = self.train_set(tuning.cues)
        settings = FitSettings(epochs=self.epochs, lr=0.1, seed=tuning.seed, precision="32-true")
        fit_classifier(classifier, pictures, settings=settings)
        return Loaded(classifier, NETWORK, Sight(self.side, "squash"), tuple(pictures.classes))

    def _new(self, classes: int, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = small_network(classes)
        return Classifier(network, **_COLOURS, layers=None, image_size=self.side)  # type: ignore[arg-type]


def _file(folder: Path, tuning: FineTuning) -> Path:
    return folder / f"{tuning.name.replace(' ', '-')}.safetensors"
