"""Sound files: reading, resampling, writing. The library `soundfile` (extra `audio`) does the decoding.

stored samples (N, channels) at any rate  ->  mean over channels  ->  resampled  ->  (n,) float
"""

import importlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from salmask.data.rasters import Held
from salmask.files import regular_file, replace_file

__all__ = [
    "SUFFIXES",
    "Recording",
    "check_sound",
    "is_sound",
    "list_sounds",
    "read_sound",
    "sound_bytes",
    "sound_header",
    "sounds_in",
    "write_sound",
]

SUFFIXES = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""Endings of sound files."""

_CLIPPED, _FULL = 0.01, 0.9995  # share of samples at full scale from which on a recording counts as clipped
_RATES = (100, 1_000_000)  # samples a second: a header that is broken may hold any number, and resampling would take it
_PART = 2**20  # samples that are decoded at once, where a whole file is looked at
_MARGIN = 0.1  # seconds beyond the end that are read along, for the filter of the resampling
_SLACK = 0.1  # seconds by which a file may fall short of its header: coders count their own delay in different ways
_SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0x7FFF_0000  # bytes of sound from which on a header says that whoever wrote it did not know


class _SoundFile(Protocol):
    """A file that soundfile has opened."""

    samplerate: int
    frames: int
    extra_info: str

    def seek(self, frames: int) -> int: ...

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray: ...


@dataclass(frozen=True)
class Recording:
    """A sound as it was read. clipped: share of its samples at full scale, where that is much, else 0.

    cancelled: the mean of its channels is less than a thousandth of what they hold, as of opposite ones.
    """

    wave: Float[Tensor, " samples"]
    sample_rate: int
    channels: int
    seconds: float
    clipped: float
    cancelled: bool = False

    @property
    def silent(self) -> bool:
        """Whether every sample is zero, or was read as one that is the same throughout."""
        return not bool(self.wave.any())


def is_sound(path: Path) -> bool:
    """Return whether a file is a sound, by its ending."""
    return path.suffix.lower() in SUFFIXES


def list_sounds(folder: Path) -> list[str]:
    """Return the names of the sounds in a folder, sorted; hidden files are left out."""
    return sorted(path.name for path in folder.iterdir() if is_sound(path) and not path.name.startswith("."))


def sounds_in(paths: Sequence[Path]) -> list[Path]:
    """Return the sound files named, each once; those in a folder, sorted, where a folder is named.

    Errors: ValueError for none, for a folder without sounds, and for a file that is none.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        inside = [path / name for name in list_sounds(path)] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"the folder {path} has no sounds: expected files such as .wav or .flac")
        if (other := next((file for file in inside if not is_sound(file)), None)) is not None:
            raise ValueError(f"{other} is no sound, and the classifier hears sounds: expected {', '.join(SUFFIXES)}")
        for file in inside:
            files.setdefault(file.resolve(), file)
    if not files:
        raise ValueError("no sound to explain: name at least one file or folder")
    return list(files.values())


def read_sound(
    path: Path | Held, sample_rate: int | None = None, *, seconds: float | None = None, start: float = 0.0
) -> Recording:
    """Read a sound: the mean of its channels, resampled, from `start` (in seconds) on, cut after `seconds`.

    sample_rate: what it is brought to; None: as it is stored. Errors: ImportError without the extra `audio`;
    FileNotFoundError; ValueError naming a file that cannot be decoded, is empty, breaks off before the end that its
    header names, or holds NaN.
    """
    if isinstance(path, Path):
        regular_file(path, "a sound file")
    with _decoding(path) as file:
        rate, whole = file.samplerate, file.frames
        first = min(round(start * rate), max(0, whole - 1))
        if first > 0:
            file.seek(first)
        count = -1 if seconds is None else math.ceil((seconds + _MARGIN) * rate)
        stored = file.read(count, dtype="float64", always_2d=True)
        shortened = file.extra_info
    if not stored.size:
        raise ValueError(f"{path} is empty: expected at least one sample of sound")
    if count < 0 or len(stored) < count:  # the end was met
        _check_whole(path, first + len(stored), whole, rate, shortened)
    if not np.isfinite(stored).all():
        raise ValueError(f"{path} holds samples that are NaN or infinite: repair or remove the file")
    full = float((np.abs(stored) >= _FULL).mean())
    wave = stored.mean(1)
    cancelled = bool(np.abs(wave).max() < 1e-3 * np.abs(stored).max())
    if len(wave) > 1 and np.ptp(wave) == 0:
        wave = np.zeros_like(wave)  # a constant, as of 8-bit silence one step off, would be scaled to a sound
    if sample_rate is not None and rate != sample_rate:
        from scipy.signal import resample_poly  # takes longer to import than most files to read

        common = math.gcd(rate, sample_rate)
        wave = resample_poly(wave, sample_rate // common, rate // common)
    target = sample_rate or rate
    if seconds is not None:
        wave = wave[: max(1, round(seconds * target))]
    length = (whole if whole > 0 else len(stored)) / rate
    with np.errstate(over="ignore"):
        samples = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} holds samples of up to {np.abs(wave).max():.3g}: scale them to [-1, 1]")
    samples[np.abs(samples) < np.finfo(np.float32).tiny] = 0  # what is smaller cannot be scaled up
    clipped = full if full > _CLIPPED else 0.0
    return Recording(torch.from_numpy(samples), target, stored.shape[1], length, clipped, cancelled)


