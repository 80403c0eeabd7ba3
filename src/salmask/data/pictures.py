"""From a picture file to bytes that a classifier can read, whatever the file holds.

    stored values (H, W, B) -> [channels chosen] -> [0, 255] -> uint8 (C, H, W), upright

What is checked before anything is decoded: that the file is a regular one, and that its header promises no more
pixels than `max_pixels`. What the stored values mean is asked of the file (bits a sample, DICOM's window) and of the
caller (`depth`, `window` and `level`, `bands`); where neither says, the guess is announced, once, or the file refused.
"""

import io
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from salmask.data.rasters import (
    Held,
    OpenFile,
    PictureFile,
    Raster,
    UnclearError,
    dicom_size,
    is_common,
    is_dicom,
    is_tiff,
    read_dicom,
    read_png_colour,
    read_tiff,
    tiff_size,
    tiff_turn,
    upright,
)
from salmask.files import regular_file
from salmask.types import IGNORED, Pixels

__all__ = [
    "MASK",
    "MAX_PIXELS",
    "TRIMAP",
    "Reader",
    "TooLargeError",
    "read_image",
    "read_pixels",
    "stored_size",
    "upright_size",
]

MASK: Mapping[int, int] = {0: 0, 255: 1, 128: IGNORED}
TRIMAP: Mapping[int, int] = {2: 0, 1: 1, 3: IGNORED}
MAX_PIXELS = 178_956_970  # where Pillow, too, suspects a file that is made to fill the memory
ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height
DEPTHS = (8, 10, 12, 14, 16)


class TooLargeError(ValueError):
    """A picture of more pixels than were allowed: nothing is wrong with it."""


