"""The files of an `--out`: one line per image, explainer and metric, and how an interrupted run goes on.

    rows.jsonl                       {"image", "explainer", "metric", "value"}; null: no finite value
    rows.jsonl.gz                    the same, packed: read where there is no rows.jsonl, never appended to
    counts/<explainer>/<metric>.npz  ids (N,), counts (N, ...), score, replicates (R,): set-level scores
    meta.json                        settings: explainers, metrics, data, classifier, command, version
    failures.jsonl                   {"image", "explainer", "error"}

Read here, appended by `writer`. Needs numpy alone.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

__all__ = [
    "COUNTS",
    "FAILURES",
    "PACKED",
    "ROWS",
    "Rows",
    "agree_on_meta",
    "file_name",
    "parse_row",
    "read_counts",
    "read_lines",
    "read_meta",
    "read_rows",
    "write_json",
]

ROWS, META, FAILURES, COUNTS = "rows.jsonl", "meta.json", "failures.jsonl", "counts"
PACKED = ROWS + ".gz"
_MADE_AT = {"command", "version", "notes", "left_out"}  # may differ between the runs that fill one folder


def file_name(name: str) -> str:
    """Return a name of an image or explainer as one file name: `a/b.jpg` -> `a__b.jpg`."""
    return name.replace("/", "__").replace("\\", "__")


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number, end of the line in unpacked bytes, object) of a JSON-lines file, packed where it ends in .gz.

    Errors: ValueError that names file and line, for a line that is no JSON object.
    """
    number = end = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.readlines(1 << 20):
            for line, value in zip(chunk, _parse(path, number, chunk), strict=True):
                number += 1
                end += len(line)
                yield number, end, value


def _parse(path: Path, before: int, chunk: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the objects of some lines, parsed as one list: several times as fast as one by one."""
    try:
        values = json.loads(b"[" + b",".join(chunk) + b"]")
    except ValueError:
        values = []
    if len(values) == len(chunk) and all(type(value) is dict for value in values) and chunk[-1].endswith(b"\n"):
        return values
    return [_parse_line(path, before + place, line) for place, line in enumerate(chunk, start=1)]


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not line.endswith(b"\n"):
        raise ValueError(
            f"{path}, line {number}: expected one JSON object and a line end, got {line[:60]!r}: "
            "delete the line, or evaluate again to fill the gap"
        )
    return value


def parse_row(path: Path, number: int, line: Mapping[str, Any]) -> tuple[str, str, str, float]:
    """Return (explainer, image, metric, value), null as NaN. Errors: ValueError naming file and line."""
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
    """Write meta.json and return it, joined with the explainers and the commands of earlier runs in this folder.

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
    commands = [str(meta["command"]) for meta in (earlier, asked) if meta.get("command")]
    if commands:  # one a line, each once
        joined["command"] = "\n".join(dict.fromkeys(line for told in commands for line in told.splitlines()))
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
    """Read rows.jsonl or rows.jsonl.gz; of two rows of the same image, explainer and metric the later one counts.

    Errors: ValueError for no file, no row, or a broken file or line (named).
    """
    path = folder / ROWS if (folder / ROWS).exists() else folder / PACKED
    if not path.exists():
        raise ValueError(f"expected {ROWS} in {folder}, found none: name the --out of evaluate, score or study")
    found: dict[str, dict[str, dict[str, float]]] = {}
    try:
        for number, _, line in read_lines(path):
            explainer, image, metric, value = parse_row(path, number, line)
            found.setdefault(explainer, {}).setdefault(metric, {})[image] = value
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}): evaluate again") from error
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
