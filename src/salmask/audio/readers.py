"""Readers of sounds, by how they lie on the disk.

| layout | files | split |
|---|---|---|
| folder | DIR/<split>/<class>/*.wav | as the folder is called |
| fsdd | DIR/[recordings/]<class>_<speaker>_<n>.wav | `val`: the last speaker by name; `train`: the others; or one |
| esc50 | DIR/meta/esc50.csv, DIR/audio/*.wav | `train`: folds 1 to 3, `val`: 4, `test`: 5; or `fold1` to `fold5` |
| flat | DIR/*.wav, no labels | any |

`open_sounds` reads any of them, found out by what lies there, or named: `fsdd:DIR`.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from salmask.audio.hearing import Hearing
from salmask.audio.sounds import SUFFIXES, list_sounds, sound_header
from salmask.data.flat import UNLABELLED
from salmask.data.folders import class_folders, pin_classes, read_table
from salmask.data.listed import ListedPictures
from salmask.data.sample import Sample, no_boxes

__all__ = ["Audible", "SoundSample", "Sounds", "holds_sounds", "open_sounds", "sound_layout", "survey"]

ESC50 = ("filename", "fold", "target", "category")
_NAME = re.compile(r"(?P<label>[^_]+)_(?P<speaker>[^_]+)_(?P<number>\d+)$")
_FOLDS = MappingProxyType({"train": ("1", "2", "3"), "val": ("4",), "test": ("5",)})


@dataclass(frozen=True, eq=False)
class SoundSample(Sample):
    """A sound as a sample: `image` is its picture (1, F, T) in [0, 1], float; `wave` its samples."""

    wave: Tensor = field(default_factory=lambda: torch.zeros(0))


@runtime_checkable
class Audible(Protocol):
    """A data set of sounds: `data.Labelled`, whose samples can be heard."""

    hearing: Hearing
    classes: list[str]
    targets: list[int]
    ids: list[str]

    def __len__(self) -> int:
        """Return the number of sounds."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sound."""
        ...

    def wave(self, index: int) -> Tensor:
        """Return the samples of one sound, without its picture."""
        ...


