"""Appending to an `--out`, and taking up what a killed run has left there; the files are those of `read`.

The rows of one image and explainer are one *block* of consecutive lines. A block is complete or it is done
again: a killed run leaves at most one incomplete block, at the end, which the next run cuts off. While a run
is going on, counts lie in `<metric>.journal` (a line of JSON, then records of equal size), written before the
rows they belong to; at the end they become .npz files, with their bootstrap replicates.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy import ndarray

from salmask.files import JSON, check_shape, replace_file
from salmask.rows.read import COUNTS, FAILURES, ROWS, file_name, parse_row, read_failures, read_lines
from salmask.rows.statistics import count_replicates

__all__ = ["Failures", "Writer", "cut_partial_line"]

_HEADER_SHAPE = {"shape": [int], "dtype": str, "explainer": str, "metric": str}


class Failures:
    """Appends to failures.jsonl. Entries of the explainers at hand are dropped first: they are tried again."""

    def __init__(self, folder: Path, explainers: Iterable[str]) -> None:
        self.path = folder / FAILURES
        self.path.touch()
        cut_partial_line(self.path)
        again = set(explainers)
        kept = [line for line in read_failures(folder) if line["explainer"] not in again]
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        replace_file(self.path, lambda draft: draft.write_text(lines, encoding="utf-8"))

    def add(self, explainer: str, image: str, error: Exception) -> None:
        """Record that an explainer failed on an image."""
        line = {"image": image, "explainer": explainer, "error": str(error)[:500]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@dataclass
class Writer:
    """Appends blocks of rows, and counts beside them, to a folder that may hold an earlier run's.

    metrics: the names every block must have, which is how a complete block is known.
    computes: set-level metric -> counts (N, ...) -> score.
    Use as a context manager: on leaving without an error, counts become .npz files with their replicates.

    Errors: ValueError for a broken line, or an incomplete block that is not the last one.
    """

    folder: Path
    metrics: Sequence[str]
    computes: Mapping[str, Callable[[ndarray], float]] = field(default_factory=dict)
    done: dict[str, list[str]] = field(default_factory=dict, init=False)
    _rows: list[str] = field(default_factory=list, init=False)
    _counts: dict[tuple[str, str], list[ndarray]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ROWS
        path.touch()
        cut_partial_line(path)
        os.truncate(path, _complete_blocks(path, set(self.metrics), self.done))
        self._finished = {name: set(images) for name, images in self.done.items()}
        kept = {self._journal(explainer, metric) for explainer in self.done for metric in self.computes}
        for journal in {*(self.folder / COUNTS).glob("*/*.journal")} - kept:
            journal.unlink()  # killed between its first counts and their rows: they will be counted again
        for explainer in self.done:
            for metric in self.computes:
                _reopen(self._journal(explainer, metric), len(self.done[explainer]))

    def has(self, explainer: str, image: str) -> bool:
        """Return whether the rows of this image are already there."""
        return image in self._finished.get(explainer, ())

    def add(
        self,
        explainer: str,
        image: str,
        values: Mapping[str, float],
        counts: Mapping[str, ndarray] | None = None,
    ) -> None:
        """Hold one block; `flush` writes it. Values that are not finite become null."""
        if missing := set(self.metrics) - values.keys():
            raise ValueError(f"expected values of {sorted(self.metrics)}, missing {sorted(missing)} for {image}")
        self._rows += [
            json.dumps(
                {
                    "image": image,
                    "explainer": explainer,
                    "metric": metric,
                    "value": value if math.isfinite(value) else None,
                },
                ensure_ascii=False,
            )
            for metric, value in values.items()
        ]
        for metric in self.computes:
            self._counts.setdefault((explainer, metric), []).append(np.asarray((counts or {})[metric]))
        self.done.setdefault(explainer, []).append(image)
        self._finished.setdefault(explainer, set()).add(image)

    def flush(self) -> None:
        """Write what is held: counts first, so that rows never stand without their counts."""
        for (explainer, metric), records in self._counts.items():
            path = self._journal(explainer, metric)
            path.parent.mkdir(parents=True, exist_ok=True)
            stack = np.stack(records)
            if not path.exists():
                replace_file(path, partial(Path.write_bytes, data=_header(stack, explainer, metric)))
            kind = _about(path)["dtype"]  # that of the records before, where an earlier version counted in another
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(stack, dtype=kind).tobytes())
        self._counts = {}
        if self._rows:
            with (self.folder / ROWS).open("ab") as file:
                file.write(("\n".join(self._rows) + "\n").encode())
        self._rows = []

    def finish(self) -> None:
        """Write what is held and turn the journals of counts into .npz files."""
        self.flush()
        for explainer, ids in self.done.items():
            for metric, compute in self.computes.items():
                _close(self._journal(explainer, metric), ids, compute)

    def _journal(self, explainer: str, metric: str) -> Path:
        return self.folder / COUNTS / file_name(explainer) / f"{file_name(metric)}.journal"

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()


def cut_partial_line(path: Path) -> None:
    """Cut what follows the last line end: the one line a killed run may leave half written."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        end = file.tell()
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        file.truncate(end)


