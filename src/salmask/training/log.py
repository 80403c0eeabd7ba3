"""What a training says while it runs: means as JSON lines and TensorBoard events, and a watch for collapse.

metrics.jsonl is a function of data, settings and seed; speed.jsonl is not: steps a second, and the share of the time
that was spent waiting for pictures.
"""

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from salmask.files import JSON, Within, parse_json, replace_file
from salmask.objective import ObjectiveValue
from salmask.outcome import Outcome
from salmask.training.processes import average

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = [
    "COLLAPSED",
    "LOG",
    "SPEED",
    "Clock",
    "Log",
    "collapse",
    "extremes",
    "in_words",
    "numbers_of",
    "speed",
    "timed",
]

_Batch = TypeVar("_Batch")

LOG, SPEED = "metrics.jsonl", "speed.jsonl"
EMPTY, FULL = 0.02, 0.98
"""Means of a mask beyond which it is called empty or full."""
COLLAPSED = 0.5
"""Share of pictures with an empty, or a full, mask beyond which a training is called collapsed."""
ONE_INPUT = 0.95
"""The same of the masks of one of several inputs, which are rightly empty where another input shows the class."""
PATIENCE = 1 / 3
"""Share of a run that passes before collapse is looked for: many masks are full at first, and come back."""
REMEDY = {
    "empty": "lower the weight of the area (--area-out), or use the recipe 'reader'",
    "full": "raise the weight of the area (--area-out), or use the recipe 'reader'",
}


def extremes(means: Tensor) -> dict[str, Tensor]:
    """Return for each mask, given its mean, whether it is empty and whether it is full, as 0 or 1."""
    return {"empty": (means < EMPTY).float(), "full": (means > FULL).float()}


def numbers_of(score: ObjectiveValue, outcome: Outcome, small: Tensor) -> dict[str, Tensor]:
    """Return what is logged, as tensors, so that no step waits for the device."""
    numbers = {"loss": score.total.mean(), "mask_mean": small.mean(), "acc_whole": outcome.clean_right}
    means = small.detach().mean((2, 3))
    numbers |= extremes(means.mean(1))
    if means.shape[1] > 1:
        for place, own in enumerate(means.unbind(1), 1):
            numbers |= {f"{name} of input {place}": values for name, values in extremes(own).items()}
    if outcome.kept is not None:
        numbers["acc_kept"] = outcome.kept_right
    if outcome.removed is not None:
        numbers["acc_removed"] = outcome.removed.argmax(1) == outcome.targets
    numbers |= {name: value.mean() for name, value in score.terms.items()}
    return {name: value.detach().float().mean() for name, value in numbers.items()}


def collapse(path: Path) -> dict[str, float] | None:
    """Return the shares of empty and full masks in the last line of a training, None where it has not collapsed."""
    last = next(reversed([*_lines(path).values()]), {})
    shares = {name: float(last[name]) for name in last if name.partition(" ")[0] in REMEDY}
    return shares if _collapsed(shares) else None


def _collapsed(shares: Mapping[str, float]) -> list[str]:
    """Return which shares are too large: of all masks, and of those of one input."""
    return [
        name
        for name, share in shares.items()
        if (kind := name.partition(" ")[0]) in REMEDY and share > (COLLAPSED if name == kind else ONE_INPUT)
    ]


@dataclass
class Clock:
    """Seconds since the last line, and how many of them were spent waiting for pictures."""

    start: float = field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0

    def lap(self) -> tuple[float, float]:
        """Return both, and begin anew."""
        now = time.perf_counter()
        passed, waited = max(now - self.start, 1e-9), self.waited
        self.start, self.waited = now, 0.0
        return passed, waited


def timed(batches: Iterable[_Batch], clock: Clock) -> Iterator[_Batch]:
    """Hand on batches, and let the clock know how long each was waited for."""
    stream = iter(batches)
    while True:
        start = time.perf_counter()
        try:
            batch = next(stream)
        except StopIteration:
            return
        clock.waited += time.perf_counter() - start
        yield batch


def speed(path: Path) -> dict[str, float] | None:
    """Return steps a second and the share of waiting of a whole training, from its speed.jsonl; None without a line."""
    lines = [*_lines(path).values()]
    seconds = sum(line["seconds"] for line in lines)
    if not seconds:
        return None
    return {
        "steps_a_second": round(sum(line["steps"] for line in lines) / seconds, 3),
        "waiting": round(sum(line["waited"] for line in lines) / seconds, 4),
    }


