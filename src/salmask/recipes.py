"""Recipes: an objective together with how the classifier takes part, as values.

| recipe | objective | classifier |
|---|---|---|
| auto | MaxClass (I) + MaxEnt (O), area steered by `Balance` | fixed |
| auto_ca | the same | trained alongside |
| fix, ca | the paper's finals at its area weights (1, 10) and (1, 15) | fixed; alongside, "skip_update" |
| casm_f, casm_l, casm_fl, casm_l100, casm_l1000 | MaxEnt (O) | fixed, last, first + last, history |
| dabkowski_gal | margins of both sides, area^.3 | fixed |

Sources: Phang, Park & Geras (2020); Zolna, Geras & Cho (2018); Dabkowski & Gal (2017).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from salmask.objective import OBJECTIVES, Objective, Outcome, area_weighted

__all__ = ["HISTORIES", "RECIPES", "Balance", "Recipe"]

HISTORIES = ("off", "skip_update", "sample")


@dataclass(frozen=True)
class Balance:
    r"""Multipliers that find the area weights during training, without a box.

    What the mask must achieve is stated as shares, over the images that the classifier gets right:

        minimise E[mean m] + TV   subject to   P(kept picture right) >= kept,   P(removed picture wrong) >= removed.

    The Lagrangian is A + u_in (kept - S_in) + u_out (removed - S_out), with S the shares. S has no gradient, so
    the masker descends on smooth stand-ins that fall where S rises (a proxy Lagrangian: Cotter et al., 2019),
    each divided by log K, their value for a classifier that knows nothing of its K classes:

        L = [ A + u_in * CE(kept) / log K - u_out * H(removed) / log K ] / (1 + u_in + u_out),

    while the multipliers ascend on the true shares, u <- u * exp(rate * (stated share - S)), which keeps them
    positive (exponentiated gradient). A constraint that holds lets its multiplier decay, and the mask shrinks
    until it binds; one that fails grows until it holds. Dividing by the sum bounds the gradient.
    Nothing depends on the number of classes, the size of objects or their boxes.

    kept, removed: stated shares in (0, 1). rate: per batch, on the log of a multiplier. bounds: of a multiplier.
    """

    kept: float = 0.9
    removed: float = 0.9
    rate: float = 0.1
    bounds: tuple[float, float] = (1e-2, 1e3)

    def __post_init__(self) -> None:
        for name in ("kept", "removed"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Balance.{name} is a share in (0, 1), came {getattr(self, name)}")

    def start(self, device: torch.device) -> Tensor:
        """Return the log multipliers (in, out) to begin with: both 1."""
        return torch.zeros(2, device=device)

    def weigh(self, objective: Objective, log_multipliers: Tensor, classes: int) -> Objective:
        """Return the objective under these multipliers."""
        inside, outside = log_multipliers.exp().unbind()
        scale = 1 / (1 + inside + outside)
        tv = objective.terms["total_variation"][0]
        return objective.with_weights(
            max_class_kept=inside * scale / math.log(classes),
            max_entropy_removed=outside * scale / math.log(classes),
            area=scale,
            total_variation=tv * scale,
        )

    @torch.no_grad()
    def step(self, log_multipliers: Tensor, outcome: Outcome) -> Tensor:
        """Return the multipliers after one batch; a batch that the classifier gets all wrong says nothing."""
        right = outcome.clean_right
        count = right.sum().clamp_min(1)
        shares = torch.stack([(outcome.kept_right & right).sum() / count, outcome.removed_wrong.sum() / count])
        stated = log_multipliers.new_tensor([self.kept, self.removed])
        moved = log_multipliers + self.rate * (stated - shares) * right.any()
        return moved.clamp(*(math.log(bound) for bound in self.bounds))


@dataclass(frozen=True)
class Recipe:
    """An objective and the part that the classifier plays.

    fixed: the classifier is held as it is (FIX), else it is trained alongside (CA).
    history: which classifier meets the masked pictures, with probability `historic` another than the current:
        "off" always the current one; "skip_update" the current one, but it does not learn from them then (what
        the paper's released code does); "sample" a stored one (what is described; CASM).
    pool_every, pool_size: store the classifier every so many batches, at most so many; the first one is stored at
        the start. A full pool replaces a random one.
    balance: steer the area weights; needs the terms of `objective.area_weighted`.
    """

    objective: Objective
    fixed: bool = True
    history: str = "off"
    historic: float = 0.0
    pool_every: int = 100
    pool_size: int = 30
    balance: Balance | None = None
    name: str = field(default="own", compare=False)

    def __post_init__(self) -> None:
        if self.history not in HISTORIES:
            raise ValueError(f"history is one of {', '.join(HISTORIES)}, came {self.history!r}")
        if not 0 <= self.historic <= 1:
            raise ValueError(f"historic is a probability, came {self.historic}")
        needed = {"max_class_kept", "max_entropy_removed", "area", "total_variation"}
        if self.balance is not None and not needed <= self.objective.terms.keys():
            raise ValueError(f"a balanced recipe needs the terms {', '.join(sorted(needed))}")

    def weighted(self, **weights: float) -> "Recipe":
        """Return the recipe with other weights of its terms."""
        return replace(self, objective=self.objective.with_weights(**weights))

    def settings(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values."""
        return {
            "recipe": self.name,
            "weights": {name: float(weight) for name, (weight, _) in self.objective.terms.items()},
            "fixed": self.fixed,
            "history": self.history,
            "historic": self.historic,
            "pool_every": self.pool_every,
            "pool_size": self.pool_size,
            "balance": None if self.balance is None else asdict(self.balance),
        }


_FIRST_ONLY = 10**9  # a pool that never stores again: the first classifier stays its only member


def _recipes() -> dict[str, Recipe]:
    alongside = {"fixed": False, "historic": 0.5}
    casm = {name: OBJECTIVES[name] for name in OBJECTIVES if name.startswith("casm")}
    balanced = Recipe(area_weighted(), balance=Balance())
    table = {
        "auto": balanced,
        "auto_ca": replace(balanced, **alongside, history="skip_update"),  # type: ignore[arg-type]
        "fix": Recipe(OBJECTIVES["fix"]),
        "ca": Recipe(OBJECTIVES["ca"], **alongside, history="skip_update"),  # type: ignore[arg-type]
        "casm_f": Recipe(casm["casm_f"]),
        "casm_l": Recipe(casm["casm_l"], fixed=False),
        "casm_fl": Recipe(casm["casm_fl"], **alongside, history="sample", pool_every=_FIRST_ONLY),  # type: ignore[arg-type]
        "casm_l100": Recipe(casm["casm_l100"], **alongside, history="sample", pool_every=100),  # type: ignore[arg-type]
        "casm_l1000": Recipe(casm["casm_l1000"], **alongside, history="sample", pool_every=1000),  # type: ignore[arg-type]
        "dabkowski_gal": Recipe(OBJECTIVES["dabkowski_gal"]),
    }
    return {name: replace(recipe, name=name) for name, recipe in table.items()}


RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes())
"""Recipes by name."""
