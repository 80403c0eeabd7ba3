"""The tables of a report of connectivity: networks, barriers, clusters, cues that maps name, how alike maps are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.stats import binomtest

from salmask.files import Facts
from salmask.report.connection import BETWEEN, BY, VAL, WITHIN, NamedCues, View, mean_of
from salmask.report.tables import interval_text, number
from salmask.rows.statistics import Interval, as_interval, crossed_replicates

__all__ = [
    "SIMILARITIES",
    "PlainTable",
    "answer_table",
    "cell",
    "gap_table",
    "line_table",
    "network_table",
    "share_text",
    "similarity_table",
    "statistics_text",
    "trial_table",
]

SIMILARITIES = {"spearman": "Spearman", "ssim": "SSIM"}
_ALONG = {"accuracy:val": "accuracy", "kept": "kept accuracy", "removed": "removed accuracy"}


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


def network_table(view: View) -> PlainTable:
    """Return each network's cluster, accuracy, and the cue that it follows."""
    head = ["network", "cluster", "accuracy", *(f"in conflict, says the {cue}" for cue in view.cues)]
    head += ["follows"] if view.cues else []
    lines = []
    for place, one in enumerate(view.study["networks"]):
        cells = [one["name"], str(view.labels[place] + 1), cell(_read(one["accuracy"]))]
        cells += [cell(_over_pictures(view.says[place][cue])) for cue in view.cues]
        lines.append(cells + ([view.follows[place] or "–"] if view.cues else []))
    caption = "Accuracy on val; on pictures whose cues are in conflict, the share that is given the class of each cue."
    return PlainTable("Networks", caption if view.cues else "Accuracy on val.", head, lines)


def gap_table(view: View) -> PlainTable:
    """Return the heights of all pairs in the loss of each trial, within the main clusters and between them."""
    lines = []
    for trial in view.study["trials"]:
        for kind in (WITHIN, BETWEEN):
            chosen = view.over(kind)
            cells = [cell(view.over_pairs(view.heights(name, trial), chosen)) for name in ("ridge", "barrier", "gap")]
            lines.append([trial, kind, str(len(chosen)), *cells, *_extremes(view.heights("gap", trial)[0][chosen])])
    caption = (
        "Excess of the loss, on pictures of each kind, over the higher end (ridge), over the straight line between the "
        "losses at the ends (barrier), and over that of any sub-segment (convexity gap); "
        f"{statistics_text(view)}. Clusters by {view.main}. Intervals over networks."
    )
    head = ["loss on", "pairs", "number", "ridge", "barrier", "convexity gap", "least gap", "largest gap"]
    return PlainTable("Barriers", caption, head, lines)


def trial_table(view: View) -> PlainTable:
    """Return the clusters that the gaps in the loss of each trial give, by themselves."""
    lines = []
    for trial, one in view.study["trials"].items():
        labels, gaps = one["clusters"], view.heights("gap", trial)[0]
        inside = np.array([labels[a] == labels[b] for a, b in view.pairs])
        cells = [number(float(some.mean())) if len(some) else "–" for some in (gaps[inside], gaps[~inside])]
        groups = [
            [name for name, label in zip(view.names, labels, strict=True) if label == at] for at in sorted({*labels})
        ]
        fit = "–" if one["silhouette"] is None else number(one["silhouette"])
        with_cue = [share_text(*view.with_cue(labels))] if view.cues else []
        lines.append([trial, "; ".join(", ".join(group) for group in groups), fit, *with_cue, *cells])
    caption = "Spectral clusters of the convexity gaps in the loss on pictures of each kind, and their mean gaps."
    head = [
        "loss on",
        "clusters",
        "silhouette",
        *(["go with one cue"] if view.cues else []),
        "gap within",
        "gap between",
    ]
    return PlainTable("Clusters", caption, head, lines)


