"""Sanity checks: a map that does not change when the weights do says nothing of the network (Adebayo et al., 2018).

    cascading    from the last module to the first, each is randomised and stays so
    independent  one module at a time, the others as trained
    labels       two explainers, one of them made from permuted labels, on the same images

The maps before and after are compared image by image by `similarity`; a sound method's similarity falls. The explained
class stays the one that the untouched network predicts (or the one given). Weights come back in any case.

How a module is randomised is a *rule*: a callable that redraws the parameters which a module holds itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.classifier.hold import ResetRule, layers_to_randomise, randomised, reset
from salmask.metrics.similarity import SIMILARITIES, Similarity, similarities_for
from salmask.types import Images, Masks, Targets, constant

__all__ = ["Point", "SanityCheck", "Step", "compare_maps", "curve", "randomisation"]


# Randomising


# The checks


class Step(NamedTuple):
    """One similarity of one image's map after one step; NaN where the measure does not exist."""

    step: str
    image: str
    similarity: str
    value: float


@dataclass(frozen=True)
class SanityCheck:
    """What a check found: rows for curves, and the maps of some images for a picture strip.

    maps: (S, P, 1, H, W), the first of S the untouched ones, of the first P images; degenerate: per step, how many
    maps were constant or not finite.
    """

    kind: str
    steps: tuple[str, ...]
    rows: list[Step]
    images: Images = field(repr=False)
    maps: Tensor = field(repr=False)
    degenerate: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class _Mapped(Protocol):
    """What an explanation is to a sanity check: raw maps, and the range that they live in."""

    @property
    def masks(self) -> Tensor: ...

    @property
    def range(self) -> tuple[float, float]: ...


def randomisation(
    explainer: Callable[[Classifier, Images, Targets], _Mapped],
    classifier: Classifier,
    images: Images,
    targets: Targets | None = None,
    *,
    ids: Sequence[str] | None = None,
    cascading: bool = True,
    network: nn.Module | None = None,
    rule: ResetRule = reset,
    similarities: Mapping[str, Similarity] | None = None,
    seed: int = 0,
    keep: int = 8,
) -> SanityCheck:
    """Randomise weights from the last module to the first and compare the maps with the untouched ones.

    explainer: called as explainer(classifier, images, targets); its raw maps are compared.
    targets: None explains the untouched network's predictions throughout.
    network: whose weights; None the classifier's. Pass the masker to randomise the masker instead.
    similarities: None takes those that fit the maps' size and range (`similarities_for`).
    keep: of how many images the maps are kept for the picture strip.
    Raises ValueError if there is nothing to randomise; the weights are as before in any case.
    """
    network = classifier.network if network is None else network
    groups = layers_to_randomise(network)
    ids = [str(index) for index in range(len(images))] if ids is None else list(ids)
    if targets is None:
        with torch.no_grad(), classifier.frozen():
            targets = classifier.logits(images).argmax(1)
    untouched = explainer(classifier, images, targets)
    before = _on_cpu(untouched)
    if similarities is None:
        similarities = similarities_for(min(before.shape[-2:]), untouched.range)
    kind = "cascading" if cascading else "independent"
    check = _Check(kind, ids, before, images[:keep].detach().cpu(), similarities)
    if cascading:
        with randomised(network) as redraw:
            for name, modules in groups.items():
                redraw(modules, rule, name, seed)
                check.add(name, _on_cpu(explainer(classifier, images, targets)))
    else:
        for name, modules in groups.items():
            with randomised(network) as redraw:
                redraw(modules, rule, name, seed)
                check.add(name, _on_cpu(explainer(classifier, images, targets)))
    return check.done()


def compare_maps(
    first: Masks,
    second: Masks,
    images: Images,
    *,
    ids: Sequence[str],
    step: str = "permuted labels",
    similarities: Mapping[str, Similarity] = SIMILARITIES,
    keep: int = 8,
) -> SanityCheck:
    """Compare two explainers' maps of the same images: the label randomisation test, if one learned permuted labels."""
    check = _Check("labels", list(ids), first.detach().cpu(), images[:keep].detach().cpu(), similarities)
    check.add(step, second.detach().cpu())
    return check.done()


class Point(NamedTuple):
    """One point of a curve: mean over the images that have a value, how many have, how many have none."""

    step: str
    similarity: str
    mean: float
    defined: int
    undefined: int


def curve(rows: Sequence[Step]) -> list[Point]:
    """Average rows by step and similarity, in the order of their appearance; NaN are counted, not averaged."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.step, row.similarity), []).append(row.value)
    points = []
    for (step, similarity), values in groups.items():
        numbers = [value for value in values if value == value]
        mean = sum(numbers) / len(numbers) if numbers else float("nan")
        points.append(Point(step, similarity, mean, len(numbers), len(values) - len(numbers)))
    return points


@dataclass
class _Check:
    """Gathers the rows, the kept maps and the counts of a check while it runs."""

    kind: str
    ids: list[str]
    before: Tensor
    images: Tensor
    similarities: Mapping[str, Similarity]
    steps: list[str] = field(default_factory=list)
    rows: list[Step] = field(default_factory=list)
    strip: list[Tensor] = field(default_factory=list)
    degenerate: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.before):
            raise ValueError(f"expected one id per map, {len(self.before)}, got {len(self.ids)}")
        self.strip.append(self.before[: len(self.images)])

    def add(self, step: str, maps: Tensor) -> None:
        self.steps.append(step)
        self.strip.append(maps[: len(self.images)])
        self.degenerate[step] = int(constant(maps).sum())
        for name, similarity in self.similarities.items():
            values = similarity(self.before, maps).tolist()
            self.rows += [Step(step, image, name, value) for image, value in zip(self.ids, values, strict=True)]

    def done(self) -> SanityCheck:
        maps = torch.stack(self.strip)
        return SanityCheck(self.kind, tuple(self.steps), self.rows, self.images, maps, self.degenerate)


def _on_cpu(explanation: _Mapped) -> Masks:
    return explanation.masks.detach().float().cpu()
