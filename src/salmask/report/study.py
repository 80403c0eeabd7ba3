"""A study's own part of the report: the paper's table over seeds, a figure of its axis, area against LE, findings.

Read from study.json (which explainers make a row, what is claimed) and the rows; needs no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from salmask.report.charts import line_chart, scatter_chart
from salmask.report.checks import Checks, ChecksPart, checks_part
from salmask.report.sheet import MAP_ALONE, picture_sheet
from salmask.report.tables import Summary, number, spread, table
from salmask.rows import statistics
from salmask.rows.read import Rows, file_name
from salmask.rows.schema import ANYTHING, NUMBER, read_json
from salmask.rows.statistics import Interval

__all__ = ["STRIP", "StudyPart", "picture_strip", "read_study", "study_part"]

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
_OVER = "over trainings where there are several, else over images"
_SIDE, _GAP, _LINE = 72, 4, 12  # pixels of a picture in the strip, between two of them, of a line of text


@dataclass(frozen=True)
class StudyPart:
    """What the page shows of a study. cells: row -> column -> interval; over seeds where there are several."""

    name: str
    columns: list[str]
    cells: dict[str, dict[str, Interval]]
    seeds: dict[str, int]
    findings: list[str]
    figures: list[tuple[str, Figure]]
    notes: list[str]
    checks: ChecksPart | None = None

    def markdown(self) -> str:
        """Return table, findings, checks and notes as a GitHub text."""
        lines = [f"| {' | '.join(['row', 'seeds', *self.columns])} |", f"|---|---:|{'---:|' * len(self.columns)}"]
        for name, row in self.cells.items():
            texts = [_cell(row[column]) for column in self.columns]
            lines.append(f"| {' | '.join([name.replace('|', '/'), str(self.seeds[name]), *texts])} |")
        lines += ["", f"[low, high]: 95 %, {_OVER}.", ""]
        lines += [f"- {text}" for text in (*self.findings, *self.notes)]
        text = "\n".join(lines) + "\n"
        return text if self.checks is None else f"{text}\n{self.checks.markdown()}"


def read_study(folder: Path) -> dict[str, Any] | None:
    """Return study.json, None where there is none. Errors: ValueError for a file that is no study."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    study: dict[str, Any] = read_json(path, _SHAPE, remedy="run the study again")
    rows = {row["name"] for row in study["rows"]}
    for claim in study["claims"]:
        if absent := {claim["row"], claim["against"]} - rows:
            raise ValueError(f"{path}, claims: expected rows of the study, got {sorted(absent)}: run the study again")
    return study


def study_part(study: Mapping[str, Any], rows: Rows, summary: Summary, checks: Checks | None = None) -> StudyPart:
    """Return table, findings, figures and checks of a study."""
    members = {row["name"]: row["members"] for row in study["rows"]}
    known = {column.name: column for column in summary.columns}
    columns = [name for plain in COLUMNS for name in (plain, plain + RELEASED) if name in known]
    scores = {
        name: {metric: interval.mean for metric, interval in found.items()} for name, found in summary.intervals.items()
    }
    cells = table(scores, columns, members)
    for name, runs in members.items():
        if len(runs) == 1:  # one training says nothing of others: what is left is the spread over images
            found = summary.intervals.get(runs[0], {})
            cells[name] = {column: found.get(column, cells[name][column]) for column in columns}
        cells[name] = {column: _within(one, known[column].range) for column, one in cells[name].items()}
    directions = {name: column.direction for name, column in known.items()}
    findings = [_finding(claim, members, rows, directions) for claim in study["claims"]]
    checked = None if checks is None else checks_part(checks)
    return StudyPart(
        name=study["name"],
        columns=columns,
        cells=cells,
        seeds={name: len(runs) for name, runs in members.items()},
        findings=[*(text for text in findings if text), *(checked.findings if checked else ())],
        figures=[*_figures(study, cells), *(checked.figures if checked else ())],
        notes=_notes(study),
        checks=checked,
    )


def _within(interval: Interval, bounds: Sequence[object]) -> Interval:
    """Return an interval cut at the ends of its metric's range: Student's knows of none."""
    low, high = (end if isinstance(end, int | float) else None for end in bounds)
    if math.isnan(interval.low):
        return interval
    return replace(
        interval,
        low=interval.low if low is None else max(interval.low, low),
        high=interval.high if high is None else min(interval.high, high),
    )


