"""What a mask is asked for: terms, each once.

A term is a pure function Outcome -> (B,), lower is better; the trainer takes the mean over the batch. With
l the logits of a side, p = softmax(l), H = -sum p log p in nats and c = 1[argmax f(x) = y]:

| term | formula | paper's name |
|---|---|---|
| max_class_kept | -log p_y of the kept picture | MaxClass (I) |
| min_entropy_kept | c * H of the kept picture | MinEnt (I) |
| min_class_removed | log p_y of the removed picture (unbounded below) | MinClass (O) |
| max_entropy_removed | -c * H of the removed picture | MaxEnt (O) |
| area_if_kept_right | -relu(s - mean m), s = 1[argmax kept = y] | R_area, in |
| area_if_removed_wrong | -relu(k - mean m), k = c * 1[argmax removed != y] | R_area, out |
| area, area_to(p) | mean m, abs(mean m - p) | L1, p-conditioned |
| total_variation | half the summed squared differences + .3 of the squared border | R_tv |

Source: Phang, Park & Geras (2020); the conditional areas are of Zolna, Geras & Cho (2018), total variation
with its border of Dabkowski & Gal (2017). Indicators carry no gradient.

Terms of a class score, `score_kept` and its like, take one of `classifier.scores`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.scores import ClassScore, log_probability, margin, probability
from salmask.files import Within, plain_arguments
from salmask.outcome import (
    BOTH_SIDES,
    IMAGES_PER_PASS,
    KEPT,
    REMOVED,
    Outcome,
    Term,
    play_at_rest,
    reads,
    whole_logits,
)
from salmask.types import Images, Infill, Logits, Masks, Targets, Values

__all__ = [
    "KEPT_CONFIDENCE",
    "REMOVED_CONFIDENCE",
    "area",
    "area_if_kept_right",
    "area_if_removed_wrong",
    "area_root",
    "area_to",
    "area_unless_alike",
    "cells_sum",
    "change_kept",
    "change_removed",
    "divergence_from_prior",
    "energy_guidance",
    "input_effects",
    "kept_confidence",
    "max_class_kept",
    "max_entropy_removed",
    "min_class_removed",
    "min_entropy_kept",
    "removed_confidence",
    "roughness",
    "score_kept",
    "score_removed",
    "shares_of",
    "softmax_twice",
    "total_variation",
    "total_variation_bordered",
    "variation",
]


def _entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits, validate_args=False).entropy()


@reads(KEPT)
def max_class_kept(outcome: Outcome) -> Values:
    """-log p_y of the kept picture: what is kept must carry the class."""
    return -log_probability(outcome.kept_logits, outcome.targets)


@reads(KEPT)
def min_entropy_kept(outcome: Outcome) -> Values:
    """c * H of the kept picture: it must be decided, whatever the decision."""
    return outcome.clean_right * _entropy(outcome.kept_logits)


@reads(REMOVED)
def min_class_removed(outcome: Outcome) -> Values:
    """Log p_y of the removed picture, unbounded below: the class must be gone."""
    return log_probability(outcome.removed_logits, outcome.targets)


@reads(REMOVED)
def max_entropy_removed(outcome: Outcome) -> Values:
    """-c * H of the removed picture: nothing must be left to tell."""
    return -(outcome.clean_right * _entropy(outcome.removed_logits))


def kept_confidence(ceiling: float) -> Term:
    """relu(ceiling - margin) of the kept picture, margin = l_y - max of the others (Dabkowski & Gal, 2017)."""

    @reads(KEPT)
    def term(outcome: Outcome) -> Values:
        return F.relu(ceiling - margin(outcome.kept_logits, outcome.targets))

    return term


def removed_confidence(floor: float) -> Term:
    """relu(floor + margin) of the removed picture, margin = l_y - max of the others (Dabkowski & Gal, 2017)."""

    @reads(REMOVED)
    def term(outcome: Outcome) -> Values:
        return F.relu(floor + margin(outcome.removed_logits, outcome.targets))

    return term


KEPT_CONFIDENCE, REMOVED_CONFIDENCE = kept_confidence(1.0), removed_confidence(5.0)
"""The margins of Dabkowski & Gal's released code."""


