"""A study's own part of the report: the paper's table over seeds, a figure of its axis, area against LE, findings.

Read from study.json (which explainers make a row, what is claimed) and the rows; needs no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from salmask.files import ANYTHING, JSON, NUMBER, Facts, read_json
from salmask.report.charts import line_chart, scatter_chart
from salmask.report.checks import Checks, ChecksPart, checks_part
from salmask.report.claims import StudyRow, findings, row_notes, rows_of
from salmask.report.sheet import MAP_ALONE, picture_sheet
from salmask.report.tables import Summary, interval_text, number
from salmask.rows.read import Rows, file_name
from salmask.rows.statistics import Interval
from salmask.rows.trainings import compare_rows, score_interval

__all__ = ["OVER", "STRIP", "StudyPart", "picture_strip", "read_study", "study_part"]

FILE, STRIP = "study.json", "strip.jpg"
_SHAPE = {
    "name": str,
    "title": str,
    "rows": [{"name": str, "members": [str], "variant?": ANYTHING, "place?": NUMBER, "line?": (str, type(None))}],
    "claims": [{"text": str, "row": str, "against": str, "metric": str}],
    "tuning?": {str: [{"variant": {str: ANYTHING}, "le": NUMBER}]},
    "failed?": {str: str},
}
COLUMNS = ("om", "le", "f1", "sm", "pxap:boxes", "mask_mean", "acc_whole", "acc_kept", "acc_removed")
RELEASED = ":as_released"  # what the name of a metric ends in where the released protocol was asked for
OVER = "over images and trainings together; of one training, over images: of this masker, not of its recipe"
_SIDE, _GAP, _LINE = 72, 4, 12  # pixels of a picture in the strip, between two of them, of a line of text


@dataclass(frozen=True)
class StudyPart:
    """What the page shows of a study. cells: row -> column -> interval over images, and trainings if several."""

    name: str
    columns: list[str]
    cells: dict[str, dict[str, Interval]]
    rows: dict[str, StudyRow]
    findings: list[str]
    figures: list[tuple[str, Figure]]
    notes: list[str]
    checks: ChecksPart | None = None

    def markdown(self) -> str:
        """Return table, findings, checks and notes as a GitHub text."""
        lines = [f"| {' | '.join(['row', 'trainings', *self.columns])} |", f"|---|---:|{'---:|' * len(self.columns)}"]
        for name, cells in self.cells.items():
            row = self.rows[name]
            label = name.replace("|", "/") + (f" ({row.mark})" if row.mark else "")
            texts = [_cell(cells[column]) for column in self.columns]
            lines.append(f"| {' | '.join([label, str(row.trainings or '–'), *texts])} |")
        lines += ["", f"[low, high]: 95 %, {OVER}.", ""]
        lines += [f"- {text}" for text in (*self.findings, *self.notes)]
        text = "\n".join(lines) + "\n"
        return text if self.checks is None else f"{text}\n{self.checks.markdown()}"


def read_study(folder: Path) -> JSON | None:
    """Return study.json, None where there is none. Errors: ValueError for a file that is no study."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    study: JSON = read_json(path, _SHAPE, remedy="run the study again")
    rows = {row["name"] for row in study["rows"]}
    for claim in study["claims"]:
        if absent := {claim["row"], claim["against"]} - rows:
            raise ValueError(f"{path}, claims: expected rows of the study, got {sorted(absent)}: run the study again")
    return study


def study_part(
    study: Facts,
    rows: Rows,
    counts: Mapping[str, Facts],
    summary: Summary,
    checks: Checks | None = None,
) -> StudyPart:
    """Return table, findings, figures and checks of a study; counts: as `summarize` takes them."""
    members = rows_of(study, rows)
    by_name = {column.name: column for column in summary.columns}
    columns = [name for plain in COLUMNS for name in (plain, plain + RELEASED) if name in by_name]
    cells = {
        name: {column: _within(_interval(row, column, rows, counts), by_name[column].range) for column in columns}
        for name, row in members.items()
    }
    directions = {name: column.direction for name, column in by_name.items()}
    checked = None if checks is None else checks_part(checks)
    return StudyPart(
        name=study["name"],
        columns=columns,
        cells=cells,
        rows=members,
        findings=[*findings(study["claims"], members, rows, directions), *(checked.findings if checked else ())],
        figures=[*_figures(study, cells), *(checked.figures if checked else ())],
        notes=[*row_notes(members, rows), *_notes(study)],
        checks=checked,
    )


