"""One step of a masker's training, and everything that moves in it.

Three ways in which the classifier takes part. With F the given classifier, Q the opponent that meets the masked
pictures, M the masker:

    FIX      Q = F, at rest; both pictures go through it as one batch
    CA       Q = F, which learns alongside, as in Phang, Park & Geras (2020); M reads the maps of Q
    reader   Q is a copy of F that learns alongside and is not kept; M reads the maps of F, which is at rest

    one step   maps;  Q learns on x;  m = M(maps);  Q' = Q or an earlier self;
               lower objective(play(Q', x, m, y)) over M;
               unless history says otherwise: Q learns on the kept and on the removed picture

The masker's gradient is taken before the opponent moves.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.hold import learning, still_statistics
from salmask.data import Batch
from salmask.draws import generator_for
from salmask.masker import Masker
from salmask.objective import ObjectiveValue
from salmask.outcome import Outcome, play
from salmask.training.lessons import absent_asked, drawn_label, lesson, mistakes, nothing_kept
from salmask.training.log import numbers_of
from salmask.training.pool import ClassifierPool
from salmask.training.processes import average
from salmask.training.recipes import Recipe
from salmask.training.settings import Settings
from salmask.types import Draws, Infill, size_of

__all__ = ["Steps"]


class Steps:
    """Everything that moves during training, and one step of it."""

    def __init__(
        self,
        masker: Masker,
        classifier: Classifier,
        recipe: Recipe,
        settings: Settings,
        infill: Infill | Mapping[str, Infill],
        steps: int,
        fabric: Fabric,
        members: Sequence[Classifier] = (),
    ) -> None:
        self.recipe, self.settings, self.steps, self.fabric, self.infill = recipe, settings, steps, fabric, infill
        self.masker, self.members = masker.to(fabric.device), members
        self.generators = self._generators()
        self.pool: ClassifierPool | None = None
        if members:
            self.pool = ClassifierPool.of(members, generator=self.generators["pool"])
            classifier = self.pool.draw()  # one network, which takes on the state of another member at every step
        self.classifier = classifier.to(fabric.device)
        self.opponent = self.classifier
        if recipe.spares_classifier and not recipe.fixed:
            self.opponent = copy.deepcopy(self.classifier)
            self.opponent.network.requires_grad_(True)
        # What the given classifier decides is explained, also while a training alongside changes it.
        self.judge = self.classifier
        if (settings.target == "predicted" or classifier.multilabel) and not recipe.spares_classifier:
            self.judge = copy.deepcopy(self.classifier).requires_grad_(False)
            self.judge.network.eval()
        self.player = self.opponent.compiled() if settings.compile else self.opponent
        self.averaged = copy.deepcopy(self.masker) if settings.averaging else None
        self.absent_weight = _absent_weight(masker, recipe, settings)
        self.parameters = list(masker.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        self.wrapped: Any = fabric.setup_optimizers(self.optimiser)  # Any: for Fabric, one or several
        if not recipe.fixed:
            self._prepare_opponent()

    def _generators(self) -> dict[str, torch.Generator]:
        # Of several processes, each draws noise and areas of its own; all of them meet the same opponent, for a
        # process that alone taught its classifier would wait for the others for ever.
        rank = self.fabric.global_rank
        ranks = {"head": rank, "area": rank, "pool": 0, "history": 0}
        generators = {
            name: torch.Generator().manual_seed(1_000_003 * self.settings.seed + 101 * number + own)
            for number, (name, own) in enumerate(ranks.items())
        }
        if hasattr(self.masker.head, "generator"):
            self.masker.head.generator = generators["head"]  # type: ignore[assignment]
        infill = self.infill
        for side, one in infill.items() if isinstance(infill, Mapping) else [("infill", infill)]:
            if isinstance(one, Draws) and one.generator is not None:
                generators[side] = one.generator
        self.own = generators.keys() - {"pool", "history"}
        self.set_apart({side: generators[side] for side in generators.keys() - ranks.keys()}, 0)
        return generators

    def set_apart(self, generators: Mapping[str, torch.Generator], step: int) -> None:
        """Let generators of every process but the first draw numbers of their own, from a step on."""
        if rank := self.fabric.global_rank:
            for name, generator in generators.items():
                generator.manual_seed(generator_for(self.settings.seed, f"{rank} {step}", name).initial_seed())

    def _prepare_opponent(self) -> None:
        settings, recipe = self.settings, self.recipe
        self.weights = [parameter for parameter in self.opponent.network.parameters() if parameter.requires_grad]
        self.opponent_optimiser = torch.optim.SGD(
            self.weights, lr=settings.classifier_lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.opponent_wrapped: Any = self.fabric.setup_optimizers(self.opponent_optimiser)  # likewise
        if recipe.history == "sample":
            self.pool = ClassifierPool(
                self.opponent, size=recipe.pool_size, every=recipe.pool_every, generator=self.generators["pool"]
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the given classifier at rest, or learning, as the recipe has it; it is given back as it was."""
        with ExitStack() as held:
            if self.recipe.spares_classifier:
                held.enter_context(self.classifier.frozen())
            if not self.recipe.fixed:
                hold_statistics = self.recipe.statistics == "held"
                held.enter_context(learning(self.opponent.network, hold_statistics=hold_statistics))
            yield

    def step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Take one step; return what is logged of it."""
        self._schedule(step)
        images, targets = self._placed(batch, step)
        self._hold_masker(step)
        if self.members and self.pool is not None:
            self.pool.draw()
        targets, taught = self._asked(images, targets, step)
        if self.pool is not None and not self.members:
            self.pool.offer(step, self.opponent.network)
        clean, maps = self._read(images)
        if not self.recipe.fixed:
            self._teach(mistakes(clean, taught))
        opponent, learns = self._met()
        targets, absent = self._with_absent(targets, clean.detach(), step)
        with self.fabric.autocast(), self._statistics(opponent):
            maps = [tap.detach() for tap in maps]
            small, outcome = self._play(opponent, images, targets, maps, clean.detach())
        score = self._score(outcome, absent)
        self._learn(score, keep_graph=learns)
        if learns:
            self._teach(torch.stack([mistakes(logits, taught) for logits in outcome.answers.values()]).sum())
        average(self.fabric, self._moving())
        self._follow(step)
        return numbers_of(score, outcome, small)

    def _moving(self) -> list[Tensor]:
        """Return the statistics that a step moves, which each process has of its own part of the batch."""
        modules = [self.masker] if self.recipe.fixed else [self.masker, self.opponent.network]
        return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]

    def _asked(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return what is explained of each picture, and what an opponent is taught of it."""
        labelled = self.settings.target == "label"
        if labelled and (self.recipe.fixed or not self.classifier.multilabel):
            return targets, targets
        with torch.no_grad(), self.fabric.autocast():
            logits = self.judge.logits(images)
        if not labelled:
            generator = generator_for(self.settings.seed, str(step), "label")
            targets = drawn_label(self.classifier, logits, generator)
        return targets, lesson(self.classifier, logits, targets, labelled=labelled)

    def _with_absent(self, targets: Tensor, clean: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Return what the masker is asked for, and of which pictures that is not there; None where it always is."""
        if not self.absent_weight:
            return targets, None
        generator = generator_for(self.settings.seed, str(step), "absent")
        return absent_asked(self.classifier, clean, targets, self.settings.absent, generator)

    def _score(self, outcome: Outcome, absent: Tensor | None) -> ObjectiveValue:
        """Return the objective, and of pictures that are asked for what is not there, that nothing is kept."""
        score = self.recipe.objective(outcome)
        if absent is None:
            return score
        refused = self.absent_weight * nothing_kept(outcome)
        return score._replace(total=torch.where(absent, refused, score.total))

    def _read(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the opponent's logits of the whole pictures, and the maps that the masker reads."""
        with self.fabric.autocast():
            if self.opponent is not self.classifier:
                with torch.no_grad():
                    maps = self.classifier.features(images).maps
                return self.opponent.logits(images), list(maps)
            with torch.set_grad_enabled(not self.recipe.fixed):
                clean, maps = self.classifier.features(images)
            return clean, list(maps)

    def _play(
        self, opponent: Classifier, images: Tensor, targets: Tensor, maps: Sequence[Tensor], clean: Tensor
    ) -> tuple[Tensor, Outcome]:
        """Return the masks on the masker's grid, and what the opponent says of both pictures."""
        size = size_of(images)
        areas = self._draw_areas(len(images)) if self.masker.area_condition else None
        classes = targets if self.masker.classes else None
        small = self.masker.small(maps, size, areas=areas, targets=classes).float()
        outcome = play(
            self.player if opponent is self.opponent else opponent,
            images,
            self.masker.enlarge(small, size),
            targets,
            infill=self.infill,
            clean=clean,
            sides=self.recipe.objective.sides,
            together=self.recipe.fixed,
        )
        outcome = replace(outcome, areas=areas)
        zoom = self.masker.zoom(size)
        return small, outcome if zoom is None else replace(outcome, masks=small, zoom=zoom)

    def _learn(self, score: ObjectiveValue, *, keep_graph: bool) -> None:
        """Move the masker down its objective; gradients reach the masker alone."""
        self.wrapped.zero_grad()
        self.fabric.backward(score.total.mean(), inputs=self.parameters, retain_graph=keep_graph)
        self._average(self.parameters)
        self.fabric.clip_gradients(self.masker, self.wrapped, max_norm=self.settings.clip, error_if_nonfinite=False)
        self.wrapped.step()

    def _teach(self, loss: Tensor) -> None:
        """Move the opponent down a cross-entropy; gradients reach the opponent alone."""
        self.opponent_wrapped.zero_grad()
        self.fabric.backward(loss, inputs=self.weights)
        self._average(self.weights)
        self.opponent_wrapped.step()

    def _met(self) -> tuple[Classifier, bool]:
        """Return the classifier that meets the masked pictures, and whether it learns from them."""
        if self.recipe.fixed:
            return self.opponent, False
        current = self.recipe.history == "off" or _uniform(self.generators["history"]) > self.recipe.historic
        if current or self.pool is None:
            return self.opponent, current
        return self.pool.draw(), False

    def _statistics(self, opponent: Classifier) -> AbstractContextManager[None]:
        return still_statistics(opponent.network) if self.recipe.statistics == "clean" else ExitStack()  # type: ignore[return-value]

    def _placed(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        images = batch.images.to(self.fabric.device, non_blocking=True)
        if sizes := self.settings.sizes:
            size = sizes[
                int(torch.randint(len(sizes), (), generator=generator_for(self.settings.seed, str(step), "size")))
            ]
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
        images = images.contiguous(memory_format=layout)
        return images, batch.targets.to(self.fabric.device, non_blocking=True)

    def _hold_masker(self, step: int) -> None:
        """Hold the masker's normalisation at what it remembers of all sizes, once the rates begin to fall.

        In use it has one set of statistics for every size; in training each batch, of one size, has its own, and masks
        that are right with those shrink as pictures grow with the others.
        """
        if len(self.settings.sizes) > 1 and self.settings.rate(step, self.steps) < 1:
            for module in self.masker.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _draw_areas(self, count: int) -> Tensor:
        low, high = self.settings.areas
        drawn = torch.rand(count, generator=self.generators["area"])
        return (low + (high - low) * drawn).to(self.fabric.device)

    def _schedule(self, step: int) -> None:
        factor = self.settings.rate(step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * factor
        if not self.recipe.fixed:
            for group in self.opponent_optimiser.param_groups:
                group["lr"] = self.settings.classifier_lr * factor

    def _average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over processes. By hand, as several passes share a backward that names its inputs."""
        average(self.fabric, [parameter.grad for parameter in parameters if parameter.grad is not None])

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the averaged masker towards the masker; at first faster, so that the first weights are forgotten."""
        if self.averaged is None:
            return
        kept = min(self.settings.averaging, (1 + step) / (10 + step))
        for mean, now in zip(self.averaged.state_dict().values(), self.masker.state_dict().values(), strict=True):
            mean.copy_(torch.lerp(now, mean, kept) if mean.is_floating_point() else now)

    def finished(self) -> Masker:
        """Return the masker, with its averaged weights where they were asked for."""
        if self.averaged is not None:
            self.masker.load_state_dict(self.averaged.state_dict())
        return self.masker


def _absent_weight(masker: Masker, recipe: Recipe, settings: Settings) -> float:
    """Return the weight of pictures that are asked for an absent class: that of `max_class_kept`. 0: there are none."""
    if not settings.absent:
        return 0.0
    if masker.classes is None or not recipe.fixed or "max_class_kept" not in recipe.objective.terms:
        raise ValueError(
            "a masker can be asked for classes that are not there (absent, --absent) if it is told the class "
            "(class_condition, --class-condition), the recipe holds its classifier, and what is kept is to carry the "
            "class: such as lmac or fix"
        )
    return float(recipe.objective.terms["max_class_kept"][0])


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
