"""Class scores: what logits say of a class, one value an image, higher for more evidence.

The per-image methods build their terms of them, and the faithfulness metrics read them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch.nn import functional as F

from salmask.types import Logits, Targets, Values

__all__ = ["SCORES", "ClassScore", "log_odds", "log_probability", "logit", "margin", "probability", "sigmoid", "top1"]


ClassScore = Callable[[Logits, Targets], Values]


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


def sigmoid(logits: Logits, targets: Targets) -> Values:
    """1 / (1 + exp(-f_y)), for classifiers of several labels at once."""
    return logit(logits, targets).sigmoid()


def top1(logits: Logits, targets: Targets) -> Values:
    """1[argmax f = y], which carries no gradient: its mean over images is an accuracy."""
    return (logits.argmax(1) == targets).to(logits.dtype)


SCORES: Mapping[str, ClassScore] = MappingProxyType(
    {
        "logit": logit,
        "probability": probability,
        "log_probability": log_probability,
        "margin": margin,
        "log_odds": log_odds,
        "sigmoid": sigmoid,
    }
)
"""Scores (logits, targets) -> one value an image, higher for more evidence."""
