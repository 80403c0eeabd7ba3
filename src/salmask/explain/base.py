"""What every explainer takes and gives.

    explainer(classifier, images, targets=None) -> Explanation

The constructor takes hyper-parameters, the call takes data, and nothing is left behind after it. Maps come
back raw, with the range that they live in; putting them on another scale is an explicit step.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from salmask.classifier import Classifier
from salmask.types import NORMALISERS, Images, Logits, Masks, Targets, constant, normalise

__all__ = ["CLASS_AGNOSTIC", "NORMALISERS", "Explainer", "Explanation", "Passes", "check_targets", "normalise"]

CLASS_AGNOSTIC = "class-agnostic: the map does not depend on the class asked for"
"""The note of an explanation whose targets were checked and handed back, and changed nothing."""


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
        """Which maps say nothing: constant up to rounding, or not finite. (B,) bool."""
        return constant(self.masks)

    @property
    def class_agnostic(self) -> bool:
        """Whether the maps are the same whatever class is asked for."""
        return CLASS_AGNOSTIC in self.notes

    def normalized(self, how: str) -> "Explanation":
        """Return the same explanation on the scale "none", "minmax", "max" or "rank" (`normalise`)."""
        if how == "none":
            return self
        return replace(self, masks=normalise(self.masks, how), range=(0.0, 1.0))

    def bounded(self) -> "Explanation":
        """Return the same explanation in [0, 1]: maps that declare that range as they are, others by min and max.

        By min and max, the zero of a signed map becomes a grey of its own in each image. To read a signed map as a
        mask, cut off what speaks against the class first: `replace(explanation, masks=explanation.masks.relu())`.
        """
        low, high = self.range
        return self if low >= 0 and high <= 1 else self.normalized("minmax")


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
    return targets.to(logits.device).long()
