"""How alike two maps of one image are: two correlations of ranks, one of gradients' histograms, one of structure.

Pure functions (B, 1, H, W) x (B, 1, H, W) -> (B,), 1 for equal maps. NaN where the measure does not exist: a constant
map has no ranks and no gradients, a map that is not finite nothing at all. Callers count the NaN, they do not average
over them silently.

Sources: Adebayo et al. (2018), Phang, Park & Geras (2020).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor

from salmask.types import Values, normalise

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "hog_correlation",
    "similarities_for",
    "spearman",
    "spearman_absolute",
    "spearman_off_half",
    "ssim",
]

HOG_CELL = 16
"""Side of the cells in which gradients are counted, in pixels, as published."""
Maps = Float[Tensor, "batch 1 height width"]
Similarity = Callable[[Maps, Maps], Values]


def spearman(first: Maps, second: Maps) -> Values:
    """Return the rank correlation of the pixels, ties sharing their mean rank; in [-1, 1]."""
    return _each(first, second, lambda a, b: _pearson(rankdata(a), rankdata(b)))


def spearman_off_half(first: Maps, second: Maps) -> Values:
    """Return the rank correlation of abs(0.5 - m), as published: the sign of the evidence is let go.

    It means something for masks in [0, 1] only; for maps around 0 take `spearman_absolute`.
    """
    return spearman((0.5 - first).abs(), (0.5 - second).abs())


def spearman_absolute(first: Maps, second: Maps) -> Values:
    """Return the rank correlation of abs(m), for maps with a sign."""
    return spearman(first.abs(), second.abs())


def hog_correlation(first: Maps, second: Maps, *, cell: int = HOG_CELL) -> Values:
    """Return Pearson's correlation of the histograms of oriented gradients; in [-1, 1].

    9 orientations, blocks of 3 x 3 cells of cell x cell pixels, as published. ValueError for maps below 3 cells.
    """
    if min(first.shape[-2:]) < 3 * cell:
        raise ValueError(
            f"histograms of gradients need maps of at least {3 * cell} pixels a side, got "
            f"{tuple(first.shape[-2:])}: pass a smaller `cell`"
        )

    def describe(picture: np.ndarray) -> np.ndarray:
        return hog(picture, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(3, 3))

    return _each(first, second, lambda a, b: _pearson(describe(a), describe(b)))


def ssim(first: Maps, second: Maps, *, window: int = 5, data_range: float | None = None) -> Values:
    """Return the mean structural similarity with a flat window and sample covariances; in [-1, 1].

    data_range: the span the maps may have, 1 for masks; None takes the span of the two maps at hand together, which
        is for maps whose range is not known. Published numbers on raw outputs took 2 by default of their library.
    """

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        span = data_range if data_range is not None else max(a.max(), b.max()) - min(a.min(), b.min())
        if span == 0:
            return 1.0
        return float(structural_similarity(a, b, win_size=window, data_range=span))

    return _each(first, second, measure)


def _each(first: Tensor, second: Tensor, measure: Callable[[np.ndarray, np.ndarray], float]) -> Values:
    """Apply a measure to each pair of maps, float64; NaN where one of them is not finite."""
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 1:
        raise ValueError(
            f"expected two batches of maps (B, 1, H, W) alike in shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    pairs = zip(*(maps[:, 0].detach().double().cpu().numpy() for maps in (first, second)), strict=True)
    values = [measure(a, b) if np.isfinite(a).all() and np.isfinite(b).all() else np.nan for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where a side is constant but for rounding."""
    first, second = a.ravel() - a.mean(), b.ravel() - b.mean()
    long, wide = np.linalg.norm(first), np.linalg.norm(second)
    if long <= 1e-12 * np.linalg.norm(a) or wide <= 1e-12 * np.linalg.norm(b):
        return np.nan
    return float(np.clip(first @ second / (long * wide), -1, 1))


SIMILARITIES: Mapping[str, Similarity] = MappingProxyType(
    {
        "spearman": spearman,
        "spearman_off_half": spearman_off_half,
        "spearman_absolute": spearman_absolute,
        "hog": hog_correlation,
        "ssim": partial(ssim, data_range=1.0),
    }
)
"""The published four for masks in [0, 1], and abs(m) for maps with a sign."""


def similarities_for(side: int, span: tuple[float, float] = (0.0, 1.0)) -> Mapping[str, Similarity]:
    """Return the measures that fit maps of `side` pixels whose values live in `span`.

    Cells of gradients are made smaller where three of them would not fit. Maps that live elsewhere than in [0, 1] are
    brought there, each by its minimum and maximum, before HOG and SSIM: both have constants of the size of a map in
    [0, 1], beside which small gradients vanish, so that any two maps of them look alike. abs(0.5 - m) means nothing
    for such maps and is left out; ranks need no scale.
    """
    hog_of = partial(hog_correlation, cell=max(1, min(HOG_CELL, side // 3)))
    if span[0] >= 0 and span[1] <= 1:
        return MappingProxyType({**SIMILARITIES, "hog": hog_of})
    scaled = {"hog": _on_unit(hog_of), "ssim": _on_unit(partial(ssim, data_range=1.0))}
    return MappingProxyType({"spearman": spearman, "spearman_absolute": spearman_absolute, **scaled})


def _on_unit(measure: Similarity) -> Similarity:
    return lambda first, second: measure(normalise(first, "minmax"), normalise(second, "minmax"))
