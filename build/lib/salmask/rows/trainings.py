"""What rows say of a recipe: pictures and trainings are both a sample, and an interval holds both.

A row of a study has the scores of k trainings on the same n pictures. Its mean varies with the pictures that were
drawn and with the trainings that happened to be made:

    replicate r = mean over trainings of (score on resample r of the pictures)  +  s t_r / sqrt(k)

s: standard deviation of the scores between the trainings; t_r: drawn from Student's t with k - 1 degrees of freedom.
The trainings cannot be resampled as the pictures are: of two or three there are 3 or 10 resamples, with (k - 1) / k of
the variance. Under the null (binary scores, a spread of .03 between trainings, 625 or 1,250 pictures, 2 or 3 trainings
a row) such intervals gave a wrong verdict in 10 to 21 % of 100 tries each. Student's t takes the place of a normal
draw where the spread itself was seen k times only (Behrens, 1929; Fisher, 1935): wrong in 0 to 4 % of 300 tries each.

Two rows are compared on shared resamples of the pictures (a paired bootstrap), each with draws of its own for its
trainings. A row that is not trained (Grad-CAM, a box) has one column and no such draw. Of a row that was trained once,
the spread between trainings is not known: what is said of it is said of this masker, not of its recipe.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from salmask.rows.statistics import Interval, as_interval, mean_replicates, replicate_p

__all__ = ["COLLAPSED", "EMPTY", "FULL", "Comparison", "collapsed", "compare_rows", "over_trainings", "score_interval"]

EMPTY, FULL, COLLAPSED = 0.02, 0.9, 0.5
"""A mask is empty below a mean of EMPTY and full above FULL; maps are collapsed if more than this share is either."""


@dataclass(frozen=True)
class Comparison:
    """First minus second: means of both, interval of the difference, p value, and how many trainings each has."""

    means: tuple[float, float]
    interval: Interval
    p: float
    trainings: tuple[int, int]


Scores = Sequence[float] | Float[ndarray, " trainings"]


def over_trainings(
    scores: Scores, replicates: Float[ndarray, "resamples trainings"], *, key: str
) -> Float[ndarray, " resamples"]:
    """Return replicates of the mean over trainings that vary with the pictures and with the trainings.

    scores: of each training on all pictures. replicates: of each training on resamples of the pictures, shared by all.
    key: names the draws, so that two rows have their own; the same key gives the same ones.
    """
    values = np.asarray(scores, dtype=np.float64)
    pictures = np.asarray(replicates, dtype=np.float64).mean(1)
    k = len(values)
    if k < 2:
        return pictures
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    draws = np.random.default_rng(seed).standard_t(k - 1, len(pictures))
    return pictures + values.std(ddof=1) / k**0.5 * draws


def score_interval(scores: Scores, replicates: Sequence[ndarray], *, n: int, key: str) -> Interval:
    """Return the mean of set-level scores, one a training, with its interval over pictures and trainings."""
    spread = over_trainings(scores, np.stack(replicates, axis=1), key=key)
    return as_interval(float(np.mean(scores)), spread, n=n)


def compare_rows(
    first: tuple[str, Float[ndarray, "images trainings"]],
    second: tuple[str, Float[ndarray, "pictures others"]] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return first minus second (or first alone, against zero) over the pictures that all trainings have a value of.

    Each is a name, which keys its draws, and its values (pictures, trainings), NaN where missing.
    Errors: ValueError for unequal numbers of pictures.
    """
    name, values = first
    other, others = ("", np.zeros((len(values), 1))) if second is None else second
    if len(values) != len(others):
        raise ValueError(
            f"expected the same pictures for {name} and {other}, got {len(values)} and {len(others)} values: "
            "keep the pictures that both have"
        )
    columns = np.concatenate([values, others], axis=1)
    complete = ~np.isnan(columns).any(1)
    n, missing = int(complete.sum()), int((~complete).sum())
    trainings = values.shape[1], others.shape[1]
    if n == 0:
        empty = Interval(np.nan, np.nan, np.nan, 0, missing)
        return Comparison((np.nan, np.nan), empty, np.nan, trainings)
    replicates = mean_replicates(columns[complete], resamples=resamples, seed=seed)
    scores = columns[complete].mean(0)
    k = trainings[0]
    ours = over_trainings(scores[:k], replicates[:, :k], key=name)
    theirs = over_trainings(scores[k:], replicates[:, k:], key=f"against {other}")
    means = float(scores[:k].mean()), float(scores[k:].mean())
    interval = as_interval(means[0] - means[1], ours - theirs, n=n, missing=missing)
    return Comparison(means, interval, replicate_p(ours - theirs) if n > 1 else np.nan, trainings)


def collapsed(masks: Mapping[str, Float[ndarray, " images"]]) -> dict[str, float]:
    """Return, of the trainings whose masks are mostly empty or full, the share that is; masks: mean of every mask."""
    shares = {}
    for name, means in masks.items():
        numbers = means[~np.isnan(means)]
        share = float(((numbers < EMPTY) | (numbers > FULL)).mean()) if len(numbers) else 0.0
        if share > COLLAPSED:
            shares[name] = share
    return shares
