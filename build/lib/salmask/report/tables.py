"""Rows -> means with intervals, the best of each metric, and what cannot be told from it.

Per metric, every explainer is compared with the best one over the images that both have: interval of the paired
difference, p value, Holm's correction for the number of comparisons. An explainer that reads the ground truth
is shown and never ranked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from salmask.files import Facts
from salmask.rows import statistics
from salmask.rows.read import Rows
from salmask.rows.statistics import Difference, Interval

__all__ = ["COST", "Column", "Summary", "interval_text", "markdown", "number", "summarize"]

COST = ("seconds", "passes", "passes_forward", "passes_backward")
_SURE = 0.05
_ARROWS = {"up": " ↑", "down": " ↓"}


@dataclass(frozen=True)
class Column:
    """A metric as the head of a column: its direction and the protocol that its numbers were made by."""

    name: str
    direction: str = "none"
    protocol: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    range: Sequence[float | str | None] = (None, None)  # low, high; None: open
    set_level: bool = False

    @property
    def title(self) -> str:
        """Name with the arrow of the better direction."""
        return self.name + _ARROWS.get(self.direction, "")

    @property
    def details(self) -> str:
        """Everything that its numbers depend on, as one text."""
        low, high = [*self.range, None, None][:2]
        parts = [f"{key}: {value}" for key, value in self.protocol.items()]
        parts += [f"range: {_end(low, '−∞')} to {_end(high, '∞')}"]
        parts += ["score of the whole set, from counts that add up"] if self.set_level else []
        parts += [f"source: {self.source}"] if self.source else []
        return "; ".join(parts)


def _end(value: float | str | None, unbounded: str) -> str:
    """Return an end of a range in words; None and infinite ends are unbounded."""
    return unbounded if value is None or math.isinf(float(value)) else f"{float(value):.3g}".replace("-", "−")


@dataclass(frozen=True)
class Summary:
    """Every number of a report: what summary.json, the page and the sentences are written from."""

    columns: list[Column]
    intervals: dict[str, dict[str, Interval]]  # explainer -> metric
    best: dict[str, str]  # metric -> explainer
    differences: dict[str, list[Difference]]  # metric -> every other ranked explainer minus the best
    unranked: frozenset[str]  # explainers that read the ground truth
    images: int

    def column(self, name: str) -> Column:
        """Return the column of this name."""
        return next(column for column in self.columns if column.name == name)

    def tied(self, metric: str) -> list[str]:
        """Return the explainers whose difference from the best is not sure at 5 % after correction."""
        return [one.first for one in self.differences.get(metric, ()) if not one.adjusted < _SURE]

    def difference(self, explainer: str, metric: str) -> Difference | None:
        """Return an explainer minus the best; None where it is the best, or not compared."""
        return next((one for one in self.differences[metric] if one.first == explainer), None)

    def mark(self, explainer: str, metric: str) -> str:
        """Return "best", "tied" where an explainer is not told from the best, or nothing."""
        if metric in self.differences and explainer in self.tied(metric):
            return "tied"
        return "best" if self.best.get(metric) == explainer else ""

    def degenerate(self) -> dict[str, tuple[int, int]]:
        """Return explainer -> (degenerate maps, maps), of those that have any."""
        columns = {name: table["degenerate"] for name, table in self.intervals.items() if "degenerate" in table}
        return {name: (round(one.mean * one.n), one.n) for name, one in columns.items() if one.mean > 0}

    def mean(self, explainer: str, metric: str) -> float:
        """Return a mean; NaN where there is none."""
        interval = self.intervals.get(explainer, {}).get(metric)
        return math.nan if interval is None else interval.mean

    def as_dict(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """Return {explainer: {metric: {mean, low, high, n}}}."""
        return {
            name: {metric: interval.as_dict() for metric, interval in table.items()}
            for name, table in self.intervals.items()
        }


def summarize(rows: Rows, counts: Mapping[str, Facts], meta: Facts) -> Summary:
    """Return intervals, best and paired differences of everything in rows and counts.

    counts: explainer -> metric -> {ids, score, replicates}, see `records.read_counts`. meta: see meta.json;
    metrics that it does not name are shown without direction and never ranked.
    """
    explainers = [name for name in meta.get("explainers", {}) if name in rows.values]
    explainers += [name for name in rows.explainers if name not in explainers]
    columns = _columns(rows, counts, meta)
    intervals: dict[str, dict[str, Interval]] = {name: {} for name in explainers}
    for column in columns:
        if column.set_level:
            _set_level_intervals(intervals, column.name, counts)
        else:
            _row_intervals(intervals, column.name, rows)
    unranked = frozenset(name for name in explainers if meta.get("explainers", {}).get(name, {}).get("truth"))
    best: dict[str, str] = {}
    differences: dict[str, list[Difference]] = {}
    for column in columns:
        ranked = [name for name in explainers if name not in unranked and column.name in intervals[name]]
        leader = _best(column, {name: intervals[name][column.name].mean for name in ranked})
        if leader is None:
            continue
        best[column.name] = leader
        if column.name not in COST:
            others = [name for name in ranked if name != leader]
            pairs = (
                _count_pairs(column.name, leader, others, counts)
                if column.set_level
                else _row_pairs(column.name, leader, others, rows)
            )
            differences[column.name] = _adjusted(pairs)
    return Summary(columns, intervals, best, differences, unranked, len(rows.ids))


def _columns(rows: Rows, counts: Mapping[str, Facts], meta: Facts) -> list[Column]:
    described = meta.get("metrics", {})
    set_level = {metric for table in counts.values() for metric in table}
    present = set(rows.metrics) | set_level
    names = [name for name in described if name in present]
    names += [name for name in (*rows.metrics, *sorted(set_level)) if name not in names]
    names.sort(key=lambda name: name in COST or name == "degenerate")  # stable: cost to the right
    return [
        Column(
            name,
            described.get(name, {}).get("direction", "none"),
            described.get(name, {}).get("protocol", {}),
            described.get(name, {}).get("source", ""),
            described.get(name, {}).get("range") or (None, None),
            name in set_level,
        )
        for name in dict.fromkeys(names)
    ]


def _row_intervals(intervals: dict[str, dict[str, Interval]], metric: str, rows: Rows) -> None:
    names = [name for name in intervals if metric in rows.values[name]]
    if not names:
        return
    matrix = np.stack([rows.values[name][metric] for name in names], axis=1)
    replicates = statistics.mean_replicates(matrix)
    for index, name in enumerate(names):
        column = matrix[:, index]
        n = int((~np.isnan(column)).sum())
        missing = int(rows.present[name].sum()) - n
        intervals[name][metric] = statistics.as_interval(_mean(column), replicates[:, index], n=n, missing=missing)


def _set_level_intervals(intervals: dict[str, dict[str, Interval]], metric: str, counts: Mapping[str, Facts]) -> None:
    for name in intervals:
        if entry := counts.get(name, {}).get(metric):
            intervals[name][metric] = statistics.as_interval(entry["score"], entry["replicates"], n=len(entry["ids"]))


def _mean(column: ndarray) -> float:
    kept = column[~np.isnan(column)]
    return float(kept[0] + (kept - kept[0]).mean()) if len(kept) else math.nan  # exact for a constant column


def _best(column: Column, means: Mapping[str, float]) -> str | None:
    numbers = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    if column.direction not in _ARROWS or not numbers:
        return None
    return max(numbers, key=lambda name: numbers[name] * (1 if column.direction == "up" else -1))


def _row_pairs(metric: str, leader: str, others: Sequence[str], rows: Rows) -> list[Difference]:
    if not others:
        return []
    matrix = np.stack([rows.values[name][metric] - rows.values[leader][metric] for name in others], axis=1)
    replicates = statistics.mean_replicates(matrix)
    permutations = 9999 if len(matrix) <= 20000 else 1999
    p = statistics.sign_flip(matrix, permutations=permutations)
    result = []
    for index, name in enumerate(others):
        column = matrix[:, index]
        n = int((~np.isnan(column)).sum())
        interval = statistics.as_interval(_mean(column), replicates[:, index], n=n)
        result.append(Difference(name, leader, interval, float(p[index]) if n else math.nan))
    return result


def _count_pairs(metric: str, leader: str, others: Sequence[str], counts: Mapping[str, Facts]) -> list[Difference]:
    """Return differences of set-level scores; NaN where the images differ, as the replicates are then not paired."""
    first = counts[leader][metric]
    result = []
    for name in others:
        entry = counts[name][metric]
        change = entry["score"] - first["score"]
        if entry["ids"] != first["ids"]:
            result.append(Difference(name, leader, Interval(change, math.nan, math.nan, 0), math.nan))
            continue
        replicates = entry["replicates"] - first["replicates"]
        interval = statistics.as_interval(change, replicates, n=len(entry["ids"]))
        result.append(Difference(name, leader, interval, statistics.replicate_p(replicates)))
    return result


def _adjusted(differences: Sequence[Difference]) -> list[Difference]:
    adjusted = statistics.holm([one.p for one in differences])
    return [
        Difference(one.first, one.second, one.interval, one.p, value)
        for one, value in zip(differences, adjusted, strict=True)
    ]


def number(value: float | None, *, cost: bool = False) -> str:
    """Return a score with three decimals, a cost with two to three digits; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif cost:
        text = f"{value:.0f}" if value == round(value) else f"{value:#.2g}" if size < 0.1 else f"{value:.3g}"
    else:
        text = f"{value:.3f}" if size < 100 else f"{value:.1f}"
    if size < 0.001 and size != 0:
        text = f"{value:.1e}".replace("e-0", "e-") if cost else text
    text = text.replace("-0.000", "0.000") if float(text.replace(",", "")) == 0 else text
    return text.replace("-", "−")


