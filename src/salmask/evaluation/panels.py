"""One explained picture as a person looks at it: whole, kept and removed, and what the classifier says of each.

What `salmask explain`, the demo and the page in the browser show. The kept and the removed picture are played by
`outcome.play`, under the mask that is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Sample, collate, no_boxes
from salmask.evaluation.cases import StripParts
from salmask.explain.base import Explanation
from salmask.masking import MeanColour, keep, remove
from salmask.outcome import play_at_rest
from salmask.training.run import Loaded
from salmask.types import Images, Infill, Masks, in_colour

__all__ = [
    "Panels",
    "beside",
    "class_names_of",
    "masks_beside",
    "played_panels",
    "seen",
    "strip_parts",
]


@dataclass(frozen=True)
class Panels:
    """Pictures (3, H, W) in [0, 1] and a mask (1, H, W), on the CPU, with class probabilities of each picture.

    Several inputs, and their masks, lie side by side: (., H, K * W).

    probabilities: "whole", "kept", "removed" -> [(class, probability), ...]: the classes that are likeliest on the
    whole picture, and the class explained if it is not one of them. explained: the name of the class explained;
    explained_probability: "whole", "kept", "removed" -> its probability, by its index, as two classes may share a name.
    """

    whole: Tensor
    mask: Tensor
    kept: Tensor
    removed: Tensor
    probabilities: Mapping[str, list[tuple[str, float]]]
    explained: str
    explained_probability: Mapping[str, float]


def class_names_of(loaded: Loaded) -> tuple[str, ...]:
    """Return the names of a classifier's classes, or their numbers where they have none."""
    return loaded.classes or tuple(str(k) for k in range(loaded.classifier.num_classes))


def seen(loaded: Loaded, name: str, image: Tensor) -> Images:
    """Return what a classifier sees of a decoded picture (C, height, width): (1, C, size, size), where it lives."""
    sample = loaded.view.transform()(Sample(id=name, image=image, target=0, boxes=no_boxes(), pixels=None))
    return collate([sample]).images.to(loaded.classifier.device)


def played_panels(
    loaded: Loaded, images: Images, masks: Masks, explanation: Explanation, *, top: int, names: Sequence[str]
) -> list[Panels]:
    """Play masks in [0, 1] and return what each picture shows; the explanation says the classes explained.

    images: (B, C, size, size). masks: (B, 1, size, size), or one for each input. top: how many classes are listed, at
    least one.
    """
    classifier = loaded.classifier
    infill, masks = MeanColour.of(classifier), masks.float()
    outcome = play_at_rest(classifier, images, masks, explanation.targets, infill=infill, clean=explanation.logits)
    sides = {"whole": explanation.logits, **outcome.answers}
    shares = {side: classifier.probabilities(logits) for side, logits in sides.items()}
    spread = classifier.spread(masks)
    pictures = (images, keep(images, spread, infill), remove(images, spread, infill))
    whole, kept, removed = (beside(classifier, loaded.view.shown(one), loaded.view.colours).cpu() for one in pictures)
    masks = masks_beside(classifier, masks).cpu()
    shown = []
    for i, target in enumerate(explanation.targets.tolist()):
        best = shares["whole"][i].topk(min(top, len(names))).indices.tolist()
        best += [] if target in best else [target]
        listed = {side: [(names[k], float(share[i, k])) for k in best] for side, share in shares.items()}
        own = {side: float(share[i, target]) for side, share in shares.items()}
        shown.append(Panels(whole[i], masks[i], kept[i], removed[i], listed, names[target], own))
    return shown


def strip_parts(image: Images, mask: Masks, infill: Infill, classifier: Classifier) -> StripParts:
    """Return one image, its mask, its kept and its removed picture in colour; several inputs lie side by side."""
    spread = classifier.spread(mask)
    pictures = image, keep(image, spread, infill), remove(image, spread, infill)
    whole, kept, removed = (beside(classifier, one)[0] for one in pictures)
    return whole, masks_beside(classifier, mask)[0], kept, removed


def beside(
    classifier: Classifier, images: Images, bands: Sequence[int] | None = None
) -> Float[Tensor, "batch 3 height widths"]:
    """Return images in colour; several inputs lie side by side. bands: of `in_colour`, for one input."""
    inputs = classifier.inputs
    return in_colour(images, bands) if inputs is None or len(inputs) == 1 else inputs.beside(images)


def masks_beside(classifier: Classifier, masks: Masks) -> Float[Tensor, "batch 1 height widths"]:
    """Return masks as `beside` has the images: that of each input, or the one that they share, over each."""
    count = 1 if classifier.inputs is None else len(classifier.inputs)
    return torch.cat(list(masks.expand(-1, count, -1, -1).split(1, 1)), 3)
