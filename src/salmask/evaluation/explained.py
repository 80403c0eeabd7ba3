"""Explainers at work, as a source of cases: explain, time, normalise, play both pictures, score.

`Rules` says how; the same rules for every explainer and image, written to meta.json. An explainer that raises is
told apart from everything else that may go wrong: its batch is repeated image by image, and the image that fails is
recorded with its error.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.inputs import checked
from salmask.data import Batch
from salmask.data.streams import Bar
from salmask.evaluation.cases import DEGENERATE, Failed, Scored, Skip, StripParts, digest, plain, score_case, usable
from salmask.evaluation.panels import strip_parts
from salmask.explain.base import Explainer, Explanation, explainer_of
from salmask.files import JSON, Facts
from salmask.metrics.case import Case, Metric
from salmask.metrics.fills import MEAN, Fill
from salmask.outcome import whole_logits
from salmask.training.settings import FULL
from salmask.types import Images, Infill, Logits, Masks, Targets

__all__ = [
    "COLUMNS",
    "Explained",
    "Rules",
    "decided_label",
    "predicted",
]

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
    "degenerate": DEGENERATE,
}
"""Rows that every evaluation has beside its metrics: accuracy, cost, degenerate maps."""

Choose = Callable[[Batch, Logits], Targets]
"""(batch, logits of the explained classifier) -> the classes to explain."""


def label(batch: Batch, logits: Logits) -> Targets:
    """Explain the label of the data."""
    return batch.targets


def predicted(batch: Batch, logits: Logits) -> Targets:
    """Explain the class that the explained classifier predicts on the whole picture."""
    return logits.argmax(1)


def decided_label(batch: Batch, logits: Logits) -> Targets:
    """Explain the label of each case, where the cases are every label that the classifier holds likelier than .5."""
    return batch.targets


_TARGETS: dict[str, Choose] = {"label": label, "predicted": predicted}


@dataclass(frozen=True)
class Rules:
    """How everything is measured; stands in meta.json and must not change within a folder.

    target      which class is explained: "label", "predicted", or a callable (batch, logits) -> targets (B,)
    normalize   how raw maps outside [0, 1] come into it: "minmax", "max", "rank" or "none", or "range": masks that
                declare [0, 1] stay as they are, raw maps go by minimum and maximum; for all explainers
                or by explainer name; an explainer without an entry must make maps in [0, 1]
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

    def choose(self, batch: Batch, logits: Logits) -> Targets:
        """Return the classes to explain."""
        return (self.target if callable(self.target) else _TARGETS[self.target])(batch, logits)

    def normalizer(self, name: str) -> str:
        """Return how the maps of this explainer are normalised."""
        if isinstance(self.normalize, str):
            return self.normalize
        return str(self.normalize.get(name, "none"))