def divergence_from_prior(
    prior: Tensor, *, side: str = REMOVED, forward: bool = True, when_clean_right: bool = True
) -> Term:
    """KL(prior || p) ("forward") or KL(p || prior) of one side: what is hidden must leave only the prior.

    prior: (K,) positive, sums to one; uniform with the forward divergence it ranks like max_entropy_removed.
    """
    if prior.ndim != 1 or bool((prior <= 0).any()) or abs(float(prior.sum()) - 1) > 1e-4:
        raise ValueError(f"a prior is (K,) positive probabilities that sum to 1, got sum {float(prior.sum()):.4g}")

    @reads(side)
    def term(outcome: Outcome) -> Values:
        log_q = (outcome.kept_logits if side == KEPT else outcome.removed_logits).log_softmax(1)
        log_pi = prior.to(log_q).log().expand_as(log_q)
        pair = (log_q, log_pi) if forward else (log_pi, log_q)
        value = F.kl_div(*pair, log_target=True, reduction="none").sum(1)
        return outcome.clean_right * value if when_clean_right else value

    return term


@reads(KEPT)
def area_if_kept_right(outcome: Outcome, *, power: float = 1.0) -> Values:
    """-relu(s - mean m): an area that costs only where the kept picture is right already.

    power: of abs(mean m - p), for masks with a target area p.
    """
    return -F.relu(outcome.kept_right.to(outcome.masks.dtype) - _extent(outcome, power))


@reads(REMOVED)
def area_if_removed_wrong(outcome: Outcome, *, power: float = 1.0) -> Values:
    """-relu(k - mean m): an area that costs only where removal has already lost the class.

    power: of abs(mean m - p), for masks with a target area p.
    """
    return -F.relu(outcome.removed_wrong.to(outcome.masks.dtype) - _extent(outcome, power))


def _extent(outcome: Outcome, power: float) -> Tensor:
    return area(outcome) if outcome.areas is None else (area(outcome) - outcome.areas).abs().pow(power)


@reads()
def area(outcome: Outcome) -> Values:
    """Mean of the mask, in [0, 1]."""
    return outcome.masks.mean((1, 2, 3))


def area_to(target: float | Tensor, *, power: float = 1.0) -> Term:
    """abs(mean m - target)^power; target: a number or one per image, in [0, 1].

    Errors: ValueError for a number outside.
    """
    if not isinstance(target, Tensor):
        plain_arguments("area_to", {"target": Within(0, 1, whole=False)}, target=target)

    @reads()
    def term(outcome: Outcome) -> Values:
        return (area(outcome) - target).abs().pow(power)

    return term


@reads()
def area_unless_alike(outcome: Outcome) -> Values:
    """Mean of the mask, where the masked picture is not yet like the picture; else 0 (L-MAC's fine-tuning)."""
    return area(outcome) * (_likeness(outcome) < ALIKE)


@reads()
def energy_guidance(outcome: Outcome) -> Values:
    """Mean over cells of BCE(m, 1[x >= .35 max x]), where the masked picture is like the picture; else 0.

    Draws a mask that resembles the picture anyway towards its loud parts, so that it sounds less cut up. Source:
    Paissan et al. (2024), fine-tuning, whose code compares with the recording before noise was mixed in.
    """
    masks, images = _on_pictures(outcome)
    loud = (images >= ENERGY * images.amax((1, 2, 3), keepdim=True)).to(masks.dtype)
    distance = F.binary_cross_entropy(masks.clamp(0, 1), loud, reduction="none").mean((1, 2, 3))
    return distance * (_likeness(outcome) >= ALIKE)


ALIKE, ENERGY = 0.6, 0.35
"""L-MAC's cosine from which on a masked picture counts as like the picture, and its share of the loudest cell."""


def _likeness(outcome: Outcome) -> Values:
    """Cosine between the picture x and m x, without gradient: 1 for a full mask, and where both are empty."""
    masks, images = _on_pictures(outcome)
    with torch.no_grad():
        kept, whole = (masks * images).flatten(1), images.flatten(1)
        norms = kept.norm(dim=1) * whole.norm(dim=1)
        return torch.where(norms > 0, (kept * whole).sum(1) / norms, (kept.norm(dim=1) == whole.norm(dim=1)).to(norms))


