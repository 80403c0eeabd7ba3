"""Training pictures that are decoded once and stay, as bytes, where the training computes; crops are batched there.

Each picture is kept squashed to one square, beside the size that it had. A crop is drawn in the frame of the true
picture, by the rules of torchvision's RandomResizedCrop, and brought to its size by two products of matrices a picture,

    out = R x C',    R_ij = t((j + 1/2 - c_i) / s) / sum_j t(...),    t(d) = max(0, 1 - |d|),

with c_i the centre of row i of the crop and s its scale, at least 1: bilinear with antialiasing, as torchvision's; a
flip is C with its rows reversed. Batch k draws from a generator keyed by (seed, k, process), so that the stream is a
function of (pictures, batch size, seed) here, too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor

from salmask.data.sample import Batch, CropFlip, Labelled, Squash, no_boxes
from salmask.data.streams import WHOLE, Share, numbered_batches
from salmask.data.unreadable import counted, read_at
from salmask.draws import generator_for
from salmask.types import Images, Targets

__all__ = ["Resident", "bytes_kept", "cut", "draw_crops", "resident"]

_ROOM = 1.5  # side of the kept squares beside that of the crops, most of which then lose no detail
_TRIES = 10  # of RandomResizedCrop, before it takes the centre


def _side(size: int) -> int:
    return math.ceil(_ROOM * size)


def bytes_kept(count: int, channels: int, size: int) -> int:
    """Return the bytes that so many pictures take, kept for crops of this size."""
    return count * channels * _side(size) ** 2


@dataclass(frozen=True, eq=False)
class Resident:
    """Pictures as bytes on a device, their true sizes (height, width) on the host, labels and ids."""

    pictures: UInt8[Tensor, "count channels side side"]
    sizes: Float[Tensor, "count 2"]
    targets: Targets
    ids: list[str]

    def batches(
        self, *, batch_size: int, seed: int, crop: CropFlip, start: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Return the endless stream of training batches from number `start` on, cropped and flipped, on the device.

        share: this process's, of each batch.
        """
        keys = numbered_batches(len(self.ids), batch_size=batch_size, seed=seed, start=start, share=share)
        for number, batch in enumerate(keys, start):
            places = [index for _, index in batch]
            boxes, flips = draw_crops(self.sizes[places], crop, generator_for(seed, f"{number} {share.rank}", "crops"))
            at = torch.tensor(places, device=self.pictures.device)
            images = cut(self.pictures[at], boxes.to(at.device), flips.to(at.device), crop.size)
            count = len(places)
            yield Batch([self.ids[k] for k in places], images, self.targets[at], [no_boxes()] * count, [None] * count)


def resident(dataset: Labelled, *, size: int, device: torch.device) -> Resident:
    """Decode every picture once and keep it on the device, for crops of this size.

    One that cannot be read is left out where such are passed over (`unreadable`).
    """
    squash, pictures = Squash(_side(size)), Tensor()
    sizes, whole = torch.empty(len(dataset), 2), list[int]()
    with counted() as count:
        for index in range(len(dataset)):
            met = read_at(dataset, index)
            count.add(met.passed)
            if met.sample is None:
                continue
            image = squash(replace(met.sample, boxes=no_boxes(), pixels=None)).image
            if not whole:
                pictures = torch.empty(len(dataset), *image.shape, dtype=torch.uint8, device=device)
            sizes[len(whole)] = torch.tensor(met.sample.image.shape[-2:])
            pictures[len(whole)] = image.to(device)
            whole.append(index)
    if not whole:
        raise ValueError("the data set is empty, or no picture in it can be read: expected at least one to train on")
    targets, ids = dataset.targets, dataset.ids
    numbers = torch.tensor([targets[index] for index in whole], dtype=torch.int64, device=device)
    return Resident(pictures[: len(whole)], sizes[: len(whole)], numbers, [ids[index] for index in whole])


def draw_crops(
    sizes: Float[Tensor, "batch 2"], crop: CropFlip, generator: Generator
) -> tuple[Float[Tensor, "batch 4"], Bool[Tensor, " batch"]]:
    """Return a box (x0, y0, x1, y1) a picture, as shares of its width and height, and whether it is flipped.

    A share of the area and a ratio of width to height are drawn until the box fits, at most ten times; else the box is
    the centre, as much of it as the bounds of the ratio allow. sizes: heights and widths in pixels.
    """
    draw = torch.rand(5, len(sizes), _TRIES, generator=generator)
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * draw[0])
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    ratio = (low + (high - low) * draw[1]).exp()
    columns, rows = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = fits.float().argmax(1, keepdim=True)
    columns, rows = (
        torch.where(fits.any(1, keepdim=True), drawn.gather(1, first), centre)
        for drawn, centre in zip((columns, rows), _centre(height, width, crop.ratio), strict=True)
    )
    free = torch.cat([width - columns, height - rows], 1)
    places = torch.stack([draw[2, :, 0], draw[3, :, 0]], 1)
    corner = torch.where(fits.any(1, keepdim=True), (places * (free + 1)).floor().minimum(free), (free / 2).round())
    frame = torch.cat([width, height], 1)
    boxes = torch.cat([corner / frame, (corner + torch.cat([columns, rows], 1)) / frame], 1)
    return boxes, draw[4, :, 0] < crop.flip


def _centre(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return columns and rows of the largest part whose ratio is within the bounds."""
    columns = torch.minimum(width, (height * ratio[1]).round())
    rows = torch.minimum(height, (width / ratio[0]).round())
    return columns, rows


def cut(
    pictures: UInt8[Tensor, "batch channels side side"],
    boxes: Float[Tensor, "batch 4"],
    flips: Bool[Tensor, " batch"],
    size: int,
) -> Images:
    """Return the boxes (x0, y0, x1, y1), in shares of each picture, brought to size x size; in [0, 1]."""
    x0, y0, x1, y1 = (boxes * pictures.shape[-1]).unbind(1)
    rows, columns = _weights(y0, y1, pictures.shape[-1], size), _weights(x0, x1, pictures.shape[-1], size)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    images = rows[:, None] @ (pictures.float() / 255) @ columns[:, None].mT
    return images.clamp_(0, 1)


def _weights(low: Tensor, high: Tensor, side: int, size: int) -> Float[Tensor, "batch size side"]:
    """Return what each of `side` pixels counts in each of `size` pixels that cover low ... high of them."""
    step = ((high - low) / size)[:, None, None]
    centres = low[:, None, None] + (torch.arange(size, device=low.device)[:, None] + 0.5) * step
    pixels = torch.arange(side, device=low.device) + 0.5
    weights = (1 - (pixels - centres).abs() / step.clamp_min(1)).clamp_min(0)
    inside = (pixels > low.floor()[:, None, None]) & (pixels < high.ceil()[:, None, None])
    weights = weights * inside  # nothing from beyond the crop
    return weights / weights.sum(2, keepdim=True)
