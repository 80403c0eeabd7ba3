"""Builders of the methods that optimise a mask for each image: one loop (`loop.py`), a few values each.

| builder | parametrisation | objective, lower is better | infill |
|---|---|---|---|
| opticam | weights of feature maps | -f_y(kept), or in-out and difference variants | black |
| meaningful | 28x28 cells | p_y(removed) + l1 sum m + tv sum abs(dm)^3 | blur |
| extremal | smooth mask of fixed area | -f_y(kept), f_y(removed), or both | blur pyramid |
| bank_masks | sigmoid cells of stride 4 | -log mean p_y(kept) + l1 sum m + tv sum dm^2 | other images |
| fido | 16x16 relaxed Bernoulli cells | -log odds(kept) or log odds(removed) + price mean p | blur |
| refined | sigmoid cells that start at a map | the training objective, both sides | mean colour |

Every builder takes hyper-parameters and returns an explainer whose masks live in (0, 1). What a builder does not
name is changed on its result: `dataclasses.replace(opticam(), schedule=Schedule(best=True))`. Formulas,
sources and differences from the published code: docs/optimise.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.scores import SCORES, ClassScore
from salmask.explain.base import Explainer, Explanation, Passes, explainer_of
from salmask.explain.knobs import AMOUNT, BatchSize, Between, Cells, Count, OneOf, Rate, Score, Seed
from salmask.explain.optimise.extremal import FixedArea
from salmask.explain.optimise.loop import Optimised, mean_probability
from salmask.explain.optimise.masks import (
    CLAMPED,
    MAP_NORMALISERS,
    Bernoulli,
    Grid,
    MapWeights,
    identity,
)
from salmask.explain.optimise.schedule import Adam, Momentum, Schedule, Shift, flip_every_other, linear
from salmask.masking import Blur, BlurPyramid, MeanColour, Noise
from salmask.objective import OBJECTIVES, Objective, two_sided
from salmask.outcome import Term
from salmask.terms import (
    area,
    cells_sum,
    change_kept,
    change_removed,
    max_class_kept,
    roughness,
    score_kept,
    score_removed,
    softmax_twice,
)
from salmask.types import Asked, Images, Infill

__all__ = [
    "EXTREMAL_VARIANTS",
    "FIDO_VARIANTS",
    "OPTIMISED",
    "OPTI_CAM_OBJECTIVES",
    "Refined",
    "bank_masks",
    "extremal",
    "fido",
    "meaningful",
    "opticam",
    "refined",
]

_Value = TypeVar("_Value")
_BLACK = MeanColour((0.0,))
_BLUR_10, _BLUR_20, _PYRAMID = Blur(10.0), Blur(20.0), BlurPyramid(20.0)


def _looked_up(table: Mapping[str, _Value], name: str | _Value, what: str) -> _Value:
    """Look a value up by name; a value that is not a name passes."""
    if not isinstance(name, str):
        return name
    if name not in table:
        near = get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {name!r}: choose of {', '.join(table)}{hint}")
    return table[name]


# Feature maps


def _mask(score: ClassScore) -> Objective:
    return Objective({"kept": (-1.0, score_kept(score))})


def _diff(score: ClassScore) -> Objective:
    return Objective({"change_kept": (1.0, change_kept(score))})


def _iomask(score: ClassScore) -> Objective:
    return Objective({"kept": (-1.0, score_kept(score)), "removed": (1.0, score_removed(score))})


def _iodiff(score: ClassScore) -> Objective:
    return Objective({"change_kept": (1.0, change_kept(score)), "change_removed": (-1.0, change_removed(score))})


OPTI_CAM_OBJECTIVES: Mapping[str, Callable[[ClassScore], Objective]] = MappingProxyType(
    {"mask": _mask, "diff": _diff, "iomask": _iomask, "iodiff": _iodiff}
)
"""Opti-CAM's objectives, made of a class score: -F in the paper's notation."""


POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"identity": identity, "relu": F.relu})
"""Functions of single values, by name, for maps and for their weighted sum."""


def opticam(
    *,
    layer: int | str = -1,
    normaliser: Annotated[str | Callable[[Tensor], Tensor], OneOf(MAP_NORMALISERS)] = "range",
    objective: Annotated[str | Callable[[ClassScore], Objective], OneOf(OPTI_CAM_OBJECTIVES)] = "mask",
    score: Score = "logit",
    rectify: Annotated[Callable[[Tensor], Tensor], OneOf(POINTWISE)] = F.relu,
    activation: Annotated[Callable[[Tensor], Tensor], OneOf(POINTWISE)] = identity,
    infill: Infill = _BLACK,
    iterations: Count = 100,
    lr: Rate = 0.1,
    tolerance: Annotated[float, AMOUNT] = 1e-10,
    max_batch: BatchSize = 32,
) -> Optimised:
    """Return Opti-CAM: weights of feature maps that maximise the class score of the masked image.

    s(u) = n(up(h(sum_k softmax(u)_k A_k))), A_k = rectify(map k of the layer), taken once and held constant.
    layer: index or name among the classifier's layers. normaliser: "range", "max", "sigmoid".
    objective: "mask" -f(kept), "diff" abs(f - f(kept)), "iomask" f(removed) - f(kept),
        "iodiff" abs(f - f(kept)) - abs(f - f(removed)). score f: a name in `classifier.scores.SCORES`.
    An image stops once its value changes by less than `tolerance`. Raises ValueError for unknown names.
    Source: Zhang, Torres, Sicre, Avrithis & Ayache, Opti-CAM (2024).
    """
    maps = MapWeights(
        layer=layer,
        normaliser=_looked_up(MAP_NORMALISERS, normaliser, "normaliser"),
        rectify=rectify,
        activation=activation,
    )
    game = _looked_up(OPTI_CAM_OBJECTIVES, objective, "objective")(_looked_up(SCORES, score, "score"))
    schedule = Schedule(iterations, Adam(lr), tolerance=tolerance)
    return Optimised(maps, game, infill, schedule, max_batch=max_batch)


# Cells


def meaningful(
    *,
    cells: Cells = 28,
    l1: Annotated[float, AMOUNT] = 1e-4,
    tv: Annotated[float, AMOUNT] = 1e-2,
    power: Annotated[float, Between(0, 10, above=True)] = 3.0,
    score: Score = "probability",
    infill: Infill = _BLUR_10,
    jitter: Annotated[int, Between(0, 4096)] = 4,
    iterations: Count = 300,
    lr: Rate = 0.1,
    seed: Seed = 0,
    max_batch: BatchSize = 32,
) -> Optimised:
    """Return Meaningful Perturbation: the smallest smooth region whose removal destroys the class.

    min_m p_y(remove(x, up(m))) + l1 sum m + tv sum abs(dm)^power, m in [0, 1]^{cells x cells}; m is their 1 - m.
    jitter: pixels, at 224, by which the pictures are rolled at each step; 0 for none.
    Source: Fong & Vedaldi, Interpretable Explanations of Black Boxes by Meaningful Perturbation (2017).
    """
    game = Objective(
        {
            "removed": (1.0, score_removed(_looked_up(SCORES, score, "score"))),
            "sum": (l1, cells_sum),
            "roughness": (tv, roughness(power)),
        }
    )
    grid = Grid(cells=cells, link=CLAMPED, judge_cells=True)
    view = Shift(jitter) if jitter else None
    schedule = Schedule(iterations, Adam(lr))
    return Optimised(grid, game, infill, schedule, view=view, seed=seed, max_batch=max_batch)


EVIDENCE: Mapping[str, Term] = MappingProxyType({"max_class_kept": max_class_kept, "softmax_twice": softmax_twice})
"""First terms of `bank_masks` by name."""


def bank_masks(
    *,
    infill: Infill | None = None,
    draws: Annotated[int, Between(1, 10_000)] = 10,
    stride: Cells = 4,
    l1: Annotated[float, AMOUNT] = 2e-5,
    tv: Annotated[float, AMOUNT] = 0.01,
    evidence: Annotated[Term, OneOf(EVIDENCE)] = max_class_kept,
    iterations: Count = 2000,
    lr: Rate = 0.05,
    seed: Seed = 0,
    max_batch: BatchSize = 160,
) -> Optimised:
    """Return masks for a label over other images, sound for labels that are not there.

    m = up(sigmoid(w)); min_w -log mean_r p_y(m x + (1 - m) r) + l1 sum m + tv sum (dm)^2, sums as at 224x224.
    infill: a `Bank` of images, drawn `draws` times a step, the same for all images; None: uniform noise.
    evidence: the first term, of the mean probability; `terms.softmax_twice` is what the published code computes.
    `bank_masks(...).for_labels(classifier, images, labels)` gives a map for every label.
    Source: Gupta, Saunshi, Yu, Lyu & Arora, New Definitions and Evaluations for Saliency Methods (2022).
    """
    game = Objective({"evidence": (1.0, evidence), "area": (l1 * 224 * 224, area), "roughness": (tv, roughness(2.0))})
    return Optimised(
        Grid(stride=stride),
        game,
        Noise(torch.Generator()) if infill is None else infill,
        Schedule(iterations, Adam(lr)),
        draws=draws,
        pool=mean_probability,
        seed=seed,
        max_batch=max_batch,
    )


Evidence = Callable[[ClassScore], dict[str, tuple[float | Tensor, Term]]]
"""The terms, of a class score, that say what a region must do."""


def _sufficient(score: ClassScore) -> dict[str, tuple[float | Tensor, Term]]:
    return {"kept": (-1.0, score_kept(score))}


def _destroying(score: ClassScore) -> dict[str, tuple[float | Tensor, Term]]:
    return {"removed": (1.0, score_removed(score))}


def _both(score: ClassScore) -> dict[str, tuple[float | Tensor, Term]]:
    return _sufficient(score) | _destroying(score)


FIDO_VARIANTS = MappingProxyType({"sufficient": _sufficient, "destroying": _destroying})
"""Smallest sufficient region (kept) and smallest destroying region (removed)."""

EXTREMAL_VARIANTS = MappingProxyType({"preserve": _sufficient, "delete": _destroying, "dual": _both})
"""What a region of fixed area must do: keep the class, destroy it, or both."""


def fido(
    *,
    variant: Annotated[str | Evidence, OneOf(FIDO_VARIANTS)] = "sufficient",
    cells: Cells = 16,
    draws: Annotated[int, Between(1, 10_000)] = 4,
    temperature: Annotated[float, Between(0, 100, above=True)] = 0.5,
    price: Annotated[float, AMOUNT] = 5.0,
    score: Score = "log_odds",
    infill: Infill = _BLUR_10,
    iterations: Count = 100,
    lr: Rate = 0.2,
    seed: Seed = 0,
    max_batch: BatchSize = 32,
) -> Optimised:
    """Return FIDO: the probability with which each cell belongs to the evidence, as relaxed coin flips.

    sufficient: min_p E_z[-s(keep(x, z))] + price mean p;  destroying: min_p E_z[s(remove(x, z))] + price mean p,
    z ~ concrete(p, temperature), s the log odds of the class. The map is up(p).
    cells: along the short side. price: of the whole picture, in nats of evidence, whatever the number of cells,
    pixels or classes. infill: the counterfactual; the paper's best is a generative inpainter, any callable here.
    The published settings, near: fido(cells=56, temperature=0.1, price=3.1, lr=0.05, iterations=300); their maps
    stay grey and speckled here. The learning rate falls linearly to zero. Raises ValueError for unknown names.
    Source: Chang, Creager, Goldenberg & Duvenaud, Explaining Image Classifiers by Counterfactual Generation (2019).
    """
    evidence = _looked_up(FIDO_VARIANTS, variant, "variant")(_looked_up(SCORES, score, "score"))
    return Optimised(
        Bernoulli(cells=cells, temperature=temperature),
        Objective(evidence | {"area": (price, area)}),
        infill,
        Schedule(iterations, Adam(lr), rate=linear),
        draws=draws,
        seed=seed,
        max_batch=max_batch,
    )


# Fixed area

_PUBLISHED_STEPS, _LONGEST_STRIDE = 800, 8.0


def extremal(
    *,
    areas: Annotated[float | Sequence[float], Between(0, 1)] = (0.1,),
    variant: Annotated[str | Evidence, OneOf(EXTREMAL_VARIANTS)] = "preserve",
    score: Score = "logit",
    infill: Infill = _PYRAMID,
    step: Annotated[float, AMOUNT] = 7.0,
    sigma: Annotated[float, AMOUNT] = 21.0,
    weight: Annotated[float, AMOUNT] = 300.0,
    iterations: Count = 800,
    lr: Rate = 0.01,
    seed: Seed = 0,
    max_batch: BatchSize = 32,
) -> Optimised:
    """Return extremal perturbations: the region of a given area that keeps or destroys the class best.

    preserve: max f(kept);  delete: min f(removed);  dual: max f(kept) - f(removed);  over smooth masks whose
    area is `areas` (one, or several), one mask each; the map is their mean. See `extremal.FixedArea` for step,
    sigma, weight. infill: `extremal.BlurPyramid(levels=2)`, or `Blur`, is the two-level blend, not the pyramid.
    iterations: 800 is the published schedule, with lr .01 and a price of the area that grows 1.0035-fold a step.
    Fewer, down to 100, walk the same way in longer strides: lr and the exponent of the growth are multiplied by
    800 / iterations. On the published strides 200 steps end with a mask that is not yet black outside.
    Source: Fong, Patrick & Vedaldi, Understanding Deep Networks via Extremal Perturbations (2019).
    """
    evidence = _looked_up(EXTREMAL_VARIANTS, variant, "variant")(_looked_up(SCORES, score, "score"))
    stride = min(_LONGEST_STRIDE, _PUBLISHED_STEPS / max(1, iterations))  # `Schedule` refuses a number below 1
    wanted = (areas,) if isinstance(areas, float | int) else tuple(areas)
    return Optimised(
        FixedArea(areas=wanted, step=step, sigma=sigma, weight=weight, growth=1.0035**stride),
        Objective(evidence),
        infill,
        Schedule(iterations, Momentum(lr * stride, dampening=0.9)),  # a mean of slopes, so that areas shrink slowly
        view=flip_every_other,
        seed=seed,
        max_batch=max_batch,
    )


# From another map


@dataclass(frozen=True)
class Refined(Explainer):
    """An explainer whose maps are the start of a short optimisation; maps not in (0, 1) are put there first."""

    explainer: Explainer
    optimised: Optimised

    @property
    def wants(self) -> frozenset[str]:
        """What the first explainer wants."""
        return self.explainer.wants

    def __call__(
        self, classifier: Classifier, images: Images, targets: Asked | None = None, **given: Any
    ) -> Explanation:  # Any: the ground truth that the first explainer wants
        """Explain, then improve the maps."""
        first = self.explainer(classifier, images, targets, **given)
        start = first.bounded().masks
        result = self.optimised.solve(classifier, images, targets, start=start)
        passes = Passes(first.passes.forward + result.passes.forward, first.passes.backward + result.passes.backward)
        return Explanation(result.masks, result.targets, result.logits, passes, notes=first.notes, layers=first.layers)


def refined(
    explainer: Explainer,
    *,
    objective: Annotated[Objective | None, OneOf(OBJECTIVES)] = None,
    infill: Infill | None = None,
    stride: Cells = 4,
    iterations: Count = 30,
    lr: Rate = 0.1,
    best: bool = True,
    max_batch: BatchSize = 32,
) -> Refined:
    """Return an explainer that starts at another one's map and improves it with the training objective.

    explainer: the learned masker, usually. objective: None is `two_sided()`, the masker's own.
    best: the mask with the lowest value seen, so that a start which is optimal already stays.
    """
    optimised = Optimised(
        Grid(stride=stride),
        two_sided() if objective is None else objective,
        infill,
        Schedule(iterations, Adam(lr), best=best),
        max_batch=max_batch,
    )
    return Refined(explainer_of(explainer), optimised)


OPTIMISED: Mapping[str, Callable[..., Explainer]] = MappingProxyType(
    {
        "opticam": opticam,
        "meaningful": meaningful,
        "extremal": extremal,
        "bank_masks": bank_masks,
        "fido": fido,
        "refined": refined,
    }
)
"""Constructors by name; `refined` takes the explainer that it starts from."""
