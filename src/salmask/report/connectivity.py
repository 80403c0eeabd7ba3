"""The report of a study of connectivity: basins, barriers, the cue that maps name, how alike maps are. No torch.

Read from connectivity.json, written by `study.connected`, and the rows beside it, one explainer of one network each.
Every interval is 95 %: over pictures and networks drawn independently (`crossed_replicates`), a pair of networks having
the weight of both; a share of a few networks has Wilson's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy import ndarray
from scipy.stats import binomtest

from salmask.files import JSON, NUMBER, Facts, Maybe, read_json
from salmask.report.charts import heat_chart, line_chart
from salmask.report.tables import interval_text, number
from salmask.rows.read import Rows, file_name
from salmask.rows.statistics import Interval, as_interval, crossed_replicates

__all__ = ["ConnectivityPart", "PlainTable", "connectivity_part", "read_connectivity"]

FILE = "connectivity.json"
_INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "n": int}
_SHAPE = {
    "title": str,
    "points": [(int, float)],
    "fresh_statistics": bool,
    "pictures": {str: int},
    "cues": [str],
    "ids": [str],
    "networks": [{"name": str, "accuracy": _INTERVAL, "says": {str: [int]}}],
    "paths": [{"ends": [int], "barrier": _INTERVAL, "gap": _INTERVAL, "values": {str: [NUMBER]}}],
    "clusters": [int],
    "silhouette": Maybe((int, float)),
    "explainers": [str],
    "similarity": {str: {str: {"pairs": [[NUMBER]], "other": [[NUMBER]]}}},
}
_BY = ("lift", "share", "drop")
_MEASURES = {"spearman": "Spearman", "ssim": "SSIM"}
_ALONG = {"loss": "loss", "accuracy": "accuracy", "kept": "kept accuracy", "removed": "removed accuracy"}
WITHIN, BETWEEN = "within a cluster", "between clusters"


@dataclass(frozen=True)
class PlainTable:
    """A table of texts: a title, a sentence on how to read it, the head, the lines."""

    title: str
    caption: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as a GitHub text."""
        title = self.title if self.title.endswith("?") else f"{self.title}."
        lines = [f"**{title}** {self.caption}", "", f"| {' | '.join(self.head)} |"]
        lines.append(f"|---|{'---:|' * (len(self.head) - 1)}")
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in self.lines]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ConnectivityPart:
    """What the page shows: sentences, tables, figures with captions, sheets of maps with captions."""

    findings: Sequence[str]
    tables: Sequence[PlainTable]
    figures: Sequence[tuple[str, Figure]]
    sheets: Sequence[tuple[str, Path]]

    def markdown(self) -> str:
        """Return findings and tables as a GitHub text."""
        return "\n".join([*(f"- {text}" for text in self.findings), "", *(one.markdown() for one in self.tables)])


def read_connectivity(folder: Path) -> JSON | None:
    """Return connectivity.json, None where there is none. Errors: ValueError for a file of something else."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    study: JSON = read_json(path, _SHAPE, remedy="run the study again")
    size = len(study["networks"])
    pairs = [list(pair) for pair in combinations(range(size), 2)]
    if [one["ends"] for one in study["paths"]] != pairs or len(study["clusters"]) != size:
        raise ValueError(
            f"{path}: expected a path for each two of {size} networks, and a cluster for each: run it again"
        )
    return study


def connectivity_part(study: Facts, rows: Rows, folder: Path) -> ConnectivityPart:
    """Return findings, tables and figures of a study; folder: where its sheets of maps lie."""
    view = _View(study, rows)
    answers = {name: view.answer(name) for name in study["explainers"]} if view.cues else {}
    sheets = [
        (_SHEET.format(name), path)
        for name in study["explainers"]
        if (path := folder / f"maps_{file_name(name)}.jpg").is_file()
    ]
    tables = [_network_table(view), _gap_table(view)]
    if answers:
        tables.append(_answer_table(view, answers))
    tables += [_similarity_table(view), _line_table(view)]
    return ConnectivityPart(
        [*_findings(view), *_answers_said(view, answers), *_alike_said(view)], tables, _figures(view), sheets
    )


_SHEET = (
    "Maps of {}: a row is a picture whose cues are in conflict (of val, where the data has none), a column a network, "
    "cluster by cluster. Mask in colour over the image, outline where it exceeds its mean."
)


@dataclass(frozen=True)
class _Answer:
    """How far an explainer's maps agree with what networks follow: by network, three ways, and by picture."""

    right: Mapping[str, Sequence[bool]]
    fooled: Sequence[str]
    by_picture: Interval

    def share(self, by: str) -> tuple[int, int]:
        return sum(self.right[by]), len(self.right[by])


