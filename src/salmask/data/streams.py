"""Streams of batches, and data sets made out of data sets: subsets, splits, shuffled labels, a cache.

The training stream is a pure function of (data set, batch size, seed): seeded permutations, one per pass
over the data, laid end to end and cut into batches. Item j of the stream belongs to pass j // n, so passes
are counted exactly, no batch is partial, and batch k is known without drawing the k before it. The
augmentation of an image is drawn from a generator keyed by (seed, pass, index). So a run that resumes at
batch k, or runs with other workers, reads the bits that the uninterrupted run would have read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from salmask.data.numbered import Brought, Numbered
from salmask.data.sample import Batch, Labelled, Sample, SampleTransform, no_boxes, unpack_samples
from salmask.data.streamed import Streamed
from salmask.data.unreadable import Met, UnreadableError, counted, packed_of, read_at
from salmask.draws import draw_from, seed_of, undisturbed

__all__ = [
    "MOST_PROCESSES",
    "WHOLE",
    "Cached",
    "DataStream",
    "Share",
    "Subset",
    "cached",
    "evaluation_batches",
    "numbered_batches",
    "shuffled_labels",
    "split_off",
    "spread",
    "subset",
    "training_batches",
]

GIB = 2**30
MOST_PROCESSES = 256
"""Of one kind on a machine: more are meant by nobody, and would leave it without memory."""


@dataclass(frozen=True)
class Share:
    """The part of the work of process number `rank`, of `count`."""

    rank: int = 0
    count: int = 1

    def check(self, batch_size: int, dataset: Labelled) -> None:
        """Raise ValueError where a process would have nothing to do, or there is none."""
        if self.count < 1:
            raise ValueError("expected at least one device and one node (--devices, --nodes), got fewer")
        if batch_size % self.count:
            raise ValueError(
                f"a batch of {batch_size} pictures cannot be split evenly over {self.count} processes: give a multiple "
                f"of {self.count} (--batch-size)"
            )
        if isinstance(dataset, Numbered) and dataset.shards is not None and dataset.shards < self.count:
            raise ValueError(
                f"{self.count} processes for {dataset.shards} shards: write more shards, or start fewer processes"
            )


WHOLE = Share()
"""Of one process alone."""


def training_batches(
    dataset: Labelled,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    augment: SampleTransform | None = None,
    workers: int = 0,
    share: Share = WHOLE,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Return the endless stream of training batches from batch `start` on.

    Batch k holds the items k * batch_size ... (k + 1) * batch_size - 1 of the concatenated permutations; n
    / batch_size batches are one pass. `augment` comes after the data set's own transform and may draw from
    torch's global generator. Neither `start` nor `workers` changes a bit of a batch. Where the evidence is stays
    behind: a training batch has pictures and labels, but no box and no pixel mask. Of several processes, each reads
    its `share` of every batch: together they read what one would. device: where pictures and labels are wanted; to an
    accelerator they go as bytes, from pinned memory, while earlier ones are computed on. Errors: ValueError for an
    empty data set, a batch size below 1, a negative start, fewer pictures in a batch, or shards, than processes.
    """
    if len(dataset) == 0:
        raise ValueError("the data set is empty: expected at least one image to train on")
    _check_stream(batch_size, workers)
    if start < 0:
        raise ValueError(f"expected start >= 0, got {start}")
    share.check(batch_size, dataset)
    order = dataset.order if isinstance(dataset, Numbered) else None
    keys = numbered_batches(len(dataset), batch_size=batch_size, seed=seed, start=start, order=order, share=share)
    if isinstance(dataset, Streamed):
        keys = dataset.bring_drawn(keys, seed)
    return _loaded(_Keyed(dataset, seed=seed, augment=augment), keys, workers=workers, device=device)


