"""From a sound to the picture that a classifier hears, and from pictures back to sounds.

    w (N,)  --STFT-->  X (F, T) complex  -->  |X|  -->  picture (1, F, T) in [0, 1]   and the phase, which is put aside

A picture is a spectrogram, so what hides pixels hides sound: `keep`, `remove` and `play` are those of images.
With S the sum of the window, which no |X| of a sound in [-1, 1] exceeds, the scale of a picture is fixed:

| domain | picture | a mask m keeps |
|---|---|---|
| log | log1p(abs X) / log1p(S) | (1 + abs X)^m - 1, what L-MAC's released code plays |
| linear | abs X / S | m * abs X, so that kept and removed sound add up to the sound |

0 is silence in both, and the mean of a classifier of sounds: hiding is silencing. The highest frequency stands in the
first row, as spectrograms are drawn. Sounds are heard again with the phase of the original.

Source: Paissan, Ravanelli & Subakan (2024, L-MAC), whose front end is `Hearing()`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from salmask.audio.sounds import read_sound
from salmask.data.rasters import Held
from salmask.data.sample import Sample, SampleTransform

__all__ = ["DOMAINS", "SHOWN", "Heard", "Hearing", "Shifted"]

Wave = Float[Tensor, " samples"]
Spectrograms = Float[Tensor, "batch 1 bins frames"]


class _Domain(NamedTuple):
    """How magnitudes become values in [0, 1], given the largest one, and back."""

    forth: Callable[[Tensor, float], Tensor]
    back: Callable[[Tensor, float], Tensor]


DOMAINS: Mapping[str, _Domain] = MappingProxyType(
    {
        "log": _Domain(
            lambda magnitudes, most: magnitudes.log1p() / math.log1p(most),
            lambda values, most: (values * math.log1p(most)).expm1(),
        ),
        "linear": _Domain(lambda magnitudes, most: magnitudes / most, lambda values, most: values * most),
    }
)
"""Domains in which masks multiply."""

SHOWN = "drawn by the logarithm of magnitudes, over 60 dB"
"""What captions say of `Hearing.shown`."""

_RANGE = 1000  # 60 dB
_WINDOWS = MappingProxyType({"hamming": torch.hamming_window, "hann": torch.hann_window})


@dataclass(frozen=True)
class Heard:
    """A sound as a picture, and what the way back needs.

    picture (1, F, T) in [0, 1]. phase (F, T), lowest frequency first. gain: what the sound was multiplied by. length:
    samples of the sound without the silence that was added to it.
    """

    picture: Float[Tensor, "1 bins frames"]
    phase: Float[Tensor, "bins frames"]
    gain: float
    length: int


@dataclass(frozen=True)
class Hearing:
    """How a sound becomes what a classifier hears; the settings are L-MAC's.

    sample_rate: per second; files of another rate are resampled. seconds: a longer sound is cut, a shorter one ends in
    silence. n_fft, window, hop: of the short-time Fourier transform, in samples. taper: hamming or hann.
    domain: of the masks, see above. peak: what the largest sample of each sound is brought to, so that quiet recordings
    are heard like loud ones; None: sounds are heard as loud as they are, and may not leave [-1, 1].
    Errors: ValueError for values out of range, and for a window that leaves parts of a sound unheard.
    """

    sample_rate: int = 16_000
    seconds: float = 5.0
    n_fft: int = 1024
    window: int = 372
    hop: int = 186
    taper: str = "hamming"
    domain: str = "log"
    peak: float | None = 1.0

    def __post_init__(self) -> None:
        if not 1000 <= self.sample_rate <= 384_000:
            raise ValueError(f"a sample rate is 1000 to 384000 a second, got {self.sample_rate}")
        if not 0 < self.seconds <= 600:
            raise ValueError(f"a classifier hears up to 600 seconds, got {self.seconds}")
        if not 1 <= self.hop <= self.window / 2 or not 8 <= self.window <= self.n_fft <= 65_536:
            raise ValueError(
                "expected a hop of at most half a window, and a window of 8 samples to n_fft, got hop "
                f"{self.hop}, window {self.window}, n_fft {self.n_fft}"
            )
        if self.taper not in _WINDOWS:
            raise ValueError(f"taper is one of {', '.join(_WINDOWS)}, got {self.taper!r}")
        if self.domain not in DOMAINS:
            raise ValueError(f"domain is one of {', '.join(DOMAINS)}, got {self.domain!r}")
        if self.peak is not None and not 0 < self.peak <= 1:
            raise ValueError(f"peak is a share of full scale in (0, 1], or None, got {self.peak}")

    @classmethod
    def at(cls, sample_rate: int, seconds: float, *, n_fft: int | None = None) -> "Hearing":
        """Return L-MAC's hearing for another rate: windows of 23.2 milliseconds at half of their length.

        n_fft: windows of so many samples instead, as long as the transform.
        """
        window = round(sample_rate * 372 / 16_000) if n_fft is None else n_fft
        transform = 2 ** math.ceil(math.log2(max(1, 2 * window))) if n_fft is None else n_fft
        return cls(sample_rate, seconds, n_fft=transform, window=window, hop=window // 2)

    @property
    def samples(self) -> int:
        """Samples of the sounds that are heard."""
        return max(1, round(self.sample_rate * self.seconds))

    @property
    def bins(self) -> int:
        """F, frequencies from 0 to half the sample rate."""
        return self.n_fft // 2 + 1

    @property
    def frames(self) -> int:
        """T, windows of one sound."""
        return 1 + self.samples // self.hop

    @property
    def image_size(self) -> int:
        """The side of the square picture with which a classifier is tried out."""
        return self.bins

    @property
    def loudest(self) -> float:
        """S, the largest magnitude that a sound in [-1, 1] may have."""
        return float(self._taper(torch.float64).sum())

    @property
    def colours(self) -> None:
        """No channels to choose from: a picture of a sound is grey."""
        return

    def _taper(self, dtype: torch.dtype) -> Tensor:
        return _WINDOWS[self.taper](self.window, periodic=True, dtype=dtype)

    def hear(self, wave: Tensor) -> Heard:
        """Return a sound as a picture. Errors: ValueError for no sample, NaN, and values that may not be scaled."""
        if wave.ndim != 1 or not wave.is_floating_point() or not len(wave):
            raise ValueError(f"expected a sound as float samples (N,), N >= 1, got {tuple(wave.shape)} {wave.dtype}")
        if not bool(wave.isfinite().all()):
            raise ValueError("expected a sound of finite samples, got NaN or infinite ones: repair the recording")
        wave = wave[: self.samples].float()
        length, most = len(wave), float(wave.abs().max())
        if self.peak is None and most > 1:
            raise ValueError(f"expected samples in [-1, 1], got {most:.3g}: give a peak to scale sounds to")
        gain = 1.0 if self.peak is None or most == 0 else self.peak / most
        spectrum = self.spectrum(wave * gain)
        return Heard(self.pictures(spectrum.abs()[None, None])[0], spectrum.angle(), gain, length)

    def sound(self, picture: Float[Tensor, "1 bins frames"], heard: Heard) -> Wave:
        """Return the sound of a picture, with the phase and the loudness of the sound that it was made from.

        Inverts `hear` for its own picture, but for the rounding of float32 and for samples that `hear` cut off.
        """
        if picture.shape != heard.picture.shape:
            raise ValueError(f"expected a picture {tuple(heard.picture.shape)}, got {tuple(picture.shape)}")
        magnitudes = self.magnitudes(picture.detach().float().cpu()[None])[0, 0]
        wave = torch.istft(
            torch.polar(magnitudes, heard.phase),
            self.n_fft,
            self.hop,
            self.window,
            self._taper(torch.float32),
            center=True,
            length=self.samples,
        )
        return wave[: heard.length] / heard.gain

    def pictures(self, magnitudes: Spectrograms) -> Tensor:
        """Return magnitudes, lowest frequency first, as pictures in [0, 1]; differentiable."""
        return DOMAINS[self.domain].forth(magnitudes, self.loudest).clamp(0, 1).flip(-2)

    def shown(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, C, F, T) as people look at them, alike in either domain: in [0, 1], over some 60 dB.

            log(1 + 1000 abs X / S) / log(1 + 1000)

        By their own values all but the loudest of a sound is dark, and of a linear domain black.
        """
        magnitudes = DOMAINS[self.domain].back(pictures.clamp_min(0), self.loudest)
        return (_RANGE * magnitudes / self.loudest).log1p() / math.log1p(_RANGE)

    def magnitudes(self, pictures: Tensor) -> Spectrograms:
        """Return pictures as magnitudes, lowest frequency first; differentiable, and the inverse of `pictures`.

        What is below silence, as in pictures that SmoothGrad has added noise to, is silence.
        """
        turned = pictures.flip(-2)
        heard = torch.where(turned < 0, torch.zeros_like(turned), turned)  # a clamp would stop gradients at silence
        return DOMAINS[self.domain].back(heard, self.loudest)

    def spectrum(self, wave: Wave) -> Complex[Tensor, "bins frames"]:
        """Return the complex spectrum of as much of a sound as is heard, as loud as it is, lowest frequency first."""
        wave = wave[: self.samples]
        return torch.stft(
            nn.functional.pad(wave, (0, self.samples - len(wave))),
            self.n_fft,
            self.hop,
            self.window,
            self._taper(torch.float32),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )

    def wave(self, path: Path | Held) -> Wave:
        """Read as much of a file as is heard. Errors: as `read_sound`."""
        return read_sound(path, self.sample_rate, seconds=self.seconds).wave

    def reader(self, *, channels: int = 1, max_pixels: int | None = None) -> Callable[[Path | Held], Tensor]:
        """Return what reads a file as a picture. Errors: ValueError for a classifier of other than one channel."""
        if channels != 1:
            raise ValueError(f"a picture of a sound has one channel, the classifier reads {channels}")
        return lambda path: self.hear(self.wave(path)).picture

    def transform(self) -> SampleTransform:
        """Return the transform of evaluation: none, as all pictures have one size."""
        return _as_it_is

    def augmentation(self) -> SampleTransform:
        """Return the transform of training: the sound begins a little later or earlier."""
        return Shifted()


def _as_it_is(sample: Sample) -> Sample:
    return sample


@dataclass(frozen=True)
class Shifted:
    """Training: turn a picture in time by up to `most` of its length; what leaves at one end comes in at the other.

    Draws from torch's global generator, which `training_batches` sets per sound.
    """

    most: float = 0.2

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with another beginning."""
        reach = int(self.most * sample.image.shape[-1])
        by = int(torch.randint(-reach, reach + 1, ()))
        return replace(sample, image=sample.image.roll(by, -1))
