"""Saved maps as a source of cases: read in chunks of bounded memory, scored here or by several processes.

A chunk is one `Case`. What it needs travels to another process: metrics by name, mapped maps as their place in the
file. Boxes, pixel masks and labels come from `truth`, gaze from `gaze`; trivial maps are scored on the same images.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Sample, collate, no_boxes, read_image
from salmask.data.streams import MOST_PROCESSES, Bar
from salmask.evaluation.cases import DEGENERATE, Failed, Scored, Skip, StripParts, digest, score_case, usable
from salmask.evaluation.gaze import Gaze, read_gaze
from salmask.evaluation.maps import Piece, SavedMaps, open_maps
from salmask.evaluation.panels import strip_parts
from salmask.evaluation.truth import Label, Truth, read_truth
from salmask.explain.controls import BASELINES
from salmask.files import Facts
from salmask.masking import MeanColour
from salmask.metrics import METRICS, Case, Metric
from salmask.metrics.case import check_maps
from salmask.training.run import Loaded
from salmask.types import NORMALISERS, Boxes, Images, Masks, normalise

__all__ = ["Chunk", "Saved", "Scoring", "Work", "score_chunk", "scoring_from"]

CHUNK = 64
T = TypeVar("T")
_REMEDY = (
    "boxes come with --boxes, pixels with --masks, correct with --labels and its column predicted, "
    "images and classifier with --classifier and --data, gaze (and centre, from two images on) with --gaze"
)


@dataclass(frozen=True)
class Work:
    """What changes no number: how maps are scored, and what the page's header says.

    processes: side by side; progress: watches the chunks go by; only_scored: boxes and labels of images that have no
    map are left out, instead of raising; about: data, classifier, command, version, in words.
    """

    processes: int = 1
    progress: Bar = iter
    only_scored: bool = False
    about: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= MOST_PROCESSES:
            raise ValueError(f"processes are 1 to {MOST_PROCESSES}; got {self.processes}")


@dataclass(frozen=True)
class Scoring:
    """The classifier that scores pictures, and where the pictures are.

    images: ids -> (B, C, H, W) in [0, 1], of the maps' size.
    missing: ids -> those that have no picture, where that can be told without reading it.
    target: which class is explained, the "label" or the "predicted" one of the labels.
    place: id, boxes in pixels of its picture as it lies on the disk -> boxes in pixels of its map.
    """

    classifier: Classifier
    images: Callable[[Sequence[str]], Images]
    missing: Callable[[Sequence[str]], Sequence[str]] = lambda ids: ()
    target: str = "label"
    place: Callable[[str, Boxes], Boxes] | None = None

    def __post_init__(self) -> None:
        if self.target not in ("label", "predicted"):
            raise ValueError(f"target must be label or predicted; got {self.target!r}")

    def check(self, ids: Sequence[str], size: tuple[int, int]) -> None:
        """Read every picture once. Errors: ValueError where one is missing, broken or not of the maps' size (H, W)."""
        if lost := self.missing(ids):
            raise ValueError(
                f"no picture for {len(lost)} of {len(ids)} ids, such as {lost[0]}: an id is the path of a picture "
                "below the folder of data"
            )
        for name in ids:
            got = tuple(self.images([name]).shape[-2:])
            if got != size:
                raise ValueError(
                    f"the classifier is shown pictures {got[1]} wide and {got[0]} high, the maps are {size[1]} wide "
                    f"and {size[0]} high: give --image-size {size[1]}, or make the maps larger"
                )

    def explained(self, label: Label) -> int:
        """Return the class that is explained."""
        if self.target == "label" or label.predicted is None:  # labels without it are refused before
            return label.target
        return label.predicted


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


