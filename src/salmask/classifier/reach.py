"""Whether a hub of weights can be reached, found out in seconds.

Where nothing answers, the hub's own client tries again for most of a minute before it says so, at every file.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

__all__ = ["bounded", "patient", "reachable"]

_PATIENCE = 4.0  # seconds


def reachable(address: str, *, patience: float = _PATIENCE) -> bool:
    """Return whether something answers at an address; behind a proxy, whose business that is, always."""
    parts = urlsplit(address)
    if parts.scheme in getproxies():
        return True
    answers: list[bool] = []

    def ask() -> None:
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname or "", port), timeout=patience).close()
        except OSError:
            return
        answers.append(True)

    asking = Thread(target=ask, daemon=True)  # looking up a name knows no limit of time
    asking.start()
    asking.join(patience)
    return bool(answers)


@contextmanager
def bounded() -> Iterator[None]:
    """Ask the Hugging Face hub only if it answers; else take what has been downloaded, as HF_HUB_OFFLINE=1 does."""
    former = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = former or not reachable(constants.ENDPOINT)
    try:
        with patient():
            yield
    finally:
        constants.HF_HUB_OFFLINE = former


@contextmanager
def patient() -> Iterator[None]:
    """Let connections that nobody bounds wait for half a minute at most."""
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0 if former is None else former)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)
