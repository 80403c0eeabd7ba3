"""Curves: what the classifier says while pixels are shown or hidden in the order of a map.

    order      pixels by falling saliency; rank 0 is the most salient
    insertion  x_k = x where rank < k, the fill elsewhere        k = 0 ... n
    deletion   x_k = the fill where rank < k, x elsewhere
    score      s_k = s(f(x_k), y), by default softmax(f(x_k))_y
    area       trapezoid over the shares k/n, or the plain mean of the points

Both curves have the whole image and the bare fill as their ends, so these are shown once a case, and pixels are
sorted once. The negative perturbation removes the n - k least salient pixels: the very pictures of insertion.

Sources: Petsiuk, Das & Saenko (2018, RISE); Samek et al. (2017, AOPC); Chefer, Gur & Wolf (2021, perturbation).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.scores import ClassScore, probability, top1
from salmask.draws import generator_for
from salmask.metrics.case import Case
from salmask.metrics.fills import MEAN, Fill
from salmask.metrics.reading import READ, Reading, colours, hidden, read, to_read
from salmask.outcome import IMAGES_PER_PASS
from salmask.types import Images, Masks, Targets, Values

__all__ = [
    "Aopc",
    "Area",
    "Curve",
    "Perturbation",
    "Showing",
    "Ties",
    "cell_ranks",
    "mean_of_points",
    "random_ties",
    "ranks",
    "raster",
    "read_ranked",
    "trapezoid",
]


# In which order


Ties = Callable[[Case], Tensor]
"""Case -> (B, H * W) permutation of each image's pixels: which of two equally salient pixels goes first."""


def raster(case: Case) -> Int[Tensor, "batch pixels"]:
    """Equal pixels go row by row from the top left: the same on every machine."""
    count = case.size[0] * case.size[1]
    return torch.arange(count, device=case.masks.device).expand(len(case.masks), count)


def random_ties(case: Case) -> Int[Tensor, "batch pixels"]:
    """Equal pixels go in a random order, drawn from the case's seed and the image's id."""
    count = case.size[0] * case.size[1]
    drawn = [torch.randperm(count, generator=generator_for(case.seed, image, "ties")) for image in case.ids]
    return torch.stack(drawn).to(case.masks.device) if drawn else raster(case)


def ranks(
    maps: Float[Tensor, "batch 1 height width"], first: Int[Tensor, "batch pixels"] | None = None
) -> Int[Tensor, "batch 1 height width"]:
    """Return the rank of each pixel by falling value, 0 the most salient; equal pixels in the order of `first`.

    first: (B, H * W) permutations; None is the raster order.
    """
    flat = maps.flatten(1)
    values = flat if first is None else flat.gather(1, first)
    order = values.argsort(stable=True, dim=1, descending=True)
    if first is not None:
        order = first.gather(1, order)
    places = torch.arange(order.shape[1], dtype=torch.int32, device=order.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places).view_as(maps)


def cell_ranks(maps: Masks, cells: int) -> Int[Tensor, "batch 1 height width"]:
    """Return for each pixel the rank of its cell, by the cell's mean, on a grid of cells x cells."""
    pooled = ranks(F.adaptive_avg_pool2d(maps, cells)).float()
    return F.interpolate(pooled, maps.shape[-2:], mode="nearest-exact").to(torch.int32)


# Showing the pictures


def read_ranked(
    classifier: Classifier,
    images: Images,
    places: Int[Tensor, "batch 1 height width"],
    budgets: Sequence[int],
    targets: Targets,
    *,
    keep_top: bool,
    filled: Tensor,
    scores: Sequence[ClassScore] = READ,
    images_per_pass: int = IMAGES_PER_PASS,
) -> Reading:
    """Read every image with its top k pixels kept alone (keep_top) or hidden, for each k: shape (B, budgets)."""
    steps = len(budgets)
    limits = torch.tensor(list(budgets), dtype=torch.int32, device=images.device)
    own_fill = len(filled) > 1

    def pictures(at: Tensor) -> Images:
        image, step = at // steps, at % steps
        top = places[image] < limits[step].view(-1, 1, 1, 1)
        picture, colour = images[image], filled[image] if own_fill else filled
        return torch.where(top, picture, colour) if keep_top else torch.where(top, colour, picture)

    repeated = targets.repeat_interleave(steps)
    reading = read(classifier, pictures, repeated, scores=scores, images_per_pass=images_per_pass)
    return reading.view(len(images), steps)


