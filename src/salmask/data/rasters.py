"""Files whose values are more than 8-bit colours: TIFF with any bands and depth, 16-bit PNG, DICOM.

Each reader returns a `Raster`: the values as they are stored, with what the file says of their meaning. A picture that
lies in an archive is `Held`: its bytes, in place of a path.
"""

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import tifffile

__all__ = [
    "Held",
    "OpenFile",
    "PictureFile",
    "Raster",
    "UnclearError",
    "dicom_size",
    "is_common",
    "is_dicom",
    "is_tiff",
    "read_dicom",
    "read_png_colour",
    "read_tiff",
    "tiff_size",
    "tiff_turn",
    "upright",
]

_RGB, _MIN_IS_BLACK, _MIN_IS_WHITE = 2, 1, 0
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's "L"
_BACK = {6: 8, 8: 6}  # the orientations that undo others than themselves


class UnclearError(ValueError):
    """A whole file that cannot be read without a choice or a package; the message says which."""


@dataclass(frozen=True)
class Held:
    """The bytes of a picture file that lies in an archive or a table. name: says where, in errors."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        """Return the ending of its name, as of a path."""
        return os.path.splitext(self.name)[1]  # noqa: PTH122  (a tenth of what a Path takes, for every picture)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return its bytes as a file."""
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.name


PictureFile: TypeAlias = Path | Held
OpenFile: TypeAlias = io.BufferedReader | io.BytesIO
_COMMON = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")


def is_common(path: PictureFile, file: OpenFile) -> bool:
    """Return whether Pillow alone decodes a file, and loses nothing of it: by its first bytes. file: `path`, open."""
    head = file.read(_LOOKED)
    file.seek(0)
    png16 = head[:4] == b"\x89PNG" and head[24:25] == b"\x10"
    return head.startswith(_COMMON) and not png16 and not _says_dicom(path, head)


@dataclass(frozen=True)
class Raster:
    """Values (H, W, B) as stored. colour: the first three bands are red, green and blue.

    range: the values that are black and white, where the file says so. inverted: high values are dark.
    """

    values: np.ndarray
    colour: bool = False
    range: tuple[float, float] | None = None
    inverted: bool = False

    def chosen(self, bands: Sequence[int]) -> "Raster":
        """Return some of the bands, in the given order."""
        return replace(self, values=self.values[..., list(bands)], colour=False)

    def grey(self) -> "Raster":
        """Return the luminance of red, green and blue as the only band."""
        grey = self.values[..., :3].astype(np.float64) @ np.array(_GREY)
        return replace(self, values=np.round(grey).astype(self.values.dtype)[..., None], colour=False)


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does."""
    return _head(path, 4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM: by its mark, or by its name."""
    return _says_dicom(path, _head(path, _LOOKED))


def _says_dicom(path: PictureFile, head: bytes) -> bool:
    return head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


_LOOKED = 132  # bytes, as far as the mark of DICOM


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def tiff_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the first page."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]  # Any: for tifffile, a page or a frame; the first is a page
        return page.imagewidth, page.imagelength


def tiff_turn(path: Path) -> int:
    """Return the orientation of the first page, 1 to 8, as EXIF has it."""
    with tifffile.TiffFile(path) as file:
        return _turn(file.pages[0])


def _turn(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    tag = page.tags.get(274) if isinstance(page, tifffile.TiffPage) else None
    return 1 if tag is None or not 1 <= int(tag.value) <= 8 else int(tag.value)


def read_tiff(path: Path, *, pages: int) -> Raster | None:
    """Read a TIFF whose values Pillow would squeeze into 8 bits or take for transparency; None for any other.

    pages: several pages of one size are the bands of one picture where there are so many, else the first is read.
    """
    with tifffile.TiffFile(path) as file:
        first: Any = file.pages[0]  # likewise
        count = len(file.pages)
        together = count == pages > 1 and first.samplesperpixel == 1
        if count > 1 and not together:
            warnings.warn("of files of several pages the first is read", stacklevel=6)
        if _for_pillow(first) and not together:
            return None
        if together:
            values = np.stack([_page(path, file, index) for index in range(count)], -1)
        else:
            values = _page(path, file, 0)
        values = upright(values if values.ndim == 3 else values[..., None], _turn(first))
        colour = first.photometric == _RGB and values.shape[2] >= 3
        return _without_alpha(Raster(values, colour, inverted=first.photometric == _MIN_IS_WHITE), first)


def upright(array: np.ndarray, turn: int) -> np.ndarray:
    """Turn and mirror an array (H, W, ...) as an EXIF orientation says."""
    if turn >= 5:
        array = array.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _for_pillow(page: tifffile.TiffPage) -> bool:
    """Return whether a page has nothing that Pillow loses: 8 bits and no band beyond its colours, or 16-bit grey of
    which 0 is black.
    """
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    unsigned = page.sampleformat == 1
    if page.photometric not in (_RGB, _MIN_IS_BLACK, _MIN_IS_WHITE):
        return True  # palettes, CMYK, YCbCr
    if page.samplesperpixel == 1:
        return unsigned and bits <= (16 if page.photometric != _MIN_IS_WHITE else 8)  # it turns no 16 bits round
    return unsigned and bits == 8 and page.photometric == _RGB and page.samplesperpixel == 3


def _page(path: Path, file: tifffile.TiffFile, index: int) -> np.ndarray:
    page: Any = file.pages[index]  # likewise
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return upright(_by_opencv(path, index, error), _BACK.get(_turn(page), _turn(page)))  # which has turned it
    return values.transpose(1, 2, 0) if page.axes.startswith("S") else values


def _by_opencv(path: Path, index: int, error: Exception) -> np.ndarray:
    """Read a compressed page with OpenCV, which knows LZW but at most four bands."""
    pages: Sequence[np.ndarray] = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)[1]
    if len(pages) <= index:
        raise UnclearError(f"{error}; or save it without compression") from error
    values = pages[index]
    return values if values.ndim == 2 else values[..., _order(values.shape[2])]


