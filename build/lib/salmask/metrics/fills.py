"""Infills by name that wait for the classifier: what the protocol of a metric fills holes with."""

from collections.abc import Callable
from dataclasses import dataclass

from salmask.classifier import Classifier
from salmask.masking import MeanColour, WindowBlur
from salmask.types import Infill

__all__ = ["BLACK", "MEAN", "Fill", "window_blur"]


@dataclass(frozen=True)
class Fill:
    """An infill by name, made for a classifier: `fill.infill(classifier)` is what `keep` takes."""

    name: str
    infill: Callable[[Classifier], Infill]


def _black(classifier: Classifier) -> MeanColour:
    return MeanColour((0.0,))


def window_blur(side: int, sigma: float) -> Fill:
    """Return the fill of RISE's insertion: `WindowBlur` with the classifier's mean colour around the picture."""

    def infill(classifier: Classifier) -> WindowBlur:
        return WindowBlur(side, sigma, MeanColour.of(classifier).colour)

    return Fill(f"blur, window {side}, sigma {sigma:g}", infill)


MEAN = Fill("mean colour of the classifier (zeros in its normalised space)", MeanColour.of)
BLACK = Fill("black (zeros in pixel space)", _black)