@dataclass(frozen=True)
class Showing:
    """How a case's pictures are made and read: side of the order that is kept, fill, score, ties, cells, batch."""

    keep_top: bool
    fill: Fill
    score: ClassScore = probability
    ties: Ties = raster
    cells: int | None = None
    images_per_pass: int = IMAGES_PER_PASS

    def __call__(self, case: Case, budgets: Sequence[int]) -> Float[Tensor, "batch budgets"]:
        """Return the class scores (B, budgets), float64; nothing is shown twice to the classifier within a case."""
        classifier, _, targets = case.played()
        last = self.cells**2 if self.cells else case.size[0] * case.size[1]
        inner = tuple(sorted({k for k in budgets if 0 < k < last}))
        bare = 0 if self.keep_top else last
        ends = {last - bare: case.whole(images_per_pass=self.images_per_pass)}
        if bare in budgets:
            ends[bare] = hidden(case, self.fill, images_per_pass=self.images_per_pass)
        scores = to_read(self.score)
        key = ("curve", self.keep_top, self.fill, self.ties, self.cells, inner, scores)
        reading = case.once(key, lambda: self._show(case, inner, scores))
        column = {k: reading[self.score][:, i] for i, k in enumerate(inner)}
        column |= {k: self.score(*classifier.question(logits.double(), targets)) for k, logits in ends.items()}
        return torch.stack([column[k] for k in budgets], 1)

    def _show(self, case: Case, budgets: Sequence[int], scores: Sequence[ClassScore]) -> Reading:
        classifier, images, targets = case.played()
        places = case.once(("ranks", self.ties, self.cells), lambda: self._ranks(case)).to(images.device)
        return read_ranked(
            classifier,
            images,
            places,
            budgets,
            targets,
            keep_top=self.keep_top,
            filled=colours(case, self.fill),
            scores=scores,
            images_per_pass=self.images_per_pass,
        )

    def _ranks(self, case: Case) -> Tensor:
        if self.cells:
            return cell_ranks(case.masks, self.cells)
        return ranks(case.masks, None if self.ties is raster else self.ties(case))


# Areas and metrics


Area = Callable[[Tensor, Tensor], Tensor]


def trapezoid(curve: Float[Tensor, "batch points"], shares: Float[Tensor, " points"]) -> Values:
    """Return the area under the broken line through the points, over shares from 0 to 1."""
    return torch.trapezoid(curve, shares, dim=1)


def mean_of_points(curve: Float[Tensor, "batch points"], shares: Float[Tensor, " points"]) -> Values:
    """Return the plain mean of the points, both ends included."""
    return curve.mean(1)


