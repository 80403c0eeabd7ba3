"""Writing a file whole or not at all, and one process at a time in a folder.

A file is filled under a temporary name beside its own, `.writing-HOST-PROCESS-...`, and put in place in one step. What
a killed process has left under such a name is cleaned up when the next one starts to write into the folder.
"""

import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

__all__ = ["JSON", "Facts", "in_use", "regular_file", "replace_file", "writable_folder"]

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
