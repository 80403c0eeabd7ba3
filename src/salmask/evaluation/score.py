"""`salmask score`: the scores of maps that any tool made, against boxes and pixel masks, in bounded memory.

Maps are read in chunks, each chunk is one `Case`, scored here or by one of several processes, and its rows and
counts go to the folder at once. A run that was stopped goes on where it stopped.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from salmask.data import Sample, collate, no_boxes, read_image
from salmask.evaluation.chunks import Chunk, Label, Scoring, chunk_maps, one_thread, score_case, score_chunk
from salmask.evaluation.explained import COLUMNS
from salmask.evaluation.gaze import Gaze, read_gaze
from salmask.evaluation.saved import Piece, SavedMaps, open_maps
from salmask.evaluation.truth import Truth, read_labels, read_truth
from salmask.explain.controls import BASELINES
from salmask.files import JSON, writable_folder
from salmask.masking import MeanColour, keep, remove
from salmask.metrics import METRICS, Metric
from salmask.metrics.case import check_maps
from salmask.report import write_report
from salmask.report.pictures import spread_ids, strip
from salmask.rows.read import agree_on_meta, file_name
from salmask.rows.write import Writer
from salmask.training.run import Loaded
from salmask.types import NORMALISERS, Boxes

__all__ = ["Label", "Scoring", "Truth", "Work", "read_labels", "score", "score_case", "scoring_from"]

CHUNK = 64
PICTURES = 24
T = TypeVar("T")
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Work:
    """What changes no number: how maps are scored, and what the page's header says.

    processes: side by side; progress: watches the chunks go by; only_scored: boxes and labels of images that have no
    map are left out, instead of raising; about: data, classifier, command, version, in words.
    """

    processes: int = 1
    progress: Progress = iter
    only_scored: bool = False
    about: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1; got {self.processes}")


@dataclass
class _Run:
    """The settings of one call of `score`."""

    maps: SavedMaps
    truth: Truth
    metrics: dict[str, Metric]
    normalize: str
    seed: int
    scoring: Scoring | None
    work: Work
    baselines: Sequence[str]
    gaze: Gaze | None
    left_out: dict[str, str]


def score(  # noqa: PLR0913  (every kind of truth is a file of its own)
    maps: str | Path,
    boxes: str | Path | None = None,
    *,
    out: str | Path,
    masks_dir: str | Path | None = None,
    labels: str | Path | None = None,
    gaze: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    normalize: str = "none",
    scoring: Scoring | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    work: Work | None = None,
) -> JSON:
    """Score saved maps and write rows, counts, meta.json, summary.json, index.html and some pictures to `out`.

    maps: MAPS.npz or MAPS.npy (`saved_maps`). boxes: image,class,x0,y0,x1,y1[,width,height], in pixels of the maps
    (with `scoring` that places them, of the pictures) unless width,height say which picture they are in; or a folder
    of XML files (`archives`). masks_dir: one PNG per id (`read_pixels`), brought to the maps' size by nearest
    neighbour. labels: image,label[,predicted], class indices.
    gaze: folder of gaze maps (`gaze`), for scores of human attention; the centre bias is the mean gaze of the others.
    metrics: names of METRICS; None: every plain name that the given truth allows. normalize: how maps come into
    [0, 1]: none, minmax, max or rank. scoring: for metrics that show pictures to a classifier, and for the page to show
    (one process only).
    baselines: trivial maps (`trivial`) that are scored on the same images, beside the given ones.

    Returns the summary. Errors: ValueError for ids without truth or truth without ids, maps that are not finite
    or not in [0, 1], class indices out of range, unknown metrics, rows of other settings in `out`.
    """
    if normalize not in NORMALISERS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALISERS)}; got {normalize!r}")
    work = work or Work()
    if scoring is not None and labels is None:
        raise ValueError("which class is to be scored? Give labels (image,label) beside the classifier")
    saved = open_maps(maps)
    if wrong := [name for name in baselines if name not in BASELINES or name == saved.path.stem]:
        raise ValueError(
            f"baselines must be among {', '.join(BASELINES)}, and not the maps' own name; got {wrong[0]!r}"
        )
    truth = read_truth(boxes, masks_dir, labels, saved.ids)
    if work.only_scored:
        truth = truth.only(saved.ids)
    truth.match(saved.ids)
    if scoring is not None:
        truth = replace(truth, place=scoring.place)
    if scoring is not None and scoring.target == "predicted" and "correct" not in truth.has():
        raise ValueError("the predicted class is to be explained: give labels with the column predicted")
    watched = None if gaze is None else read_gaze(gaze, saved.ids, (saved.shape[1], saved.shape[2]))
    given = truth.has() | ({"images", "classifier"} if scoring is not None else set())
    given |= set() if watched is None else {"gaze"} if watched.count < 2 else {"gaze", "centre"}
    chosen, left_out = _choose(metrics, given, scoring)
    run = _Run(
        maps=saved,
        truth=truth,
        metrics=chosen,
        normalize=normalize,
        seed=seed,
        scoring=scoring,
        work=work,
        baselines=tuple(baselines),
        gaze=watched,
        left_out=left_out,
    )
    _check(run)
    folder = writable_folder(out)
    agree_on_meta(folder, _meta(run))
    computes = {key: metric.compute for key, metric in chosen.items() if metric.compute is not None}
    plain = [key for key in chosen if key not in computes]
    with Writer(folder, [*plain, "degenerate"], computes) as writer:
        for name, ids, found in work.progress(_results(run, folder, skip=writer.has)):
            for i, image in enumerate(ids):
                values = {key: float(found[key][i]) for key in (*plain, "degenerate")}
                writer.add(name, image, values, {key: found[key][i] for key in computes})
            writer.flush()
    return write_report(folder)


# --- what came -----------------------------------------------------------------------------------------------------


def _check(run: _Run) -> None:
    """Look at every map and all truth, before anything is written and hours are spent. Errors: ValueError."""
    size = (run.maps.shape[1], run.maps.shape[2])
    if run.scoring is not None:
        if (classes := getattr(run.scoring.classifier, "num_classes", None)) is not None:
            run.truth.check_labels(run.maps.ids, classes, predicted=run.scoring.target == "predicted")
        run.scoring.check(run.maps.ids, size)
    run.truth.check(run.maps.ids, size)
    for ids, piece in run.maps.pieces(CHUNK):
        check_maps(torch.from_numpy(piece.read()), ids, bounded=run.normalize == "none")


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
            near = near or get_close_matches(name, METRICS, 3) or [known for known in METRICS if ":" not in known]
            raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(near)}")
        if missing := METRICS[name].needs - given:
            raise ValueError(f"the metric {name!r} needs {', '.join(sorted(missing))}, which is not given: {_REMEDY}")
    return {name: METRICS[name] for name in names}, {}


_REMEDY = (
    "boxes come with --boxes, pixels with --masks, correct with --labels and its column predicted, "
    "images and classifier with --classifier and --data, gaze (and centre, from two images on) with --gaze"
)


def _meta(run: _Run) -> JSON:
    ours = {run.maps.path.stem: {"maps": str(run.maps.path), "normalize": run.normalize, "truth": False}}
    trivial = {name: {"maps": "baseline", "normalize": "none", "truth": False} for name in run.baselines}
    return {
        "explainers": ours | trivial,
        "metrics": {name: metric.describe() for name, metric in run.metrics.items()}
        | {"degenerate": COLUMNS["degenerate"]},
        "left_out": {name: f"it needs {needs}, not given" for name, needs in run.left_out.items()},
        "data": f"{run.maps.path.name}: {len(run.maps)} maps, {run.maps.shape[2]} wide and {run.maps.shape[1]} high",
        "target": None if run.scoring is None else run.scoring.target,
        "classifier": None if run.scoring is None else type(run.scoring.classifier).__name__,
        "seed": run.seed,
    } | dict(run.work.about)


# --- chunks --------------------------------------------------------------------------------------------------------


Found = tuple[str, list[str], dict[str, np.ndarray]]


def _results(run: _Run, folder: Path, *, skip: Callable[[str, str], bool]) -> Iterator[Found]:
    """Yield (explainer, ids, results) of one chunk after the other, from one or several processes."""
    jobs = _jobs(run, skip)
    if run.work.processes == 1 or run.scoring is not None:
        shown = set(spread_ids(run.maps.ids, PICTURES))
        for name, job in jobs:
            if run.scoring is not None:
                _draw(folder / "pictures" / file_name(name), job, run.scoring, shown)
            yield name, job.ids, score_chunk(job, run.scoring)
        return
    pending: deque[tuple[str, list[str], Future]] = deque()
    with ProcessPoolExecutor(run.work.processes, mp_context=_context(), initializer=one_thread) as pool:
        for name, job in jobs:
            pending.append((name, job.ids, pool.submit(score_chunk, job)))
            if len(pending) > 2 * run.work.processes:  # no more chunks in memory than keep everyone busy
                name, ids, future = pending.popleft()
                yield name, ids, future.result()
        for name, ids, future in pending:
            yield name, ids, future.result()


def _draw(folder: Path, job: Chunk, scoring: Scoring, shown: Collection[str]) -> None:
    """Write image, overlay, kept and removed picture side by side, for the images that are shown."""
    places = [i for i, image in enumerate(job.ids) if image in shown]
    if not places:
        return
    folder.mkdir(parents=True, exist_ok=True)
    images, masks, infill = (
        scoring.images([job.ids[i] for i in places]),
        chunk_maps(job)[places],
        MeanColour.of(scoring.classifier),
    )
    pictures = zip(places, images, masks, keep(images, masks, infill), remove(images, masks, infill), strict=True)
    for i, *panels in pictures:
        strip(*panels).save(folder / f"{file_name(job.ids[i])}.png")


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
    context.set_forkserver_preload(["salmask.evaluation.chunks"])
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
        boxes=_known(truth.boxes_on(name, size) for name in names),
        pixels=_known(truth.pixels_on(name, size) for name in names),
        labels=None if truth.labels is None else [truth.labels[name] for name in names],
        gaze=None if run.gaze is None else [run.gaze.of(name) for name in names],
        centre=None if run.gaze is None else _known(run.gaze.centre(name) for name in names),
    )


def _known(values: Iterable[T | None]) -> list[T] | None:
    """Return the values, or None where the truth has none of their kind."""
    known = [value for value in values if value is not None]
    return known or None


def scoring_from(loaded: Loaded, folder: Path, *, target: str = "label") -> Scoring:
    """Return the classifier that scores saved maps, and where it finds their pictures: id = path below `folder`."""
    transform = loaded.view.transform()

    def seen(one: str, boxes: Boxes) -> Sample:
        return transform(Sample(id=one, image=read_image(folder / one), target=0, boxes=boxes, pixels=None))

    def images(ids: Sequence[str]) -> Tensor:
        return collate([seen(one, no_boxes()) for one in ids]).images

    return Scoring(
        loaded.classifier,
        images,
        lambda ids: [str(folder / one) for one in ids if not (folder / one).exists()],
        target,
        lambda one, boxes: seen(one, boxes).boxes,
    )
