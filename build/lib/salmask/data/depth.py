"""How many bits the 16-bit files of a folder use: one answer for all of them, so that all are read alike.

A file alone is read by its own highest value. In a folder that would make a dark picture bright beside the others, so
the highest value of all counts: of at most `LOOKED` files, spread evenly. A file that exceeds it is refused when it is
read, with the remedy, and never read otherwise than the rest.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from torch import Tensor

from salmask.data.pictures import DEPTHS, Reader, opened, read_image
from salmask.data.rasters import is_tiff

__all__ = ["LOOKED", "settled"]

LOOKED = 64
"""Most files that are decoded to find the highest value."""
_DEEP = (".png", ".tif", ".tiff", ".jp2", ".pgm", ".pnm")


def settled(read: Callable[..., Tensor], files: Sequence[Path]) -> Callable[..., Tensor]:
    """Return what reads some files, with the depth of those that have 16 bits a value; said once where it is a guess.

    A reader that states a depth, a window or bands of its own stays as it is, and so does one of somebody else's.
    """
    reader = Reader() if read is read_image else read
    if not isinstance(reader, Reader) or reader.depth is not None or reader.window is not None:
        return read
    deep = [path for path in files if _is_deep(path)]
    if len(deep) < 2:
        return read
    looked = [deep[int(place)] for place in np.linspace(0, len(deep) - 1, min(LOOKED, len(deep)))]
    highest = max((value for path in looked if (value := reader.highest(path)) is not None), default=0)
    if not highest:
        return read
    depth = next(bits for bits in DEPTHS if highest < 2**bits)
    if depth < 16:
        warnings.warn(
            f"the highest value of {len(deep)} 16-bit pictures is below {2**depth}: all of them are read as {depth} "
            "bits, black to white; say otherwise with --depth (depth=...)",
            stacklevel=2,
        )
    return replace(reader, depth=depth)


def _is_deep(path: Path) -> bool:
    """Return whether the head of a file says that its values have 16 bits without sign."""
    # by its name first: a million JPEGs are not opened; and a pipe would be waited for without end
    if path.suffix.lower() not in _DEEP or not path.is_file():
        return False
    try:
        if is_tiff(path):
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                return bool(page.bitspersample == 16 and page.sampleformat == 1)
        with path.open("rb") as file:
            head = file.read(26)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return len(head) == 26 and head[24] == 16
        if path.suffix.lower() in (".jp2", ".pgm", ".pnm"):
            with opened(path) as picture:
                return picture.mode.startswith("I;16") and picture.format != "PPM"
    except Exception:  # named when it is decoded
        return False
    return False
