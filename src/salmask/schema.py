"""What a JSON file must look like, checked before anything is read from it: one line that names file and field.

A shape is

    str, int, (int, float), type(None), ...   a value of these types; a bool is no number
    [shape]                                   a list of such
    {str: shape}                              a table with any keys
    {"a": shape, "b?": shape}                 a table with these keys; "?": it may be absent; others are not looked at
    Within(low, high)                         a number in a range, whole unless `whole=False`
    Word("a", "b")                            one of these texts
    Several(shape, least, most)               a list of such, of a length in a range
    Maybe(shape)                              null, or of the shape
    ANYTHING                                  whatever JSON can hold
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ANYTHING", "NUMBER", "Maybe", "Several", "Within", "Word", "check_shape", "parse_json", "read_json"]

Shape = Any  # types, lists and tables of shapes, as above; what is read is as its shape says
Problem = tuple[str, str, str]
ANYTHING = object
NUMBER = (int, float, type(None))
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


_LARGEST = 64 * 2**20  # bytes of a file that is read as JSON


@dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = True

    def problem(self, field: str, value: object) -> "Problem | None":
        """Return what is wrong with a value, or None."""
        kinds = int if self.whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if number and self.low <= value <= self.high:  # type: ignore[operator]  # NaN is neither
            return None
        ends = f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"
        return field, f"{'a whole number' if self.whole else 'a number'}, {ends}", repr(value)


class Word:
    """One of a few texts."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def problem(self, field: str, value: object) -> "Problem | None":
        """Return what is wrong with a value, or None."""
        return None if value in self.words else (field, " or ".join(map(repr, self.words)), repr(value))


@dataclass(frozen=True)
class Several:
    """A list of `least` to `most` values of one shape."""

    shape: Shape
    least: int
    most: int

    def problem(self, field: str, value: object) -> "Problem | None":
        """Return what is wrong with a value, or None."""
        if isinstance(value, list) and not self.least <= len(value) <= self.most:
            return field, f"a list of {self.least} to {self.most}", f"{len(value)}"
        return _problem(field, value, [self.shape])


@dataclass(frozen=True)
class Maybe:
    """Null, or a value of a shape."""

    shape: Shape

    def problem(self, field: str, value: object) -> "Problem | None":
        """Return what is wrong with a value, or None."""
        if value is None or (wrong := _problem(field, value, self.shape)) is None:
            return None
        return wrong[0], f"{wrong[1]}, or null", wrong[2]


def read_json(path: Path, shape: Shape, *, remedy: str) -> Any:
    """Return the content of a JSON file. Errors: ValueError naming file and field, for one that is not of the shape."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: expected a JSON file of at most {_LARGEST} bytes, got more: {remedy}")
    return parse_json(str(path), path.read_bytes(), shape, remedy=remedy)


def parse_json(where: str, text: str | bytes, shape: Shape, *, remedy: str) -> Any:
    """Return what a JSON text holds; where: names it in errors. Errors: as `read_json`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # deep nesting ends in a RecursionError
        raise ValueError(f"{where}: expected a JSON file, got {_short(str(error))}: {remedy}") from error
    check_shape(where, value, shape, remedy=remedy)
    return value


def check_shape(where: str, value: object, shape: Shape, *, remedy: str) -> None:
    """Raise ValueError naming the first field that is not of the shape; where: the file, or file and line."""
    if problem := _problem("", value, shape):
        field, expected, got = problem
        raise ValueError(f"{where}{', ' + field if field else ''}: expected {expected}, got {_short(got)}: {remedy}")


def _problem(field: str, value: object, shape: Shape) -> Problem | None:
    """Return (field, what is expected, what is there) of the first field that does not fit."""
    if isinstance(shape, Within | Word | Several | Maybe):
        return shape.problem(field, value)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return field, "a list", repr(value)
        parts = [(f"{field}[{i}]", one, shape[0]) for i, one in enumerate(value)]
    elif isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return field, "a table {...}", repr(value)
        table, any_key = value, shape.get(str)
        named = {key.removesuffix("?"): (key, one) for key, one in shape.items() if key is not str}
        if absent := [key for key, (written, _) in named.items() if key == written and key not in table]:
            return field, f"the entry {absent[0]!r}", repr(dict(table))
        kinds = {**dict.fromkeys(table, any_key), **{key: one for key, (_, one) in named.items()}}
        parts = [
            (f"{field}.{key}".lstrip("."), table[key], kind)
            for key, kind in kinds.items()
            if kind is not None and key in table
        ]
    else:
        types = shape if isinstance(shape, tuple) else (shape,)
        if (isinstance(value, bool) and not {bool, object} & set(types)) or not isinstance(value, types):
            return field, " or ".join(_WORDS.get(one, one.__name__) for one in types), repr(value)
        parts = []
    return next((found for part in parts if (found := _problem(*part)) is not None), None)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