def _complete_blocks(path: Path, expected: set[str], done: dict[str, list[str]]) -> int:
    """Fill `done` with the images of complete blocks; return where the last of these ends, in bytes."""
    block: tuple[str, str] | None = None
    held: set[str] = set()
    end = before = 0
    for number, stop, line in read_lines(path):
        explainer, image, metric, _ = parse_row(path, number, line)
        if (explainer, image) != block:
            if block is not None and not expected <= held:
                raise ValueError(
                    f"{path}, before line {number}: the rows of image {block[1]} and explainer {block[0]} "
                    f"lack {sorted(expected - held)}: they are of another setting; choose another --out"
                )
            if block is not None:
                done.setdefault(block[0], []).append(block[1])
            block, held, before = (explainer, image), set(), end
        held.add(metric)
        end = stop
    if block is None or not expected <= held:
        return before
    done.setdefault(block[0], []).append(block[1])
    return end


def _header(stack: ndarray, explainer: str, metric: str) -> bytes:
    about = {"shape": stack.shape[1:], "dtype": stack.dtype.str, "explainer": explainer, "metric": metric}
    return (json.dumps(about) + "\n").encode()


def _about(journal: Path) -> JSON:
    """Return the header of a journal. Errors: ValueError for a file of another kind."""
    with journal.open("rb") as file:
        about = json.loads(file.readline())
    check_shape(str(journal), about, _HEADER_SHAPE, remedy="delete this --out")
    return {**about, "dtype": np.dtype(about["dtype"])}


def _records(journal: Path, images: int) -> tuple[JSON, ndarray]:
    """Return the header of a journal and its first records, mapped, not read."""
    about = _about(journal)
    with journal.open("rb") as file:
        file.readline()
        start = file.tell()
    return about, np.memmap(journal, dtype=about["dtype"], mode="r", offset=start, shape=(images, *about["shape"]))


def _reopen(journal: Path, images: int) -> None:
    """Make the journal hold exactly the records of the complete blocks, from the .npz file if need be."""
    finished = journal.with_name(f"{journal.stem}.npz")
    try:
        if not journal.exists() and finished.exists():
            with np.load(finished, allow_pickle=False) as file:
                counts = file["counts"]
                header = _header(counts, str(file["explainer"]), str(file["metric"]))
            content = header + np.ascontiguousarray(counts).tobytes()
            replace_file(journal, lambda draft: draft.write_bytes(content))
        _, records = _records(journal, images)
    except (OSError, ValueError, TypeError, KeyError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{journal}: expected counts of {images} images, as rows.jsonl has ({error}); delete this --out"
        ) from error
    size = records.nbytes + records.offset  # type: ignore[attr-defined]
    del records
    os.truncate(journal, size)


def _close(journal: Path, ids: Sequence[str], compute: Callable[[ndarray], float]) -> None:
    about, counts = _records(journal, len(ids))
    order = np.argsort(np.asarray(ids), kind="stable")  # resumed or not, the same file comes out
    ordered = np.asarray(counts)[order]
    score, replicates = count_replicates(ordered, compute)
    content = {
        "ids": np.asarray(ids)[order],
        "counts": ordered,
        "score": score,
        "replicates": replicates,
        "explainer": about["explainer"],
        "metric": about["metric"],
    }
    del counts
    replace_file(journal.with_name(f"{journal.stem}.npz"), lambda draft: np.savez_compressed(draft, **content))
    journal.unlink()