# --- a chunk -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """What one chunk needs, wherever it is scored.

    maps: those of a file, or the name of a baseline, which is drawn in `size` for each id.
    """

    metrics: list[str]
    normalize: str
    seed: int
    ids: list[str]
    maps: Piece | str
    size: tuple[int, int]
    boxes: list[Float[torch.Tensor, "_ 4"]] | None
    pixels: list[UInt8[torch.Tensor, "_ _"]] | None
    labels: list[Label] | None
    gaze: list[Float[torch.Tensor, "_ _"]] | None = None
    centre: list[Float[torch.Tensor, "_ _"]] | None = None

    def read(self) -> Masks:
        """Return its maps (B, 1, H, W), in [0, 1] if `normalize` brings them there."""
        if isinstance(self.maps, str):
            draw = BASELINES[self.maps]
            return torch.stack([draw(self.size, image, self.seed)[None] for image in self.ids])
        maps = torch.from_numpy(self.maps.read())[:, None]
        if self.normalize == "none" or not bool(torch.isfinite(maps).all()):  # what is not finite is refused by Case
            return maps
        return normalise(maps, self.normalize)

    def case(self, scoring: Scoring | None) -> Case:
        """Return it as a case; errors as of Case."""
        labels, correct = self.labels or [Label(0)] * len(self.ids), None
        if all(label.predicted is not None for label in labels):
            naive = isinstance(self.maps, str)  # no model's map: the overall metric takes the image as classified right
            correct = torch.tensor([naive or label.predicted == label.target for label in labels])
        return Case(
            masks=self.read(),
            targets=torch.tensor([label.target if scoring is None else scoring.explained(label) for label in labels]),
            ids=self.ids,
            seed=self.seed,
            boxes=self.boxes,
            pixels=self.pixels,
            images=None if scoring is None else scoring.images(self.ids),
            classifier=None if scoring is None else scoring.classifier,
            correct=correct,
            gaze=None if self.gaze is None else torch.stack(self.gaze)[:, None],
            centre=None if self.centre is None else torch.stack(self.centre)[:, None],
        )


def score_chunk(chunk: Chunk, scoring: Scoring | None = None) -> dict[str, np.ndarray]:
    """Return metric -> (B,) values or (B, ...) counts of a chunk: all that another process does."""
    return score_case(chunk.case(scoring), {name: METRICS[name] for name in chunk.metrics})


def one_thread() -> None:
    """Let this process use one thread, since others work beside it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _context() -> BaseContext:
    """Return how processes start: from a server that has imported what they need, or anew where there is none."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# --- the source ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """Maps in a file, and trivial ones beside them: the source of cases whose maps are there already."""

    maps: SavedMaps
    truth: Truth
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]
    normalize: str
    seed: int
    scoring: Scoring | None
    baselines: Sequence[str]
    gaze: Gaze | None
    work: Work

    @classmethod
    def of(
        cls,
        maps: str | Path,
        boxes: str | Path | None,
        masks_dir: str | Path | None,
        labels: str | Path | None,
        gaze: str | Path | None,
        *,
        metrics: Sequence[str] | None,
        normalize: str,
        scoring: Scoring | None,
        baselines: Sequence[str],
        seed: int,
        work: Work,
    ) -> "Saved":
        """Open maps and truth, and choose the metrics; arguments and errors as of `score`."""
        if normalize not in NORMALISERS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALISERS)}; got {normalize!r}")
        if scoring is not None and labels is None:
            raise ValueError("which class is to be scored? Give labels (image,label) beside the classifier")
        saved = open_maps(maps)
        if wrong := [name for name in baselines if name not in BASELINES or name == saved.path.stem]:
            raise ValueError(
                f"baselines must be among {', '.join(BASELINES)}, and not the maps' own name; got {wrong[0]!r}"
            )
        truth = read_truth(boxes, masks_dir, labels, saved.ids)
        truth = truth.only(saved.ids) if work.only_scored else truth
        truth.match(saved.ids)
        truth = truth if scoring is None else replace(truth, place=scoring.place)
        if scoring is not None and scoring.target == "predicted" and "correct" not in truth.has():
            raise ValueError("the predicted class is to be explained: give labels with the column predicted")
        watched = None if gaze is None else read_gaze(gaze, saved.ids, (saved.shape[1], saved.shape[2]))
        given = truth.has() | ({"images", "classifier"} if scoring is not None else set())
        given |= set() if watched is None else {"gaze"} if watched.count < 2 else {"gaze", "centre"}
        chosen, left_out = _chosen(metrics, given)
        return cls(saved, truth, chosen, left_out, normalize, seed, scoring, tuple(baselines), watched, work)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the maps."""
        return self.maps.shape[1], self.maps.shape[2]

    @property
    def columns(self) -> Mapping[str, Facts]:
        """Degenerate maps alone."""
        return {"degenerate": DEGENERATE}

    @property
    def explainers(self) -> Mapping[str, Facts]:
        """The maps by the name of their file, and the baselines."""
        _, piece = next(iter(self.maps.pieces(1)))
        ours = {"maps": str(self.maps.path), "normalize": self.normalize, "truth": False}
        ours |= {"first map": digest(self.maps.ids[0], piece.read())}
        trivial = {name: {"maps": "baseline", "normalize": "none", "truth": False} for name in self.baselines}
        return {self.maps.path.stem: ours, **trivial}

    @property
    def settings(self) -> Facts:
        """What maps are scored against, and by which network."""
        height, width = self.size
        return {
            "left_out": dict(self.left_out),
            "data": f"{self.maps.path.name}: {len(self.maps)} maps, {width} wide and {height} high",
            "target": None if self.scoring is None else self.scoring.target,
            "classifier": None if self.scoring is None else type(self.scoring.classifier).__name__,
            "scoring": None if self.scoring is None else self.scoring.classifier.fingerprint(),
            "reading": None if self.scoring is None else self.scoring.classifier.reading(),
            "seed": self.seed,
            **self.work.about,
        }

    def check(self) -> None:
        """Look at every map and all truth, before anything is written and hours are spent. Errors: ValueError."""
        if self.scoring is not None:
            predicted = self.scoring.target == "predicted"
            self.truth.check_labels(self.maps.ids, self.scoring.classifier.num_classes, predicted=predicted)
            self.scoring.check(self.maps.ids, self.size)
        self.truth.check(self.maps.ids, self.size)
        for ids, piece in self.maps.pieces(CHUNK):
            check_maps(torch.from_numpy(piece.read()), ids, bounded=self.normalize == "none")

    def scored(self, skip: Skip, failed: Failed) -> Iterator[Scored]:
        """Yield the scores of one chunk after the other, from one or several processes."""
        yield from self.work.progress(self._results(skip))

    def _results(self, skip: Skip) -> Iterator[Scored]:
        chunks = self._chunks(skip)
        if self.work.processes == 1 or self.scoring is not None:
            for name, chunk in chunks:
                yield Scored(name, chunk.ids, score_chunk(chunk, self.scoring), self._panels(chunk))
            return
        pending: deque[tuple[str, Chunk, Future[dict[str, np.ndarray]]]] = deque()
        with ProcessPoolExecutor(self.work.processes, mp_context=_context(), initializer=one_thread) as pool:
            for name, chunk in chunks:
                pending.append((name, chunk, pool.submit(score_chunk, chunk)))
                if len(pending) > 2 * self.work.processes:  # no more chunks in memory than keep everyone busy
                    yield _result(*pending.popleft())
            while pending:
                yield _result(*pending.popleft())

    def _panels(self, chunk: Chunk) -> Callable[[int], StripParts] | None:
        if self.scoring is None:
            return None
        scoring = self.scoring

        def panels(i: int) -> StripParts:
            image, mask = scoring.images([chunk.ids[i]]), chunk.read()[i : i + 1].float()
            return strip_parts(image, mask, MeanColour.of(scoring.classifier), scoring.classifier)

        return panels

    def _chunks(self, skip: Skip) -> Iterator[tuple[str, Chunk]]:
        """Yield the chunks that are not scored yet, each followed by the baselines of the same images."""
        for ids, piece in self.maps.pieces(CHUNK):
            for name in (self.maps.path.stem, *self.baselines):
                if left := [i for i, image in enumerate(ids) if not skip(name, image)]:
                    yield (
                        name,
                        self._chunk([ids[i] for i in left], name if name in self.baselines else piece.only(left)),
                    )

    def _chunk(self, ids: list[str], maps: Piece | str) -> Chunk:
        truth, gaze = self.truth, self.gaze
        return Chunk(
            metrics=list(self.metrics),
            normalize=self.normalize,
            seed=self.seed,
            ids=ids,
            maps=maps,
            size=self.size,
            boxes=_all_or_none(truth.boxes_on(name, self.size) for name in ids),
            pixels=_all_or_none(truth.pixels_on(name, self.size) for name in ids),
            labels=None if truth.labels is None else [truth.labels[name] for name in ids],
            gaze=None if gaze is None else [gaze.of(name) for name in ids],
            centre=None if gaze is None else _all_or_none(gaze.centre(name) for name in ids),
        )


def _result(name: str, chunk: Chunk, future: "Future[dict[str, np.ndarray]]") -> Scored:
    return Scored(name, chunk.ids, future.result())


def _all_or_none(values: Iterable[T | None]) -> list[T] | None:
    """Return the values, or None where the truth has none of their kind."""
    return [value for value in values if value is not None] or None


def _chosen(names: Sequence[str] | None, given: set[str]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics to compute and, of the plain names, those that lack something, with what they lack."""
    if names is None:
        plain = {name: metric for name, metric in METRICS.items() if ":" not in name}
        needs = {need: need for metric in plain.values() for need in metric.needs - given}
        return usable(plain, needs, "it needs {}, not given", joined=", ")
    for name in names:
        if name not in METRICS:
            near = [other for other in METRICS if other.split(":")[0] == name.split(":")[0]]
            near = near or get_close_matches(name, METRICS, 3) or [other for other in METRICS if ":" not in other]
            raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(near)}")
        if missing := METRICS[name].needs - given:
            raise ValueError(f"the metric {name!r} needs {', '.join(sorted(missing))}, which is not given: {_REMEDY}")
    return {name: METRICS[name] for name in names}, {}