class _View:
    """The study, with what is counted in several places."""

    def __init__(self, study: Facts, rows: Rows) -> None:
        self.study, self.rows = study, rows
        self.names = [one["name"] for one in study["networks"]]
        self.cues: list[str] = list(study["cues"])
        self.labels = np.array(study["clusters"])
        self.pairs = [tuple(one["ends"]) for one in study["paths"]]
        self.inside = np.array([self.labels[a] == self.labels[b] for a, b in self.pairs])
        order = {image: place for place, image in enumerate(study["ids"])}
        self.order = [order[image] for image in rows.ids if image in order]
        self.says = [
            {cue: np.array(one["says"][cue], float)[self.order] for cue in self.cues} for one in study["networks"]
        ]
        self.follows = [self._followed(one) for one in self.says] if self.cues else [None] * len(self.names)

    def _followed(self, says: Mapping[str, ndarray]) -> str | None:
        means = sorted(((float(values.mean()), cue) for cue, values in says.items()), reverse=True)
        return means[0][1] if means[0][0] > means[1][0] else None

    def over(self, kind: str) -> list[int]:
        """Return the pairs within a cluster, or between two."""
        return [int(place) for place in np.flatnonzero(self.inside == (kind == WITHIN))]

    def over_pairs(self, values: ndarray, chosen: Sequence[int]) -> Interval:
        """Return the mean of values (pictures, pairs) over chosen pairs, with its interval over both."""
        if not chosen:
            return Interval(np.nan, np.nan, np.nan, 0)
        some = values[:, list(chosen)]
        replicates = crossed_replicates(some, [self.pairs[place] for place in chosen], networks=len(self.names))
        return as_interval(_mean(some), replicates, n=len(chosen), missing=int(np.isnan(some).sum()))

    def difference(self, values: ndarray) -> Interval:
        """Return within minus between, on shared resamples of pictures and networks."""
        kinds = [self.over(kind) for kind in (WITHIN, BETWEEN)]
        if not all(kinds):
            return Interval(np.nan, np.nan, np.nan, 0)
        parts = [(values[:, chosen], [self.pairs[place] for place in chosen]) for chosen in kinds]
        size = len(self.names)
        ours, theirs = (crossed_replicates(some, members, networks=size) for some, members in parts)
        return as_interval(_mean(parts[0][0]) - _mean(parts[1][0]), ours - theirs, n=len(self.pairs))

    def along(self, name: str, chosen: Sequence[int]) -> list[Interval]:
        """Return the mean of what was measured at each point over pairs, with its interval over pairs."""
        table = np.array([self.study["paths"][place]["values"][name] for place in chosen], dtype=float)
        return [self.over_pairs(self._spread(column, chosen), chosen) for column in table.T]

    def _spread(self, column: ndarray, chosen: Sequence[int]) -> ndarray:
        whole = np.full((1, len(self.pairs)), np.nan)
        whole[0, list(chosen)] = column
        return whole

    def heights(self, name: str) -> ndarray:
        """Return barriers or gaps of all pairs, (1, pairs)."""
        return np.array([[one[name]["mean"] for one in self.study["paths"]]], dtype=float)

    def gaps(self) -> ndarray:
        """Return the matrix of gaps."""
        matrix = np.zeros((len(self.names), len(self.names)))
        for (a, b), gap in zip(self.pairs, self.heights("gap")[0], strict=True):
            matrix[a, b] = matrix[b, a] = gap
        return matrix

    def scores(self, explainer: str, network: str, by: str) -> ndarray:
        """Return what an explainer's maps of a network say of each cue, (pictures, cues)."""
        table = self.rows.values[f"{explainer}, {network}"]
        return np.stack([table[f"{by}:{cue}"] for cue in self.cues], axis=1)

    def answer(self, explainer: str) -> _Answer:
        """Return how far an explainer's maps agree with what the networks follow."""
        right: dict[str, list[bool]] = {by: [] for by in _BY}
        fooled, columns = [], []
        for name, follows, says in zip(self.names, self.follows, self.says, strict=True):
            if follows is not None:
                for by in _BY:
                    right[by].append(self.names_of(explainer, name, by) == follows)
                if not right["lift"][-1]:
                    fooled.append(name)
            columns.append(
                _agreement_by_picture(self.scores(explainer, name, "lift"), [says[cue] for cue in self.cues])
            )
        table = np.stack(columns, axis=1)
        replicates = crossed_replicates(table, [(place,) for place in range(table.shape[1])])
        return _Answer(right, fooled, as_interval(_mean(table), replicates, n=int((~np.isnan(table)).sum())))

    def names_of(self, explainer: str, network: str, by: str) -> str | None:
        """Return the cue that the maps of a network name in the mean over pictures; None where none leads."""
        means = np.array([_mean(column) for column in self.scores(explainer, network, by).T])
        leads = np.flatnonzero(means == np.nanmax(np.append(means, -np.inf)))
        return self.cues[int(leads[0])] if len(leads) == 1 else None


