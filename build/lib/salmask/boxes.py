"""Pixel geometry: rules that select pixels of a mask, the box of its largest component, areas, IoU, sums in boxes.

Boxes are (x0, y0, x1, y1), half-open, in pixels of the array at hand: the pixel (x, y) lies in a box if
x0 <= x < x1 and y0 <= y < y1. The empty box is (0, 0, 0, 0).

A *rule* is a callable Masks -> bool (B, 1, H, W): which pixels of a mask count as "on". Rules are values:
`above_mean`, `area_matched`, `fixed(threshold)`, `top(fraction)`; any callable of that kind will do.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from salmask.types import Boxes, Masks, Pixels

__all__ = [
    "BoxRule",
    "BoxSets",
    "above_mean",
    "area_matched",
    "areas",
    "boxes_of",
    "clip",
    "coverage",
    "fixed",
    "iou",
    "largest_component",
    "mask_boxes",
    "on_cpu",
    "paint",
    "stack",
    "sums_inside",
    "top",
]

BoxSets = Sequence[Float[Tensor, "_ 4"]]
"""The boxes of several images: any number for each."""

BoxRule = Callable[[Masks], Bool[Tensor, "batch 1 height width"]]

FLOODS = 3
"""Components that are tried one by one; beyond, labelling all of them at once is faster (see largest_component)."""


# --- rules: which pixels are on ------------------------------------------------------------------------------------


def above_mean(masks: Masks, *, mass: Float[Tensor, " batch"] | None = None) -> Bool[Tensor, "batch 1 height width"]:
    """Select m > mean(m), strictly (Phang et al. 2020).

    mass: the sum of every mask, in double precision, where it is known already.

    A constant mask has no pixel above its mean, and a rounded mean may turn that into all pixels. So a constant
    mask is decided as a whole: all on if its value is at least one half, else none. The mean is taken in
    double precision and rounded down to the mask's, so that the comparison is exact.
    """
    maps = on_cpu(masks)
    selected = np.empty(maps.shape, dtype=bool)
    sums = [cv2.sumElems(one)[0] for one in maps] if mass is None else mass.tolist()
    for one, on, total in zip(maps, selected, sums, strict=True):
        np.greater(one, _rounded_down(total / one.size, one.dtype), out=on)
        if not cv2.countNonZero(on.view(np.uint8)):  # nothing is above the exact mean: all pixels equal it
            on[:] = one[0, 0] >= 0.5
    return torch.from_numpy(selected)[:, None].to(masks.device)


def on_cpu(masks: Masks) -> Float[np.ndarray, "batch height width"]:
    """Return the masks as a NumPy array of single or double precision, without a copy where they are one already."""
    maps = masks.detach()[:, 0].cpu().contiguous()
    return (maps if maps.dtype in (torch.float32, torch.float64) else maps.float()).numpy()


def _rounded_down(value: float, dtype: np.dtype) -> float:
    near = float(dtype.type(value))
    return near if near <= value else float(np.nextafter(dtype.type(value), dtype.type(-np.inf)))


def area_matched(masks: Masks) -> Bool[Tensor, "batch 1 height width"]:
    """Select as many pixels as the mask has mass: the k-th value such that the fraction of ones is mean(m) (CASM).

    Pixels that tie with the k-th value are off, so that a mask with ties may select fewer.
    """
    flat = masks.flatten(1)
    count = flat.shape[1]
    off = count - (flat.double().mean(1) * count).round().long().clamp(0, count)
    ordered = flat.sort(1).values
    level = ordered.gather(1, (off - 1).clamp_min(0)[:, None])
    return ((flat > level) | (off == 0)[:, None]).reshape(masks.shape)


def fixed(threshold: float | int) -> BoxRule:
    """Return the rule m > threshold, strictly."""

    def rule(masks: Masks) -> Bool[Tensor, "batch 1 height width"]:
        return masks > threshold

    return rule


def top(fraction: float | int) -> BoxRule:
    """Return the rule that selects the highest `fraction` of the pixels, exactly; ties in raster order."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"top: fraction must lie in [0, 1]; got {fraction}")

    def rule(masks: Masks) -> Bool[Tensor, "batch 1 height width"]:
        flat = masks.flatten(1)
        order = flat.argsort(dim=1, descending=True, stable=True)[:, : round(fraction * flat.shape[1])]
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).reshape(masks.shape)

    return rule


