"""Sentences from numbers: every claim carries its number, interval and certainty; nothing else is claimed."""

import math
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from salmask.files import Facts
from salmask.report.tables import Summary, interval_text, number
from salmask.rows.statistics import Difference

__all__ = ["describe", "p_text"]

_LISTED = 4


def p_text(p: float) -> str:
    """Return a p value as text."""
    if math.isnan(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _names(names: Sequence[str]) -> str:
    shown = list(names[:_LISTED]) + ([f"{len(names) - _LISTED} more"] if len(names) > _LISTED else [])
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def describe(
    summary: Summary,
    *,
    failures: Sequence[Facts] = (),
    agreement: tuple[Sequence[str], ndarray] | None = None,
    controls: Sequence[str] = (),
) -> list[str]:
    """Return what the numbers say, one sentence or two per metric: best, runner-up, ties, cost, warnings.

    controls: explainers that look at no classifier: their being best says something of the metric, their cost nothing.
    """
    texts = [_overall(summary)]
    texts += [_metric(summary, name) for name in summary.best if summary.differences.get(name)]
    texts += [_uncontrolled(summary, controls), _cost(summary, controls)]
    texts += [_degenerate(summary), _disagreement(agreement)]
    if failures:
        failed = sorted({str(one.get("explainer")) for one in failures})
        one = len(failures) == 1
        what = "1 explanation failed" if one else f"{len(failures)} explanations failed"
        texts.append(f"{what} ({_names(failed)}); {'its image is' if one else 'their images are'} left out there.")
    return [text for text in texts if text]


def _overall(summary: Summary) -> str:
    """Count on how many metrics each explainer is best or not told from the best."""
    tested = [name for name in summary.best if summary.differences.get(name)]
    if len(tested) < 2:
        return ""
    wins: dict[str, int] = {}
    for metric in tested:
        for name in (summary.best[metric], *summary.tied(metric)):
            wins[name] = wins.get(name, 0) + 1
    top = max(wins.values())
    leaders = [name for name, count in wins.items() if count == top]
    if top == len(tested) and len(leaders) == len(set(summary.intervals) - set(summary.unranked)):
        return f"On {summary.images} images none of {len(tested)} ranked metrics tells the explainers apart at 5 %."
    verb = "is" if len(leaders) == 1 else "are each"
    return f"{_names(leaders)} {verb} best, or not told from the best, on {top} of {len(tested)} ranked metrics."


def _metric(summary: Summary, metric: str) -> str:
    leader = summary.best[metric]
    interval = summary.intervals[leader][metric]
    better = "more" if summary.column(metric).direction == "up" else "less"
    text = (
        f"{metric} ({better} is better): {leader} leads with {number(interval.mean)} {interval_text(interval)}".rstrip()
    )
    tied = summary.tied(metric)
    surely = [one for one in summary.differences[metric] if one.first not in tied]
    if surely:
        text += "; " + _runner_up(min(surely, key=lambda one: abs(one.interval.mean)))
    text += "."
    if tied:
        text += f" Not told from it at 5 %: {_names(tied)}."
    return text


def _runner_up(one: Difference) -> str:
    change = one.interval
    low, high = sorted((abs(change.low), abs(change.high)))
    extent = "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"
    behind = f"by {number(abs(change.mean))}{extent} ({p_text(one.adjusted)})"
    return f"the nearest that is surely behind is {one.first}, {behind}"


def _uncontrolled(summary: Summary, controls: Sequence[str]) -> str:
    """Name the metrics on which a map that looks at no classifier is best, or not told from the best."""
    groups = {}
    for metric in summary.differences:
        if among := [name for name in (summary.best[metric], *summary.tied(metric)) if name in controls]:
            groups[metric] = among
    if not groups:
        return ""
    listed = "; ".join(f"{metric}: {_names(among)}" for metric, among in groups.items())
    count = f"{len(groups)} metric{'s' if len(groups) != 1 else ''}"
    return f"Maps that look at no classifier are best, or not told from the best, on {count} ({listed})."


def _cost(summary: Summary, controls: Sequence[str]) -> str:
    left_out = {*summary.unranked, *controls}
    seconds = {
        name: summary.mean(name, "seconds")
        for name in summary.intervals
        if name not in left_out and summary.mean(name, "seconds") > 0 and summary.mean(name, "passes") != 0
    }
    if len(seconds) < 2:
        return ""
    fast, slow = min(seconds, key=lambda n: seconds[n]), max(seconds, key=lambda n: seconds[n])
    time, ratio = number(1000 * seconds[fast], cost=True), number(seconds[slow] / seconds[fast], cost=True)
    text = f"{fast} is the cheapest, {time} ms an image"
    text += f"; {slow} the dearest, {ratio} times as long"
    passes = {name: summary.mean(name, "passes") for name in (fast, slow)}
    if not any(math.isnan(value) for value in passes.values()):
        few, many = number(passes[fast], cost=True), number(passes[slow], cost=True)
        text += f" ({many} passes against {few})"
    return text + "."


def _degenerate(summary: Summary) -> str:
    counts = {name: count for name, (count, _) in summary.degenerate().items()}
    if not counts:
        return ""
    listed = _names([f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1])])
    return f"Degenerate maps (constant, empty or full) are counted like all others: {listed}."


def _disagreement(agreement: tuple[Sequence[str], ndarray] | None) -> str:
    if agreement is None or len(agreement[0]) < 2:
        return ""
    names, matrix = agreement
    upper = np.where(np.triu(np.ones_like(matrix), 1) > 0, matrix, np.nan)
    if np.isnan(upper).all() or np.nanmin(upper) >= 0:
        return ""
    row, column = divmod(int(np.nanargmin(upper)), len(names))
    tau = number(float(upper[row, column]))
    return f"{names[row]} and {names[column]} rank the explainers most unlike each other (Kendall's tau {tau})."
