"""Figures of one image: the mask over it, the kept and the removed picture, and what the classifier says of each.

Arrays in, pictures out; nothing is shown, and no state of matplotlib's is touched. Small images are enlarged,
so that a 64-pixel one can be read.
"""

import textwrap
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy import ndarray
from numpy.typing import ArrayLike
from PIL import Image

__all__ = ["overlay", "picture", "spread_ids", "strip", "to_uint8"]

Probabilities = Sequence[tuple[str, float]]

_COLOURS = matplotlib.colormaps["magma"]  # perceptually uniform: equal steps of the mask look equal
_SHOWN = {"whole": "#5b6770", "kept": "#2a7f62", "removed": "#b3462f"}
_SIDE = 256  # pixels of a panel's longer side, at least
_TITLE = 125  # characters of a line of the title


def to_uint8(image: ArrayLike) -> UInt8[ndarray, "height width 3"]:
    """Return an image as bytes: (3, H, W) in [0, 1], torch or numpy, or (H, W, 3) bytes as they are.

    Errors: ValueError for another shape.
    """
    array = _array(image)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    if array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"expected one image (3, H, W) in [0, 1], got shape {array.shape}: pass images[i]")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array.transpose(1, 2, 0))
    return np.rint(255 * np.clip(array, 0, 1).transpose(1, 2, 0)).astype(np.uint8)


def overlay(
    image: ArrayLike,
    mask: ArrayLike,
    *,
    threshold: float | None = None,
    side: int | None = None,
    opacity: tuple[float, float] = (0.25, 0.8),
) -> UInt8[ndarray, "rows columns 3"]:
    """Return the mask in colours over the image, and the outline of {mask > threshold}.

    The picture is shown in grey and darkened; colour and opacity grow with the mask, opacity (at 0, at 1), so that
    both the low and the high part stay readable. mask: (1, H, W) or (H, W) in [0, 1]. threshold: None takes the
    mask's mean, the rule of the localization box; a constant mask has no outline. side: enlarge to this many
    pixels before the outline is drawn.

    Errors: ValueError where image and mask differ in size or the mask leaves [0, 1].
    """
    picture, values = to_uint8(image), _plane(mask)
    if values.shape != picture.shape[:2]:
        raise ValueError(
            f"expected a mask of the image's size {picture.shape[:2]}, got {values.shape}: resize the mask"
        )
    if side is not None:
        picture, values = _enlarge(picture, side), np.clip(_enlarge(values, side), 0, 1)
    grey = picture.astype(np.float32).mean(2, keepdims=True)
    colours = 255 * _COLOURS(values)[..., :3].astype(np.float32)
    low, high = opacity
    share = (low + (high - low) * values)[..., None]
    blend = np.rint((1 - share) * grey + share * colours).clip(0, 255).astype(np.uint8)
    return _outline(blend, values, float(values.mean()) if threshold is None else threshold)


def _outline(picture: ndarray, values: ndarray, threshold: float) -> ndarray:
    inside = (values > threshold).astype(np.uint8)
    if not inside.any() or inside.all() or np.ptp(values) == 0:
        return picture
    outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    if sum(map(len, outlines)) > inside.size / 8:  # noise: its outline would hide the map
        return picture
    drawn = np.ascontiguousarray(picture)
    width = max(1, round(max(picture.shape[:2]) / 180))
    return np.asarray(cv2.drawContours(drawn, outlines, -1, (64, 224, 208), width))


def spread_ids(ids: Sequence[str], count: int) -> list[str]:
    """Return `count` of the ids at even distances: pictures of every class where the data is sorted by class."""
    return [ids[i] for i in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]


def strip(image: ArrayLike, mask: ArrayLike, kept: ArrayLike, removed: ArrayLike, *, side: int = 128) -> Image.Image:
    """Return image, overlay, kept and removed picture side by side: what a report cuts its cells from.

    Every panel has the same size, its longer side at least `side` pixels.
    """
    panels = [
        _enlarge(to_uint8(image), side),
        overlay(image, mask, side=side),
        _enlarge(to_uint8(kept), side),
        _enlarge(to_uint8(removed), side),
    ]
    return Image.fromarray(np.concatenate(panels, axis=1))


