"""Explainers of classifiers with several inputs: which input, and where in each.

| name | map |
|---|---|
| input_shares | one number an input, its share in the decision: the same at every pixel |
| per_input:of=SPEC | another explainer's map of each input, the others held as they are |
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.branches import alone, deepest_of_branches
from salmask.classifier.hold import at_rest
from salmask.classifier.inputs import Inputs
from salmask.explain.base import Explainer, Explanation, Passes, check_targets
from salmask.explain.batching import by_pieces, joined
from salmask.explain.cam import AblationCAM, EigenCAM, GradientCAM, ScoreCAM
from salmask.explain.knobs import BatchSize
from salmask.explain.optimise.loop import Optimised
from salmask.explain.optimise.masks import MapWeights
from salmask.masking import MeanColour
from salmask.terms import input_effects, shares_of
from salmask.types import Asked, Images, Infill

__all__ = ["InputShares", "PerInput"]


def _inputs_of(classifier: Classifier) -> Inputs:
    if classifier.inputs is None:
        raise ValueError(
            "this explainer asks which of several inputs carries the decision, and the classifier reads one image: "
            "say which channels are whose by Classifier(..., inputs={'rgb': 3, 'depth': 1})"
        )
    return classifier.inputs


@dataclass(frozen=True)
class InputShares(Explainer):
    """The share of each input in the decision, (B, K, H, W), the same at every pixel: 2 K + 2 passes an image.

    infill: what stands for an input that is not shown; None: the classifier's mean colour.
    """

    infill: Infill | None = None
    max_batch: BatchSize = 64

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones. Errors: ValueError for a classifier of one input."""
        count = len(_inputs_of(classifier))

        def explain(classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
            logits = classifier.logits(images)
            chosen = check_targets(targets, logits)
            infill = self.infill or MeanColour.of(classifier)
            effects = input_effects(classifier, images, chosen, infill=infill, clean=logits)
            masks = shares_of(effects)[:, :, None, None].expand(-1, -1, *images.shape[-2:]).contiguous()
            return Explanation(masks, chosen, logits, Passes(2 * count + 2))

        with at_rest(classifier, gradients=False):
            return by_pieces(explain, classifier, images, targets, max_batch=self.max_batch)


@dataclass(frozen=True)
class PerInput(Explainer):
    """Another explainer's map of each input, (B, K, H, W), the other inputs held as they are in the picture.

    A class activation map reads the deepest layer of the input's own network where each input has one (late fusion);
    where one network reads all (early fusion) it has no map of one input, and is refused.
    """

    explainer: Explainer

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: K times the passes of the explainer."""
        inputs = _inputs_of(classifier)
        if _at_layer(self.explainer, -1) is not None:
            layers = deepest_of_branches(classifier)
            if len(layers) != len(inputs):
                raise ValueError(
                    f"{self.explainer.kind} reads a layer in which the inputs are mixed already: take an explainer of "
                    "pixels, such as occlusion or gradient, or a classifier with one network an input (late:...)"
                )
            each = [one for layer in layers if (one := _at_layer(self.explainer, layer)) is not None]
            return _side_by_side([one(classifier, images, targets) for one in each])
        rows = []
        for k in range(len(images)):
            own = None if targets is None else targets[k : k + 1]
            image = images[k : k + 1]
            parts = inputs.split(image)
            found = [self.explainer(alone(classifier, image, name), part, own) for name, part in parts.items()]
            rows.append(_side_by_side(found))
        return joined(rows)


def _at_layer(explainer: Explainer, layer: int) -> Explainer | None:
    """Return a class activation map made of another layer; None for explainers that read no one layer."""
    if isinstance(explainer, GradientCAM | ScoreCAM | AblationCAM | EigenCAM):
        return replace(explainer, layer=layer)
    if isinstance(explainer, Optimised) and isinstance(explainer.parametrisation, MapWeights):
        return replace(explainer, parametrisation=replace(explainer.parametrisation, layer=layer))
    return None


def _side_by_side(each: list[Explanation]) -> Explanation:
    """Return the explanation whose masks are those of its inputs, in order."""
    first = each[0]
    passes = Passes(sum(one.passes.forward for one in each), sum(one.passes.backward for one in each))
    layers = tuple(dict.fromkeys(layer for one in each for layer in one.layers))
    return replace(first, masks=torch.cat([one.masks for one in each], 1), passes=passes, layers=layers)
