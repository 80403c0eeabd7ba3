"""Gradient baselines through Captum (the extra `captum`), adapted to the call that all explainers share.

| name | per channel | channels to one | source |
|---|---|---|---|
| gradient | d f_y / d z | largest magnitude | Simonyan et al. (2014) |
| smoothgrad | mean over noisy z of d f_y / d z | largest magnitude | Smilkov et al. (2017) |
| guided_backprop | gradient; ReLUs pass on positive slopes | largest magnitude | Springenberg et al. (2015) |
| gradient_x_input | z * d f_y / d z | signed sum | Shrikumar et al. (2016) |
| integrated_gradients | z * mean of d f_y / d z on the way from 0 to z | signed sum | Sundararajan et al. (2017) |

z = (x - mean) / std is what the network reads, as in the published implementations: zero is the mean colour.
f_y is the logit of the class. Maps are raw and signed where the table says so: no absolute value is taken of
sums. `MAX_MAGNITUDE`, `TOTAL` and `SUM_OF_MAGNITUDES` are the rules for channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.autograd.function import BackwardCFunction, Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2 import functional as vision

from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest, check_limit, pieces
from salmask.classifier.scores import logit
from salmask.explain.base import Explainer, Explanation, Passes, check_targets
from salmask.explain.batching import by_pieces, check_gradients, check_reached
from salmask.explain.knobs import BatchSize, Between, Count, OneOf, Seed, Share
from salmask.types import Asked, Images, Logits, Masks

__all__ = [
    "CHANNELS",
    "MAX_MAGNITUDE",
    "SUM_OF_MAGNITUDES",
    "TOTAL",
    "Channels",
    "Gradient",
    "GradientXInput",
    "GuidedBackprop",
    "IntegratedGradients",
    "SmoothGrad",
]


@dataclass(frozen=True)
class Channels:
    """How the channels of a picture become one map, and the range of that map."""

    name: str
    rule: Callable[[Images], Masks]
    range: tuple[float, float]


MAX_MAGNITUDE = Channels("largest magnitude", lambda a: a.abs().amax(1, keepdim=True), (0.0, math.inf))
SUM_OF_MAGNITUDES = Channels("sum of magnitudes", lambda a: a.abs().sum(1, keepdim=True), (0.0, math.inf))
TOTAL = Channels("signed sum", lambda a: a.sum(1, keepdim=True), (-math.inf, math.inf))
CHANNELS: Mapping[str, Channels] = MappingProxyType({"max": MAX_MAGNITUDE, "sum_abs": SUM_OF_MAGNITUDES, "sum": TOTAL})
"""The rules by the name that a command gives them."""


class _OneBackward(Explainer):
    """Explainers of one forward and one backward pass, which pictures share."""

    max_batch: int

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: one forward and one backward pass."""
        with at_rest(classifier, gradients=True):
            return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        raise NotImplementedError


@dataclass(frozen=True)
class Gradient(_OneBackward):
    """The gradient of the class logit with respect to the normalised image ("saliency")."""

    channels: Annotated[Channels, OneOf(CHANNELS)] = MAX_MAGNITUDE
    max_batch: BatchSize = 32

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        asked = _Question(classifier, targets)
        attributions = _captum().Saliency(asked).attribute(_entered(classifier, images), abs=False)
        return asked.answer(images, attributions, self.channels)


@dataclass(frozen=True)
class GradientXInput(_OneBackward):
    """z * gradient: sums to the logit for a network without additive terms."""

    channels: Annotated[Channels, OneOf(CHANNELS)] = TOTAL
    max_batch: BatchSize = 32

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        asked = _Question(classifier, targets)
        attributions = _captum().InputXGradient(asked).attribute(_entered(classifier, images))
        return asked.answer(images, attributions, self.channels)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """The mean gradient over copies of the image with Gaussian noise.

    noise: standard deviation as a share of the image's own range (max - min of z). Draw k is the same for every
    image and depends on `seed` and k alone, so that batches and max_batch change nothing; Captum's NoiseTunnel
    draws from the global generator instead.
    """

    samples: Count = 50
    noise: Annotated[float, Between(0, 10)] = 0.15
    seed: Seed = 0
    channels: Annotated[Channels, OneOf(CHANNELS)] = MAX_MAGNITUDE
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: `samples` forward and backward passes."""
        check_limit(self.max_batch)
        if self.samples < 1:
            raise ValueError(f"expected at least one sample, got {self.samples}")
        with at_rest(classifier, gradients=True):
            return by_pieces(self._explain, classifier, images, targets, max_batch=1)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        logits = _logits(classifier, images)
        chosen = check_targets(targets, logits)
        entered = _entered(classifier, images)
        spread = self.noise * (entered.detach().amax() - entered.detach().amin())

        def slopes(rows: slice) -> Tensor:
            noise = [self._draw(k, entered) for k in range(rows.start, rows.stop)]
            noisy = (entered.detach() + spread * torch.stack(noise)).requires_grad_()
            asked = _Question(classifier, chosen)
            return _captum().Saliency(asked).attribute(noisy, abs=False).sum(0, keepdim=True)

        total = torch.cat(list(pieces(slopes, self.samples, max_batch=self.max_batch))).sum(0, keepdim=True)
        check_gradients(classifier, images, chosen, total)
        masks = self.channels.rule(total / self.samples)
        passes = Passes(1 + self.samples, self.samples)
        return Explanation(masks, chosen, logits, passes, range=self.channels.range)

    def _draw(self, k: int, like: Tensor) -> Tensor:
        generator = Generator().manual_seed(self.seed * 1_000_003 + k)
        return torch.randn(like.shape[1:], generator=generator).to(like)


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """z times the mean gradient on the straight way from the mean colour to the image (Gauss-Legendre).

    The values sum to f_y(x) - f_y(mean colour), up to the error of `steps` nodes.
    """

    steps: Annotated[int, Between(1, 10_000)] = 50
    channels: Annotated[Channels, OneOf(CHANNELS)] = TOTAL
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: `steps` forward and backward passes."""
        check_limit(self.max_batch)
        with at_rest(classifier, gradients=True):
            return by_pieces(self._explain, classifier, images, targets, max_batch=1)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        logits = _logits(classifier, images)
        chosen = check_targets(targets, logits)
        entered = _entered(classifier, images)

        # Captum takes the nodes apart itself; here a "row" is a node, so that a halved piece halves Captum's.
        def attribution(rows: slice) -> Tensor:
            method = _captum().IntegratedGradients(_Question(classifier, chosen))
            limit = rows.stop - rows.start
            return method.attribute(entered, n_steps=self.steps, internal_batch_size=limit)

        at_once = min(self.max_batch, self.steps)
        attributions = next(pieces(attribution, at_once, max_batch=at_once))
        check_gradients(classifier, images, chosen, attributions)
        passes = Passes(1 + self.steps, self.steps)
        return Explanation(self.channels.rule(attributions.float()), chosen, logits, passes, range=self.channels.range)


