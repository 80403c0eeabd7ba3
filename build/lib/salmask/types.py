"""Names for the tensors that travel through the library: shapes and ranges, stated once.

| name | shape | range |
|---|---|---|
| Images | (B, C, H, W) float | [0, 1], not normalised; C is the classifier's number of channels, RGB where it is 3 |
| Masks | (B, 1, H, W) float | [0, 1], 1 = evidence; of a classifier with K inputs also (B, K, H, W), one an input |
| Targets | (B,) integer | class indices |
| Logits | (B, K) float | unnormalised class scores |
| Values | (B,) float | one value per image |
| Boxes | (N, 4) float | x0, y0, x1, y1, half-open, pixels of the array at hand |
| Pixels | (H, W) integer | ground truth: 0 background, 1 object, 255 ignored |
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

__all__ = [
    "IGNORED",
    "NORMALISERS",
    "Asked",
    "Boxes",
    "Draws",
    "FeatureMap",
    "Features",
    "Images",
    "Infill",
    "Logits",
    "Masks",
    "Pixels",
    "Prepared",
    "Prepares",
    "Size",
    "Targets",
    "Values",
    "constant",
    "constant_span",
    "in_colour",
    "normalise",
    "size_of",
]

Images = Float[Tensor, "batch channels height width"]
Masks = Float[Tensor, "batch masks height width"]
Targets = Int[Tensor, " batch"]
Asked: TypeAlias = Tensor | Sequence[object]  # classes as a caller gives them: indices, checked and refused by name
Logits = Float[Tensor, "batch classes"]
Values = Float[Tensor, " batch"]
Boxes = Float[Tensor, "boxes 4"]
Pixels = UInt8[Tensor, "height width"]
Size = tuple[int, int]
FeatureMap = Float[Tensor, "batch _ _ _"]  # one of several: each has a shape of its own

IGNORED = 255
"""Value of `Pixels` that no score may count, neither for nor against a map."""


class Features(NamedTuple):
    """What a classifier says of a batch, from one forward pass: logits, and one map per stage."""

    logits: Tensor
    maps: Sequence[Tensor]


@runtime_checkable
class Infill(Protocol):
    """g(x, holes): what stands where pixels are hidden.

    `holes` is 1 where the picture is hidden. An infill never learns whether the kept or the removed
    picture is played. Returns something that broadcasts to the images' shape, in [0, 1].
    """

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        """Return the colours that fill the holes."""
        ...


@runtime_checkable
class Draws(Protocol):
    """An infill that draws random numbers; one whose generator is None, as `Remasked` of a blur, draws none."""

    @property
    def generator(self) -> Generator | None:
        """What the numbers are drawn from."""
        ...

    def reseeded(self, seed: int) -> Infill:
        """Return the same infill with a fresh generator."""
        ...

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        """Return the colours that fill the holes."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """An infill for certain pictures. Called with n pictures for each of them, it takes them as n rounds of all."""

    def take(self, index: Tensor) -> "Prepared":
        """Return the infill for some of the pictures."""
        ...

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        """Return the colours that fill the holes."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """An infill part of whose work depends on the pictures alone."""

    def prepare(self, images: Images) -> Prepared:
        """Do that work, and return an infill for these pictures."""
        ...

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        """Return the colours that fill the holes."""
        ...


def in_colour(
    images: Float[Tensor, "batch channels height width"], bands: Sequence[int] | None = None
) -> Float[Tensor, "batch 3 height width"]:
    """Return images of any number of channels as red, green and blue to look at.

    bands: the three channels that are shown, counted from 0 (false colour); None: the first three, or what there is:
    one channel is grey, of two the third colour stays dark. Errors: ValueError for channels that do not exist.
    """
    count = images.shape[1]
    if bands is not None:
        if len(bands) != 3 or not all(0 <= band < count for band in bands):
            raise ValueError(f"expected three of the channels 0 to {count - 1} to show, got {tuple(bands)}")
        return images[:, list(bands)]
    if count == 1:
        return images.expand(-1, 3, -1, -1)
    if count == 2:
        return torch.cat([images, torch.zeros_like(images[:, :1])], 1)
    return images[:, :3]


def size_of(images: Tensor) -> Size:
    """Return (H, W) of images or maps."""
    return images.shape[-2], images.shape[-1]


ROUNDING = 1e-6
"""Relative span below which the values of a map differ by rounding alone: some eight steps of float32."""


def constant_span(low: Tensor, high: Tensor) -> Bool[Tensor, "..."]:
    """Return which maps are constant up to rounding, from their least and largest values: they order no pixels."""
    span = high - low
    return (span <= ROUNDING * torch.maximum(low.abs(), high.abs())) & span.isfinite()


def constant(maps: Tensor) -> Bool[Tensor, " batch"]:
    """Return which maps (B, ...) are degenerate: constant up to rounding (empty and full ones too), or not finite."""
    flat = maps.flatten(1)
    return constant_span(flat.amin(1), flat.amax(1)) | ~flat.isfinite().all(1)


def normalise(maps: Masks, how: str) -> Masks:
    """Put each map on [0, 1]; a map that is constant up to rounding becomes zeros by "minmax", an empty one by "max".

    The maps of several inputs of one picture are put on one scale, so that they stay comparable.
    minmax: (a - min a) / (max a - min a).  max: relu(a) / max a.  rank: the share of pixels that are smaller,
    ties sharing their mean rank.
    """
    if how not in NORMALISERS:
        raise ValueError(f"unknown normalisation {how!r}: choose of {', '.join(NORMALISERS)}")
    return NORMALISERS[how](maps)


def _minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    flat = constant_span(low, high)  # else the rounding of a constant map would be blown up to a map in [0, 1]
    return torch.where(
        flat, torch.zeros_like(maps), (maps - low) / torch.where(flat, torch.ones_like(high), high - low)
    )


def _max(maps: Tensor) -> Tensor:
    positive = maps.clamp_min(0)
    high = positive.amax((1, 2, 3), keepdim=True)
    return positive / torch.where(high > 0, high, torch.ones_like(high))


def _rank(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    ordered = flat.sort(1).values
    below = torch.searchsorted(ordered, flat.contiguous())
    upto = torch.searchsorted(ordered, flat.contiguous(), right=True)
    return ((below + upto - 1) / (2 * max(1, flat.shape[1] - 1))).to(maps.dtype).view_as(maps)


NORMALISERS = MappingProxyType({"none": lambda maps: maps, "minmax": _minmax, "max": _max, "rank": _rank})
"""Ways to put raw maps on [0, 1]."""
