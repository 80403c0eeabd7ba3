"""Files of our own: written whole or not at all, by one process at a time in a folder, and read by their shape.

A file is filled under a temporary name beside its own, `.writing-HOST-PROCESS-...`, and put in place in one step. What
a killed process has left under such a name is cleaned up when the next one starts to write into the folder.

A JSON file must be of a shape, which is checked before anything is read from it: one line names file and field.
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
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from filelock import FileLock, Timeout

__all__ = [
    "ANYTHING",
    "JSON",
    "NUMBER",
    "Facts",
    "Maybe",
    "Several",
    "Within",
    "Word",
    "check_shape",
    "in_use",
    "parse_json",
    "plain_arguments",
    "read_json",
    "regular_file",
    "replace_file",
    "writable_file",
    "writable_folder",
]

# The one place where a value of any kind is meant: what a file of JSON holds, and keyword arguments on their way to it.
# The kinds are checked where a file is read.
JSON: TypeAlias = dict[str, Any]
Facts: TypeAlias = Mapping[str, Any]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step, readable by everybody.

    A run that is killed while it writes leaves the old file, or none, and never half of one.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_WRITING}{_host()}-{os.getpid()}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:  # of a full disk, which names no file
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(folder: str | Path) -> Path:
    """Make a folder, clean up what a killed process has left half-written in it, and return it.

    Errors: ValueError naming a folder that cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for left in folder.glob(f"{_WRITING}{_host()}-*"):
            if not _alive(left.name):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"the output folder {folder} cannot be written: {error.strerror}") from error
    return folder


def writable_file(path: Path, ending: str) -> None:
    """Make the folder of a file that is to be written. Errors: ValueError where the file could not be, in the end.

    To be called before the work whose result it takes.
    """
    if path.suffix != ending:
        raise ValueError(f"an output file here ends in {ending}, got {path}")
    writable_folder(path.parent)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long, for one
        raise ValueError(f"the output file {path} cannot be written: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"the output file {path} is there and is no file: name another one")


def regular_file(path: Path, what: str) -> None:
    """Raise ValueError for what is no regular file: a folder, or a pipe that would be waited for without end.

    what: was expected, in words. Errors: FileNotFoundError.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder: expected {what}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no regular file but a pipe, a socket or a device: expected {what}")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone. Errors: ValueError where another one holds it.

    The lock goes with the process, so that a killed one leaves none.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another process: wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock.release()


_WRITING = ".writing-"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]


def _alive(name: str) -> bool:
    """Return whether the process that writes a temporary file of this machine is running."""
    process = name.removeprefix(f"{_WRITING}{_host()}-").partition("-")[0]
    if not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# Reading by a shape

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


def plain_arguments(of: str, shape: Facts, **given: object) -> JSON:
    """Return arguments by name as JSON has them: numbers of arrays as Python's, sequences and arrays as lists.

    of: whose arguments they are. Errors: ValueError naming the first one that is not of its shape.
    """
    plain = {name: _plain(value) for name, value in given.items()}
    if problem := _problem("", plain, shape):
        field, expected, got = problem
        raise ValueError(f"{field} of {of}: expected {expected}, got {_short(got)}")
    return plain


@runtime_checkable
class _Array(Protocol):
    def tolist(self) -> object:
        """Return the values as Python's numbers, in lists."""
        ...


def _plain(value: object) -> object:
    if isinstance(value, _Array):
        return value.tolist()
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


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