def _agreement_by_picture(lift: ndarray, says: Sequence[ndarray]) -> ndarray:
    """Return 1 where the cue of the larger lift is the one whose class is said, else 0; NaN where neither is said."""
    said = np.stack(says, axis=1)
    named = (lift == np.nanmax(np.where(np.isnan(lift), -np.inf, lift), axis=1, keepdims=True)) & ~np.isnan(lift)
    agrees = (named & (said > 0)).any(1) & (named.sum(1) == 1)
    return np.where(said.sum(1) == 1, agrees.astype(float), np.nan)


# --- tables --------------------------------------------------------------------------------------------------------


def _network_table(view: _View) -> PlainTable:
    head = ["network", "cluster", "accuracy", *(f"in conflict, says the {cue}" for cue in view.cues)]
    head += ["follows"] if view.cues else []
    lines = []
    for place, one in enumerate(view.study["networks"]):
        cells = [one["name"], str(view.labels[place] + 1), _cell(_read(one["accuracy"]))]
        cells += [_cell(_over_pictures(view.says[place][cue])) for cue in view.cues]
        lines.append(cells + ([view.follows[place] or "–"] if view.cues else []))
    caption = "Accuracy on val; on pictures whose cues are in conflict, the share that is given the class of each cue."
    return PlainTable("Networks", caption if view.cues else "Accuracy on val.", head, lines)


def _gap_table(view: _View) -> PlainTable:
    lines = []
    for kind in (WITHIN, BETWEEN):
        chosen = view.over(kind)
        cells = [_cell(view.over_pairs(view.heights(name), chosen)) for name in ("barrier", "gap")]
        lines.append([kind, str(len(chosen)), *cells, *_extremes(view.heights("gap")[0][chosen])])
    caption = (
        "Excess of the loss over the straight line between the losses at the ends: the largest of the path, and of all "
        f"its sub-segments; {_statistics(view)}. Intervals over networks."
    )
    return PlainTable(
        "Barriers", caption, ["pairs", "number", "barrier", "convexity gap", "least gap", "largest gap"], lines
    )


def _answer_table(view: _View, answers: Mapping[str, _Answer]) -> PlainTable:
    lines = []
    for name, one in answers.items():
        cells = [_wilson(*one.share(by)) for by in _BY]
        lines.append([name, cells[0], _cell(one.by_picture), *cells[1:], ", ".join(one.fooled) or "none"])
    caption = (
        "Share of the networks of which the maps name the cue that the network follows in conflict: the cue of the "
        "larger lift (Wilson's interval); the same picture by picture, where the class of one cue is said (interval "
        "over pictures and networks; chance is one half); and by the larger share of the kept area, and of the drop."
    )
    head = [
        "explainer",
        "networks, by lift",
        "pictures, by lift",
        "networks, by share",
        "networks, by drop",
        "fooled on",
    ]
    return PlainTable("Which cue do the maps name?", caption, head, lines)


