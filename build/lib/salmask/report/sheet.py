"""The pictures of an evaluation as one file: rows are images, columns explainers."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["MAP_ALONE", "MAP_KEPT_REMOVED", "panels_of", "picture_sheet", "read_picture"]

_GAP = 4  # pixels between two panels
_NAMES = ("image", "map", "kept", "removed")
MAP_ALONE = (1,)
MAP_KEPT_REMOVED = (1, 2, 3)
"""Panels of a strip (`pictures.strip`: image, map, kept, removed) that are shown, one below the other."""


def picture_sheet(
    columns: Mapping[str, Mapping[str, Path]], *, count: int, side: int, panels: Sequence[int]
) -> Image.Image | None:
    """Return a sheet of `count` images, spread over those that have most columns; None where there are no pictures.

    columns: head of a column -> image -> file of its strip. side: pixels of a panel. panels: the lines of an image.
    A column without a picture of an image stays white there.
    """
    images = sorted({image for files in columns.values() for image in files})
    most = max((sum(image in files for files in columns.values()) for image in images), default=0)
    full = [image for image in images if sum(image in files for files in columns.values()) == most]
    if not full:
        return None
    chosen = [full[index] for index in np.linspace(0, len(full) - 1, min(count, len(full))).astype(int)]
    size = max(10, side // 8)
    font, line_height = ImageFont.load_default(size), size + 2
    heads = [textwrap.wrap(name, 13) for name in ("image", *columns)]
    step, top = side + _GAP, line_height * max(map(len, heads)) + 2 * _GAP
    height = step * len(panels)
    sheet = Image.new("RGB", (step * len(heads), top + height * len(chosen)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):  # the last line stands on the pictures
        for index, text in enumerate(reversed(lines), start=1):
            pen.text((column * step + 1, top - _GAP - line_height * index), text, fill="black", font=font)
    for row, image in enumerate(chosen):
        high = top + row * height
        strips = {column: files[image] for column, files in enumerate(columns.values(), start=1) if image in files}
        sheet.paste(_panel(next(iter(strips.values())), 0, side), (0, high))
        for line, panel in enumerate(panels[1:], start=1):
            pen.text((3, high + line * step + 4), _NAMES[panel], fill="black", font=font)
        for column, file in strips.items():
            for line, panel in enumerate(panels):
                sheet.paste(_panel(file, panel, side), (column * step, high + line * step))
    return sheet


def read_picture(path: Path) -> Image.Image:
    """Return a picture of a report. Errors: ValueError for a broken file."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}): delete it or evaluate again") from error


def panels_of(path: Path) -> list[Image.Image]:
    """Return image, map, kept and removed picture of a strip. Errors: ValueError for a file that is no strip."""
    strip = read_picture(path)
    if strip.width < 4 or strip.width % 4:
        raise ValueError(
            f"{path}: expected four panels of equal width side by side (image, map, kept, removed), got a picture "
            f"{strip.width} wide and {strip.height} high: delete it or evaluate again"
        )
    width = strip.width // 4
    return [strip.crop((i * width, 0, (i + 1) * width, strip.height)) for i in range(4)]


def _panel(file: Path, panel: int, side: int) -> Image.Image:
    return panels_of(file)[panel].resize((side, side), Image.Resampling.LANCZOS)
