"""What a JSON file must look like, checked before anything is read from it: one line that names file and field.

A shape is

    str, int, (int, float), type(None), ...   a value of these types; a bool is no number
    [shape]                                   a list of such
    {str: shape}                              a table with any keys
    {"a": shape, "b?": shape}                 a table with these keys; "?": it may be absent; others are not looked at
    ANYTHING                                  whatever JSON can hold
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ANYTHING", "NUMBER", "check_shape", "read_json"]

Shape = Any
ANYTHING = object
NUMBER = (int, float, type(None))
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def read_json(path: Path, shape: Shape, *, remedy: str) -> Any:
    """Return the content of a JSON file. Errors: ValueError naming file and field, for one that is not of the shape."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # deep nesting ends in a RecursionError
        raise ValueError(f"{path}: expected a JSON file, got {_short(str(error))}: {remedy}") from error
    check_shape(str(path), value, shape, remedy=remedy)
    return value


def check_shape(where: str, value: object, shape: Shape, *, remedy: str) -> None:
    """Raise ValueError naming the first field that is not of the shape; where: the file, or file and line."""
    if problem := _problem("", value, shape):
        field, expected, got = problem
        raise ValueError(f"{where}{', ' + field if field else ''}: expected {expected}, got {_short(got)}: {remedy}")


def _problem(field: str, value: object, shape: Shape) -> tuple[str, str, str] | None:
    """Return (field, what is expected, what is there) of the first field that does not fit."""
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
