"""Raw maps onto [0, 1], one map at a time: an explicit step, named wherever it is taken."""

from types import MappingProxyType

import torch
from torch import Tensor

from salmask.types import Masks

__all__ = ["NORMALISERS", "normalise"]


def normalise(maps: Masks, how: str) -> Masks:
    """Put each map on [0, 1]; a constant map becomes zeros under "minmax" and "max".

    minmax: (a - min a) / (max a - min a).  max: relu(a) / max a.  rank: the share of pixels that are smaller,
    ties sharing their mean rank.
    """
    if how not in NORMALISERS:
        raise ValueError(f"unknown normalisation {how!r}: choose of {', '.join(NORMALISERS)}")
    return NORMALISERS[how](maps)


def _minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, torch.ones_like(high))


def _max(maps: Tensor) -> Tensor:
    positive = maps.clamp_min(0)
    high = positive.amax((2, 3), keepdim=True)
    return positive / torch.where(high > 0, high, torch.ones_like(high))


def _rank(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    ordered = flat.sort(1).values
    below = torch.searchsorted(ordered, flat.contiguous())
    upto = torch.searchsorted(ordered, flat.contiguous(), right=True)
    return ((below + upto - 1) / (2 * max(1, flat.shape[1] - 1))).to(maps.dtype).view_as(maps)


NORMALISERS = MappingProxyType({"none": lambda maps: maps, "minmax": _minmax, "max": _max, "rank": _rank})
"""Ways to put raw maps on [0, 1]."""
