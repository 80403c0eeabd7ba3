"""Figures of one image: the mask over it, the kept and the removed picture, and what the classifier says of each.

Arrays in, pictures out. Small images are enlarged, so that a 64-pixel one can be read. Drawn without matplotlib, whose
start takes longer than an explanation.
"""

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

__all__ = ["overlay", "picture", "spread_ids", "strip", "to_uint8"]

Probabilities = Sequence[tuple[str, float]]

# magma, from 0 to 1, as red, green and blue (256, 3): perceptually uniform, equal steps of the mask look equal
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_MAGMA)[0, :, ::-1]
_SHOWN = {"whole": "#b5babf", "kept": "#a3c8bb", "removed": "#dcb0a6"}  # of bars with black letters over them
_SIDE = 256  # pixels of a panel's longer side, at least
_GAP, _LINE, _BAR = 12, 20, 26  # pixels between panels, of a line of text, of a bar


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
    colours = _COLOURS[(values * 256).astype(int).clip(0, 255)].astype(np.float32)
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
    "removed" -> [(class, probability), ...], best first, already softmax. title: above, on several lines where it is
    long. threshold: of the outline, see `overlay`.

    Errors: ValueError for shapes that do not fit, or probabilities of other pictures.
    """
    if set(probabilities) != set(_SHOWN):
        raise ValueError(f"expected probabilities of {sorted(_SHOWN)}, got {sorted(probabilities)}")
    panels = {
        "image": _enlarge(to_uint8(image), _SIDE),
        f"mask, mean {_plane(mask).mean():.2f}": overlay(image, mask, threshold=threshold, side=_SIDE),
        "kept": _enlarge(to_uint8(kept), _SIDE),
        "removed": _enlarge(to_uint8(removed), _SIDE),
    }
    height, width = next(iter(panels.values())).shape[:2]
    width = max(width, _SIDE)
    lines = max(1, *(len(pairs) for pairs in probabilities.values()))
    heading = wrapped(title, 4 * width + 3 * _GAP) if title else []
    top = _GAP + len(heading) * _LINE + (_GAP if heading else 0) + _LINE
    canvas = Image.new("RGB", (4 * width + 5 * _GAP, top + height + _GAP + lines * _BAR + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for line, text in enumerate(heading):
        draw.text((_GAP, _GAP + line * _LINE), text, font=_font(15), fill="black")
    for column, (name, panel) in enumerate(panels.items()):
        left = _GAP + column * (width + _GAP)
        draw.text((left, top - _LINE), name, font=_font(13), fill="#222222")
        canvas.paste(Image.fromarray(panel), (left, top))
    below = top + height + _GAP
    for column, name in ((0, "whole"), (2, "kept"), (3, "removed")):
        _bars(draw, (_GAP + column * (width + _GAP), below), width, probabilities[name], _SHOWN[name])
    _scale(canvas, (2 * _GAP + width, below), width)
    return canvas


def wrapped(text: str, width: int) -> list[str]:
    """Return a title in lines of at most so many pixels, cut between words, or within one that is longer."""
    most = max(8, int(width / _font(15).getlength("n")))
    return textwrap.wrap(text, most)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans, which comes with matplotlib and has letters of many scripts; matplotlib is not loaded."""
    home = importlib.util.find_spec("matplotlib")
    for folder in (home.submodule_search_locations or []) if home is not None else []:
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _bars(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, pairs: Probabilities, colour: str) -> None:
    """Draw one bar per class with its name and probability written over it: names of any length fit."""
    font = _font(12)
    for line, (name, probability) in enumerate(pairs):
        left, top = at[0], at[1] + line * _BAR
        right, bottom, middle = left + width - 1, top + _BAR - 5, top + (_BAR - 4) // 2
        draw.rectangle((left, top, right, bottom), fill="#eef0f1")
        share = min(max(probability, 0.0), 1.0)
        if share > 0:
            draw.rectangle((left, top, left + round(share * (width - 1)), bottom), fill=colour)
        number = f"{probability:.2f}"
        room = width - 18 - font.getlength(number)
        short = name
        while font.getlength(short) > room:
            short = f"{short.rstrip('…')[:-1]}…"
        draw.text((left + 5, middle), short, font=font, fill="#111111", anchor="lm")
        draw.text((right - 5, middle), number, font=font, fill="#111111", anchor="rm")


def _scale(canvas: Image.Image, at: tuple[int, int], width: int) -> None:
    """Draw the colour scale of the overlay where the mask has no probabilities."""
    draw, (left, top) = ImageDraw.Draw(canvas), at
    canvas.paste(Image.fromarray(np.ascontiguousarray(_COLOURS[None])).resize((width, 12)), at)
    for share, text, anchor in ((0, "0 hidden", "la"), (0.5, "0.5", "ma"), (1, "1 evidence", "ra")):
        draw.text((left + share * (width - 1), top + 15), text, font=_font(11), fill="#222222", anchor=anchor)


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
