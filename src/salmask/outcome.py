"""The hall: what a classifier says of the clean, the kept and the removed picture.

    outcome = (m, f(x), f(keep(x, m)), f(remove(x, m)), y)

`play` is the only code that shows a classifier the kept and the removed picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from salmask.classifier import Classifier
from salmask.masking import keep, remove
from salmask.types import Images, Infill, Logits, Masks, Targets, Values

__all__ = ["KEPT", "REMOVED", "Outcome", "Term", "play", "reads"]


KEPT, REMOVED = "kept", "removed"


Term = Callable[["Outcome"], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What the classifier said of the clean, the kept and the removed picture under masks m.

    masks (B, 1, h, w); targets (B,); clean, kept, removed (B, K) logits. A side that was not played is None.
    zoom: pixels of the picture along one side of a cell of `masks`. A mask enlarged by repetition has the mean
    of the small one and zoom times its total variation, so both are taken on the small one exactly.
    areas: target areas (B,) of p-conditioned masks; the conditional areas then mean abs(mean m - p).
    """

    masks: Masks
    targets: Targets
    clean: Logits
    kept: Logits | None
    removed: Logits | None
    zoom: int = 1
    areas: Values | None = None

    @property
    def kept_logits(self) -> Tensor:
        """The kept side's logits; an error if it was not played."""
        return _played(self.kept, KEPT)

    @property
    def removed_logits(self) -> Tensor:
        """The removed side's logits; an error if it was not played."""
        return _played(self.removed, REMOVED)

    @property
    def clean_right(self) -> Bool[Tensor, " batch"]:
        """c, the images that the classifier gets right as they are."""
        return _right(self.clean, self.targets)

    @property
    def kept_right(self) -> Bool[Tensor, " batch"]:
        """s, the images whose kept picture is classified as y; clean correctness is not asked for."""
        return _right(self.kept_logits, self.targets)

    @property
    def removed_wrong(self) -> Bool[Tensor, " batch"]:
        """k, right as they are, wrong once the evidence is removed ("non-trivially confused")."""
        return self.clean_right & ~_right(self.removed_logits, self.targets)


def play(
    classifier: Classifier,
    images: Images,
    masks: Masks,
    targets: Targets,
    *,
    infill: Infill | Mapping[str, Infill],
    clean: Logits | None = None,
    sides: frozenset[str] = frozenset({KEPT, REMOVED}),
    together: bool = True,
) -> Outcome:
    """Show the classifier the kept and the removed pictures.

    infill: what stands in the holes, of both sides or {"kept": ..., "removed": ...}.
    clean: logits of the whole images, where known already; else one more pass without gradient.
    together: both sides go through as one batch. Exact for a network in eval mode; a network in train mode
        mixes the batch in its normalisation layers, so that the sides must go separately.
    """
    if clean is None:
        with torch.no_grad():
            clean = classifier.logits(images)
    fill = infill if isinstance(infill, Mapping) else {KEPT: infill, REMOVED: infill}
    pictures = {}
    if KEPT in sides:
        pictures[KEPT] = keep(images, masks, fill[KEPT])
    if REMOVED in sides:
        pictures[REMOVED] = remove(images, masks, fill[REMOVED])
    if together and len(pictures) == 2:
        said = dict(zip(pictures, classifier.logits(torch.cat([*pictures.values()])).chunk(2), strict=True))
    else:
        said = {side: classifier.logits(picture) for side, picture in pictures.items()}
    return Outcome(masks, targets, clean, said.get(KEPT), said.get(REMOVED))


def _played(logits: Tensor | None, side: str) -> Tensor:
    if logits is None:
        raise ValueError(f"the {side} side was not played: name it in `sides`")
    return logits


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.detach().argmax(1) == targets


def reads(*sides: str) -> Callable[[Term], Term]:
    """Mark a term with the sides whose logits it reads, so that no other side need be played."""

    def mark(term: Term) -> Term:
        term.sides = frozenset(sides)  # type: ignore[attr-defined]
        return term

    return mark
