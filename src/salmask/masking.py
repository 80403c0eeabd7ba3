"""Hiding pixels: the two pictures of the game, and what stands where pixels are hidden.

    keep(x, m)   = m * x + (1 - m) * g(x, 1 - m)
    remove(x, m) = keep(x, 1 - m)

g is an *infill*: any callable `infill(images, holes)` that returns colours which broadcast to the images.
It sees the holes, never the side that is played. Masks are (B, 1, H, W), or (B, C, H, W) where channels are hidden
apart, as those of several inputs are (`Inputs.spread`). The paper's "masking by zeros" in normalised space is the
infill `MeanColour`. A mean of two pictures in [0, 1] stays in [0, 1], so nothing is clipped.

Infills that draw random numbers (`Draws`) hold the generator that they were given; the same seed gives the same run.
Where the same pictures are hidden many times over, `prepare` does once what need not be done at every call.
"""

from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.arguments import by_channel
from salmask.classifier.inputs import check_images, check_tensor
from salmask.files import Within, plain_arguments
from salmask.types import Draws, Images, Infill, Masks, Prepared, Prepares

__all__ = [
    "IMAGENET_MEAN",
    "Bank",
    "Blur",
    "BlurPyramid",
    "Colour",
    "MeanColour",
    "Noise",
    "RandomColour",
    "Remasked",
    "WindowBlur",
    "keep",
    "prepare",
    "remove",
    "reseeded",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
Colour: TypeAlias = float | tuple[float, ...]
"""One value a channel in [0, 1], or one for all of them."""


def keep(images: Images, masks: Tensor, infill: Infill) -> Images:
    """Return the kept picture m * x + (1 - m) * g(x, 1 - m); gradients flow to the mask and, if asked, to x."""
    masks = _fitting(images, masks)
    return torch.lerp(_filling(infill, images, 1 - masks), images, masks)


def remove(images: Images, masks: Tensor, infill: Infill) -> Images:
    """Return the removed picture, keep(x, 1 - m)."""
    return keep(images, 1 - _fitting(images, masks), infill)


def _fitting(images: Tensor, masks: Tensor) -> Tensor:  # by name and with a remedy: so masks are not typed above
    """Return masks in the type of the images, those of true and false as 1 and 0. Errors: ValueError for others."""
    for name, given in (("images (B, C, H, W)", images), ("masks (B, 1, H, W)", masks)):
        if not isinstance(given, Tensor):
            raise ValueError(f"expected {name} as a tensor, got {type(given).__name__}")
    if masks.dtype != torch.bool and not masks.is_floating_point():
        raise ValueError(f"expected masks in [0, 1], or of true and false, got {masks.dtype}: divide bytes by 255")
    if masks.shape not in ((images.shape[0], 1, *images.shape[-2:]), images.shape):  # one for all channels, or one each
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit images of shape {tuple(images.shape)}: "
            f"expected ({images.shape[0]}, 1, {images.shape[-2]}, {images.shape[-1]}); resize the masks first"
        )
    return masks.to(images.dtype)


def _filling(infill: Infill, images: Tensor, holes: Tensor) -> Tensor:
    """Return what an infill makes, at the images' shape. Errors: ValueError for what gives no colours of them."""
    usable = callable(infill) and not isinstance(infill, type)
    filling = infill(images, holes) if usable else None
    if not isinstance(filling, Tensor):
        got = f"{infill!r}, which returns {type(filling).__name__}" if usable else " ".join(repr(infill).split())
        raise ValueError(
            "expected an infill, such as MeanColour() or Blur(20), or a function of images and holes that returns "
            f"colours as a tensor, got {got[:200]}"
        )
    try:
        return filling.to(images.dtype).expand_as(images)
    except RuntimeError as error:
        raise ValueError(
            f"the infill returns colours {tuple(filling.shape)} for images {tuple(images.shape)}: expected what "
            "broadcasts to the images, such as (1, C, 1, 1)"
        ) from error


def prepare(infill: Infill, images: Images, *, seed: int = 0, draws: int | None = None) -> Prepared:
    """Return an infill for pictures that are hidden many times over.

    What depends on the pictures alone is made once. An infill that draws starts from the seed, so that a map depends
    neither on other pictures nor on earlier calls; draws: how many different draws a call makes, each shared by all
    pictures; None: one for each picture of a call.
    """
    if isinstance(infill, Prepares):
        return infill.prepare(images)
    fresh = reseeded(infill, seed)
    return _Plain(infill) if fresh is None else _Shared(fresh, draws)


