"""Class activation maps: a weighted sum of one layer's feature maps.

    map = relu(sum_k w_k * A_k), upsampled to the image (bilinear, align_corners=False);   g = d f_y / d A

| name | w_k at (i, j) | source |
|---|---|---|
| gradcam | mean of g_k | Selvaraju et al. (2017) |
| gradcam_pp | sum of relu(g_k) * g_k^2 / (2 g_k^2 + g_k^3 sum A_k) | Chattopadhay et al. (2018) |
| xgradcam | sum of g_k * A_k / sum A_k | Fu et al. (2020) |
| layercam | relu(g_k(i, j)) | Jiang et al. (2021) |
| hirescam | g_k(i, j) | Draelos & Carin (2020) |
| scorecam | softmax over k of f_y(image kept where A_k is high) | Wang et al. (2020) |
| ablationcam | (f_y - f_y without channel k) / abs f_y | Desai & Ramaswamy (2020) |
| cam | weight of the linear layer after average pooling | Zhou et al. (2016) |
| eigencam | first principal component of A over positions | Muhammad & Yeasin (2020) |

f_y is the logit of the class. Maps are raw, in [0, inf): the ReLU is applied at the layer's resolution, as
pytorch-grad-cam and torch-cam do. A map that is constant there carries nothing and becomes zeros.
The layer is one of `classifier.layers`, by index or name; the deepest unless said otherwise. The methods with
gradients take the one before it for an image whose gradient vanishes at the deepest, which is the rule for
the patch tokens of a transformer that reads its class token alone; `Explanation.layers` names them.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.classifier.branches import deepest_of_branches
from salmask.classifier.folded import folded
from salmask.classifier.hold import at_once, at_rest, check_limit, pieces
from salmask.classifier.network import Classifier
from salmask.classifier.scores import logit
from salmask.classifier.taps import (
    Tap,
    channel_axis,
    count_calls,
    layer_before,
    layer_index,
    layer_output,
    read_gradients,
)
from salmask.explain.base import CLASS_AGNOSTIC, Explainer, Explanation, Passes, check_targets, normalise
from salmask.explain.batching import backdrop, by_pieces, check_gradients
from salmask.explain.knobs import BatchSize
from salmask.masking import keep
from salmask.types import Asked, Images, Infill, Logits, Masks, size_of

__all__ = [
    "AblationCAM",
    "EigenCAM",
    "GradientCAM",
    "LinearCAM",
    "ScoreCAM",
    "grad_cam",
    "grad_cam_pp",
    "hires_cam",
    "layer_cam",
    "xgrad_cam",
]

LayerMaps = Float[Tensor, "batch features rows columns"]
WeightRule = Callable[[LayerMaps, LayerMaps], Tensor]
"""(maps, gradients) -> weights that broadcast to the maps."""

POSITIVE = (0.0, math.inf)


def grad_cam(maps: LayerMaps, gradients: LayerMaps) -> Float[Tensor, "batch features 1 1"]:
    """Return the mean gradient of each channel."""
    return gradients.mean((2, 3), keepdim=True)


def grad_cam_pp(maps: LayerMaps, gradients: LayerMaps) -> Float[Tensor, "batch features 1 1"]:
    """Return sum relu(g) * g^2 / (2 g^2 + g^3 sum A), the closed form for an exponential score."""
    squares = gradients.square()
    below = 2 * squares + maps.sum((2, 3), keepdim=True) * squares * gradients + 1e-6
    shares = torch.where(gradients != 0, squares / below, torch.zeros_like(below))
    return (gradients.relu() * shares).sum((2, 3), keepdim=True)


def xgrad_cam(maps: LayerMaps, gradients: LayerMaps) -> Float[Tensor, "batch features 1 1"]:
    """Return sum g * A / sum A; a channel whose values cancel to zero gets weight zero."""
    total = maps.sum((2, 3), keepdim=True)
    weights = (gradients * maps).sum((2, 3), keepdim=True) / (total + 1e-7)
    return torch.where(total.abs() > 1e-6, weights, torch.zeros_like(weights))


def layer_cam(maps: LayerMaps, gradients: LayerMaps) -> LayerMaps:
    """Return the positive part of the gradient at every position."""
    return gradients.relu()


def hires_cam(maps: LayerMaps, gradients: LayerMaps) -> LayerMaps:
    """Return the gradient at every position."""
    return gradients


@dataclass(frozen=True)
class GradientCAM(Explainer):
    """Class activation maps whose weights come from maps and gradients by a rule: one forward, one backward pass.

    layer: index or name; None takes the deepest, and the one before it where an image has no gradient there; of
    parallel networks (late fusion) the deepest of each, whose maps are added up.
    """

    rule: WeightRule
    layer: int | str | None = None
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones."""
        if self.layer is None and classifier.layers and len(deepest := deepest_of_branches(classifier)) > 1:
            return _added([replace(self, layer=layer)(classifier, images, targets) for layer in deepest])
        with at_rest(classifier, gradients=True):
            return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        def score(logits: Logits) -> Tensor:
            return logit(logits, check_targets(targets, logits))

        index = layer_index(classifier, -1 if self.layer is None else self.layer)
        instead = layer_before(classifier, index) if self.layer is None else None
        logits, taps = read_gradients(classifier, images, index, score, instead=instead)
        check_gradients(
            classifier,
            images,
            check_targets(targets, logits),
            taps[-1].gradients,
            layer=classifier.layers[taps[-1].index],
        )
        size = size_of(images)
        maps = [_finished(_combined(tap.maps, self.rule(tap.maps, tap.gradients)), size) for tap in taps]
        masks: Masks = maps[0]
        layers: tuple[str, ...] = (classifier.layers[taps[0].index],)
        if len(taps) > 1:
            silent = ~_has_gradient(taps[0])
            masks = torch.where(silent[:, None, None, None], maps[1], masks)
            layers = tuple(classifier.layers[tap.index] for tap in (taps[1:] if bool(silent.all()) else taps))
        return Explanation(
            masks, check_targets(targets, logits), logits, Passes(1, len(taps)), range=POSITIVE, layers=layers
        )


