"""The game and its score: what a mask is asked for.

    outcome   = (m, y, f(x), f(keep(x, m)), f(remove(x, m)))        made by `play`
    objective = sum_k w_k * term_k(outcome)                         one value per image

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
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.masking import keep, remove
from salmask.types import Images, Infill, Logits, Masks, Targets, Values

__all__ = [
    "KEPT",
    "KEPT_CONFIDENCE",
    "OBJECTIVES",
    "REMOVED",
    "REMOVED_CONFIDENCE",
    "Objective",
    "Outcome",
    "Score",
    "Term",
    "area",
    "area_if_kept_right",
    "area_if_removed_wrong",
    "area_root",
    "area_to",
    "area_weighted",
    "casm_objective",
    "dabkowski_gal",
    "divergence_from_prior",
    "kept_confidence",
    "max_class_kept",
    "max_entropy_removed",
    "min_class_removed",
    "min_entropy_kept",
    "play",
    "reads",
    "removed_confidence",
    "total_variation",
    "total_variation_bordered",
    "two_sided",
    "variation",
]

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


def _entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits, validate_args=False).entropy()


def reads(*sides: str) -> Callable[[Term], Term]:
    """Mark a term with the sides whose logits it reads, so that no other side need be played."""

    def mark(term: Term) -> Term:
        term.sides = frozenset(sides)  # type: ignore[attr-defined]
        return term

    return mark


# What the pictures must show


@reads(KEPT)
def max_class_kept(outcome: Outcome) -> Values:
    """-log p_y of the kept picture: what is kept must carry the class."""
    return F.cross_entropy(outcome.kept_logits, outcome.targets, reduction="none")


@reads(KEPT)
def min_entropy_kept(outcome: Outcome) -> Values:
    """c * H of the kept picture: it must be decided, whatever the decision."""
    return outcome.clean_right * _entropy(outcome.kept_logits)


@reads(REMOVED)
def min_class_removed(outcome: Outcome) -> Values:
    """Log p_y of the removed picture, unbounded below: the class must be gone."""
    return -F.cross_entropy(outcome.removed_logits, outcome.targets, reduction="none")


@reads(REMOVED)
def max_entropy_removed(outcome: Outcome) -> Values:
    """-c * H of the removed picture: nothing must be left to tell."""
    return -(outcome.clean_right * _entropy(outcome.removed_logits))


def kept_confidence(ceiling: float) -> Term:
    """relu(ceiling - margin) of the kept picture, margin = l_y - max of the others (Dabkowski & Gal, 2017)."""

    @reads(KEPT)
    def term(outcome: Outcome) -> Values:
        return F.relu(ceiling - _margin(outcome.kept_logits, outcome.targets))

    return term


def removed_confidence(floor: float) -> Term:
    """relu(floor + margin) of the removed picture, margin = l_y - max of the others (Dabkowski & Gal, 2017)."""

    @reads(REMOVED)
    def term(outcome: Outcome) -> Values:
        return F.relu(floor + _margin(outcome.removed_logits, outcome.targets))

    return term


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    own = logits.gather(1, targets[:, None])[:, 0]
    return own - logits.scatter(1, targets[:, None], -torch.inf).amax(1)


KEPT_CONFIDENCE, REMOVED_CONFIDENCE = kept_confidence(1.0), removed_confidence(5.0)
"""The margins of Dabkowski & Gal's released code."""


def divergence_from_prior(
    prior: Tensor, *, side: str = REMOVED, forward: bool = True, when_clean_right: bool = True
) -> Term:
    """KL(prior || p) ("forward") or KL(p || prior) of one side: what is hidden must leave only the prior.

    prior: (K,) positive, sums to one; uniform with the forward divergence it ranks like max_entropy_removed.
    """
    if prior.ndim != 1 or bool((prior <= 0).any()) or abs(float(prior.sum()) - 1) > 1e-4:
        raise ValueError(f"a prior is (K,) positive probabilities that sum to 1, came sum {float(prior.sum()):.4g}")

    @reads(side)
    def term(outcome: Outcome) -> Values:
        log_q = (outcome.kept_logits if side == KEPT else outcome.removed_logits).log_softmax(1)
        log_pi = prior.to(log_q).log().expand_as(log_q)
        pair = (log_q, log_pi) if forward else (log_pi, log_q)
        value = F.kl_div(*pair, log_target=True, reduction="none").sum(1)
        return outcome.clean_right * value if when_clean_right else value

    return term