@contextmanager
def _decoding(path: Path | Held) -> Iterator[_SoundFile]:
    """Open a file, of the type that the library has for one. Errors: ValueError for a rate that none has."""
    soundfile = _library()
    with ExitStack() as stack:
        with _in_one_line(path):
            file = stack.enter_context(soundfile.SoundFile(stack.enter_context(path.open("rb"))))
        _check_rate(path, file.samplerate)
        with _in_one_line(path):
            yield file


def _check_whole(path: Path | Held, decoded: int, announced: int, rate: int, facts: str) -> None:
    """Raise ValueError for a file whose sound ends before its header says, as of a download that broke off.

    facts: what the library noted while it read the header, which it brings down to the file's length.
    """
    if (shortened := _SHORTENED.search(facts)) is not None:
        said, there = int(shortened[1]), int(shortened[2])
        announced = round(decoded * said / there) if 0 < there < said < _UNKNOWN else announced
    if decoded < announced - _SLACK * rate:
        raise ValueError(
            f"{path} breaks off: {decoded / rate:.3g} of the {announced / rate:.3g} seconds that its header names can "
            "be decoded; fetch or convert it again, remove it, or leave broken files out (skip_broken, --skip-broken)"
        )


def _check_rate(path: Path | Held, rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(
            f"{path} is stored at {rate} samples a second by its header: expected {_RATES[0]} to {_RATES[1]:,}; repair "
            "or remove the file"
        )


@contextmanager
def _in_one_line(path: Path | Held) -> Iterator[None]:
    """Make one line of what a decoder says."""
    try:
        yield
    except Exception as error:  # decoders raise whatever a broken byte leads them to
        raise ValueError(
            f"{path} cannot be decoded as a sound ({(str(error) or type(error).__name__).splitlines()[0]}): expected "
            "WAV, FLAC, OGG, MP3 or AIFF; convert, repair or remove the file, or leave broken files out (skip_broken, "
            "--skip-broken)"
        ) from error


def check_sound(path: Path, *, at_least: float) -> None:
    """Decode a file of any length, a part at a time. Errors: as `read_sound`; ValueError for silence, too.

    at_least: seconds that it has to last.
    """
    regular_file(path, "a sound file")
    count, finite, loud = 0, True, False
    with _decoding(path) as file:
        rate = file.samplerate
        while len(part := file.read(_PART, dtype="float32", always_2d=True)):  # blocks() fills up what is missing
            count, finite = count + len(part), finite and bool(np.isfinite(part).all())
            loud = loud or bool(np.ptp(part, axis=0).any())
        announced, facts = file.frames, file.extra_info
    if not count:
        raise ValueError(f"{path} is empty: expected at least one sample of sound")
    if not finite:
        raise ValueError(f"{path} holds samples that are NaN or infinite: repair or remove the file")
    _check_whole(path, count, announced, rate, facts)
    if not loud:
        raise ValueError(f"{path} is silent: expected a sound")
    if count < at_least * rate:
        raise ValueError(f"{path} lasts {count / rate:.3g} seconds: expected at least {at_least:.3g}")


def sound_header(path: Path) -> tuple[int, float]:
    """Return a file's sample rate and its seconds, without decoding it. Errors: as `read_sound`."""
    regular_file(path, "a sound file")
    try:
        facts = _library().info(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be decoded as a sound ({str(error).splitlines()[0]})") from error
    _check_rate(path, facts.samplerate)
    return int(facts.samplerate), float(facts.duration)


def write_sound(path: Path, wave: Float[Tensor, " samples"], sample_rate: int) -> None:
    """Write a WAV file of 32-bit floats, whole or not at all; values beyond 1 stay as they are, nothing is clipped."""
    samples = wave.detach().float().cpu().numpy()
    replace_file(path, partial(_save, samples=samples, sample_rate=sample_rate))


def sound_bytes(wave: Float[Tensor, " samples"], sample_rate: int) -> bytes:
    """Return the bytes of the file that `write_sound` writes."""
    buffer = io.BytesIO()
    samples = wave.detach().float().cpu().numpy()
    _library().write(buffer, samples, sample_rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _save(at: Path, *, samples: Float[np.ndarray, " samples"], sample_rate: int) -> None:
    _library().write(str(at), samples, sample_rate, format="WAV", subtype="FLOAT")


def _library() -> ModuleType:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: the system's libsndfile is missing
        raise ImportError("sounds need the library soundfile: pip install 'salmask[audio]'") from error