# --- mask -> box ---------------------------------------------------------------------------------------------------


def mask_boxes(masks: Masks, *, rule: BoxRule = above_mean, legacy_box: bool = False) -> Boxes:
    """Return the box of the largest 4-connected component of each mask's selected pixels, (B, 4).

    Equal components: the first in raster order. Nothing selected: (0, 0, 0, 0).
    `legacy_box` returns the published boxes (spec 4.2), whose right and bottom edges are one pixel short.
    """
    selected = rule(masks.detach())[:, 0].cpu().contiguous().numpy().view(np.uint8)
    boxes = np.array([largest_component(image)[:4] for image in selected], dtype=np.float32).reshape(-1, 4)
    if legacy_box:
        boxes[boxes[:, 2] > boxes[:, 0], 2:] -= 1
    return torch.from_numpy(boxes).to(masks.device)


def largest_component(selected: UInt8[np.ndarray, "height width"]) -> tuple[int, int, int, int, int]:
    """Return (x0, y0, x1, y1, pixels) of the largest 4-connected component of 0/1 pixels; zeros if there is none.

    Components are flooded away until none that is left can be as large: the first, then those that survive an
    erosion, which are large. Most masks have a few, which is several times faster than labelling; if a few floods do
    not settle it, or two components are equal, all are labelled.
    """
    left = cv2.countNonZero(selected)
    if not left:
        return 0, 0, 0, 0, 0
    canvas, width = selected.copy(), selected.shape[1]
    seeds, best, second = canvas, (0, 0, 0, 0, 0), 0
    for _ in range(FLOODS):
        seed = int(seeds.reshape(-1).view(bool).argmax())
        if not seeds.flat[seed]:
            seeds = canvas
            seed = int(seeds.reshape(-1).view(bool).argmax())
        area, _, _, (x, y, w, h) = cv2.floodFill(canvas, None, (seed % width, seed // width), 0, flags=4)
        left -= area
        best, second = (best, max(second, area)) if area <= best[4] else ((x, y, x + w, y + h, area), best[4])
        if best[4] > left:
            return best if best[4] > second else _largest_labelled(selected)
        seeds = cv2.erode(canvas, _SQUARE) if seeds is canvas else cv2.bitwise_and(seeds, canvas)
    return _largest_labelled(selected)


_SQUARE = np.ones((5, 5), np.uint8)


def _largest_labelled(selected: UInt8[np.ndarray, "height width"]) -> tuple[int, int, int, int, int]:
    """Do the same by labelling every component. OpenCV's labels follow no promised order, so ties are looked up.

    Labels are counted afterwards, and one box is taken: OpenCV's own statistics are several times slower.
    """
    short = selected.size < 2**16  # no more components than 16 bits can number
    count, labels = cv2.connectedComponents(selected, connectivity=4, ltype=cv2.CV_16U if short else cv2.CV_32S)
    if short:
        sizes = cv2.calcHist([labels], [0], None, [count], [0, count]).reshape(-1)[1:]
    else:
        sizes = np.bincount(labels.reshape(-1))[1:]
    largest = np.flatnonzero(sizes == sizes.max()) + 1
    if len(largest) > 1:
        flat = labels.reshape(-1)
        largest = flat[np.isin(flat, largest).argmax()][None]
    label = int(largest[0])
    x, y, w, h = cv2.boundingRect(cv2.inRange(labels, label, label))
    return x, y, x + w, y + h, int(sizes[label - 1])


# --- boxes ---------------------------------------------------------------------------------------------------------


def stack(boxes: BoxSets) -> tuple[Float[Tensor, "all 4"], Int[Tensor, " all"]]:
    """Return the boxes of all images below each other, and the index of the image that each belongs to."""
    owner = torch.from_numpy(np.repeat(np.arange(len(boxes)), [b.shape[0] for b in boxes]))
    if not owner.numel():
        return torch.zeros(0, 4), owner
    return torch.cat(tuple(boxes)).cpu().to(torch.get_default_dtype()), owner


def areas(boxes: Boxes) -> Float[Tensor, " boxes"]:
    """Return (x1 - x0) * (y1 - y0), not clipped to any image; 0 for boxes that are turned inside out."""
    wide, high = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).unbind(1)
    return wide * high


def clip(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Return the part of each box inside an image of size (H, W); a box outside becomes one of zero area."""
    height, width = size
    return boxes.clamp_min(0).minimum(boxes.new_tensor([width, height, width, height]))


def iou(a: Float[Tensor, "*#any 4"], b: Float[Tensor, "*#any 4"], *, inclusive: bool = False) -> Float[Tensor, "..."]:
    """Return |a & b| / |a | b| of boxes taken pair by pair (broadcast over leading axes), not clipped.

    `inclusive`: x1 and y1 name the last pixel, every width counts one more (Choe et al. 2020); the IoU of two
    boxes of zero area is then 1 where they meet. Otherwise boxes are half-open and an empty union gives 0.
    """
    extra = 1 if inclusive else 0
    (low_a, high_a), (low_b, high_b) = (
        (corners[..., :2], corners[..., 2:] + extra) for corners in (one.detach().cpu().numpy() for one in (a, b))
    )
    meet = _area(np.minimum(high_a, high_b) - np.maximum(low_a, low_b))
    union = _area(high_a - low_a) + _area(high_b - low_b) - meet
    return torch.from_numpy(meet / np.maximum(union, np.finfo(union.dtype).tiny)).to(a.device)


def _area(sides: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    sides = np.maximum(sides, 0)
    return sides[..., 0] * sides[..., 1]


def coverage(boxes: Boxes, size: tuple[int, int]) -> tuple[Float[Tensor, "boxes width"], Float[Tensor, "boxes height"]]:
    """Return how much of each column and of each row a box covers, in [0, 1].

    Their outer product is the box's indicator on the pixel grid, exact also for boxes between pixels.
    """
    height, width = size
    return _cover(boxes[:, 0], boxes[:, 2], width), _cover(boxes[:, 1], boxes[:, 3], height)


def _cover(low: Tensor, high: Tensor, length: int) -> Tensor:
    edges = torch.arange(length, device=low.device, dtype=low.dtype)
    return (torch.minimum(high[:, None], edges + 1) - torch.maximum(low[:, None], edges)).clamp(0, 1)


def sums_inside(masks: Masks, boxes: Boxes, owner: Int[Tensor, " boxes"]) -> Float[Tensor, " boxes"]:
    """Return the sum of each box's mask over the box, in double precision; what lies outside counts as 0.

    Boxes between pixels weigh the pixels that they cut by the part they cover.
    """
    maps = on_cpu(masks)
    height, width = maps.shape[1:]
    corners = clip(boxes.detach().cpu().double(), (height, width))
    pixels = corners.long()
    inside = [
        cv2.sumElems(maps[i, y0:y1, x0:x1])[0] if x1 > x0 and y1 > y0 else 0.0
        for i, (x0, y0, x1, y1) in zip(owner.tolist(), pixels.tolist(), strict=True)
    ]
    if not torch.equal(corners, pixels.double()):
        for k in (corners != pixels).any(1).nonzero()[:, 0].tolist():  # edges between pixels
            columns, rows = (part[0].numpy() for part in coverage(corners[k : k + 1], (height, width)))
            inside[k] = float(rows @ maps[int(owner[k])].astype(np.float64) @ columns)
    return torch.tensor(inside, dtype=torch.float64)


def paint(boxes: Boxes, size: tuple[int, int]) -> Pixels:
    """Return pixels (H, W) that are 1 where the centre of the pixel lies in one of the boxes."""
    pixels = torch.zeros(size, dtype=torch.uint8)
    for x0, y0, x1, y1 in torch.ceil(clip(boxes.detach().cpu(), size) - 0.5).long().tolist():
        pixels[y0:y1, x0:x1] = 1
    return pixels


def boxes_of(pixels: Pixels) -> Boxes:
    """Return the one box (1, 4) around all object pixels (value 1), or none (0, 4)."""
    rows = (pixels == 1).any(1).nonzero().flatten()
    columns = (pixels == 1).any(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(0, 4)
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return torch.tensor([[float(edge) for edge in edges]])
