"""The settings of an explainer, as its constructor declares them: their kinds, ranges and names.

    masks: Annotated[int, Between(1, 1_000_000)]        a whole number in a range
    score: Annotated[ClassScore, OneOf(SCORES)]         a callable that goes by the name that a table gives it

`knobs_of(constructor)` reads them from its signature. From that one table are made what a command accepts after the
colon, what it says of a wrong value, `salmask explain --list`, and the table in docs/explainers.md.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Union, get_args, get_origin

from salmask.classifier.scores import SCORES, ClassScore
from salmask.explain.base import Explainer
from salmask.types import Infill

__all__ = [
    "AMOUNT",
    "BatchSize",
    "Between",
    "Cells",
    "Constructor",
    "Count",
    "Knob",
    "OneOf",
    "Rate",
    "Score",
    "Seed",
    "Share",
    "knob_table",
    "knobs_of",
    "listing",
]


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both included unless `above` leaves `low` out."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        low, high = (f"{end:d}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if math.isinf(self.high):
            return f"{low} or more"
        return f"above {low}, up to {high}" if self.above else f"{low} to {high}"


@dataclass(frozen=True)
class OneOf:
    """A value that goes by its name in a table."""

    table: Mapping[str, object]


AMOUNT = Between(0, math.inf)

Count = Annotated[int, Between(1, 1_000_000)]
Cells = Annotated[int, Between(1, 4096)]
BatchSize = Annotated[int, Between(1, 65_536)]
Seed = Annotated[int, Between(0, 2**31 - 1)]
Share = Annotated[float, Between(0, 1)]
Rate = Annotated[float, Between(0, 1000, above=True)]
Score = Annotated[str | ClassScore, OneOf(SCORES)]


@dataclass(frozen=True)
class Knob:
    """One setting: its name, its kinds, and what it is where it is not given. optional: "none" is a value."""

    name: str
    kinds: tuple[type, ...]
    default: object
    optional: bool = False
    between: Between | None = None
    table: Mapping[str, object] | None = None

    def read(self, text: str) -> object:
        """Return the value that a text names. Errors: ValueError with what was expected."""
        if self.optional and text.lower() in ("none", "null"):
            return None
        if self.table is not None:
            if text in self.table:
                return self.table[text]
        else:
            for kind in self.kinds:
                value = _READERS[kind](text)
                if value is not None and self._fits(value):
                    return value
        raise ValueError(f"{self.name} is {self.expected()}, got {text!r}")

    def check(self, value: object) -> None:
        """Raise ValueError for a value of another kind, or out of range."""
        if value is self.default or (value is None and self.optional):
            return
        if self.table is not None:
            own = callable(value) and not isinstance(value, type)
            fits = value in self.table if isinstance(value, str) else own or value in self.table.values()
        else:
            fits = any(_IS[kind](value) for kind in self.kinds) and self._fits(value)
        if not fits:
            raise ValueError(f"{self.name} is {self.expected()}, got {value!r}"[:300])

    def expected(self) -> str:
        """Return the values that it takes, in words."""
        if self.table is not None:
            words = ", ".join(self.table)
        else:
            words = " or ".join(_TYPE_WORDS[kind] for kind in self.kinds)
            words += "" if self.between is None else f", {self.between}"
        return words + (", or none" if self.optional else "")

    def shown_default(self) -> str:
        """Return the default as it would be typed."""
        if self.table is not None:
            names = [name for name, value in self.table.items() if value is self.default or name == self.default]
            return names[0] if names else "its own"
        if Infill in self.kinds:
            return "its own" if self.default is None else type(self.default).__name__
        if self.default is None:
            return "none"
        return json.dumps(self.default) if isinstance(self.default, bool | tuple | list) else str(self.default)

    def _fits(self, value: object) -> bool:
        if isinstance(value, str | bool) or self.between is None:
            return True
        numbers = value if isinstance(value, Sequence) else (value,)
        return all(isinstance(number, Real) and float(number) in self.between for number in numbers)


@dataclass(frozen=True)
class Constructor:
    """A constructor of an explainer that looks at its settings before it builds: what a command refuses, it refuses."""

    build: Callable[..., Explainer]

    @property
    def __signature__(self) -> Signature:
        """That of the constructor."""
        return signature(self.build)

    def __call__(self, *given: object, **settings: object) -> Explainer:
        """Return the explainer. Errors: the constructor's; ValueError for settings of another kind or out of range."""
        knobs = knobs_of(self.build)
        for name in settings.keys() & knobs.keys():
            knobs[name].check(settings[name])
        return self.build(*given, **settings)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _as_numbers(text: str) -> tuple[float, ...] | None:
    if not (text.startswith("[") and text.endswith("]")):
        return None
    numbers = [_number(part) for part in text[1:-1].split(",")]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _flag(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


_READERS: Mapping[object, Callable[[str], object]] = {
    int: _whole,
    float: _number,
    bool: _flag,
    tuple: _as_numbers,
    str: lambda text: text or None,
    Infill: lambda text: text or None,
}
_IS: Mapping[object, Callable[[object], bool]] = {
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value),
    bool: lambda value: isinstance(value, bool),
    tuple: lambda value: isinstance(value, list | tuple) and all(isinstance(one, Real) for one in value),
    str: lambda value: isinstance(value, str),
    Infill: lambda value: callable(value) and not isinstance(value, type),
}
_TYPE_WORDS: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list [a,b,...] of numbers",
    str: "a name",
    Infill: "mean, blur, noise, colour, bank or the file of an inpainter",
}