@dataclass(frozen=True)
class Explained:
    """Explainers at work on a stream of images: the source of cases whose maps are made as they are scored.

    explainers, classifiers: by name, an explainer and the classifier that it explains. batches: may be read once only
    where they are an iterator. left_out: metric -> why the data cannot serve it. about: words for the page's header.
    autocast: within which explainers and classifiers compute; precision: its name.
    """

    methods: Mapping[str, Explainer]
    classifiers: Mapping[str, Classifier]
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]
    batches: Iterable[Batch]
    first: Batch
    rules: Rules
    about: Mapping[str, object]
    progress: Bar = iter
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    precision: str = FULL

    @classmethod
    def of(
        cls,
        methods: Mapping[str, Explainer | Callable[..., Explanation]],
        classifier: Classifier | Mapping[str, Classifier],
        metrics: Mapping[str, Metric],
        batches: Iterable[Batch],
        *,
        rules: Rules,
        about: Mapping[str, object],
        progress: Bar = iter,
    ) -> "Explained":
        """Look at the first batch and leave out the metrics that the data cannot serve. Errors: ValueError for none."""
        first, again = _peek(batches)
        lacking = {"gaze": "human attention"}
        lacking |= {} if any(len(boxes) for boxes in first.boxes) else {"boxes": "boxes"}
        lacking |= {} if any(pixels is not None for pixels in first.pixels) else {"pixels": "pixel masks"}
        asked = (
            [rules.scoring]
            if rules.scoring
            else classifier.values()
            if isinstance(classifier, Mapping)
            else [classifier]
        )
        lacking |= {} if all(one.inputs for one in asked) else {"inputs": "second input"}
        served, left_out = usable(metrics, lacking, "the data's first batch has no {}")
        if metrics and not served:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise ValueError(f"none of the metrics that were asked for can be measured ({reasons}): name others")
        named = {name: explainer_of(one) for name, one in methods.items()}
        classifiers = {name: _classifier_of(classifier, name) for name in named}
        return cls(named, classifiers, served, left_out, again, first, rules, about, progress)

    @property
    def columns(self) -> Mapping[str, Facts]:
        """Accuracies, cost, degenerate maps."""
        return COLUMNS

    @property
    def explainers(self) -> Mapping[str, Facts]:
        """What each explainer is; `truth` marks one that reads boxes or pixels: it is not ranked."""
        return {
            name: {
                "kind": one.kind,
                "settings": plain(one.settings),
                "truth": bool({"boxes", "pixels"} & one.wants),
                "normalize": self.rules.normalizer(name),
                "weights": self.classifiers[name].fingerprint(),
                "reading": self.classifiers[name].reading(),
            }
            for name, one in self.methods.items()
        }

    @property
    def settings(self) -> Facts:
        """How maps are measured, and which data and pictures they are of."""
        rules, first = self.rules, self.first
        height, width = first.images.shape[-2:]
        picture = (first.images[0] * 255).round().byte().cpu().numpy()
        return {
            "left_out": dict(self.left_out),
            "target": rules.target if isinstance(rules.target, str) else rules.target.__name__,
            "seed": rules.seed,
            "infill": "mean colour" if rules.infill is None else repr(rules.infill),
            "scoring": None if rules.scoring is None else rules.scoring.fingerprint(),
            "reading": None if rules.scoring is None else rules.scoring.reading(),
            "size": f"{width}x{height}",
            "first picture": f"{first.ids[0]} {digest(first.ids[0], picture)}",
            **({} if self.precision == FULL else {"precision": self.precision}),
            **{key: plain(value) for key, value in self.about.items()},
        }

    def scored(self, skip: Skip, failed: Failed) -> Iterator[Scored]:
        """Explain and score every batch by every explainer; where one fails, its batch is repeated image by image."""
        for number, batch in enumerate(self.progress(self.batches)):
            answers: _Answers = {}  # what the classifiers say of the whole pictures: the same for all explainers
            for name in self.methods:
                if missing := [i for i, image in enumerate(batch.ids) if not skip(name, image)]:
                    for scored in self._measured(name, _taken(batch, missing), answers, failed):
                        yield replace(scored, batch=number)

    def _measured(self, name: str, batch: Batch, answers: "_Answers", failed: Failed) -> Iterator[Scored]:
        try:
            with checked(batch.images, self.classifiers[name].channels_in), self.autocast():
                scored = self._measure(name, batch, answers)
            yield scored
            return
        except ExplainerFailed as error:
            if len(batch.ids) == 1:
                failed(name, batch.ids[0], error)
                return
        for i in range(len(batch.ids)):
            yield from self._measured(name, _taken(batch, [i]), answers, failed)

    def _measure(self, name: str, batch: Batch, answers: "_Answers") -> Scored:
        """Explain, time, normalise, play and score one batch."""
        explainer, classifier, rules = self.methods[name], self.classifiers[name], self.rules
        images, labels = batch.images.to(classifier.device), batch.targets.to(classifier.device)
        logits = _whole(classifier, batch, images, answers)
        targets = rules.choose(batch, logits).to(classifier.device)
        explanation, seconds = _explain(explainer, classifier, batch, images, targets)
        scoring, infill = rules.scoring or classifier, rules.infill
        fill = MEAN if infill is None else Fill(repr(infill), lambda _: infill)
        case = Case(
            masks=_masks(explanation, rules.normalizer(name), name, batch.ids),
            targets=targets,
            ids=list(batch.ids),
            seed=rules.seed,
            boxes=batch.boxes,
            pixels=batch.pixels,
            images=images,
            classifier=scoring,
            clean=_whole(scoring, batch, images, answers),
            correct=_right(explainer, *classifier.question(logits, labels)),
        )
        values = score_case(case, self.metrics)
        outcome = case.outcome(fill)
        sides = {"whole": outcome.clean, "kept": outcome.kept_logits, "removed": outcome.removed_logits}
        wanted = outcome.targets if scoring.multilabel else labels.to(outcome.targets)  # whether the label is there
        values |= {
            f"acc_{side}": (side_logits.argmax(1) == wanted).double().cpu().numpy()
            for side, side_logits in sides.items()
        }
        values |= _cost(explanation, seconds, len(images))
        values["degenerate"] = values.pop("degenerate")  # the last column

        def panels(i: int) -> StripParts:
            image, shown = batch.images[i : i + 1], fill.infill(scoring)
            mask = (case.masks if case.by_input is None else case.by_input)[i : i + 1].cpu()
            return strip_parts(image, mask, shown, scoring)

        return Scored(name, batch.ids, values, panels)