class Sounds(ListedPictures):
    """Sound files with their classes.

    files: (path relative to root, class) pairs; a class of None has no label. classes: pins their order, and so the
    targets. skip_broken: decode all of them now and leave out, with one warning, those that cannot be.
    Errors: ValueError for no file, for unknown classes; a file that cannot be decoded is named when it is read.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[str, str | None]],
        hearing: Hearing,
        *,
        classes: Sequence[str] | None = None,
        skip_broken: bool = False,
    ) -> None:
        if not files:
            raise ValueError(f"no sounds in {root}: expected files such as {', '.join(SUFFIXES)}")
        super().__init__(root, transform=None, read=hearing.reader(), noun="sounds")
        self.hearing, self._silent = hearing, False
        labels = sorted({label for _, label in files if label is not None})
        self.classes = pin_classes(labels, classes, where=root)
        numbers: dict[str | None, int] = {label: number for number, label in enumerate(self.classes)}
        self.ids = [name for name, _ in files]
        self.targets = [numbers.get(label, UNLABELLED) for _, label in files]
        if skip_broken:
            self.leave_out_broken()

    def sample(self, index: int) -> SoundSample:
        """Return a sound as a sample."""
        name, wave = self.ids[index], self.wave(index)
        picture = self.hearing.hear(wave).picture
        return SoundSample(id=name, image=picture, target=self.targets[index], boxes=no_boxes(), wave=wave)

    def wave(self, index: int) -> Tensor:
        """Return the samples of one sound at the rate that is heard; warn of the first that is silent."""
        wave = self.passed_over_or(partial(self.hearing.wave, self.root / self.ids[index]))
        if not self._silent and not bool(wave.any()):
            self._silent = True
            warnings.warn(
                f"{self.ids[index]} is silent, and others may be, which are not named: what is decided of it, and "
                "explained, is a decision on silence",
                stacklevel=2,
            )
        return wave


def survey(spec: str, split: str, *, skip_broken: bool = False) -> tuple[int, float]:
    """Return the sample rate of the first file of a split, and the seconds that 95 of 100 files do not exceed.

    skip_broken: pass over files that cannot be read. Errors: ValueError naming one, or where none can be read.
    """
    layout, root = sound_layout(spec)
    lengths, broken = [], None
    for name, _ in _READERS[layout](root, split):
        try:
            lengths.append(sound_header(root / name))
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise
            broken = error
    if not lengths and broken is not None:
        raise broken
    seconds = sorted(length for _, length in lengths)
    return lengths[0][0], math.ceil(10 * seconds[int(0.95 * (len(seconds) - 1))]) / 10


class _Layout(NamedTuple):
    name: str
    root: Path


def sound_layout(spec: str) -> _Layout:
    """Return the layout of the sounds that a spec names, and their folder. Errors: FileNotFoundError."""
    name, colon, path = spec.partition(":")
    if colon and name in _READERS:
        return _Layout(name, _inner(Path(path)) if name == "fsdd" else Path(path))
    root = Path(spec)
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}: expected a folder of sounds")
    if (root / "meta" / "esc50.csv").is_file():
        return _Layout("esc50", root)
    if not (names := list_sounds(inner := _inner(root))):
        return _Layout("folder", root)
    return _Layout("fsdd" if all(_NAME.match(Path(name).stem) for name in names) else "flat", inner)


def _inner(root: Path) -> Path:
    return root / "recordings" if (root / "recordings").is_dir() else root


def holds_sounds(spec: str) -> bool:
    """Return whether the data that a spec names are sounds."""
    layout, colon, path = spec.partition(":")
    if colon and layout in ("fsdd", "esc50"):
        return True
    root = Path(path if colon else spec)
    if not root.is_dir():
        return False
    if (root / "meta" / "esc50.csv").is_file() or list_sounds(root) or list_sounds(_inner(root)):
        return True
    split = next((root / name for name in ("train", "val") if (root / name).is_dir()), None)
    return split is not None and any(list_sounds(folder) for folder in split.iterdir() if folder.is_dir())


def open_sounds(
    spec: str,
    split: str,
    hearing: Hearing,
    *,
    classes: Sequence[str] | None = None,
    skip_broken: bool = False,
) -> Sounds:
    """Return a split of the sounds that `spec` names. Errors: as `Sounds`; ValueError for a split that is not there."""
    layout, root = sound_layout(spec)
    return Sounds(root, _READERS[layout](root, split), hearing, classes=classes, skip_broken=skip_broken)


def _in_folders(root: Path, split: str) -> list[tuple[str, str | None]]:
    files: list[tuple[str, str | None]] = []
    for folder in class_folders(root, split):
        if not (names := list_sounds(folder)):
            raise ValueError(f"the class folder {folder} has no sounds: expected files such as .wav or .flac in it")
        files += [(f"{split}/{folder.name}/{name}", folder.name) for name in names]
    return files


def _by_speaker(root: Path, split: str) -> list[tuple[str, str | None]]:
    parts = {name: _NAME.match(Path(name).stem) for name in list_sounds(root)}
    if odd := [name for name, match in parts.items() if match is None]:
        raise ValueError(f"{root / odd[0]} is not named <class>_<speaker>_<number>, as the others are")
    speakers = sorted({match["speaker"] for match in parts.values() if match})
    if len(speakers) < 2 and split in ("train", "val"):
        raise ValueError(f"{root} holds the speaker {', '.join(speakers)} alone: name the speaker as the split")
    wanted = {"train": speakers[:-1], "val": speakers[-1:]}.get(split, [split])
    if not set(wanted) <= set(speakers):
        raise ValueError(f"{root} has no split {split!r}: expected train, val or a speaker, {', '.join(speakers)}")
    return [(name, match["label"]) for name, match in parts.items() if match and match["speaker"] in wanted]


def _by_fold(root: Path, split: str) -> list[tuple[str, str | None]]:
    rows = [row for _, row in read_table(root / "meta" / "esc50.csv", ESC50, more="and others if wanted")]
    folds = _FOLDS.get(split, (split.removeprefix("fold"),))
    chosen = [row for row in rows if row["fold"] in folds]
    if not chosen:
        there = sorted({row["fold"] for row in rows})
        raise ValueError(f"{root} has no split {split!r}: expected train, val, test or fold{', fold'.join(there)}")
    return [(f"audio/{row['filename']}", row["category"]) for row in chosen]


def _unlabelled(root: Path, split: str) -> list[tuple[str, str | None]]:
    return [(name, None) for name in list_sounds(root)]


_READERS: Mapping[str, Callable[[Path, str], list[tuple[str, str | None]]]] = MappingProxyType(
    {"folder": _in_folders, "fsdd": _by_speaker, "esc50": _by_fold, "flat": _unlabelled}
)
