"""Sounds on top of other sounds, at a known ratio: noise to train with, and data out of the classifier's domain.

    mixture = g (s / |s| + 10^(-r/20) n / |n|)          r: decibels by which the sound s is above the other, n

g brings the largest sample to 1 where it would be larger. L-MAC's .8 s + .2 n is a ratio of 12 dB, its s + .5 n of
noise 6 dB, its WHAM! noise in training 0 dB.

Of a mixture the truth is known: what part of it is whose. `snr` and `si_snr` say how near a kept sound comes to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from salmask.audio.readers import Audible, Sounds, SoundSample
from salmask.audio.sounds import list_sounds
from salmask.data.flat import UNLABELLED
from salmask.data.sample import Sample, no_boxes
from salmask.draws import generator_for

__all__ = ["Another", "Mixed", "Mixing", "Mixture", "Other", "Source", "White", "mix", "read_mix", "si_snr", "snr"]

Wave = Float[Tensor, " samples"]


class Other(NamedTuple):
    """What is mixed in: a sound of any length, and its class; `UNLABELLED` for noise."""

    wave: Wave
    target: int


Source = Callable[[int, int, Generator], Other]
"""(samples, class of the sound, generator) -> what is mixed in."""


@dataclass(frozen=True)
class Mixture:
    """A mixture and the two parts that it is the sum of."""

    wave: Wave
    sound: Wave
    other: Wave
    other_target: int = UNLABELLED


def mix(sound: Wave, other: Float[Tensor, " others"], ratio: float) -> Mixture:
    """Return sound and other together, the sound `ratio` decibels above the other, as long as the sound.

    The other is repeated where it is shorter, and cut where it is longer. A silent part stays silent.
    """
    if not math.isfinite(ratio):
        raise ValueError(f"a ratio is a finite number of decibels, got {ratio}")
    if not len(sound) or not len(other):
        raise ValueError("expected two sounds of at least one sample to mix")
    other = other.repeat(-(-len(sound) // len(other)))[: len(sound)]
    first, second = (part / part.norm() if bool(part.any()) else part for part in (sound, other))
    second = second * 10 ** (-ratio / 20)
    gain = 1 / max(1.0, float((first + second).abs().max()))
    return Mixture((first + second) * gain, first * gain, second * gain)


@dataclass(frozen=True)
class White:
    """White noise."""

    def __call__(self, samples: int, target: int, generator: Generator) -> Other:
        """Return noise of so many samples."""
        return Other(torch.randn(samples, generator=generator), UNLABELLED)


@dataclass(frozen=True)
class Another:
    """Another recording of a data set, with silence after it; of another class, where `other_class`."""

    sounds: Audible
    other_class: bool = True

    def __call__(self, samples: int, target: int, generator: Generator) -> Other:
        """Return the recording drawn. Errors: ValueError where all are of one class."""
        targets = torch.tensor(self.sounds.targets)
        places = (targets != target).nonzero()[:, 0] if self.other_class else torch.arange(len(targets))
        if not len(places):
            raise ValueError("no sound of another class to mix in: the data has one class alone")
        place = int(places[torch.randint(len(places), (), generator=generator)])
        wave = self.sounds.wave(place)
        return Other(F.pad(wave, (0, max(0, samples - len(wave)))), self.sounds.targets[place])


class Mixed(Dataset[Sample]):
    """A data set of sounds, each with another one mixed in; the same at every reading, keyed by seed and id.

    ratio: decibels by which the sound is above the other. `mixture` gives the parts.
    """

    def __init__(self, sounds: Audible, source: Source, ratio: float, *, seed: int = 0) -> None:
        self.sounds, self.source, self.ratio, self.seed = sounds, source, ratio, seed
        self.hearing = sounds.hearing
        self.classes, self.targets, self.ids = sounds.classes, sounds.targets, sounds.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> SoundSample:
        wave = self.wave(index)
        picture = self.hearing.hear(wave).picture
        return SoundSample(id=self.ids[index], image=picture, target=self.targets[index], boxes=no_boxes(), wave=wave)

    def wave(self, index: int) -> Wave:
        """Return the mixture's samples."""
        return self.mixture(index).wave

    def mixture(self, index: int) -> Mixture:
        """Return a mixture with its parts."""
        generator = generator_for(self.seed, self.ids[index], "mixture")
        wave = self.sounds.wave(index)
        other = self.source(len(wave), self.targets[index], generator)
        return replace(mix(wave, other.wave, self.ratio), other_target=other.target)


@dataclass(frozen=True)
class Mixing:
    """Training: mix another sound in, drawn anew at each reading, at a ratio drawn from `ratios` (lowest, highest).

    Draws from torch's global generator, which `training_batches` sets per sound. share: of the sounds that are mixed.
    Errors: ValueError for samples that are no sounds.
    """

    sounds: Audible
    source: Source
    ratios: tuple[float, float]
    share: float = 1.0

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with another sound mixed in."""
        if not isinstance(sample, SoundSample):
            raise ValueError(f"only sounds can be mixed, got {sample.id}, which is a picture")
        if float(torch.rand(())) >= self.share:
            return sample
        low, high = self.ratios
        ratio = low + (high - low) * float(torch.rand(()))
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        wave = mix(sample.wave, self.source(len(sample.wave), sample.target, generator).wave, ratio).wave
        return replace(sample, image=self.sounds.hearing.hear(wave).picture, wave=wave)


def read_mix(text: str, sounds: Audible) -> tuple[Source, float]:
    """Return source and ratio of `white:DB`, `other:DB` (another class of the same data) or `FOLDER:DB`.

    Errors: ValueError for another form, FileNotFoundError for a folder that is not there.
    """
    name, colon, decibels = text.rpartition(":")
    try:
        ratio = float(decibels)
    except ValueError:
        ratio = math.nan
    if not colon or not name or not math.isfinite(ratio):
        raise ValueError(f"expected white:DB, other:DB or FOLDER:DB with the ratio in decibels, got {text!r}")
    if name == "white":
        return White(), ratio
    if name == "other":
        return Another(sounds), ratio
    if not (folder := Path(name)).is_dir():
        raise FileNotFoundError(f"no folder {folder} of sounds to mix in: expected white, other or a folder")
    return Another(
        Sounds(folder, [(one, None) for one in list_sounds(folder)], sounds.hearing), other_class=False
    ), ratio


def snr(estimate: Wave, reference: Wave) -> float:
    """Return 10 log10(|r|^2 / |e - r|^2) in decibels: how near an estimate comes to a reference, loudness included."""
    error, power = float((estimate - reference).double().square().sum()), float(reference.double().square().sum())
    return _decibels(power, error)


def si_snr(estimate: Wave, reference: Wave) -> float:
    """Return the same for the best multiple of the reference, which does not depend on the loudness of the estimate.

    a = <e, r> / |r|^2;  10 log10(|a r|^2 / |e - a r|^2) (Le Roux et al., 2019: SI-SDR).
    """
    e, r = estimate.double(), reference.double()
    power = float(r.square().sum())
    if power == 0:
        return math.nan
    scaled = float(e @ r) / power * r
    return _decibels(float(scaled.square().sum()), float((e - scaled).square().sum()))


def _decibels(power: float, error: float) -> float:
    if power == 0:
        return math.nan if error == 0 else -math.inf
    return math.inf if error == 0 else 10 * math.log10(power / error)