@dataclass(frozen=True)
class ScoreCAM(Explainer):
    """Weights are what the class score becomes where only the channel's active part of the image is kept.

    infill: what stands elsewhere; None is the classifier's mean colour, which is the published multiplication in
    normalised space. Channels that are constant keep nothing, share one pass and add nothing.
    """

    layer: int | str = -1
    infill: Infill | None = None
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones; as many passes as the layer has channels."""
        check_limit(self.max_batch)
        with at_rest(classifier, gradients=False):
            passes = classifier.channels[layer_index(classifier, self.layer)] * len(images)
            explain = partial(self._explain, twin=folded(classifier, images, passes=passes))
            return by_pieces(explain, classifier, images, targets, max_batch=1)

    def _explain(
        self, classifier: Classifier, images: Images, targets: Tensor | None, *, twin: Classifier
    ) -> Explanation:
        index = layer_index(classifier, self.layer)
        logits, features = classifier.features(images)
        maps, chosen = features[index].float(), check_targets(targets, logits)
        infill = backdrop(self.infill, classifier, images)
        size = size_of(images)
        channels = maps[0, :, None]
        alive = (channels.amax((1, 2, 3)) > channels.amin((1, 2, 3))).nonzero().flatten()
        asked = torch.cat([channels[alive], channels.new_zeros(1, 1, *channels.shape[2:])])  # last: nothing kept

        def scores(rows: slice) -> Tensor:
            masks = normalise(_upsampled(asked[rows], size), "minmax")
            pictures = keep(images.expand(len(masks), -1, -1, -1), masks.to(images.dtype), infill)
            return twin.logits(pictures)[:, chosen[0]]

        answers = torch.cat(list(pieces(scores, len(asked), max_batch=at_once(images, self.max_batch))))
        channel_scores = answers[-1:].repeat(len(channels))
        channel_scores[alive] = answers[:-1]
        weights = channel_scores.softmax(0)[None, :, None, None]
        masks = _finished(_combined(maps, weights), size)
        layers = (classifier.layers[index],)
        return Explanation(masks, chosen, logits, Passes(1 + len(asked)), range=POSITIVE, layers=layers)


@dataclass(frozen=True)
class AblationCAM(Explainer):
    """Weights are the share of the class score that is lost when a channel is set to zero.

    What lies before the layer runs once an image where the network allows it (nothing after the layer may
    depend on the number of pictures given); else once a channel.
    Differs from pytorch-grad-cam: divides by abs f_y, so that a negative logit does not turn the map round;
    sets channels to zero also where they can be negative.
    """

    layer: int | str = -1
    max_batch: BatchSize = 32

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones; as many passes as the layer has channels."""
        check_limit(self.max_batch)
        with at_rest(classifier, gradients=False):
            return by_pieces(self._explain, classifier, images, targets, max_batch=1)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        index = layer_index(classifier, self.layer)
        with count_calls(classifier, index) as calls:
            logits, features = classifier.features(images)
        maps, chosen = features[index].float(), check_targets(targets, logits)
        alive = (maps[0] != 0).flatten(1).any(1).nonzero().flatten()

        def scores(rows: slice) -> Tensor:
            return _ablated(classifier, images, index, alive[rows], call=len(calls) - 1)[:, chosen[0]]

        own, left = logit(logits, chosen), logits.new_zeros(maps.shape[1])
        left[:] = own
        if len(alive):
            left[alive] = torch.cat(list(pieces(scores, len(alive), max_batch=self.max_batch)))
        weights = (own - left) / own.abs().clamp_min(torch.finfo(own.dtype).tiny)
        size, layers = size_of(images), (classifier.layers[index],)
        masks = _finished(_combined(maps, weights[None, :, None, None]), size)
        return Explanation(masks, chosen, logits, Passes(1 + len(alive)), range=POSITIVE, layers=layers)


