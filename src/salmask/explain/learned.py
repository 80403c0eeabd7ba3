"""The learned masker as an explainer: logits and mask from one pass of the classifier."""

import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.explain.base import Explanation, Passes, check_targets
from salmask.masker import Masker
from salmask.types import Images, Targets

__all__ = ["Learned"]


class Learned:
    """m = M(F(x)): one forward pass of the classifier gives logits and mask (Phang, Park & Geras, 2020).

    masker: trained beside the classifier that it will be called with; one that does not fit is refused.
    area: target area in [0, 1], for a masker conditioned on areas.

    Most maskers are class-agnostic: they read the features, not a class, and the explanation says so in `notes`.
    A masker conditioned on classes explains the targets that it is given.
    """

    normalize = "none"

    def __init__(self, masker: Masker, *, area: float | None = None) -> None:
        if masker.area_condition != (area is not None):
            raise ValueError(
                "this masker is conditioned on an area: give `area` in [0, 1]"
                if masker.area_condition
                else "this masker is not conditioned on an area: leave `area` out"
            )
        self.masker, self.area = masker, area

    @property
    def settings(self) -> dict[str, object]:
        """What the report says of this explainer."""
        return {**self.masker.settings(), "weights": self.masker.fingerprint(), "area": self.area}

    def __call__(self, classifier: Classifier, images: Images, targets: Targets | None = None) -> Explanation:
        """Return masks in [0, 1] at the images' size."""
        self.masker.fits(classifier)
        training = self.masker.training
        try:
            self.masker.eval()
            with classifier.frozen(), torch.no_grad():
                logits, maps = classifier.features(images)
                chosen = check_targets(targets, logits)
                size = (images.shape[-2], images.shape[-1])
                masks = self.masker(maps, size, areas=self._areas(images), targets=self._classes(chosen))
        finally:
            self.masker.train(training)
        notes = () if self.masker.classes else ("class-agnostic: the map does not depend on the class asked for",)
        return Explanation(masks, chosen, logits, Passes(forward=1), notes=notes)

    def _areas(self, images: Tensor) -> Tensor | None:
        return None if self.area is None else torch.full((len(images),), self.area, device=images.device)

    def _classes(self, targets: Tensor) -> Tensor | None:
        return targets if self.masker.classes else None
