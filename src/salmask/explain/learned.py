"""The learned masker as an explainer: logits and mask from one pass of the classifier, two after a CA training."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest, check_limit, held
from salmask.explain.base import CLASS_AGNOSTIC, Explainer, Explanation, Passes, check_targets
from salmask.explain.batching import by_pieces
from salmask.explain.knobs import BatchSize, Share
from salmask.files import Maybe, Within, plain_arguments
from salmask.masker import Masker
from salmask.types import Asked, Features, Images, size_of

__all__ = ["Learned"]


class Learned(Explainer):
    """m = M(F(x)): one forward pass of the classifier gives logits and mask (Phang, Park & Geras, 2020).

    masker: trained for the classifier that it will be called with; one that does not fit is refused.
    area: target area in [0, 1], for a masker conditioned on areas.
    top: a binary mask of this share of the cells of the masker's grid, those with the highest logits; of equal ones
        the first in reading order. This brings a masker that is not conditioned on areas to one.
    max_batch: images in one pass.

    Most maskers are class-agnostic: they read the features, not a class, and the explanation says so in `notes`.
    A masker conditioned on classes explains the targets that it is given.
    """

    masker: Masker

    def __init__(
        self,
        masker: Masker,
        *,
        area: Share | None = None,
        top: Share | None = None,
        max_batch: BatchSize = 64,
    ) -> None:
        if not isinstance(masker, Masker):
            raise ValueError(f"expected a Masker, got {type(masker).__name__}: load one with Masker.from_pretrained")
        shares = dict.fromkeys(("area", "top"), Maybe(Within(0, 1, whole=False)))
        given = plain_arguments("a learned masker", shares, area=area, top=top)
        area, top = given["area"], given["top"]
        check_limit(max_batch)
        if masker.area_condition != (area is not None):
            raise ValueError(
                "this masker is conditioned on an area: give `area` in [0, 1]"
                if masker.area_condition
                else "this masker is not conditioned on an area: leave `area` out"
            )
        self.masker, self.area, self.top, self.max_batch = masker, area, top, max_batch
        self.reader: Classifier | None = None

    def read_by(self, reader: Classifier | None) -> "Learned":
        """Return the explainer with a masker that reads the maps of another classifier than the explained one.

        After a training alongside (CA), that is the trained one: it never speaks in place of the explained classifier,
        and costs a second pass. None: the explained classifier's own maps.
        """
        if reader is not None:
            self.masker.fits(reader)
        other = copy.copy(self)
        other.reader = reader
        return other

    @property
    def settings(self) -> dict[str, object]:
        """What the report says of this explainer."""
        settings = {**self.masker.settings(), "weights": self.masker.fingerprint(), "area": self.area}
        if self.reader is not None:
            settings["reader"] = self.reader.fingerprint()
        return settings if self.top is None else {**settings, "top": self.top}

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Return masks in [0, 1] at the images' size."""
        reader = classifier if self.reader is None else self.reader.to(classifier.device)
        self.masker.fits(reader)
        with held(self.masker), at_rest(classifier, gradients=False), at_rest(reader, gradients=False):
            training = self.masker.training
            try:
                self.masker.eval()
                return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)
            finally:
                self.masker.train(training)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        logits, maps = classifier.features(images) if self.reader is None else self._read(classifier, images)
        chosen = check_targets(targets, logits)
        size = size_of(images)
        conditions = {"areas": self._areas(images), "targets": self._classes(chosen)}
        if self.top is None:
            masks = self.masker(maps, size, **conditions)
        else:
            cells = top_cells(self.masker.logits(maps, size, **conditions), self.top)
            masks = F.interpolate(cells, size, mode="nearest")
        notes = () if self.masker.classes else (CLASS_AGNOSTIC,)
        passes, names = Passes(forward=1 if self.reader is None else 2), (self.reader or classifier).layers
        layers = tuple(names[index] for index in self.masker.layers)
        return Explanation(masks, chosen, logits, passes, notes=notes, layers=layers)

    def _read(self, classifier: Classifier, images: Images) -> Features:
        """Return the explained classifier's logits, and the reader's maps."""
        assert self.reader is not None
        return Features(classifier.logits(images), self.reader.features(images).maps)

    def _areas(self, images: Tensor) -> Tensor | None:
        return None if self.area is None else torch.full((len(images),), self.area, device=images.device)

    def _classes(self, targets: Tensor) -> Tensor | None:
        return targets if self.masker.classes else None


def top_cells(logits: Tensor, share: float) -> Tensor:
    """Return 1 for the round(share * cells) highest logits of each image, else 0; equal ones in reading order."""
    flat = logits.flatten(1)
    count = round(share * flat.shape[1])
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat).scatter_(1, chosen, 1.0).view_as(logits)
