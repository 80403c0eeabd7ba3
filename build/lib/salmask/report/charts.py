"""Figures of a report, as matplotlib figures without global state; `svg` and `png` write them reproducibly."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy import ndarray

from salmask.files import JSON
from salmask.rows.statistics import Interval

__all__ = [
    "agreement_chart",
    "cost_chart",
    "curves_chart",
    "heat_chart",
    "line_chart",
    "png",
    "scatter_chart",
    "steps_chart",
    "svg",
]

_COLOURS = (
    "#2f5d8a", "#c2562d", "#3b8a5a", "#8a4f9e", "#b8902a", "#4aa0b5",
    "#a83a5b", "#6b7a2b", "#5a5f6b", "#d17fa6", "#7f5539", "#1f8f86",
)  # fmt: skip
_INK = "#222222"
_FORMS = ("o", "^", "s", "D", "v", "P")
_NAMED_INSIDE = 4  # lines; more are named beside the axes, where their names cover none
_ASIDE = 4.0  # points between the intervals of two lines


def svg(figure: Figure) -> str:
    """Return the figure as inline SVG; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "salmask"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _axes(figure: Figure, *position: int) -> Axes:
    axes = figure.add_subplot(*(position or (1, 1, 1)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=8.5, length=3)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    return axes


def _errors(interval: Interval) -> list[list[float]] | None:
    if math.isnan(interval.low):
        return None
    return [[max(0.0, interval.mean - interval.low)], [max(0.0, interval.high - interval.mean)]]


def scatter_chart(
    points: Mapping[str, tuple[float, Interval]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    size: tuple[float, float] = (8.2, 4.6),
    legend: bool = False,
) -> Figure:
    """Return one labelled point per name, with the interval of its height.

    legend: name the points beside the axes, by colour and form, and not in them: for many, or for some that coincide.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = _axes(figure)
    for index, (name, (across, interval)) in enumerate(points.items()):
        form, colour = _FORMS[index // len(_COLOURS) % len(_FORMS)], _COLOURS[index % len(_COLOURS)]
        bars = axes.errorbar(
            across, interval.mean, yerr=_errors(interval), fmt=form, ms=6, color=colour, capsize=2, lw=1.1, label=name
        )
        for part in (*bars[1], *bars[2]):
            part.set_alpha(0.5)  # a point stays visible behind the interval of another
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x, fontsize=9.5, color=_INK)
    axes.set_ylabel(y, fontsize=9.5, color=_INK)
    axes.margins(x=0.05 if legend else 0.12, y=0.1)
    if legend:
        figure.legend(loc="outside right center", fontsize=8.5, frameon=False)
        return figure
    _label(figure, axes, {name: (across, interval.mean) for name, (across, interval) in points.items()})
    return figure


def _label(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points; names that would overlap are moved apart, with a thin line to their point."""
    FigureCanvasAgg(figure).draw()  # places in pixels are known only now
    # a constrained layout must not move the axes under labels that have been placed
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = []
    for x, y in points.values():
        px, py = axes.transData.transform((x, y))
        taken.append((px - 4, py - 4, px + 4, py + 4))
    right = axes.bbox.x1
    for name, (x, y) in sorted(points.items(), key=lambda item: (-item[1][1], item[0])):
        px, py = axes.transData.transform((x, y))
        width, height = 5.3 * scale * len(name), 10.5 * scale
        shifts = sorted((k * height * 0.55 for k in range(-14, 15)), key=abs)
        sides = (7 * scale, -7 * scale - width) if px + 8 * scale + width < right else (-7 * scale - width, 7 * scale)
        inside = [side for side in sides if px + side > 0 and px + side + width < figure.bbox.x1] or sides
        options = [(px + side, py + shift) for shift in shifts for side in inside]
        left, middle = next(
            (
                option
                for option in options
                if _free((option[0], option[1] - height / 2, option[0] + width, option[1] + height / 2), taken)
            ),
            options[0],
        )
        taken.append((left, middle - height / 2, left + width, middle + height / 2))
        far = abs(middle - py) > height
        axes.annotate(
            name,
            (x, y),
            xytext=((left - px) / scale, (middle - py) / scale),
            textcoords="offset points",
            fontsize=8.5,
            va="center",
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "lw": 0.6, "shrinkB": 3} if far else None,
        )


def _free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    return all(box[2] <= x0 or box[0] >= x1 or box[3] <= y0 or box[1] >= y1 for x0, y0, x1, y1 in taken)


def cost_chart(points: Mapping[str, tuple[float, Interval]], *, y: str) -> Figure:
    """Return accuracy against cost: seconds an image (logarithmic) and a score, up is better."""
    return scatter_chart(points, x="seconds per image", y=y, log_x=True)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, Interval]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    reference: Mapping[str, float] | None = None,
    ticks: Mapping[float, str] | None = None,
) -> Figure:
    """Return one line per series with its interval, and dashed reference lines: a study's axis.

    The interval of a line alone is a band; those of several are bars side by side, which can be told apart.
    ticks: place -> name, for an axis of named settings. Many lines are named beside the axes.
    """
    many = len(series) + len(reference or {}) > _NAMED_INSIDE
    figure = Figure(figsize=(8.4 if many else 6.4, 3.9), layout="constrained")
    axes = _axes(figure)
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        across = np.array([one for one, _ in points], dtype=float)
        mean, low, high = (np.array([getattr(i, end) for _, i in points]) for end in ("mean", "low", "high"))
        if len(series) == 1:
            axes.plot(across, mean, "o-", color=colour, lw=1.6, ms=4.5, label=name)
            axes.fill_between(across, low, high, color=colour, alpha=0.16, lw=0)
            continue
        aside = ScaledTranslation(_ASIDE * (index - (len(series) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        bars = axes.errorbar(
            across,
            mean,
            yerr=np.nan_to_num([mean - low, high - mean]).clip(0),
            fmt="o-",
            ms=4.5,
            color=colour,
            capsize=2,
            lw=1.6,
            elinewidth=1.1,
            label=name,
            transform=axes.transData + aside,
        )
        for part in (*bars[1], *bars[2]):
            part.set_alpha(0.6)
        axes.update_datalim(np.stack([np.tile(across, 3), np.concatenate([low, high, mean])], axis=1))
    axes.autoscale_view()
    for index, (name, value) in enumerate((reference or {}).items()):
        colour = _COLOURS[(len(series) + index) % len(_COLOURS)]
        axes.axhline(value, color=colour, ls="--", lw=1.2, label=name)
    if log_x:
        axes.set_xscale("log")
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
    axes.set_xlabel(x, fontsize=9.5, color=_INK)
    axes.set_ylabel(y, fontsize=9.5, color=_INK)
    if many:
        figure.legend(loc="outside right center", fontsize=8.5, frameon=False)
    else:
        axes.legend(fontsize=8.5, frameon=False)
    return figure


def steps_chart(
    panels: Mapping[str, Mapping[str, tuple[Sequence[Interval], float]]], *, steps: Sequence[str], y: str
) -> Figure:
    """Return one panel a quantity: per name a line along named steps with its band, and a dashed yardstick (or NaN)."""
    figure = Figure(figsize=(max(3.0, 0.24 * len(steps) + 1.2) * len(panels), 3.9), layout="constrained")
    for index, (title, series) in enumerate(panels.items()):
        axes = _axes(figure, 1, len(panels), index + 1)
        axes.set_title(title, fontsize=9, loc="left", color=_INK)
        for number, (name, (points, yardstick)) in enumerate(series.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            mean, low, high = (np.array([getattr(one, end) for one in points]) for end in ("mean", "low", "high"))
            axes.plot(range(len(steps)), mean, "o-", color=colour, lw=1.4, ms=3.5, label=name)
            axes.fill_between(range(len(steps)), low, high, color=colour, alpha=0.16, lw=0)
            if not math.isnan(yardstick):
                axes.axhline(yardstick, color=colour, ls="--", lw=0.9)
        axes.set_xticks(range(len(steps)), steps, rotation=90, fontsize=7.5)
        axes.set_ylim(-0.55, 1.05)
        if index == 0:
            axes.set_ylabel(y, fontsize=9, color=_INK)
            axes.legend(fontsize=8, frameon=False)
    return figure


def curves_chart(runs: Mapping[str, Mapping[str, tuple[ndarray, ndarray]]], *, columns: int = 3) -> Figure:
    """Return training curves: one panel per quantity, one line per run (steps, values)."""
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    rows = max(1, math.ceil(len(names) / columns))
    figure = Figure(figsize=(3.35 * columns, 2.25 * rows + 0.35), layout="constrained")
    handles: JSON = {}
    for index, name in enumerate(names):
        axes = _axes(figure, rows, columns, index + 1)
        axes.set_title(name, fontsize=9, loc="left", color=_INK)
        for number, (run, values) in enumerate(runs.items()):
            if name in values:
                colour = _COLOURS[number % len(_COLOURS)]
                handles[run] = axes.plot(*values[name], color=colour, lw=1.2)[0]
        if index >= len(names) - columns:
            axes.set_xlabel("step", fontsize=8.5, color=_INK)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper left", ncols=5, fontsize=8.5, frameon=False
        )
    return figure


def heat_chart(names: Sequence[str], matrix: ndarray, *, blocks: Sequence[int] = ()) -> Figure:
    """Return a square matrix of numbers of at least 0 as a table of colours; blocks: sizes of groups, lines between."""
    side = 0.42 * len(names) + 1.4
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    high = float(np.nanmax(matrix)) or 1.0
    axes.imshow(matrix, cmap="YlOrBr", vmin=0, vmax=1.6 * high)  # paler than the map's end: text stays readable
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    for row, column in np.ndindex(matrix.shape):
        axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", fontsize=7, color="#111111")
    for edge in np.cumsum(blocks)[:-1] if len(blocks) else ():
        axes.axhline(edge - 0.5, color=_INK, lw=1.4)
        axes.axvline(edge - 0.5, color=_INK, lw=1.4)
    return figure


def agreement_chart(names: Sequence[str], matrix: ndarray) -> Figure:
    """Return Kendall's tau of every pair of metrics as a table of colours with its numbers."""
    side = 0.46 * len(names) + 1.5
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(matrix, cmap="RdBu", vmin=-1.7, vmax=1.7)  # paler than the map's ends: text stays readable
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        text = "–" if math.isnan(value) else f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="#111111")
    return figure
