"""Several processes at one work: which part is this one's, what all add up, and what happens where one is lost.

Lightning Fabric starts the processes and moves numbers between them, through gloo on CPUs and NCCL on GPUs; torchrun
and Slurm may start them as well. With one process every function here gives back what it was given.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.distributed
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data.streams import MOST_PROCESSES, Share

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from salmask.explain.base import Explainer
    from salmask.training.run import Loaded

__all__ = ["Strategy", "average", "check_alike", "launched", "move_to", "share_of", "within"]

Strategy: TypeAlias = Literal["auto", "ddp"]
_STARTERS = {"MASTER_ADDR", "SLURM_NTASKS"}
"""What torchrun and Slurm leave in the environment."""
_LOST = ("connection", "socket", "gloo", "nccl", "process group", "timed out")


def launched(devices: int = 1, nodes: int = 1, strategy: Strategy = "auto", *, precision: str = "32-true") -> "Fabric":
    """Return a Fabric whose processes run: `devices` on each of `nodes` machines.

    Of one machine, the process that calls it starts the others, which run the same command from its beginning; of
    several, or under torchrun, they run already. Errors: ValueError for fewer devices than were asked for, and for
    another number of processes than runs.
    """
    if not 1 <= devices <= MOST_PROCESSES or nodes < 1:
        raise ValueError(f"expected 1 to {MOST_PROCESSES} devices and at least one node, got {devices} and {nodes}")
    if nodes > 1 and not _STARTERS & os.environ.keys():
        raise ValueError(
            f"{nodes} machines were asked for (--nodes), and nothing says where the others are: start the command by "
            "torchrun or Slurm on each (docs/scale.md)"
        )
    _check_started(devices * nodes)
    from lightning.fabric import Fabric  # slow to import

    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):  # what they say of themselves
        logging.getLogger(name).setLevel(logging.WARNING)
    chosen = "ddp" if devices * nodes > 1 else strategy
    there = torch.cuda.device_count()
    if there and devices > there:
        raise ValueError(f"{devices} devices were asked for (--devices), this machine has {there}")
    try:
        fabric = Fabric(devices=devices, num_nodes=nodes, strategy=chosen, precision=precision)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{devices} devices on {nodes} nodes cannot be used: {error}") from error
    with within(fabric), _watched():
        fabric.launch()
    return fabric


def _check_started(wanted: int) -> None:
    """Raise ValueError where torchrun or Slurm has started another number of processes than is to share the work.

    Fabric does not look where one device is asked for, and each process would then do, and write, all of the work.
    """
    by_slurm = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # else Fabric starts processes itself
    started = os.environ.get("SLURM_STEP_NUM_TASKS") if by_slurm else None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        started = os.environ.get("WORLD_SIZE")
    if started is not None and started != str(wanted):
        raise ValueError(
            f"{started} processes were started, and {wanted} asked for: give --devices, processes on each machine, and "
            "--nodes, machines, the numbers that torchrun or Slurm was given"
        )


# Processes that watch each other. A collective notices the end of another process at once, but between collectives
# minutes may pass; and Fabric's own observer kills the process that started the others without a word.
_STARTED_BY = "SALMASK_STARTED_BY"  # the process that starts the others, for whom it may be their parent
_LOOK, _GRACE = 0.5, 8.0  # seconds between looks, and those left to a process to find out and say so itself


@contextmanager
def _watched() -> Iterator[None]:
    """Let processes that are started inside, and the one that starts them, end where another one is lost."""
    from lightning.fabric.strategies.launchers import subprocess_script

    if os.environ.get(_STARTED_BY) == str(parent := os.getppid()):
        _watch(lambda: "the process that started it" if os.getppid() != parent else None, [])
    os.environ[_STARTED_BY] = str(os.getpid())
    fabrics_own = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = _watch_children
    try:
        yield
    finally:
        subprocess_script._launch_process_observer = fabrics_own


def _watch_children(child_processes: list[subprocess.Popen[bytes]]) -> None:
    _watch(partial(_ended, child_processes), child_processes)


def _ended(children: Sequence[subprocess.Popen[bytes]]) -> str | None:
    """Return which child has ended otherwise than well."""
    numbered = enumerate((child.poll() for child in children), 1)
    return next((f"process {number}, which ended with status {status}" for number, status in numbered if status), None)


def _watch(lost: Callable[[], str | None], children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Look in the background who is lost, and then end this process and its children, with one line."""

    def look() -> None:
        while (who := lost()) is None:
            time.sleep(_LOOK)
        time.sleep(_GRACE)
        sys.stderr.write(f"salmask: a process has lost {who}; {_GO_ON}\n")
        sys.stderr.flush()
        for child in children:
            child.terminate()
        os._exit(1)

    threading.Thread(target=look, name="salmask-watch", daemon=True).start()


_GO_ON = "what was saved is whole: give the same command again, a training with --resume"


def move_to(fabric: "Fabric", explainers: "Iterable[tuple[Explainer, Loaded]]", *others: "Loaded | None") -> None:
    """Bring explainers, and the classifiers that they explain, to this process's device. Errors: as `check_alike`."""
    pairs = list(explainers)
    loaded = {id(one.classifier): one.classifier for one in [*(own for _, own in pairs), *others] if one is not None}
    for classifier in loaded.values():
        check_alike(fabric, classifier.to(fabric.device))
    for explainer, _ in pairs:
        if explainer.masker is not None:
            explainer.masker.to(fabric.device)


def share_of(fabric: "Fabric") -> Share:
    """Return which part of the work is this process's."""
    return Share(fabric.global_rank, fabric.world_size)


def average(fabric: "Fabric", tensors: Sequence[Tensor]) -> None:
    """Replace tensors, in place, by their means over all processes; one message for all of a kind."""
    if fabric.world_size == 1:
        return
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = fabric.all_reduce(torch.cat([tensor.flatten() for tensor in alike]), reduce_op="mean")
        assert isinstance(flat, Tensor)
        for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def check_alike(fabric: "Fabric", classifier: Classifier) -> None:
    """Raise ValueError, in all processes, where they have not built the same network."""
    if fabric.world_size == 1:
        return
    marks: list[str] = [""] * fabric.world_size
    torch.distributed.all_gather_object(marks, classifier.fingerprint())
    if len(set(marks)) > 1:
        raise ValueError(
            "the processes have built networks of different weights: load weights from a file, or seed the function "
            "that makes the network"
        )


@contextmanager
def within(fabric: "Fabric | None") -> Iterator[None]:
    """Turn the many errors of a lost process into one line. Errors: ValueError."""
    try:
        yield
    except RuntimeError as error:
        if fabric is None or fabric.world_size == 1 or not any(word in str(error).lower() for word in _LOST):
            raise
        raise ValueError(
            f"process {fabric.global_rank} of {fabric.world_size} has lost another one, which was ended or cannot be "
            f"reached; {_GO_ON}"
        ) from error
