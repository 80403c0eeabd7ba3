"""What a report of connectivity counts: connectivity.json, read and checked, and means with intervals from it.

Every interval is 95 %: over pictures and networks drawn independently (`crossed_replicates`), a pair of networks having
the weight of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy import ndarray

from salmask.files import JSON, NUMBER, Facts, Maybe, read_json
from salmask.rows.read import Rows
from salmask.rows.statistics import Interval, as_interval, crossed_replicates

__all__ = ["BETWEEN", "BY", "OTHER", "SAME", "VAL", "WITHIN", "NamedCues", "View", "mean_of", "read_connectivity"]

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
    "paths": [
        {
            "ends": [int],
            "heights": {str: {"barrier": _INTERVAL, "gap": _INTERVAL, "ridge": _INTERVAL}},
            "values": {str: [NUMBER]},
        }
    ],
    "clustered_by": str,
    "trials": {str: {"clusters": [int], "silhouette": Maybe((int, float))}},
    "collapsed": {str: [str]},
    "explainers": [str],
    "similarity": {str: {str: {"pairs": [[NUMBER]], "other": [[NUMBER]]}}},
}
BY = ("lift", "share", "drop")
VAL = "val"
WITHIN, BETWEEN = "within a cluster", "between clusters"
SAME, OTHER = "of one cue", "of different cues"


def read_connectivity(folder: Path) -> JSON | None:
    """Return connectivity.json, None where there is none. Errors: ValueError for a file of something else."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    study: JSON = read_json(path, _SHAPE, remedy="run the study again")
    size = len(study["networks"])
    pairs = [list(pair) for pair in combinations(range(size), 2)]
    labelled = [len(one["clusters"]) for one in study["trials"].values()]
    if [one["ends"] for one in study["paths"]] != pairs or set(labelled) != {size}:
        raise ValueError(
            f"{path}: expected a path for each two of {size} networks, and a cluster for each: run it again"
        )
    if study["clustered_by"] not in study["trials"]:
        raise ValueError(f"{path}: expected clusters by {study['clustered_by']}, got none: run the study again")
    return study


@dataclass(frozen=True)
class NamedCues:
    """How far an explainer's maps agree with what networks follow: by network, three ways, and by picture."""

    right: Mapping[str, Sequence[bool]]
    fooled: Sequence[str]
    by_picture: Interval

    def share(self, by: str) -> tuple[int, int]:
        """Return for how many networks the cue is named, and of how many."""
        return sum(self.right[by]), len(self.right[by])


