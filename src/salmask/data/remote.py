"""Files that lie on a web server, fetched once into a cache; after that they are files like any other.

Waiting is bounded: a server that says nothing for `PATIENCE` seconds is given up. A file that breaks off is gone on
with where it stopped, at most `TRIES` times; it appears in the cache whole or not at all. Processes that want the same
file fetch it once.
"""

import hashlib
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from salmask.files import replace_file, writable_folder

__all__ = ["PATIENCE", "fetched", "is_remote", "web_address"]

PATIENCE = 30.0
"""Seconds of silence after which a server is given up."""
TRIES = 3
_FOR_OTHERS = 3600.0  # seconds that are waited for another process which fetches the same file
_AT_ONCE, _PIECE = 4, 2**20


def web_address(place: str) -> str:
    """Return an address as it was typed, where a Path has made one slash of two; of file://, the path."""
    place = re.sub(r"^file:/+", "/", place)
    return re.sub(r"^(https?):/(?=[^/])", r"\1://", place)


def is_remote(place: str) -> bool:
    """Return whether a place is on a web server."""
    return re.match(r"https?:/", place) is not None


def fetched(addresses: Sequence[str]) -> list[Path]:
    """Return where files lie that are named by address; what is not in the cache is fetched, several at once.

    The cache is $SALMASK_CACHE, or salmask in ~/.cache. Errors: ValueError naming the file that cannot be had.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return list(pool.map(_fetched, addresses))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetched(address: str) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = os.environ.get("SALMASK_CACHE") or caches / "salmask"
    folder = writable_folder(Path(root) / hashlib.sha256(address.encode()).hexdigest()[:16])
    path = folder / (Path(unquote(urlsplit(address).path)).name or "file")
    if not path.exists():
        try:
            with FileLock(folder / ".lock", timeout=_FOR_OTHERS):
                if not path.exists():
                    replace_file(path, partial(_fetch, address))
        except Timeout as error:
            raise ValueError(f"{address}: another process has not fetched it within an hour: end that one") from error
    return path


def _fetch(address: str, path: Path) -> None:
    """Write what lies at an address to a file, going on where it breaks off. Errors: ValueError."""
    failure: Exception | None = None
    for again in range(TRIES):
        time.sleep(again)
        try:
            if _go_on(address, path):
                return
            failure = EOFError("the server ended before the file did")
        except HTTPError as error:
            failure = error
            if error.code < 500:
                break
        except URLError as error:  # refused, no such host
            failure = OSError(str(error.reason))
        except (OSError, HTTPException) as error:  # reset, too slow, cut
            failure = error
    raise ValueError(
        f"{address} cannot be fetched ({failure}; got {path.stat().st_size} bytes): look at the address and the "
        "server, then give the same command again"
    ) from failure


def _go_on(address: str, path: Path) -> bool:
    """Fetch what a file lacks; return whether it is whole."""
    have = path.stat().st_size
    request = Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=PATIENCE) as answer:
        part = answer.status == 206
        length = answer.headers.get("Content-Length")
        with path.open("ab" if part else "wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
    return length is None or path.stat().st_size == int(length) + (have if part else 0)
