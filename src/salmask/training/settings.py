"""How a masker is trained, as values. Nothing here needs torch, so that the help of a command answers at once.

`Settings` is the length and the rates of a training; `Learns`, `Mask`, `Examples` and `ReadAs` say what kind of masker
it gives, and together make a `variant.Variant`. The fields are the options of `salmask train`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = [
    "FULL",
    "ORIGINAL",
    "RECIPE",
    "SIDES",
    "Examples",
    "Learns",
    "Mask",
    "Precision",
    "ReadAs",
    "Settings",
    "Target",
    "check_epochs",
    "check_kind",
    "check_kinds",
    "kinds_of",
]

RECIPE = "reader"
"""The recipe of a training that names none."""

ORIGINAL = "original"
SIDES = (8, 4096)
"""Least and largest side of a picture that a classifier sees."""
_MOST_EPOCHS = 1_000_000
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
FULL: Precision = "32-true"
"""Everything in float32."""
Target = Literal["label", "predicted"]


def check_epochs(epochs: float) -> None:
    """Raise ValueError for more passes over the data than anybody means."""
    if epochs > _MOST_EPOCHS:
        raise ValueError(f"epochs are at most {_MOST_EPOCHS} passes over the data, got {epochs:g}")


@dataclass(frozen=True)
class Settings:
    """How a masker is trained; the defaults are the paper's."""

    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 72
    """Pictures a step."""
    lr: float = 1e-3
    """Learning rate of the masker."""
    weight_decay: float = 1e-4
    """Weight decay of the masker, and of a classifier that is trained too."""
    classifier_lr: float = 1e-3
    """Learning rate of a classifier that is trained too."""
    momentum: float = 0.9
    """Of the classifier's descent."""
    decay_at: Sequence[float] = (1 / 3, 2 / 3)
    """Shares of the training after which both learning rates are divided by 10."""
    clip: float = 10.0
    """Largest norm of the masker's gradient."""
    precision: Precision = "auto"
    """auto (bf16-mixed where the hardware is faster at it), 32-true, bf16-mixed or 16-mixed."""
    channels_last: bool = True
    """Lay pictures out by pixel, which most convolutions like."""
    compile: bool = False
    """Compile the classifier's passes over masked pictures (torch.compile): pays in long trainings on a GPU."""
    seed: int = 0
    """Of everything that is drawn."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 200
    """Steps between checkpoints."""
    areas: tuple[float, float] = (0.25, 0.75)
    """Range of the target areas that a masker with --area-condition is trained with."""
    sizes: tuple[int, ...] = ()
    """Sides that the pictures of a batch are brought to, one drawn a batch, for a masker that meets pictures of several
    sizes; as they are where not given."""
    target: Target = "label"
    """What is explained in training: the label of each picture, or the classifier's decision on it, without labels."""
    absent: float = 0.0
    """Share of the pictures of which a masker that is told the class is asked for one that is not there, and is to keep
    nothing that speaks for it; else it learns to write whatever it is asked for."""
    averaging: float = 0.0
    """d of the running mean w <- d w + (1 - d) weights that becomes the masker; 0: the last weights."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("epochs", "batch_size", "lr", "classifier_lr", "clip", "log_every", "save_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        check_epochs(self.epochs)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"a seed is a whole number, 0 to {2**31 - 1}, got {self.seed}")
        for name in ("absent", "averaging", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is a number of at least 0, got {self.weight_decay}")
        if not all(0 <= share <= 1 for share in self.decay_at):
            raise ValueError(f"decay_at are shares of the training in [0, 1], got {self.decay_at}")
        if not 0 <= self.areas[0] <= self.areas[1] <= 1:
            raise ValueError(f"areas are two shares in [0, 1], the lower one first, got {self.areas}")
        if not all(SIDES[0] <= size <= SIDES[1] for size in self.sizes):
            raise ValueError(f"sizes are {SIDES[0]} to {SIDES[1]} pixels, got {self.sizes}")

    def of(self, images: int) -> "Settings":
        """Return the settings for so many images: a batch has each of them once at most."""
        return self if self.batch_size <= images else replace(self, batch_size=images)

    def steps(self, images: int) -> int:
        """Return the number of batches that `epochs` passes over so many images take, at least one."""
        return max(1, round(self.epochs * images / self.batch_size))

    def rate(self, step: int, steps: int) -> float:
        """Return the factor of both learning rates at a step."""
        return 0.1 ** sum(step >= share * steps for share in self.decay_at)


@dataclass(frozen=True, kw_only=True)
class Learns:
    """What a masker is asked for: a recipe, with what is changed in it, and what fills the holes."""

    recipe: str = RECIPE
    """reader, fix, ca, casm_f, casm_l, casm_fl, casm_l100, casm_l1000, dabkowski_gal, lmac or lmac_tuned."""
    terms: tuple[tuple[str, float], ...] = ()
    """Terms by name and weight, instead of the recipe's objective."""
    weights: tuple[tuple[str, float], ...] = ()
    """Other weights of the recipe's terms, by name."""
    changes: tuple[tuple[str, object], ...] = ()
    """Other fields of the `Recipe`, such as history, pool_size or statistics."""
    area_power: float = 1.0
    """1 or 2: the power of abs(mean m - p) where the masker is conditioned on an area p."""
    tv_border: float = 0.3
    """Weight of the picture's border in the total variation; 0 for neighbours alone."""
    infill: str = "mean"
    """What fills the holes: mean, blur, noise, colour, bank, or an inpainter's file."""
    infill_kept: str | None = None
    """The same for the kept picture alone."""
    infill_removed: str | None = None
    """The same for the removed picture alone."""
    remask: bool = False
    """Mask pictures twice, as the released infillers do."""

    def __post_init__(self) -> None:
        for name in ("terms", "weights"):  # lists, as JSON has them, become values that can be hashed
            pairs = tuple((term, float(weight)) for term, weight in getattr(self, name))
            object.__setattr__(self, name, pairs)
        if twice := next((term for k, (term, _) in enumerate(self.terms) if term in dict(self.terms[:k])), None):
            raise ValueError(f"a term is named once, got {twice} twice")
        object.__setattr__(self, "changes", tuple((name, value) for name, value in self.changes))
        numbers = {"area_power": self.area_power, "tv_border": self.tv_border, **dict((*self.terms, *self.weights))}
        if wrong := next((name for name, value in numbers.items() if not isfinite(value)), None):
            raise ValueError(f"{wrong} is a finite number, got {numbers[wrong]}")
        if not (self.area_power > 0 and self.tv_border >= 0):
            raise ValueError(
                f"area_power is above 0 and tv_border at least 0, got {self.area_power} and {self.tv_border}"
            )

    @property
    def infills(self) -> dict[str, str]:
        """The name of each side's infill."""
        return {"kept": self.infill_kept or self.infill, "removed": self.infill_removed or self.infill}


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What the masker reads, and what its masks are like."""

    layers: tuple[int, ...] | None = None
    """Which of the classifier's maps it reads, by index; the two deepest where not given."""
    decoder: Literal["projected", "transposed"] = "projected"
    """projected: maps are joined on a grid (the paper's). transposed: transposed convolutions up to the picture's own
    size, with skips (L-MAC's)."""
    width: int | None = None
    """Channels of the decoder; its own number where not given."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """From the masker's grid to the picture."""
    head: str = "sigmoid"
    """sigmoid, or concrete for binary masks (Gumbel)."""
    temperature: float = 0.1
    """Of the head `concrete`."""
    hard: bool = True
    """Of the head `concrete`: binary in the forward pass of training, too."""
    learnable: bool = False
    """Of the head `concrete`: learn the temperature."""
    area_condition: bool = False
    """Tell the masker which share of the picture to keep."""
    class_condition: bool = False
    """Tell the masker the class to explain."""
    per_input: bool = False
    """Make a mask for each input of a classifier that reads several, instead of one that they share."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is a number above 0, got {self.temperature}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if len(set(self.layers)) < len(self.layers) or not self.layers:
                raise ValueError(f"layers are different indices, at least one, got {list(self.layers)}")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The part of the training pictures that a masker learns from."""

    per_class: int | None = None
    """Train on so many pictures a class, drawn with the seed."""
    classes: int | None = None
    """Train on the pictures of so many classes, drawn with the seed."""
    shuffled: bool = False
    """Give every picture a random label: the data randomisation test."""