def reseeded(infill: Infill, seed: int) -> Infill | None:
    """Return a copy of an infill that draws, with a fresh generator; None for one that does not."""
    return infill.reseeded(seed) if isinstance(infill, Draws) and infill.generator is not None else None


def _fresh(generator: Generator, seed: int) -> Generator:
    return Generator(device=generator.device).manual_seed(seed)


@dataclass(frozen=True)
class _Plain:
    """An infill that is asked anew at every call."""

    infill: Infill

    def take(self, index: Tensor) -> "_Plain":
        return self

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        return self.infill(images, holes)


@dataclass(frozen=True)
class _Still:
    """Colours that were made once, since their infill does not look at the holes."""

    pictures: Images

    @classmethod
    def of(cls, infill: Infill, images: Images) -> "_Still":
        return cls(infill(images, torch.ones_like(images[:, :1])))

    def take(self, index: Tensor) -> "_Still":
        return _Still(self.pictures[index])

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        times = len(images) // len(self.pictures)
        return self.pictures if len(self.pictures) == 1 or times == 1 else self.pictures.repeat(times, 1, 1, 1)


@dataclass(frozen=True)
class _Shared:
    """A random infill each of whose draws is the same for all pictures."""

    infill: Infill
    draws: int | None

    def take(self, index: Tensor) -> "_Shared":
        return self

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        if self.draws is None:
            return self.infill(images, holes)
        first = [values[:1].expand(self.draws, *values.shape[1:]) for values in (images, holes)]
        return self.infill(*first).repeat_interleave(len(images) // self.draws, 0)


@dataclass(frozen=True)
class MeanColour:
    """One constant colour; with the classifier's mean this is the paper's zero fill (Phang et al., 2020).

    colour: one value a channel, in [0, 1], or one for all of them; 0 is black, as in Opti-CAM's scores.
    """

    colour: Colour = IMAGENET_MEAN

    @classmethod
    def of(cls, classifier: Classifier) -> "MeanColour":
        """Return the mean colour of a classifier, which is zero in its normalised space."""
        return cls(tuple(classifier.mean.flatten().tolist()))

    def __call__(self, images: Images, holes: Masks) -> Float[Tensor, "1 _ 1 1"]:
        """Return the colour."""
        return _colour_of(self.colour, images)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of the whole picture, g(x) = N(0, s^2) * x (Fong & Vedaldi, 2017).

    sigma: standard deviation in pixels of a picture whose short side has `at` pixels; scaled with the picture.
    border: None mirrors the picture at its border; a colour surrounds it with that colour (the mean colour
        equals the zero padding in normalised space of the paper's released code).
    """

    sigma: float = 20.0
    at: int = 224
    border: Colour | None = None

    def __post_init__(self) -> None:
        _check_positive("a Blur", sigma=self.sigma, at=self.at)

    def __call__(self, images: Images, holes: Masks) -> Images:
        """Return the blurred pictures; the holes are not looked at."""
        sigma = self.sigma * min(images.shape[-2:]) / self.at
        down, along = (_gaussian_matrix(side, sigma, images, mirror=self.border is None) for side in images.shape[-2:])
        if self.border is None:
            return down @ images @ along.T
        colour = _colour_of(self.border, images)
        return down @ (images - colour) @ along.T + colour

    def prepare(self, images: Images) -> Prepared:
        """Blur once."""
        return _Still.of(self, images)


def _check_positive(of: str, **given: object) -> None:
    plain_arguments(of, dict.fromkeys(given, Within(1e-3, 1e6, whole=False)), **given)


def _gaussian_matrix(side: int, sigma: float, like: Tensor, *, mirror: bool) -> Float[Tensor, "side side"]:
    """Return the matrix that blurs one axis; two products cost a tenth of a two-dimensional convolution and less."""
    reach = max(1, int(4 * sigma + 0.5))
    reach = min(reach, side - 1) if mirror else reach
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    kernel = (-(offsets.double() ** 2) / (2 * sigma**2)).exp()
    sources = torch.arange(side, device=like.device)[:, None] + offsets
    if mirror:
        sources = (side - 1) - (sources.abs() - (side - 1)).abs()
    inside = (sources >= 0) & (sources < side)
    weights = (kernel / kernel.sum()) * inside
    matrix = torch.zeros(side, side, dtype=torch.float64, device=like.device)
    return matrix.scatter_add_(1, sources.clamp(0, side - 1), weights).to(like.dtype)


@dataclass(frozen=True)
class Noise:
    """Uniform noise in [0, 1], independent for every pixel and channel, drawn anew at each call."""

    generator: Generator

    def __post_init__(self) -> None:
        _check_generator(self.generator)

    def __call__(self, images: Images, holes: Masks) -> Images:
        """Return pictures of noise."""
        return _random(self.generator, images.shape, images)

    def reseeded(self, seed: int) -> "Noise":
        """Return noise of a fresh generator."""
        return Noise(_fresh(self.generator, seed))


@dataclass(frozen=True)
class RandomColour:
    """One uniformly drawn colour an image, drawn anew at each call (Dabkowski & Gal, 2017)."""

    generator: Generator

    def __post_init__(self) -> None:
        _check_generator(self.generator)

    def __call__(self, images: Images, holes: Masks) -> Float[Tensor, "batch channels 1 1"]:
        """Return a colour for each image."""
        return _random(self.generator, (*images.shape[:2], 1, 1), images)

    def reseeded(self, seed: int) -> "RandomColour":
        """Return colours of a fresh generator."""
        return RandomColour(_fresh(self.generator, seed))


@dataclass(frozen=True)
class Bank:
    """Other images stand in the holes: one drawn uniformly from a bank for each image (Gupta et al., 2022).

    bank: (N, C, h, w) in [0, 1]; resized to the images at hand (bilinear) where they differ.
    """

    bank: Tensor = field(repr=False)  # its shape is checked below, with a remedy
    generator: Generator

    def __post_init__(self) -> None:
        check_tensor(self.bank)
        if self.bank.ndim != 4 or not len(self.bank):
            raise ValueError(f"a bank holds images (N, C, H, W) with N >= 1, got {tuple(self.bank.shape)}")
        check_images(self.bank, self.bank.shape[1])
        _check_generator(self.generator)

    def __call__(self, images: Images, holes: Masks) -> Images:
        """Return one picture of the bank for each image."""
        chosen = torch.randint(len(self.bank), (len(images),), generator=self.generator, device=self.generator.device)
        if images.shape[1] != self.bank.shape[1]:
            raise ValueError(f"a bank of {self.bank.shape[1]} channels does not fit pictures of {images.shape[1]}")
        drawn = self.bank[chosen.to(self.bank.device)].to(images)
        if drawn.shape[-2:] != images.shape[-2:]:
            drawn = F.interpolate(drawn, images.shape[-2:], mode="bilinear", align_corners=False)
        return drawn

    def reseeded(self, seed: int) -> "Bank":
        """Return the same bank with a fresh generator."""
        return replace(self, generator=_fresh(self.generator, seed))


@dataclass(frozen=True)
class Remasked:
    """An infill whose pictures are masked twice, as the released infillers do it.

    What they return is put together from the picture that was masked already, x' = m x + (1 - m) c, so that

        keep = m x' + (1 - m) g = m x + (1 - m) [g + m (c - x)],

    which is plain keeping with the infill g + (1 - h) (c - x), h = 1 - m. It differs where the mask is soft.

    infill: g. colour: c, what the first masking left. Source: the released code of Phang et al., 2020.
    """

    infill: Infill
    colour: Colour = IMAGENET_MEAN

    @property
    def generator(self) -> Generator | None:
        """The generator of g, if it draws."""
        return self.infill.generator if isinstance(self.infill, Draws) else None

    def reseeded(self, seed: int) -> "Remasked":
        """Return the same with a fresh generator in g."""
        return replace(self, infill=reseeded(self.infill, seed) or self.infill)

    def __call__(self, images: Images, holes: Masks) -> Images:
        """Return g + (1 - h) (c - x); gradients flow to the holes."""
        colour = _colour_of(self.colour, images)
        return self.infill(images, holes) + (1 - holes) * (colour - images)


def _check_generator(generator: object) -> None:
    if not isinstance(generator, Generator):
        raise ValueError(f"expected a torch.Generator to draw from, got {type(generator).__name__}")


def _colour_of(colour: Colour, images: Images) -> Tensor:
    values = [float(colour)] if isinstance(colour, Real) else by_channel("a colour", colour)
    if len(values) not in (1, images.shape[1]):
        raise ValueError(
            f"a colour of {len(values)} values does not fit pictures of {images.shape[1]} channels: give one value a "
            "channel, or one for all; MeanColour.of(classifier) is the classifier's own"
        )
    return images.new_tensor(values).view(1, -1, 1, 1)


def _random(generator: Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(like)


@dataclass(frozen=True)
class WindowBlur:
    """Blur by a Gaussian that is folded back into a small window, as RISE builds it (Petsiuk et al., 2018).

    The window is what a reflecting Gaussian filter of `sigma` makes of a single 1 in `side` pixels; it sums to 1
    and is nearly flat where sigma is not far below side. The border is `border`, the classifier's mean colour
    (zeros in its normalised space). `side` is in pixels of the images at hand.
    """

    side: int
    sigma: float
    border: Colour

    def __post_init__(self) -> None:
        if self.side < 1 or self.side % 2 == 0:
            raise ValueError(f"the side of a blurring window must be odd and positive, got {self.side}")

    def __call__(self, images: Images, holes: Masks) -> Images:
        """Return the blurred pictures; the holes are not looked at."""
        from scipy.ndimage import gaussian_filter1d  # slow to import, and only this infill needs it

        single = np.zeros(self.side)
        single[self.side // 2] = 1
        line = torch.from_numpy(gaussian_filter1d(single, self.sigma)).to(images)
        colour = _colour_of(self.border, images)
        planes = F.pad(images - colour, [self.side // 2] * 4).flatten(0, 1)[:, None]
        planes = F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
        return planes.view_as(images) + colour

    def prepare(self, images: Images) -> Prepared:
        """Blur once."""
        return _Still.of(self, images)


@dataclass(frozen=True)
class BlurPyramid:
    """An infill that blurs the more, the deeper the hole: keep(x, m) = level (1 - m) * (levels - 1) of a pyramid.

    Level l is blurred with sigma * l / (levels - 1); between two levels the pictures are mixed linearly. With
    two levels this is `Blur(sigma)`. Colours of a shallow hole may leave [0, 1], the kept picture never does.
    """

    sigma: float = 20.0
    levels: int = 8
    at: int = 224

    def __post_init__(self) -> None:
        _check_positive("a BlurPyramid", sigma=self.sigma, at=self.at)
        if self.levels < 2:
            raise ValueError(f"a pyramid has at least 2 levels, got {self.levels}")

    def __call__(self, images: Images, holes: Float[Tensor, "batch 1 height width"]) -> Images:
        """Return the colours g for which m * x + (1 - m) * g is the pyramid's picture."""
        return self.prepare(images)(images, holes)

    def prepare(self, images: Images) -> Prepared:
        """Blur once."""
        rest, holes = self.levels - 1, images[:, :1]
        blurred = [Blur(self.sigma * level / rest, self.at)(images, holes) for level in range(1, self.levels)]
        return _Levels(torch.stack([images, *blurred], 1))


@dataclass(frozen=True)
class _Levels:
    """The pyramid of some images, (B, levels, C, H, W)."""

    levels: Tensor

    def take(self, index: Tensor) -> "_Levels":
        return _Levels(self.levels[index])

    def __call__(self, images: Tensor, holes: Tensor) -> Tensor:
        levels, times = self.levels, len(images) // len(self.levels)
        if times > 1:
            levels = levels.repeat(times, 1, 1, 1, 1)
        rest = levels.shape[1] - 1
        depth = holes.clamp(0, 1) * rest
        below = depth.detach().floor().clamp_max(rest - 1)
        index = below.long()[:, None].expand(-1, -1, levels.shape[2], -1, -1)
        low, high = levels.gather(1, index)[:, 0], levels.gather(1, index + 1)[:, 0]
        picture = torch.lerp(low, high, depth - below)
        # Solved for g = (picture - (1 - h) x) / h; within the first level the division cancels.
        first = images + rest * (high - images)
        deeper = (picture - (1 - holes) * images) / holes.clamp_min(0.5 / rest)
        return torch.where(below == 0, first, deeper)
