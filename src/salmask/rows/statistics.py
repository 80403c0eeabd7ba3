"""What per-image rows say, and how surely: intervals, paired differences, tests, agreement of rankings.

Everything is resampling over *images*, with one matrix of weights for all explainers and metrics: row r of
`resample_weights` says how often image i is drawn in resample r, so that

    mean of resample r      = (w_r . v) / (w_r . valid)          one matrix product for all columns
    difference of two means = replicate of one minus replicate of the other, paired because w_r is shared
    set-level score         = compute(sum_i w_ri counts_i)       counts add up

A missing value (NaN) never enters a sum and is counted beside it. Needs numpy and scipy alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from scipy import stats

__all__ = [
    "Difference",
    "Interval",
    "agreement",
    "as_interval",
    "count_replicates",
    "crossed_replicates",
    "difference",
    "holm",
    "mean_replicates",
    "replicate_p",
    "resample_weights",
    "sign_flip",
    "wilcoxon",
]

Test = Callable[[ndarray], ndarray]
"""Paired test: differences (N, K), NaN where missing -> two-sided p values (K,)."""

_CELLS = 1 << 23  # numbers of one chunk of resamples, which bounds the memory (64 MiB)


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `n` values went in, `missing` were NaN. NaN ends: no interval."""

    mean: float
    low: float
    high: float
    n: int
    missing: int = 0

    def as_dict(self) -> dict[str, float | int | None]:
        """Return what JSON can hold; NaN becomes null."""
        ends = {
            name: None if np.isnan(value) else float(value)
            for name, value in (("mean", self.mean), ("low", self.low), ("high", self.high))
        }
        return ends | {"n": self.n} | ({"missing": self.missing} if self.missing else {})


@dataclass(frozen=True)
class Difference:
    """First minus second over the same images: interval, p value, and p adjusted for all comparisons."""

    first: str
    second: str
    interval: Interval
    p: float
    adjusted: float = float("nan")


