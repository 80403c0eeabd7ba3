"""What is explained in a training, and what an opponent that learns alongside is taught.

| classifier | explained, without labels ("predicted") | taught |
|---|---|---|
| one class of K | argmax of the given classifier | cross-entropy with the explained class |
| labels | one of those above .5, drawn anew; the likeliest where none is | sum of K binary cross-entropies |

Of independent labels the opponent is taught all: the explained one is there where the data says so, and the others are
what the given classifier decides of the whole picture. Taught the explained label alone, it would never meet a picture
without it, and learn to say yes.
"""

import torch
from jaxtyping import Bool
from torch import Generator, Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.outcome import Outcome
from salmask.terms import area
from salmask.types import Logits, Targets, Values

__all__ = ["absent_asked", "drawn_label", "lesson", "mistakes", "nothing_kept"]


def drawn_label(classifier: Classifier, logits: Logits, generator: Generator) -> Targets:
    """Return the class or label of each picture that is explained where no label is given."""
    if not classifier.multilabel:
        return logits.argmax(1)
    there = (logits > 0) | (logits == logits.amax(1, keepdim=True)) & ~(logits > 0).any(1, keepdim=True)
    keys = torch.rand(logits.shape, generator=generator).to(logits.device)  # the largest of K uniform draws is uniform
    return keys.masked_fill(~there, -1).argmax(1)


def absent_asked(
    classifier: Classifier, logits: Logits, targets: Targets, share: float, generator: Generator
) -> tuple[Targets, Bool[Tensor, " batch"]]:
    """Return the classes asked for where a share of the pictures is asked for one that is not there, and which are.

    Not there are the classes, other than the explained one, that the classifier holds less likely of the whole picture
    than 1 / K, and labels that it holds less likely than .5; one of them is drawn.
    """
    chosen = (torch.rand(len(logits), generator=generator) < share).to(logits.device)
    keys = torch.rand(logits.shape, generator=generator).to(logits.device)
    there = logits > 0 if classifier.multilabel else logits.softmax(1) >= 1 / logits.shape[1]
    drawn = keys.masked_fill(there.scatter(1, targets[:, None], True), -1).argmax(1)
    return torch.where(chosen, drawn, targets), chosen


def nothing_kept(outcome: Outcome) -> Values:
    """-log(1 - p_y) of the kept picture, plus mean m: what is asked for is not there, and nothing is to be kept."""
    others = outcome.kept_logits.scatter(1, outcome.targets[:, None], -torch.inf).logsumexp(1)
    return outcome.kept_logits.logsumexp(1) - others + area(outcome)


def lesson(classifier: Classifier, logits: Logits, targets: Targets, *, labelled: bool) -> Tensor:
    """Return what is taught of each picture: classes (B,), or labels (B, K) of 0 and 1.

    logits: the given classifier's, of the whole pictures. labelled: the targets come from the data.
    """
    if not classifier.multilabel:
        return targets
    there = (logits > 0).float()
    return there.scatter(1, targets[:, None], 1.0) if labelled else there


def mistakes(logits: Logits, taught: Tensor) -> Tensor:
    """Return the loss, the mean over pictures of the cross-entropy with what is taught (`lesson`)."""
    if taught.ndim == 1:
        return F.cross_entropy(logits, taught)
    return F.binary_cross_entropy_with_logits(logits, taught, reduction="none").sum(1).mean()
