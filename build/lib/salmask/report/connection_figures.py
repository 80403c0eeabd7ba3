"""The figures of a report of connectivity: gaps, the loss along lines, and how the evidence changes hands on them."""

import numpy as np
from matplotlib.figure import Figure

from salmask.report.charts import heat_chart, line_chart
from salmask.report.connection import BETWEEN, VAL, WITHIN, View
from salmask.report.connection_tables import statistics_text

__all__ = ["connection_figures"]


def connection_figures(view: View) -> list[tuple[str, Figure]]:
    """Return figures with captions."""
    order = np.argsort(view.labels, kind="stable")
    names = [view.names[place] for place in order]
    figures = []
    for trial in dict.fromkeys((view.main, VAL)):
        chart = heat_chart(names, view.gaps(trial)[np.ix_(order, order)], blocks=np.bincount(view.labels).tolist())
        caption = (
            f"Convexity gaps of each two networks in the loss on {trial}; lines between the clusters by {view.main}; "
            f"{statistics_text(view)}."
        )
        figures.append((caption, chart))
    for kind in (WITHIN, BETWEEN):
        if chosen := view.over(kind):
            series = {
                trial: list(zip(view.study["points"], view.along(f"loss:{trial}", chosen), strict=True))
                for trial in view.study["trials"]
            }
            caption = f"Loss along the lines {kind}, by pictures: mean over pairs, interval over networks."
            figures.append((caption, line_chart(series, x="place", y="loss")))
    if (evidence := _evidence_chart(view)) is not None:
        figures.append(evidence)
    return figures


def _evidence_chart(view: View) -> tuple[str, Figure] | None:
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
            means = [view.over_pairs(view.spread(column, chosen), chosen) for column in table.T]
            series[what.format(cue)] = list(zip(view.study["points"], means, strict=True))
    caption = (
        f"From networks that follow the {first} (left) to those that follow the {second}: on pictures in conflict, the "
        "share that is given the class of each cue, and what the masks of the masker trained in turn say: the share of "
        "the drop, and of the kept area, on each cue. Intervals over networks."
    )
    return caption, line_chart(series, x="place", y="share")