def resample_weights(n: int, *, resamples: int = 2000, seed: int = 0) -> Iterator[Float[ndarray, "chunk {n}"]]:
    """Yield, in chunks of rows, how often each of n images is drawn in each resample with replacement.

    The chunks are part of the definition: the same n, resamples and seed give the same weights everywhere.

    Errors: ValueError for fewer than one image or resample.
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"expected at least one image and one resample, got {n} and {resamples}: add rows first")
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(n, size=(size, n), dtype=np.int64)
        drawn += np.arange(size, dtype=np.int64)[:, None] * n  # one bincount for all rows
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def mean_replicates(
    values: Float[ndarray, "images columns"], *, resamples: int = 2000, seed: int = 0
) -> Float[ndarray, "{resamples} columns"]:
    """Return the mean of every column in every resample of the images; NaN are left out of their mean.

    Columns share the resamples, so replicates of two columns may be subtracted: a paired bootstrap.
    """
    values = _matrix(values)
    valid = ~np.isnan(values)
    # a column is centred so that a constant one has an interval of width zero, not of rounding errors
    centre = np.array([column[here][0] if here.any() else 0.0 for column, here in zip(values.T, valid.T, strict=True)])
    filled = np.where(valid, values - centre, 0.0)
    complete = bool(valid.all())
    parts = []
    for weights in resample_weights(len(values), resamples=resamples, seed=seed):
        drawn = float(len(values)) if complete else weights @ valid
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(centre + (weights @ filled) / drawn)
    return np.concatenate(parts)


def crossed_replicates(
    values: Float[ndarray, "images columns"],
    members: Sequence[Sequence[int]],
    *,
    networks: int | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Float[ndarray, " {resamples}"]:
    """Return the mean of all values in resamples of the images and, independently, of what the columns are made of.

        mean of resample r = sum_ic w_ri v_rc x_ic / sum_ic w_ri v_rc,   v_rc = product over k in members[c] of u_rk

    w, u: how often an image, and a network, is drawn with replacement. members: the networks of each column, numbered
    from 0: one for the scores of a network, two for a pair, so that pairs with a network in common vary together.
    networks: how many there are; those that are named where None. The same numbers of images and of networks have their
    resamples in common, so replicates may be subtracted. NaN are left out; a resample in which no column is left is
    NaN. Source: the pigeonhole bootstrap (Owen, 2007).
    """
    values = _matrix(values)
    if len(members) != values.shape[1]:
        raise ValueError(f"expected the members of {values.shape[1]} columns, got {len(members)}")
    valid = ~np.isnan(values)
    filled = np.where(valid, values, 0.0)
    count = networks or 1 + max(one for column in members for one in column)
    images = np.concatenate([*resample_weights(len(values), resamples=resamples, seed=seed)])
    drawn = np.concatenate([*resample_weights(count, resamples=resamples, seed=seed + 1)])
    columns = np.stack([drawn[:, list(column)].prod(1) for column in members], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((images @ filled) * columns).sum(1) / ((images @ valid) * columns).sum(1)  # type: ignore[no-any-return]


def count_replicates(
    counts: Integer[ndarray, "images ..."],
    compute: Callable[[ndarray], float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, Float[ndarray, " {resamples}"]]:
    """Return a set-level score and its value in every resample of the images.

    counts: per-image counts, images first. compute: counts (N, ...) -> score, which adds the counts up;
    it therefore gives the same answer for the sum of a resample, passed as one image.
    """
    counts = np.asarray(counts)
    flat = counts.reshape(len(counts), -1)
    columns = max(1, _CELLS // len(counts))  # float copies are made of so many columns at a time
    replicates = []
    for drawn in resample_weights(len(counts), resamples=resamples, seed=seed):
        weights, places = np.unique(drawn, axis=0, return_inverse=True)  # of few images few resamples differ
        blocks = [
            weights @ flat[:, start : start + columns].astype(np.float64) for start in range(0, flat.shape[1], columns)
        ]
        sums = np.rint(np.concatenate(blocks, axis=1)).astype(np.int64).reshape(-1, 1, *counts.shape[1:])
        replicates.append(np.array([float(compute(one)) for one in sums])[places])
    return float(compute(counts)), np.concatenate(replicates)


def as_interval(
    value: float,
    replicates: Float[ndarray, " resamples"],
    *,
    n: int,
    missing: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the percentile interval of the replicates (Efron, 1979) of a value; NaN ends below 2 images."""
    usable = replicates[~np.isnan(replicates)]
    if n < 2 or not len(usable):
        return Interval(float(value), float("nan"), float("nan"), n, missing)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), n, missing)


def sign_flip(
    differences: Float[ndarray, "images columns"], *, permutations: int = 9999, seed: int = 0
) -> Float[ndarray, " columns"]:
    """Return two-sided p values that the mean difference is zero, by flipping signs at random.

    p = (1 + #{|mean of flipped| >= |mean|}) / (1 + permutations): never zero, exact up to the drawing
    (Fisher, 1935; Phipson & Smyth, 2010). The mean is tested, as in the interval, not the median.
    """
    differences = np.nan_to_num(_matrix(differences), nan=0.0)  # a zero does not change when it flips
    observed = np.abs(differences.sum(0))
    # equal sums that differ by rounding must count as equal
    observed -= 1e-9 * np.abs(differences).sum(0)
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // len(differences))
    beyond = np.zeros(differences.shape[1])
    for start in range(0, permutations, rows):
        shape = (min(rows, permutations - start), len(differences))
        signs = generator.integers(2, size=shape, dtype=np.int8) * 2.0 - 1.0
        beyond += (np.abs(signs @ differences) >= observed).sum(0)
    return (1 + beyond) / (1 + permutations)


def wilcoxon(differences: Float[ndarray, "images columns"]) -> Float[ndarray, " columns"]:
    """Return two-sided p values of Wilcoxon's signed-rank test (1945), zeros split; 1 where all are zero."""
    columns = _matrix(differences).T
    return np.array([_wilcoxon_column(column[~np.isnan(column)]) for column in columns])


