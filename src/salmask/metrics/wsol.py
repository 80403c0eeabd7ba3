"""MaxBoxAcc, MaxBoxAccV2 and PxAP of Choe et al. 2020, exactly, with every 8-bit level looked at once.

    MaxBoxAcc(delta) = max over tau of  (1/N) sum_i 1[ IoU(box(m_i > tau max m_i), any box of image i) >= delta ]

The maximum over tau is taken after the sum over the set, so the per-image result is the row of hits over tau, which
adds up over batches and processes. V1: the box of the contour of largest area, delta = .5; V2: the boxes of all
contours (holes have one, too), mean over delta = .3, .5, .7. PxAP: area under the precision-recall curve of all
pixels of the set, ignored ones left out; its per-image counts are two histograms of scores.

What makes it fast, and exact:
1. Maps are cut to 8 bits before they are thresholded, so at most 255 of 1000 thresholds differ; levels that no
   pixel separates share one result.
2. Above a level, contours lie in the box of all pixels above it; those boxes come for all levels from the running
   maxima of rows and columns. A level whose box of all pixels meets too little of any true box to reach the lowest
   delta is skipped: a part of it cannot do better. Contours are looked for inside that box only.
3. Run linking is three times faster than border following and has the same contours; one contour's box is the box of
   all pixels, and where there are more only V1 needs the polygons of border following.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from salmask.boxes import paint
from salmask.metrics.case import Case, Metric
from salmask.types import Boxes, Masks, Pixels

__all__ = [
    "DELTAS",
    "TAUS",
    "WSOL",
    "all_contours",
    "box_hits",
    "largest_contour",
    "max_box_accuracy",
    "minmax",
    "pixel_histograms",
    "pixel_precision",
]

TAUS = np.arange(0, 1, 0.001)
DELTAS = (0.3, 0.5, 0.7)

Rectangle = tuple[int, int, int, int]
Picture = UInt8[np.ndarray, "height width"]
Contours = Sequence[np.ndarray]
Picker = Callable[[Picture, Contours, int], list[Rectangle]]
"""Which contours of a 0/255 picture count, as (x, y, width, height), given the picture, its contours by run linking,
and the number of points below which a contour's box is too flat to reach the lowest delta."""


# --- boxes of contours ---------------------------------------------------------------------------------------------


def all_contours(picture: Picture, linked: Contours, points: int) -> list[Rectangle]:
    """Return the rectangles of all contours, outer ones and those of holes (V2), that can matter."""
    return [_rectangle(contour) for contour in linked if len(contour) >= points]


def largest_contour(picture: Picture, linked: Contours, points: int) -> list[Rectangle]:
    """Return the rectangle of the contour whose polygon has the largest area (V1); the first of equals.

    Holes and what lies in them are inside an outer contour, so only those need be compared.
    """
    contours, _ = cv2.findContours(picture, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.boundingRect(max(contours, key=cv2.contourArea))] if contours else []  # type: ignore[list-item]


def _rectangle(linked: np.ndarray) -> Rectangle:
    """Return what cv2.boundingRect says of the same contour, found by border following.

    Run linking names the two ends of each run of a row: on the rows of the component, and on the rows of the
    *hole*, whose border lies one row above and one below. Holes run the other way round; one of a single row
    has no area, but starts at its right end.
    """
    x, y, width, height = cv2.boundingRect(linked)
    turn = cv2.contourArea(linked, True)
    if turn < 0 or (turn == 0 and len(linked) > 1 and linked[0, 0, 0] > linked[1, 0, 0]):
        return x, y - 1, width, height + 2
    return x, y, width, height


def _spans(maxima: UInt8[np.ndarray, " n"], levels: Int[np.ndarray, " levels"]) -> tuple[np.ndarray, np.ndarray]:
    """Return for every level the first index whose maximum is above it, and one past the last."""
    first = np.searchsorted(np.maximum.accumulate(maxima), levels, side="right")
    last = len(maxima) - np.searchsorted(np.maximum.accumulate(maxima[::-1]), levels, side="right")
    return first, last


