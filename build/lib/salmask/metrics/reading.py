"""Showing pictures to the classifier: what is read of them, what a wholly hidden picture looks like.

A pass is remembered by its class scores, four numbers a picture, so that all metrics of a case share the passes: the
whole image and the bare fill are shown once, however many curves end there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import at_once, at_rest, pieces
from salmask.classifier.scores import ClassScore, logit, probability, sigmoid, top1
from salmask.metrics.case import Case
from salmask.metrics.fills import Fill
from salmask.outcome import IMAGES_PER_PASS, whole_logits
from salmask.types import Images, Logits, Targets

__all__ = ["READ", "Reading", "colours", "hidden", "read", "to_read"]

READ: tuple[ClassScore, ...] = (probability, top1, logit, sigmoid)
"""Class scores that are read of every picture, since a pass costs more than any of them."""


def to_read(score: ClassScore) -> tuple[ClassScore, ...]:
    """Return the scores to read so that this one is among them."""
    return READ if score in READ else (*READ, score)


@dataclass(frozen=True)
class Reading:
    """What a classifier says of one class on each of several pictures, by class score; float64, shape (...)."""

    values: Mapping[ClassScore, Tensor]

    @classmethod
    def of(cls, logits: Logits, targets: Targets, scores: Sequence[ClassScore] = READ) -> "Reading":
        """Read logits (N, K) at classes (N,)."""
        exact = logits.detach().double()
        return cls({score: score(exact, targets) for score in scores})

    def __getitem__(self, score: ClassScore) -> Tensor:
        return self.values[score]

    def view(self, *shape: int) -> "Reading":
        """Return the same numbers in another shape."""
        return Reading({score: values.reshape(shape) for score, values in self.values.items()})


def read(
    classifier: Classifier,
    pictures: Callable[[Tensor], Images],
    targets: Targets,
    *,
    scores: Sequence[ClassScore] = READ,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Reading:
    """Show `pictures(indices)` for all indices of `targets`, some at a time, and read the class of each.

    Nothing is held but the readings. The classifier is in eval mode meanwhile and leaves as it was. Where the
    device's memory does not do, half as many are shown at once, with one warning.
    """
    if images_per_pass < 1:
        raise ValueError(f"images_per_pass must be at least 1, got {images_per_pass}")

    def part(rows: slice) -> Reading:
        indices = torch.arange(rows.start, rows.stop, device=targets.device)
        shown = pictures(indices)
        few = at_once(shown, len(shown))
        logits = torch.cat([classifier.logits(some) for some in shown.split(few)])
        return Reading.of(*classifier.question(logits, targets[indices]), scores)

    with at_rest(classifier, gradients=False):
        parts = list(pieces(part, len(targets), max_batch=images_per_pass))
    none = torch.zeros(0, dtype=torch.float64, device=targets.device)
    return Reading({score: torch.cat([none, *(one[score] for one in parts)]) for score in scores})


def colours(case: Case, fill: Fill) -> Tensor:
    """Return the colours of a wholly hidden picture, (1, C, 1, 1) or one an image; made once a case."""
    classifier, images, _ = case.played()

    def make() -> Tensor:
        with torch.no_grad():
            return fill.infill(classifier)(images, torch.ones_like(images[:, :1])).to(images)

    return case.once(("colours", fill), make)


def hidden(case: Case, fill: Fill, *, images_per_pass: int = IMAGES_PER_PASS) -> Logits:
    """Return the logits of the bare fill, shown once a case; one picture serves all where it is one colour."""
    classifier, images, _ = case.played()
    made = colours(case, fill)

    def show() -> Logits:
        bare = made.expand(min(len(made), len(images)), *images.shape[1:])
        logits = whole_logits(classifier, bare, images_per_pass=images_per_pass)
        return logits.expand(len(images), -1)

    return case.once(("hidden", fill), show)
