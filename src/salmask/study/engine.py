"""Engines that carry out jobs: processes of this machine, one device each, or an existing cluster.

A job is a folder and a phase; it runs in a process of its own (`python -m salmask.study.work FOLDER PHASE`), so that
one that fails, or is killed for its memory, takes no other with it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

from salmask.data.streams import MOST_PROCESSES
from salmask.files import JSON
from salmask.training.settings import ReadAs

__all__ = ["Local", "Slurm", "Task"]

Done = Callable[["Task", float, str | None], None]
_GRACE = 5.0  # seconds in which a training that Ctrl-C has reached ends its step and keeps it


@dataclass(frozen=True)
class Task:
    """A job's folder, what is asked of it, its name in words, its cost beside others, and how its masker is read.

    on: "tuning", "val", or, for so many `pictures` of val, "maps" and "checks".
    """

    folder: Path
    on: str
    name: str
    cost: float = 1.0
    read: ReadAs = field(default_factory=ReadAs)
    pictures: int | None = None

    def options(self) -> JSON:
        """Return the arguments of `work` beside folder and phase."""
        options = {**asdict(self.read), "pictures": self.pictures}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Local:
    """So many jobs at once on this machine. threads: of each; devices: CUDA devices, dealt out to the jobs."""

    workers: int = 1
    threads: int | None = None
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            given = getattr(self, name)
            if given is not None and not 1 <= given <= MOST_PROCESSES:
                raise ValueError(f"{name} are 1 to {MOST_PROCESSES}, got {given}")

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks; done(task, seconds, error or None) is called as they end.

        Where this is interrupted (Ctrl-C), what runs is stopped, after a few seconds in which it may keep its last
        step, and what waits is not begun.
        """
        free: SimpleQueue[str] = SimpleQueue()
        processes: set[subprocess.Popen[bytes]] = set()
        stopped, starting = Event(), Lock()
        for worker in range(self.workers):
            free.put(self.devices[worker % len(self.devices)] if self.devices else "")
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)

        def carry_out(task: Task) -> tuple[float, str | None]:
            device, start = free.get(), time.perf_counter()
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if device:
                environment["CUDA_VISIBLE_DEVICES"] = device
            try:
                with (task.folder / "log.txt").open("ab") as log:
                    options = json.dumps(task.options())
                    call = [sys.executable, "-m", "salmask.study.work", str(task.folder), task.on, options]
                    with starting:
                        if stopped.is_set():
                            return 0.0, "interrupted"
                        process = subprocess.Popen(call, stdout=log, stderr=log, env=environment)
                        processes.add(process)
                    code = process.wait()
            finally:
                free.put(device)
            return time.perf_counter() - start, None if code == 0 else _reason(task.folder, code)

        with ThreadPoolExecutor(self.workers) as pool:
            running = {pool.submit(carry_out, task): task for task in tasks}
            try:
                for future in as_completed(running):
                    done(running[future], *future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with starting:
                    stopped.set()
                _stop(processes)
                raise


def _stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Wait a little for processes that a terminal's Ctrl-C has reached, too; stop those that go on."""
    end = time.monotonic() + _GRACE
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
    finally:  # Ctrl-C again: at once
        for process in processes:
            process.terminate()


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster through submitit. at_once: how many may run; options: of submitit's executor."""

    logs: Path
    at_once: int = 16
    options: tuple[tuple[str, object], ...] = ()

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks; done(task, seconds, error or None) is called as they end."""
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise ValueError("Slurm needs submitit: install salmask[cluster]") from error

        from salmask.study.work import work

        executor = submitit.AutoExecutor(folder=self.logs)
        executor.update_parameters(slurm_array_parallelism=self.at_once, **dict(self.options))
        start = time.perf_counter()
        with executor.batch():
            jobs = {executor.submit(work, task.folder, task.on, **task.options()): task for task in tasks}
        for job in submitit.helpers.as_completed(list(jobs)):
            wrong = job.exception()
            done(jobs[job], time.perf_counter() - start, None if wrong is None else str(wrong).splitlines()[-1])


def _reason(folder: Path, code: int) -> str:
    """Return why a job failed, in one line."""
    trace = folder / "failed.txt"
    if trace.is_file() and (lines := trace.read_text().strip().splitlines()):
        return lines[-1]
    return f"the process ended with {code} (killed for its memory?)" if code < 0 else f"the process ended with {code}"