def _interval(row: StudyRow, column: str, rows: Rows, counts: Mapping[str, Facts]) -> Interval:
    """Return the mean of a row over its trainings, of scores by image or of the set; NaN where a training has none."""
    if all(column in rows.values[one] for one in row.members):
        values = np.stack([rows.values[one][column] for one in row.members], axis=1)
        return compare_rows((row.name, values)).interval
    entries = [counts[one][column] for one in row.members if column in counts.get(one, {})]
    if len(entries) < len(row.members):
        return Interval(math.nan, math.nan, math.nan, 0)
    scores, replicates = [one["score"] for one in entries], [one["replicates"] for one in entries]
    return score_interval(scores, replicates, n=len(entries[0]["ids"]), key=row.name)


def _within(interval: Interval, bounds: Sequence[object]) -> Interval:
    """Return an interval cut at the ends of its metric's range, of which the spread between trainings knows nothing."""
    low, high = (end if isinstance(end, int | float) else None for end in bounds)
    if math.isnan(interval.low):
        return interval
    return replace(
        interval,
        low=interval.low if low is None else max(interval.low, low),
        high=interval.high if high is None else min(interval.high, high),
    )


def picture_strip(folder: Path, study: Facts) -> Image.Image | None:
    """Return the first training's maps of every row, one column each, over 24 pictures; None without pictures."""
    columns = {
        row["name"]: {path.stem: path for path in (folder / "pictures" / file_name(row["members"][0])).glob("*.png")}
        for row in study["rows"]
    }
    return picture_sheet(columns, count=24, side=_SIDE, panels=MAP_ALONE)


def _figures(study: Facts, cells: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, Figure]]:
    figures = []
    axis = study.get("axis")
    error = next((name for name in ("le", "le" + RELEASED) if any(name in row for row in cells.values())), "le")
    label = f"{error.upper() if error == 'le' else error}, down is better"
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for row in study["rows"]:
        if row.get("place") is not None and error in cells[row["name"]]:
            lines.setdefault(row.get("line") or "LE", []).append((float(row["place"]), cells[row["name"]][error]))
    if axis and lines:
        chart = line_chart(
            {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()},
            x=axis["x"],
            y=label,
            log_x=axis["log_x"],
            reference={name: cells[name][error].mean for name in axis["reference"] if name in cells},
            ticks={float(position): text for position, text in axis["ticks"]} or None,
        )
        figures.append((f"Localization error along the study's axis. Intervals of 95 %, {OVER}.", chart))
    points = {
        name: (row["mask_mean"].mean, row[error])
        for name, row in cells.items()
        if {"mask_mean", error} <= row.keys() and row[error].mean > 0 and not math.isnan(row["mask_mean"].mean)
    }
    if len(points) > 1:
        chart = scatter_chart(points, x="mean of the mask", y=label, size=(9.6, 5.4), legend=True)
        figures.append((f"Area against localization error: every row of the table. Intervals of 95 %, {OVER}.", chart))
    return figures


def _notes(study: Facts) -> list[str]:
    notes = []
    for name, tried in study.get("tuning", {}).items():
        scores = "; ".join(f"{_weights(one['variant'])}: {number(one['le'])}" for one in tried)
        notes.append(f"Tuned {name} on boxes of held-out training images, LE by candidate: {scores}.")
    notes += [f"Failed: {name} ({reason})." for name, reason in study.get("failed", {}).items()]
    return notes


def _weights(variant: Facts) -> str:
    """Return a candidate by its area weights, which is what candidates differ in."""
    pairs = [*variant.get("terms", ()), *variant.get("weights", ())]
    areas = [f"{name} {weight:g}" for name, weight in pairs if name.startswith("area")]
    return ", ".join(areas) or json.dumps(variant)


def _cell(interval: Interval) -> str:
    return f"{number(interval.mean)} {interval_text(interval)}".strip()
