"""The same explainers under the calls of two libraries that people already use.

    Attributions(explainer, classifier).attribute(inputs, target=...)      as in Captum
    CamLike(explainer, classifier)(input_tensor=..., targets=[...])        as in pytorch-grad-cam

Both take what the network itself reads, z = (x - mean) / std, as code written for those libraries does.
docs/migrating.md holds examples that the tests run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from salmask.classifier import Classifier
from salmask.explain.base import Explainer, normalise
from salmask.types import Images, Masks, Targets

__all__ = ["Attributions", "CamLike", "unnormalised"]

Target = int | Sequence[int] | Tensor | None


def unnormalised(classifier: Classifier, inputs: Float[Tensor, "batch channels height width"]) -> Images:
    """Return x = z * std + mean, the images in [0, 1] of inputs that are normalised for the classifier's network."""
    return inputs.detach().to(classifier.device) * classifier.std + classifier.mean


@dataclass(frozen=True)
class Attributions:
    """An explainer under Captum's call. explainer: any of `EXPLAINERS[...](...)`, or a learned one."""

    explainer: Explainer
    classifier: Classifier

    def attribute(self, inputs: Float[Tensor, "batch channels height width"], target: Target = None) -> Masks:
        """Return raw maps (B, 1, H, W), which broadcast to the inputs.

        target: one class for all images, one an image, or None for the predicted classes. Differs from Captum:
        one channel instead of three, and None means the predicted class.
        """
        images = unnormalised(self.classifier, inputs)
        return self.explainer(self.classifier, images, _targets(target, len(images))).masks


@dataclass(frozen=True)
class CamLike:
    """An explainer under pytorch-grad-cam's call, as a context manager or not: no hook outlives the call."""

    explainer: Explainer
    classifier: Classifier

    def __call__(
        self,
        input_tensor: Float[Tensor, "batch channels height width"],
        targets: Sequence[int | Callable[[Tensor], Tensor]] | None = None,
    ) -> Float[np.ndarray, "batch height width"]:
        """Return maps (B, H, W) in [0, 1] on the CPU: negative values cut off, then min-max per image.

        targets: one an image: a class index or an object with `.category`, such as ClassifierOutputTarget.
        Raises ValueError for other callables.
        """
        chosen = None if targets is None else [_category(target) for target in targets]
        images = unnormalised(self.classifier, input_tensor)
        explanation = self.explainer(self.classifier, images, _targets(chosen, len(images)))
        return normalise(explanation.masks.relu(), "minmax")[:, 0].cpu().numpy()

    def __enter__(self) -> "CamLike":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to release, and no error is swallowed."""


def _targets(target: Target, count: int) -> Targets | None:
    if target is None:
        return None
    if isinstance(target, int):
        return torch.full((count,), target, dtype=torch.long)
    return torch.as_tensor(target)


def _category(target: Any) -> int:  # Any: a class of another library's
    category = getattr(target, "category", target)
    if category is None or callable(category):
        raise ValueError(
            "expected class indices or targets with a .category, such as ClassifierOutputTarget(k), "
            f"got {type(target).__name__}: the class to explain must be known, not computed"
        )
    return int(category)
