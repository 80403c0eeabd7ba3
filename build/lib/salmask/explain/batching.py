"""How explainers run a classifier: in a stated mode, in pieces of bounded size, image by image independent.

`at_rest` is the one place that decides about gradients and modes; `pieces` is the one place that splits work.
A piece that does not fit into memory is tried again at half the size, with one warning.
"""

from collections.abc import Callable, Sequence, Sized

import torch
from torch import Generator, Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import pieces
from salmask.classifier.inputs import check_tensor, checked
from salmask.explain.base import Explanation, Passes, as_targets
from salmask.masking import MeanColour, prepare
from salmask.types import Asked, Images, Infill, Targets

__all__ = [
    "backdrop",
    "by_pieces",
    "check_alive",
    "check_batch",
    "check_gradients",
    "check_reached",
    "entered",
    "joined",
]


def by_pieces(
    explain: Callable[[Classifier, Images, Targets | None], Explanation],
    classifier: Classifier,
    images: Images,
    targets: Asked | None,
    *,
    max_batch: int,
) -> Explanation:
    """Explain a batch in pieces of at most max_batch images, on the classifier's device, and join the parts.

    Raises ValueError for an empty batch, for images that are not in [0, 1] and for targets that are not one an image.
    """
    check_batch(images)
    targets = None if targets is None else as_targets(targets)
    if targets is not None and targets.shape != (len(images),):
        raise ValueError(f"expected targets ({len(images)},), one an image, got {tuple(targets.shape)}")
    moved = entered(images, classifier)
    given = None if targets is None else entered(targets, classifier)

    def part(rows: slice) -> Explanation:
        return explain(classifier, moved[rows], None if given is None else given[rows])

    with checked(images, classifier.channels_in):
        return joined(list(pieces(part, len(images), max_batch=max_batch)))


def check_batch(images: Sized) -> None:
    """Raise ValueError for what is no tensor, and for a batch of none."""
    check_tensor(images)
    if not len(images):
        raise ValueError("expected at least one image, got a batch of none")


def backdrop(infill: Infill | None, classifier: Classifier, image: Images, *, seed: int = 0) -> Infill:
    """Return what stands in the holes of one picture (1, 3, H, W) that is hidden many times over; None: mean colour."""
    return prepare(infill or MeanColour.of(classifier), image, seed=seed)


def check_reached(classifier: Classifier, scores: Tensor) -> None:
    """Refuse scores through which no gradient can go back to what was shown."""
    if not scores.requires_grad:
        raise ValueError(
            "no gradient comes back from the network's logits: somewhere it detaches, rounds, takes an argmax or runs "
            "outside autograd (a quantised or exported network); let it through, or take an explainer that asks for "
            "logits alone, such as rise, occlusion, scorecam or a trained masker"
        )


def check_gradients(
    classifier: Classifier, images: Images, targets: Targets, slopes: Tensor, *, layer: str | None = None
) -> None:
    """Refuse gradients that are all zero because they are lost, or because the class logit is a constant.

    slopes: (B, ...) gradients of the class logits, at a layer or at the picture; a layer past which they reach the
    picture is refused, too, and so is a logit that stays where others move. An image none of whose logits moves, where
    those of other pictures do, passes: it leaves all ReLUs off, say; its map is empty, and that is the truth about it.
    """
    silent = ~slopes.detach().flatten(1).any(1)
    if not bool(silent.any()):
        return
    shown, chosen = images.detach()[silent].requires_grad_(), targets[silent]
    logits = classifier.logits(shown)
    check_reached(classifier, logits)
    own = logits.gather(1, chosen[:, None])
    moved, others = (_moves(score, shown) for score in (own, logits - own))
    if layer is not None and bool(moved.any()):
        raise ValueError(
            f"no gradient arrives at layer {layer!r}: the logits pass it by, as they do with the patch tokens after "
            "the last block of a transformer that reads its class token alone; name an earlier layer"
        )
    if bool((still := ~moved & others).any()):
        raise ValueError(_constant(int(chosen[still][0])))
    if not bool(moved.all()):
        check_alive(classifier, images.detach()[silent][~moved], chosen[~moved])


def check_alive(classifier: Classifier, images: Images, targets: Targets) -> None:
    """Refuse a class whose logit no picture moves: neither these, nor noise, a slope, or what they are inverted.

    A logit that differs between these pictures, and has no gradient at any, has lost it on the way (by rounding, say);
    one that does not differ is a constant, for which there is no evidence.
    """
    noise = torch.rand(images.shape[1:], generator=Generator().manual_seed(0)).to(images)
    slope = torch.linspace(0, 1, images.shape[-1]).to(images).expand(images.shape[1:])
    shown = torch.cat([images[:1], 1 - images[:1], torch.stack([noise, 1 - noise, slope])]).requires_grad_()
    logits = classifier.logits(shown)
    check_reached(classifier, logits)
    for label in targets.unique().tolist():
        if bool(_moves(logits[:, label], shown).any()):
            continue
        if bool((logits[:, label] != logits[0, label]).any()):
            raise ValueError(
                f"the logit of class {label} changes with the picture, and no gradient of it arrives: the network "
                "rounds, compares or takes an argmax on the way; let gradients through, or take an explainer that asks "
                "for logits alone, such as rise, occlusion, scorecam or a trained masker"
            )
        raise ValueError(_constant(label))


def _moves(scores: Tensor, shown: Images) -> Tensor:
    """Return which pictures have a gradient of the scores' sum."""
    if not scores.requires_grad:
        return torch.zeros(len(shown), dtype=torch.bool, device=shown.device)
    (slopes,) = torch.autograd.grad(scores.sum(), shown, retain_graph=True, allow_unused=True)
    return torch.zeros_like(shown[:, 0, 0, 0]).bool() if slopes is None else slopes.flatten(1).any(1)


def _constant(label: int) -> str:
    return (
        f"the logit of class {label} does not depend on the picture, so that no gradient arrives: there is no evidence "
        "for it. The last layer of an untrained network may be all zeros, and a network with one logit z is read as "
        "(-z/2, z/2), not as (0, z)"
    )


def entered(values: Tensor, classifier: Classifier) -> Tensor:
    """Bring values to the classifier's device, as a tensor that autograd may keep; half precision becomes float32."""
    moved = values.detach().to(classifier.device)
    if moved.is_floating_point() and moved.element_size() < 4:
        moved = moved.float()
    return moved.clone() if moved.is_inference() else moved


def joined(parts: Sequence[Explanation]) -> Explanation:
    """Return the explanation of a batch from those of its parts."""
    count = sum(len(part.masks) for part in parts)
    forward = sum(part.passes.forward * len(part.masks) for part in parts) / count
    backward = sum(part.passes.backward * len(part.masks) for part in parts) / count
    return Explanation(
        torch.cat([part.masks.detach() for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.logits.detach() for part in parts]),
        Passes(forward, backward),
        range=parts[0].range,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        layers=tuple(dict.fromkeys(layer for part in parts for layer in part.layers)),
    )