@dataclass(frozen=True)
class Reader:
    """Read a picture file: path, or bytes at hand -> uint8 (channels, height, width), upright.

    channels: how many the classifier reads. Grey becomes three equal ones, three become grey. bands: which of a file's
    bands, counted from 0, in the classifier's order; needed where a file has other bands than red, green and blue, or
    another number.
    depth: bits that the values of a 16-bit file use, such as 12; None: the least of 8, 10, 12, 14 and 16 that holds
    the highest value of the file, announced where it is not 16.
    window, level: width and centre of the range of values that is shown, as radiologists give it (Hounsfield units for
    a CT: 400 and 40 show soft tissue); what lies outside is black or white. Needed for signed and for float values;
    DICOM files bring their own.
    max_pixels: of a picture, checked before it is decoded.
    Transparency is laid over white, as viewers show it. The first frame of an animation, the first page of a TIFF.
    Errors: FileNotFoundError; TooLargeError; ValueError naming a file that is no picture, or saying what it needs.
    """

    channels: int = 3
    bands: tuple[int, ...] | None = None
    depth: int | None = None
    window: float | None = None
    level: float | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.channels < 1 or self.max_pixels < 1:
            raise ValueError(f"expected at least one channel and one pixel, got {self.channels} and {self.max_pixels}")
        if self.depth is not None and not 1 <= self.depth <= 16:
            raise ValueError(f"a depth is 1 to 16 bits, got {self.depth}")
        if (self.window is None) != (self.level is None) or (self.window is not None and not self.window > 0):
            raise ValueError(
                f"a range of values is a window > 0 (its width) with a level (its centre), got {self.window} and "
                f"{self.level}"
            )
        if self.bands is not None and (len(self.bands) != self.channels or min(self.bands) < 0):
            raise ValueError(
                f"expected {self.channels} bands, one a channel of the classifier, counted from 0; got {self.bands}"
            )

    def __call__(self, path: PictureFile) -> UInt8[Tensor, "channels height width"]:
        """Return the picture."""
        if isinstance(path, Held):
            return self._read(path) if is_common(path, path.open()) else self._through_file(path)
        path = Path(path)
        regular_file(path, "a picture file")
        return self._read(path)

    def _through_file(self, held: Held) -> Tensor:
        """Return a picture of a kind that is read by path."""
        with tempfile.NamedTemporaryFile(suffix=held.suffix) as file:
            file.write(held.content)
            file.flush()
            try:
                return self._read(Path(file.name))
            except ValueError as error:
                raise type(error)(str(error).replace(file.name, held.name)) from error

    def _read(self, path: PictureFile) -> Tensor:
        try:
            array = self._to_bytes(self._channels(self._decode(path)))
        except (FileNotFoundError, TooLargeError):
            raise
        except UnclearError as error:
            raise ValueError(f"{path} cannot be decoded as it is: {error}") from error
        except Exception as error:  # decoders raise whatever a broken byte leads them to, MemoryError included
            raise ValueError(
                f"{path} cannot be decoded ({error or type(error).__name__}): repair or remove the file, or leave "
                "broken files out (skip_broken, --skip-broken)"
            ) from error
        return torch.from_numpy(np.array(array, order="C")).permute(2, 0, 1)  # resized twice as fast as planes are

    def highest(self, path: Path) -> int | None:
        """Return the highest stored value of a file without sign or stated range; None for others, and broken ones."""
        try:
            raster = self._channels(self._decode(path))
        except Exception:  # named when it is read
            return None
        stated = raster.range is not None or raster.values.dtype != np.uint16
        return None if stated else int(raster.values.max(initial=0))

    def check_size(self, path: PictureFile, size: tuple[int, int]) -> None:
        """Raise TooLargeError for a picture of (width, height) with more pixels than are allowed."""
        width, height = size
        if width * height > self.max_pixels:
            raise TooLargeError(
                f"{path} has {width}x{height} pixels, more than the limit of {self.max_pixels}: allow more "
                "(max_pixels, --max-pixels) if it is what it should be, or make it smaller"
            )

    def _decode(self, path: PictureFile) -> Raster:
        with path.open("rb") as file:
            if is_common(path, file):
                return self._by_pillow(path, file)  # opened once, its header parsed once
        self.check_size(path, stored_size(path))
        raster = self._by_kind(path)
        return self._by_pillow(path) if raster is None else raster

    def _by_pillow(self, path: PictureFile, file: OpenFile | None = None) -> Raster:
        with opened(path, file) as picture:
            self.check_size(path, picture.size)
            return _raster_of(picture, path)

    def _by_kind(self, path: PictureFile) -> Raster | None:
        """Return a picture of a kind of which Pillow loses something; None for others."""
        if isinstance(path, Held):
            return None
        if is_dicom(path):
            return read_dicom(path)
        if is_tiff(path) and (raster := read_tiff(path, pages=self.channels)) is not None:
            return raster
        raster = read_png_colour(path)
        if raster is None:
            return None
        with opened(path) as picture:
            return replace(raster, values=upright(raster.values, _orientation(picture, path)))

    def _channels(self, raster: Raster) -> Raster:
        """Return the bands that the classifier reads."""
        count = raster.values.shape[2]
        if self.bands is not None:
            if max(self.bands) >= count:
                raise UnclearError(f"it has bands 0 to {count - 1}, asked for are {self.bands}")
            return raster.chosen(self.bands)
        if count == self.channels:
            return raster
        if count == 1 and self.channels == 3:
            return raster.chosen((0, 0, 0))
        if raster.colour and count > 3 and self.channels == 3:
            warnings.warn(
                f"of pictures with red, green, blue and {count - 3} more bands that are no transparency, the first "
                "three are read: name others with --bands",
                stacklevel=_OUTSIDE,
            )
            return raster.chosen((0, 1, 2))
        if raster.colour and self.channels == 1:
            return raster.grey()
        raise UnclearError(
            f"it has {count} bands, the classifier reads {self.channels} channels: name {self.channels} of them with "
            "bands=(...) (--bands)"
        )

    def _to_bytes(self, raster: Raster) -> np.ndarray:
        """Scale to 0 ... 255, black to white."""
        values = raster.values
        if self.window is not None and self.level is not None:
            low, high = self.level - self.window / 2, self.level + self.window / 2
        elif raster.range is not None:
            low, high = raster.range
        elif values.dtype.kind == "u" and (values.dtype.itemsize <= 2 or int(values.max(initial=0)) < 2**16):
            low, high = 0.0, 2.0 ** self._bits(values) - 1
        else:
            raise UnclearError(
                f"expected 8 or 16 bits a channel without sign, got {values.dtype} values from {values.min():g} to "
                f"{values.max():g}: say which of them are black and white by window (width) and level (centre) "
                "(--window 400 --level 40 for the soft tissue of a CT)"
            )
        if values.dtype == np.uint8 and (low, high) == (0, 255) and not raster.inverted:
            return values
        # In single precision 65535 / 257 is still exact to the byte.
        scaled = (values.astype(np.float32) - low) * np.float32(255 / (high - low))
        if not np.isfinite(scaled).all():
            raise ValueError("its values are not all finite")
        scaled = scaled.clip(0, 255)
        return np.round(255 - scaled if raster.inverted else scaled).astype(np.uint8)

    def _bits(self, values: np.ndarray) -> int:
        if values.dtype == np.uint8:
            return 8
        highest = int(values.max(initial=0))
        if self.depth is not None:
            if highest >= 2**self.depth:
                raise UnclearError(f"its highest value {highest} does not fit into {self.depth} bits (depth, --depth)")
            return self.depth
        bits = next(bits for bits in DEPTHS if highest < 2**bits)
        if bits < 16 and highest:
            warnings.warn(
                f"16-bit pictures whose highest value is below {2**bits} are read as {bits} bits, black to white: say "
                "how many they use with --depth (depth=...), so that all are read alike",
                stacklevel=_OUTSIDE,
            )
        return bits


_OUTSIDE = 4  # warnings point to whoever called the reader


