"""The report of a study of connectivity: basins, barriers, the cue that maps name, how alike maps are. No torch.

Read from connectivity.json, written by `study.connected`, and the rows beside it, one explainer of one network each.
Intervals are those of `report.connection`; a share of a few networks has Wilson's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from salmask.files import Facts
from salmask.report.connection import BETWEEN, OTHER, SAME, VAL, WITHIN, NamedCues, View
from salmask.report.connection_figures import connection_figures
from salmask.report.connection_tables import (
    SIMILARITIES,
    PlainTable,
    answer_table,
    cell,
    gap_table,
    line_table,
    network_table,
    share_text,
    similarity_table,
    statistics_text,
    trial_table,
)
from salmask.report.tables import number
from salmask.rows.read import Rows, file_name

__all__ = ["ConnectivityPart", "connectivity_part"]


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


def connectivity_part(study: Facts, rows: Rows, folder: Path) -> ConnectivityPart:
    """Return findings, tables and figures of a study; folder: where its sheets of maps lie."""
    view = View(study, rows)
    answers = {name: view.answer(name) for name in study["explainers"]} if view.cues else {}
    sheets = [
        (_SHEET.format(name), path)
        for name in study["explainers"]
        if (path := folder / f"maps_{file_name(name)}.jpg").is_file()
    ]
    tables = [network_table(view), gap_table(view), trial_table(view)]
    if answers:
        tables.append(answer_table(view, answers))
    kinds = [(WITHIN, BETWEEN)]
    if view.kinds[WITHIN] != view.kinds[SAME] and view.over(SAME) and view.over(OTHER):
        kinds.append((SAME, OTHER))  # the same question by behaviour, where clusters are something else
    tables += [*(similarity_table(view, both) for both in kinds), line_table(view)]
    texts = [*_findings(view), *_answers_said(view, answers)]
    texts += [text for both in kinds for text in _alike_said(view, both)]
    return ConnectivityPart(texts, tables, connection_figures(view), sheets)


_SHEET = (
    "Maps of {}: a row is a picture whose cues are in conflict (of val, where the data has none), a column a network, "
    "cluster by cluster. Mask in colour over the image, outline where it exceeds its mean."
)


def _findings(view: View) -> list[str]:
    texts = [_clusters_said(view, view.main)]
    for trial in dict.fromkeys((view.main, VAL)):
        texts += _gap_said(view, trial)
    texts += [_clusters_said(view, trial) for trial in view.study["trials"] if trial != view.main]
    return texts


FEWEST = 2
"""Pairs within and between clusters from which on they are compared."""


def _clusters_said(view: View, trial: str) -> str:
    one = view.study["trials"][trial]
    count = len({*one["clusters"]})
    fit = "" if one["silhouette"] is None else f", silhouette {number(one['silhouette'])}"
    largest = number(float(view.heights("gap", trial).max()))
    text = f"By the loss on {trial}: {count} cluster{'s' if count > 1 else ''}{fit}, largest gap {largest}"
    if view.cues:
        text += f"; a cluster goes with one cue for {share_text(*view.with_cue(one['clusters']))} of the networks"
    return f"{text}."


def _gap_said(view: View, trial: str) -> list[str]:
    within, between = (view.over_pairs(view.heights("gap", trial), view.over(kind)) for kind in (WITHIN, BETWEEN))
    if not (within.n and between.n):
        return []
    apart = view.difference(view.heights("gap", trial))
    verdict = (
        "is of too few pairs to be compared"
        if min(within.n, between.n) < FEWEST
        else "is larger between clusters than within"
        if apart.high < 0
        else "is smaller between clusters than within"
        if apart.low > 0
        else "is not told apart from that within"
    )
    ridge = view.over_pairs(view.heights("ridge", trial), view.over(BETWEEN))
    pairs = f"{within.n} pair{'s' if within.n > 1 else ''}"
    return [
        f"On {trial}, the convexity gap {verdict}: {cell(within)} within over {pairs}, {cell(between)} "
        f"between over {between.n}, where a ridge above the higher end has {cell(ridge)}; {statistics_text(view)}."
    ]


def _answers_said(view: View, answers: Mapping[str, NamedCues]) -> list[str]:
    texts = []
    for name, one in answers.items():
        right, count = one.share("lift")
        enough = "at least" if count and right >= 0.9 * count else "less than"
        text = (
            f"{name} names the cue that a network follows for {right} of {count} networks, {enough} 90 %; picture by "
            f"picture in {cell(one.by_picture)}."
        )
        if left := view.study["collapsed"][name]:
            text += f" Trainings that collapsed, left out: {', '.join(left)}."
        if one.fooled:
            told = [f"{network} (names {_the(view.names_of(name, network, 'lift'))})" for network in one.fooled]
            text += f" Fooled on {', '.join(told)}."
        texts.append(text)
    return texts


def _alike_said(view: View, kinds: tuple[str, str]) -> list[str]:
    texts = []
    for name, measures in view.study["similarity"].items():
        measure = next(iter(measures), None)
        if measure is None or not all(view.over(kind) for kind in kinds):
            continue
        apart = view.difference(np.array(measures[measure]["pairs"], dtype=float), kinds)
        surely = "more alike" if apart.low > 0 else "less alike" if apart.high < 0 else "not told to be more alike"
        if min(len(view.over(kind)) for kind in kinds) < FEWEST:
            surely = "of too few pairs to be called more alike"
        texts.append(
            f"Maps of {name} are {surely} {kinds[0]} than {kinds[1]}: {SIMILARITIES.get(measure, measure)}, difference "
            f"{cell(apart)}."
        )
    return texts


def _the(cue: str | None) -> str:
    return "neither" if cue is None else f"the {cue}"