def picture_strip(folder: Path, study: Mapping[str, Any]) -> Image.Image | None:
    """Return the first training's maps of every row, one column each, over 24 pictures; None without pictures."""
    columns = {
        row["name"]: {path.stem: path for path in (folder / "pictures" / file_name(row["members"][0])).glob("*.png")}
        for row in study["rows"]
    }
    return picture_sheet(columns, count=24, side=_SIDE, panels=MAP_ALONE)


def _finding(
    claim: Mapping[str, str], members: Mapping[str, Sequence[str]], rows: Rows, directions: Mapping[str, str]
) -> str:
    """Return what the numbers say of a claim: paired over images, and over trainings where both rows have several."""
    metric = claim["metric"]
    first, second = ([rows.values[one][metric] for one in members[claim[side]]] for side in ("row", "against"))
    paired = statistics.difference(
        (claim["row"], np.mean(first, axis=0)), (claim["against"], np.mean(second, axis=0))
    ).interval
    intervals = [paired]
    text = f"{number(paired.mean)} {spread(paired)} over {paired.n} images"
    if min(len(first), len(second)) > 1:
        ends = _welch([float(np.nanmean(one)) for one in first], [float(np.nanmean(one)) for one in second])
        intervals.append(ends)
        text += f", {spread(ends)} over {len(first)} and {len(second)} trainings"
    else:
        text += f", {len(first)} and {len(second)} trainings; the spread between trainings is not in it"
    sign = 1 if directions.get(metric) == "up" else -1
    if all(sign * (one.low if sign > 0 else one.high) > 0 for one in intervals):
        verdict = "confirmed"
    elif all(sign * (one.high if sign > 0 else one.low) < 0 for one in intervals):
        verdict = "the reverse is seen"
    else:
        verdict = "not told apart"
    means = [float(np.nanmean(np.mean(one, axis=0))) for one in (first, second)]
    return (
        f"{claim['text']}: {verdict}. {claim['row']} has {metric} {number(means[0])}, {claim['against']} "
        f"{number(means[1])}; difference {text}."
    )


def _welch(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the difference of two means over trainings with Welch's t interval."""
    mean = float(np.mean(first) - np.mean(second))
    if max(np.ptp(first), np.ptp(second)) < 1e-9:
        return Interval(mean, mean, mean, min(len(first), len(second)))
    ends = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return Interval(mean, float(ends.low), float(ends.high), min(len(first), len(second)))


def _figures(study: Mapping[str, Any], cells: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, Figure]]:
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
            ticks={float(place): text for place, text in axis["ticks"]} or None,
        )
        figures.append((f"Localization error along the study's axis. Intervals of 95 %, {_OVER}.", chart))
    points = {
        name: (row["mask_mean"].mean, row[error])
        for name, row in cells.items()
        if {"mask_mean", error} <= row.keys() and row[error].mean > 0 and not math.isnan(row["mask_mean"].mean)
    }
    if len(points) > 1:
        chart = scatter_chart(points, x="mean of the mask", y=label, size=(9.6, 5.4), legend=True)
        figures.append((f"Area against localization error: every row of the table. Intervals of 95 %, {_OVER}.", chart))
    return figures


def _notes(study: Mapping[str, Any]) -> list[str]:
    notes = []
    for name, tried in study.get("tuning", {}).items():
        told = "; ".join(f"{_weights(one['variant'])}: {number(one['le'])}" for one in tried)
        notes.append(f"Tuned {name} on boxes of held-out training images, LE by candidate: {told}.")
    notes += [f"Failed: {name} ({reason})." for name, reason in study.get("failed", {}).items()]
    return notes


def _weights(variant: Mapping[str, Any]) -> str:
    """Return a candidate by its area weights, which is what candidates differ in."""
    pairs = [*variant.get("terms", ()), *variant.get("weights", ())]
    areas = [f"{name} {weight:g}" for name, weight in pairs if name.startswith("area")]
    return ", ".join(areas) or json.dumps(variant)


def _cell(interval: Interval) -> str:
    return f"{number(interval.mean)} {spread(interval)}".strip()
