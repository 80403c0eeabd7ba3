"""One example, many examples, and the one transform that moves picture, boxes and pixel mask together.

A `Sample` is what a reader returns: the decoded picture with all that is known about where its evidence is.
A transform is a callable `Sample -> Sample`. The geometry is torchvision's (`tv_tensors`); it is applied
once to picture, boxes and pixels, so that they cannot drift apart. A `Batch` is what training and
evaluation read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import center_crop, resize

from salmask.boxes import areas, clip
from salmask.types import IGNORED, Boxes, Images, Pixels, Targets

__all__ = [
    "Batch",
    "CropFlip",
    "Labelled",
    "Packed",
    "Pad",
    "Sample",
    "SampleTransform",
    "ShortSide",
    "Squash",
    "clip_boxes",
    "collate",
    "move",
    "no_boxes",
    "pack_samples",
    "unpack_samples",
]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, its class, and where its evidence is known to be.

    `id` is the path relative to the root, with forward slashes. `image` is bytes, as picture files hold them, or floats
    in [0, 1]. `boxes` may have no row. `pixels` is None where no pixel mask is known.
    """

    id: str
    image: UInt8[Tensor, "channels height width"] | Float[Tensor, "channels height width"]
    target: int
    boxes: Boxes
    pixels: Pixels | None = None

    @property
    def bare(self) -> bool:
        """Return whether nothing is known of where its evidence is."""
        return self.pixels is None and not len(self.boxes)


SampleTransform: TypeAlias = Callable[[Sample], Sample]


class Batch(NamedTuple):
    """Several samples of one size, ready for a classifier: images in [0, 1]."""

    ids: list[str]
    images: Images
    targets: Targets
    boxes: list[Boxes]
    pixels: list[Pixels | None]

    @classmethod
    def empty(cls) -> "Batch":
        """Return a batch of no picture."""
        return cls([], torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.int64), [], [])


@runtime_checkable
class Labelled(Protocol):
    """What every data set here is: samples, and their classes, targets and ids without decoding a picture."""

    classes: list[str]

    @property
    def targets(self) -> list[int]:
        """The class of every sample."""
        ...

    @property
    def ids(self) -> list[str]:
        """The name of every sample."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        ...


class Packed(NamedTuple):
    """A batch on its way between processes: one shared tensor of bytes, the small parts as arrays."""

    ids: list[str]
    images: UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"]
    targets: list[int]
    boxes: list[np.ndarray]
    pixels: list[np.ndarray | None]


def no_boxes() -> Boxes:
    """Return the boxes of a picture of which none is known: shape (0, 4)."""
    return torch.zeros(0, 4)


def pack_samples(samples: Sequence[Sample]) -> Packed:
    """Gather samples of one size. Errors: ValueError naming two samples whose sizes differ."""
    first = samples[0]
    for sample in samples:
        if sample.image.shape != first.image.shape:
            raise ValueError(
                f"pictures of one batch must have one size: {first.id} is {_size(first)}, {sample.id} is "
                f"{_size(sample)}; give the data set a transform such as Squash(224) or ShortSide(224)"
            )
    return Packed(
        ids=[sample.id for sample in samples],
        images=torch.stack([sample.image for sample in samples]).contiguous(),
        targets=[sample.target for sample in samples],
        # As arrays: a tensor would cost one open file each on its way out of a worker.
        boxes=[sample.boxes.numpy() for sample in samples],
        pixels=[None if sample.pixels is None else sample.pixels.numpy() for sample in samples],
    )


def unpack_samples(packed: Packed, device: torch.device | None = None) -> Batch:
    """Turn gathered samples into a batch: bytes become floats in [0, 1], on the device where one is named."""
    images = packed.images.to(device, non_blocking=True)
    return Batch(
        ids=packed.ids,
        images=images if images.is_floating_point() else images.float().div_(255),
        targets=torch.tensor(packed.targets, dtype=torch.int64, device=device),
        boxes=[torch.from_numpy(boxes) for boxes in packed.boxes],
        pixels=[None if pixels is None else torch.from_numpy(pixels) for pixels in packed.pixels],
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a `Batch`; fits `DataLoader(collate_fn=collate)`."""
    return unpack_samples(pack_samples(samples))


def clip_boxes(boxes: Boxes, *, width: int, height: int) -> Float[Tensor, "left 4"]:
    """Cut boxes at the picture's border and drop those of which nothing is left."""
    clipped = clip(boxes, (height, width))
    return clipped[areas(clipped) > 0]