def _similarity_table(view: _View) -> PlainTable:
    lines = []
    for name, measures in view.study["similarity"].items():
        for measure, kinds in measures.items():
            pairs, other = _matrix(kinds["pairs"]), _matrix(kinds["other"])
            cells = [view.over_pairs(pairs, view.over(kind)) for kind in (WITHIN, BETWEEN)]
            yardstick = crossed_replicates(other, [(place,) for place in range(other.shape[1])])
            cells += [view.difference(pairs), as_interval(_mean(other), yardstick, n=other.shape[0])]
            lines.append([name, _MEASURES.get(measure, measure), *map(_cell, cells)])
    caption = (
        "Maps of one val picture by two networks, 1: equal. Another picture: a network's maps of one picture and of "
        "the next, the yardstick. Intervals over pictures and pairs."
    )
    head = ["explainer", "similarity", WITHIN, BETWEEN, "difference", "another picture"]
    return PlainTable("How alike are the maps?", caption, head, lines)


def _line_table(view: _View) -> PlainTable:
    kinds = [kind for kind in (WITHIN, BETWEEN) if view.over(kind)]
    columns = {(kind, name): view.along(name, view.over(kind)) for kind in kinds for name in _ALONG}
    lines = [
        [f"{place:.2f}", *(number(column[at].mean) for column in columns.values())]
        for at, place in enumerate(view.study["points"])
    ]
    head = ["place", *(f"{_ALONG[name]}, {kind}" for kind, name in columns)]
    caption = (
        "Mean over pairs at each place of the line. Kept, removed: accuracy on the kept and on the removed picture "
        f"under masks of the masker that was trained against all networks in turn; {_statistics(view)}."
    )
    return PlainTable("Along the lines", caption, head, lines)


# --- figures -------------------------------------------------------------------------------------------------------


def _figures(view: _View) -> list[tuple[str, Figure]]:
    order = np.argsort(view.labels, kind="stable")
    names = [view.names[place] for place in order]
    sizes = np.bincount(view.labels).tolist()
    chart = heat_chart(names, view.gaps()[np.ix_(order, order)], blocks=sizes)
    figures = [(f"Convexity gaps of each two networks; lines between the clusters; {_statistics(view)}.", chart)]
    series = {
        kind: list(zip(view.study["points"], view.along("loss", chosen), strict=True))
        for kind in (WITHIN, BETWEEN)
        if (chosen := view.over(kind))
    }
    figures.append(
        ("Loss along the lines: mean over pairs, interval over networks.", line_chart(series, x="place", y="loss"))
    )
    if (evidence := _evidence_chart(view)) is not None:
        figures.append(evidence)
    return figures


def _evidence_chart(view: _View) -> tuple[str, Figure] | None:
    """Return how behaviour and evidence change along the lines from networks of one cue to those of the other."""
    if len(view.cues) != 2:
        return None
    first, second = view.cues
    chosen = [at for at, (a, b) in enumerate(view.pairs) if {view.follows[a], view.follows[b]} == {first, second}]
    if not chosen:
        return None
    series = {}
    for kind, what in (("says", "says the {}"), ("drop", "drop on the {}"), ("share", "kept area on the {}")):
        for cue in view.cues:
            table = np.array([view.study["paths"][at]["values"][f"{kind}:{cue}"] for at in chosen], dtype=float)
            turned = [view.follows[view.pairs[at][0]] != first for at in chosen]
            table = np.where(np.array(turned)[:, None], table[:, ::-1], table)
            means = [view.over_pairs(view._spread(column, chosen), chosen) for column in table.T]
            series[what.format(cue)] = list(zip(view.study["points"], means, strict=True))
    caption = (
        f"From networks that follow the {first} (left) to those that follow the {second}: on pictures in conflict, the "
        "share that is given the class of each cue, and what the masks of the masker trained in turn say: the share of "
        "the drop, and of the kept area, on each cue. Intervals over networks."
    )
    return caption, line_chart(series, x="place", y="share")


