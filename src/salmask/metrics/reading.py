"""Showing pictures to the classifier: what is read of it, what fills the holes, how many pictures at once.

A pass is remembered by its `Reading`, three numbers a picture, so that all scores of a case share the passes: the
whole image and the bare fill are shown once, however many curves end there.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salmask.classifier.hold import at_once
from salmask.masking import MeanColour, WindowBlur
from salmask.metrics.case import Case
from salmask.types import Images, Infill, Logits, Targets

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

IMAGES_PER_PASS = 64
"""Pictures that are shown to the classifier at once, unless a metric says otherwise: the limit of memory."""


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


# What stands where pixels are hidden


@dataclass(frozen=True)
class Fill:
    """A named infill for a given classifier: `infill(classifier)` returns what `masking.keep` takes."""

    name: str
    infill: Callable[[Any], Infill]


def _mean_of(classifier: Any) -> Infill:
    red, green, blue = classifier.mean.flatten().tolist()
    return MeanColour((red, green, blue))


def _black(classifier: Any) -> Infill:
    return MeanColour((0.0, 0.0, 0.0))


def window_blur(side: int, sigma: float) -> Fill:
    """Return the fill of RISE's insertion: `WindowBlur` with the classifier's mean colour around the picture."""

    def infill(classifier: Any) -> Infill:
        red, green, blue = classifier.mean.flatten().tolist()
        return WindowBlur(side, sigma, (red, green, blue))

    return Fill(f"blur, window {side}, sigma {sigma:g}", infill)


MEAN = Fill("mean colour of the classifier (zeros in its normalised space)", _mean_of)
BLACK = Fill("black (zeros in pixel space)", _black)


# Showing the pictures


def clean(case: Case, *, images_per_pass: int = IMAGES_PER_PASS) -> Reading:
    """Return the reading of the whole images, taken once a case."""
    images, targets = on_device(case)
    show = lambda: read(  # noqa: E731
        case.classifier, lambda at: images[at], targets, images_per_pass=images_per_pass
    )
    return case.once(("clean",), show)


def on_device(case: Case) -> tuple[Images, Targets]:
    """Return the case's images and targets where its classifier lives."""
    device = getattr(case.classifier, "device", case.masks.device)
    return case.once(("on_device",), lambda: (_images(case).to(device), case.targets.to(device)))


def _images(case: Case) -> Images:
    if case.images is None or case.classifier is None:
        raise ValueError("this score shows pictures to a classifier: give the case `images` and `classifier`")
    return case.images


def colours(case: Case, fill: Fill) -> Tensor:
    """Return the colours of a wholly hidden picture, (1, 3, 1, 1) or one an image; made once a case."""

    def make() -> Tensor:
        images, _ = on_device(case)
        with torch.no_grad():
            return fill.infill(case.classifier)(images, torch.ones_like(images[:, :1])).to(images)

    return case.once(("colours", fill), make)


def hidden(case: Case, fill: Fill, *, images_per_pass: int = IMAGES_PER_PASS) -> Reading:
    """Return the reading of the bare fill, taken once a case; one picture serves all where it is one colour."""

    def show() -> Reading:
        images, targets = on_device(case)
        made = colours(case, fill)
        if len(images) and len(made) == 1:
            with torch.no_grad(), case.classifier.frozen():
                said = case.classifier.logits(made.expand(1, *images.shape[1:]))
            return Reading.of(said.expand(len(images), -1), targets)
        full = made.expand_as(images)
        return read(case.classifier, lambda at: full[at], targets, images_per_pass=images_per_pass)

    return case.once(("hidden", fill), show)
