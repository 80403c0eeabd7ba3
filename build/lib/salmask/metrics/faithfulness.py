"""Faithfulness: does the classifier decide by what the map calls evidence?

With p = softmax(f(x))_y, o = softmax(f(keep(x, m)))_y and q = softmax(f(remove(x, m)))_y, per image:

| metric | formula | better |
|---|---|---|
| average_drop | max(0, p - o) / p | down |
| average_increase | 1[o > p] | up |
| average_gain | max(0, o - p) / (1 - p) | up |
| fidelity_in | 1[argmax f(keep(x, m)) = argmax f(x)] | up |
| faithfulness | p - q | up |
| sensitivity_n | correlation, over random sets S of cells, of the map's sum on S with p - p(x without S) | up |

The mask multiplies softly. y is the case's `targets`: the caller decides between label, predicted and given class,
and a protocol says which one its source takes. The curves (insertion, deletion, perturbation) are in `curves`.

Sources: Chattopadhay et al. (2018), Zhang et al. (2024, Opti-CAM), Torres et al. (2024, CA-Stream), Paissan et al.
(2024, L-MAC), Ancona et al. (2018, sensitivity-n).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier.scores import ClassScore, probability
from salmask.draws import generator_for
from salmask.metrics.case import Case, Metric
from salmask.metrics.curves import Aopc, Curve, Perturbation, mean_of_points
from salmask.metrics.fills import BLACK, MEAN, Fill, window_blur
from salmask.metrics.maps import CONCENTRATION
from salmask.metrics.reading import colours, read
from salmask.outcome import IMAGES_PER_PASS, KEPT, REMOVED
from salmask.types import Values

__all__ = [
    "EPSILON",
    "FAITHFULNESS",
    "average_drop",
    "average_gain",
    "average_increase",
    "faithfulness",
    "fidelity_in",
    "sensitivity_n",
]

EPSILON = 1e-7
"""Floor of the divisors p and 1 - p."""


def _whole_and(side: str, case: Case, fill: Fill, score: ClassScore, images_per_pass: int) -> tuple[Tensor, Tensor]:
    """Return the score of the whole picture and that of the kept or the removed one, in float64."""
    outcome = case.outcome(fill, sides=frozenset({side}), images_per_pass=images_per_pass)
    shown = outcome.kept_logits if side == KEPT else outcome.removed_logits
    return score(outcome.clean.double(), outcome.targets), score(shown.double(), outcome.targets)


# Single pictures


def average_drop(
    case: Case,
    *,
    fill: Fill = MEAN,
    score: ClassScore = probability,
    epsilon: float = EPSILON,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Values:
    """max(0, p - o) / max(p, epsilon), in [0, 1] for scores in [0, 1]; 0 for a full mask."""
    p, o = _whole_and(KEPT, case, fill, score, images_per_pass)
    return ((p - o).clamp_min(0) / p.clamp_min(epsilon)).to(case.masks.device)


def average_increase(
    case: Case,
    *,
    fill: Fill = MEAN,
    score: ClassScore = probability,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Values:
    """1[o > p]; 0 for a full mask."""
    p, o = _whole_and(KEPT, case, fill, score, images_per_pass)
    return (o > p).double().to(case.masks.device)


def average_gain(
    case: Case,
    *,
    fill: Fill = MEAN,
    score: ClassScore = probability,
    epsilon: float = EPSILON,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Values:
    """max(0, o - p) / max(1 - p, epsilon), in [0, 1] for scores in [0, 1]; 0 for a full mask."""
    p, o = _whole_and(KEPT, case, fill, score, images_per_pass)
    return ((o - p).clamp_min(0) / (1 - p).clamp_min(epsilon)).to(case.masks.device)


def fidelity_in(case: Case, *, fill: Fill = MEAN, images_per_pass: int = IMAGES_PER_PASS) -> Values:
    """1[argmax f(keep(x, m)) = argmax f(x)], whatever class is explained; 1 for a full mask."""
    outcome = case.outcome(fill, sides=frozenset({KEPT}), images_per_pass=images_per_pass)
    same = outcome.clean.argmax(1) == outcome.kept_logits.argmax(1)
    return same.double().to(case.masks.device)


def faithfulness(
    case: Case,
    *,
    fill: Fill = MEAN,
    score: ClassScore = probability,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Values:
    """P - q, what removing the evidence costs, in [-1, 1]; 0 for an empty mask."""
    p, q = _whole_and(REMOVED, case, fill, score, images_per_pass)
    return (p - q).to(case.masks.device)


# Sensitivity-n


def sensitivity_n(
    case: Case,
    *,
    share: float = 0.1,
    cells: int = 16,
    subsets: int = 32,
    fill: Fill = MEAN,
    score: ClassScore = probability,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Values:
    """Pearson correlation, over random subsets S, of the map's sum on S with p(x) - p(x without S), in [-1, 1].

    S holds `share` of the cells x cells grid, drawn from the case's seed and the image's id, so that every map of an
    image meets the same subsets; a cell is at least a pixel. 0 where either side is constant: such a map foretells
    nothing.
    """
    if not 0 < share < 1 or subsets < 2 or cells < 2:
        raise ValueError(
            "sensitivity_n needs 0 < share < 1, at least 2 subsets and at least 2 cells a side; "
            f"got {share}, {subsets}, {cells}"
        )
    cells = min(cells, *case.size)
    count = max(1, round(share * cells**2))
    _, images, targets = case.played()
    if not len(images):
        return case.masks.new_zeros(0, dtype=torch.float64)
    chosen = case.once(("subsets", cells, subsets, count), lambda: _subsets(case, cells, subsets, count))
    p = score(case.whole(images_per_pass=images_per_pass).double(), targets)
    drops, sums = [], []
    for index, sets in enumerate(chosen):
        here = slice(index, index + 1)
        holes = F.interpolate(sets[:, None].float(), case.size, mode="nearest-exact").to(images)
        drops.append(p[here] - _with_holes(case, here, holes, fill, score, images_per_pass))
        sums.append((holes.double() * case.masks[here].to(holes).double()).sum((1, 2, 3)))
    return _correlation(torch.stack(sums), torch.stack(drops)).to(case.masks.device)


def _with_holes(case: Case, here: slice, holes: Tensor, fill: Fill, score: ClassScore, images_per_pass: int) -> Values:
    """Return the score of one image with each of several sets of pixels hidden."""
    classifier, images, targets = case.played()
    made = colours(case, fill)
    colour = made[here] if len(made) > 1 else made

    def pictures(at: Tensor) -> Tensor:
        return torch.where(holes[at] > 0, colour, images[here])

    repeated = targets[here].expand(len(holes))
    return read(classifier, pictures, repeated, scores=(score,), images_per_pass=images_per_pass)[score]


def _subsets(case: Case, cells: int, subsets: int, count: int) -> list[Tensor]:
    drawn = []
    for image in case.ids:
        generator = generator_for(case.seed, image, "sensitivity_n")
        order = torch.rand(subsets, cells**2, generator=generator).argsort(1)
        drawn.append((order < count).view(subsets, cells, cells))
    return drawn


def _correlation(
    a: Float[Tensor, "batch subsets"], b: Float[Tensor, "batch subsets"], *, tolerance: float = 1e-9
) -> Values:
    """Return the Pearson correlation of each row; 0 where a side varies by no more than rounding."""
    first, second = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    length = first.norm(dim=1) * second.norm(dim=1)
    flat = (first.norm(dim=1) <= tolerance * a.norm(dim=1)) | (second.norm(dim=1) <= tolerance)
    return torch.where(flat, 0.0, (first * second).sum(1) / torch.where(flat, 1.0, length)).clamp(-1, 1)


# The table

Direction = Literal["up", "down", "none"]
_NEEDS = frozenset({"images", "classifier"})
_OPTI_CAM = "Zhang et al. 2024 (Opti-CAM)"
_STREAM = "Torres et al. 2024 (CA-Stream)"
_LMAC = "Paissan et al. 2024 (L-MAC)"
_ORIGIN = "Chattopadhay et al. 2018"
_RISE = "Petsiuk, Das & Saenko 2018 (RISE)"
_CHEFER = "Chefer, Gur & Wolf 2021"


LABEL, PREDICTED = "given (source: the label)", "given (source: the predicted class)"


def _of_pictures(
    name: str,
    function: Callable[..., Values],
    direction: Direction,
    source: str,
    *,
    fill: Fill = MEAN,
    explained: str = "given",
    score: str = "probability",
    low: float = 0,
    settings: Mapping[str, float] = MappingProxyType({}),
) -> Metric:
    """Make a metric of kept or removed pictures: its function with settings, and the protocol that says the same."""
    protocol = {"fill": fill.name, "explained_class": explained, "score": score, **settings}

    def bound(case: Case) -> Values:
        return function(case, fill=fill, **settings)

    return Metric(name, bound, protocol, direction, (low, 1), source, _NEEDS)


def _drops() -> list[Metric]:
    """Return drop, increase and gain, plain and as each source plays them."""
    metrics = []
    floor = {"epsilon": EPSILON}
    for protocol, source, fill, explained in (
        ("", _ORIGIN, MEAN, "given"),
        (":opti_cam", _OPTI_CAM, BLACK, LABEL),
        (":ca_stream", _STREAM, BLACK, LABEL),
        (":lmac", _LMAC, BLACK, PREDICTED),
    ):
        make = partial(_of_pictures, fill=fill, explained=explained)
        gain = source if protocol else _OPTI_CAM
        metrics += [
            make(f"average_drop{protocol}", average_drop, "down", source, settings=floor),
            make(f"average_increase{protocol}", average_increase, "up", source),
            make(f"average_gain{protocol}", average_gain, "up", gain, settings=floor),
        ]
    return metrics


def _insertion_deletion() -> list[Metric]:
    """Return insertion and deletion, plain and as each source plays them."""
    metrics = []
    plain = Curve(insert=True)
    rise = Curve(insert=True, steps=224, fill=window_blur(11, 5), explained=PREDICTED)
    opti = replace(rise, area=mean_of_points)
    stream = Curve(insert=True, steps=28, fill=window_blur(5, 5), explained=LABEL)
    for protocol, source, insertion, hole in (
        ("", _RISE, plain, MEAN),
        (":rise", _RISE, rise, MEAN),
        (":opti_cam", _OPTI_CAM, opti, BLACK),
        (":ca_stream", _STREAM, stream, MEAN),
    ):
        deletion = replace(insertion, insert=False, fill=hole)
        metrics += [
            _curve(f"insertion{protocol}", insertion, "up", source),
            _curve(f"deletion{protocol}", deletion, "down", source),
        ]
    return metrics


def _curve(
    name: str, curve: Curve | Perturbation | Aopc, direction: Direction, source: str, *, low: float = 0
) -> Metric:
    return Metric(name, curve, curve.protocol, direction, (low, 1), source, _NEEDS)


def _perturbations() -> list[Metric]:
    """Return the positive and negative perturbation curves: accuracy, probability, and as CA-Stream plays them."""
    metrics = []
    sides: list[tuple[str, Direction, Perturbation]] = [
        ("perturbation_positive", "down", Perturbation(positive=True)),
        ("perturbation_negative", "up", Perturbation(positive=False)),
    ]
    for name, direction, curve in sides:
        stream = replace(curve, fill=BLACK, explained=LABEL)
        metrics += [
            _curve(name, curve, direction, _CHEFER),
            _curve(f"{name}:probability", replace(curve, score=probability), direction, _CHEFER),
            _curve(f"{name}:ca_stream", stream, direction, _STREAM),
        ]
    return metrics


def _others() -> list[Metric]:
    lmac = partial(_of_pictures, source=_LMAC, fill=BLACK, explained=PREDICTED)
    same = "top-1 of the kept picture is that of the whole"
    subsets = {"share": 0.1, "cells": 16, "subsets": 32}
    return [
        _of_pictures("fidelity_in", fidelity_in, "up", _LMAC, score=same, explained="none"),
        lmac("fidelity_in:lmac", fidelity_in, "up", score=same, explained="none"),
        _of_pictures("faithfulness", faithfulness, "up", _LMAC, low=-1),
        lmac("faithfulness:lmac", faithfulness, "up", low=-1),
        _of_pictures("sensitivity_n", sensitivity_n, "up", "Ancona et al. 2018", low=-1, settings=subsets),
        _curve("aopc", Aopc(), "up", "Samek et al. 2017", low=-1),
    ]


FAITHFULNESS: dict[str, Metric] = {
    metric.name: metric for metric in (*_drops(), *_insertion_deletion(), *_perturbations(), *_others())
} | CONCENTRATION
"""Metrics by name; "name:source" is the protocol of that source, the plain name is the library's own."""