# --- sentences -----------------------------------------------------------------------------------------------------


def _findings(view: _View) -> list[str]:
    texts = []
    groups = [[view.names[place] for place in np.flatnonzero(view.labels == label)] for label in sorted({*view.labels})]
    score = view.study["silhouette"]
    listed = "; ".join(f"{number}: {', '.join(group)}" for number, group in enumerate(groups, start=1))
    fit = "" if score is None else f", silhouette {number(score)}"
    texts.append(f"{len(groups)} cluster{'s' if len(groups) > 1 else ''}{fit}. {listed}.")
    within, between = (view.over_pairs(view.heights("gap"), view.over(kind)) for kind in (WITHIN, BETWEEN))
    if within.n and between.n:
        apart = view.difference(view.heights("gap"))
        verdict = "is larger between clusters than within" if apart.high < 0 else "is not told apart from that within"
        texts.append(
            f"The convexity gap {verdict}: {_cell(within)} within over {within.n} pairs, {_cell(between)} between over "
            f"{between.n}; {_statistics(view)}."
        )
    if view.cues:
        known = [(label, cue) for label, cue in zip(view.labels.tolist(), view.follows, strict=True) if cue is not None]
        most = {
            label: max(view.cues, key=lambda cue: sum((label, cue) == one for one in known)) for label in {*view.labels}
        }
        right = sum(most[label] == cue for label, cue in known)
        texts.append(f"A cluster goes with one cue for {_wilson(right, len(known))} of {len(known)} networks.")
    return texts


def _answers_said(view: _View, answers: Mapping[str, _Answer]) -> list[str]:
    texts = []
    for name, one in answers.items():
        right, count = one.share("lift")
        enough = "at least" if count and right >= 0.9 * count else "less than"
        text = (
            f"{name} names the cue that a network follows for {right} of {count} networks, {enough} 90 %; picture by "
            f"picture in {_cell(one.by_picture)}."
        )
        if one.fooled:
            told = [f"{network} (names {_the(view.names_of(name, network, 'lift'))})" for network in one.fooled]
            text += f" Fooled on {', '.join(told)}."
        texts.append(text)
    return texts


def _alike_said(view: _View) -> list[str]:
    texts = []
    for name, measures in view.study["similarity"].items():
        measure = next(iter(measures), None)
        if measure is None or not (view.over(WITHIN) and view.over(BETWEEN)):
            continue
        apart = view.difference(_matrix(measures[measure]["pairs"]))
        surely = "more alike" if apart.low > 0 else "less alike" if apart.high < 0 else "not told to be more alike"
        texts.append(
            f"Maps of {name} are {surely} within a cluster than between: {_MEASURES.get(measure, measure)}, difference "
            f"{_cell(apart)}."
        )
    return texts


def _statistics(view: _View) -> str:
    fresh = view.study["fresh_statistics"]
    return "batch statistics taken anew at each point" if fresh else "batch statistics interpolated as weights are"


def _over_pictures(values: ndarray) -> Interval:
    return as_interval(_mean(values), crossed_replicates(values[:, None], [(0,)]), n=len(values))


def _matrix(values: Sequence[Sequence[float | None]]) -> ndarray:
    return np.array(values, dtype=float)


def _mean(values: ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _read(interval: Facts) -> Interval:
    mean, low, high = (np.nan if interval[name] is None else float(interval[name]) for name in ("mean", "low", "high"))
    return Interval(mean, low, high, interval["n"])


def _the(cue: str | None) -> str:
    return "neither" if cue is None else f"the {cue}"


def _wilson(right: int, count: int) -> str:
    if not count:
        return "–"
    ends = binomtest(right, count).proportion_ci(method="wilson")
    return f"{right}/{count} {interval_text(Interval(right / count, ends.low, ends.high, count))}"


def _extremes(values: ndarray) -> list[str]:
    return [number(float(values.min())), number(float(values.max()))] if len(values) else ["–", "–"]


def _cell(interval: Interval) -> str:
    return f"{number(interval.mean)} {interval_text(interval)}".strip()
