"""`salmask score`: the scores of maps that any tool made, against boxes and pixel masks, in bounded memory.

Maps are read in chunks, each chunk is one `Case`, scored here or by one of several processes, and its rows and
counts go to the folder at once. A run that was stopped goes on where it stopped.
"""

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from salmask.chunks import Chunk, Label, Scoring, one_thread, score_case, score_chunk
from salmask.metrics import METRICS, Metric
from salmask.normalising import NORMALISERS
from salmask.readers import BoxRow, read_boxes, read_pixels
from salmask.records import agree_on_meta
from salmask.report import write_report
from salmask.saved_maps import Piece, SavedMaps, open_maps
from salmask.trivial import BASELINES
from salmask.types import Boxes, Pixels
from salmask.writer import Writer

__all__ = ["Label", "Scoring", "Truth", "Work", "read_labels", "score", "score_case"]

CHUNK = 64
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Truth:
    """Ground truth by image id: boxes as the table has them, the folder of pixel masks, labels."""

    boxes: Mapping[str, Sequence[BoxRow]] | None = None
    masks: Path | None = None
    labels: Mapping[str, Label] | None = None

    def has(self) -> set[str]:
        """Return the fields of Case that can be filled."""
        found = {name for name, value in (("boxes", self.boxes), ("pixels", self.masks)) if value is not None}
        known = self.labels is not None and all(label.predicted is not None for label in self.labels.values())
        return found | ({"correct"} if known else set())


@dataclass(frozen=True)
class Work:
    """How maps are scored, which changes no number: processes side by side, and who watches the chunks go by."""

    processes: int = 1
    progress: Progress = iter

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1; came {self.processes}")


@dataclass
class _Run:
    """The settings of one call of `score`."""

    maps: SavedMaps
    truth: Truth
    metrics: dict[str, Metric]
    normalize: str
    seed: int
    scoring: Scoring | None
    processes: int
    baselines: Sequence[str]
    left_out: dict[str, str] = field(default_factory=dict)


def score(
    maps: str | Path,
    boxes: str | Path | None = None,
    *,
    out: str | Path,
    masks_dir: str | Path | None = None,
    labels: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    normalize: str = "none",
    scoring: Scoring | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    work: Work | None = None,
) -> dict[str, Any]:
    """Score saved maps and write rows, counts, meta.json, summary.json and index.html to `out`.

    maps: MAPS.npz or MAPS.npy (`saved_maps`). boxes: image,class,x0,y0,x1,y1[,width,height], in pixels of the maps
    unless width,height say which picture they are in. masks_dir: one PNG per id (0 background, 255 object, 128
    ignored), brought to the maps' size by nearest neighbour. labels: image,label[,predicted], class indices.
    metrics: names of METRICS; None: every plain name that the given truth allows. normalize: how maps come into
    [0, 1]: none, minmax, max or rank. scoring: for metrics that show pictures to a classifier (one process only).
    baselines: trivial maps (`trivial`) that are scored on the same images, beside the given ones.

    Returns the summary. Errors: ValueError for ids without truth or truth without ids, maps that are not finite
    or not in [0, 1], class indices out of range, unknown metrics, rows of other settings in `out`.
    """
    if normalize not in NORMALISERS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALISERS)}; came {normalize!r}")
    work = work or Work()
    if scoring is not None and labels is None:
        raise ValueError("which class is scored must be said: give labels (image,label) beside the classifier")
    saved = open_maps(maps)
    if wrong := [name for name in baselines if name not in BASELINES or name == saved.path.stem]:
        raise ValueError(
            f"baselines must be among {', '.join(BASELINES)}, and not the maps' own name; came {wrong[0]!r}"
        )
    truth = Truth(
        boxes=None if boxes is None else read_boxes(Path(boxes)),
        masks=None if masks_dir is None else Path(masks_dir),
        labels=None if labels is None else read_labels(labels),
    )
    _match(saved.ids, truth)
    given = truth.has() | ({"images", "classifier"} if scoring is not None else set())
    chosen, left_out = _choose(metrics, given, scoring)
    run = _Run(saved, truth, chosen, normalize, seed, scoring, work.processes, tuple(baselines), left_out)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    agree_on_meta(folder, _meta(run))
    computes = {key: metric.compute for key, metric in chosen.items() if metric.compute is not None}
    plain = [key for key in chosen if key not in computes]
    with Writer(folder, [*plain, "degenerate"], computes) as writer:
        for name, ids, found in work.progress(_results(run, skip=writer.has)):
            for i, image in enumerate(ids):
                values = {key: float(found[key][i]) for key in (*plain, "degenerate")}
                writer.add(name, image, values, {key: found[key][i] for key in computes})
            writer.flush()
    return write_report(folder)