def _wilcoxon_column(column: Float[ndarray, " images"]) -> float:
    if not np.any(column):
        return 1.0
    return float(stats.wilcoxon(column, zero_method="zsplit", method="approx").pvalue)


def replicate_p(replicates: Float[ndarray, " resamples"]) -> float:
    """Return the two-sided p value that a difference is zero, from its bootstrap replicates.

    p = 2 (min(#{d <= 0}, #{d >= 0}) + 1) / (resamples + 1), at most 1: the inverted percentile interval, twice the
    p value of one side (Phipson & Smyth, 2010), so never below 2 / (resamples + 1).
    For scores that are no mean of per-image values, where signs cannot be flipped.
    """
    usable = replicates[~np.isnan(replicates)]
    tail = min(int((usable <= 0).sum()), int((usable >= 0).sum()))
    return float(min(1.0, 2 * (tail + 1) / (len(usable) + 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of comparisons (Holm, 1979); NaN stay NaN and do not count."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full_like(values, np.nan)
    order = [int(i) for i in np.argsort(values, kind="stable") if not np.isnan(values[i])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * float(values[index])))
        adjusted[index] = highest
    return [float(value) for value in adjusted]


def difference(
    first: tuple[str, Float[ndarray, " images"]],
    second: tuple[str, Float[ndarray, " others"]],
    *,
    test: Test = sign_flip,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Return first minus second, paired by image, with percentile interval and p value of `test`.

    Images where either is NaN are counted as missing. Errors: ValueError for columns of unequal length.
    """
    if len(first[1]) != len(second[1]):
        raise ValueError(
            f"expected the same images for {first[0]} and {second[0]}, got {len(first[1])} and "
            f"{len(second[1])} values: keep the images that both have"
        )
    column = np.asarray(first[1], dtype=np.float64) - np.asarray(second[1], dtype=np.float64)
    n = int((~np.isnan(column)).sum())
    if n == 0:
        return Difference(first[0], second[0], as_interval(np.nan, column, n=0), float("nan"))
    replicates = mean_replicates(column[:, None], resamples=resamples, seed=seed)[:, 0]
    spread = as_interval(float(np.nanmean(column)), replicates, n=n, missing=len(column) - n, level=level)
    return Difference(first[0], second[0], spread, float(test(column[:, None])[0]))


def agreement(
    scores: Mapping[str, Sequence[float]],
    directions: Mapping[str, str],
    *,
    coefficient: Callable[[ndarray, ndarray], float] | None = None,
) -> tuple[list[str], Float[ndarray, "metrics metrics"]]:
    """Return how far metrics rank the explainers alike: Kendall's tau-b of every pair, 1 = same ranking.

    scores: metric -> one score per explainer, in one order. directions: metric -> "up" or "down"; a "down"
    metric enters with its sign turned, one of direction "none" is left out. Pairs with under three common
    explainers or a constant metric are NaN. coefficient: another one, e.g. Spearman's.
    """
    measure = coefficient or _kendall
    names = [name for name in scores if directions.get(name) in ("up", "down")]
    turned = {
        name: np.asarray(scores[name], dtype=np.float64) * (1 if directions[name] == "up" else -1) for name in names
    }
    matrix = np.full((len(names), len(names)), np.nan)
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            both: Bool[ndarray, " explainers"] = ~np.isnan(turned[first]) & ~np.isnan(turned[second])
            if both.sum() >= 3:
                matrix[row, column] = measure(turned[first][both], turned[second][both])
    return names, matrix


def _kendall(first: ndarray, second: ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.kendalltau(first, second).statistic)


def _matrix(values: ndarray) -> Float[ndarray, "images columns"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not len(array):
        raise ValueError(
            f"expected values (images, columns) of at least one image, got shape {array.shape}: "
            "pass one column as values[:, None]"
        )
    return array
