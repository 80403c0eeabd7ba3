"""One way to train a masker: every setting of the study as one value."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from salmask import terms
from salmask.data import Labelled, shuffled_labels, subset
from salmask.masker import HEADS
from salmask.objective import Objective
from salmask.outcome import REMOVED, Outcome, Term, reads
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.run import Loaded
from salmask.types import Values

__all__ = ["ORIGINAL", "TERMS", "Reading", "Variant", "chosen_data", "content", "masker_options", "read_settings"]


@reads(REMOVED)
def divergence_from_uniform(outcome: Outcome) -> Values:
    """KL(uniform || p) of the removed picture, where the whole one is right: `divergence_from_prior` at 1 / K."""
    classes = outcome.clean.shape[1]
    return terms.divergence_from_prior(torch.full((classes,), 1 / classes))(outcome)


TERMS: Mapping[str, Term] = MappingProxyType(
    {
        "max_class_kept": terms.max_class_kept,
        "min_entropy_kept": terms.min_entropy_kept,
        "min_class_removed": terms.min_class_removed,
        "max_entropy_removed": terms.max_entropy_removed,
        "divergence_from_uniform": divergence_from_uniform,
        "kept_confidence": terms.KEPT_CONFIDENCE,
        "removed_confidence": terms.REMOVED_CONFIDENCE,
        "area_if_kept_right": terms.area_if_kept_right,
        "area_if_removed_wrong": terms.area_if_removed_wrong,
        "area": terms.area,
        "area_root": terms.area_root,
        "total_variation": terms.total_variation,
    }
)
"""Terms of an objective, by name."""


ORIGINAL = "original"


class Reading(NamedTuple):
    """How a trained masker is read: see `Variant`."""

    top: float | None = None
    area: float | None = None
    reads: str | None = None

    def word(self) -> str:
        """Return a word that may be part of a file's name; "" for a plain masker."""
        words = [] if self.top is None else [f"top{self.top:g}"]
        words += [] if self.area is None else [f"area{self.area:g}"]
        if self.reads is not None:
            words += [self.reads if self.reads == ORIGINAL else hashlib.sha256(self.reads.encode()).hexdigest()[:8]]
        return "".join(f"-{word}" for word in words)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One masker: everything that decides what it learns and how it is read.

    recipe: of `recipes.RECIPES`. terms: (name, weight) pairs that replace its objective. weights: (name, weight)
    pairs set anew in it. alongside: True for a classifier that is trained too (CA), None as the recipe has it.
    history, historic, pool_every, pool_size, statistics: of the recipe, where not None.
    layers: maps that are read; None for the study's own. head: "sigmoid" or "concrete" (Gumbel), with temperature,
    hard and learnable. area_condition, class_condition: what else the masker is told. area_power: 1 or 2, of
    abs(mean m - p). infill_kept, infill_removed: names or files as in `specs.load_infill`; remask: as the released
    infillers do. per_class, classes: size of the training data; shuffled: with random labels.
    tv_border: weight of the borders in the total variation; 0 for neighbours alone.
    images: shown in training, times the study's own number. lr: times the study's own.
    top: binary masks of the top share of pixels. area: the target area that a conditioned masker is read with.
    reads: the classifier whose maps are read, where it is not the one of the training: "original", the study's own
    as it was before a training alongside, or a SPEC.
    """

    recipe: str = "fix"
    terms: tuple[tuple[str, float], ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    alongside: bool | None = None
    history: str | None = None
    historic: float | None = None
    pool_every: int | None = None
    pool_size: int | None = None
    statistics: str | None = None
    layers: tuple[int, ...] | None = None
    upsample: str = "nearest"
    head: str = "sigmoid"
    temperature: float = 0.1
    hard: bool = True
    learnable: bool = False
    area_condition: bool = False
    area_power: float = 1.0
    class_condition: bool = False
    infill_kept: str = "mean"
    infill_removed: str = "mean"
    remask: bool = False
    per_class: int | None = None
    classes: int | None = None
    shuffled: bool = False
    tv_border: float = 0.3
    images: float = 1.0
    lr: float = 1.0
    top: float | None = None
    area: float | None = None
    reads: str | None = None

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"no recipe {self.recipe!r}: expected one of {', '.join(RECIPES)}")
        unknown = [name for name, _ in (*self.terms, *self.weights) if name not in TERMS]
        if unknown:
            raise ValueError(f"no term {unknown[0]!r}: expected one of {', '.join(TERMS)}")
        for name in ("terms", "weights"):  # lists, as JSON has them, become values that can be hashed
            object.__setattr__(self, name, tuple((term, float(weight)) for term, weight in getattr(self, name)))
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.head not in HEADS:
            raise ValueError(f"no head {self.head!r}: expected one of {', '.join(HEADS)}")
        if (self.area is not None) and not self.area_condition:
            raise ValueError("area is how a masker with area_condition is read: set both")
        self.build_recipe()  # a weight of a term that the recipe does not have is an error now, not in every job

    def build_recipe(self) -> Recipe:
        """Return the recipe with everything that the variant sets anew."""
        recipe = RECIPES[self.recipe]
        if self.terms:
            named = {name: (weight, TERMS[name]) for name, weight in self.terms}
            recipe = replace(recipe, objective=Objective(named), balance=None)
        if self.weights:
            recipe = recipe.weighted(**dict(self.weights))
        if self.area_power != 1.0:
            recipe = replace(recipe, objective=_powered(recipe.objective, self.area_power))
        if self.tv_border != 0.3:
            recipe = replace(recipe, objective=_bordered(recipe.objective, self.tv_border))
        if self.alongside is not None:
            recipe = replace(recipe, fixed=not self.alongside)
        given = {name: getattr(self, name) for name in ("history", "historic", "pool_every", "pool_size", "statistics")}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def trained(self) -> "Variant":
        """Return the variant without what matters only when it is read: maskers that differ there are one."""
        return replace(self, top=None, area=None, reads=None)

    def reading(self) -> "Reading":
        """Return how it is read."""
        return Reading(self.top, self.area, self.reads)

    def settings(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON has it."""
        return content(self)


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments of `Variant` of texts KEY=VALUE, whose values are JSON where they can be.

    terms.NAME=WEIGHT and weights.NAME=WEIGHT gather. Errors: ValueError for another key or form.
    """
    known = [one.name for one in fields(Variant)]
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, term = key.partition(".")
        if not equals or name not in known or bool(dot) != (name in ("terms", "weights")):
            raise ValueError(f"expected settings KEY=VALUE, KEY of {', '.join(known)}, came {text!r}")
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        wanted = float if dot else _KINDS.get(type(getattr(Variant, name)))
        if wanted is not None and not _is(read, wanted):
            raise ValueError(f"{key} is {_KIND_NAMES[wanted]}, came {value!r}")
        if dot:
            given.setdefault(name, []).append((term, read))
        else:
            given[name] = read
    return given


_KINDS: Mapping[type, type] = MappingProxyType({bool: bool, float: float, str: str})  # other defaults are None


_KIND_NAMES: Mapping[type, str] = MappingProxyType({bool: "true or false", float: "a number", str: "a word"})


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) or (kind is float and isinstance(value, int) and not isinstance(value, bool))


def content(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not at their default."""
    return {one.name: getattr(value, one.name) for one in fields(value) if getattr(value, one.name) != one.default}