def _order(bands: int) -> list[int]:
    return [2, 1, 0, *range(3, bands)] if bands >= 3 else list(range(bands))


def _without_alpha(raster: Raster, page: tifffile.TiffPage) -> Raster:
    """Lay the last band over white where it is transparency, else leave all bands as they are.

    Writers such as tifffile declare any fourth band of an RGB file to be transparency. It is believed where it hides:
    where nearly every pixel is either opaque or not there. Other values are an infrared band, a height, a temperature.
    """
    values, extra = raster.values, page.extrasamples
    if len(extra) != 1 or int(extra[0]) not in (1, 2) or values.dtype.kind != "u":
        return raster
    full = np.iinfo(values.dtype).max
    alpha = values[..., -1]
    if not ((alpha == full).any() and ((alpha == 0) | (alpha == full)).mean() >= 0.9):
        return raster
    share = alpha[..., None] / full
    colours = values[..., :-1] if int(extra[0]) == 1 else values[..., :-1] * share
    return replace(raster, values=np.round(colours + full * (1 - share)).clip(0, full).astype(values.dtype))


def read_png_colour(path: Path) -> Raster | None:
    """Read a PNG of 16 bits a channel and several channels, of which Pillow keeps 8; None for any other file."""
    head = _head(path, 26)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26 or head[24] != 16 or head[25] not in (2, 4, 6):
        return None
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None:
        raise ValueError("its pixels cannot be decoded")
    if values.dtype != np.uint16 or values.ndim == 2:
        return None
    values = values[..., _order(values.shape[2])]
    if values.shape[2] == 4:
        share = values[..., 3:] / 65535
        values = np.round(values[..., :3] * share + 65535 * (1 - share)).astype(np.uint16)
    return Raster(values, colour=True)


def dicom_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a DICOM file. Errors: ValueError for one without pixels, or without pydicom."""
    header = _dicom(path, pixels=False)
    if "Rows" not in header or "Columns" not in header:
        raise UnclearError("it is a DICOM file without a picture")
    return int(header.Columns), int(header.Rows)


def read_dicom(path: Path) -> Raster:
    """Read one picture of a DICOM file: rescaled (Hounsfield units for a CT), with the file's own window, if any."""
    data = _dicom(path, pixels=True)
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnclearError(f"it holds {frames} pictures: save the one to explain")
    values = np.asarray(data.pixel_array)
    if data.get("PhotometricInterpretation") == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        bits = int(data.RedPaletteColorLookupTableDescriptor[2])
        return Raster(apply_color_lut(values, data)[..., :3], colour=True, range=(0.0, 2.0**bits - 1))
    inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
    if values.ndim == 3:
        return Raster(values, colour=True)
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    if (slope, intercept) != (1, 0):
        values = values.astype(np.float32) * slope + intercept
    centre, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    span = None
    if centre is not None and width is not None and width > 0:
        span = (centre - width / 2, centre + width / 2)
    elif values.dtype.kind == "u":
        span = (0.0, 2.0 ** int(data.BitsStored) - 1)
    return Raster(values[..., None], range=span, inverted=inverted)


def _first(value: Any) -> float | None:  # Any: of pydicom
    """Return the first of a DICOM value that may be one or several."""
    if value is None:
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None


def _dicom(path: Path, *, pixels: bool) -> Any:  # Any: of pydicom, which need not be there
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise UnclearError("it needs pydicom: pip install 'salmask[dicom]'") from error
    return dcmread(path, stop_before_pixels=not pixels)