@dataclass(frozen=True)
class LinearCAM(Explainer):
    """Weights of the class in the linear layer that reads the average-pooled deepest map: one forward pass.

    Raises ValueError for a network of another form, which is found out by recomputing its logits.
    """

    max_batch: BatchSize = 64

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones."""
        with at_rest(classifier, gradients=False):
            return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        logits, features = classifier.features(images)
        maps = features[-1].float()
        weight, bias = _linear_head(classifier, maps.shape[1])
        again = maps.mean((2, 3)) @ weight.T + bias
        loose = 1e-3 if next(classifier.network.parameters()).dtype == torch.float32 else 5e-2
        if not torch.allclose(again, logits, rtol=loose, atol=loose * float(logits.abs().max())):
            raise ValueError(
                f"CAM needs logits that are linear in the average of layer {classifier.layers[-1]!r}; this network "
                "computes something else in between: take gradcam, which equals CAM where CAM is defined"
            )
        chosen = check_targets(targets, logits)
        masks = _finished(_combined(maps, weight[chosen][:, :, None, None]), size_of(images))
        return Explanation(masks, chosen, logits, Passes(1), range=POSITIVE, layers=(classifier.layers[-1],))


@dataclass(frozen=True)
class EigenCAM(Explainer):
    """The projection of the maps on their first principal component over positions: class-agnostic, one pass.

    The sign of a component is arbitrary; it is chosen so that the larger extreme is positive.
    """

    layer: int | str = -1
    max_batch: BatchSize = 64

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain; the targets are checked and handed back, and change nothing."""
        with at_rest(classifier, gradients=False):
            return by_pieces(self._explain, classifier, images, targets, max_batch=self.max_batch)

    def _explain(self, classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        index = layer_index(classifier, self.layer)
        logits, features = classifier.features(images)
        maps = features[index].float()
        rows = maps.flatten(2).transpose(1, 2)
        rows = rows - rows.mean(1, keepdim=True)
        directions = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]
        values = (rows @ directions.transpose(1, 2))[..., 0].view(len(maps), 1, *maps.shape[2:])
        turned = values.amin((1, 2, 3), keepdim=True).abs() > values.amax((1, 2, 3), keepdim=True).abs()
        masks = _finished(torch.where(turned, -values, values), size_of(images))
        chosen, layers = check_targets(targets, logits), (classifier.layers[index],)
        notes = (CLASS_AGNOSTIC,)
        return Explanation(masks, chosen, logits, Passes(1), range=POSITIVE, notes=notes, layers=layers)


def _added(each: list[Explanation]) -> Explanation:
    """Return the sum of the maps that the parallel networks of a classifier give."""
    passes = Passes(sum(one.passes.forward for one in each), sum(one.passes.backward for one in each))
    masks = torch.stack([one.masks for one in each]).sum(0)
    return replace(each[0], masks=masks, passes=passes, layers=tuple(name for one in each for name in one.layers))


def _combined(maps: LayerMaps, weights: Tensor) -> Tensor:
    return (weights * maps).sum(1, keepdim=True)


def _finished(values: Tensor, size: tuple[int, int]) -> Masks:
    """Return relu(values) at the image's size; a map that is constant before carries nothing and becomes zeros."""
    kept = values.relu()
    varied = values.amax((1, 2, 3), keepdim=True) > values.amin((1, 2, 3), keepdim=True)
    return _upsampled(torch.where(varied, kept, torch.zeros_like(kept)), size)


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _has_gradient(tap: Tap) -> Tensor:
    return tap.gradients.flatten(1).any(1)


def _ablated(classifier: Classifier, image: Images, index: int, channels: Tensor, *, call: int) -> Tensor:
    """Return the logits of one image without each of the channels, in turn: (n, K)."""
    every = torch.arange(len(channels), device=channels.device)

    def ablated(output: Tensor) -> Tensor:
        variants = output.expand(len(channels), *output.shape[1:]).clone()
        axis = channel_axis(classifier, index, output)
        variants.movedim(axis, 1)[every, channels] = 0
        return variants

    with layer_output(classifier, index, ablated, call=call), suppress(RuntimeError, ValueError):
        logits = classifier.logits(image)
        if len(logits) == len(channels):
            return logits
    with layer_output(classifier, index, ablated, call=call):
        return classifier.logits(image.expand(len(channels), -1, -1, -1))


def _linear_head(classifier: Classifier, channels: int) -> tuple[Tensor, Tensor]:
    """Return weight (K, C) and bias of the last linear layer or 1x1 convolution that gives the logits."""
    heads = [module for module in classifier.network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    shape = (classifier.num_classes, channels)
    for head in reversed(heads):
        if tuple(head.weight.shape[:2]) == shape and head.weight.numel() == shape[0] * shape[1]:
            weight = head.weight.flatten(1).float()
            return weight, weight.new_zeros(()) if head.bias is None else head.bias.float()
    raise ValueError(f"CAM needs a linear layer from {channels} pooled channels to {shape[0]} classes; found none")
