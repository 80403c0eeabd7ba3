"""What every explainer takes and gives.

    explainer(classifier, images, targets=None) -> Explanation

The constructor takes hyper-parameters, the call takes data, and nothing is left behind after it. Maps come
back raw, with the range that they live in; putting them on another scale is an explicit step.
"""

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.types import Images, Logits, Masks, Targets

__all__ = ["NORMALISERS", "Explainer", "Explanation", "Passes", "check_targets", "normalise"]


@dataclass(frozen=True)
class Passes:
    """What an explanation cost: forward and backward passes of one image through the classifier."""

    forward: float
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Forward and backward passes together."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Explanation:
    """The maps of a batch and how they came about.

    masks: (B, 1, H, W) at the images' size, raw. range: the interval that the values live in, infinite ends
        allowed; (0, 1) for masks. targets: the classes explained. logits: the classifier's, on the whole images.
    """

    masks: Masks
    targets: Targets
    logits: Logits
    passes: Passes
    range: tuple[float, float] = (0.0, 1.0)
    notes: tuple[str, ...] = field(default=())

    @property
    def degenerate(self) -> Tensor:
        """Which maps say nothing: constant, or not finite. (B,) bool."""
        flat = self.masks.flatten(1)
        return (flat.amax(1) == flat.amin(1)) | ~flat.isfinite().all(1)

    def normalized(self, how: str) -> "Explanation":
        """Return the same explanation on the scale "none", "minmax", "max" or "rank" (`normalise`)."""
        if how == "none":
            return self
        return replace(self, masks=normalise(self.masks, how), range=(0.0, 1.0))


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


@runtime_checkable
class Explainer(Protocol):
    """Anything that explains a batch; `wants` names what else it is given: "boxes", "pixels", "ids"."""

    def __call__(self, classifier: Classifier, images: Images, targets: Targets | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones where none are given."""
        ...


def check_targets(targets: Targets | None, logits: Logits) -> Targets:
    """Return the classes to explain: those given, checked, or the predicted ones."""
    if targets is None:
        return logits.detach().argmax(1)
    count, classes = logits.shape
    if targets.shape != (count,) or targets.is_floating_point():
        raise ValueError(f"expected targets ({count},) of integers, came {tuple(targets.shape)} {targets.dtype}")
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(
            f"targets run from {int(targets.min())} to {int(targets.max())}, the classes from 0 to {classes - 1}"
        )
    return targets.to(logits.device)
