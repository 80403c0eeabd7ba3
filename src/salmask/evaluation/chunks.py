"""One chunk of maps: what it needs, and its scores. All that another process has to import.

The import is light on purpose (no classifier, no report): with a fork server, processes share its memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from salmask.evaluation.saved import Piece
from salmask.explain.controls import BASELINES
from salmask.metrics import METRICS, Case, Metric
from salmask.types import Boxes, Images, Masks, constant_span, normalise

__all__ = ["Chunk", "Label", "Scoring", "chunk_maps", "one_thread", "score_case", "score_chunk"]


@dataclass(frozen=True)
class Label:
    """What is known of an image's class: the explained class and, if given, the explained model's own top-1."""

    target: int
    predicted: int | None = None


@dataclass(frozen=True)
class Scoring:
    """The classifier that scores pictures, and where the pictures are.

    images: ids -> (B, 3, H, W) in [0, 1], of the maps' size.
    missing: ids -> those that have no picture, where that can be told without reading it.
    target: which class is explained, the "label" or the "predicted" one of the labels.
    place: id, boxes in pixels of its picture as it lies on the disk -> boxes in pixels of its map.
    """

    classifier: Any
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
            came = tuple(self.images([name]).shape[-2:])
            if came != size:
                raise ValueError(
                    f"the classifier is shown pictures {came[1]} wide and {came[0]} high, the maps are {size[1]} wide "
                    f"and {size[0]} high: give --image-size {size[1]}, or make the maps larger"
                )


@dataclass(frozen=True)
class Chunk:
    """What one chunk needs; travels to another process, so metrics go by name and mapped maps as their place.

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


def score_case(case: Case, metrics: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """Return metric -> (B,) values or (B, ...) counts of one case, and "degenerate": which maps are constant."""
    found = {name: metric(case).detach().cpu().numpy() for name, metric in metrics.items()}
    if case.size[0] * case.size[1] < 2**16:  # counts of pixels (int32) then take half the memory and the disk
        found = {
            name: values.astype(np.uint16) if values.dtype == np.int32 else values for name, values in found.items()
        }
    return found | {"degenerate": constant_span(case.looked.low, case.looked.high).cpu().numpy().astype(np.float32)}


def one_thread() -> None:
    """Let this process use one thread, since others work beside it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def score_chunk(job: Chunk, scoring: Scoring | None = None) -> dict[str, np.ndarray]:
    """Return metric -> (B,) values or (B, ...) counts of a chunk; errors as of Case."""
    maps = chunk_maps(job)
    labels = job.labels or [Label(0)] * len(job.ids)
    correct = None
    if all(label.predicted is not None for label in labels):
        naive = isinstance(job.maps, str)  # no model's map: the overall metric takes the image as classified right
        correct = torch.tensor([naive or label.predicted == label.target for label in labels])
    case = Case(
        masks=maps,
        targets=torch.tensor([_explained(label, scoring) for label in labels]),
        ids=job.ids,
        seed=job.seed,
        boxes=job.boxes,
        pixels=job.pixels,
        images=None if scoring is None else scoring.images(job.ids),
        classifier=None if scoring is None else scoring.classifier,
        correct=correct,
        gaze=None if job.gaze is None else torch.stack(job.gaze)[:, None],
        centre=None if job.centre is None else torch.stack(job.centre)[:, None],
    )
    return score_case(case, {name: METRICS[name] for name in job.metrics})


def _explained(label: Label, scoring: Scoring | None) -> int:
    if scoring is None or scoring.target == "label":
        return label.target
    assert label.predicted is not None  # by score
    return label.predicted


def chunk_maps(job: Chunk) -> Masks:
    """Return the maps of a chunk (B, 1, H, W), in [0, 1] if `normalize` brings them there."""
    if isinstance(job.maps, str):
        draw = BASELINES[job.maps]
        return torch.stack([draw(job.size, image, job.seed)[None] for image in job.ids])
    maps = torch.from_numpy(job.maps.read())[:, None]
    if job.normalize == "none" or not bool(torch.isfinite(maps).all()):  # what is not finite is refused by Case
        return maps
    return normalise(maps, job.normalize)