def read_image(path: PictureFile) -> UInt8[Tensor, "3 height width"]:
    """Read a picture of any kind as 8-bit RGB, as `Reader()` does."""
    return Reader()(path)


def read_pixels(path: Path, codes: Sequence[Mapping[int, int]] = (MASK, TRIMAP)) -> Pixels:
    """Decode a pixel mask, upright, to 0 background, 1 object, 255 ignored.

    codes: the ways to write (background, object, ignored), of which the first that has all values of the file is
    taken: (0, 255, 128), and the trimap (2, 1, 3). Errors: ValueError; TooLargeError, before it is decoded.
    """
    regular_file(path, "a picture file")
    try:
        with opened(path) as picture:
            Reader().check_size(path, picture.size)
            turn = _orientation(picture, path)
            array = upright(np.array(picture.convert("L") if picture.mode in {"1", "P", "RGB"} else picture), turn)
    except (FileNotFoundError, TooLargeError):
        raise
    except Exception as error:
        raise ValueError(f"the pixel mask {path} cannot be decoded ({error}): repair or remove it") from error
    values = set(np.unique(array).tolist())
    code = next((code for code in codes if values <= code.keys()), None)
    if array.ndim != 2 or code is None:
        meanings = ", or of ".join("{} (background), {} (object), {} (ignored)".format(*code) for code in codes)
        raise ValueError(
            f"the pixel mask {path} must be one grey channel of {meanings}; got shape {array.shape}, values "
            f"{sorted(values)[:8]}"
        )
    table = np.zeros(256, np.uint8)
    for stored, meant in code.items():
        table[stored] = meant
    return torch.from_numpy(table[array])


def stored_size(path: PictureFile) -> tuple[int, int]:
    """Return (width, height) as stored, from the header alone."""
    if isinstance(path, Path) and is_dicom(path):
        return dicom_size(path)
    if isinstance(path, Path) and is_tiff(path):
        return tiff_size(path)
    with opened(path) as picture:
        return picture.size


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of the upright picture from the head of the file, or None where that cannot be read."""
    try:
        regular_file(path, "a picture file")
        width, height = stored_size(path)
        if is_dicom(path):
            return width, height
        if is_tiff(path):
            turn = tiff_turn(path)
        else:
            with opened(path) as picture:
                turn = _orientation(picture, path)
        return (height, width) if turn >= 5 else (width, height)
    except Exception:  # named when it is decoded
        return None


_LIMIT = threading.Lock()


@contextmanager
def opened(path: PictureFile, file: OpenFile | None = None) -> Iterator[Image.Image]:
    """Open a picture with Pillow, whose own limit on pixels is ours here: headers tell the size first.

    file: `path`, where it is open already.
    """
    if path.suffix.lower() in (".heic", ".heif"):
        _register_heif()
    with ExitStack() as stack:
        # Of a path, Pillow would map grey TIFF files that are turned into memory with their sides exchanged.
        source: IO[bytes] | None = file
        if source is None:
            source = io.BytesIO(path.content) if isinstance(path, Held) else stack.enter_context(path.open("rb"))
        with _LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(source)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        yield stack.enter_context(picture)


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UnclearError("it needs pillow-heif: pip install 'salmask[heic]'") from error
    register_heif_opener()


_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # and no MPO, whose further pictures are a camera's own


def _raster_of(picture: Image.Image, path: PictureFile) -> Raster:
    if picture.format in _ANIMATED and getattr(picture, "is_animated", False):
        warnings.warn("of animations the first frame is read", stacklevel=_OUTSIDE + 1)
    picture.load()
    turn = _orientation(picture, path)  # not before: Pillow turns a TIFF itself as it loads it, and takes the tag off
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        whole = values.min(initial=0) >= 0 and values.max(initial=0) < 2**16
        values = values.astype(np.uint16) if whole else values
        # Pillow scales the maxval of a PGM to 65535 itself.
        span = (0.0, 65535.0) if picture.format == "PPM" else None
        return Raster(upright(values[..., None], turn), range=span)
    if picture.mode == "F":
        return Raster(upright(np.asarray(picture)[..., None], turn))
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        return Raster(upright(np.asarray(picture.convert("L"))[..., None], turn))
    return Raster(upright(np.asarray(_rgb(picture)), turn), colour=True)


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert to RGB without showing what transparency hides."""
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # Pillow would copy it


def _orientation(picture: Image.Image, path: PictureFile) -> int:
    """Return the EXIF orientation, 1 to 8; a file whose EXIF cannot be read is shown as it is stored."""
    try:
        turn = int(picture.getexif().get(ORIENTATION, 1))
    except Exception as error:  # struct.error, KeyError, ... of a block that some camera or editor has written
        warnings.warn(f"{path}: its EXIF cannot be read ({error}), taken as upright", stacklevel=_OUTSIDE + 2)
        return 1
    return turn if 1 <= turn <= 8 else 1
