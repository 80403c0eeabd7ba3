"""Terms that the per-image methods add to those of training: class scores of one side, changes, plain sums.

A score is (logits, targets) -> one value an image, higher for more evidence; a term is Outcome -> one value an
image, lower is better.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch.nn import functional as F

from salmask.objective import KEPT, REMOVED, Outcome, Term, reads, variation
from salmask.types import Logits, Targets, Values

__all__ = [
    "SCORES",
    "ClassScore",
    "cells_sum",
    "change_kept",
    "change_removed",
    "log_odds",
    "log_probability",
    "logit",
    "margin",
    "probability",
    "roughness",
    "score_kept",
    "score_removed",
    "softmax_twice",
]

ClassScore = Callable[[Logits, Targets], Values]


# What is read off the logits


def logit(logits: Logits, targets: Targets) -> Values:
    """f_y."""
    return logits.gather(1, targets[:, None])[:, 0]


def log_probability(logits: Logits, targets: Targets) -> Values:
    """Log p_y, the negative cross entropy."""
    return -F.cross_entropy(logits, targets, reduction="none")


def probability(logits: Logits, targets: Targets) -> Values:
    """p_y."""
    return logit(logits.softmax(1), targets)


def margin(logits: Logits, targets: Targets) -> Values:
    """f_y - max of the other logits."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return logit(logits, targets) - others.amax(1)


def log_odds(logits: Logits, targets: Targets) -> Values:
    """Log p_y - log(1 - p_y), from the logits, so that a sure classifier does not overflow."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return logit(logits, targets) - others.logsumexp(1)


SCORES: Mapping[str, ClassScore] = MappingProxyType(
    {
        "logit": logit,
        "probability": probability,
        "log_probability": log_probability,
        "margin": margin,
        "log_odds": log_odds,
    }
)
"""Scores (logits, targets) -> one value an image, higher for more evidence."""


def score_kept(score: ClassScore) -> Term:
    """Return the term score of the kept picture."""

    @reads(KEPT)
    def term(outcome: Outcome) -> Values:
        return score(outcome.kept_logits, outcome.targets)

    return term


def score_removed(score: ClassScore) -> Term:
    """Return the term score of the removed picture."""

    @reads(REMOVED)
    def term(outcome: Outcome) -> Values:
        return score(outcome.removed_logits, outcome.targets)

    return term


def change_kept(score: ClassScore) -> Term:
    """Return the term abs(score of the whole picture - score of the kept one)."""

    @reads(KEPT)
    def term(outcome: Outcome) -> Values:
        return (score(outcome.clean, outcome.targets) - score(outcome.kept_logits, outcome.targets)).abs()

    return term


def change_removed(score: ClassScore) -> Term:
    """Return the term abs(score of the whole picture - score of the removed one)."""

    @reads(REMOVED)
    def term(outcome: Outcome) -> Values:
        return (score(outcome.clean, outcome.targets) - score(outcome.removed_logits, outcome.targets)).abs()

    return term


def roughness(power: float) -> Term:
    """Return the term sum abs(dm)^power over neighbours, without a border."""

    @reads()
    def term(outcome: Outcome) -> Values:
        return 2 * variation(outcome.masks, border=0.0, power=power)

    return term


@reads()
def cells_sum(outcome: Outcome) -> Values:
    """Sum of the mask as the terms see it."""
    return outcome.masks.sum((1, 2, 3))


@reads(KEPT)
def softmax_twice(outcome: Outcome) -> Values:
    """-q_y + log sum_j exp(q_j) of probabilities q: a softmax applied a second time, as was published."""
    return F.cross_entropy(outcome.kept_logits.softmax(1), outcome.targets, reduction="none")
