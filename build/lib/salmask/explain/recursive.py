"""Attribution Mask (Lee & Chang, 2021): the image is masked by its own attribution, again and again.

    M_0 = 1;   x_t = keep(x, M_t) at the mean colour;   M_{t+1} = M_t * minmax(attribution(f_y, x_t))

minmax runs over each channel of each image; the attribution of the paper is GxSI, gradient times the sign of
the normalised input (`gxsi`). For a network without additive terms f_y = sum z * df_y/dz (`additive_part`).

The masked-input accuracy of the paper takes the mask of the *true* label, and so measures how far a label can be
read out of its own mask: near 100 % without any better recognition. `masked_input_accuracy` therefore puts the
predicted and a wrong label beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest
from salmask.classifier.scores import logit
from salmask.explain.base import Explainer, Explanation, Passes, check_targets, normalise
from salmask.explain.batching import by_pieces, check_gradients, check_reached
from salmask.explain.knobs import BatchSize, Between, OneOf
from salmask.types import Asked, Images, Targets, Values

__all__ = [
    "SOURCES",
    "AttributionMask",
    "MaskedInputAccuracy",
    "additive_part",
    "gradient_x_input",
    "gxsi",
    "masked_by",
    "masked_input_accuracy",
    "recursive_mask",
]

ColourMasks = Float[Tensor, "batch parts height width"]
Attribution = Callable[[Classifier, Images, Targets], Images]


def gxsi(classifier: Classifier, images: Images, targets: Targets) -> Images:
    """Return gradient * sign(z), z the normalised image."""
    return _slope(classifier, images, targets) * (images - classifier.mean).sign()


def gradient_x_input(classifier: Classifier, images: Images, targets: Targets) -> Images:
    """Return gradient * z, z the normalised image."""
    return _slope(classifier, images, targets) * (images - classifier.mean) / classifier.std


ATTRIBUTIONS: Mapping[str, Attribution] = MappingProxyType({"gxsi": gxsi, "gradient_x_input": gradient_x_input})
"""The attributions by the name that a command gives them."""


def masked_by(classifier: Classifier, images: Images, masks: ColourMasks) -> Images:
    """Return x * M in normalised space: the mean colour where M is 0. Masks may differ between channels."""
    return torch.lerp(classifier.mean.to(images).expand_as(images), images, masks.expand_as(images).to(images.dtype))


def recursive_mask(
    classifier: Classifier,
    images: Images,
    targets: Targets,
    *,
    steps: int = 3,
    attribution: Attribution = gxsi,
    per_channel: bool = True,
) -> list[ColourMasks]:
    """Return M_0 ... M_T, each (B, 3, H, W) in [0, 1]; with per_channel=False (B, 1, H, W), of summed attributions.

    attribution: (classifier, images, targets) -> (B, 3, H, W). A constant attribution gives zeros.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
    with at_rest(classifier, gradients=True):
        images = images.detach().to(classifier.device)
        masks = [torch.ones_like(images if per_channel else images[:, :1])]
        for _ in range(steps):
            values = attribution(classifier, masked_by(classifier, images, masks[-1]), targets).detach()
            masks.append(masks[-1] * _stretched(values if per_channel else values.sum(1, keepdim=True)))
    return masks


@dataclass(frozen=True)
class AttributionMask(Explainer):
    """The recursive mask as an explainer: its map is the mean of the channels' masks, in [0, 1].

    `recursive_mask` gives the masks of the single channels.
    """

    steps: Annotated[int, Between(1, 10_000)] = 3
    attribution: Annotated[Attribution, OneOf(ATTRIBUTIONS)] = gxsi
    per_channel: bool = True
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: T forward and backward passes, and one for the logits."""
        with at_rest(classifier, gradients=True):
            return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        with torch.no_grad():
            logits = classifier.logits(images)
        chosen = check_targets(targets, logits)
        steps = recursive_mask(
            classifier,
            images,
            chosen,
            steps=self.steps,
            attribution=self.attribution,
            per_channel=self.per_channel,
        )
        return Explanation(steps[-1].mean(1, keepdim=True), chosen, logits, Passes(1 + self.steps, self.steps))


class MaskedInputAccuracy(NamedTuple):
    """For one source of labels and steps 0 ... T: which masked images the classifier gives which label.

    labels: (B,) those the masks were made for. agrees: (T + 1, B) the masked image is given that label.
    correct: (T + 1, B) it is given the true label; row 0 is the plain accuracy.
    """

    labels: Targets
    agrees: Bool[Tensor, "steps batch"]
    correct: Bool[Tensor, "steps batch"]


SOURCES = ("true", "predicted", "wrong")
"""Where the label of a mask may come from."""


def masked_input_accuracy(
    classifier: Classifier,
    images: Images,
    truth: Targets,
    *,
    steps: int = 3,
    attribution: Attribution = gxsi,
    sources: Sequence[str] = SOURCES,
    generator: Generator,
) -> dict[str, MaskedInputAccuracy]:
    """Return, for every source of labels, what the classifier says of the images masked for those labels.

    "true" leaks the label, "predicted" does not, "wrong" (uniform over the other classes, drawn from the
    generator) tells how far the mask alone can make any label come out: a test of soundness.
    """
    unknown = set(sources) - set(SOURCES)
    if unknown:
        raise ValueError(f"unknown source {sorted(unknown)[0]!r}: choose of {', '.join(SOURCES)}")
    images = images.detach().to(classifier.device)
    with at_rest(classifier, gradients=False):
        logits = classifier.logits(images)
    truth = check_targets(truth, logits)
    away = torch.randint(1, logits.shape[1], truth.shape, generator=generator).to(truth)
    labels = {"true": truth, "predicted": logits.argmax(1), "wrong": (truth + away) % logits.shape[1]}
    results = {}
    for source in sources:
        masks = recursive_mask(classifier, images, labels[source], steps=steps, attribution=attribution)
        with at_rest(classifier, gradients=False):
            decided = torch.stack([classifier.logits(masked_by(classifier, images, m)).argmax(1) for m in masks])
        results[source] = MaskedInputAccuracy(labels[source], decided == labels[source], decided == truth)
    return results


def additive_part(classifier: Classifier, images: Images, targets: Tensor | None = None) -> Values:
    """Return f_y - sum z * df_y/dz for each image: zero for a network that is free of additive terms (biases)."""
    with at_rest(classifier, gradients=True):
        images = images.detach().to(classifier.device)
        leaf = images.clone().requires_grad_()
        logits = classifier.logits(leaf)
        scores = logit(logits, check_targets(targets, logits))
        check_reached(classifier, scores)
        (slopes,) = torch.autograd.grad(scores.sum(), leaf)
    return (scores - (slopes * (images - classifier.mean)).sum((1, 2, 3))).detach()


def _slope(classifier: Classifier, images: Images, targets: Targets) -> Tensor:
    """Return d f_y / d z = std * d f_y / d x."""
    leaf = images.detach().clone().requires_grad_()
    scores = logit(classifier.logits(leaf), targets)
    check_reached(classifier, scores)
    (slopes,) = torch.autograd.grad(scores.sum(), leaf)
    check_gradients(classifier, images, targets, slopes)
    return slopes * classifier.std


def _stretched(values: ColourMasks) -> ColourMasks:
    return normalise(values.flatten(0, 1)[:, None], "minmax").view_as(values)