def _check_stream(batch_size: int, workers: int) -> None:
    if batch_size < 1:
        raise ValueError(f"expected at least one picture a batch (batch_size), got {batch_size}")
    if not 0 <= workers <= MOST_PROCESSES:
        raise ValueError(f"workers, processes that read pictures, are 0 to {MOST_PROCESSES}; got {workers}")


def evaluation_batches(
    dataset: Labelled, *, batch_size: int, workers: int = 0, share: Share = WHOLE
) -> Iterator[Batch]:
    """Return every sample once, in order; the last batch may be smaller. Errors: ValueError, batch size below 1.

    Of several processes, each reads its `share` of the batches: number r, r + R, r + 2 R ... A batch lacks what is
    passed over (`unreadable`), and may be empty.
    """
    _check_stream(batch_size, workers)
    starts = range(share.rank * batch_size, len(dataset), share.count * batch_size)
    keys = [list(range(start, min(start + batch_size, len(dataset)))) for start in starts]
    return _loaded(_Each(dataset), _brought(dataset, keys), workers=workers)


def _brought(dataset: Labelled, batches: Iterable[list[int]]) -> Iterable[list[int]]:
    """Return batches of numbers; those of a stream, or of some of its pictures, bring their bytes."""
    if isinstance(dataset, Streamed):
        return dataset.bring(batches)
    if not isinstance(dataset, Subset):
        return batches
    kept, below = tee(batches)
    found = _brought(dataset.dataset, ([dataset.indices[index] for index in batch] for batch in below))
    return ([_with(index, one) for index, one in zip(*pair, strict=True)] for pair in zip(kept, found, strict=True))


def _with(index: int, bringing: int) -> int:
    """Return a number with the bytes that another one brings, if it does."""
    return Brought(index, bringing.held) if isinstance(bringing, Brought) else index


