"""One way to train a masker: what it learns, what its masks are like, from which examples, and how it is read.

Two variants are the same if their settings are: `Variant.settings` is flat, and leaves out what is at its default,
so that a new field changes no old job.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from types import MappingProxyType

import torch

from salmask import terms
from salmask.data import (
    Batch,
    CropFlip,
    Labelled,
    SampleTransform,
    Subset,
    cached,
    shuffled_labels,
    subset,
    training_batches,
)
from salmask.data.numbered import Numbered
from salmask.data.resident import bytes_kept, resident
from salmask.data.streams import WHOLE, Share
from salmask.data.unreadable import first_read
from salmask.files import JSON
from salmask.masker import HEADS
from salmask.objective import Objective
from salmask.outcome import REMOVED, Outcome, Term, reads
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.run import Loaded
from salmask.training.settings import Examples, Learns, Mask, ReadAs, Settings, Target, check_kind, kinds_of
from salmask.types import Values

__all__ = [
    "TERMS",
    "Variant",
    "build_recipe",
    "chosen_data",
    "decoded_once",
    "masker_options",
    "read_settings",
    "stream_of",
]


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
        "area_unless_alike": terms.area_unless_alike,
        "energy_guidance": terms.energy_guidance,
        "total_variation": terms.total_variation,
    }
)
"""Terms of an objective, by name."""


_RECORDS: Mapping[str, type] = MappingProxyType({"learns": Learns, "mask": Mask, "data": Examples, "read": ReadAs})
_OWN: Mapping[str, object] = MappingProxyType({"images": float, "lr": float, "target": Target})
_RECIPE_FIELDS = {name: kind for name, kind in kinds_of(Recipe).items() if name not in ("objective", "name")}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One masker: what it learns, what its masks are like, from which data, and how it is read once it is trained.

    images: pictures shown in training, times a study's own number. lr: learning rate, times the study's own.
    target: label, or predicted for the classifier's decisions, without labels.
    """

    learns: Learns = field(default_factory=Learns)
    mask: Mask = field(default_factory=Mask)
    data: Examples = field(default_factory=Examples)
    read: ReadAs = field(default_factory=ReadAs)
    images: float = 1.0
    lr: float = 1.0
    target: Target = "label"

    def __post_init__(self) -> None:
        learns = self.learns
        if learns.recipe not in RECIPES:
            raise ValueError(f"no recipe {learns.recipe!r}: expected one of {', '.join(RECIPES)}")
        unknown = [name for name, _ in (*learns.terms, *learns.weights) if name not in TERMS]
        if unknown:
            raise ValueError(f"no term {unknown[0]!r}: expected one of {', '.join(TERMS)}")
        if self.mask.head not in HEADS:
            raise ValueError(f"no head {self.mask.head!r}: expected one of {', '.join(HEADS)}")
        if (self.read.area is not None) and not self.mask.area_condition:
            raise ValueError("area is how a masker with area_condition is read: set both")
        build_recipe(learns)  # a weight of a term that the recipe does not have is an error now, not in every job

    @classmethod
    def of(cls, **settings: object) -> "Variant":
        """Return the variant with these settings, whatever record each belongs to.

            Variant.of(recipe="ca", history="sample", head="concrete", per_class=10)

        Fields of a `Recipe` that no record has, such as `history`, are changed in the recipe.
        Errors: ValueError for a setting that does not exist, or a value of another type.
        """
        own: JSON = {}
        parts: dict[str, JSON] = {record: {} for record in _RECORDS}
        for name, value in settings.items():
            record, kind = _home(name)
            check_kind(name, value, kind)
            if record is None:
                own[name] = value
            elif name in _RECIPE_FIELDS:
                parts["learns"]["changes"] = (*parts["learns"].get("changes", ()), (name, value))
            else:
                parts[record][name] = _hashable(value)
        return cls(**own, **{record: _RECORDS[record](**given) for record, given in parts.items()})

    def changed(self, **settings: object) -> "Variant":
        """Return the variant with some settings set anew, as in `of`."""
        return Variant.of(**{**self.settings(), **settings})

    def trained(self) -> "Variant":
        """Return the variant as it is trained: maskers that differ only in how they are read are one."""
        return replace(self, read=ReadAs())

    def settings(self) -> JSON:
        """Return the recipe and all settings that are not at their default, flat, as `of` takes them."""
        records = (self.learns, self.mask, self.data, self.read)
        flat: JSON = {"recipe": self.learns.recipe}
        for record in records:
            flat |= _changed(record)
        flat |= {name: value for name in _OWN if (value := getattr(self, name)) != getattr(Variant, name)}
        return flat | dict(flat.pop("changes", ()))


