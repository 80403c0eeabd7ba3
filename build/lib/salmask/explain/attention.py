"""Raw attention: where the last query of an attention pooling looks, whatever the class (CA-Stream).

    map = a_L, upsampled to the image (bilinear, align_corners=False);   a_l = softmax(F_l q_l / sqrt d_l)

Source: Torres et al. (2024). The released code shows the scores before the softmax: of="scores".
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest
from salmask.explain.base import CLASS_AGNOSTIC, Explainer, Explanation, Passes, check_targets
from salmask.explain.batching import by_pieces
from salmask.explain.knobs import BatchSize, Between, OneOf
from salmask.pooling import Attended, Pooled
from salmask.types import Asked, Images, size_of

__all__ = ["RawAttention"]


READINGS: Mapping[str, Callable[[Attended], tuple[Tensor, ...]]] = MappingProxyType(
    {"weights": lambda made: made.attentions, "scores": lambda made: made.scores}
)
"""What is shown of a stage: the weights of its positions, which sum to 1, or the scores before the softmax."""


@dataclass(frozen=True)
class RawAttention(Explainer):
    """The attention of one stage of a `Pooled` classifier: one forward pass, the same map whatever class is asked for.

    stage: counted from 0, -1 the last. of: "weights" or "scores". Errors: ValueError for a classifier that does not
    pool by attention, and for a stage that it does not have.
    """

    stage: Annotated[int, Between(-64, 63)] = -1
    of: Annotated[str, OneOf(dict(zip(READINGS, READINGS, strict=True)))] = "weights"
    max_batch: BatchSize = 64

    def __post_init__(self) -> None:
        if self.of not in READINGS:
            raise ValueError(f"attention is read as {' or '.join(READINGS)}, got {self.of!r}")

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain; the targets are checked and handed back, and change nothing."""
        if not isinstance(classifier, Pooled):
            raise ValueError(
                "raw attention is that of a classifier that pools by attention, and this one does not: train a stream "
                "for it with `salmask pooling`, and name the run's folder"
            )
        count = len(classifier.stream.channels)
        if not -count <= self.stage < count:
            raise ValueError(f"stage {self.stage} does not exist: the stream attends to {count}, 0 to {count - 1}")

        def explain(_: Classifier, images: Images, targets: Tensor | None) -> Explanation:
            made = classifier.attend(images)
            assert made.logits is not None
            masks = F.interpolate(READINGS[self.of](made)[self.stage], size_of(images), mode="bilinear")
            limits = (0.0 if self.of == "weights" else -math.inf, math.inf)  # no masks: they are small
            layers = (f"backbone.{classifier.stream.layers[self.stage]}",)
            chosen = check_targets(targets, made.logits)
            return Explanation(
                masks, chosen, made.logits, Passes(1), range=limits, notes=(CLASS_AGNOSTIC,), layers=layers
            )

        with at_rest(classifier, gradients=False):
            return by_pieces(explain, classifier, images, targets, max_batch=self.max_batch)
