"""Maps that look at no classifier: what every score must be held against.

| name | map | source |
|---|---|---|
| full, empty | ones, zeros | Phang et al. (2020), score modes max and min |
| center | a box in the middle with half of the area | Phang et al. (2020) |
| gaussian | a centred Gaussian, as ranks | Choe et al. (2020) |
| random, random_blocks | uniform noise a pixel; a cell of a 56x56 grid | Zolna et al. (2018) |
| ground_truth | the labelled pixels or boxes | - |
| fake_cam | ones with one pixel zero | Poppi et al. (2021) |

The classifier is asked once, for the logits and the predicted class alone. `naive` says so: nothing of the map is the
classifier's, so that the overall metric counts every image as classified right, as published.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from salmask.boxes import paint
from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest
from salmask.draws import generator_for
from salmask.explain.base import CLASS_AGNOSTIC, Explainer, Explanation, Passes, check_targets, normalise
from salmask.explain.batching import by_pieces
from salmask.explain.knobs import BatchSize, Cells, Seed
from salmask.types import Asked, Boxes, Images, Masks, Pixels, Size, size_of

__all__ = [
    "BASELINES",
    "Fixed",
    "GroundTruth",
    "Random",
    "center_box",
    "empty",
    "fake_cam",
    "full",
    "gaussian",
    "noise",
]

Draw = Callable[[int, int], Tensor]
"""(height, width) -> one map (height, width) in [0, 1]."""


def gaussian(height: int, width: int) -> Tensor:
    """Return an isotropic Gaussian about the centre as ranks in [0, 1], so that its width does not matter.

    Standard deviation: half the short side. The published map is centred at pixel 112 of 0 ... 223, half a pixel
    off the middle; this one lies in the middle and is symmetric.
    """
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width))
    deviation = min(height, width) / 2
    bell = torch.exp(-(y[:, None].square() + x.square()) / (2 * deviation**2))
    return normalise(bell[None, None], "rank")[0, 0].float()


def fake_cam(height: int, width: int) -> Tensor:
    """Return ones with a zero in the top left pixel: scores well on average drop and shows nothing."""
    ones = torch.ones(height, width)
    ones[0, 0] = 0
    return ones


@runtime_checkable
class _Naive(Explainer, Protocol):
    """An explainer whose maps are no classifier's."""

    @property
    def naive(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Fixed(_Naive):
    """The same map for every image of a size."""

    draw: Draw
    max_batch: BatchSize = 64

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Return the map for each image; the classifier gives the logits."""
        one = self.draw(*size_of(images)).to(classifier.device)
        return _shown(classifier, images, targets, one.expand(len(images), 1, *one.shape).clone(), self.max_batch)


@dataclass(frozen=True)
class Random(_Naive):
    """Uniform noise in [0, 1], for every pixel or for the cells of a grid (`cells` a side).

    Keyed by seed and image id where ids are given, so that batching and sharding change nothing; without ids
    every image has the same map, that of the seed.
    """

    cells: Cells | None = None
    seed: Seed = 0
    max_batch: BatchSize = 64

    @property
    def wants(self) -> frozenset[str]:
        """The images' ids."""
        return frozenset({"ids"})

    def __call__(
        self,
        classifier: Classifier,
        images: Images,
        targets: Asked | None = None,
        *,
        ids: Sequence[str] | None = None,
    ) -> Explanation:
        """Return a map for each image."""
        if ids is not None and len(ids) != len(images):
            raise ValueError(f"expected one id an image, got {len(ids)} for {len(images)} images")
        names = [""] * len(images) if ids is None else ids
        size = size_of(images)
        maps = (
            torch.stack([noise(size, name, seed=self.seed, cells=self.cells)[None] for name in names])
            if len(images)
            else images[:, :1]
        )
        return _shown(classifier, images, targets, maps.to(classifier.device), self.max_batch)


@dataclass(frozen=True)
class GroundTruth(_Naive):
    """The labelled evidence: pixels of value 1 where an image has them, else the union of its boxes.

    An image with neither gets an empty, and so degenerate, map.
    """

    max_batch: BatchSize = 64

    @property
    def wants(self) -> frozenset[str]:
        """The labels that are the maps."""
        return frozenset({"boxes", "pixels"})

    def __call__(
        self,
        classifier: Classifier,
        images: Images,
        targets: Asked | None = None,
        *,
        boxes: Sequence[Boxes] | None = None,
        pixels: Sequence[Pixels | None] | None = None,
    ) -> Explanation:
        """Return the labels as maps. Raises ValueError where neither boxes nor pixels are given."""
        if boxes is None and pixels is None:
            raise ValueError("the ground truth needs boxes= or pixels=, got neither: the data has no such labels")
        size = size_of(images)
        maps = []
        for i in range(len(images)):
            mask = pixels[i] if pixels is not None else None
            maps.append(_truth(mask, boxes[i] if boxes is not None else None, size))
        stacked = torch.stack(maps)[:, None] if maps else images[:, :1]
        return _shown(classifier, images, targets, stacked.to(classifier.device), self.max_batch)


def _truth(pixels: Pixels | None, boxes: Boxes | None, size: tuple[int, int]) -> Tensor:
    if pixels is not None:
        if tuple(pixels.shape) != size:
            raise ValueError(f"expected labelled pixels of the image's size {size}, got {tuple(pixels.shape)}")
        return (pixels == 1).float()
    return torch.zeros(size) if boxes is None else paint(boxes, size).float()


def _shown(classifier: Classifier, images: Images, targets: Asked | None, maps: Masks, max_batch: int) -> Explanation:
    """Put maps that are known already beside what the classifier says."""

    def explain(classifier: Classifier, images: Images, targets: Tensor | None) -> Explanation:
        logits = classifier.logits(images)
        chosen = check_targets(targets, logits)
        return Explanation(images.new_zeros(len(images), 1, *images.shape[-2:]), chosen, logits, Passes(1))

    with at_rest(classifier, gradients=False):
        answer = by_pieces(explain, classifier, images, targets, max_batch=max_batch)
    return Explanation(maps, answer.targets, answer.logits, answer.passes, notes=(CLASS_AGNOSTIC,))


Map = Float[Tensor, "height width"]


def full(height: int, width: int) -> Map:
    """Return ones: everything is evidence."""
    return torch.ones(height, width)


def empty(height: int, width: int) -> Map:
    """Return zeros: nothing is evidence."""
    return torch.zeros(height, width)


def center_box(height: int, width: int) -> Map:
    """Return the box of rows and columns 33 ... 190 of 224, scaled with the sides: 49.75 % of the area at 224."""
    box = torch.zeros(height, width)
    top, left = round(height * 33 / 224), round(width * 33 / 224)
    box[top : height - top, left : width - left] = 1
    return box


def noise(size: Size, image: str, *, seed: int = 0, cells: int | None = None) -> Map:
    """Return uniform noise in [0, 1], for every pixel or for the cells of a grid, that belongs to (seed, image id)."""
    generator = generator_for(seed, image, "noise")
    grid = size if cells is None else (min(cells, size[0]), min(cells, size[1]))
    return F.interpolate(torch.rand(1, 1, *grid, generator=generator), size, mode="nearest-exact")[0, 0]


BASELINES: Mapping[str, Callable[[Size, str, int], Map]] = MappingProxyType(
    {
        "full": lambda size, image, seed: full(*size),
        "empty": lambda size, image, seed: empty(*size),
        "center": lambda size, image, seed: center_box(*size),
        "random": lambda size, image, seed: noise(size, image, seed=seed),
    }
)
"""The baselines that stand beside every score: (size, image id, seed) -> map."""
