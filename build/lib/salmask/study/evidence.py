"""Which of two planted cues a map names, beside the one that the network follows.

With a map m in [0, 1] of the class y that the network decides for, cues with pixels C_k, and p_y(.) its probability:

    share_k   sum(m C_k) / sum(m)                           of the kept area, on the cue
    lift_k    share_k / (sum(C_k) / all pixels)             1: as a map that is everywhere the same; larger: picked out
    drop_k    max(0, p_y(x) - p_y(remove(x, m C_k))),       of the drop, on the cue: divided by the sum over the cues
                                                            and the rest of the picture

A map names the cue of the larger lift, since a small cue has a small share of any map that is smooth; by share and by
drop it may name another. A network follows the cue whose class it says on more pictures whose cues are in conflict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import collate
from salmask.data.cues import CuePictures
from salmask.masking import MeanColour
from salmask.outcome import REMOVED, play_at_rest, whole_logits
from salmask.types import Images, Masks, Targets, Values

__all__ = ["ANSWERS", "Conflict", "cue_scores", "followed", "named_cue"]

ANSWERS = ("lift", "share", "drop")
"""By what a map names a cue; the first one is the answer, the others stand beside it."""


@dataclass(frozen=True)
class Conflict:
    """Pictures whose cues say different classes. said, pixels: cue -> classes (B,), and (B, 1, H, W) of 0 and 1."""

    ids: Sequence[str]
    images: Images
    said: Mapping[str, Targets]
    pixels: Mapping[str, Masks]

    @classmethod
    def of(cls, pictures: CuePictures) -> "Conflict":
        """Draw the pictures."""
        batch = collate([pictures[index] for index in range(len(pictures))])
        planted = [pictures.planted(index) for index in range(len(pictures))]
        return cls(
            batch.ids,
            batch.images,
            {cue: torch.tensor([one.said[cue] for one in planted]) for cue in pictures.cues},
            {cue: torch.stack([one.pixels[cue] for one in planted])[:, None].float() for cue in pictures.cues},
        )

    def says(self, classifier: Classifier) -> dict[str, Values]:
        """Return which pictures the classifier gives the class of each cue, as 0 and 1 (B,)."""
        guess = whole_logits(classifier, self.images.to(classifier.device)).argmax(1).cpu()
        return {cue: (guess == said).double() for cue, said in self.said.items()}


def followed(says: Mapping[str, Float[ndarray, " pictures"]]) -> str | None:
    """Return the cue whose class is said on most pictures; None where two are said alike often."""
    means = {cue: float(np.mean(values)) for cue, values in says.items()}
    first, second, *_ = sorted(means, key=lambda cue: -means[cue])
    return first if means[first] > means[second] else None


def named_cue(scores: Mapping[str, Values], by: str, cues: Sequence[str]) -> list[str | None]:
    """Return the cue that each map names by "lift", "share" or "drop"; None where none is ahead, or NaN."""
    table = torch.stack([scores[f"{by}:{cue}"] for cue in cues], dim=1)
    best = table.argmax(1).tolist()
    ahead = ((table >= table.amax(1, keepdim=True)).sum(1) == 1) & ~table.isnan().any(1)
    return [cues[place] if clear else None for place, clear in zip(best, ahead.tolist(), strict=True)]


def cue_scores(classifier: Classifier, conflict: Conflict, masks: Masks, targets: Targets) -> dict[str, Values]:
    """Return share, lift and drop of each cue, (B,) each, under the names share:CUE and so on.

    An empty map has no share (NaN); where nothing of what is kept lowers the probability there is no share of the drop
    (NaN).
    """
    masks, images = masks.to(classifier.device), conflict.images.to(classifier.device)
    pixels = {cue: one.to(masks) for cue, one in conflict.pixels.items()}
    scores: dict[str, Values] = {}
    for cue, one in pixels.items():
        share = (masks * one).sum((1, 2, 3)) / masks.sum((1, 2, 3))
        scores[f"share:{cue}"] = share
        scores[f"lift:{cue}"] = share / one.mean((1, 2, 3))
    rest = 1 - torch.stack([*pixels.values()]).amax(0)
    clean = whole_logits(classifier, images)
    drops = {cue: _drop(classifier, images, masks * one, targets, clean) for cue, one in {**pixels, "": rest}.items()}
    total = torch.stack([*drops.values()]).sum(0)
    scores |= {f"drop:{cue}": drops[cue] / total for cue in pixels}
    return {name: value.double().cpu() for name, value in scores.items()}


def _drop(classifier: Classifier, images: Images, masks: Masks, targets: Targets, clean: Tensor) -> Values:
    """Return how far the target's probability falls as the mask is taken out of the picture; 0 where it rises."""
    targets = targets.to(classifier.device)
    outcome = play_at_rest(
        classifier,
        images,
        masks,
        targets,
        infill=MeanColour.of(classifier),
        clean=clean,
        sides=frozenset({REMOVED}),
    )
    before, after = (classifier.probabilities(logits) for logits in (outcome.clean, outcome.removed_logits))
    return (before - after).gather(1, targets[:, None])[:, 0].clamp_min(0)