def _best_overlap(
    map8: UInt8[np.ndarray, "height width"],
    levels: Int[np.ndarray, " levels"],
    truth: Float[np.ndarray, "boxes 4"],
    pick: Picker,
    floor: float,
) -> Float[np.ndarray, " levels"]:
    """Return per level the best IoU of a picked contour's box with a true box; 0 where it must stay below `floor`."""
    height, width = map8.shape
    top, bottom = _spans(map8.max(1), levels)
    left, right = _spans(map8.max(0), levels)
    whole = np.stack([left, top, right, bottom], 1)
    smallest = floor * _area(truth).min()
    kept = np.flatnonzero(_bound(_published(whole, height, width), truth) >= floor - 1e-9)
    rectangles: list[Rectangle] = []
    owners: list[int] = []
    for k, level, (x0, y0, x1, y1) in zip(kept.tolist(), levels[kept].tolist(), whole[kept].tolist(), strict=True):
        above = cv2.threshold(map8[y0:y1, x0:x1], level, 255, cv2.THRESH_BINARY)[1]
        linked = cv2.findContoursLinkRuns(above)[0]
        if len(linked) == 1:
            rectangles.append((x0, y0, x1, y1))
            owners.append(k)
            continue
        # a contour of n points spans at most n rows, n + 2 if it is a hole's; inclusive sides count one more
        points = int(smallest / (x1 - x0 + 1)) - 3
        found = pick(above, linked, points)
        if not found:  # and what lies above a higher level lies in these contours
            break
        rectangles += [(x0 + x, y0 + y, x0 + x + w, y0 + y + h) for x, y, w, h in found]
        owners += [k] * len(found)
    best = np.zeros(len(levels))
    if owners:
        boxes = _published(np.array(rectangles), height, width)
        np.maximum.at(best, np.array(owners), _overlap(boxes, truth).max(1))
    return best


def _published(corners: np.ndarray, height: int, width: int) -> Float[np.ndarray, "boxes 4"]:
    """Return (x, y, min(x + w, W - 1), min(y + h, H - 1)), which is then read as inclusive."""
    return np.minimum(corners, [width, height, width - 1, height - 1]).astype(np.float64)


def _meet(boxes: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "boxes truths"]:
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    sides = np.maximum(high - low + 1, 0)
    return sides[..., 0] * sides[..., 1]


def _area(boxes: np.ndarray) -> Float[np.ndarray, " boxes"]:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def _overlap(boxes: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "boxes truths"]:
    meet = _meet(boxes, truth)
    return meet / (_area(boxes)[:, None] + _area(truth)[None] - meet)


def _bound(boxes: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, " boxes"]:
    """Return what no part of a box can exceed: IoU(part, g) <= |box & g| / |g|, for the best g."""
    return (_meet(boxes, truth) / _area(truth)[None]).max(1)


# --- hits over thresholds ------------------------------------------------------------------------------------------


def box_hits(
    maps: Masks,
    truth: Sequence[Boxes],
    *,
    pick: Picker = all_contours,
    deltas: Sequence[float] = DELTAS,
    taus: Float[np.ndarray, " taus"] = TAUS,
) -> UInt8[Tensor, "batch deltas counts"]:
    """Return per image, delta and tau whether the map at that threshold hits a box; then one column of ones.

    The last column counts the image: it is 0 where an image has no box. So sums over images hold the hits and N.
    Boxes are clipped to [0, W-1] x [0, H-1] and read as inclusive, like those of the map (as published).
    Maps lie in [0, 1]; they are cut to 8 bits by truncation, and tau is relative to the map's maximum.
    """
    hits = np.zeros((len(maps), len(deltas), len(taus) + 1), dtype=np.uint8)
    for i, boxes in enumerate(truth):
        if not len(boxes):
            continue
        map8 = (maps[i, 0].cpu().numpy() * 255).astype(np.uint8)
        height, width = map8.shape
        known = np.clip(boxes.cpu().numpy().astype(np.float64), 0, [width - 1, height - 1] * 2)
        hits[i, :, :-1] = _hits_of_map(map8, known, pick, deltas, taus)
        hits[i, :, -1] = 1
    return torch.from_numpy(hits)


def _hits_of_map(
    map8: np.ndarray, truth: np.ndarray, pick: Picker, deltas: Sequence[float], taus: np.ndarray
) -> np.ndarray:
    levels = (taus * map8.max()).astype(np.int64)
    present = np.flatnonzero(np.bincount(map8.reshape(-1), minlength=256))
    same, inverse = np.unique(np.searchsorted(present, levels, side="right"), return_inverse=True)
    if map8.max() == 0:  # nothing is above any level: the published box is then (0, 0, 0, 0)
        best = _overlap(np.zeros((1, 4)), truth).max(1)
    else:  # a group of levels is as good as the highest value of the map at or below it
        best = _best_overlap(map8, np.append(0, present)[same], truth, pick, min(deltas))
    return (best[None] >= np.asarray(deltas)[:, None])[:, inverse]


def max_box_accuracy(counts: np.ndarray) -> float:
    """Return the mean over deltas of the best accuracy over taus, in [0, 1]; counts as of `box_hits`, (N, D, T + 1)."""
    total = counts.sum(0, dtype=np.int64)
    images = total[:, -1]
    if not images.any():
        return float("nan")
    return float((total[:, :-1].max(1) / images).mean())


# --- pixels --------------------------------------------------------------------------------------------------------