class View:
    """The study, with what is counted in several places."""

    def __init__(self, study: Facts, rows: Rows) -> None:
        self.study, self.rows = study, rows
        self.names = [one["name"] for one in study["networks"]]
        self.cues: list[str] = list(study["cues"])
        self.main: str = study["clustered_by"]
        self.labels = np.array(study["trials"][self.main]["clusters"])
        self.pairs = [tuple(one["ends"]) for one in study["paths"]]
        order = {image: place for place, image in enumerate(study["ids"])}
        self.order = [order[image] for image in rows.ids if image in order]
        self.says = [
            {cue: np.array(one["says"][cue], float)[self.order] for cue in self.cues} for one in study["networks"]
        ]
        self.follows = [self._followed(one) for one in self.says] if self.cues else [None] * len(self.names)
        inside = [bool(self.labels[a] == self.labels[b]) for a, b in self.pairs]
        known = [None not in (self.follows[a], self.follows[b]) for a, b in self.pairs]
        same = [self.follows[a] == self.follows[b] for a, b in self.pairs]
        self.kinds = {
            WITHIN: inside,
            BETWEEN: [not one for one in inside],
            SAME: [a and b for a, b in zip(same, known, strict=True)],
            OTHER: [not a and b for a, b in zip(same, known, strict=True)],
        }

    def _followed(self, says: Mapping[str, ndarray]) -> str | None:
        means = sorted(((float(values.mean()), cue) for cue, values in says.items()), reverse=True)
        return means[0][1] if means[0][0] > means[1][0] else None

    def over(self, kind: str) -> list[int]:
        """Return the pairs of a kind: within a cluster, between two, of one cue, of two."""
        return [int(place) for place in np.flatnonzero(self.kinds[kind])]

    def over_pairs(self, values: ndarray, chosen: Sequence[int]) -> Interval:
        """Return the mean of values (pictures, pairs) over chosen pairs, with its interval over both."""
        if not chosen:
            return Interval(np.nan, np.nan, np.nan, 0)
        some = values[:, list(chosen)]
        replicates = crossed_replicates(some, [self.pairs[place] for place in chosen], networks=len(self.names))
        return as_interval(mean_of(some), replicates, n=len(chosen), missing=int(np.isnan(some).sum()))

    def difference(self, values: ndarray, kinds: Sequence[str] = (WITHIN, BETWEEN)) -> Interval:
        """Return the mean of pairs of one kind minus that of another, on shared resamples of pictures and networks."""
        both = [self.over(kind) for kind in kinds]
        if not all(both):
            return Interval(np.nan, np.nan, np.nan, 0)
        parts = [(values[:, chosen], [self.pairs[place] for place in chosen]) for chosen in both]
        size = len(self.names)
        ours, theirs = (crossed_replicates(some, members, networks=size) for some, members in parts)
        return as_interval(mean_of(parts[0][0]) - mean_of(parts[1][0]), ours - theirs, n=len(self.pairs))

    def along(self, name: str, chosen: Sequence[int]) -> list[Interval]:
        """Return the mean of what was measured at each point over pairs, with its interval over pairs."""
        table = np.array([self.study["paths"][place]["values"][name] for place in chosen], dtype=float)
        return [self.over_pairs(self.spread(column, chosen), chosen) for column in table.T]

    def spread(self, column: ndarray, chosen: Sequence[int]) -> ndarray:
        """Return one line of values of all pairs, (1, pairs), NaN but for those chosen."""
        whole = np.full((1, len(self.pairs)), np.nan)
        whole[0, list(chosen)] = column
        return whole

    def heights(self, name: str, trial: str) -> ndarray:
        """Return barriers, gaps or ridges of all pairs in the loss of a trial, (1, pairs)."""
        return np.array([[one["heights"][trial][name]["mean"] for one in self.study["paths"]]], dtype=float)

    def gaps(self, trial: str) -> ndarray:
        """Return the matrix of gaps in the loss of a trial."""
        matrix = np.zeros((len(self.names), len(self.names)))
        for (a, b), gap in zip(self.pairs, self.heights("gap", trial)[0], strict=True):
            matrix[a, b] = matrix[b, a] = gap
        return matrix

    def with_cue(self, labels: Sequence[int]) -> tuple[int, int]:
        """Return how many networks follow the cue that most of their cluster follow, and of how many."""
        known = [(label, cue) for label, cue in zip(labels, self.follows, strict=True) if cue is not None]
        most = {label: max(self.cues, key=lambda cue: sum((label, cue) == one for one in known)) for label in {*labels}}
        return sum(most[label] == cue for label, cue in known), len(known)

    def scores(self, explainer: str, network: str, by: str) -> ndarray:
        """Return what an explainer's maps of a network say of each cue, (pictures, cues)."""
        table = self.rows.values[f"{explainer}, {network}"]
        return np.stack([table[f"{by}:{cue}"] for cue in self.cues], axis=1)

    def answer(self, explainer: str) -> NamedCues:
        """Return how far an explainer's maps agree with what the networks follow; collapsed trainings are left out."""
        right: dict[str, list[bool]] = {by: [] for by in BY}
        fooled, columns = [], []
        collapsed = self.study["collapsed"].get(explainer, [])
        for name, follows, says in zip(self.names, self.follows, self.says, strict=True):
            if name in collapsed:
                continue
            if follows is not None:
                for by in BY:
                    right[by].append(self.names_of(explainer, name, by) == follows)
                if not right["lift"][-1]:
                    fooled.append(name)
            columns.append(
                _agreement_by_picture(self.scores(explainer, name, "lift"), [says[cue] for cue in self.cues])
            )
        if not columns:
            return NamedCues(right, fooled, Interval(np.nan, np.nan, np.nan, 0))
        table = np.stack(columns, axis=1)
        replicates = crossed_replicates(table, [(place,) for place in range(table.shape[1])])
        return NamedCues(right, fooled, as_interval(mean_of(table), replicates, n=int((~np.isnan(table)).sum())))

    def names_of(self, explainer: str, network: str, by: str) -> str | None:
        """Return the cue that the maps of a network name in the mean over pictures; None where none leads."""
        means = np.array([mean_of(column) for column in self.scores(explainer, network, by).T])
        leads = np.flatnonzero(means == np.nanmax(np.append(means, -np.inf)))
        return self.cues[int(leads[0])] if len(leads) == 1 else None


def _agreement_by_picture(lift: ndarray, says: Sequence[ndarray]) -> ndarray:
    """Return 1 where the cue of the larger lift is the one whose class is said, else 0; NaN where neither is said."""
    said = np.stack(says, axis=1)
    named = (lift == np.nanmax(np.where(np.isnan(lift), -np.inf, lift), axis=1, keepdims=True)) & ~np.isnan(lift)
    agrees = (named & (said > 0)).any(1) & (named.sum(1) == 1)
    return np.where(said.sum(1) == 1, agrees.astype(float), np.nan)


def mean_of(values: ndarray) -> float:
    """Return the mean of what is not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