def move(sample: Sample, transform: v2.Transform, *, clip: bool) -> Sample:
    """Apply one torchvision geometry to picture, boxes and pixels at once.

    Pictures are interpolated as the transform says, pixel masks by nearest neighbour. With `clip`, boxes
    are cut at the new border and lost ones dropped; without, every box stays, also where it now reaches
    beyond the picture.
    """
    if sample.bare:
        return replace(sample, image=transform(sample.image))  # the same, without the cost of keeping things together
    height, width = sample.image.shape[-2:]
    parts: dict[str, Tensor] = {"image": tv_tensors.Image(sample.image)}
    if len(sample.boxes):
        parts["boxes"] = tv_tensors.BoundingBoxes(
            sample.boxes, format="XYXY", canvas_size=(height, width), clamping_mode=None
        )
    if sample.pixels is not None:
        parts["pixels"] = tv_tensors.Mask(sample.pixels)
    parts = {name: part.as_subclass(Tensor) for name, part in transform(parts).items()}
    boxes = parts.get("boxes", sample.boxes)
    if clip:
        boxes = clip_boxes(boxes, width=parts["image"].shape[-1], height=parts["image"].shape[-2])
    return replace(sample, image=parts["image"], boxes=boxes, pixels=parts.get("pixels"))


@dataclass(frozen=True)
class Squash:
    """Resize to size x size whatever the shape was: nothing is cut off, boxes stay inside."""

    size: int
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, sample: Sample) -> Sample:
        """Return the squashed sample."""
        if sample.image.shape[-2:] == (self.size, self.size):
            return sample
        size = [self.size, self.size]
        if sample.bare:  # the same, without what torchvision needs to keep several things together
            return replace(sample, image=resize(sample.image, size, self.interpolation, antialias=True))
        return move(sample, v2.Resize(size, interpolation=self.interpolation, antialias=True), clip=False)


@dataclass(frozen=True)
class ShortSide:
    """Resize the short side to `resize` (default: `size`), then cut out the centre, size x size.

    Boxes are not cut at the border unless `clip` is set: the published localization scores count a box with
    its whole area, also what the centre crop has cut off. Source: Phang, Park & Geras, 2020.
    """

    size: int
    resize: int | None = None
    interpolation: InterpolationMode = InterpolationMode.BILINEAR
    clip: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(
                f"resize must be at least size, else the crop is larger than the picture: expected >= {self.size}, "
                f"got {self.resize}"
            )

    def __call__(self, sample: Sample) -> Sample:
        """Return the resized and cropped sample."""
        short = self.resize or self.size
        if sample.bare:
            whole = resize(sample.image, [short], self.interpolation, antialias=True)
            return replace(sample, image=center_crop(whole, [self.size, self.size]))
        shrink = v2.Resize(short, interpolation=self.interpolation, antialias=True)
        return move(sample, v2.Compose([shrink, v2.CenterCrop(self.size)]), clip=self.clip)


class Placed(NamedTuple):
    """Where a picture lies in its padded square, half-open."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Pad:
    """Resize the long side to `size` and fill the square up with grey on both sides: nothing is cut, no shape changes.

    The grey is near the mean colour of photographs; in pixel masks the filling is ignored.
    """

    size: int
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, sample: Sample) -> Sample:
        """Return the padded sample."""
        height, width = sample.image.shape[-2:]
        at = self.placed(height, width)
        shrink = v2.Resize((at.y1 - at.y0, at.x1 - at.x0), interpolation=self.interpolation, antialias=True)
        borders = [at.x0, at.y0, self.size - at.x1, self.size - at.y1]
        return move(sample, v2.Compose([shrink, v2.Pad(borders, fill=_FILLING)]), clip=False)

    def placed(self, height: int, width: int) -> Placed:
        """Return where a picture of some size comes to lie."""
        scale = self.size / max(height, width)
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        top, left = (self.size - rows) // 2, (self.size - columns) // 2
        return Placed(left, top, left + columns, top + rows)


_FILLING: dict[type | str, int] = {tv_tensors.Image: 115, tv_tensors.Mask: IGNORED, "others": 115}


@dataclass(frozen=True)
class CropFlip:
    """Training: a random part of the picture resized to size x size, flipped at random.

    `scale` bounds the part's share of the area, `ratio` its width over height. Draws from torch's global
    generator, which `training_batches` sets per image. Boxes are cut at the border; lost ones are dropped.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, sample: Sample) -> Sample:
        """Return a randomly cropped and flipped sample."""
        return move(sample, self._geometry, clip=True)

    @cached_property
    def _geometry(self) -> v2.Transform:  # made once: making it takes longer than applying it
        crop = v2.RandomResizedCrop(
            self.size, scale=self.scale, ratio=self.ratio, interpolation=self.interpolation, antialias=True
        )
        return v2.Compose([crop, v2.RandomHorizontalFlip(self.flip)])


def _size(sample: Sample) -> str:
    height, width = sample.image.shape[-2:]
    return f"{width}x{height}"