def _powered(objective: Objective, power: float) -> Objective:
    def raised(term: Callable[..., Any]) -> Term:
        @reads(*term.sides)  # type: ignore[attr-defined]
        def measured(outcome: Outcome) -> Values:
            return term(outcome, power=power)

        return measured

    conditional = {terms.area_if_kept_right, terms.area_if_removed_wrong}
    return Objective(
        {name: (w, raised(term) if term in conditional else term) for name, (w, term) in objective.terms.items()}
    )


def _bordered(objective: Objective, border: float) -> Objective:
    term = terms.total_variation_bordered(border)
    return Objective(
        {name: (w, term if old is terms.total_variation else old) for name, (w, old) in objective.terms.items()}
    )


def chosen_data(variant: Variant, train_set: Labelled, seed: int) -> Labelled:
    """Return the part of a training set that a variant learns from, with its labels."""
    dataset = shuffled_labels(train_set, seed=seed) if variant.shuffled else train_set
    if variant.per_class is None and variant.classes is None:
        return dataset
    dataset = subset(dataset, per_class=variant.per_class, classes=variant.classes, seed=seed)
    return dataset if variant.classes is None else _OldNumbers(dataset, train_set.classes)


def masker_options(variant: Variant, loaded: Loaded, layers: Sequence[int] | None) -> dict[str, Any]:
    """Return what a variant's `Masker` is made with. layers: for a variant that does not say; None: the two deepest."""
    head: dict[str, Any] = {}
    if variant.head != "sigmoid":
        head = {"temperature": variant.temperature, "hard": variant.hard, "learnable": variant.learnable}
    return {
        "layers": variant.layers or layers,
        "upsample": variant.upsample,
        "head": HEADS[variant.head](**head),
        "area_condition": variant.area_condition,
        "classes": loaded.classifier.num_classes if variant.class_condition else None,
    }


class _OldNumbers:
    """Some classes of a data set, under the numbers that all of them have: the classifier still tells all apart."""

    def __init__(self, chosen: Labelled, classes: list[str]) -> None:
        number = {name: place for place, name in enumerate(classes)}
        self.chosen, self.ids, self.classes = chosen, chosen.ids, classes
        self.targets = [number[chosen.classes[target]] for target in chosen.targets]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        return replace(self.chosen[index], target=self.targets[index])
