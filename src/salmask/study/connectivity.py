"""The straight line between two trainings of one network: is there a barrier on it, and who is on this side of it?

    w(t) = (1 - t) w_a + t w_b,     L(t) the loss at w(t),     t in [0, 1]

    barrier    max_t  L(t) - ((1 - t) L(0) + t L(1))                        excess over the line between the end losses
    gap        max over sub-segments [t, u] of the barrier on them          the convexity gap
    ridge      max_t  L(t) - max(L(0), L(1))                                excess over the higher end

All are 0 at least, as an end is no higher than itself; ridge <= barrier <= gap, and all are the same from the other
end. A loss that only falls has no ridge, but has a gap where it falls in a step. Networks without a gap between them
lie in one basin: `clusters_of` finds these from the matrix of gaps. Batch statistics are no weights: those of w(t) are
taken anew at each point, ends included, unless asked not to.

Sources: Frankle et al. (2020) for the barrier; Juneja et al. (2022) for the gap and its clusters.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import fresh_statistics
from salmask.classifier.wrappers import unwrapped
from salmask.training.run import Loaded
from salmask.types import Images

__all__ = [
    "LEAST_POINTS",
    "barrier_height",
    "check_line",
    "clusters_of",
    "convexity_gap",
    "in_between",
    "places",
    "ridge_height",
    "silhouette",
    "walk",
]

LEAST_POINTS = 3
_MOST_POINTS = 1000
_FLAT = 1e-9  # a gap below it is that of one and the same network
_MOST_CLUSTERS = 6

State = Mapping[str, Tensor]
Losses = Float[ndarray, "... points"]
Matrix = Float[ndarray, "networks networks"]
_Found = TypeVar("_Found")


def places(points: int) -> Float[ndarray, " {points}"]:
    """Return evenly spaced places from 0 to 1. Errors: ValueError for fewer than three, or more than a thousand."""
    if points > _MOST_POINTS:
        raise ValueError(f"expected at most {_MOST_POINTS} points on a line, got {points}: lower --points")
    if points < LEAST_POINTS:
        raise ValueError(
            f"expected at least {LEAST_POINTS} points on a line, both ends and one between them, got {points}: raise "
            "--points"
        )
    return np.linspace(0, 1, points)


def barrier_height(losses: Losses) -> Float[ndarray, "..."]:
    """Return the largest excess of losses at evenly spaced points over the straight line between those of the ends."""
    values = np.asarray(losses, dtype=np.float64)
    if values.shape[-1] < 2:
        raise ValueError(f"expected losses at the two ends and between them, got {values.shape[-1]} points")
    along = np.linspace(0, 1, values.shape[-1])
    start, end = values[..., :1], values[..., -1:]
    excess = values - (start + along * (end - start))  # so written, equal losses have none, of rounding either
    excess[..., [0, -1]] = 0.0
    return np.asarray(excess.max(-1))


def convexity_gap(losses: Losses) -> Float[ndarray, "..."]:
    """Return the largest barrier over all sub-segments between two of the points; 0 for a convex loss."""
    values = np.asarray(losses, dtype=np.float64)
    gaps = [
        barrier_height(values[..., start:stop])
        for start in range(values.shape[-1] - 1)
        for stop in range(start + 2, values.shape[-1] + 1)
    ]
    return np.asarray(np.max(gaps, axis=0))


def ridge_height(losses: Losses) -> Float[ndarray, "..."]:
    """Return the largest excess of losses at evenly spaced points over the higher of the two ends."""
    values = np.asarray(losses, dtype=np.float64)
    return np.asarray(values.max(-1) - np.maximum(values[..., 0], values[..., -1]))


def check_line(networks: Mapping[str, Loaded]) -> None:
    """Raise ValueError for fewer than two networks, and for two between which there is no straight line."""
    if len(networks) < 2:
        raise ValueError(f"expected at least two checkpoints of one network, got {len(networks)}: name more")
    (first, loaded), *others = networks.items()
    own, state = loaded.classifier, _state(loaded.classifier)
    for name, other in others:
        theirs, shapes = other.classifier, _state(other.classifier)
        if theirs.num_classes != own.num_classes:
            raise ValueError(
                f"expected checkpoints with heads alike, got {first} of {own.num_classes} classes and {name} of "
                f"{theirs.num_classes}: train both on the same classes"
            )
        unlike = sorted(state.keys() ^ shapes.keys()) or [
            key for key in state if state[key].shape != shapes[key].shape or state[key].dtype != shapes[key].dtype
        ]
        if unlike or loaded.network != other.network:
            raise ValueError(
                f"expected checkpoints of one architecture, got {loaded.network} in {first} and {other.network} in "
                f"{name}, which differ in {unlike[0] if unlike else 'name'}: there is no straight line between them"
            )
        if loaded.view != other.view or own.reading() != theirs.reading():
            raise ValueError(
                f"expected checkpoints that see pictures alike, got another size, fit or normalisation in {name} than "
                f"in {first}: give both the same (--image-size, or train them alike)"
            )
        if loaded.classes is not None and other.classes is not None and loaded.classes != other.classes:
            raise ValueError(
                f"expected checkpoints with heads alike, got other classes, or another order of them, in {name} than "
                f"in {first}: train both on the same classes"
            )


def in_between(first: State, second: State, place: float) -> dict[str, Tensor]:
    """Return (1 - t) a + t b of every tensor of numbers; counts and other whole numbers are the first one's."""
    if place in (0, 1):
        return {name: value.clone() for name, value in (first if place == 0 else second).items()}
    return {
        name: value.lerp(second[name], place) if value.is_floating_point() else value.clone()
        for name, value in first.items()
    }


