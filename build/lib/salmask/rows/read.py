"""The files of an `--out`: one line per image, explainer and metric, and how an interrupted run goes on.

    rows.jsonl                       {"image", "explainer", "metric", "value"}; null: no finite value
    counts/<explainer>/<metric>.npz  ids (N,), counts (N, ...), score, replicates (R,): set-level scores
    meta.json                        settings: explainers, metrics, data, classifier, command, version
    failures.jsonl                   {"image", "explainer", "error"}

Read here, appended by `write`. Needs numpy alone.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from salmask.files import ANYTHING, JSON, NUMBER, Facts, check_shape, read_json, regular_file, replace_file

__all__ = [
    "ARCHIVE",
    "COUNTS",
    "FAILURES",
    "META",
    "ROWS",
    "Rows",
    "agree_on_meta",
    "file_name",
    "parse_row",
    "read_counts",
    "read_failures",
    "read_lines",
    "read_meta",
    "read_rows",
    "write_json",
]

ROWS, META, FAILURES, COUNTS = "rows.jsonl", "meta.json", "failures.jsonl", "counts"
ARCHIVE = "rows.tar.xz"  # all of it as one file: `archive`
_LONGEST = 120  # characters of a file name, before what is added to it
_AGAIN = "evaluate again"
_META_SHAPE = {
    "explainers?": {str: {"kind?": str, "settings?": ANYTHING, "truth?": bool}},
    "metrics?": {
        str: {
            "direction?": str,
            "protocol?": {str: ANYTHING},
            "source?": str,
            "range?": [(*NUMBER, str)],  # "inf" in files of earlier versions
        }
    },
    "left_out?": {str: str},
    "notes?": [str],
    "command?": (str, type(None)),
}
_FAILURE_SHAPE = {"image": str, "explainer": str, "error": str}
_MADE_AT = {"command", "version", "notes", "left_out"}  # may differ between the runs that fill one folder


def file_name(name: str) -> str:
    """Return a name of an image, explainer or metric as one file name that every system takes: `[A-Za-z0-9._=-]` only.

    `a/b.jpg` -> `a__b.jpg`. Where something is lost (`pxap:boxes`, blanks, a name that holds `__` itself, a very long
    one) eight digits of the name's hash follow, so that two names are two files.
    """
    folded = re.sub(r"[^A-Za-z0-9._=-]+", "_", name.replace("\\", "/").replace("/", "__"))[:_LONGEST]
    folded = f"_{folded}" if folded[:1] in (".", "") else folded  # neither hidden, nor this folder or the one above
    if folded.replace("__", "/") == name:
        return folded
    return f"{folded}-{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=4).hexdigest()}"


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_lines(path: Path) -> Iterator[tuple[int, int, JSON]]:
    """Yield (line number, end of the line in unpacked bytes, object) of a JSON-lines file.

    Errors: ValueError that names file and line, for a line that is no JSON object.
    """
    number = end = 0
    regular_file(path, "rows, a JSON object a line")
    with path.open("rb") as file:
        while chunk := file.readlines(1 << 20):
            for line, value in zip(chunk, _parse(path, number, chunk), strict=True):
                number += 1
                end += len(line)
                yield number, end, value


def _parse(path: Path, before: int, chunk: Sequence[bytes]) -> list[JSON]:
    """Return the objects of some lines, parsed as one list: several times as fast as one by one."""
    try:
        values = json.loads(b"[" + b",".join(chunk) + b"]")
    except (ValueError, RecursionError):
        values = []
    if len(values) == len(chunk) and all(type(value) is dict for value in values) and chunk[-1].endswith(b"\n"):
        return values
    return [_parse_line(path, before + number, line) for number, line in enumerate(chunk, start=1)]


def _parse_line(path: Path, number: int, line: bytes) -> JSON:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not line.endswith(b"\n"):
        raise ValueError(
            f"{path}, line {number}: expected one JSON object and a line end, got {line[:60]!r}: "
            "delete the line, or evaluate again to fill the gap"
        )
    return value


def parse_row(path: Path, number: int, line: Facts) -> tuple[str, str, str, float]:
    """Return (explainer, image, metric, value), null as NaN. Errors: ValueError naming file and line."""
    value = line.get("value", "")
    names = line.get("explainer"), line.get("image"), line.get("metric")
    if value is None and all(type(name) is str for name in names):
        return (*names, math.nan)  # type: ignore[return-value]
    if type(value) not in (int, float) or not all(type(name) is str for name in names) or not _finite(value):
        raise ValueError(
            f"{path}, line {number}: expected image, explainer, metric and a finite number or null as value, "
            f"got {str(dict(line))[:120]}: delete the line, or evaluate again"
        )
    return (*names, float(value))  # type: ignore[return-value]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def read_failures(folder: Path) -> list[dict[str, str]]:
    """Return the entries of failures.jsonl; none where there is no file. Errors: ValueError naming file and line."""
    path = folder / FAILURES
    entries = []
    for number, _, line in read_lines(path) if path.exists() else ():
        check_shape(f"{path}, line {number}", line, _FAILURE_SHAPE, remedy="delete the line")
        entries.append(line)
    return entries


def read_meta(folder: Path) -> JSON:
    """Return meta.json; empty where there is none. Errors: ValueError naming a field that is not what it should be."""
    path = folder / META
    if not path.exists():
        return {}
    meta: JSON = read_json(path, _META_SHAPE, remedy=_AGAIN)
    return meta


def agree_on_meta(folder: Path, meta: Facts) -> JSON:
    """Write meta.json and return it, joined with the explainers and the commands of earlier runs in this folder.

    Errors: ValueError that names the setting, where an earlier run had another one; and for rows that are packed.
    """
    if (folder / ARCHIVE).exists() and not (folder / ROWS).exists():
        raise ValueError(f"{folder} holds packed rows: unpack them to add some, `tar -xf {ARCHIVE}` there")
    asked: JSON = json.loads(json.dumps(dict(meta)))  # what a later run will read back
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
        joined["command"] = "\n".join(dict.fromkeys(line for text in commands for line in text.splitlines()))
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

    Errors: ValueError for no file, no row, or a broken file or line (named).
    """
    path = folder / ROWS
    if not path.exists():
        raise ValueError(f"expected {ROWS} in {folder}, found none: name the --out of evaluate, score or study")
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for number, _, line in read_lines(path):
        explainer, image, metric, value = parse_row(path, number, line)
        tables.setdefault(explainer, {}).setdefault(metric, {})[image] = value
    if not tables:
        raise ValueError(f"expected rows in {path}, found an empty file: evaluate again")
    ids = sorted({image for table in tables.values() for column in table.values() for image in column})
    position = {image: i for i, image in enumerate(ids)}
    values: dict[str, dict[str, ndarray]] = {}
    present = {}
    for explainer, table in tables.items():
        present[explainer] = np.zeros(len(ids), dtype=bool)
        values[explainer] = {}
        for metric, column in table.items():
            at = [position[image] for image in column]
            values[explainer][metric] = np.full(len(ids), np.nan)
            values[explainer][metric][at] = list(column.values())
            present[explainer][at] = True
    metrics = list(dict.fromkeys(metric for table in values.values() for metric in table))
    return Rows(ids, values, present, metrics)


def read_counts(folder: Path) -> dict[str, dict[str, JSON]]:
    """Return explainer -> metric -> {ids, score, replicates} of every set-level score in the folder.

    The counts themselves stay on disk. Errors: ValueError that names a file that cannot be read.
    """
    tables: dict[str, dict[str, JSON]] = {}
    for path in sorted((folder / COUNTS).glob("*/*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, replicates = file["ids"], np.asarray(file["replicates"], dtype=np.float64)
                entry = {"ids": [str(one) for one in ids.tolist()], "score": float(file["score"])}
                names = str(file["explainer"]), str(file["metric"])
            if ids.ndim != 1 or replicates.ndim != 1 or not len(replicates):
                raise ValueError(f"ids are {ids.shape} and replicates {replicates.shape}, each must be a list")
        except Exception as error:  # zip, key and value errors alike mean: not one of our files
            raise ValueError(f"{path}: cannot be read as counts ({error}): evaluate again") from error
        tables.setdefault(names[0], {})[names[1]] = entry | {"replicates": replicates}
    return tables