@dataclass(frozen=True)
class Curve:
    """Insertion or deletion: area under the score while the most salient pixels come, or go.

    steps: number of equal steps, so that a step is the same share of pixels at every size; step_pixels, where
        given, is their size in pixels of the images at hand instead, the last step taking what is left.
    explained: whose class the source takes; the case's `targets` are what is used.
    """

    insert: bool
    steps: int = 28
    step_pixels: int | None = None
    fill: Fill = MEAN
    score: ClassScore = probability
    ties: Ties = raster
    area: Area = trapezoid
    explained: str = "given"
    images_per_pass: int = IMAGES_PER_PASS

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.step_pixels is not None and self.step_pixels < 1):
            raise ValueError(f"a curve needs at least one step of one pixel, got {self.steps}, {self.step_pixels}")

    def budgets(self, pixels: int) -> list[int]:
        """Return how many pixels have come or gone at each point: 0 ... pixels."""
        if self.step_pixels is None:
            return [round(j * pixels / self.steps) for j in range(self.steps + 1)]
        return [*range(0, pixels, self.step_pixels), pixels]

    def points(self, case: Case) -> tuple[Float[Tensor, "batch points"], Float[Tensor, " points"]]:
        """Return the curve (B, points), float64, and the shares of pixels (points,) it is taken at."""
        pixels = case.size[0] * case.size[1]
        budgets = self.budgets(pixels)
        show = Showing(self.insert, self.fill, self.score, self.ties, images_per_pass=self.images_per_pass)
        curve = show(case, budgets)
        return curve, torch.tensor(budgets, dtype=curve.dtype, device=curve.device) / pixels

    def __call__(self, case: Case) -> Values:
        """Return the area under each image's curve."""
        return self.area(*self.points(case)).to(case.masks.device)

    @property
    def protocol(self) -> dict[str, object]:
        """All that changes the number."""
        step = f"1/{self.steps} of the pixels" if self.step_pixels is None else f"{self.step_pixels} pixels"
        return {"order": "most salient first", "step": step, **_common(self, self.ties), "area": self.area.__name__}


@dataclass(frozen=True)
class Perturbation:
    """Mean score after removing the most (positive) or least (negative) salient 10 % ... 90 % of the pixels."""

    positive: bool
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    fill: Fill = MEAN
    score: ClassScore = top1
    ties: Ties = raster
    explained: str = "given"
    images_per_pass: int = IMAGES_PER_PASS

    def points(self, case: Case) -> Float[Tensor, "batch shares"]:
        """Return the score at each share."""
        pixels = case.size[0] * case.size[1]
        removed = [int(pixels * share + 1e-9) for share in self.shares]
        budgets = removed if self.positive else [pixels - count for count in removed]
        show = Showing(not self.positive, self.fill, self.score, self.ties, images_per_pass=self.images_per_pass)
        return show(case, budgets)

    def __call__(self, case: Case) -> Values:
        """Return the mean over the shares."""
        return self.points(case).mean(1).to(case.masks.device)

    @property
    def protocol(self) -> dict[str, object]:
        """All that changes the number."""
        order = "most salient removed" if self.positive else "least salient removed"
        return {"order": order, "shares": self.shares, **_common(self, self.ties), "area": "mean"}


@dataclass(frozen=True)
class Aopc:
    """Mean over k = 0 ... regions of s(x) - s(x without its k most salient cells) (Samek et al., 2017)."""

    cells: int = 16
    regions: int = 10
    fill: Fill = MEAN
    score: ClassScore = probability
    explained: str = "given"
    images_per_pass: int = IMAGES_PER_PASS

    def __call__(self, case: Case) -> Values:
        """Return the area over the curve."""
        cells = min(self.cells, *case.size)
        if self.regions > cells**2:
            raise ValueError(f"maps of {case.size} have {cells}x{cells} cells, fewer than {self.regions} regions")
        show = Showing(False, self.fill, self.score, cells=cells, images_per_pass=self.images_per_pass)
        curve = show(case, range(self.regions + 1))
        return (curve[:, :1] - curve).mean(1).to(case.masks.device)

    @property
    def protocol(self) -> dict[str, object]:
        """All that changes the number."""
        grid = f"{self.cells}x{self.cells} cells by their mean, most salient removed"
        return {"order": grid, "regions": self.regions, "ties": "raster", **_common(self), "area": "mean"}


def _common(metric: Curve | Perturbation | Aopc, ties: Ties | None = None) -> dict[str, object]:
    return {
        "score": metric.score.__name__,
        "fill": metric.fill.name,
        **({} if ties is None else {"ties": ties.__name__}),
        "explained_class": metric.explained,
    }
