"""Weighted terms, and the published objectives by name.

    objective = sum_k w_k * term_k(outcome)                         one value per image

The trainer takes the mean over the batch. The terms are in `terms`, the outcome is made by `outcome.play`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from salmask.outcome import KEPT, REMOVED, Outcome, Term
from salmask.terms import (
    KEPT_CONFIDENCE,
    REMOVED_CONFIDENCE,
    area,
    area_if_kept_right,
    area_if_removed_wrong,
    area_root,
    area_unless_alike,
    energy_guidance,
    max_class_kept,
    max_entropy_removed,
    min_class_removed,
    total_variation,
)
from salmask.types import Values

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveValue",
    "area_weighted",
    "casm_objective",
    "dabkowski_gal",
    "lmac_objective",
    "lmac_tuned",
    "two_sided",
]


# Terms together


class ObjectiveValue(NamedTuple):
    """An objective's value per image, and each of its terms before weighting."""

    total: Values
    terms: dict[str, Values]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms: {name: (weight, term)}. Call it with an Outcome, get a ObjectiveValue.

    `with_weights(name=w, ...)` sets weights anew.
    """

    terms: Mapping[str, tuple[float | Tensor, Term]]
    sides: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise ValueError(
                f"an objective needs at least one term, as {{name: (weight, term)}}, got {self.terms!r}"[:200]
            )
        for name, pair in self.terms.items():
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1])):
                raise ValueError(
                    f"expected (weight, term) of a finite number and a function for {name!r}, got {pair!r}"
                )
            if not _is_weight(pair[0]):
                raise ValueError(f"the weight of {name} is a finite number, got {pair[0]!r}")
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        both = frozenset({KEPT, REMOVED})
        sides = frozenset().union(*(getattr(term, "sides", both) for _, term in self.terms.values()))
        object.__setattr__(self, "sides", sides)

    def __call__(self, outcome: Outcome) -> ObjectiveValue:
        """Return the total per image and every term by name."""
        values = {name: term(outcome) for name, (_, term) in self.terms.items()}
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape != (len(outcome.masks),):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the term {name!r} gives {got}: expected one value an image, ({len(outcome.masks)},)")
        total = torch.stack([self.terms[name][0] * value for name, value in values.items()]).sum(0)
        return ObjectiveValue(total, values)

    def with_weights(self, **weights: float | Tensor) -> "Objective":
        """Return the same objective with some weights set anew; an unknown name is an error."""
        unknown = weights.keys() - self.terms.keys()
        if unknown:
            raise ValueError(f"no term {sorted(unknown)[0]!r}; the objective has {', '.join(self.terms)}")
        return Objective({name: (weights.get(name, w), term) for name, (w, term) in self.terms.items()})


def _is_weight(weight: object) -> bool:
    return isinstance(weight, Tensor) or (isinstance(weight, Real) and isfinite(weight))


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
    """MaxClass (I) + MaxEnt (O) with the plain area, which counts on every image."""
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


def lmac_objective() -> Objective:
    """4 * cross-entropy kept - .2 * cross-entropy removed + .4 * area, of the class predicted (L-MAC).

    Terms are values per picture, of which the trainer takes the mean. The released code adds the area, averaged over
    the batch already, once for each of 16 sounds, so that its area has weight 6.4 beside the same cross-entropies;
    that is `training.released.as_released`. Source: Paissan, Ravanelli & Subakan (2024).
    """
    return Objective(
        {
            "max_class_kept": (4.0, max_class_kept),
            "min_class_removed": (0.2, min_class_removed),
            "area": (0.4, area),
        }
    )


def lmac_tuned(guidance: float = 4.0) -> Objective:
    """L-MAC's second stage: masks that are like the picture are guided by its loud parts instead of by area."""
    return Objective(
        {
            "max_class_kept": (4.0, max_class_kept),
            "min_class_removed": (0.2, min_class_removed),
            "area_unless_alike": (0.4, area_unless_alike),
            "energy_guidance": (guidance, energy_guidance),
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
        "lmac": lmac_objective(),
        "lmac_tuned": lmac_tuned(),
    }
)
"""Published objectives by name; the training regime that goes with each is a recipe of `train`."""
