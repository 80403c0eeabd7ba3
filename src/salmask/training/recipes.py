"""Recipes: an objective together with how the classifier takes part, as values.

| recipe | objective | classifier |
|---|---|---|
| auto | MaxClass (I) + MaxEnt (O), price of area steered by `Balance` | fixed |
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

from salmask.objective import OBJECTIVES, Objective, area_weighted
from salmask.outcome import Outcome

__all__ = ["HISTORIES", "RECIPES", "Balance", "Recipe"]

HISTORIES = ("off", "skip_update", "sample")
STATISTICS = ("all", "clean", "held")


@dataclass(frozen=True)
class Balance:
    r"""A price of area that is found during training, without a box.

    What the mask must achieve is stated as shares, over the images that the classifier gets right:

        minimise area   subject to   P(kept picture right) >= r_in,   P(removed picture wrong) >= r_out,

    with 0 at what a guess among K classes achieves and 1 at always: r_in = 1/K + (1 - 1/K) kept and
    r_out = (1 - 1/K) removed, so that the same settings are feasible, and mean the same, for any K.
    Shares have no gradient, so the masker descends on smooth stand-ins that fall where they rise (a proxy Lagrangian:
    Cotter et al., 2019), the paper's two terms divided by log K, their value for a classifier that knows nothing.
    Both constraints are one, min(S_in - r_in, S_out - r_out) >= 0, with one multiplier u. Two multipliers would let
    the one of the easier constraint fall to nothing, and the mask would be made by one side alone: that was
    tried, and costs localization. Divided by u, with the price w = 1 / u, the Lagrangian is

        L = [ CE(kept) - H(removed) ] / log K + w (A + TV).

    The multiplier ascends, so the price falls while a constraint fails and rises while both hold:

        log w = I + gain s,   I <- I + rate s,   s = min(S_in - r_in, S_out - r_out).

    The sum I is exponentiated gradient ascent, which keeps w positive; the term with `gain` answers at once and damps
    the overshooting of the sum (Stooke, Achiam & Abbeel, 2020). S is a running mean over batches. The area counts on
    every image: conditional areas, as in the published objective, leave a mask that has saturated at ones for good.
    Nothing is asked of the size of objects or their boxes.

    kept, removed: stated shares in (0, 1), corrected for chance. rate, gain: per batch, on log w. memory: of the
    running shares. first: w to begin with. bounds: of w.
    """

    kept: float = 0.7
    removed: float = 0.75
    rate: float = 0.3
    gain: float = 5.0
    memory: float = 0.8
    first: float = 1.0
    bounds: tuple[float, float] = (1e-2, 1e2)

    def __post_init__(self) -> None:
        for name in ("kept", "removed"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Balance.{name} is a share in (0, 1), came {getattr(self, name)}")

    def start(self, classes: int, device: torch.device) -> Tensor:
        """Return the state to begin with, (3,): the sum I and the shares S of (in, out), as stated."""
        return torch.cat([torch.tensor([math.log(self.first)]), self._stated(classes)]).to(device)

    def price(self, state: Tensor, classes: int) -> Tensor:
        """Return w of a state."""
        return (state[0] + self.gain * self._slack(state[1:], classes)).clamp(*self._log_bounds).exp()

    def weigh(self, objective: Objective, state: Tensor, classes: int) -> Objective:
        """Return the objective at the price of a state."""
        price = self.price(state, classes)
        return objective.with_weights(
            max_class_kept=1 / math.log(classes),
            max_entropy_removed=1 / math.log(classes),
            area=price,
            total_variation=objective.terms["total_variation"][0] * price,
        )

    @torch.no_grad()
    def step(self, state: Tensor, outcome: Outcome) -> Tensor:
        """Return the state after one batch; a batch that the classifier gets all wrong says nothing."""
        right = outcome.clean_right
        count = right.sum().clamp_min(1)
        seen = torch.stack([(outcome.kept_right & right).sum() / count, outcome.removed_wrong.sum() / count])
        shares = torch.lerp(seen.to(state), state[1:], self.memory)
        total = (state[0] + self.rate * self._slack(shares, outcome.clean.shape[1])).clamp(*self._log_bounds)
        return torch.where(right.any(), torch.cat([total[None], shares]), state)

    def _slack(self, shares: Tensor, classes: int) -> Tensor:
        return (shares - self._stated(classes).to(shares)).min()

    def _stated(self, classes: int) -> Tensor:
        chance = 1 / classes
        return torch.tensor([chance + (1 - chance) * self.kept, (1 - chance) * self.removed])

    @property
    def _log_bounds(self) -> tuple[float, float]:
        return math.log(self.bounds[0]), math.log(self.bounds[1])


@dataclass(frozen=True)
class Recipe:
    """An objective and the part that the classifier plays.

    fixed: the classifier is held as it is (FIX), else it is trained alongside (CA).
    history: which classifier meets the masked pictures, with probability `historic` another than the current:
        "off" always the current one; "skip_update" the current one, but it does not learn from them then (what
        the paper's released code does); "sample" a stored one (what is described; CASM).
    pool_every, pool_size: store the classifier every so many batches, at most so many; the first one is stored at
        the start. A full pool replaces a random one.
    statistics: what the batch normalisation of a classifier trained alongside remembers, and so what the masker reads
        in use: "all", of clean, kept and removed pictures (the released code); "clean", of clean ones alone; "held",
        nothing: it works with those that it came with, in training as in use, so that small batches are no trouble.
    balance: steer the area weights; needs the terms of `objective.area_weighted`.
    """

    objective: Objective
    fixed: bool = True
    history: str = "off"
    historic: float = 0.0
    pool_every: int = 100
    pool_size: int = 30
    statistics: str = "all"
    balance: Balance | None = None
    name: str = field(default="own", compare=False)

    def __post_init__(self) -> None:
        if self.history not in HISTORIES:
            raise ValueError(f"history is one of {', '.join(HISTORIES)}, came {self.history!r}")
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics is one of {', '.join(STATISTICS)}, came {self.statistics!r}")
        if not 0 <= self.historic <= 1:
            raise ValueError(f"historic is a probability, came {self.historic}")
        needed = set(area_weighted().terms)
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
            "statistics": self.statistics,
            "balance": None if self.balance is None else asdict(self.balance),
        }


_FIRST_ONLY = 10**9  # a pool that never stores again: the first classifier stays its only member


def _recipes() -> dict[str, Recipe]:
    alongside = {"fixed": False, "historic": 0.5}
    casm = {name: OBJECTIVES[name] for name in OBJECTIVES if name.startswith("casm")}
    balanced = Recipe(area_weighted(), balance=Balance())
    table = {
        "auto": balanced,
        "auto_ca": replace(balanced, **alongside, history="skip_update", statistics="held"),  # type: ignore[arg-type]
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
