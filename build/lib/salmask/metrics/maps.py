"""Statistics of the masks themselves, and which masks are degenerate. They need no ground truth."""

from math import log

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from salmask.boxes import above_mean
from salmask.metrics.case import Metric
from salmask.types import Masks, Values

__all__ = [
    "CONCENTRATION",
    "MAPS",
    "area_moments",
    "complexity",
    "mask_binarized",
    "mask_entropy",
    "mask_mean",
    "mask_std",
    "mask_tv",
    "sparseness",
]

STEPS = 2**20


def mask_mean(masks: Masks) -> Values:
    """Return the mean of each mask: the area that is called evidence, in [0, 1]."""
    return masks.mean((1, 2, 3))


def mask_binarized(masks: Masks) -> Values:
    """Return the fraction of pixels above the mask's own mean: the area of 1[m > mean(m)]."""
    return above_mean(masks).to(masks.dtype).mean((1, 2, 3))


def mask_entropy(masks: Masks) -> Values:
    """Return mean over pixels of -m log2 m, with 0 log 0 = 0.

    One-sided, as published (the 1 - m half is left out); highest, .531, where m = 1/e.
    """
    return -torch.special.xlogy(masks, masks).mean((1, 2, 3)) / np.log(2)


def mask_tv(masks: Masks) -> Values:
    """Return mean squared horizontal plus mean squared vertical difference (means, no border)."""
    across = masks.diff(dim=3).square()
    down = masks.diff(dim=2).square()
    return sum_of_means(across) + sum_of_means(down)


def sum_of_means(values: Tensor) -> Tensor:
    """Return the mean per image; 0 where a one-pixel-wide map has no difference."""
    return values.mean((1, 2, 3)) if values.numel() else values.new_zeros(len(values))


def area_moments(masks: Masks) -> Int[Tensor, "batch 3"]:
    """Return 1, a and a^2 per image, a the mask's mean in steps of 2^-20: integers, so that they add up exactly."""
    area = (mask_mean(masks.double()) * STEPS).round().long()
    return torch.stack([torch.ones_like(area), area, area * area], 1)


def mask_std(moments: np.ndarray) -> float:
    """Return the unbiased standard deviation, over the set, of the masks' means: how much the area varies.

    moments: (N, 3) of `area_moments`, or their sum; 0 for less than two images.
    """
    count, total, squares = (int(v) for v in moments.sum(0))
    if count < 2:
        return 0.0
    return float(np.sqrt(max(0, squares * count - total * total) / (count * (count - 1)))) / STEPS


_PHANG_MAPS = "Phang et al. 2020, spec 4.5"
MAPS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("mask_mean", lambda case: mask_mean(case.masks), {}, "none", (0, 1), _PHANG_MAPS),
        Metric(
            "mask_binarized",
            lambda case: mask_binarized(case.masks),
            {"rule": "above_mean"},
            "none",
            (0, 1),
            _PHANG_MAPS,
        ),
        Metric(
            "mask_entropy",
            lambda case: mask_entropy(case.masks),
            {"unit": "bit"},
            "none",
            (0, 0.531),
            _PHANG_MAPS,
        ),
        Metric("mask_tv", lambda case: mask_tv(case.masks), {"norm": "squared"}, "none", (0, 2), _PHANG_MAPS),
        Metric(
            "mask_std",
            lambda case: area_moments(case.masks),
            {"over": "images", "unbiased": True},
            "none",
            (0, 0.71),
            _PHANG_MAPS,
            compute=mask_std,
        ),
    )
}


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
