"""Recipes: an objective together with how the classifier takes part, as values.

| recipe | objective | opponent of the masker | features that the masker reads |
|---|---|---|---|
| reader | the final at (1, 15), see `at` | a copy of the classifier, trained alongside | the given classifier's |
| fix | the paper's final at (1, 10) | the classifier, fixed | the given classifier's |
| ca | the paper's final at (1, 15) | the classifier, trained alongside, "skip_update" | the trained classifier's |
| casm_f, casm_l, casm_fl, casm_l100, casm_l1000 | MaxEnt (O) | fixed, last, first + last, history | the opponent's |
| dabkowski_gal | margins of both sides, area^.3 | the classifier, fixed | the given classifier's |
| lmac, lmac_tuned | L-MAC's two stages, of the class predicted | the classifier, fixed | the given classifier's |

`reader` is the default: what CA gains over FIX comes from an opponent that learns to see masked pictures, and next to
nothing of it from features that drift (docs/training.md). So the copy is thrown away, and the masker explains the
given classifier, unchanged, in one pass.

Sources: Phang, Park & Geras (2020); Zolna, Geras & Cho (2018); Dabkowski & Gal (2017); Paissan et al. (2024).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from salmask.classifier import Classifier
from salmask.files import JSON
from salmask.masker import Masker
from salmask.objective import OBJECTIVES, Objective
from salmask.training.settings import Settings, check_kinds

__all__ = ["HISTORIES", "READERS", "RECIPES", "STATISTICS", "Recipe"]

HISTORIES = ("off", "skip_update", "sample")
STATISTICS = ("all", "clean", "held")
READERS = ("opponent", "given")
_AREAS = {"area_if_kept_right", "area_if_removed_wrong"}


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
        nothing: it works with its own, in training as in use, so that small batches are no trouble.
    reader: whose features the masker reads where the opponent is trained alongside: the "opponent"'s own (CA), or those
        of the "given" classifier, which stays as it is, while the opponent is a copy that is thrown away.
    areas_for: the number of classes that the weights of the conditional areas are meant for. With K classes they count
        log K / log areas_for times, as cross-entropy and entropy do, whose range is log K. None: as they stand.
    target: what a masker that is not told a class explains in training, "label" or "predicted", whatever the settings
        say; None: what they say.
    """

    objective: Objective
    fixed: bool = True
    history: str = "off"
    historic: float = 0.0
    pool_every: int = 100
    pool_size: int = 30
    statistics: str = "all"
    reader: str = "opponent"
    areas_for: int | None = None
    target: str | None = None
    name: str = field(default="own", compare=False)

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.history not in HISTORIES:
            raise ValueError(f"history is one of {', '.join(HISTORIES)}, got {self.history!r}")
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics is one of {', '.join(STATISTICS)}, got {self.statistics!r}")
        if not 0 <= self.historic <= 1:
            raise ValueError(f"historic is a probability, got {self.historic}")
        if self.pool_size < 1 or self.pool_every < 1:
            raise ValueError(
                f"pool_size and pool_every are whole numbers of at least 1, got {self.pool_size} and {self.pool_every}"
            )
        if self.reader not in READERS:
            raise ValueError(f"reader is one of {', '.join(READERS)}, got {self.reader!r}")
        if self.areas_for is not None and self.areas_for < 2:
            raise ValueError(f"areas_for is a number of classes, at least 2, got {self.areas_for}")
        if self.target not in (None, "label", "predicted"):
            raise ValueError(f"target is label or predicted, got {self.target!r}")

    def settled(self, settings: Settings, masker: Masker) -> Settings:
        """Return the settings as the recipe is carried out: it may say itself what is explained.

        A masker that is told the class explains what the settings say: told the decision alone, it would have no use
        for what it is told.
        """
        if self.target is None or masker.classes is not None:
            return settings
        return replace(settings, target=self.target)  # type: ignore[arg-type]

    @property
    def spares_classifier(self) -> bool:
        """Whether the given classifier is the same after the training as before."""
        return self.fixed or self.reader == "given"

    def check(self, classifier: Classifier) -> None:
        """Raise ValueError for a classifier that must learn and has no weight that may."""
        if not self.spares_classifier and not any(p.requires_grad for p in classifier.network.parameters()):
            raise ValueError(
                f"recipe {self.name} trains the classifier, and none of its weights requires gradients: "
                "unfreeze some (`requires_grad_(True)`), or use the recipe 'reader' or 'fix'"
            )

    def weighted(self, **weights: float) -> "Recipe":
        """Return the recipe with other weights of its terms; once an area has one, areas count as they stand."""
        areas_for = None if _AREAS & weights.keys() else self.areas_for
        return replace(self, objective=self.objective.with_weights(**weights), areas_for=areas_for)

    def at(self, num_classes: int) -> "Recipe":
        """Return the recipe as it is carried out for a classifier of so many classes, with the weights that count."""
        if self.areas_for is None:
            return self
        factor = math.log(max(2, num_classes)) / math.log(self.areas_for)
        terms = self.objective.terms
        return self.weighted(**{name: float(terms[name][0]) * factor for name in sorted(_AREAS & terms.keys())})

    def settings(self) -> JSON:
        """Return the recipe as JSON-able values."""
        explained = {} if self.target is None else {"target": self.target}
        return {
            "recipe": self.name,
            "weights": {name: float(weight) for name, (weight, _) in self.objective.terms.items()},
            "fixed": self.fixed,
            "history": self.history,
            "historic": self.historic,
            "pool_every": self.pool_every,
            "pool_size": self.pool_size,
            "statistics": self.statistics,
            "reader": self.reader,
            "areas_for": self.areas_for,
            **explained,
        }


_FIRST_ONLY = 10**9  # a pool that never stores again: the first classifier stays its only member


def _recipes() -> dict[str, Recipe]:
    alongside = {"fixed": False, "historic": 0.5}
    casm = {name: OBJECTIVES[name] for name in OBJECTIVES if name.startswith("casm")}
    table = {
        "reader": Recipe(OBJECTIVES["ca"], **alongside, history="skip_update", reader="given", areas_for=1000),  # type: ignore[arg-type]
        "fix": Recipe(OBJECTIVES["fix"]),
        "ca": Recipe(OBJECTIVES["ca"], **alongside, history="skip_update"),  # type: ignore[arg-type]
        "casm_f": Recipe(casm["casm_f"]),
        "casm_l": Recipe(casm["casm_l"], fixed=False),
        "casm_fl": Recipe(casm["casm_fl"], **alongside, history="sample", pool_every=_FIRST_ONLY),  # type: ignore[arg-type]
        "casm_l100": Recipe(casm["casm_l100"], **alongside, history="sample", pool_every=100),  # type: ignore[arg-type]
        "casm_l1000": Recipe(casm["casm_l1000"], **alongside, history="sample", pool_every=1000),  # type: ignore[arg-type]
        "dabkowski_gal": Recipe(OBJECTIVES["dabkowski_gal"]),
        "lmac": Recipe(OBJECTIVES["lmac"], target="predicted"),
        "lmac_tuned": Recipe(OBJECTIVES["lmac_tuned"], target="predicted"),
    }
    return {name: replace(recipe, name=name) for name, recipe in table.items()}


RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes())
"""Recipes by name."""