def interval_text(interval: Interval, *, cost: bool = False) -> str:
    """Return "[low, high]", nothing where there is no interval."""
    if math.isnan(interval.low):
        return ""
    return f"[{number(interval.low, cost=cost)}, {number(interval.high, cost=cost)}]"


def markdown(
    cells: Mapping[str, Mapping[str, Interval]],
    columns: Sequence[Column],
    *,
    best: Mapping[str, str] | None = None,
    tied: Mapping[str, Sequence[str]] | None = None,
    corner: str = "explainer",
) -> str:
    """Return a GitHub table: rows x columns, mean [low, high]; best bold, ° what cannot be told from it."""
    lines = [
        "| " + " | ".join([corner, *(column.title for column in columns)]) + " |",
        "|" + "|".join(["---", *("---:" for _ in columns)]) + "|",
    ]
    for name, row in cells.items():
        texts = []
        for column in columns:
            interval = row.get(column.name)
            if interval is None:
                texts.append("–")
                continue
            cost = column.name in COST
            text = number(interval.mean, cost=cost)
            text = f"**{text}**" if (best or {}).get(column.name) == name else text
            text += "°" if name in (tied or {}).get(column.name, ()) else ""
            texts.append(text if cost else f"{text} {interval_text(interval)}".strip())
        lines.append("| " + " | ".join([name.replace("|", "\\|"), *texts]) + " |")
    return "\n".join(lines) + "\n"
