"""MaxBoxAcc, MaxBoxAccV2 and PxAP of Choe et al. 2020, exactly, with every 8-bit level looked at once.

    MaxBoxAcc(delta) = max over tau of  (1/N) sum_i 1[ IoU(box(m_i > tau max m_i), any box of image i) >= delta ]

The maximum over tau is taken after the sum over the set, so the per-image result is the row of hits over tau, which
adds up over batches and processes. V1: the box of the contour of largest area, delta = .5; V2: the boxes of all
contours (holes have one, too), mean over delta = .3, .5, .7. PxAP: area under the precision-recall curve of all
pixels of the set, ignored ones left out; its per-image counts are two histograms of scores.

Maps are cut to 8 bits before they are thresholded, so at most 255 of 1000 thresholds differ; levels that no pixel
separates share one result, and `contours` finds it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from salmask.boxes import BoxSets, on_cpu, paint
from salmask.metrics.case import Case, Metric
from salmask.metrics.contours import Picker, all_contours, best_overlap, largest_contour, overlap
from salmask.types import Masks

__all__ = [
    "DELTAS",
    "TAUS",
    "WSOL",
    "box_hits",
    "max_box_accuracy",
    "minmax",
    "pixel_histograms",
    "pixel_precision",
]

PixelSet = UInt8[Tensor, "_ _"]
TAUS = np.arange(0, 1, 0.001)
DELTAS = (0.3, 0.5, 0.7)

# --- hits over thresholds ------------------------------------------------------------------------------------------


def box_hits(
    maps: Masks,
    truth: BoxSets,
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
        truths = np.clip(boxes.cpu().numpy().astype(np.float64), 0, [width - 1, height - 1] * 2)
        hits[i, :, :-1] = _hits_of_map(map8, truths, pick, deltas, taus)
        hits[i, :, -1] = 1
    return torch.from_numpy(hits)


def _hits_of_map(
    map8: np.ndarray, truth: np.ndarray, pick: Picker, deltas: Sequence[float], taus: np.ndarray
) -> np.ndarray:
    levels = (taus * map8.max()).astype(np.int64)
    present = np.flatnonzero(np.bincount(map8.reshape(-1), minlength=256))
    same, inverse = np.unique(np.searchsorted(present, levels, side="right"), return_inverse=True)
    if map8.max() == 0:  # nothing is above any level: the published box is then (0, 0, 0, 0)
        best = overlap(np.zeros((1, 4)), truth).max(1)
    else:  # a group of levels is as good as the highest value of the map at or below it
        best = best_overlap(map8, np.append(0, present)[same], truth, pick=pick, floor=min(deltas))
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
    maps: Masks, truth: Sequence[PixelSet | None], *, taus: Float[np.ndarray, " taus"] = TAUS
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
        numbers = _bin(on_cpu(maps[i : i + 1]).reshape(-1), edges)
        kind = pixels.cpu().numpy().reshape(-1)
        # one pass: object pixels follow the background's bins, ignored ones fall into the rest
        numbers += bins * np.minimum(kind, 2).astype(numbers.dtype)
        counts[i] = np.bincount(numbers, minlength=3 * bins)[: 2 * bins].reshape(2, bins)
    return torch.from_numpy(counts)


def _bin(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of every score: guessed from the even spacing, looked up next to edges, where rounding errs."""
    taus = len(edges) - 3
    guess = scores * scores.dtype.type(taus)
    numbers = guess.astype(np.intp)
    guess -= np.rint(guess)
    near = np.flatnonzero(np.abs(guess, out=guess) < 1e-3)
    exact, at = scores[near].astype(np.float64), numbers[near]
    at -= exact < edges[at]
    at += exact >= edges[at + 1]
    numbers[near] = at
    return numbers


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
    flat = maps.flatten(1)
    low, high = (end.double()[:, None, None, None] for end in (flat.amin(1), flat.amax(1)))
    return (maps.double() - low).div_(torch.where(high > low, high - low, 1))


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
        pixels: Sequence[PixelSet | None] = case.pixels or ()
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
        normalising: dict[str, object] = {"normalize": how}
        rows += [
            ("max_box_acc" + suffix, _hits(largest_contour, (0.5,), normalize), v1 | normalising, boxes),
            ("max_box_acc_v2" + suffix, _hits(all_contours, DELTAS, normalize), v2 | normalising, boxes),
            (
                "pxap" + suffix,
                _pixel_counts(TAUS, scores),
                {"thresholds": len(TAUS), "truth": "pixels"} | normalising,
                pixels,
            ),
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
