"""The two figures of a sanity check: similarity along the randomised layers, and a strip of the maps."""

from collections.abc import Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from salmask.metrics.sanity import SanityCheck, curve

__all__ = ["curve_figure", "strip_figure"]


def curve_figure(checks: Sequence[SanityCheck]) -> Figure:
    """Draw mean similarity by step, one panel a check, one line a measure; the caller saves the figure.

    A step without any defined value leaves a gap in its line.
    """
    if not checks:
        raise ValueError("expected at least one sanity check to draw")
    figure = Figure(figsize=(5.5 * len(checks), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(checks), squeeze=False, sharey=True)[0]
    for panel, check in zip(panels, checks, strict=True):
        points = curve(check.rows)
        for name in dict.fromkeys(point.similarity for point in points):
            line = [point.mean for point in points if point.similarity == name]
            panel.plot(range(len(line)), line, marker="o", markersize=3, label=name)
        panel.set_xticks(range(len(check.steps)), check.steps, rotation=90, fontsize=7)
        panel.axhline(0, color="grey", linewidth=0.5)
        panel.set_ylim(-1.05, 1.05)
        panel.set_title(f"{check.kind}, {len({row.image for row in check.rows})} images", fontsize=9)
    panels[0].set_ylabel("similarity to the untouched map")
    panels[0].legend(fontsize=7)
    return figure


def strip_figure(check: SanityCheck, *, every: int = 1, images: int = 4) -> Figure:
    """Draw each image, its untouched map and its map after every `every`-th step; black is low, each map to its span.

    Maps that are not finite are drawn as they are: blank.
    """
    if every < 1 or images < 1:
        raise ValueError(f"expected every >= 1 and images >= 1, got {every} and {images}")
    columns = [0, *range(1, len(check.maps), every)]
    rows = min(images, len(check.images))
    if rows == 0:
        raise ValueError("the check kept no images: run it with keep >= 1")
    figure = Figure(figsize=(1.1 * (len(columns) + 1), 1.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(columns) + 1, squeeze=False)
    titles = ["image", "untouched", *(check.steps[column - 1] for column in columns[1:])]
    for row in range(rows):
        pictures = [check.images[row].permute(1, 2, 0), *(check.maps[column, row, 0] for column in columns)]
        for panel, picture, title in zip(panels[row], pictures, titles, strict=True):
            panel.imshow(torch.as_tensor(picture).numpy(), cmap="gray")
            panel.set_axis_off()
            if row == 0:
                panel.set_title(title, fontsize=6)
    return figure
