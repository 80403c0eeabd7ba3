"""How a picture file becomes what a classifier sees, and how a map comes back to the size of the file.

crop     the short side becomes size / crop, the middle size x size is cut out: the ends of a long picture are lost
squash   the whole picture, its sides pressed to size x size: shapes change
pad      the whole picture, its long side becomes size, the rest is grey: small things become smaller
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from salmask.data.pictures import MAX_PIXELS, Reader
from salmask.data.sample import CropFlip, Pad, SampleTransform, ShortSide, Squash

__all__ = ["FITS", "INTERPOLATIONS", "LARGEST", "SMALLEST", "Part", "Sight"]

FITS = ("crop", "squash", "pad")
INTERPOLATIONS = ("bilinear", "bicubic")
SMALLEST, LARGEST = 8, 4096  # pixels of the square that a classifier sees


class Part(NamedTuple):
    """A box (x0, y0, x1, y1) in pixels, half-open."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Sight:
    """How a picture becomes what the classifier sees: size x size pixels, fitted and interpolated so.

    crop: share of the short side that "crop" keeps, as timm's crop_pct. depth, window, level, bands: what the values
    of a file mean, see `Reader`. colours: the three channels that are shown as red, green and blue, counted from 0.
    Errors: ValueError for values out of range.
    """

    image_size: int
    fit: str = "crop"
    interpolation: str = "bilinear"
    crop: float = 1.0
    depth: int | None = None
    window: float | None = None
    level: float | None = None
    bands: tuple[int, ...] | None = None
    colours: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(
                f"fit is 'crop' (short side, then centre), 'squash' or 'pad' (whole picture, grey beside it), got "
                f"{self.fit!r}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is 'bilinear' or 'bicubic', got {self.interpolation!r}")
        if not isinstance(self.image_size, int) or not SMALLEST <= self.image_size <= LARGEST:
            raise ValueError(f"an image size is {SMALLEST} to {LARGEST} pixels, got {self.image_size}")
        if not 0.1 <= self.crop <= 1:
            raise ValueError(f"crop is the share of the short side that is kept, 0.1 to 1, got {self.crop}")
        for name in ("bands", "colours"):  # JSON knows lists alone
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if self.colours is not None and (len(self.colours) != 3 or min(self.colours) < 0):
            raise ValueError(f"expected three channels to show as red, green and blue, got {self.colours}")
        self.reader(channels=3 if self.bands is None else len(self.bands))  # for its clear errors

    def reader(self, *, channels: int, max_pixels: int | None = None) -> Reader:
        """Return the reader of picture files for a classifier of so many channels."""
        return Reader(
            channels, self.bands, self.depth, self.window, self.level, MAX_PIXELS if max_pixels is None else max_pixels
        )

    def shown(self, pictures: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return pictures as they are looked at: as they are."""
        return pictures

    def transform(self) -> SampleTransform:
        """Return the transform of evaluation."""
        mode = InterpolationMode(self.interpolation)
        if self.fit == "crop":
            return ShortSide(self.image_size, None if self.crop == 1 else self._short_side(), interpolation=mode)
        return (Squash if self.fit == "squash" else Pad)(self.image_size, interpolation=mode)

    def augmentation(self) -> CropFlip:
        """Return the transform of training: random crop and flip."""
        return CropFlip(self.image_size, interpolation=InterpolationMode(self.interpolation))

    def part(self, height: int, width: int) -> Part:
        """Return the part of a file's picture that the classifier sees."""
        if self.fit != "crop":
            return Part(0, 0, width, height)
        side, short = self._short_side(), min(height, width)
        resized = [side if length == short else int(side * length / short) for length in (height, width)]
        starts = [round((length - self.image_size) / 2) for length in resized]
        scale = [length / new for length, new in zip((height, width), resized, strict=True)]
        y0, x0 = (round(start * by) for start, by in zip(starts, scale, strict=True))
        y1, x1 = (round((start + self.image_size) * by) for start, by in zip(starts, scale, strict=True))
        return Part(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))

    def cut(self, height: int, width: int) -> float:
        """Return the share of a file's picture that the classifier does not see."""
        part = self.part(height, width)
        return 1 - (part.x1 - part.x0) * (part.y1 - part.y0) / (height * width)

    def to_file(
        self, maps: Float[Tensor, "batch inputs size size"], height: int, width: int
    ) -> Float[Tensor, "batch inputs height width"]:
        """Return maps at the size of the file that they explain; not a number where the classifier has not looked."""
        if self.fit == "pad":
            placed = Pad(self.image_size).placed(height, width)
            maps = maps[..., placed.y0 : placed.y1, placed.x0 : placed.x1]
        part = self.part(height, width)
        size = (part.y1 - part.y0, part.x1 - part.x0)
        whole = torch.full((*maps.shape[:2], height, width), math.nan, device=maps.device)
        whole[..., part.y0 : part.y1, part.x0 : part.x1] = F.interpolate(
            maps.float(), size, mode="bilinear", align_corners=False
        )
        return whole

    def _short_side(self) -> int:
        return math.floor(self.image_size / self.crop)  # as timm rounds