# --- truth ---------------------------------------------------------------------------------------------------------


def read_labels(path: str | Path) -> dict[str, Label]:
    """Read image,label[,predicted]: class indices >= 0. Errors: ValueError naming the line."""
    path = Path(path)
    table: dict[str, Label] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        header = rows.fieldnames or ()
        if not {"image", "label"} <= set(header):
            raise ValueError(
                f"{path}: expected the header image,label[,predicted], came {','.join(header) or 'nothing'}"
            )
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if row["image"] in table:
                raise ValueError(f"{where}: the image {row['image']!r} comes twice")
            predicted = _class(row["predicted"], where) if "predicted" in header else None
            table[row["image"]] = Label(_class(row["label"], where), predicted)
    return table


def _class(text: str | None, where: str) -> int:
    if text is None or not text.strip().isdecimal():
        raise ValueError(f"{where}: expected a class index (0, 1, ...), came {text!r}")
    return int(text)


def _match(ids: Sequence[str], truth: Truth) -> None:
    """Raise ValueError unless every map has its truth, and every truth its map."""
    known = set(ids)
    for what, table in (("boxes", truth.boxes), ("labels", truth.labels)):
        if table is None:
            continue
        if without := [name for name in ids if name not in table]:
            raise ValueError(f"{_some(without)} without {what}: add rows for them or leave these maps out")
        if beyond := [name for name in table if name not in known]:
            raise ValueError(f"{what} without a map for {_some(beyond)}: the ids must be written alike on both sides")
    if truth.masks is not None and (without := [name for name in ids if _mask_file(truth.masks, name) is None]):
        raise ValueError(f"{_some(without)} without a mask in {truth.masks}: expected files such as {without[0]}.png")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ids ({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''})"


def _mask_file(folder: Path, name: str) -> Path | None:
    tries = (folder / name, (folder / name).with_suffix(".png"), folder / f"{name}.png")
    return next((path for path in tries if path.suffix.lower() == ".png" and path.is_file()), None)