@dataclass(frozen=True)
class GuidedBackprop(_OneBackward):
    """The gradient where every ReLU lets through positive gradients alone.

    smoothing: standard deviation of a Gaussian over the map, as a share of the short side; 0.02 is the baseline
    of Phang et al. (2020), 4.48 pixels at 224. ReLUs are met as functions while the network runs, so that
    in-place, reused and functional ones count, which Captum's module hooks miss or fail on, and the network
    is not touched. A network that calls no ReLU gives the plain gradient, and `notes` says so.
    """

    smoothing: Share = 0.0
    channels: Annotated[Channels, OneOf(CHANNELS)] = MAX_MAGNITUDE
    max_batch: BatchSize = 32

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        asked = _Question(classifier, targets)
        with _GuidedReLUs() as relus:
            attributions = _captum().Saliency(asked).attribute(_entered(classifier, images), abs=False)
        notes = () if relus.met else ("the network calls no ReLU: equals the gradient",)
        return asked.answer(images, attributions, self.channels, smooth=self._smoothed, notes=notes)

    def _smoothed(self, masks: Masks) -> Masks:
        if not self.smoothing:
            return masks
        sigma = self.smoothing * min(masks.shape[-2:])
        reach = max(1, math.ceil(4 * sigma))
        padded = F.pad(masks, [reach] * 4, mode="replicate")
        return vision.gaussian_blur(padded, [2 * reach + 1] * 2, [sigma] * 2)[..., reach:-reach, reach:-reach]


class _Question:
    """z -> f_y, as Captum's functions want it; remembers the classes and the logits of the last call.

    One class for several points is meant for all of them.
    """

    def __init__(self, classifier: Classifier, targets: Tensor | None) -> None:
        self.classifier, self.targets = classifier, targets

    def __call__(self, entered: Images) -> Tensor:
        logits = self.classifier.unbounded(entered * self.classifier.std + self.classifier.mean)
        given = self.targets
        if given is not None and len(given) == 1:
            given = given.expand(len(logits))
        self.chosen, self.logits = check_targets(given, logits), logits.detach()
        check_reached(self.classifier, logits)
        return logit(logits, self.chosen)

    def answer(
        self,
        images: Images,
        attributions: Images,
        channels: Channels,
        *,
        smooth: Callable[[Masks], Masks] = lambda masks: masks,
        notes: tuple[str, ...] = (),
    ) -> Explanation:
        check_gradients(self.classifier, images, self.chosen, attributions)
        masks = smooth(channels.rule(attributions.detach().float()))
        return Explanation(masks, self.chosen, self.logits, Passes(1, 1), range=channels.range, notes=notes)


class _Guided(Function):
    """max(x, 0) whose gradient is passed on where both x and the gradient are positive."""

    @staticmethod
    def forward(ctx: BackwardCFunction, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: BackwardCFunction, *slopes: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return slopes[0].clamp_min(0) * (y > 0)


_PLAIN = {F.relu, torch.relu, Tensor.relu}
_IN_PLACE = {torch.relu_, Tensor.relu_}


class _GuidedReLUs(TorchFunctionMode):
    """Meet every ReLU that is called, whatever module or function calls it."""

    met = 0

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        if function not in _PLAIN | _IN_PLACE or not isinstance(x, Tensor):
            return function(*args, **kwargs)
        self.met += 1
        in_place = function in _IN_PLACE or kwargs.get("inplace", args[1] if len(args) > 1 else False)
        return x.copy_(_Guided.apply(x)) if in_place else _Guided.apply(x)


def _entered(classifier: Classifier, images: Images) -> Images:
    """Return z, a leaf that takes gradients."""
    return ((images - classifier.mean) / classifier.std).detach().requires_grad_()


def _logits(classifier: Classifier, images: Images) -> Logits:
    with torch.no_grad():
        return classifier.logits(images)


def _captum() -> ModuleType:
    try:
        from captum import attr
    except ImportError as error:
        raise ImportError("gradient baselines need Captum: pip install 'salmask[captum]'") from error
    return attr