class Subset(Dataset[Sample]):
    """Chosen samples of another data set, in the given order, under given targets, seen through a transform.

    `indices` (n,) choose, `targets` (n,) replace the targets, `classes` names them; by default all are the data set's
    own. `transform` comes after the data set's own.
    """

    def __init__(
        self,
        dataset: Labelled,
        indices: Sequence[int] | None = None,
        *,
        targets: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        transform: SampleTransform | None = None,
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self.indices = [int(index) for index in (range(len(dataset)) if indices is None else indices)]
        self.targets = [dataset.targets[index] for index in self.indices] if targets is None else list(targets)
        self.classes = list(dataset.classes if classes is None else classes)
        self.ids = [dataset.ids[index] for index in self.indices]
        if len(self.targets) != len(self.indices):
            raise ValueError(f"expected one target an image: {len(self.indices)}, got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = replace(self.dataset[_with(self.indices[index], index)], target=self.targets[index])
        return sample if self.transform is None else self.transform(sample)


class Cached(Dataset[Sample]):
    """A data set whose samples stay in memory, decoded, as far as `limit` bytes reach; none that is passed over."""

    def __init__(self, dataset: Labelled, *, limit: int) -> None:
        self.dataset = dataset
        self.classes, self.targets, self.ids = dataset.classes, dataset.targets, dataset.ids
        self._samples: list[Sample | None] = []
        left = limit
        for index in range(len(dataset)):
            sample = read_at(dataset, index).sample
            if sample is not None:
                left -= sample.image.nbytes + (0 if sample.pixels is None else sample.pixels.nbytes)
            if left < 0:
                break
            self._samples.append(sample)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        kept = self._samples[index] if 0 <= index < len(self._samples) else None
        return self.dataset[index] if kept is None else kept


def cached(dataset: Labelled, *, limit: int = 4 * GIB) -> Cached:
    """Decode every sample once, now, and keep it: for small pictures that are read many times.

    Samples beyond `limit` bytes are decoded on each use. Workers share the memory. Do not cache a data set
    whose own transform is random: each sample would be drawn once.
    """
    return Cached(dataset, limit=limit)


def subset(
    dataset: Labelled,
    *,
    seed: int,
    per_class: int | None = None,
    classes: int | Sequence[str] | None = None,
) -> Subset:
    """Choose `per_class` images of each class, or some of the classes, or both.

    A number of `classes` are drawn with the seed of those that have images, names are taken as given; targets count
    the chosen classes in their old order. Subsets are nested: with one seed, 2 a class are among 5 a class. Order is
    that of the data set.
    Errors: ValueError for a class with fewer images, an unknown class, a number out of range.
    """
    members = _members(dataset)
    shown = [label for label, own in enumerate(members) if own]  # a network may know classes without a picture here
    chosen = _chosen_classes(dataset.classes, classes, shown, seed=seed)
    if per_class is not None and per_class < 1:
        raise ValueError(f"expected at least one image a class, got per_class={per_class}")
    indices = sorted(
        index for label in chosen for index in _drawn(dataset, members[label], label, count=per_class, seed=seed)
    )
    renumbered = {label: number for number, label in enumerate(chosen)}
    return Subset(
        dataset,
        indices,
        targets=[renumbered[dataset.targets[index]] for index in indices],
        classes=[dataset.classes[label] for label in chosen],
    )


def split_off(dataset: Labelled, *, per_class: int, seed: int) -> tuple[Subset, Subset]:
    """Split into (the rest, `per_class` images of each class): the held-out part is for tuning.

    Errors: ValueError for a class that has fewer images.
    """
    held = set(subset(dataset, per_class=per_class, seed=seed).indices)
    rest = [index for index in range(len(dataset)) if index not in held]
    return Subset(dataset, rest), Subset(dataset, sorted(held))


def shuffled_labels(dataset: Labelled, *, seed: int) -> Subset:
    """Give every image an independent, uniformly drawn class: the data randomisation test.

    Drawn with replacement, not permuted, so that a label says nothing about its image.
    Source: Adebayo et al., 2018; Phang, Park & Geras, 2020.
    """
    drawn = np.random.default_rng(seed).integers(len(dataset.classes), size=len(dataset))
    return Subset(dataset, targets=drawn.tolist())


def _chosen_classes(
    names: Sequence[str], wanted: int | Sequence[str] | None, shown: Sequence[int], *, seed: int
) -> list[int]:
    if wanted is None:
        return [*shown]
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(shown):
            raise ValueError(f"expected 1 to {len(shown)} classes, got {wanted}")
        return sorted(np.random.default_rng(seed).permutation(np.asarray(shown))[:wanted].tolist())
    unknown = sorted(set(wanted) - set(names))
    if unknown or not wanted:
        raise ValueError(f"expected names of the classes {_few(names)}, got {_few(unknown)}")
    return sorted(names.index(name) for name in set(wanted))


def _members(dataset: Labelled) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in dataset.classes]
    for index, target in enumerate(dataset.targets):
        members[target].append(index)
    return members


def _drawn(dataset: Labelled, members: Sequence[int], label: int, *, count: int | None, seed: int) -> Sequence[int]:
    if count is None:
        return members
    if len(members) < count:
        raise ValueError(
            f"class {dataset.classes[label]} has {len(members)} images, expected at least {count}: lower the number "
            "a class"
        )
    return [members[index] for index in np.random.default_rng([seed, label]).permutation(len(members))[:count]]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _permuted(length: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, turn]).permutation(length)


def numbered_batches(
    length: int,
    *,
    batch_size: int,
    seed: int,
    start: int,
    order: Callable[[int, int], np.ndarray] | None = None,
    share: Share = WHOLE,
) -> Iterator[list[tuple[int, int]]]:
    """Yield a process's share of the batches of (pass, index) keys from number `start` on, endlessly.

    order: (seed, pass) -> the indices in the order of that pass; a permutation of all where not given.
    """
    order_of = partial(_permuted, length) if order is None else order
    item = start * batch_size
    indices, turn = np.zeros(0, dtype=int), -1
    while True:
        batch = []
        for _ in range(batch_size):
            if item // length != turn:
                turn = item // length
                indices = order_of(seed, turn)
            batch.append((turn, int(indices[item % length])))
            item += 1
        yield batch[share.rank :: share.count]