_Answers = dict[tuple[int, tuple[str, ...]], Tensor]


class ExplainerFailed(Exception):  # noqa: N818  (carries the cause; never leaves this module)
    """An explainer raised, or returned maps that are not finite."""


def _classifier_of(classifier: Classifier | Mapping[str, Classifier], name: str) -> Classifier:
    if not isinstance(classifier, Mapping):
        return classifier
    if name not in classifier:
        raise ValueError(f"no classifier for explainer {name!r}: expected one of {sorted(classifier)}")
    return classifier[name]


def _peek(batches: Iterable[Batch]) -> tuple[Batch, Iterable[Batch]]:
    """Return the first batch and an iterable that still begins with it."""
    if not isinstance(batches, Iterator):
        first, again = next((batch for batch in batches if batch.ids), None), batches
    else:
        first = next((batch for batch in batches if batch.ids), None)
        again = itertools.chain([first] if first is not None else [], batches)
    if first is None:
        raise ValueError("expected at least one batch of images, got none: look at the data's folder and split")
    return first, again


def _whole(classifier: Classifier, batch: Batch, images: Images, answers: _Answers) -> Tensor:
    """Return a classifier's logits of the whole pictures; asked once, whatever number of explainers share `answers`."""
    key = (id(classifier), tuple(batch.ids))
    if key not in answers:
        answers[key] = whole_logits(classifier, images)
    return answers[key]


def _right(explainer: Explainer, logits: Tensor, labels: Targets) -> Tensor:
    """Return whether the explained model is right; always, where a map is no model's (spec 4.3: OM is LE there)."""
    right = logits.argmax(1) == labels
    return torch.ones_like(right) if explainer.naive else right


def _explain(
    explainer: Explainer, classifier: Classifier, batch: Batch, images: Images, targets: Targets
) -> tuple[Explanation, float]:
    """Return the explanation and the seconds it took; raise ExplainerFailed for whatever goes wrong."""
    offered: JSON = {"boxes": batch.boxes, "pixels": batch.pixels, "ids": batch.ids}
    extra = {key: value for key, value in offered.items() if key in explainer.wants}
    try:
        _wait(images)
        start = time.perf_counter()
        explanation = explainer(classifier, images, targets, **extra)
        _wait(images)
        seconds = time.perf_counter() - start
    except Exception as error:
        raise ExplainerFailed(f"{type(error).__name__}: {error}") from error
    if not bool(torch.isfinite(explanation.masks).all()):
        raise ExplainerFailed("the map holds NaN or infinite values")
    return explanation, seconds


def _masks(explanation: Explanation, normalizer: str, name: str, ids: Sequence[str]) -> Masks:
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


def _cost(explanation: Explanation, seconds: float, size: int) -> dict[str, np.ndarray]:
    """Return the cost columns."""
    forward, backward = explanation.passes.forward, explanation.passes.backward
    columns = {
        "seconds": seconds / size,
        "passes": forward + backward,
        "passes_forward": forward,
        "passes_backward": backward,
    }
    return {name: np.full(size, value, dtype=np.float64) for name, value in columns.items()}


def _wait(images: Tensor) -> None:
    if images.is_cuda:  # a kernel that still runs would be timed with the next explainer
        torch.cuda.synchronize(images.device)


def _taken(batch: Batch, chosen: Sequence[int]) -> Batch:
    """Return the batch of some of its images."""
    if len(chosen) == len(batch.ids):
        return batch
    rows = list(chosen)
    return Batch(
        ids=[batch.ids[i] for i in rows],
        images=batch.images[rows],
        targets=batch.targets[rows],
        boxes=[batch.boxes[i] for i in rows],
        pixels=[batch.pixels[i] for i in rows],
    )
