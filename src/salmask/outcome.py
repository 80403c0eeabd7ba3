"""The hall: what a classifier says of the clean, the kept and the removed picture.

    outcome = (m, f(x), f(keep(x, m)), f(remove(x, m)), y)

`play` is the only code that shows a classifier the kept and the removed picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import at_once, at_rest, pieces
from salmask.masking import keep, remove
from salmask.types import Images, Infill, Logits, Masks, Targets, Values

__all__ = [
    "BOTH_SIDES",
    "IMAGES_PER_PASS",
    "KEPT",
    "REMOVED",
    "Outcome",
    "Term",
    "play",
    "play_at_rest",
    "reads",
    "whole_logits",
]


KEPT, REMOVED = "kept", "removed"
BOTH_SIDES = frozenset({KEPT, REMOVED})

IMAGES_PER_PASS = 64
"""Pictures that are shown to a classifier at once, unless a caller says otherwise: the limit of memory."""


Term = Callable[["Outcome"], Tensor]


@dataclass(frozen=True)
class Outcome:
    """The classifier's logits of the clean, the kept and the removed picture under masks m.

    masks (B, 1, h, w), or one for each of several inputs; targets (B,); clean, kept, removed (B, K) logits. A side that
    was not played is None.
    Of a classifier of independent labels they are logits (0, z_y) of the one label, and targets 1: each picture and
    label is a question of its own (`Classifier.question`).
    answers: the logits of all classes or labels, by side, as the classifier gave them.
    zoom: pixels of the picture along one side of a cell of `masks`. A mask enlarged by repetition has the mean
    of the small one and zoom times its total variation, so both are taken on the small one exactly.
    areas: target areas (B,) of p-conditioned masks; the conditional areas then mean abs(mean m - p).
    images: the whole pictures, for terms that compare a mask with what it lies on; None where nobody kept them.
    """

    masks: Masks
    targets: Targets
    clean: Logits
    kept: Logits | None
    removed: Logits | None
    zoom: int = 1
    areas: Values | None = None
    answers: Mapping[str, Tensor] = field(default_factory=dict)
    images: Float[Tensor, "batch channels rows columns"] | None = None  # masks may be on a grid of their own

    @property
    def kept_logits(self) -> Tensor:
        """The kept side's logits; an error if it was not played."""
        return _side(self.kept, KEPT)

    @property
    def removed_logits(self) -> Tensor:
        """The removed side's logits; an error if it was not played."""
        return _side(self.removed, REMOVED)

    @property
    def clean_right(self) -> Bool[Tensor, " batch"]:
        """c, the images that the classifier gets right as they are."""
        return _agrees(self.clean, self.targets)

    @property
    def kept_right(self) -> Bool[Tensor, " batch"]:
        """s, the images whose kept picture is classified as y; clean correctness is not asked for."""
        return _agrees(self.kept_logits, self.targets)

    @property
    def removed_wrong(self) -> Bool[Tensor, " batch"]:
        """k, right as they are, wrong once the evidence is removed ("non-trivially confused")."""
        return self.clean_right & ~_agrees(self.removed_logits, self.targets)