def _boxes(rows: Sequence[BoxRow], size: tuple[int, int], image: str) -> Boxes:
    """Return boxes in pixels of the maps; they may reach over the edge (crops do that), not lie beyond it."""
    height, width = size
    boxes = np.array([row.box for row in rows], dtype=np.float64)
    frames = np.array([row.frame or (width, height) for row in rows], dtype=np.float64)
    boxes *= np.tile([width, height] / frames, 2)
    outside = (boxes[:, 0] >= width) | (boxes[:, 1] >= height) | (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    if outside.any():
        row = rows[int(outside.argmax())]
        raise ValueError(
            f"line {row.line}: the box {row.box} of {image!r} lies outside of its map, {width} wide and {height} high: "
            "give boxes in pixels of the maps, or the columns width,height of the picture that they are in"
        )
    return torch.from_numpy(boxes.astype(np.float32))


def _pixels(folder: Path, name: str, size: tuple[int, int]) -> Pixels:
    path = _mask_file(folder, name)
    assert path is not None  # by _match
    pixels = read_pixels(path)
    if tuple(pixels.shape) == size:
        return pixels
    return torch.from_numpy(cv2.resize(pixels.numpy(), size[::-1], interpolation=cv2.INTER_NEAREST))


# --- metrics and settings ------------------------------------------------------------------------------------------


def _choose(
    names: Sequence[str] | None, given: set[str], scoring: Scoring | None
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics to compute and, of the plain names, those that lack something, with what they lack."""
    if names is None:
        plain = {name: metric for name, metric in METRICS.items() if ":" not in name}
        lacking = {name: ", ".join(sorted(m.needs - given)) for name, m in plain.items() if m.needs - given}
        return {n: m for n, m in plain.items() if n not in lacking}, lacking
    for name in names:
        if name not in METRICS:
            near = [known for known in METRICS if known.split(":")[0] == name.split(":")[0]]
            raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(near or METRICS)}")
        if missing := METRICS[name].needs - given:
            raise ValueError(f"the metric {name!r} needs {', '.join(sorted(missing))}, which is not given: {_REMEDY}")
    return {name: METRICS[name] for name in names}, {}


_REMEDY = (
    "boxes come with --boxes, pixels with --masks, correct with --labels and its column predicted, "
    "images and classifier with --classifier and --data"
)


def _meta(run: _Run) -> dict[str, Any]:
    ours = {run.maps.path.stem: {"maps": str(run.maps.path), "normalize": run.normalize, "truth": False}}
    trivial = {name: {"maps": "baseline", "normalize": "none", "truth": False} for name in run.baselines}
    return {
        "explainers": ours | trivial,
        "metrics": {name: metric.describe() for name, metric in run.metrics.items()},
        "left_out": run.left_out,
        "data": {"maps": len(run.maps), "height": run.maps.shape[1], "width": run.maps.shape[2]},
        "classifier": None if run.scoring is None else type(run.scoring.classifier).__name__,
        "seed": run.seed,
    }


# --- chunks --------------------------------------------------------------------------------------------------------


Found = tuple[str, list[str], dict[str, np.ndarray]]


def _results(run: _Run, *, skip: Callable[[str, str], bool]) -> Iterator[Found]:
    """Yield (explainer, ids, results) of one chunk after the other, from one or several processes."""
    jobs = _jobs(run, skip)
    if run.processes == 1 or run.scoring is not None:
        for name, job in jobs:
            yield name, job.ids, score_chunk(job, run.scoring)
        return
    pending: deque[tuple[str, list[str], Future]] = deque()
    with ProcessPoolExecutor(run.processes, mp_context=_context(), initializer=one_thread) as pool:
        for name, job in jobs:
            pending.append((name, job.ids, pool.submit(score_chunk, job)))
            if len(pending) > 2 * run.processes:  # no more chunks in memory than keep everyone busy
                name, ids, future = pending.popleft()
                yield name, ids, future.result()
        for name, ids, future in pending:
            yield name, ids, future.result()


def _jobs(run: _Run, skip: Callable[[str, str], bool]) -> Iterator[tuple[str, Chunk]]:
    """Yield the chunks of the maps that are not scored yet, each followed by the baselines of the same images."""
    for ids, piece in run.maps.pieces(CHUNK):
        for name in (run.maps.path.stem, *run.baselines):
            left = [i for i, image in enumerate(ids) if not skip(name, image)]
            if left:
                maps = name if name in run.baselines else piece.only(left)
                yield name, _chunk(run, [ids[i] for i in left], maps)


def _context() -> Any:
    """Return how processes start: from a server that has imported what they need, or anew where there is none."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["salmask.chunks"])
    return context


def _chunk(run: _Run, names: list[str], maps: Piece | str) -> Chunk:
    truth, size = run.truth, (run.maps.shape[1], run.maps.shape[2])
    return Chunk(
        metrics=list(run.metrics),
        normalize=run.normalize,
        seed=run.seed,
        ids=names,
        maps=maps,
        size=size,
        boxes=None if truth.boxes is None else [_boxes(truth.boxes[name], size, name) for name in names],
        pixels=None if truth.masks is None else [_pixels(truth.masks, name, size) for name in names],
        labels=None if truth.labels is None else [truth.labels[name] for name in names],
    )