def in_words(pace: Mapping[str, float] | None) -> str:
    """Return what `speed` found, as the end of a line; nothing for None."""
    if pace is None:
        return ""
    return f" ({pace['steps_a_second']:.3g} steps/s, {pace['waiting']:.0%} of the time waiting for pictures)"


class Log:
    """Means of what the steps say; a resumed run cuts what it repeats.

    Means are over all processes of `fabric`, of which the first one writes.
    sums, count: what an earlier process had not written yet. steps: of the whole run.
    """

    def __init__(
        self,
        out: Path,
        start: int,
        steps: int,
        *,
        fabric: "Fabric",
        sums: Mapping[str, Tensor] = MappingProxyType({}),
        count: int = 0,
    ) -> None:
        self.path, self.speed, self.steps = out / LOG, out / SPEED, steps
        self.fabric, self.active = fabric, fabric.is_global_zero
        self.sums, self.count, self.warned, self.clock, self.last = dict(sums), count, False, Clock(), start
        if self.active:
            _cut(self.path, start)
            _cut(self.speed, start)
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        """Take in the numbers of one step."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1

    def write(self, step: int) -> None:
        """Bring the means over since the last line to the host, once for all, and write them."""
        means = torch.stack([*self.sums.values()]) / self.count
        average(self.fabric, [means])
        values = dict(zip(self.sums, means.tolist(), strict=True))
        self.sums, self.count = {}, 0
        if self.active:
            with self.path.open("a") as file:
                line = {"step": step, **{name: round(value, 6) for name, value in values.items()}}
                file.write(json.dumps(line) + "\n")
            for name, value in (values | self._timed(step)).items():
                self.board.add_scalar(name, value, step)
        _refuse_nan(values["loss"], step)
        if self.active:
            self._watch(values, step)

    def _timed(self, step: int) -> dict[str, float]:
        """Write how long the steps since the last line took; return what is shown of it."""
        (passed, waited), steps = self.clock.lap(), step - self.last
        self.last = step
        line = {"step": step, "steps": steps, "seconds": round(passed, 6), "waited": round(waited, 6)}
        with self.speed.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return {"speed/steps a second": steps / passed, "speed/waiting": waited / passed}

    def state(self, step: int) -> JSON:
        """Return what is not written yet, for a checkpoint; there is none of a run whose loss is not a number."""
        average(self.fabric, [*self.sums.values()])
        if "loss" in self.sums:
            _refuse_nan(float(self.sums["loss"]), step)
        return {"sums": self.sums, "count": self.count}

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self.board.close()

    def _watch(self, values: Mapping[str, float], step: int) -> None:
        """Warn once of masks that say nothing any more, with the remedy."""
        if self.warned or step < PATIENCE * self.steps:
            return
        if names := _collapsed(values):
            kind, _, whose = names[0].partition(" ")
            share = f"{values[names[0]]:.0%} of the masks{f' {whose}' if whose else ''} are {kind}"
            remedy = REMEDY[kind] + (", and believe `input_shares` sooner than these masks" if whose else "")
            warnings.warn(f"the training has collapsed: {share} at step {step} of {self.steps}; {remedy}", stacklevel=2)
            self.warned = True


def _cut(path: Path, step: int) -> None:
    """Leave the lines up to a step."""
    kept = [line for line, numbers in _lines(path).items() if numbers["step"] <= step]
    replace_file(path, lambda at: at.write_text("".join(kept)))


def _lines(path: Path) -> dict[str, JSON]:
    """Return the whole lines of a file with what they say; the last one may have been cut off by a kill.

    Errors: ValueError naming file and line.
    """
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return {
        line: parse_json(f"{path} line {number}", line, _LINE, remedy="delete the line, or the file")
        for number, line in enumerate(lines, 1)
        if number < len(lines) or line.endswith("}\n")
    }


_LINE = {"step": Within(0, 10**12), "empty?": (int, float), "full?": (int, float)}


def _refuse_nan(loss: float, step: int) -> None:
    if loss != loss:
        raise ValueError(
            f"the loss is not a number at step {step}: are there NaNs in the images or the classifier, "
            "or is the learning rate too high? Nothing after the last checkpoint was kept"
        )