def answer_table(view: View, answers: Mapping[str, NamedCues]) -> PlainTable:
    """Return how far each explainer names the cue that networks follow."""
    lines = []
    for name, one in answers.items():
        cells = [share_text(*one.share(by)) for by in BY]
        lines.append(
            [
                name,
                cells[0],
                cell(one.by_picture),
                *cells[1:],
                ", ".join(one.fooled) or "none",
                ", ".join(view.study["collapsed"][name]) or "none",
            ]
        )
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
        "collapsed, left out",
    ]
    return PlainTable("Which cue do the maps name?", caption, head, lines)


def similarity_table(view: View, kinds: tuple[str, str]) -> PlainTable:
    """Return how alike the maps of pairs of two kinds are: within and between clusters, or of one cue and of two."""
    lines = []
    for name, measures in view.study["similarity"].items():
        for measure, found in measures.items():
            pairs, other = (np.array(found[key], dtype=float) for key in ("pairs", "other"))
            cells = [view.over_pairs(pairs, view.over(kind)) for kind in kinds]
            yardstick = crossed_replicates(other, [(place,) for place in range(other.shape[1])])
            cells += [view.difference(pairs, kinds), as_interval(mean_of(other), yardstick, n=other.shape[0])]
            lines.append([name, SIMILARITIES.get(measure, measure), *map(cell, cells)])
    first, second = (f"{kind} ({len(view.over(kind))} pairs)" for kind in kinds)
    caption = (
        "Maps of one val picture by two networks, 1: equal. Another picture: a network's maps of one picture and of "
        "the next, the yardstick. Intervals over pictures and pairs."
    )
    head = ["explainer", "similarity", first, second, "difference", "another picture"]
    return PlainTable(f"How alike are the maps {kinds[0]} and {kinds[1]}?", caption, head, lines)


def line_table(view: View) -> PlainTable:
    """Return what is measured at each place of the lines, in the mean over pairs."""
    kinds = [kind for kind in (WITHIN, BETWEEN) if view.over(kind)]
    along = {f"loss:{trial}": f"loss, {trial}" for trial in dict.fromkeys((VAL, view.main))} | _ALONG
    columns = {(kind, name): view.along(name, view.over(kind)) for kind in kinds for name in along}
    lines = [
        [f"{place:.2f}", *(number(column[at].mean) for column in columns.values())]
        for at, place in enumerate(view.study["points"])
    ]
    head = ["place", *(f"{along[name]}, {kind}" for kind, name in columns)]
    caption = (
        "Mean over pairs at each place of the line. Accuracy, kept, removed: on val; kept and removed pictures under "
        f"masks of the masker that was trained against all networks in turn; {statistics_text(view)}."
    )
    return PlainTable("Along the lines", caption, head, lines)


def statistics_text(view: View) -> str:
    """Return in words where the batch statistics of a line come from."""
    fresh = view.study["fresh_statistics"]
    return "batch statistics taken anew at each point" if fresh else "batch statistics interpolated as weights are"


def _over_pictures(values: ndarray) -> Interval:
    return as_interval(mean_of(values), crossed_replicates(values[:, None], [(0,)]), n=len(values))


def _read(interval: Facts) -> Interval:
    mean, low, high = (np.nan if interval[name] is None else float(interval[name]) for name in ("mean", "low", "high"))
    return Interval(mean, low, high, interval["n"])


def share_text(right: int, count: int) -> str:
    """Return a share of a few networks with Wilson's interval."""
    if not count:
        return "–"
    ends = binomtest(right, count).proportion_ci(method="wilson")
    return f"{right}/{count} {interval_text(Interval(right / count, ends.low, ends.high, count))}"


def _extremes(values: ndarray) -> list[str]:
    return [number(float(values.min())), number(float(values.max()))] if len(values) else ["–", "–"]


def cell(interval: Interval) -> str:
    """Return a mean with its interval."""
    return f"{number(interval.mean)} {interval_text(interval)}".strip()