# What the mask must be


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
    """abs(mean m - target)^power; target: a number or one per image, in [0, 1]."""

    @reads()
    def term(outcome: Outcome) -> Values:
        return (area(outcome) - target).abs().pow(power)

    return term


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

    A sum over pixels, not a mean; corner pixels lie on two borders and count twice.
    """
    m = masks[:, 0]
    inner = m.diff(dim=2).abs().pow(power).sum((1, 2)) + m.diff(dim=1).abs().pow(power).sum((1, 2))
    edges = (m[:, 0], m[:, -1], m[:, :, 0], m[:, :, -1])
    return (inner + border * sum(edge.abs().pow(power).sum(1) for edge in edges)) / 2


# Terms together


class Score(NamedTuple):
    """An objective's value per image, and each of its terms before weighting."""

    total: Values
    terms: dict[str, Values]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms: {name: (weight, term)}. Call it with an Outcome, get a Score.

    `with_weights(name=w, ...)` sets weights anew.
    """

    terms: Mapping[str, tuple[float | Tensor, Term]]
    sides: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an objective needs at least one term")
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        both = frozenset({KEPT, REMOVED})
        sides = frozenset().union(*(getattr(term, "sides", both) for _, term in self.terms.values()))
        object.__setattr__(self, "sides", sides)

    def __call__(self, outcome: Outcome) -> Score:
        """Return the total per image and every term by name."""
        values = {name: term(outcome) for name, (_, term) in self.terms.items()}
        total = torch.stack([self.terms[name][0] * value for name, value in values.items()]).sum(0)
        return Score(total, values)

    def with_weights(self, **weights: float | Tensor) -> "Objective":
        """Return the same objective with some weights set anew; an unknown name is an error."""
        unknown = weights.keys() - self.terms.keys()
        if unknown:
            raise ValueError(f"no term {sorted(unknown)[0]!r}; the objective has {', '.join(self.terms)}")
        return Objective({name: (weights.get(name, w), term) for name, (w, term) in self.terms.items()})


def two_sided(*, area_in: float = 1.0, area_out: float = 10.0, tv: float = 0.001) -> Objective:
    """MaxClass (I) + MaxEnt (O) with conditional areas and TV once a side: the paper's final objective.

    FIX is (1, 10), CA is (1, 15) on ImageNet. TV counts once per active side, so its weight is 2 * tv.
    """
    return Objective(
        {
            "max_class_kept": (1.0, max_class_kept),
            "max_entropy_removed": (1.0, max_entropy_removed),
            "area_if_kept_right": (area_in, area_if_kept_right),
            "area_if_removed_wrong": (area_out, area_if_removed_wrong),
            "total_variation": (2 * tv, total_variation),
        }
    )


def area_weighted(*, area_weight: float = 1.0, tv: float = 0.001) -> Objective:
    """MaxClass (I) + MaxEnt (O) with the plain area, which counts on every image: what `auto` puts a price on."""
    return Objective(
        {
            "max_class_kept": (1.0, max_class_kept),
            "max_entropy_removed": (1.0, max_entropy_removed),
            "area": (area_weight, area),
            "total_variation": (2 * tv, total_variation),
        }
    )


def casm_objective(area_out: float, *, tv: float = 0.001) -> Objective:
    """MaxEnt (O) alone with its conditional area (Zolna, Geras & Cho, 2018)."""
    return Objective(
        {
            "max_entropy_removed": (1.0, max_entropy_removed),
            "area_if_removed_wrong": (area_out, area_if_removed_wrong),
            "total_variation": (tv, total_variation),
        }
    )


def dabkowski_gal() -> Objective:
    """Destroyer + .3 preserver + 8 * area^.3 + .005 * TV with margin losses (Dabkowski & Gal, 2017)."""
    return Objective(
        {
            "removed_confidence": (1.0, REMOVED_CONFIDENCE),
            "kept_confidence": (0.3, KEPT_CONFIDENCE),
            "area_root": (8.0, area_root),
            "total_variation": (0.005, total_variation),
        }
    )


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "fix": two_sided(area_in=1.0, area_out=10.0),
        "ca": two_sided(area_in=1.0, area_out=15.0),
        "casm_f": casm_objective(2.5),
        "casm_l": casm_objective(14.0),
        "casm_fl": casm_objective(7.5),
        "casm_l100": casm_objective(10.0),
        "casm_l1000": casm_objective(10.0),
        "dabkowski_gal": dabkowski_gal(),
    }
)
"""Published objectives by name; the training regime that goes with each is a recipe of `train`."""