def play(
    classifier: Classifier,
    images: Images | Mapping[str, Tensor],
    masks: Masks,
    targets: Targets,
    *,
    infill: Infill | Mapping[str, Infill],
    clean: Logits | None = None,
    sides: frozenset[str] = BOTH_SIDES,
    together: bool = True,
    view: Callable[[Images], Images] | None = None,
) -> Outcome:
    """Show the classifier the kept and the removed pictures.

    images: also by input, of a classifier with several. masks: one for all inputs, or one for each, (B, K, H, W).
    infill: what stands in the holes, of both sides or {"kept": ..., "removed": ...}.
    clean: logits of the whole images, where known already; else one more pass without gradient.
    together: both sides go through as one batch. Exact for a network in eval mode; a network in train mode
        mixes the batch in its normalisation layers, so that the sides must go separately.
    view: what is done to the two pictures before they are shown, such as a jitter; None: nothing.
    """
    images, spread = classifier.stacked(images), classifier.spread(masks)
    if not isinstance(targets, Tensor) or targets.shape != (len(images),) or targets.is_floating_point():
        got = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"expected targets as a tensor ({len(images)},) of class indices, got {got}")
    if clean is None:
        with torch.no_grad():
            clean = classifier.logits(images)
    fill = infill if isinstance(infill, Mapping) else {KEPT: infill, REMOVED: infill}
    pictures = {}
    if KEPT in sides:
        pictures[KEPT] = keep(images, spread, fill[KEPT])
    if REMOVED in sides:
        pictures[REMOVED] = remove(images, spread, fill[REMOVED])
    shown = [torch.cat([*pictures.values()])] if together and len(pictures) == 2 else [*pictures.values()]
    answers = [classifier.logits(batch if view is None else view(batch)) for batch in shown]
    each = [side for batch in answers for side in batch.split(len(images))]
    logits = dict(zip(pictures, each, strict=True))
    asked = {side: classifier.question(answer, targets)[0] for side, answer in logits.items()}
    whole, about = classifier.question(clean, targets)
    return Outcome(masks, about, whole, asked.get(KEPT), asked.get(REMOVED), answers=logits, images=images)


def play_at_rest(
    classifier: Classifier,
    images: Images,
    masks: Masks,
    targets: Targets,
    *,
    infill: Infill,
    clean: Logits | None = None,
    sides: frozenset[str] = BOTH_SIDES,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Outcome:
    """Play without gradients, the network held in eval mode, in passes that fit into memory: what scores read.

    clean: logits of the whole images, where known already. A side is shown apart from the other one, so that its
    numbers do not depend on whether the other is asked for.
    """
    if clean is None:
        clean = whole_logits(classifier, images, images_per_pass=images_per_pass)

    def part(rows: slice) -> Outcome:
        return play(
            classifier,
            images[rows],
            masks[rows],
            targets[rows],
            infill=infill,
            clean=clean[rows],
            sides=sides,
            together=False,
        )

    with at_rest(classifier, gradients=False):
        parts = list(pieces(part, len(images), max_batch=_in_one_pass(images, images_per_pass)))
    whole, about = classifier.question(clean, targets)
    shown = [side for side in (KEPT, REMOVED) if side in sides]  # a set has another order in every process
    answers = {side: torch.cat([clean[:0], *(one.answers[side] for one in parts)]) for side in shown}
    kept, removed = (
        classifier.question(answers[side], targets)[0] if side in sides else None for side in (KEPT, REMOVED)
    )
    return Outcome(masks, about, whole, kept, removed, answers=answers, images=images)


def whole_logits(classifier: Classifier, images: Images, *, images_per_pass: int = IMAGES_PER_PASS) -> Logits:
    """Return the logits of whole pictures, without gradients, the network held in eval mode."""
    with at_rest(classifier, gradients=False):
        most = _in_one_pass(images, images_per_pass)
        parts = list(pieces(lambda rows: classifier.logits(images[rows]), len(images), max_batch=most))
    return torch.cat([torch.zeros(0, classifier.num_classes, device=classifier.device), *parts])


def _in_one_pass(images: Images, images_per_pass: int) -> int:
    if images_per_pass < 1:
        raise ValueError(f"images_per_pass must be at least 1, got {images_per_pass}")
    return at_once(images, images_per_pass)


def _side(logits: Tensor | None, side: str) -> Tensor:
    if logits is None:
        raise ValueError(f"the {side} side was not played: name it in `sides`")
    return logits


def _agrees(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.detach().argmax(1) == targets


def reads(*sides: str) -> Callable[[Term], Term]:
    """Mark a term with the sides whose logits it reads, so that no other side need be played."""

    def mark(term: Term) -> Term:
        term.sides = frozenset(sides)  # type: ignore[attr-defined]
        return term

    return mark
