"""What every explainer takes and gives.

    explainer(classifier, images, targets=None) -> Explanation

The constructor takes hyper-parameters, the call takes data, and nothing is left behind after it. Maps come
back raw, with the range that they live in; putting them on another scale is an explicit step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from inspect import isfunction, signature
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.masker import Masker
from salmask.types import NORMALISERS, Asked, Images, Logits, Masks, Targets, constant, normalise, size_of

__all__ = [
    "CLASS_AGNOSTIC",
    "NORMALISERS",
    "Explainer",
    "Explanation",
    "FromFunction",
    "Passes",
    "as_targets",
    "check_targets",
    "explainer_of",
    "normalise",
]

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
    """The maps of a batch and how they were made.

    masks: (B, 1, H, W) at the images' size, raw. range: the interval that the values live in, infinite ends
        allowed; (0, 1) for masks. targets: the classes explained. logits: the classifier's, on the whole images.
    layers: names of the layers whose maps were read, in the network that was read; none where logits were enough.
    """

    masks: Masks
    targets: Targets
    logits: Logits
    passes: Passes
    range: tuple[float, float] = (0.0, 1.0)
    notes: tuple[str, ...] = field(default=())
    layers: tuple[str, ...] = ()

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
    """Anything that explains a batch. All but the call has a default for a class that names `Explainer` as its base.

    A bare function (classifier, images, targets) -> Explanation becomes one by `explainer_of`.
    """

    masker: Masker | None = None
    """The trained masker that makes the maps, where one does."""

    @property
    def kind(self) -> str:
        """What it is, for the report."""
        return type(self).__name__

    @property
    def settings(self) -> Mapping[str, object]:
        """What changes its maps, for the report: the fields of a dataclass, unless it says otherwise."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init} if is_dataclass(self) else {}

    @property
    def wants(self) -> frozenset[str]:
        """What else its call is given, by keyword: "boxes", "pixels", "ids"."""
        return frozenset()

    @property
    def naive(self) -> bool:
        """Whether nothing of a map is the classifier's, so that its mistakes are not held against the map."""
        return False

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones where none are given."""
        ...


@dataclass(frozen=True)
class FromFunction(Explainer):
    """A bare function as an explainer."""

    function: Callable[..., Explanation]

    @property
    def kind(self) -> str:
        """Return the function's name."""
        return self.function.__name__ if isfunction(self.function) else type(self.function).__name__

    @property
    def settings(self) -> Mapping[str, object]:
        """Return none: what a function has bound is not for others to see."""
        return {}

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Return what the function returns."""
        explanation = self.function(classifier, images, targets)
        if not isinstance(explanation, Explanation):
            raise ValueError(
                f"expected an Explanation from the function {self.kind}, got {type(explanation).__name__}: return "
                "Explanation(masks, targets, logits, Passes(1)) with masks (B, 1, H, W)"
            )
        masks, passes = explanation.masks, explanation.passes
        lies = isinstance(masks, Tensor) and masks.ndim == 4 and (len(masks), *size_of(masks)) == _lying(images)
        if not lies or not isinstance(passes, Passes):
            got = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise ValueError(
                f"expected masks (B, 1, H, W) as a tensor at the size of the images {tuple(images.shape)}, and Passes, "
                f"from the function {self.kind}, got {got} and {passes!r}"[:300]
            )
        return explanation


def _lying(images: Images) -> tuple[int, int, int]:
    return len(images), *size_of(images)


def explainer_of(explainer: Explainer | Callable[..., Explanation]) -> Explainer:
    """Return an explainer as it is, and a bare function or callable with the defaults of `Explainer`.

    Errors: ValueError for what cannot be called with a classifier and images.
    """
    network = isinstance(explainer, nn.Module) and not isinstance(explainer, Explainer) and _takes_one(explainer)
    if not callable(explainer) or isinstance(explainer, type) or network:
        got = " ".join(repr(explainer).split())[:200]
        raise ValueError(f"expected a masker, a name such as 'gradcam' or an explainer of EXPLAINERS, got {got}")
    return explainer if isinstance(explainer, Explainer) else FromFunction(explainer)


def _takes_one(module: nn.Module) -> bool:
    """Return whether a module is called with pictures alone, as a network is, and an explainer is not."""
    parameters = signature(module.forward).parameters.values()
    given = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(given) < 2


def as_targets(targets: Asked) -> Tensor:
    """Return classes as a tensor. Errors: ValueError for what is no row of numbers."""
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected targets (B,), a class index for each image, got {type(targets).__name__} {targets!r}"[:200]
        ) from error


def check_targets(targets: Tensor | None, logits: Logits) -> Targets:
    """Return the classes to explain: those given, checked, or the predicted ones.

    Errors: ValueError for classes that there are not, and for logits that are NaN.
    """
    if bool(logits.isnan().any()):
        raise ValueError(
            "the network returns NaN for a picture, which no map explains: look at its weights and its precision"
        )
    if targets is None:
        return logits.detach().argmax(1)
    targets = as_targets(targets)
    count, classes = logits.shape
    if targets.shape != (count,) or targets.is_floating_point():
        raise ValueError(f"expected targets ({count},) of integers, got {tuple(targets.shape)} {targets.dtype}")
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(
            f"targets run from {int(targets.min())} to {int(targets.max())}, the classes from 0 to {classes - 1}"
        )
    return targets.to(logits.device).long()
