"""The pictures of an evaluation as one file: rows are images, columns explainers."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["MAP_ALONE", "MAP_KEPT_REMOVED", "picture_sheet"]

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
    chosen = [full[place] for place in np.linspace(0, len(full) - 1, min(count, len(full))).astype(int)]
    font = ImageFont.load_default(max(9, side // 8))
    sheet = Image.new("RGB", (side * (1 + len(columns)), side * (1 + len(panels) * len(chosen))), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(["image", *columns]):
        text = "\n".join(textwrap.wrap(name, 13)[:5])
        pen.multiline_text((column * side + 3, 4), text, fill="black", font=font, spacing=2)
    for row, image in enumerate(chosen):
        top = side * (1 + row * len(panels))
        found = {column: files[image] for column, files in enumerate(columns.values(), start=1) if image in files}
        sheet.paste(_panel(next(iter(found.values())), 0, side), (0, top))
        for line, panel in enumerate(panels[1:], start=1):
            pen.text((3, top + line * side + 4), _NAMES[panel], fill="black", font=font)
        for column, file in found.items():
            for line, panel in enumerate(panels):
                sheet.paste(_panel(file, panel, side), (column * side, top + line * side))
    return sheet


def _panel(file: Path, panel: int, side: int) -> Image.Image:
    with Image.open(file) as strip:
        width = strip.width // 4
        cut = strip.convert("RGB").crop((panel * width, 0, (panel + 1) * width, strip.height))
    return cut.resize((side, side), Image.Resampling.LANCZOS)
