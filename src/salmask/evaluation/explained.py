"""One explainer on one batch: explain, time, normalise, play both pictures, score.

`Rules` says how; the same rules for every explainer and image, written to meta.json. An explainer that raises is
told apart from everything else that may go wrong: its batch is repeated image by image.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Batch
from salmask.explain.base import Explainer, Explanation
from salmask.files import JSON, Facts
from salmask.masking import MEAN, Fill, keep, remove
from salmask.metrics.case import Case, Metric
from salmask.outcome import whole_logits
from salmask.types import Images, Infill, Masks, Targets, constant

__all__ = ["COLUMNS", "Block", "Job", "Rules", "measure", "predicted", "take"]

COLUMNS: dict[str, JSON] = {
    "acc_whole": {"direction": "none", "range": [0, 1], "protocol": {"picture": "whole", "class": "label"}},
    "acc_kept": {"direction": "up", "range": [0, 1], "protocol": {"picture": "kept", "class": "label"}},
    "acc_removed": {"direction": "down", "range": [0, 1], "protocol": {"picture": "removed", "class": "label"}},
    "seconds": {
        "direction": "down",
        "range": [0, None],
        "protocol": {"clock": "explain call of a batch / its images"},
    },
    "passes": {"direction": "down", "range": [0, None], "protocol": {"counts": "forward + backward passes"}},
    "passes_forward": {"direction": "none", "range": [0, None], "protocol": {"counts": "forward passes"}},
    "passes_backward": {"direction": "none", "range": [0, None], "protocol": {"counts": "backward passes"}},
    "degenerate": {"direction": "none", "range": [0, 1], "protocol": {"1": "map is constant, empty or full"}},
}
"""Rows that every evaluation has beside its metrics: accuracy, cost, degenerate maps."""

Choose = Callable[[Batch, Tensor], Targets]


def label(batch: Batch, logits: Tensor) -> Targets:
    """Explain the label of the data."""
    return batch.targets


def predicted(batch: Batch, logits: Tensor) -> Targets:
    """Explain the class that the explained classifier predicts on the whole picture."""
    return logits.argmax(1)


_TARGETS: dict[str, Choose] = {"label": label, "predicted": predicted}


@dataclass(frozen=True)
class Rules:
    """How everything is measured; stands in meta.json and must not change within a folder.

    target      which class is explained: "label", "predicted", or a callable (batch, logits) -> targets (B,)
    normalize   how raw maps outside [0, 1] come into it: "minmax", "max", "rank" or "none", or "range": masks that
                declare [0, 1] stay as they are, raw maps go by minimum and maximum; for all explainers
                or by explainer name; an explainer without an entry is asked for its attribute `normalize`
    infill      what stands in hidden pixels of the kept and removed picture; None: the classifier's mean colour
    scoring     classifier that reads the pictures for accuracy and metrics; None: the explained one
    seed        of scores that draw, together with the image's id
    """

    target: str | Choose
    normalize: str | Mapping[str, str] = field(default_factory=dict)
    infill: Infill | None = None
    scoring: Classifier | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.target) and self.target not in _TARGETS:
            raise ValueError(
                f"target must be one of {sorted(_TARGETS)} or a callable (batch, logits) -> targets, "
                f"got {self.target!r}"
            )

    def choose(self, batch: Batch, logits: Tensor) -> Targets:
        """Return the classes to explain."""
        return (self.target if callable(self.target) else _TARGETS[self.target])(batch, logits)

    def normalizer(self, name: str, explainer: object) -> str:
        """Return how the maps of this explainer are normalised."""
        if isinstance(self.normalize, str):
            return self.normalize
        return str(self.normalize.get(name, "none"))


@dataclass
class Job:
    """One explainer, the classifier it explains, and how its maps are scored.

    known: logits of whole pictures that other jobs on the same batch have asked for already.
    """

    name: str
    explainer: Explainer
    classifier: Classifier
    metrics: Facts
    rules: Rules
    known: dict[tuple[int, tuple[str, ...]], Tensor] = field(default_factory=dict)

    def whole(self, classifier: Classifier, batch: Batch, images: Images) -> Tensor:
        """Return a classifier's logits of the whole pictures; asked once, whatever number of jobs share `known`."""
        key = (id(classifier), tuple(batch.ids))
        if key not in self.known:
            self.known[key] = whole_logits(classifier, images)
        return self.known[key]


@dataclass
class Block:
    """The maps of one explainer for a batch, with their scores."""

    batch: Batch
    masks: Masks
    infill: Infill
    values: dict[str, Tensor]  # metric -> (B,), or (B, ...) counts of set-level scores
    set_level: frozenset[str]

    def panels(self, i: int) -> tuple[Images, Masks, Images, Images]:
        """Return one image, its mask, and its kept and removed picture."""
        image, mask = self.batch.images[i : i + 1], self.masks[i : i + 1]
        pictures = image, mask, keep(image, mask, self.infill), remove(image, mask, self.infill)
        first, second, third, fourth = (picture[0] for picture in pictures)
        return first, second, third, fourth

    def rows(self) -> Iterator[tuple[str, dict[str, float], dict[str, np.ndarray]]]:
        """Yield image id, values, and counts of set-level scores."""
        plain = {k: v.tolist() for k, v in self.values.items() if k not in self.set_level}
        counts = {k: v.numpy() for k, v in self.values.items() if k in self.set_level}
        for i, image in enumerate(self.batch.ids):
            yield image, {k: v[i] for k, v in plain.items()}, {k: v[i] for k, v in counts.items()}


