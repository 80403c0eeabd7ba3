"""Completeness and soundness: a map as a certificate that an image shows a label (Gupta et al., 2022).

    A(x, a) = mean over k = 1 ... 28 of softmax(f(x with the top k/28 of the pixels of a's map kept))_a
    completeness(x, a) = min(max(eps, A) / min(alpha, p_a), 1)        the certified pixels do for a plausible label
    soundness(x, a)    = min(max(beta, p_a) / A, 1)                   no map makes an implausible label plausible

p_a = softmax(f(x))_a; both lie in (0, 1], more is better. Hidden pixels take the mean colour. The softmax may run over
a subset of the labels, and is then not the network's own. Soundness wants a map for *every* label, made by the same
method, and its worst over them: `certificates`. The metrics of one map a picture speak for the explained class alone.

Two settings are in use: `SCRIPT` (eps .1, beta .1, alpha 1), which the released results take, and `FUNCTION`
(eps .01, beta 0, alpha 1), the defaults of the released functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.scores import probability
from salmask.metrics.case import Case, Metric, check_maps
from salmask.metrics.curves import Showing, ranks, read_ranked
from salmask.metrics.fills import MEAN, Fill
from salmask.outcome import IMAGES_PER_PASS, whole_logits
from salmask.types import Images, Logits, Targets, Values

__all__ = ["FUNCTION", "SCRIPT", "SOUNDNESS", "Bounds", "Certificates", "certificates", "completeness", "soundness"]

PerLabel = Float[Tensor, "batch labels"]


@dataclass(frozen=True)
class Bounds:
    """The three constants: floor of the area, floor and ceiling of the label's probability."""

    eps: float
    beta: float
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.eps <= 1 and 0 <= self.beta <= 1 and 0 < self.alpha <= 1):
            raise ValueError(f"eps and beta lie in [0, 1], alpha in (0, 1]; got {self}")

    def completeness(self, area: Tensor, label: Tensor) -> Tensor:
        """min(max(eps, A) / min(alpha, p), 1); 1 where p = 0, which asks for nothing."""
        plausible = label.clamp_max(self.alpha)
        ratio = area.clamp_min(self.eps) / torch.where(plausible > 0, plausible, 1.0)
        return torch.where(plausible > 0, ratio.clamp_max(1), 1.0)

    def soundness(self, area: Tensor, label: Tensor) -> Tensor:
        """min(max(beta, p) / A, 1); 1 where A = 0, which claims nothing."""
        ratio = label.clamp_min(self.beta) / torch.where(area > 0, area, 1.0)
        return torch.where(area > 0, ratio.clamp_max(1), 1.0)


SCRIPT = Bounds(eps=0.1, beta=0.1)
FUNCTION = Bounds(eps=0.01, beta=0.0)
BUDGETS = 28


# A map for every label


@dataclass(frozen=True)
class Certificates:
    """What the maps of all labels certify, (B, L) each: areas A, probabilities p, completeness and soundness."""

    labels: Int[Tensor, " labels"]
    area: PerLabel
    probability: PerLabel
    completeness: PerLabel
    soundness: PerLabel

    def of(self, targets: Targets) -> Bool[Tensor, "batch labels"]:
        """Return which column is each image's own; ValueError for a target that is no label of the subset."""
        own = targets.to(self.labels.device)[:, None] == self.labels
        if own.shape[0] != len(self.area):
            raise ValueError(f"expected {len(self.area)} targets, got {own.shape[0]}")
        if not bool(own.any(1).all()):
            lost = int(targets[int((~own.any(1)).nonzero()[0].to(targets.device))])
            raise ValueError(f"target {lost} is not among the labels {self.labels.tolist()}: leave the image out")
        return own

    @property
    def worst_completeness(self) -> Values:
        """The least completeness of any label."""
        return self.completeness.amin(1)

    @property
    def worst_soundness(self) -> Values:
        """The least soundness of any label."""
        return self.soundness.amin(1)

    @property
    def mean_soundness(self) -> Values:
        """The mean soundness over the labels."""
        return self.soundness.mean(1)

    @property
    def second_soundness(self) -> Values:
        """The soundness of the most plausible label but one."""
        if len(self.labels) < 2:
            raise ValueError("the second best label needs at least two labels")
        second = self.probability.topk(2, dim=1).indices[:, 1:]
        return self.soundness.gather(1, second)[:, 0]

    @property
    def predicted_completeness(self) -> Values:
        """The completeness of the label that the classifier predicts among the labels."""
        return self.completeness.gather(1, self.probability.argmax(1, keepdim=True))[:, 0]

    def wrong_completeness(self, targets: Targets) -> Values:
        """Return the least completeness of any label but the image's own; NaN where there is no other."""
        others = torch.where(self.of(targets), torch.inf, self.completeness).amin(1)
        return torch.where(others.isinf(), torch.nan, others)

    def right(self, targets: Targets) -> Values:
        """Return 1 where the label of the largest area is the image's own: the certifier as a classifier."""
        return self.of(targets).gather(1, self.area.argmax(1, keepdim=True))[:, 0].double()


