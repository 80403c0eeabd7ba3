"""Pictures that cannot be read, passed over where they are met: none is decoded twice to find them.

A data set that was opened with `skip_broken`, and has too many pictures to look at first, raises `UnreadableError` for
one that cannot be decoded. Batches of an evaluation then lack it; in a training the next picture that can be read
stands in, so that every batch has its size, and what a batch holds is still a function of (data, seed, number) alone.
Each is named or counted in a warning.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from salmask.data.sample import Labelled, Packed, Sample, pack_samples

__all__ = ["Met", "UnreadableError", "counted", "first_read", "packed_of", "read_at", "samples_read"]


class UnreadableError(ValueError):
    """A picture that cannot be decoded, of a data set in which such are passed over."""


class Met(NamedTuple):
    """What was found at one place of a batch: a sample, or none, and in words the pictures that were passed over."""

    sample: Sample | None
    passed: tuple[str, ...] = ()


def read_at(dataset: Labelled, index: int) -> Met:
    """Return the sample at a place, or why it is passed over."""
    try:
        return Met(dataset[index])
    except UnreadableError as error:
        return Met(None, (str(error),))


def samples_read(dataset: Labelled) -> Iterator[Sample]:
    """Yield the samples that can be read, in order."""
    return (found for found in (read_at(dataset, index).sample for index in range(len(dataset))) if found is not None)


def first_read(dataset: Labelled) -> Sample:
    """Return the first sample that can be read. Errors: ValueError where none can, or there is none."""
    first = next(samples_read(dataset), None)
    if first is None:
        raise ValueError(f"none of the {len(dataset)} pictures can be read: expected at least one")
    return first


def packed_of(met: Sequence[Met]) -> tuple[Packed | None, list[str]]:
    """Gather the samples of one batch, None where there are none, and what was passed over."""
    samples = [one.sample for one in met if one.sample is not None]
    return (pack_samples(samples) if samples else None), [text for one in met for text in one.passed]


@contextmanager
def counted() -> "Iterator[_Count]":
    """Yield what counts pictures that are passed over: warns of the first at once, of their number at the end."""
    count = _Count()
    try:
        yield count
    finally:
        if len(count.seen) > 1:
            warnings.warn(f"{len(count.seen)} pictures could not be read and were passed over", stacklevel=3)


class _Count:
    def __init__(self) -> None:
        self.seen: set[str] = set()

    def add(self, passed: Iterable[str]) -> None:
        """Count pictures, each once."""
        for text in passed:
            if not self.seen:
                warnings.warn(f"passed over, as are all that cannot be read: {text}", stacklevel=4)
            self.seen.add(text)