class ExplainerFailed(Exception):  # noqa: N818  (carries the cause; never leaves this module)
    """An explainer raised, or returned maps that are not finite."""


def measure(job: Job, batch: Batch, failed: Callable[[str, Exception], None]) -> Iterator[Block]:
    """Yield the block of the batch or, where the explainer fails, those of its single images."""
    try:
        yield _score_batch(job, batch)
        return
    except ExplainerFailed as error:
        if len(batch.ids) == 1:
            failed(batch.ids[0], error)
            return
    for i in range(len(batch.ids)):
        yield from measure(job, take(batch, [i]), failed)


def _score_batch(job: Job, batch: Batch) -> Block:
    """Explain, time, normalise, play and score one batch."""
    device = _device(job.classifier)
    images, labels = batch.images.to(device), batch.targets.to(device)
    logits = job.whole(job.classifier, batch, images)
    targets = job.rules.choose(batch, logits).to(device)
    explanation, seconds = _explain(job, batch, images, targets)
    masks = _masks(explanation, job.rules.normalizer(job.name, job.explainer), job.name, batch.ids)
    scoring = job.rules.scoring or job.classifier
    infill = job.rules.infill
    fill = MEAN if infill is None else Fill(repr(infill), lambda classifier: infill)
    case = Case(
        masks=masks,
        targets=targets,
        ids=list(batch.ids),
        seed=job.rules.seed,
        boxes=batch.boxes,
        pixels=batch.pixels,
        images=images,
        classifier=scoring,
        clean=job.whole(scoring, batch, images),
        correct=_right(job.explainer, logits, labels),
    )
    values = {name: _score(metric, case) for name, metric in job.metrics.items()}
    outcome = case.outcome(fill)
    sides = {"whole": outcome.clean, "kept": outcome.kept_logits, "removed": outcome.removed_logits}
    values |= {f"acc_{side}": (logits.argmax(1) == labels).double() for side, logits in sides.items()}
    values |= _cost(explanation, seconds, len(images))
    values["degenerate"] = constant(masks).double()
    return Block(
        batch,
        masks.cpu(),
        fill.infill(scoring),
        {name: value.detach().cpu() for name, value in values.items()},
        frozenset(name for name, metric in job.metrics.items() if metric.compute is not None),
    )


def _right(explainer: Explainer, logits: Tensor, labels: Targets) -> Tensor:
    """Return whether the explained model is right; always, where a map is no model's (spec 4.3: OM is LE there)."""
    right = logits.argmax(1) == labels
    return torch.ones_like(right) if explainer.naive else right


def _explain(job: Job, batch: Batch, images: Images, targets: Targets) -> tuple[Explanation, float]:
    """Return the explanation and the seconds it took; raise ExplainerFailed for whatever goes wrong."""
    extra = {key: getattr(batch, key) for key in ("boxes", "pixels", "ids") if key in job.explainer.wants}
    try:
        _wait(images)
        start = time.perf_counter()
        explanation = job.explainer(job.classifier, images, targets, **extra)
        _wait(images)
        seconds = time.perf_counter() - start
    except Exception as error:
        raise ExplainerFailed(f"{type(error).__name__}: {error}") from error
    if not bool(torch.isfinite(explanation.masks).all()):
        raise ExplainerFailed("the map holds NaN or infinite values")
    return explanation, seconds


def _masks(explanation: Explanation, normalizer: str, name: str, ids: list[str]) -> Masks:
    """Return the maps in [0, 1]; a map outside it without a normaliser is an error, never a silent rescale."""
    if normalizer == "range":
        return explanation.bounded().masks.detach().float()
    if normalizer != "none":
        return explanation.normalized(normalizer).masks.detach().float()
    masks = explanation.masks.detach().float()
    low, high = float(masks.min()), float(masks.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"maps of explainer {name!r} span [{low:.3g}, {high:.3g}] on images {ids[0]}..., expected [0, 1]: "
            f"say how to normalise them, normalize={{{name!r}: 'minmax'}} (or 'max', 'rank')"
        )
    return masks


def _score(metric: Metric, case: Case) -> Tensor:
    values = metric(case)
    if len(values) != len(case.ids) or (metric.compute is None and values.ndim != 1):
        raise ValueError(
            f"metric {metric.name!r} must give one value per image, ({len(case.ids)},), "
            f"got {tuple(values.shape)}: reduce nothing over the batch"
        )
    return values


def _cost(explanation: Explanation, seconds: float, size: int) -> dict[str, Tensor]:
    """Return the cost columns."""
    forward, backward = explanation.passes.forward, explanation.passes.backward

    def column(value: float) -> Tensor:
        return torch.full((size,), value, dtype=torch.float64)

    one, other = column(forward), column(backward)
    return {
        "seconds": column(seconds / size),
        "passes": one + other,
        "passes_forward": one,
        "passes_backward": other,
    }


def _device(classifier: Classifier) -> torch.device:
    parameters = getattr(classifier, "parameters", None)
    first = next(iter(parameters()), None) if parameters else None
    return torch.device("cpu") if first is None else first.device


def _wait(images: Tensor) -> None:
    if images.is_cuda:  # a kernel that still runs would be timed with the next explainer
        torch.cuda.synchronize(images.device)


def take(batch: Batch, places: list[int]) -> Batch:
    """Return the batch of the images at these places."""
    if len(places) == len(batch.ids):
        return batch
    parts: JSON = dict(zip(batch._fields, batch, strict=True))
    parts = {n: part[places] if isinstance(part, Tensor) else [part[i] for i in places] for n, part in parts.items()}
    return batch._replace(**parts)
