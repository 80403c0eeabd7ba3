"""Sounds on top of other sounds, at a known ratio: noise to train with, and data out of the classifier's domain.

    mixture = g (s / |s| + 10^(-r/20) n / |n|)          r: decibels by which the sound s is above the other, n

g brings the largest sample to 1 where it would be larger. L-MAC's .8 s + .2 n is a ratio of 12 dB, its s + .5 n of
noise 6 dB, its WHAM! noise in training 0 dB.

Of a mixture the truth is known: what part of it is whose. `snr` and `si_snr` say how near a kept sound comes to it.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from salmask.audio.hearing import Heard, Hearing
from salmask.audio.readers import Audible, SoundSample
from salmask.audio.sounds import check_sound, read_sound, sound_header, sounds_in
from salmask.data.flat import UNLABELLED
from salmask.data.sample import Sample, SampleTransform, no_boxes
from salmask.draws import generator_for

__all__ = [
    "Another",
    "AnyOf",
    "Excerpt",
    "Mixed",
    "Mixing",
    "Mixture",
    "Other",
    "Ratios",
    "Source",
    "White",
    "ideal_mask",
    "mix",
    "read_mix",
    "si_snr",
    "snr",
]

Wave = Float[Tensor, " samples"]
_MOST = 200.0  # decibels: far beyond what float32 samples hold of the quieter part
Ratios = tuple[float, float]
"""Lowest and highest ratio in decibels, between which one is drawn."""


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
    first, second = (part / float(part.double().norm()) if bool(part.any()) else part for part in (sound, other))
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


@dataclass(frozen=True)
class Excerpt:
    """A part of one of many files of noise or speech, which begins anywhere; with silence after a shorter file."""

    files: tuple[Path, ...]
    sample_rate: int

    def __call__(self, samples: int, target: int, generator: Generator) -> Other:
        """Return the part drawn. Errors: as `read_sound`."""
        path = self.files[int(torch.randint(len(self.files), (), generator=generator))]
        seconds = samples / self.sample_rate
        start = float(torch.rand((), generator=generator)) * max(0.0, sound_header(path)[1] - seconds)
        wave = read_sound(path, self.sample_rate, seconds=seconds, start=start).wave
        return Other(F.pad(wave, (0, max(0, samples - len(wave)))), UNLABELLED)


class Mixed(Dataset[Sample]):
    """A data set of sounds, each with another one mixed in; the same at every reading, keyed by seed and id.

    ratio: decibels by which the sound is above the other, or between which two this is drawn. `mixture` gives the
    parts.
    """

    def __init__(self, sounds: Audible, source: Source, ratio: float | Ratios, *, seed: int = 0) -> None:
        self.sounds, self.source, self.seed = sounds, source, seed
        self.ratios = ratio if isinstance(ratio, tuple) else (ratio, ratio)
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
        return replace(mix(wave, other.wave, _drawn(self.ratios, generator)), other_target=other.target)


@dataclass(frozen=True)
class Mixing:
    """Training: mix another sound in, drawn anew at each reading, at a ratio drawn from `ratios` (lowest, highest).

    The label stays that of the sound, which is the quieter one where the ratio is below 0: with another sound of the
    same data, either of two labels is so explained as often as the other, while both can be heard.
    Draws from torch's global generator, which `training_batches` sets per sound. share: of the sounds that are mixed.
    Errors: ValueError for a share that is none, and for samples that are no sounds.
    """

    sounds: Audible
    source: Source
    ratios: Ratios
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"expected a share in [0, 1] of the sounds to mix, got {self.share}")

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with another sound mixed in."""
        if not isinstance(sample, SoundSample):
            raise ValueError(f"only sounds can be mixed, got {sample.id}, which is a picture")
        if float(torch.rand(())) >= self.share:
            return sample
        ratio = _drawn(self.ratios, None)
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        wave = mix(sample.wave, self.source(len(sample.wave), sample.target, generator).wave, ratio).wave
        return replace(sample, image=self.sounds.hearing.hear(wave).picture, wave=wave)


@dataclass(frozen=True)
class AnyOf:
    """Training: one of several transforms, drawn anew for each sample from torch's global generator."""

    transforms: tuple[SampleTransform, ...]

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample as the transform drawn leaves it."""
        return self.transforms[int(torch.randint(len(self.transforms), ()))](sample)


def _drawn(ratios: Ratios, generator: Generator | None) -> float:
    low, high = ratios
    return low + (high - low) * float(torch.rand((), generator=generator))


def read_mix(text: str, sounds: Audible, *, skip_broken: bool = False) -> tuple[Source, Ratios]:
    """Return source and ratios of `white:DB`, `other:DB` (another class of the same data) or `FOLDER:DB`.

    DB is a number of decibels, or two with .. between them, such as -6..6. All files of a folder are decoded here, so
    that none stops a training midway; skip_broken: leave out those that cannot be mixed in, with one warning.
    Errors: ValueError for another form, and naming a file that cannot be decoded, is empty or silent, holds NaN or is
    shorter than a window; FileNotFoundError for a folder that is not there.
    """
    name, colon, decibels = text.rpartition(":")
    ratios = _read_ratios(decibels)
    if not colon or not name or ratios is None:
        raise ValueError(
            "expected white:DB, other:DB or FOLDER:DB with the ratio in decibels, or a lower and a higher one as "
            f"LOW..HIGH, got {text!r}"
        )
    if name == "white":
        return White(), ratios
    if name == "other":
        return Another(sounds), ratios
    if not (folder := Path(name)).is_dir():
        raise FileNotFoundError(f"no folder {folder} of sounds to mix in: expected white, other or a folder")
    return Excerpt(_fit_to_mix(folder, sounds.hearing, skip_broken=skip_broken), sounds.hearing.sample_rate), ratios


def _fit_to_mix(folder: Path, hearing: Hearing, *, skip_broken: bool) -> tuple[Path, ...]:
    """Return the sounds of a folder that can be mixed in."""
    files, broken = [], []
    for path in sounds_in([folder]):
        try:
            check_sound(path, at_least=hearing.window / hearing.sample_rate)
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise ValueError(f"{error}; it was to be mixed in") from error
            broken.append(str(error))
        else:
            files.append(path)
    if broken:
        warnings.warn(
            f"{len(broken)} of {len(files) + len(broken)} sounds in {folder} cannot be mixed in and are left out (the "
            f"first: {broken[0]})",
            stacklevel=4,
        )
    if not files:
        raise ValueError(f"none of the sounds in {folder} can be mixed in")
    return tuple(files)


def _read_ratios(text: str) -> Ratios | None:
    low, dots, high = text.partition("..")
    try:
        ratios = float(low), float(high if dots else low)
    except ValueError:
        return None
    return ratios if -_MOST <= ratios[0] <= ratios[1] <= _MOST else None


def ideal_mask(part: Wave, heard: Heard, hearing: Hearing) -> Float[Tensor, "1 bins frames"]:
    """Return the mask that keeps a known part of a sound: its share of the sound's picture, at most 1.

        m = min(1, picture(part) / picture(sound)),  1 where both are silent

    What it keeps has the magnitudes of the part wherever the sound is as loud, and the phase of the sound: what a mask
    can reach at best, the ideal ratio mask of the domain of `hearing`. part: at the loudness at which the sound has it.
    """
    own, whole = hearing.pictures(hearing.spectrum(part * heard.gain).abs()[None, None])[0], heard.picture
    return torch.where(whole > 0, (own / whole.clamp_min(torch.finfo(whole.dtype).tiny)).clamp(max=1), 1.0)


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