def knobs_of(constructor: Callable[..., object]) -> dict[str, Knob]:
    """Return the settings of a constructor by name: its parameters that have a default.

    Errors: TypeError for a parameter whose annotation does not say how it is written; the fault is the constructor's.
    """
    parameters = [p for p in signature(constructor).parameters.values() if p.default is not Parameter.empty]
    return {parameter.name: _knob(parameter) for parameter in parameters}


def _knob(parameter: Parameter) -> Knob:
    members, notes = _flattened(parameter.annotation)
    optional = NoneType in members
    table = next((note.table for note in notes if isinstance(note, OneOf)), None)
    between = next((note for note in notes if isinstance(note, Between)), None)
    kinds = tuple(dict.fromkeys(kind for kind in members if isinstance(kind, type) and kind in _READERS))
    if table is None and not kinds:
        raise TypeError(f"the parameter {parameter.name}: {parameter.annotation} does not say how it is written")
    return Knob(parameter.name, kinds, parameter.default, optional, between, table)


def _flattened(annotation: object) -> tuple[list[object], list[object]]:
    """Return the members of a union and the notes that are attached to it or to them."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        members, more = _flattened(inner)
        return members, [*notes, *more]
    if get_origin(annotation) in (Union, UnionType):
        parts = [_flattened(part) for part in get_args(annotation)]
        return [member for members, _ in parts for member in members], [note for _, notes in parts for note in notes]
    return [tuple if get_origin(annotation) is Sequence else annotation], []


def listing(explainers: Mapping[str, Callable[..., object]]) -> str:
    """Return the explainers by name with their settings, to read in a terminal."""
    lines = []
    for name, constructor in explainers.items():
        knobs = knobs_of(constructor).values()
        lines += [name, *(f"    {knob.name}: {knob.expected()} [{knob.shown_default()}]" for knob in knobs)]
    return "\n".join(lines)


def knob_table(explainers: Mapping[str, Callable[..., object]]) -> str:
    """Return the table of all settings: explainer, setting, values, default."""
    lines = ["| explainer | setting | values | default |", "|---|---|---|---|"]
    for name, constructor in explainers.items():
        for knob in knobs_of(constructor).values():
            lines.append(f"| `{name}` | `{knob.name}` | {knob.expected()} | {knob.shown_default()} |")
    return "\n".join(lines) + "\n"
