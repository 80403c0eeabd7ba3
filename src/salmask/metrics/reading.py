"""Showing pictures to the classifier: what is read of it, what fills the holes, how many pictures at once.

A pass is remembered by its `Reading`, three numbers a picture, so that all scores of a case share the passes: the
whole image and the bare fill are shown once, however many curves end there.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salmask.classifier.hold import at_once
from salmask.masking import BLACK, MEAN, Fill, window_blur
from salmask.metrics.case import Case
from salmask.outcome import IMAGES_PER_PASS, whole_logits
from salmask.types import Images, Logits, Targets

__all__ = [
    "BLACK",
    "IMAGES_PER_PASS",
    "MEAN",
    "Fill",
    "Reading",
    "Score",
    "clean",
    "colours",
    "hidden",
    "logit",
    "on_device",
    "probability",
    "read",
    "sigmoid",
    "top1",
    "window_blur",
]

# What is read of the classifier


class Reading(NamedTuple):
    """What a classifier says of one class on each of several pictures; float64, shape (...).

    own: the class's logit; total: log sum exp of all logits; right: whether the class has the largest logit.
    best: the index of the largest logit.
    """

    own: Tensor
    total: Tensor
    best: Tensor
    targets: Tensor

    @classmethod
    def of(cls, logits: Logits, targets: Targets) -> "Reading":
        """Read logits (N, K) at classes (N,)."""
        logits = logits.detach().double()
        own = logits.gather(1, targets[:, None])[:, 0]
        return cls(own, logits.logsumexp(1), logits.argmax(1), targets)

    def view(self, *shape: int) -> "Reading":
        """Return the same numbers in another shape."""
        return Reading(*(part.reshape(shape) for part in self))


Score = Callable[[Reading], Tensor]


def probability(reading: Reading) -> Tensor:
    """softmax(l)_y, in [0, 1]."""
    return (reading.own - reading.total).exp()


def sigmoid(reading: Reading) -> Tensor:
    """1 / (1 + exp(-l_y)), for classifiers of several labels at once."""
    return reading.own.sigmoid()


def logit(reading: Reading) -> Tensor:
    """l_y, unbounded: only differences of logits mean something."""
    return reading.own


def top1(reading: Reading) -> Tensor:
    """1[argmax l = y]: its mean over images is an accuracy."""
    return (reading.best == reading.targets).double()


def read(
    classifier: Any,
    pictures: Callable[[Tensor], Images],
    targets: Targets,
    *,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Reading:
    """Show `pictures(indices)` for all indices of `targets`, some at a time, and read the class of each.

    Nothing is held but the readings. Where the device's memory does not do, half as many are shown at once, with
    one warning. The classifier is in eval mode meanwhile and leaves as it came.
    """
    if images_per_pass < 1:
        raise ValueError(f"images_per_pass must be at least 1, came {images_per_pass}")
    parts: list[Reading] = []
    start, size = 0, images_per_pass
    with torch.no_grad(), classifier.frozen():
        while start < len(targets):
            indices = torch.arange(start, min(start + size, len(targets)), device=targets.device)
            try:
                parts.append(Reading.of(_logits(classifier, pictures(indices)), targets[indices]))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                warnings.warn(f"out of memory: {size} images a pass from here on", stacklevel=2)
                continue
            start += len(indices)
    if not parts:
        return Reading.of(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    return Reading(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _logits(classifier: Any, images: Images) -> Tensor:
    few = at_once(images, len(images))
    return torch.cat([classifier.logits(part) for part in images.split(few)])


# Showing the pictures


def clean(case: Case, *, images_per_pass: int = IMAGES_PER_PASS) -> Reading:
    """Return the reading of the whole images, taken once a case."""
    _, _, targets = case.played()
    return Reading.of(case.whole(images_per_pass=images_per_pass), targets)


def on_device(case: Case) -> tuple[Images, Targets]:
    """Return the case's images and targets where its classifier lives."""
    _, images, targets = case.played()
    return images, targets


def colours(case: Case, fill: Fill) -> Tensor:
    """Return the colours of a wholly hidden picture, (1, 3, 1, 1) or one an image; made once a case."""
    classifier, images, _ = case.played()

    def make() -> Tensor:
        with torch.no_grad():
            return fill.infill(classifier)(images, torch.ones_like(images[:, :1])).to(images)

    return case.once(("colours", fill), make)


def hidden(case: Case, fill: Fill, *, images_per_pass: int = IMAGES_PER_PASS) -> Reading:
    """Return the reading of the bare fill, taken once a case; one picture serves all where it is one colour."""
    classifier, images, targets = case.played()
    made = colours(case, fill)

    def show() -> Reading:
        if len(images) and len(made) == 1:
            logits = whole_logits(classifier, made.expand(1, *images.shape[1:]))
            return Reading.of(logits.expand(len(images), -1), targets)
        full = made.expand_as(images)
        return read(classifier, lambda at: full[at], targets, images_per_pass=images_per_pass)

    return case.once(("hidden", fill), show)
