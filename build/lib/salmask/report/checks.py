"""A study's sanity checks in the report: curves along randomised modules, a table of similarities, what they say.

Read from checks.json, one row an explainer, check, step and similarity, with one value an image; needs no torch.

    check "classifier, cascading" and the like    step: the module, from the last to the first
    check "maps"                                  step: the explainer that is compared, on the same picture
                                                  or, as the yardstick, on "another picture"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy import ndarray
from scipy import stats

from salmask.files import NUMBER, read_json
from salmask.report.charts import steps_chart
from salmask.report.tables import interval_text, number
from salmask.rows import statistics
from salmask.rows.read import file_name
from salmask.rows.statistics import Interval

__all__ = ["Checks", "ChecksPart", "checks_part", "read_checks"]

FILE, STRIPS = "checks.json", "checks"
NAMES = {"spearman": "Spearman", "spearman_off_half": "Spearman of abs(0.5 − m)", "hog": "HOG", "ssim": "SSIM"}
_SHAPE = {"rows": [{"explainer": str, "check": str, "step": str, "similarity": str, "values": [NUMBER]}]}
_MAPS, _OTHER = "maps", ", another picture"
_MAIN = "spearman"


@dataclass(frozen=True)
class Checks:
    """Values (images,) by explainer, check, step and similarity, in the order of the file; NaN: no similarity."""

    values: Mapping[tuple[str, str, str, str], ndarray]
    strips: Sequence[Path] = ()

    def steps(self, explainer: str, check: str) -> list[str]:
        """Return the steps of a check, in their order."""
        return list(dict.fromkeys(key[2] for key in self.values if key[:2] == (explainer, check)))

    def interval(self, explainer: str, check: str, step: str, similarity: str) -> Interval:
        """Return the mean over images with its bootstrap interval."""
        return _interval(self.values.get((explainer, check, step, similarity), np.full(1, np.nan)))


@dataclass(frozen=True)
class ChecksPart:
    """What the page shows: columns and rows of the table, sentences, figures, strips with their captions."""

    columns: list[str]
    cells: dict[str, dict[str, Interval]]
    findings: list[str]
    figures: list[tuple[str, Figure]]
    strips: list[tuple[str, Path]]

    def markdown(self) -> str:
        """Return the table as a GitHub text."""
        lines = [f"| {' | '.join(['how alike the maps are', *self.columns])} |", f"|---|{'---:|' * len(self.columns)}"]
        for name, row in self.cells.items():
            texts = [f"{number(row[column].mean)} {interval_text(row[column])}".strip() for column in self.columns]
            lines.append(f"| {' | '.join([name.replace('|', '/'), *texts])} |")
        lines += ["", "1: equal maps. [low, high]: 95 %, over images. –: not defined, because maps are constant."]
        return "\n".join(lines) + "\n"


def read_checks(folder: Path) -> Checks | None:
    """Return the checks of a folder, None where there are none. Errors: ValueError for a file of something else."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    rows = read_json(path, _SHAPE, remedy="run the study again")["rows"]
    values = {
        (row["explainer"], row["check"], row["step"], row["similarity"]): np.array(row["values"], dtype=np.float64)
        for row in rows
    }
    return Checks(values, sorted((Path(folder) / STRIPS).glob("*.png")))


def checks_part(checks: Checks) -> ChecksPart:
    """Return table, sentences, figures and strips."""
    columns = [name for name in NAMES if any(key[3] == name for key in checks.values)]
    asked = list(dict.fromkeys(key[:2] for key in checks.values))
    cells: dict[str, dict[str, Interval]] = {}
    findings: list[str] = []
    for explainer, check in asked:
        steps = checks.steps(explainer, check)
        if check == _MAPS:
            shown = {f"{explainer} and {step}": step for step in steps}
        elif check.endswith("cascading"):
            shown = {f"{explainer}, all of its {check.split(',')[0]} randomised": steps[-1]}
            findings.append(_falls(checks, explainer, check))
        else:
            continue
        for label, step in shown.items():
            cells[label] = {NAMES[name]: checks.interval(explainer, check, step, name) for name in columns}
    findings += [
        _related(checks, explainer, step)
        for explainer, check in asked
        if check == _MAPS
        for step in checks.steps(explainer, check)
        if not step.endswith(_OTHER)
    ]
    names = {file_name(explainer): explainer for explainer, _ in asked}
    strips = [(_caption(path.stem, names), path) for path in checks.strips]
    return ChecksPart([NAMES[name] for name in columns], cells, findings, _figures(checks, columns), strips)