def _on_pictures(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Return masks at the size of the pictures, and the pictures, of one channel: their mean."""
    if outcome.images is None:
        raise ValueError("this term compares masks with pictures, and the outcome holds none: give Outcome(images=...)")
    images = outcome.images.mean(1, keepdim=True).to(outcome.masks.dtype)
    masks = outcome.masks
    if masks.shape[-2:] != images.shape[-2:]:
        masks = F.interpolate(masks, images.shape[-2:], mode="nearest")
    return masks, images


@reads()
def area_root(outcome: Outcome) -> Values:
    """Mean of (m + 0.0005)^0.3, which likes few, full pixels (Dabkowski & Gal, 2017)."""
    return (outcome.masks + 5e-4).pow(0.3).mean((1, 2, 3))


@reads()
def total_variation(outcome: Outcome) -> Values:
    """Half of [summed squared differences of neighbours + 0.3 * squared values on the four borders]."""
    return variation(outcome.masks, border=0.3) * outcome.zoom


def total_variation_bordered(border: float) -> Term:
    """`total_variation` with another weight of the borders; 0: neighbours alone, so that masks may touch the border."""

    @reads()
    def term(outcome: Outcome) -> Values:
        return variation(outcome.masks, border=border) * outcome.zoom

    return term


def variation(masks: Masks, *, border: float = 0.3, power: float = 2.0) -> Values:
    """Return sum abs(dm)^power over neighbours + border * sum abs(m)^power over the borders, halved, per image.

    A sum over pixels (and over the masks of several inputs), not a mean; corner pixels lie on two borders and count
    twice.
    """
    across, down = (masks.diff(dim=axis).abs().pow(power).sum((1, 2, 3)) for axis in (3, 2))
    edges = (masks[:, :, 0], masks[:, :, -1], masks[:, :, :, 0], masks[:, :, :, -1])
    return (across + down + border * sum(edge.abs().pow(power).sum((1, 2)) for edge in edges)) / 2


def input_effects(
    classifier: Classifier,
    images: Images,
    targets: Targets,
    *,
    infill: Infill,
    clean: Logits | None = None,
    score: ClassScore = probability,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Float[Tensor, "batch inputs"]:
    """Return what each input of a classifier is worth to the score of a class: (B, K), signed.

        e_k = ([s(only k) - s(nothing)] + [s(all) - s(all but k)]) / 2

    the mean of what k adds alone and of what is lost without it; of two inputs their Shapley values, which sum to
    s(all) - s(nothing). What is not shown is filled by `infill`. Errors: ValueError for a classifier of one input.
    """
    if classifier.inputs is None:
        raise ValueError("which input carries the decision is asked of a classifier of several inputs; this has one")
    count = len(classifier.inputs)
    one_hot = torch.eye(count, device=images.device).view(count, 1, count, 1, 1)
    size = (len(images), count, *images.shape[-2:])

    whole = whole_logits(classifier, images, images_per_pass=images_per_pass) if clean is None else clean

    def shown(which: Tensor, sides: frozenset[str]) -> Outcome:
        return play_at_rest(
            classifier,
            images,
            which.expand(size),
            targets,
            infill=infill,
            clean=whole,
            sides=sides,
            images_per_pass=images_per_pass,
        )

    nothing = shown(torch.zeros_like(one_hot[0]), frozenset({KEPT}))
    asked = nothing.targets
    gain = score(nothing.clean, asked) - score(nothing.kept_logits, asked)
    effects = []
    for which in one_hot:
        outcome = shown(which, BOTH_SIDES)
        effects.append((gain + score(outcome.kept_logits, asked) - score(outcome.removed_logits, asked)) / 2)
    return torch.stack(effects, 1)


def shares_of(effects: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch inputs"]:
    """Return the share of each input, relu(e_k) / sum relu(e); equal ones where no input speaks for the class."""
    positive = effects.relu()
    total = positive.sum(1, keepdim=True)
    return torch.where(total > 0, positive / total.clamp_min(1e-12), torch.full_like(positive, 1 / effects.shape[1]))


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
