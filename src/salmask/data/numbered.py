"""Data sets whose pictures lie in few large files: what they share, whatever the files are.

Such a data set knows of a picture where it lies and what its class is, in arrays: a million pictures take megabytes,
and reading them in other processes copies nothing. Order of training: runs of pictures that lie together are drawn in
groups, and pictures are mixed within a group, so that reading stays near where it was. With r runs in groups of
`together`, each pass is a permutation of all pictures, a function of (seed, pass) alone.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from salmask.data.flat import UNLABELLED
from salmask.data.listed import ReadImage
from salmask.data.rasters import Held
from salmask.data.sample import Sample, SampleTransform, no_boxes
from salmask.data.unreadable import UnreadableError

__all__ = ["MOST_CLASSES", "Brought", "Numbered", "left_out_of", "mixed_order"]

TOGETHER = 8
"""Runs whose pictures are mixed."""
MOST_CLASSES = 1_000_000
"""Numbers of classes are below it: a higher one is the id of something else."""


class Brought(int):
    """The number of a picture that brings its bytes along, None where it has none: on the way to a worker."""

    held: Held | None

    def __new__(cls, number: int, held: Held | None = None) -> "Brought":
        """Return the number with the bytes."""
        brought = super().__new__(cls, number)
        brought.held = held
        return brought


class Numbered(Dataset[Sample], ABC):
    """Pictures by number; a class says where their bytes are (`held`) and what they are called (`name`).

    where: the data in words, for errors. labels: (N,) numbers of classes, or `UNLABELLED`. runs: (R + 1,) bounds of
    the pictures that lie together, from 0 to N. names: of the labels, where the data has some. classes: names in the
    order that targets count; `names` where not given, else the numbers themselves.
    skip_broken: pictures that cannot be decoded are passed over when they are met (`unreadable`). lost: what is left
    out already, in words. shards: how many files somebody has cut the data into, of which each process wants one; None
    where that is nobody's choice.
    """

    shards: int | None = None

    def __init__(
        self,
        where: str,
        labels: np.ndarray,
        runs: np.ndarray,
        *,
        names: Sequence[str] | None,
        classes: Sequence[str] | None,
        transform: SampleTransform | None,
        read: ReadImage,
        skip_broken: bool,
        lost: Sequence[str] = (),
    ) -> None:
        self.transform, self.read, self.skip_broken, self.runs = transform, read, skip_broken, runs
        if lost:
            warnings.warn(left_out_of(where, lost, len(labels)), stacklevel=3)
        if not len(labels):
            raise ValueError(f"{where} holds no picture")
        self.classes, self.labels = _numbered_classes(labels, names, classes, where=where)

    @abstractmethod
    def held(self, row: int) -> Held:
        """Return the bytes of a picture, with its place in words."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the id of a picture."""

    @cached_property
    def ids(self) -> list[str]:
        """The name of every picture, made when first asked for."""
        return [self.name(row) for row in range(len(self))]

    @cached_property
    def targets(self) -> list[int]:
        """The class of every picture."""
        return [int(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        try:
            image = self.read(self.held(index))
        except (ValueError, OSError) as error:
            if self.skip_broken:
                raise UnreadableError(str(error)) from error
            raise
        sample = Sample(self.name(index), image, int(self.labels[index]), no_boxes())
        return sample if self.transform is None else self.transform(sample)

    def order(self, seed: int, turn: int) -> np.ndarray:
        """Return the order (N,) of pass number `turn`."""
        return mixed_order(self.runs, seed, turn)


def mixed_order(runs: np.ndarray, seed: int, turn: int, *, together: int = TOGETHER) -> np.ndarray:
    """Return a permutation of 0 ... runs[-1] - 1: runs in a drawn order, mixed in groups of `together`.

    runs: (R + 1,) bounds. With `together` >= R, and one picture a run, it is a plain permutation.
    """
    generator = np.random.default_rng([seed, turn])
    drawn = generator.permutation(len(runs) - 1)
    groups = [drawn[start : start + together] for start in range(0, len(drawn), together)]
    parts = []
    for group in groups:
        inside = np.concatenate([np.arange(runs[run], runs[run + 1]) for run in group])
        parts.append(inside[generator.permutation(len(inside))])
    return np.concatenate(parts)


def left_out_of(where: str, problems: Sequence[str], left: int) -> str:
    """Return one line on what is left out."""
    count = f"{len(problems)} part{'s' * (len(problems) > 1)} of {where} cannot be read and"
    return f"{count} {'are' if len(problems) > 1 else 'is'} left out, {left} pictures remain; the first: {problems[0]}"


def _numbered_classes(
    labels: np.ndarray, names: Sequence[str] | None, classes: Sequence[str] | None, *, where: str
) -> tuple[list[str], np.ndarray]:
    """Return the classes and the target of each picture. Errors: ValueError for a class that is not given."""
    highest = int(labels.max())
    if highest == UNLABELLED:
        return [] if classes is None else list(classes), labels
    if highest >= MOST_CLASSES:
        raise ValueError(f"{where}: expected numbers of classes, below {MOST_CLASSES}, got {highest}")
    if int(labels.min()) < 0:
        raise ValueError(f"{where}: expected a class for every picture or for none, got some with and some without")
    if names is None or (classes is not None and list(names) == [str(k) for k in range(len(names))]):
        own = [str(number) for number in range(highest + 1)] if classes is None else list(classes)
        if highest >= len(own):
            raise ValueError(
                f"{where}: the classes run to {highest}, expected numbers below {len(own)}, as the classifier has them"
            )
        return own, labels
    if classes is None:
        return list(names), labels
    places = {name: place for place, name in enumerate(classes)}
    if unknown := [names[label] for label in np.unique(labels) if names[label] not in places]:
        raise ValueError(
            f"{where} has classes that the given list lacks: {', '.join(unknown[:5])}; expected some of the "
            f"{len(classes)} classes {', '.join(list(classes)[:5])} ..."
        )
    table = np.array([places.get(name, UNLABELLED) for name in names])
    return list(classes), table[labels]