def _hashable(value: object) -> object:
    """Return lists, as JSON has them, as tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _changed(record: Learns | Mask | Examples | ReadAs) -> JSON:
    return {one.name: getattr(record, one.name) for one in fields(record) if getattr(record, one.name) != one.default}


_HOMES: Mapping[str, tuple[str | None, object]] = MappingProxyType(
    {
        **{name: ("learns", kind) for name, kind in _RECIPE_FIELDS.items()},
        **{name: (part, kind) for part, record in _RECORDS.items() for name, kind in kinds_of(record).items()},
        **{name: (None, kind) for name, kind in _OWN.items()},
    }
)


def _home(name: str) -> tuple[str | None, object]:
    """Return the record that a setting belongs to, None for the variant itself, and its type."""
    if name not in _HOMES or name == "changes":
        choices = ", ".join(name for name in _HOMES if name != "changes")
        raise ValueError(f"no setting {name!r}: expected one of {choices}")
    return _HOMES[name]


def build_recipe(learns: Learns) -> Recipe:
    """Return the recipe that `learns` names, with everything that it changes."""
    recipe = RECIPES[learns.recipe]
    if learns.terms:
        named = {name: (weight, TERMS[name]) for name, weight in learns.terms}
        recipe = replace(recipe, objective=Objective(named), areas_for=None)
    if learns.weights:
        recipe = recipe.weighted(**dict(learns.weights))
    if learns.area_power != 1.0:
        recipe = replace(recipe, objective=_powered(recipe.objective, learns.area_power))
    if learns.tv_border != 0.3:
        recipe = replace(recipe, objective=_bordered(recipe.objective, learns.tv_border))
    changes: JSON = dict(learns.changes)
    return replace(recipe, **changes)


def read_settings(texts: Sequence[str]) -> JSON:
    """Turn texts KEY=VALUE into keyword arguments of `Variant.of`; a value is read as JSON, else as text.

    terms.NAME=WEIGHT and weights.NAME=WEIGHT gather. Errors: ValueError for another key, form or type.
    """
    given: JSON = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, term = key.partition(".")
        if not equals or bool(dot) != (name in ("terms", "weights")):
            raise ValueError(f"expected settings KEY=VALUE, terms.NAME=WEIGHT or weights.NAME=WEIGHT, got {text!r}")
        kind = _home(name)[1]
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        check_kind(key, read, float if dot else kind)
        if dot:
            given.setdefault(name, []).append((term, read))
        else:
            given[name] = read
    return given


def _powered(objective: Objective, power: float) -> Objective:
    def raised(term: Callable[..., Values]) -> Term:
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


def chosen_data(examples: Examples, train_set: Labelled, seed: int) -> Labelled:
    """Return the part of a training set that a masker learns from; its classes keep their numbers."""
    if examples.classes is not None and examples.classes < 2:
        raise ValueError(f"expected at least two classes to tell apart (classes), got {examples.classes}")
    dataset = shuffled_labels(train_set, seed=seed) if examples.shuffled else train_set
    if examples.per_class is None and examples.classes is None:
        return dataset
    chosen = subset(dataset, per_class=examples.per_class, classes=examples.classes, seed=seed)
    return Subset(dataset, chosen.indices)


def masker_options(mask: Mask, loaded: Loaded) -> JSON:
    """Return the options of `new_masker` that make such masks for a classifier."""
    inputs = loaded.classifier.inputs
    if mask.per_input and inputs is None:
        raise ValueError(
            "a mask for each input needs a classifier of several, and this one reads one image: leave per_input "
            "(--per-input) out, or name one such as early:rgb+depth:NAME"
        )
    head: JSON = {}
    if mask.head != "sigmoid":
        head = {"temperature": mask.temperature, "hard": mask.hard, "learnable": mask.learnable}
    enlarged: JSON = {"upsample": mask.upsample} if mask.decoder == "projected" else {"decoder": mask.decoder}
    if mask.width is not None:
        enlarged["width"] = mask.width
    return {
        "layers": mask.layers,
        **enlarged,
        "head": HEADS[mask.head](**head),
        "area_condition": mask.area_condition,
        "classes": loaded.classifier.num_classes if mask.class_condition else None,
        **({"masks": len(inputs)} if mask.per_input and inputs is not None else {}),
    }


def stream_of(
    dataset: Labelled, settings: Settings, augment: SampleTransform | None, *, workers: int = 0, share: Share = WHOLE
) -> Callable[[int], Iterator[Batch]]:
    """Return the stream of training batches as `train_masker` takes it: number -> the batches from that number on."""

    def stream(start: int) -> Iterator[Batch]:
        return training_batches(
            dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start,
            augment=augment,
            workers=workers,
            share=share,
            device=_device(),
        )

    return stream


def decoded_once(
    dataset: Labelled, settings: Settings, augment: SampleTransform, *, workers: int = 0, share: Share = WHOLE
) -> Callable[[int], Iterator[Batch]]:
    """Return the stream of `stream_of` for pictures in files: those that are shown more than once are decoded once.

    They stay on the accelerator, where their crops are then batched, if they take no more than a quarter of its memory;
    else, and on a CPU, in main memory as far as `cached` keeps them. Pictures that are shown once are decoded by
    `workers` ahead of the step, and so are those of shards, in their own order, and whatever is augmented otherwise,
    such as sounds. The data set must not draw: it would be drawn once.
    """

    @cache
    def chosen() -> Callable[[int], Iterator[Batch]]:
        once = settings.steps(len(dataset)) * settings.batch_size <= len(dataset)
        if once or isinstance(dataset, Numbered) or not isinstance(augment, CropFlip):
            return stream_of(dataset, settings, augment, workers=workers, share=share)
        device = _device()
        room = _room(device)
        if not room or bytes_kept(len(dataset), len(first_read(dataset).image), augment.size) > room:
            return stream_of(cached(dataset), settings, augment, workers=workers, share=share)
        batches = partial(resident(dataset, size=augment.size, device=device).batches, crop=augment, share=share)
        return lambda start: batches(batch_size=settings.batch_size, seed=settings.seed, start=start)

    return lambda start: chosen()(start)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _room(device: torch.device) -> int:
    """Return the bytes that pictures may take on an accelerator, where no worker can crop them."""
    return torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 0
