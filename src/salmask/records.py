"""The files of an `--out`: one line per image, explainer and metric, and how an interrupted run goes on.

    rows.jsonl                       {"image", "explainer", "metric", "value"}; null: no finite value
    counts/<explainer>/<metric>.npz  ids (N,), counts (N, ...), score, replicates (R,): set-level scores
    meta.json                        settings: explainers, metrics, data, classifier, command, version
    failures.jsonl                   {"image", "explainer", "error"}

The rows of one image and explainer are one *block* of consecutive lines. A block is complete or it is done
again: a killed run leaves at most one incomplete block, at the end, which the next run cuts off. While a run
is going on, counts lie in `<metric>.journal` (a line of JSON, then records of equal size), written before the
rows they belong to. Needs numpy alone.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from salmask.statistics import count_replicates

__all__ = [
    "Rows",
    "Writer",
    "agree_on_meta",
    "file_name",
    "read_counts",
    "read_lines",
    "read_meta",
    "read_rows",
]

ROWS, META, FAILURES, COUNTS = "rows.jsonl", "meta.json", "failures.jsonl", "counts"
_MADE_AT = {"command", "version", "notes"}  # may differ between the runs that fill one folder


def file_name(name: str) -> str:
    """Return a name of an image or explainer as one file name: `a/b.jpg` -> `a__b.jpg`."""
    return name.replace("/", "__").replace("\\", "__")


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number, end of the line in bytes, object) of a JSON-lines file.

    Errors: ValueError that names file and line, for a line that is no JSON object.
    """
    end = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            end += len(line)
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict) or not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object and a line end, got {line[:60]!r}: "
                    "delete the line, or evaluate again to fill the gap"
                )
            yield number, end, value


def _row(path: Path, number: int, line: Mapping[str, Any]) -> tuple[str, str, str, float]:
    try:
        value = line["value"]
        return (
            str(line["explainer"]),
            str(line["image"]),
            str(line["metric"]),
            math.nan if value is None else float(value),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}, line {number}: expected image, explainer, metric and a number or null as value, "
            f"got {dict(line)}: delete the line, or evaluate again"
        ) from error


def read_meta(folder: Path) -> dict[str, Any]:
    """Return meta.json; empty where there is none. Errors: ValueError for a file that is no JSON object."""
    path = folder / META
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object, got {error}: evaluate again") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(meta).__name__}: evaluate again")
    return meta