class _Each(Dataset[Met]):
    """Samples by index."""

    def __init__(self, dataset: Labelled) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Met:
        return read_at(self.dataset, index)


class _Keyed:
    """Samples by (pass, index), each drawn from its own generator; for one that is passed over, the next stands in."""

    def __init__(self, dataset: Labelled, *, seed: int, augment: SampleTransform | None) -> None:
        self.dataset, self.seed, self.augment = dataset, seed, augment

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Met]:
        """Return the samples of a batch, as torch's loader asks for them: the generator is put back once for all."""
        seeds = [seed_of(self.seed, *key) for key in keys]  # at once: between pictures, each takes five times as long
        with undisturbed():
            return [self._met(first, seed) for (_, first), seed in zip(keys, seeds, strict=True)]

    def _met(self, first: int, seed: int) -> Met:
        passed: list[str] = []
        for step in range(len(self.dataset)):
            draw_from(seed)
            try:
                index = first if step == 0 else (first + step) % len(self.dataset)
                return Met(self._drawn(index), tuple(passed))
            except UnreadableError as error:
                passed.append(str(error))
        raise ValueError(f"none of {len(passed)} pictures can be read; the first: {passed[0]}")

    def _drawn(self, index: int) -> Sample:
        sample = self.dataset[index]
        if not sample.bare:
            sample = replace(sample, boxes=no_boxes(), pixels=None)
        return sample if self.augment is None else self.augment(sample)


def _loaded(
    dataset: Any, keys: Iterable[list[Any]], *, workers: int, device: torch.device | None = None
) -> Iterator[Batch]:
    # Any: torch asks for its own Dataset with indices, a `Labelled` is none and `_Keyed` has pairs
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=packed_of,
        num_workers=workers,
        pin_memory=device is not None and device.type == "cuda",
        # A generator of its own: the loader draws a seed, which must not come out of the caller's stream.
        generator=torch.Generator().manual_seed(0),
    )
    with counted() as count:
        for packed, passed in loader:
            count.add(passed)
            batch = Batch.empty() if packed is None else unpack_samples(packed, device)
            del packed  # its bytes are reused for the next batch, not held beside it
            yield batch
            del batch


Batches: TypeAlias = Callable[[int], Iterable[Batch]]
"""Number -> the training batches from that number on, endless and the same at every call."""

Bar = Callable[[Iterable[Any]], Iterable[Any]]  # Any: items of one kind, which a callable cannot say


def spread(dataset: Labelled, count: int | None) -> Labelled:
    """Return `count` samples of a data set, evenly spread over it; all of them for None. Errors: ValueError below 1."""
    if count is not None and count < 1:
        raise ValueError(f"expected at least one picture (limit, --limit), got {count}")
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, [int(index) for index in np.linspace(0, len(dataset) - 1, count)])


class DataStream:
    """A data set in batches, in order, or a process's share; can be read again and again, and knows its length."""

    def __init__(self, dataset: Labelled, batch_size: int, *, workers: int = 0, share: Share = WHOLE) -> None:
        _check_stream(batch_size, workers)
        self.dataset, self.batch_size, self.workers, self.share = dataset, batch_size, workers, share

    def __iter__(self) -> Iterator[Batch]:
        return evaluation_batches(self.dataset, batch_size=self.batch_size, workers=self.workers, share=self.share)

    def shared(self, share: Share) -> "DataStream":
        """Return a process's share of the batches."""
        return DataStream(self.dataset, self.batch_size, workers=self.workers, share=share)

    def __len__(self) -> int:
        return -(-(-(-len(self.dataset) // self.batch_size) - self.share.rank) // self.share.count)
