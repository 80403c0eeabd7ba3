"""Concentration: how few pixels a map's mass lies on. No classifier is asked.

    sparseness  G = sum_i (2 i - n - 1) a_(i) / (n sum a)      a_(1) <= ... <= a_(n): the Gini index, in [0, 1 - 1/n]
    complexity  H = -sum_i w_i ln w_i,  w = a / sum a          entropy in nats, in [0, ln n]

A constant map has G = 0 and H = ln n, an empty one by continuity too; a single pixel G = 1 - 1/n and H = 0.

Sources: Chalasani et al. (2020, sparseness), Bhatt, Weller & Moura (2020, complexity).
"""

from math import log

import torch
from torch import Tensor

from salmask.metrics.case import Metric
from salmask.types import Masks, Values

__all__ = ["CONCENTRATION", "complexity", "sparseness"]


def sparseness(masks: Masks) -> Values:
    """Return the Gini index of each map's values, in [0, 1 - 1/n], float64; 0 for constant maps."""
    values = masks.flatten(1).double().sort(1).values
    count = values.shape[1]
    weights = torch.arange(1 - count, count, 2, dtype=values.dtype, device=values.device)
    total = values.sum(1)
    gini = (values @ weights) / (count * torch.where(total > 0, total, 1.0))
    return torch.where(_constant(values), 0.0, gini)


def complexity(masks: Masks) -> Values:
    """Return the entropy in nats of each map's shares, in [0, ln n], float64; ln n for constant maps."""
    values = masks.flatten(1).double()
    total = values.sum(1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1.0)
    entropy = torch.special.entr(shares).sum(1)
    return torch.where(_constant(values), log(values.shape[1]), entropy)


def _constant(values: Tensor) -> Tensor:
    return values.amin(1) == values.amax(1)


CONCENTRATION: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "sparseness",
            lambda case: sparseness(case.masks),
            {"index": "Gini"},
            "up",
            (0, 1),
            "Chalasani et al. 2020",
        ),
        Metric(
            "complexity",
            lambda case: complexity(case.masks),
            {"unit": "nat"},
            "down",
            (0, float("inf")),
            "Bhatt, Weller & Moura 2020",
        ),
    )
}