def _falls(checks: Checks, explainer: str, check: str) -> str:
    """Say whether similarity falls from module to module: by the rank correlation of the two within each image.

    The untouched map, of similarity 1, is the first point. An image whose map stays as it is to the end has
    correlation 0; a map that is constant has no similarity, and no say from there on.
    """
    steps = checks.steps(explainer, check)
    table = np.stack([checks.values[explainer, check, step, _MAIN] for step in steps])
    trend = _interval(np.array([_trend(column) for column in np.vstack([np.ones(table.shape[1]), table]).T]))
    what = check.split(",")[0]
    verdict = "confirmed" if trend.high < 0 else "the reverse is seen" if trend.low > 0 else "not told apart"
    means = [_interval(row) for row in table]
    below = next((index for index, one in enumerate(means) if one.high < 0.5), None)
    text = (
        f"Similarity falls as the {what} is randomised: {verdict} for the maps of {explainer}. Spearman "
        f"is {_cell(means[0])} after {steps[0]} and {_cell(means[-1])} after all {len(steps)} modules; its rank "
        f"correlation with their number is {_cell(trend)} over {trend.n} images."
    )
    if below is not None:
        text += f" It is surely below one half from {steps[below]} on (module {below + 1})."
    if missing := int(np.isnan(table[-1]).sum()):
        text += f" {missing} of {table.shape[1]} maps are constant at the end and have no rank correlation."
    return text + _against_chance(checks, explainer, table[-1])


def _against_chance(checks: Checks, explainer: str, last: ndarray) -> str:
    """Say how the last step compares with maps of other pictures."""
    chance = checks.values.get((explainer, _MAPS, f"{explainer}{_OTHER}", _MAIN))
    if chance is None or np.isnan(last).all():
        return ""
    apart = statistics.difference(("last", last), ("chance", chance)).interval
    words = "surely more alike than" if apart.low > 0 else "no more alike than"
    return f" In the end the maps are {words} those of two pictures ({_cell(_interval(chance))}): {_cell(apart)}."


def _related(checks: Checks, explainer: str, step: str) -> str:
    """Say whether two explainers' maps of one picture are more alike than their maps of two pictures."""
    same = checks.values[explainer, _MAPS, step, _MAIN]
    other = checks.values[explainer, _MAPS, f"{step}{_OTHER}", _MAIN]
    if np.isnan(same).all():
        return f"Maps of {explainer} and {step} are unrelated: those of one of them are constant."
    apart = statistics.difference((explainer, same), (step, other)).interval
    verdict = "alike" if apart.low > 0 else "not told from unrelated maps"
    text = (
        f"Maps of {explainer} and {step} are {verdict}: Spearman {_cell(_interval(same))}, of two pictures "
        f"{_cell(_interval(other))}; difference {_cell(apart)} over {apart.n} images."
    )
    again = [one for one in checks.steps(explainer, _MAPS) if _row(one) == _row(explainer) and not one.endswith(_OTHER)]
    if _row(step) != _row(explainer) and again:
        twice = checks.values[explainer, _MAPS, again[0], _MAIN]
        less = statistics.difference((step, same), (again[0], twice)).interval
        words = "surely less alike" if less.high < 0 else "not surely less alike"
        text += f" They are {words} than two trainings of {_row(explainer)}: difference {_cell(less)}."
    return text


def _caption(stem: str, names: Mapping[str, str]) -> str:
    """Return "a/b, masker, cascading" of "a__b__masker_cascading"; names: file name -> explainer."""
    explainer, _, check = stem.rpartition("__")
    shown = names.get(explainer, explainer)
    return f"{shown}, {check.replace('_', ', ')}: maps from the untouched to the last module"


def _row(explainer: str) -> str:
    """Return the row that a training belongs to."""
    return explainer.rpartition(" #")[0] or explainer


def _trend(values: ndarray) -> float:
    """Return Spearman's correlation of values with their position; 0 where all are equal, NaN below three of them."""
    numbers = values[~np.isnan(values)]
    if len(numbers) < 3:
        return float("nan")
    if np.ptp(numbers) == 0:
        return 0.0
    return float(stats.spearmanr(np.arange(len(numbers)), numbers).statistic)


def _figures(checks: Checks, columns: Sequence[str]) -> list[tuple[str, Figure]]:
    """Return one figure a check: a panel a similarity, a line an explainer, dashed the maps of two pictures."""
    kinds: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for explainer, check in dict.fromkeys(key[:2] for key in checks.values):
        if check != _MAPS:
            kinds.setdefault((check, tuple(checks.steps(explainer, check))), []).append(explainer)
    figures = []
    for (check, steps), explainers in kinds.items():
        first = ("untouched",) if check.endswith("cascading") else ()
        panels = {
            NAMES[name]: {
                one: (
                    [Interval(1.0, 1.0, 1.0, 0) for _ in first]
                    + [checks.interval(one, check, step, name) for step in steps],
                    checks.interval(one, _MAPS, f"{one}{_OTHER}", name).mean,
                )
                for one in explainers
            }
            for name in columns
        }
        chart = steps_chart(panels, steps=(*first, *steps), y="similarity to the untouched map")
        caption = f"Weights of the {check}. Bands: 95 % over images. Dashed: the untouched maps of two pictures."
        figures.append((caption, chart))
    return figures


def _interval(values: ndarray) -> Interval:
    count = int((~np.isnan(values)).sum())
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, len(values))
    replicates = statistics.mean_replicates(values[:, None])[:, 0]
    return statistics.as_interval(float(np.nanmean(values)), replicates, n=count, missing=len(values) - count)


def _cell(interval: Interval) -> str:
    return f"{number(interval.mean)} {interval_text(interval)}".strip()