def pixel_histograms(
    maps: Masks, truth: Sequence[Pixels | None], *, taus: Float[np.ndarray, " taus"] = TAUS
) -> Int[Tensor, "batch 2 bins"]:
    """Return per image how many background (0) and object (1) pixels score in each bin [tau_k, tau_k+1).

    The edges are taus, 1, 2, 3 as published, so that a score of 1 has its own bin. Ignored pixels (255) count nowhere;
    an image without truth has zeros.
    """
    edges = np.append(taus, [1.0, 2.0, 3.0])
    bins = len(edges) - 1
    counts = np.zeros((len(maps), 2, bins), dtype=np.int32)
    for i, pixels in enumerate(truth):
        if pixels is None:
            continue
        place = _bin(maps[i, 0].cpu().numpy().reshape(-1), edges)
        kind = pixels.cpu().numpy().reshape(-1)
        # one pass: object pixels follow the background's bins, ignored ones fall into the rest
        place += bins * np.minimum(kind, 2).astype(place.dtype)
        counts[i] = np.bincount(place, minlength=3 * bins)[: 2 * bins].reshape(2, bins)
    return torch.from_numpy(counts)


def _bin(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of every score: guessed from the even spacing, then moved by one where rounding was wrong."""
    taus = len(edges) - 3
    scores = scores.astype(np.float64)
    place = (scores * taus).astype(np.int64)
    place -= scores < edges[place]
    place += scores >= edges[place + 1]
    return place


def pixel_precision(counts: np.ndarray) -> float:
    """Return PxAP in [0, 1]: sum over descending thresholds of precision * step in recall; counts (N, 2, bins).

    The first step starts at recall 0 (the bins above 1 are always empty). A constant map scores the base rate.
    """
    background, inside = counts.sum(0, dtype=np.int64)[:, ::-1].cumsum(1)
    if inside[-1] == 0:
        return float("nan")
    precision = inside / np.maximum(background + inside, 1)
    return float((precision * np.diff(inside, prepend=0)).sum() / inside[-1])


# --- protocols -----------------------------------------------------------------------------------------------------


def minmax(maps: Masks) -> Masks:
    """Return (m - min m) / (max m - min m) per image, in float64; a constant map becomes zeros (as published)."""
    wide = maps.double()
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    return torch.where(high > low, (wide - low) / torch.where(high > low, high - low, 1), 0)


def _minmax32(maps: Masks) -> Masks:
    """Return `minmax` rounded to float32, as the published pixel scores are."""
    return minmax(maps).float()


def _as_is(maps: Masks) -> Masks:
    return maps


def _hits(pick: Picker, deltas: Sequence[float], normalize: Callable[[Masks], Masks]) -> Callable[[Case], Tensor]:
    return lambda case: box_hits(normalize(case.masks), case.boxes or (), pick=pick, deltas=deltas)


def _pixel_counts(
    taus: np.ndarray, normalize: Callable[[Masks], Masks] = _as_is, truth: str = "pixels"
) -> Callable[[Case], Tensor]:
    def function(case: Case) -> Tensor:
        pixels: Sequence[Pixels | None] = case.pixels or ()
        if truth == "boxes":
            pixels = [paint(boxes, case.size) if len(boxes) else None for boxes in case.boxes or ()]
        return pixel_histograms(normalize(case.masks), pixels, taus=taus)

    return function


def _metrics() -> list[Metric]:
    source, boxes, pixels = "Choe et al. 2020", frozenset({"boxes"}), frozenset({"pixels"})
    rule = {"thresholds": len(TAUS), "bits": 8, "relative_to": "max", "iou": "inclusive"}
    v1 = rule | {"contours": "largest polygon", "delta": 0.5}
    v2 = rule | {"contours": "all", "delta": list(DELTAS)}
    few = np.arange(0, 1, 0.01)
    rows: list[tuple[str, Callable[[Case], Tensor], dict[str, object], frozenset[str]]] = []
    for suffix, normalize, scores, how in (
        ("", _as_is, _as_is, "none"),
        (":wsol", minmax, _minmax32, "minmax in float64"),
    ):
        said: dict[str, object] = {"normalize": how}
        rows += [
            ("max_box_acc" + suffix, _hits(largest_contour, (0.5,), normalize), v1 | said, boxes),
            ("max_box_acc_v2" + suffix, _hits(all_contours, DELTAS, normalize), v2 | said, boxes),
            ("pxap" + suffix, _pixel_counts(TAUS, scores), {"thresholds": len(TAUS), "truth": "pixels"} | said, pixels),
        ]
    px = {"truth": "pixels", "normalize": "none"}
    rows += [
        ("pxap:as_released", _pixel_counts(few), px | {"thresholds": len(few)}, pixels),
        ("pxap:boxes", _pixel_counts(TAUS, truth="boxes"), px | {"thresholds": len(TAUS), "truth": "boxes"}, boxes),
    ]
    return [
        Metric(
            name,
            function,
            protocol,
            "up",
            (0.0, 1.0),
            "Phang et al. 2020" if name.endswith("as_released") else source,
            needs,
            pixel_precision if name.startswith("pxap") else max_box_accuracy,
        )
        for name, function, protocol, needs in rows
    ]


WSOL: dict[str, Metric] = {metric.name: metric for metric in _metrics()}
