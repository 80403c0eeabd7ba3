"""Scores of maps for classifiers with several inputs: does a map lie on the input that carries the decision?

    a_k   share of the map's mass on input k; equal shares of a map that the inputs share
    s_k   share of input k in the decision: what it adds alone and what is lost without it (`terms.input_effects`)

    input_agreement = sum_k min(a_k, s_k)          input_top = 1[argmax a = argmax s]

They need no ground truth, but a classifier of several inputs.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from salmask.metrics.case import Case, Metric
from salmask.metrics.fills import MEAN, Fill
from salmask.terms import input_effects, shares_of
from salmask.types import Values

__all__ = ["INPUTS", "input_agreement", "input_top", "mass_shares"]


def mass_shares(case: Case) -> Float[Tensor, "batch inputs"]:
    """Return the share of each map's mass that lies on each input of the scoring classifier; zeros of an empty map."""
    count = 1 if case.inputs is None else len(case.inputs)
    masks = case.masks.expand(-1, count, -1, -1) if case.by_input is None else case.by_input
    mass = masks.double().sum((2, 3))
    return mass / mass.sum(1, keepdim=True).clamp_min(1e-12)


def _shares(case: Case, fill: Fill) -> Float[Tensor, "batch inputs"]:
    """Return the shares of the inputs in the decision, asked once a case."""
    classifier, images, targets = case.played()

    def ask() -> Tensor:
        infill = fill.infill(classifier)
        return shares_of(input_effects(classifier, images, targets, infill=infill, clean=case.whole()))

    return case.once(("input shares", fill), ask).to(case.masks.device).double()


def input_agreement(case: Case, *, fill: Fill = MEAN) -> Values:
    """Return sum_k min(share of the map, share of the decision), in [0, 1]."""
    return torch.minimum(mass_shares(case), _shares(case, fill)).sum(1)


def input_top(case: Case, *, fill: Fill = MEAN) -> Values:
    """Return 1 where most of the map lies on the input that carries most of the decision; an even map counts 1/K."""
    mass = mass_shares(case)
    highest = (mass >= mass.amax(1, keepdim=True) - 1e-9).double()
    right = highest.gather(1, _shares(case, fill).argmax(1, keepdim=True))[:, 0]
    return torch.where(mass.sum(1) > 0, right / highest.sum(1), torch.zeros_like(right))


def _metric(name: str, function: Callable[[Case], Values]) -> Metric:
    protocol = {"fill": MEAN.name, "explained_class": "given", "score": "probability", "map": "mass an input"}
    needs = frozenset({"images", "classifier", "inputs"})
    return Metric(name, function, protocol, "up", (0, 1), "salmask", needs)


INPUTS: dict[str, Metric] = {
    "input_agreement": _metric("input_agreement", input_agreement),
    "input_top": _metric("input_top", input_top),
}
"""Metrics of classifiers with several inputs, by name."""
