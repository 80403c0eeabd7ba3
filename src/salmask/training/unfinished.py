"""Trainings that are interrupted: Ctrl-C waits for the end of a step, and the next training goes on from there.

What has no run's folder with checkpoints (a classifier, a stream) is kept in a folder of its own until it is done, and
every few minutes, so that one that is killed loses no more than these. On a CPU, a training that was interrupted and
went on gives the bits of one that was not.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from salmask.files import Facts, replace_file, writable_folder
from salmask.training.checkpoint import first_difference
from salmask.training.schemas import UNFINISHED, read_state

__all__ = ["Descent", "Unfinished", "discard", "interruptible"]

_FILE = "unfinished.pt"


@contextmanager
def interruptible(*, alone: bool = True) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of a step; yields whether it was pressed. Pressed again, it interrupts at once.

    A handler that somebody else has set stays, and so does what several processes do (not `alone`), of which one that
    stops alone would leave the others waiting.
    """
    pressed: list[int] = []

    own = os.getpid()

    def wait(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a worker that reads pictures: its process ends with this one
            return
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr.write("\nstopping after this step; Ctrl-C again stops at once\n")

    ours = threading.current_thread() is threading.main_thread() and alone
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Descent:
    """What changes in the steps of a training, beside torch's global generator."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True)
class Unfinished:
    """The folder of a training that may be interrupted, and the facts that tell it from others.

    every: seconds after which it is kept without being interrupted.
    """

    folder: Path
    facts: Facts
    every: float = 300.0

    def save(self, step: int, descent: Descent) -> None:
        """Write all state after so many steps."""
        state = {
            "facts": json.dumps(dict(self.facts), sort_keys=True),
            "step": step,
            "network": descent.network.state_dict(),
            "optimiser": descent.optimiser.state_dict(),
            "schedule": descent.schedule.state_dict(),
            "generator": torch.get_rng_state(),
        }
        replace_file(writable_folder(self.folder) / _FILE, lambda path: torch.save(state, path))

    def take_up(self, descent: Descent, device: torch.device) -> int:
        """Go back to where it was interrupted and return the step; 0 where it was not.

        Errors: ValueError for a file that is no such state, or of a training by other settings.
        """
        path = self.folder / _FILE
        if not path.exists():
            return 0
        state = read_state(path, device, UNFINISHED)
        earlier, wanted = json.loads(state["facts"]), json.loads(json.dumps(dict(self.facts)))
        if earlier != wanted:
            raise ValueError(
                f"{path} belongs to another training that was interrupted: {first_difference(earlier, wanted)}; "
                "delete it to start anew, or name another --out"
            )
        try:
            descent.network.load_state_dict(state["network"])
            descent.optimiser.load_state_dict(state["optimiser"])
            descent.schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["generator"].cpu())
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not fit the training ({type(error).__name__}): delete it") from error
        return int(state["step"])


def discard(folder: Path) -> None:
    """Delete what `Unfinished` keeps in a folder: the training is done, and what it made is written."""
    (folder / _FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