def picture(
    image: ArrayLike,
    mask: ArrayLike,
    kept: ArrayLike,
    removed: ArrayLike,
    probabilities: Mapping[str, Probabilities],
    *,
    title: str = "",
    threshold: float | None = None,
) -> Image.Image:
    """Return one figure: image, mask overlay, kept and removed picture, and class probabilities of all three.

    image, kept, removed: (3, H, W) in [0, 1]. mask: (1, H, W) in [0, 1]. probabilities: "whole", "kept",
    "removed" -> [(class, probability), ...], best first, already softmax. title: above, on two lines where it is long.
    threshold: of the outline, see `overlay`.

    Errors: ValueError for shapes that do not fit, or probabilities of other pictures.
    """
    if set(probabilities) != set(_SHOWN):
        raise ValueError(f"expected probabilities of {sorted(_SHOWN)}, got {sorted(probabilities)}")
    panels = {
        "image": _enlarge(to_uint8(image), _SIDE),
        "mask": overlay(image, mask, threshold=threshold, side=_SIDE),
        "kept": _enlarge(to_uint8(kept), _SIDE),
        "removed": _enlarge(to_uint8(removed), _SIDE),
    }
    lines = max(1, *(len(pairs) for pairs in probabilities.values()))
    figure, grid = _layout(panels["image"].shape, lines, title)
    for column, (name, panel) in enumerate(panels.items()):
        heading = f"{name}, mean {_plane(mask).mean():.2f}" if name == "mask" else name
        _show(figure.add_subplot(grid[0, column]), panel, heading)
    for column, name in ((0, "whole"), (2, "kept"), (3, "removed")):
        _bars(figure.add_subplot(grid[1, column]), probabilities[name], lines, _SHOWN[name])
    _scale(figure.add_subplot(grid[1, 1]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _layout(shape: Sequence[int], lines: int, title: str) -> tuple[Figure, GridSpec]:
    """Return a figure whose panels have their own proportions, and its grid: pictures above, bars below."""
    wide = 2.56  # inches of a panel
    tall, bars = wide * shape[0] / shape[1], 0.28 * lines + 0.1
    height = tall + bars + (0.95 if title else 0.62)
    figure = Figure(figsize=(4 * wide + 0.55, height), dpi=110)
    grid = figure.add_gridspec(
        2,
        4,
        height_ratios=(tall, bars),
        left=0.012,
        right=0.988,
        top=1 - (0.62 if title else 0.32) / height,
        bottom=0.06 / height,
        wspace=0.045,
        hspace=0.4 / (tall + bars),
    )
    if title:
        title = textwrap.fill(title, _TITLE)
        figure.suptitle(title, x=0.012, y=1 - 0.08 / height, ha="left", va="top", fontsize=11, parse_math=False)
    return figure, grid


def _show(axes: Axes, panel: ndarray, name: str) -> None:
    axes.imshow(panel, interpolation="nearest")
    axes.set_title(name, fontsize=9.5, loc="left", pad=3, color="#222222")
    axes.set_axis_off()


def _bars(axes: Axes, pairs: Probabilities, lines: int, colour: str) -> None:
    """Draw one bar per class with its name and probability written over it: names of any length fit."""
    axes.set(xlim=(0, 1), ylim=(lines - 0.5, -0.5))
    axes.set_axis_off()
    for line, (name, probability) in enumerate(pairs):
        axes.barh(line, 1, height=0.8, color="#eef0f1", lw=0)
        axes.barh(line, min(max(probability, 0.0), 1.0), height=0.8, color=colour, alpha=0.42, lw=0)
        short = name if len(name) <= 30 else name[:28] + "…"
        axes.text(0.02, line, short, va="center", ha="left", fontsize=8, color="#111111", parse_math=False)
        axes.text(0.98, line, f"{probability:.2f}", va="center", ha="right", fontsize=8, color="#111111")


def _scale(panel: Axes) -> None:
    """Draw the colour scale of the overlay where the mask has no probabilities."""
    panel.set_axis_off()
    axes = panel.inset_axes((0.03, 0.62, 0.94, 0.22))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=_COLOURS, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0 hidden", "0.5", "1 evidence"], fontsize=7.5)
    axes.tick_params(length=2, pad=1.5)
    left, centre, right = axes.get_xticklabels()
    left.set_horizontalalignment("left")
    centre.set_horizontalalignment("center")
    right.set_horizontalalignment("right")


def _array(values: ArrayLike) -> ndarray:
    """Return what torch or numpy holds as an array."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)  # numpy has no bfloat16


def _plane(mask: ArrayLike) -> Float[ndarray, "height width"]:
    array = np.asarray(_array(mask), dtype=np.float32)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2:
        raise ValueError(f"expected one mask (1, H, W) or (H, W), got shape {array.shape}: pass masks[i]")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"expected a mask in [0, 1], got [{array.min():.3g}, {array.max():.3g}]: normalise it first")
    return array


def _enlarge(array: ndarray, side: int) -> ndarray:
    """Return the array with its longer side at least `side` pixels: whole steps where they fit, else cubic."""
    height, width = array.shape[:2]
    factor = side / max(height, width)
    if factor <= 1:
        return array
    whole = factor == int(factor)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_NEAREST if whole and array.ndim == 3 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(array, size, interpolation=way))