def walk(
    first: Classifier,
    second: Classifier,
    along: Iterable[float],
    measure: Callable[[Classifier], _Found],
    *,
    statistics: Sequence[Images] = (),
) -> Iterator[_Found]:
    """Yield what is measured of the network at each place of the line from one classifier to another.

    measure: is handed one classifier that takes on the weights of each place; the two given ones are not touched.
    statistics: batches of pictures from which the batch statistics are taken anew at each place; none: they are
    interpolated as the weights are.
    """
    moving = copy.deepcopy(first)
    start, end = _state(first), _state(second)
    for place in along:
        unwrapped(moving.network).load_state_dict(in_between(start, end, float(place)))
        if statistics:
            fresh_statistics(moving, statistics)
        yield measure(moving)


def clusters_of(gaps: Matrix, count: int | None = None) -> Int[ndarray, " networks"]:
    """Return the cluster of each network, numbered in the order of the networks, by spectral clustering.

    The affinity of two networks is exp(-gap / mean gap). count: of clusters; None takes the one of 2 to 6 with the best
    silhouette. All are one cluster where no gap is above rounding, or of fewer than three networks no count is given.
    Errors: ValueError for a count that there are too few networks for.
    """
    from sklearn.cluster import SpectralClustering  # slow to import, and not needed before a study ends

    size = len(gaps)
    if count is not None and not 1 <= count <= size:
        raise ValueError(f"expected 1 to {size} clusters of {size} networks, got {count}")
    if count == 1 or (count is None and size < 3) or gaps.max() <= _FLAT:
        return np.zeros(size, dtype=int)
    if count == size:
        return np.arange(size)
    affinity = np.exp(-gaps / gaps[~np.eye(size, dtype=bool)].mean())
    counts = range(2, min(size - 1, _MOST_CLUSTERS) + 1) if count is None else (count,)
    found = [
        SpectralClustering(one, affinity="precomputed", assign_labels="cluster_qr", random_state=0).fit_predict(
            affinity
        )
        for one in counts
    ]
    best = found[int(np.argmax([silhouette(gaps, labels) for labels in found]))] if len(found) > 1 else found[0]
    order = list(dict.fromkeys(best.tolist()))
    return np.array([order.index(label) for label in best.tolist()])


def silhouette(gaps: Matrix, labels: Int[ndarray, " networks"]) -> float:
    """Return the mean silhouette of clusters, with the gaps as distances: 1 far apart, 0 touching; NaN for one."""
    from sklearn.metrics import silhouette_score

    if not 2 <= len(set(labels.tolist())) < len(labels):
        return float("nan")
    return float(silhouette_score(gaps, labels, metric="precomputed"))


def _state(classifier: Classifier) -> dict[str, Tensor]:
    return dict(unwrapped(classifier.network).state_dict())