@dataclass(frozen=True, kw_only=True)
class ReadAs:
    """How a trained masker is read: binary masks of the `top` share of pixels, at a target `area`, or from the maps of
    another classifier, which `reads` names: "original", as it was before a training alongside, or a SPEC."""

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


_WORDS: Mapping[object, str] = MappingProxyType(
    {bool: "true or false", int: "a whole number", float: "a number", str: "a word", NoneType: "null"}
)


def check_kind(name: str, value: object, kind: object) -> None:
    """Raise ValueError where a value is not of a field's type: bool, int, float, str, tuples, literals and unions."""
    if not _fits(value, kind):
        raise ValueError(f"{name} is {_in_words(kind)}, got {value!r}")


def check_kinds(record: object) -> None:
    """Raise ValueError where a field of a dataclass is not of its type."""
    for name, kind in kinds_of(type(record)).items():
        check_kind(name, getattr(record, name), kind)


def kinds_of(record: type) -> Mapping[str, object]:
    """Return the types of a dataclass's fields by name."""
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


def _fits(value: object, kind: object) -> bool:
    if kind is Any:
        return True
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple | list):
            return False
        parts = parts if origin is tuple else (*parts, ...)
        each = [parts[0]] * len(value) if parts[-1] is ... else list(parts)
        return len(each) == len(value) and all(map(_fits, value, each))
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _in_words(kind: object) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return " or ".join(map(str, parts))
    return "a list" if origin in (tuple, Sequence) else _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