def agree_on_meta(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write meta.json and return it, joined with the explainers of earlier runs in this folder.

    Errors: ValueError that names the setting, where an earlier run had another one.
    """
    asked: dict[str, Any] = json.loads(json.dumps(dict(meta)))  # what a later run will read back
    earlier = read_meta(folder)
    for key in sorted((earlier.keys() | asked.keys()) - _MADE_AT - {"explainers"} if earlier else ()):
        if earlier.get(key) != asked.get(key):
            raise ValueError(_differs(folder, key, earlier.get(key), asked.get(key)))
    explainers = dict(earlier.get("explainers", {}))
    for name, settings in asked.get("explainers", {}).items():
        if explainers.setdefault(name, settings) != settings:
            raise ValueError(_differs(folder, f"explainer {name}", explainers[name], settings))
    joined = asked | {"explainers": explainers}
    write_json(folder / META, joined)
    return joined


def _differs(folder: Path, what: str, earlier: object, asked: object) -> str:
    if isinstance(earlier, dict) and isinstance(asked, dict):  # name the entry, not the whole table
        keys = [key for key in sorted(earlier.keys() | asked.keys()) if earlier.get(key) != asked.get(key)]
        earlier = {key: earlier.get(key) for key in keys[:3]}
        asked = {key: asked.get(key) for key in keys[:3]}
    return (
        f"{folder} holds rows of another setting of '{what}': there {str(earlier)[:300]}, now "
        f"{str(asked)[:300]}; choose another --out or delete that folder"
    )


@dataclass(frozen=True)
class Rows:
    """Rows as columns over one sorted list of images: explainer -> metric -> (images,), NaN where absent."""

    ids: list[str]
    values: dict[str, dict[str, Float[ndarray, " images"]]]
    present: dict[str, Bool[ndarray, " images"]]  # the explainer has rows of this image
    metrics: list[str]  # in the order of their first row

    @property
    def explainers(self) -> list[str]:
        """Names in the order of their first row."""
        return list(self.values)


def read_rows(folder: Path) -> Rows:
    """Read rows.jsonl; of two rows of the same image, explainer and metric the later one counts.

    Errors: ValueError for no file, no row, or a broken line (file and line named).
    """
    path = folder / ROWS
    if not path.exists():
        raise ValueError(f"expected {ROWS} in {folder}, found none: name the --out of evaluate, score or study")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, _, line in read_lines(path):
        explainer, image, metric, value = _row(path, number, line)
        found.setdefault(explainer, {}).setdefault(metric, {})[image] = value
    if not found:
        raise ValueError(f"expected rows in {path}, found an empty file: evaluate again")
    ids = sorted({image for table in found.values() for column in table.values() for image in column})
    place = {image: i for i, image in enumerate(ids)}
    values: dict[str, dict[str, ndarray]] = {}
    present = {}
    for explainer, table in found.items():
        present[explainer] = np.zeros(len(ids), dtype=bool)
        values[explainer] = {}
        for metric, column in table.items():
            at = [place[image] for image in column]
            values[explainer][metric] = np.full(len(ids), np.nan)
            values[explainer][metric][at] = list(column.values())
            present[explainer][at] = True
    metrics = list(dict.fromkeys(metric for table in values.values() for metric in table))
    return Rows(ids, values, present, metrics)


def read_counts(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return explainer -> metric -> {ids, score, replicates} of every set-level score in the folder.

    The counts themselves stay on disk. Errors: ValueError that names a file that cannot be read.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted((folder / COUNTS).glob("*/*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                entry = {"ids": file["ids"].tolist(), "score": float(file["score"])}
                entry["replicates"] = np.asarray(file["replicates"])
                names = str(file["explainer"]), str(file["metric"])
        except Exception as error:  # zip, key and value errors alike mean: not one of our files
            raise ValueError(f"{path}: cannot be read as counts ({error}): evaluate again") from error
        tables.setdefault(names[0], {})[names[1]] = entry
    return tables


class Failures:
    """Appends to failures.jsonl. Entries of the explainers at hand are dropped first: they are tried again."""

    def __init__(self, folder: Path, explainers: Iterable[str]) -> None:
        self.path = folder / FAILURES
        self.path.touch()
        _cut_partial_line(self.path)
        again = set(explainers)
        kept = [line for _, _, line in read_lines(self.path) if line.get("explainer") not in again]
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        self.path.write_text(lines, encoding="utf-8")

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

    Errors: ValueError for a broken line or an incomplete block that is not the last one.
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
        _cut_partial_line(path)
        os.truncate(path, _complete_blocks(path, set(self.metrics), self.done))
        self._finished = {name: set(images) for name, images in self.done.items()}
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
            with path.open("ab") as file:
                if not file.tell():
                    file.write(_header(stack, explainer, metric))
                file.write(np.ascontiguousarray(stack).tobytes())
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()


def _cut_partial_line(path: Path) -> None:
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
        explainer, image, metric, _ = _row(path, number, line)
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


def _records(path: Path, images: int) -> tuple[dict[str, Any], ndarray]:
    """Return the header of a journal and its first records, mapped, not read."""
    with path.open("rb") as file:
        about = json.loads(file.readline())
        start = file.tell()
    shape = (images, *about["shape"])
    return about, np.memmap(path, dtype=np.dtype(about["dtype"]), mode="r", offset=start, shape=shape)


def _reopen(journal: Path, images: int) -> None:
    """Make the journal hold exactly the records of the complete blocks, from the .npz file if need be."""
    finished = journal.with_suffix(".npz")
    if not journal.exists() and finished.exists():
        with np.load(finished, allow_pickle=False) as file:
            counts = file["counts"]
            header = _header(counts, str(file["explainer"]), str(file["metric"]))
        draft = journal.with_name(journal.name + ".part")
        draft.write_bytes(header + np.ascontiguousarray(counts).tobytes())
        draft.replace(journal)
    try:
        _, records = _records(journal, images)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{journal}: expected counts of {images} images, as rows.jsonl has; delete this --out"
        ) from error
    size = records.nbytes + records.offset  # type: ignore[attr-defined]
    del records
    os.truncate(journal, size)


def _close(journal: Path, ids: Sequence[str], compute: Callable[[ndarray], float]) -> None:
    about, counts = _records(journal, len(ids))
    order = np.argsort(np.asarray(ids), kind="stable")  # resumed or not, the same file comes out
    ordered = np.asarray(counts)[order]
    score, replicates = count_replicates(ordered, compute)
    draft = journal.with_suffix(".part.npz")
    np.savez_compressed(
        draft,
        ids=np.asarray(ids)[order],
        counts=ordered,
        score=score,
        replicates=replicates,
        explainer=about["explainer"],
        metric=about["metric"],
    )
    del counts
    draft.replace(journal.with_suffix(".npz"))
    journal.unlink()
