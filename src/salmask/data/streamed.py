"""Data sets of Hugging Face that are read from where they lie, picture by picture: `hf-dataset:NAME:streaming`.

Nothing is kept on the disk. The parts (files) of the data are looked through once for the classes of their pictures,
which counts them: of parquet files, that column alone is read. After that it is a data set like others by number, with
an order of training that suits a stream: with c_s pictures in part s,

    chain   parts in a drawn order, in groups of `OPEN` that are read in turns, a picture of each
    order   the chain in blocks of `BLOCK` pictures, each block permuted

both functions of (parts, seed, pass). So a batch is known by its number, training goes on inside a pass by opening
`OPEN` parts where they were left, and several processes agree without a word. Bytes are read by the process that asks
for batches and decoded by its workers: each process reads the stream once, however many workers it has.

Differs from the shuffling of `datasets`: a block is permuted whole, where a buffer would let single pictures stay
behind for any time. Source: Lhoest et al., 2021 (Datasets).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from salmask.data.flat import UNLABELLED
from salmask.data.listed import ReadImage
from salmask.data.numbered import Brought, Numbered
from salmask.data.pictures import read_image
from salmask.data.rasters import Held
from salmask.data.sample import SampleTransform
from salmask.data.tables import (
    class_names_in,
    columns_of,
    content_of,
    cut_files,
    left_out,
    load_tables,
    of_split,
    table_spec,
    whole_numbers,
)
from salmask.files import Facts

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["Streamed", "chain", "open_stream"]

Keys: TypeAlias = list[tuple[int, int]]
OPEN, BLOCK = 4, 1000
"""Parts that are read in turns, and pictures that are held and mixed."""
_AT_ONCE = 10_000  # classes


class Streamed(Numbered):
    """The pictures of a data set that is streamed; ids and classes are those of `Table`, whose order of rows it has.

    Errors: as of `Table`; ValueError where the stream breaks off, and where it is no longer what was counted.
    """

    def __init__(
        self,
        spec: str,
        split: str,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: ReadImage = read_image,
    ) -> None:
        from datasets import Image

        self.spec, self.split = table_spec(spec).path, split
        lost = cut_files(table_spec(spec)) if skip_broken else []
        stream = open_stream(spec, split, **left_out(lost))
        image, label = columns_of(stream.features, spec)
        labels, counts = _look_through(spec, split, stream, image, label, **left_out(lost))
        self.image = image
        self._parts = stream.select_columns([image]).cast_column(image, Image(decode=False))
        self._open: dict[int, tuple[int, Iterator[Facts]]] = {}
        self._process = os.getpid()
        super().__init__(
            f"the data set {self.spec!r}",
            labels,
            np.concatenate([[0], np.cumsum(counts)]),
            names=class_names_in(stream.features, label),
            classes=classes,
            transform=transform,
            read=read,
            skip_broken=skip_broken,
            lost=lost,
        )

    def held(self, row: int) -> Held:
        """Return the bytes of a picture: those that it brings, else read from the stream, which rows in order suit."""
        held = row.held if isinstance(row, Brought) else self._read(row)
        if held is None:
            raise ValueError(f"{self._place(row)} has no picture in its column {self.image!r}")
        return held

    def name(self, row: int) -> str:
        """Return the id of a picture."""
        return f"{self.split}/{row:08d}"

    def order(self, seed: int, turn: int) -> np.ndarray:
        """Return the order (N,) of pass number `turn`."""
        generator = np.random.default_rng([seed, turn, 1])
        rows = chain(self.runs, seed, turn)
        return np.concatenate([generator.permutation(rows[at : at + BLOCK]) for at in range(0, len(rows), BLOCK)])

    def bring(self, batches: Iterable[list[int]]) -> Iterator[list[int]]:
        """Yield batches of rows with their bytes, in the order of the rows."""
        for batch in batches:
            yield [Brought(row, self._read(row)) for row in batch]

    def bring_drawn(self, batches: Iterable[Keys], seed: int) -> Iterator[Keys]:
        """Yield batches of (pass, row), in the order of training, with their bytes: a block is read at a time."""
        turn, block, places, rows = -1, -1, np.zeros(0, dtype=int), np.zeros(0, dtype=int)
        held: dict[int, Held | None] = {}
        for batch in batches:
            brought: Keys = []
            for key in batch:
                if key[0] != turn:
                    turn, block, rows = key[0], -1, chain(self.runs, seed, key[0])
                    places = np.empty_like(rows)
                    places[rows] = np.arange(len(rows))
                if places[key[1]] // BLOCK != block:
                    block = int(places[key[1]] // BLOCK)
                    held.clear()
                    held.update((int(row), self._read(int(row))) for row in rows[block * BLOCK : (block + 1) * BLOCK])
                brought.append((turn, Brought(key[1], held[key[1]])))
            yield brought

    def _place(self, row: int) -> str:
        return f"{self.spec}, row {int(row)} of {self.split}"

    def _read(self, row: int) -> Held | None:
        """Return the bytes of a picture, going on in its part where that was left; None where there are none."""
        if os.getpid() != self._process:  # a worker must not share files that are open
            self._open, self._process = {}, os.getpid()
        part = int(np.searchsorted(self.runs, row, side="right")) - 1
        place = row - int(self.runs[part])
        at, rows = self._open.pop(part, (0, None))
        picture = None
        try:
            if rows is None or not at <= place < at + BLOCK:
                at, rows = place, iter(self._parts.shard(num_shards=len(self.runs) - 1, index=part).skip(place))
            for _ in range(place - at + 1):
                picture = next(rows)[self.image]
            content = content_of(picture, _file)
        except StopIteration:
            raise ValueError(f"{self.spec} has changed: it ends before row {row} of {self.split}") from None
        except Exception as error:
            raise ValueError(f"{self._place(row)} cannot be read ({_first_line(error)}): {_AGAIN}") from error
        if place + 1 < self.runs[part + 1] - self.runs[part]:
            self._open[part] = (place + 1, rows)
        while len(self._open) > OPEN:
            self._open.pop(next(iter(self._open)))
        return None if content is None else Held(self._place(row), content)


_AGAIN = "look at the line and the server, then give the same command again, a training with --resume"


def chain(runs: np.ndarray, seed: int, turn: int) -> np.ndarray:
    """Return the rows (N,) in the order in which a pass reads them: parts in drawn groups, read in turns.

    runs: (R + 1,) bounds of the rows of each part.
    """
    drawn = np.random.default_rng([seed, turn]).permutation(len(runs) - 1)
    groups = []
    for start in range(0, len(drawn), OPEN):
        group = drawn[start : start + OPEN]
        rows = np.concatenate([np.arange(runs[part], runs[part + 1]) for part in group])
        places = np.concatenate([np.arange(runs[part + 1] - runs[part]) for part in group])
        groups.append(rows[np.argsort(places, kind="stable")])
    return np.concatenate(groups)


def open_stream(spec: str, split: str, **options: object) -> "IterableDataset":
    """Return a split of the data set that a spec names, as a stream. Errors: as `load_tables` and `of_split`."""
    named = table_spec(spec)
    stream = of_split(load_tables(named, streaming=True, **options), split, where=named.path)
    if stream.features is None:
        try:
            stream = stream._resolve_features()
        except Exception as error:
            raise ValueError(f"{named.path} cannot be read ({_first_line(error)}): {_AGAIN}") from error
    return stream


def _look_through(
    spec: str, split: str, stream: "IterableDataset", image: str, label: str | None, **options: object
) -> tuple[np.ndarray, list[int]]:
    """Return the class of every picture, and the number of pictures of every part.

    Where there are no classes, another column is counted; all of a part is read where that is the pictures themselves.
    """
    column = label or next((name for name in stream.features if name != image), image)
    light = stream.select_columns([column])
    if stream.info.builder_name == "parquet" and column != image:
        light = open_stream(spec, split, columns=[column], **options)
    parts, path = [], table_spec(spec).path
    for number in range(light.num_shards):
        try:
            part = light.shard(num_shards=light.num_shards, index=number).with_format("arrow")
            found = [table.column(column) for table in part.iter(_AT_ONCE)]
        except Exception as error:
            raise ValueError(f"part {number + 1} of {path} cannot be read ({_first_line(error)}): {_AGAIN}") from error
        parts.append([chunk for one in found for chunk in (one.to_pylist() if label else [UNLABELLED] * len(one))])
    labels = [one for part in parts for one in part]
    if not labels:
        raise ValueError(f"the data set {path!r} holds no picture")
    return whole_numbers(labels, column, where=path), [len(part) for part in parts]


def _file(path: str) -> bytes:
    """Return what lies at a path or an address."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
