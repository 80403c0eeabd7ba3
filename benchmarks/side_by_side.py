"""Timing several things in turns, and writing down what came out with all that is needed to repeat it."""

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def compare(things: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of every call: each thing once a round, in an order that turns from round to round."""
    names = list(things)
    for name in names:  # warm up
        things[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            seconds[name].append(elapsed(things[name], device))
    return seconds


def elapsed(thing: Callable[[], object], device: str) -> float:
    """Return the seconds that one call takes."""
    start = now(device)
    thing()
    return now(device) - start


def now(device: str) -> float:
    """Return the clock, once the device has done all that it was given.

    With one thread on a CPU the clock is the process's own, which other programs disturb little.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if _own_clock(device) else time.perf_counter()


def _own_clock(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def describe(seconds: Mapping[str, list[float]], *, unit: str) -> dict[str, dict[str, float]]:
    """Print and return medians, and their ratio to that of `unit`; the ratio round by round has an interval."""
    rows = {}
    for name, values in seconds.items():
        rounds = sorted(own / base for own, base in zip(values, seconds[unit], strict=True))
        rows[name] = {
            "median": statistics.median(values),
            "fastest": min(values),
            "ratio": statistics.median(values) / statistics.median(seconds[unit]),
            "ratio_of_fastest": min(values) / min(seconds[unit]),
            "ratio_low": rounds[len(rounds) // 4],
            "ratio_high": rounds[(3 * len(rounds)) // 4],
        }
    width = max(map(len, rows))
    sys.stdout.write(f"{'':{width}}  median ms  fastest ms   ratio  (quartiles)    of the fastest\n")
    for name, row in rows.items():
        sys.stdout.write(
            f"{name:{width}}  {1e3 * row['median']:9.1f}  {1e3 * row['fastest']:10.1f}   {row['ratio']:.3f}  "
            f"({row['ratio_low']:.3f}-{row['ratio_high']:.3f})  {row['ratio_of_fastest']:.3f}\n"
        )
    return rows


def write(name: str, settings: Mapping[str, Any], rows: Mapping[str, Any], verdict: Mapping[str, float]) -> None:
    """Print the verdict; write it with settings, command and machine, unless the settings were the quick ones."""
    reached = "reached" if verdict["ratio"] <= verdict["target"] else "missed"
    sys.stdout.write(f"ratio {verdict['ratio']:.3f}, target {verdict['target']}: {reached}\n")
    content = {
        "command": "python " + " ".join(shlex.quote(part) for part in [f"benchmarks/{name}.py", *sys.argv[1:]]),
        "settings": dict(settings),
        "verdict": dict(verdict),
        "clock": "CPU seconds of the process" if _own_clock(str(settings.get("device"))) else "seconds",
        "rows": dict(rows),
        "machine": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": _processor(),
            "device": torch.cuda.get_device_name() if str(settings.get("device")).startswith("cuda") else "cpu",
        },
    }
    if settings.get("quick"):
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