def certificates(
    classifier: Classifier,
    images: Images,
    maps: Float[Tensor, "batch labels height width"],
    labels: Sequence[int] | None = None,
    *,
    bounds: Bounds = SCRIPT,
    budgets: int = BUDGETS,
    top_first: bool = True,
    fill: Fill = MEAN,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Certificates:
    """Score a map for every label: (B, L, H, W) in [0, 1], one channel for each of `labels`.

    labels: class indices, all different; None takes all classes of the classifier. Logits are sliced to them.
    budgets: steps from 1/budgets of the pixels to the whole picture, which is shown once for all labels.
    top_first: False keeps the *least* salient pixels first, the deletion counterpart.
    Raises ValueError for maps that do not fit, are not finite or not in [0, 1], and for unknown labels.
    """
    chosen = _labels(classifier, labels)
    _check_maps(images, maps, len(chosen), budgets)
    device = classifier.device
    images, maps, chosen = images.to(device), maps.to(device), chosen.to(device)

    def among_labels(logits: Logits, targets: Targets) -> Values:
        return probability(logits if classifier.multilabel else logits[:, chosen], targets)

    with torch.no_grad():
        filled = fill.infill(classifier)(images, torch.ones_like(images[:, :1])).to(images)
    whole = whole_logits(classifier, images, images_per_pass=images_per_pass)[:, chosen].double()
    whole = classifier.probabilities(whole)
    inner = _steps(images.shape[-1] * images.shape[-2], budgets)[:-1]
    columns = []
    for index in range(len(chosen)):
        order = maps[:, index : index + 1] if top_first else -maps[:, index : index + 1]
        reading = read_ranked(
            classifier,
            images,
            ranks(order),
            inner,
            chosen.new_full((len(images),), int(chosen[index]) if classifier.multilabel else index),
            keep_top=True,
            filled=filled,
            scores=(among_labels,),
            images_per_pass=images_per_pass,
        )
        columns.append((reading[among_labels].sum(1) + whole[:, index]) / budgets)
    area = torch.stack(columns, 1)
    return Certificates(chosen, area, whole, bounds.completeness(area, whole), bounds.soundness(area, whole))


def _check_maps(images: Tensor, maps: Tensor, labels: int, budgets: int) -> None:
    expected = (len(images), labels, *images.shape[-2:])
    if maps.shape != expected:
        raise ValueError(f"expected one map per image and label, {expected}, got {tuple(maps.shape)}")
    if budgets < 1:
        raise ValueError(f"expected at least one budget, got {budgets}")
    check_maps(maps, [f"image {index}" for index in range(len(maps))])


def _steps(pixels: int, budgets: int) -> list[int]:
    return [round(step * pixels / budgets) for step in range(1, budgets + 1)]


def _labels(classifier: Classifier, labels: Sequence[int] | None) -> Tensor:
    count = int(classifier.num_classes)
    chosen = list(range(count)) if labels is None else [int(label) for label in labels]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(f"labels must be different class indices in [0, {count - 1}], got {chosen}")
    return torch.tensor(chosen)


# One map a picture


def _area_of(case: Case, budgets: int) -> tuple[Values, Values]:
    pixels = case.size[0] * case.size[1]
    show = Showing(keep_top=True, fill=MEAN)
    classifier, _, targets = case.played()
    asked = classifier.question(case.whole().double(), targets)
    return show(case, _steps(pixels, budgets)).mean(1), probability(*asked)


def completeness(case: Case, *, bounds: Bounds = SCRIPT, budgets: int = BUDGETS) -> Values:
    """Return the completeness of the explained class, in [eps, 1]; the softmax runs over all classes."""
    return bounds.completeness(*_area_of(case, budgets)).to(case.masks.device)


def soundness(case: Case, *, bounds: Bounds = SCRIPT, budgets: int = BUDGETS) -> Values:
    """Return the soundness of the explained class, in [0, 1]: of one label, where the measure asks for the worst."""
    return bounds.soundness(*_area_of(case, budgets)).to(case.masks.device)


def _area_kept(case: Case) -> Values:
    return _area_of(case, BUDGETS)[0].to(case.masks.device)


def _certificate(name: str, function: Callable[[Case], Values], low: float, **settings: float) -> Metric:
    protocol: dict[str, object] = {
        "budgets": f"k/{BUDGETS}, k = 1 ... {BUDGETS}, most salient kept",
        "fill": MEAN.name,
        "score": "probability, softmax over all classes",
        "ties": "raster",
        "explained_class": "given, that label alone",
        **settings,
    }
    direction: Literal["up"] = "up"
    needs = frozenset({"images", "classifier"})
    return Metric(name, function, protocol, direction, (low, 1), "Gupta et al. 2022", needs)


def _pair(suffix: str, bounds: Bounds) -> list[Metric]:
    values = {"eps": bounds.eps, "beta": bounds.beta, "alpha": bounds.alpha}
    return [
        _certificate(f"completeness{suffix}", lambda case: completeness(case, bounds=bounds), bounds.eps, **values),
        _certificate(f"soundness{suffix}", lambda case: soundness(case, bounds=bounds), bounds.beta, **values),
    ]


SOUNDNESS: dict[str, Metric] = {
    metric.name: metric
    for metric in (*_pair("", SCRIPT), *_pair(":function", FUNCTION), _certificate("area_kept", _area_kept, 0))
}
"""Completeness and soundness of the explained class alone, with the script's and the functions' constants."""
