"""The one loop behind every mask that is optimised for a single image.

    theta <- theta - step(d/d theta [ objective(outcome of m(theta)) + penalty ]),   one value an image, summed

A method is a parametrisation m(theta), an objective (the terms of training), an infill and a schedule. Values
are summed over the batch, never averaged, every random draw is made once for all images, and each image has
its own optimiser state and stop test: a map is the same whatever else is in the batch. An image that is done
leaves the batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.branches import check_one_branch
from salmask.classifier.folded import folded
from salmask.classifier.hold import pieces, without_checkpoints
from salmask.classifier.inputs import checked
from salmask.explain.base import Explainer, Explanation, Passes, as_targets, check_targets
from salmask.explain.batching import check_alive, check_batch, check_reached, entered
from salmask.explain.optimise.masks import Drawn, MapWeights, Parametrisation, Scene
from salmask.explain.optimise.schedule import Schedule, View
from salmask.masking import MeanColour, prepare
from salmask.objective import Objective
from salmask.outcome import Outcome, play
from salmask.types import Asked, Images, Infill, Logits, Masks, Prepared, Targets, Values, size_of

__all__ = ["Optimised", "Solution", "mean_probability"]

Pool = Callable[[Tensor], Tensor]


def _repeat(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class _Stage:
    """The rows of all that a step reads, for the items that are still running."""

    images: Tensor
    targets: Tensor
    clean: Tensor
    backdrop: Prepared
    fixed: tuple[Tensor, ...]

    @classmethod
    def build(cls, scene: Scene, backdrop: Prepared, fixed: tuple[Tensor, ...], items: int) -> "_Stage":
        stage = cls(scene.images, scene.targets, scene.features.logits, backdrop, ())
        if items != len(scene.images):
            every = torch.arange(len(scene.images), device=scene.images.device)
            stage = stage.take(every.repeat_interleave(items // len(scene.images)))
        return replace(stage, fixed=fixed)

    def take(self, index: Tensor) -> "_Stage":
        return _Stage(
            self.images[index],
            self.targets[index],
            self.clean[index],
            self.backdrop.take(index),
            tuple(rows[index] for rows in self.fixed),
        )


# The loop


class Solution(NamedTuple):
    """Maps, what they cost, and how each item went: values (steps, items), NaN once an item was done."""

    masks: Masks
    targets: Targets
    logits: Logits
    passes: Passes
    steps: Int[Tensor, " items"]
    history: Float[Tensor, "steps items"]


@dataclass(frozen=True)
class Optimised(Explainer):
    """An explainer that optimises a mask for each image.

    draws: random masks or infills an image and step. pool: (draws, B, K) logits -> (B, K) that the objective
    sees; None takes the mean of the objective over the draws. view: jitter of the pictures at a step.
    max_batch: pictures in one pass, at least one image's. infill: None is the classifier's mean colour.
    Deterministic by `seed`; a batch gives what single images give.
    """

    parametrisation: Parametrisation
    objective: Objective
    infill: Infill | None = None
    schedule: Schedule = field(default_factory=Schedule)
    draws: int = 1
    pool: Pool | None = None
    view: View | None = None
    seed: int = 0
    max_batch: int = 32

    def __post_init__(self) -> None:
        if self.draws < 1 or self.max_batch < 1:
            raise ValueError(f"expected draws and max_batch >= 1, got {self.draws} and {self.max_batch}")
        if not self.objective.sides:
            raise ValueError("the objective reads neither the kept nor the removed picture: add a term that does")

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones."""
        result = self.solve(classifier, images, targets)
        return Explanation(result.masks, result.targets, result.logits, result.passes)

    def for_labels(
        self, classifier: Classifier, images: Images, labels: Int[Tensor, "..."]
    ) -> Float[Tensor, "batch labels height width"]:
        """Return a map for every label: labels (L,) for all images, or (B, L). What completeness asks for."""
        rows = labels.expand(len(images), -1) if labels.ndim == 1 else labels
        repeated = images.repeat_interleave(rows.shape[1], 0)
        masks = self.solve(classifier, repeated, rows.flatten()).masks
        return masks.view(len(images), rows.shape[1], *images.shape[-2:])

    @property
    def _pictures(self) -> int:
        """Pictures that one step shows of one image."""
        return self.draws * len(self.objective.sides) * self.parametrisation.copies

    def solve(
        self,
        classifier: Classifier,
        images: Images,
        targets: Asked | None = None,
        *,
        start: Tensor | None = None,
    ) -> Solution:
        """Run the loop and return maps, costs and the history of values; `start` is a map to start from."""
        check_batch(images)
        targets = None if targets is None else as_targets(targets)
        if targets is not None and targets.shape != (len(images),):
            raise ValueError(f"expected targets ({len(images)},) of integers, got {tuple(targets.shape)}")
        if start is not None:
            _check_start(start, images)
        if isinstance(self.parametrisation, MapWeights) and self.parametrisation.layer == -1 and classifier.layers:
            check_one_branch(classifier)
        with checked(images, classifier.channels_in), classifier.frozen(), _differentiable(), without_checkpoints():
            images = entered(images, classifier)
            targets, start = (None if one is None else entered(one, classifier) for one in (targets, start))
            passes = 2 * self.schedule.iterations * self._pictures  # an image's, so that a batch changes nothing
            twin = folded(classifier, images, passes=passes, gradients=True)

            def part(rows: slice) -> Solution:
                asked, begun = (None if values is None else values[rows] for values in (targets, start))
                return self._solve(classifier, twin, images[rows], asked, begun)

            share = max(1, self.max_batch // self._pictures)
            return _joined(list(pieces(part, len(images), max_batch=share)))

    def _solve(
        self, classifier: Classifier, twin: Classifier, images: Images, targets: Tensor | None, start: Masks | None
    ) -> Solution:
        """Read maps and logits off the classifier itself, and descend on its faster twin."""
        with torch.no_grad():
            features = classifier.features(images)
        scene = Scene(images, check_targets(targets, features.logits), features, classifier.layers, start)
        begun = self.parametrisation.begin(scene)
        items, copies = len(begun.parameters), self.parametrisation.copies
        backdrop = prepare(self.infill or MeanColour.of(classifier), images, seed=self.seed, draws=self.draws)
        stage = _Stage.build(scene, backdrop, begun.fixed, items)
        parameters, steps, history = self._descend(twin, stage, begun.parameters)
        with torch.no_grad():
            size = size_of(images)
            masks = self.parametrisation.final(parameters, begun.fixed, size=size)
        masks = masks.view(len(images), copies, *masks.shape[1:]).mean(1).clamp(0, 1)  # of rounding's overshoot
        runs = float(steps.sum()) / items * self._pictures
        return Solution(masks, scene.targets, features.logits, Passes(1 + runs, runs), steps, history)

    def _descend(
        self, classifier: Classifier, stage: _Stage, first: Tensor
    ) -> tuple[Tensor, Tensor, Float[Tensor, "steps items"]]:
        """Return the parameters, the number of steps of every item, and the values at every step."""
        schedule, generator = self.schedule, Generator().manual_seed(self.seed)
        leaves = list(first.detach().clone().unbind())
        optimiser = schedule.optimiser(leaves)
        rates = [group["lr"] for group in optimiser.param_groups]
        running, rows = torch.arange(len(leaves), device=first.device), stage
        steps, lowest = torch.zeros_like(running), _Lowest.start(first)
        history: list[Tensor] = []
        for step in range(schedule.iterations):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.rate(step / schedule.iterations)
            active = leaves if len(running) == len(leaves) else [leaves[item] for item in running.tolist()]
            parameters = torch.stack(active).requires_grad_()
            values = self._values(classifier, rows, parameters, step, generator)
            (slopes,) = torch.autograd.grad(values.sum(), parameters)
            values, parameters = values.detach(), parameters.detach()
            if schedule.best:
                lowest.see(running, values, parameters)
            self._move(optimiser, leaves, active, slopes)
            steps[running] += 1
            history.append(values.new_full((len(leaves),), torch.nan).index_copy(0, running, values))
            if schedule.tolerance and step:
                done = (values - history[-2][running]).abs() < schedule.tolerance
                if bool(done.any()):
                    running, rows = running[~done], rows.take((~done).nonzero()[:, 0])
            if not len(running):
                break
        return lowest.parameters if schedule.best else torch.stack(leaves), steps, torch.stack(history)

    def _values(
        self, classifier: Classifier, rows: _Stage, parameters: Tensor, step: int, generator: Generator
    ) -> Values:
        """Return what each item has to pay at this step."""
        size = size_of(rows.images)
        drawn = self.parametrisation.draw(parameters, rows.fixed, size=size, draws=self.draws, generator=generator)
        outcome = self._show(classifier, rows, drawn, step, generator)
        values = self.objective(outcome).total.view(-1, len(parameters)).mean(0)
        penalty = self.parametrisation.penalty(drawn.judged, rows.fixed, step)
        return values if penalty is None else values + penalty

    def _show(self, classifier: Classifier, rows: _Stage, drawn: Drawn, step: int, generator: Generator) -> Outcome:
        """Play one round, with jitter, several draws, and masks judged on their grid."""
        images = _repeat(rows.images, self.draws)
        jitter = None if (view := self.view) is None else lambda pictures: view(pictures, step, generator)
        played = play(
            classifier,
            images,
            _repeat(drawn.shown, len(images) // len(drawn.shown)),
            _repeat(rows.targets, self.draws),
            infill=rows.backdrop,
            clean=_repeat(rows.clean, self.draws),
            sides=self.objective.sides,
            view=jitter,
        )
        for logits in (played.kept, played.removed):
            if logits is not None and step == 0:
                check_reached(classifier, logits)
                _check_moves(classifier, images, _repeat(rows.targets, self.draws), played, logits)
        kept, removed = (None if side is None else self._pooled(side) for side in (played.kept, played.removed))
        times = 1 if self.pool is not None else self.draws
        judged = len(rows.targets) * times
        return Outcome(_repeat(drawn.judged, times), played.targets[:judged], played.clean[:judged], kept, removed)

    def _pooled(self, logits: Tensor) -> Tensor:
        return logits if self.pool is None else self.pool(logits.unflatten(0, (self.draws, -1)))

    def _move(
        self, optimiser: torch.optim.Optimizer, leaves: list[Tensor], active: list[Tensor], slopes: Tensor
    ) -> None:
        for leaf in leaves:
            leaf.grad = None  # the optimiser passes over an item without a gradient: one that is done
        for leaf, slope in zip(active, slopes, strict=True):
            leaf.grad = slope
        optimiser.step()
        for leaf in active:
            leaf.copy_(self.parametrisation.project(leaf))


@dataclass
class _Lowest:
    """The lowest value of every item so far, and the parameters that gave it."""

    values: Tensor
    parameters: Tensor

    @classmethod
    def start(cls, first: Tensor) -> "_Lowest":
        return cls(first.new_full((len(first),), torch.inf), first.detach().clone())

    def see(self, running: Tensor, values: Tensor, parameters: Tensor) -> None:
        better = values < self.values[running]
        self.values[running[better]] = values[better]
        self.parameters[running[better]] = parameters[better]


@contextmanager
def _differentiable() -> Iterator[None]:
    """Take gradients whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _check_start(start: Tensor, images: Images) -> None:
    if start.shape != (len(images), 1, *images.shape[-2:]):
        raise ValueError(
            f"expected maps to start from of shape ({len(images)}, 1, {images.shape[-2]}, {images.shape[-1]}), "
            f"got {tuple(start.shape)}: resize them first"
        )


def _check_moves(classifier: Classifier, images: Images, targets: Targets, played: Outcome, shown: Logits) -> None:
    """Refuse a class whose logit stays to the bit what it was, unless another picture moves it."""
    change = (shown.detach() - played.clean).gather(1, played.targets[:, None])[:, 0]
    if bool((still := change == 0).any()):
        check_alive(classifier, images[still], targets[still])


def _joined(parts: Sequence[Solution]) -> Solution:
    """Put the solutions of parts of a batch together."""
    longest, total = max(len(part.history) for part in parts), sum(len(part.masks) for part in parts)
    histories = [F.pad(part.history, (0, 0, 0, longest - len(part.history)), value=torch.nan) for part in parts]
    forward, backward = (
        sum(getattr(part.passes, way) * len(part.masks) for part in parts) / total for way in ("forward", "backward")
    )
    return Solution(
        torch.cat([part.masks for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.logits for part in parts]),
        Passes(forward, backward),
        torch.cat([part.steps for part in parts]),
        torch.cat(histories, 1),
    )


def mean_probability(logits: Float[Tensor, "draws items classes"]) -> Float[Tensor, "items classes"]:
    """Pool draws: logits whose softmax is the mean of the draws' probabilities."""
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
