"""Boxes of contours above every level of an 8-bit map, and their best IoU with true boxes: fast, and exact.

What makes it fast:
1. Above a level, contours lie in the box of all pixels above it; those boxes come for all levels from the running
   maxima of rows and columns. A level whose box of all pixels meets too little of any true box to reach the lowest
   IoU that matters is skipped: a part of it cannot do better. Contours are looked for inside that box only.
2. Levels whose picture is one run per row (or per column) and one component have one contour, whose box is that of all
   pixels. Runs and components of all levels follow from four histograms (`runs_and_singles`).
3. Elsewhere run linking finds the contours, three times faster than border following does. From messy maps most of
   what is too small for any IoU that matters is taken away before, for all levels at once (`without_small`).
4. A map of blocks, as a masker's of nearest upsampling, is searched at one pixel a block.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

__all__ = [
    "Picker",
    "all_contours",
    "best_overlap",
    "block_size",
    "largest_contour",
    "overlap",
    "runs_and_singles",
    "without_small",
]

FEW = 12
"""Levels of which it costs less to trace all than to know for all 256 whether they are single."""

MESSY = 210
"""Runs a row, added up over the levels to trace, from which on it pays to take away first what is too small."""

RADII = (1, 2, 4, 8, 16)
"""Of the rings that tell small peaks and holes apart from the rest."""

Overlap = list[tuple[int, int, int, int, int]]
"""x, y, width, height, and how far the rectangle reaches beyond these: 0, or 1 around a hole."""
Picture = UInt8[np.ndarray, "height width"]
Levels = Int[np.ndarray, " levels"]
Corners = Float[np.ndarray, "boxes 4"]
Truths = Float[np.ndarray, "truths 4"]
Contours = Sequence[np.ndarray]


class Picker(NamedTuple):
    """Which contours of a 0/255 picture count.

    function: (picture, its contours by run linking, side of a block, area in pixels below which a box is of no
    use) -> rectangles. every: each contour counts for itself, so that a picture of blocks may be given with one pixel
    a block, and one without what is too small.
    """

    function: Callable[[Picture, Contours, int, float], Overlap]
    every: bool


# --- contours of one picture ---------------------------------------------------------------------------------------


def _all(picture: Picture, linked: Contours, block: int, smallest: float) -> Overlap:
    """Return the rectangles of all contours, those of holes too, whose inclusive box may reach `smallest`.

    Run linking names both ends of every run of a row: for a component on its own rows, for a *hole* on the hole's
    rows and the columns beside it. Holes run the other way round; one of a single row has no area, but
    starts at its right end.
    """
    boxes: Overlap = []
    least = 2 * (smallest / (picture.shape[1] * block + 3) - 3) / block  # two points a row
    for contour in linked:
        if len(contour) < least:
            continue
        x, y, width, height = cv2.boundingRect(contour)
        if (width * block + 3) * (height * block + 3) < smallest:
            continue
        turn = cv2.contourArea(contour, True)
        if turn < 0 or (turn == 0 and len(contour) > 1 and contour[0, 0, 0] > contour[1, 0, 0]):
            boxes.append((x + 1, y, width - 2, height, 1))
        else:
            boxes.append((x, y, width, height, 0))
    return boxes


def _largest(picture: Picture, linked: Contours, block: int, smallest: float) -> Overlap:
    """Return the rectangle of the contour whose polygon has the largest area; the first of equals.

    Holes and what lies in them are inside an outer contour, so only those need be compared.
    """
    contours, _ = cv2.findContours(picture, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return [(x, y, width, height, 0)]


all_contours = Picker(_all, every=True)
"""Every contour, outer ones and those of holes (MaxBoxAccV2)."""

largest_contour = Picker(_largest, every=False)
"""The contour of largest polygon (MaxBoxAcc). Polygons run through pixel centres: enlarging may change which it is."""


# --- all levels of one map -----------------------------------------------------------------------------------------


def best_overlap(
    map8: Picture, levels: Levels, truth: Truths, *, pick: Picker, floor: float
) -> Float[np.ndarray, " levels"]:
    """Return per level the best IoU of a picked contour's box with a true box; 0 where it must stay below `floor`.

    levels ascend, and some pixel is above each. truth: x0, y0, x1, y1, inclusive.
    """
    block = block_size(map8) if pick.every else 1
    small = np.ascontiguousarray(map8[::block, ::block])
    whole = np.stack(_spans(small.max(0), levels) + _spans(small.max(1), levels), 1)[:, [0, 2, 1, 3]]
    kept = _bound(_published(whole * block, map8.shape), truth) >= floor - 1e-9
    runs, singles = runs_and_singles(small) if len(levels) > FEW else (np.zeros(256, int), np.zeros(256, bool))
    single = kept & singles[levels]
    boxes, owners = (whole[single] * block).tolist(), np.flatnonzero(single).tolist()
    smallest = floor * _polygon_area(truth).min()
    traced = np.flatnonzero(kept & ~single)
    if pick.every and runs[levels[traced]].sum() > MESSY * len(small):
        small = without_small(small, int((math.sqrt(smallest) - 3) / block))
    for k, level, box in zip(traced.tolist(), levels[traced].tolist(), whole[traced].tolist(), strict=True):
        x0, y0, x1, y1 = box
        above = cv2.threshold(small[y0:y1, x0:x1], level, 255, cv2.THRESH_BINARY)[1]
        linked = cv2.findContoursLinkRuns(above)[0]
        inside = pick.function(above, linked, block, smallest)
        if not inside:  # what lies above a higher level lies within contours that are all too small
            break
        for x, y, w, h, beyond in inside:
            left, top = (x0 + x) * block - beyond, (y0 + y) * block - beyond
            boxes.append([left, top, left + w * block + 2 * beyond, top + h * block + 2 * beyond])
        owners += [k] * len(inside)
    best = np.zeros(len(levels))
    if boxes:
        np.maximum.at(best, owners, overlap(_published(np.array(boxes), map8.shape), truth).max(1))
    return best


def without_small(map8: Picture, side: int) -> Picture:
    """Return the map without many of those peaks and holes whose contours are at most `side` pixels wide and high.

    Where all pixels of a square ring are at most v, what is above a level L >= v inside of the ring is
    whole components, small ones. So pixels inside may be lowered to v: a level loses nothing but whole
    components. The same upside down for holes, whose rings need no corners (4 neighbours), within the picture.
    """
    for radius in RADII:
        if 2 * radius + 1 > side:
            break
        map8 = cv2.min(map8, _least_ring(map8, radius, corner=1, beyond=0))
        depths = cv2.bitwise_not(map8)
        map8 = cv2.bitwise_not(cv2.min(depths, _least_ring(depths, radius, corner=0, beyond=255)))
    return map8


def _least_ring(map8: Picture, radius: int, *, corner: int, beyond: int) -> Picture:
    """Return for every pixel the least maximum of a square ring around it whose centre is in the picture."""
    height, width = map8.shape
    padded = cv2.copyMakeBorder(map8, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=beyond)
    length = 2 * (radius + corner) - 1
    across, down = cv2.dilate(padded, np.ones((1, length))), cv2.dilate(padded, np.ones((length, 1)))
    level = cv2.max(across[:height, radius:-radius], across[2 * radius :, radius:-radius])
    upright = cv2.max(down[radius:-radius, :width], down[radius:-radius, 2 * radius :])
    return cv2.erode(cv2.max(level, upright), np.ones((2 * radius - 1, 2 * radius - 1)))


def block_size(picture: Picture) -> int:
    """Return the largest side of blocks on which the picture is constant, as nearest upsampling makes it.

    It is the greatest common divisor of both sides and of all places where a column or a row differs from the one
    before. The middle row comes first: it tells of most pictures that they have no blocks.
    """
    side = math.gcd(*picture.shape)
    for lines in (picture[len(picture) // 2, None], picture, picture.T):
        if side > 1:
            changes = (lines[:, 1:] != lines[:, :-1]).any(0)
            side = int(np.gcd.reduce(np.flatnonzero(changes) + 1, initial=side))
    return side


def runs_and_singles(map8: Picture) -> tuple[Int[np.ndarray, "256"], Bool[np.ndarray, "256"]]:
    """Return for every level how many runs the rows have, and if all is one component of one run per row (or column).

    Seen as closed squares, pixels have sides and corners; let P, X, Y, C count those (upright sides X, level sides Y)
    that touch a pixel above the level: each is the maximum of its one, two or four pixels, so one histogram gives the
    count for all levels. Runs in rows are X - P, in columns Y - P; components less holes are C - X - Y + P
    (Euler). If there are as many runs as rows that are not empty, every row has one run; a hole would need a
    row of two, so there is none, and components can be counted.
    """
    padded = cv2.copyMakeBorder(map8, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    across = cv2.max(padded[:, :-1], padded[:, 1:])
    corners = _above(cv2.max(across[:-1], across[1:]))
    upright = _above(across[1:-1])
    level = _above(cv2.max(padded[:-1, 1:-1], padded[1:, 1:-1]))
    pixels = _above(map8)
    rows, columns = _above(map8.max(1)[:, None]), _above(map8.max(0)[:, None])
    whole = corners - upright - level + pixels == 1
    runs = upright - pixels
    return runs, whole & ((runs == rows) | (level - pixels == columns))


def _above(values: Picture) -> Int[np.ndarray, "256"]:
    """Return how many values are above each level 0 .. 255."""
    counts = cv2.calcHist([np.ascontiguousarray(values)], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    return values.size - counts.cumsum()


def _spans(maxima: UInt8[np.ndarray, " n"], levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Return for every level the first index whose maximum is above it, and one past the last."""
    first = np.searchsorted(np.maximum.accumulate(maxima), levels, side="right")
    last = len(maxima) - np.searchsorted(np.maximum.accumulate(maxima[::-1]), levels, side="right")
    return first, last


# --- boxes, as published -------------------------------------------------------------------------------------------


def _published(corners: np.ndarray, size: tuple[int, ...]) -> Corners:
    """Return (x, y, min(x + w, W - 1), min(y + h, H - 1)), which is then read as inclusive."""
    height, width = size
    return np.minimum(corners, [width, height, width - 1, height - 1]).astype(np.float64)


def _meet(boxes: Corners, truth: Truths) -> Float[np.ndarray, "boxes truths"]:
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    sides = np.maximum(high - low + 1, 0)
    return sides[..., 0] * sides[..., 1]


def _polygon_area(boxes: Corners) -> Float[np.ndarray, " boxes"]:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def overlap(boxes: Corners, truth: Truths) -> Float[np.ndarray, "boxes truths"]:
    """Return the IoU of every box with every true box, both inclusive."""
    meet = _meet(boxes, truth)
    return meet / (_polygon_area(boxes)[:, None] + _polygon_area(truth)[None] - meet)


def _bound(boxes: Corners, truth: Truths) -> Float[np.ndarray, " boxes"]:
    """Return what no part of a box can exceed: IoU(part, g) <= |box & g| / |g|, for the best g."""
    return (_meet(boxes, truth) / _polygon_area(truth)[None]).max(1)
