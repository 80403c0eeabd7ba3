"""The curves of the trainings beside a folder's rows: training/<run>.jsonl, lines {"step": ..., name: value}."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
from matplotlib.figure import Figure
from numpy import ndarray

from salmask.files import Facts, replace_file
from salmask.report.charts import curves_chart
from salmask.rows.read import file_name, read_lines

__all__ = ["add_training", "training_chart"]

TRAINING = "training"
_POINTS = 300  # of a curve
_SKIPPED = {"step", "epoch", "time", "seconds", "rate", "lr"}  # no curve of their own


def add_training(folder: Path, name: str, metrics: Path) -> None:
    """Copy a run's metrics.jsonl into the folder, so that its curves are in every later report.

    Errors: ValueError where the file is missing.
    """
    if not metrics.is_file():
        raise ValueError(f"expected the training metrics of {name} at {metrics}, found none: name the run's folder")
    inner = Path(folder) / TRAINING
    inner.mkdir(parents=True, exist_ok=True)
    replace_file(inner / f"{file_name(name)}.jsonl", lambda draft: shutil.copyfile(metrics, draft))


def training_chart(folder: Path, explainers: Sequence[str]) -> Figure | None:
    """Return the curves of all runs, None without any; explainers: by whose names files are read."""
    names = {file_name(name): name for name in explainers}
    inner, runs = folder / TRAINING, {}
    for path in sorted(inner.glob("*.jsonl")) if inner.is_dir() else ():
        if curves := _curves([line for _, _, line in read_lines(path)]):
            runs[names.get(path.stem, path.stem)] = curves
    return curves_chart(runs) if runs else None


def _curves(lines: Sequence[Facts]) -> dict[str, tuple[ndarray, ndarray]]:
    """Return name -> (steps, values), thinned by means of equal stretches; what is no finite number is passed over."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for i, line in enumerate(lines):
        step = line.get("step")
        for name, value in line.items():
            if name not in _SKIPPED and _plain(value):
                pairs.setdefault(name, []).append((float(step or 0) if _plain(step) else i, float(value)))
    curves = {}
    for name, points in pairs.items():
        if len(points) > 1:
            stretches = np.array_split(np.array(points), min(_POINTS, len(points)))
            means = np.array([stretch.mean(0) for stretch in stretches])
            curves[name] = (means[:, 0], means[:, 1])
    return curves


def _plain(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
