"""How a mask is written down while it is being optimised.

    parameters theta (one row an item) -> masks m(theta) in [0, 1]

| parametrisation | m(theta) | used by |
|---|---|---|
| `Grid` | up(link(theta)), link a sigmoid or a projection; stride 1 is per pixel | meaningful, bank, refined |
| `MapWeights` | n(up(h(sum_k softmax(theta)_k A_k))), A feature maps held constant | Opti-CAM |
| `Bernoulli` | up(sigmoid((theta + logit u) / T)), u uniform: relaxed coin flips | FIDO |
| `FixedArea` (`extremal.py`) | smooth maximum of shifted bumps, pulled to a given area | extremal |

An item is one optimisation: an image, or an image at one of several areas. Nothing in a parametrisation mixes
items, and noise is drawn once for all of them, so that a map does not depend on what else is in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from salmask.explain.base import normalise
from salmask.types import Features, Images, Masks, Size, Targets, size_of

__all__ = [
    "CLAMPED",
    "MAP_NORMALISERS",
    "SIGMOID",
    "Begun",
    "Bernoulli",
    "Drawn",
    "Grid",
    "Link",
    "MapWeights",
    "Parametrisation",
    "Scene",
    "enlarge",
    "identity",
]


@dataclass(frozen=True)
class Scene:
    """What a parametrisation may look at before the first step.

    layers: names of the feature maps. start: maps to start from, in [0, 1].
    """

    images: Images
    targets: Targets
    features: Features
    layers: tuple[str, ...] = ()
    start: Masks | None = None

    def maps(self, layer: int | str) -> Tensor:
        """Return the feature maps of a layer, given by index or name."""
        names = self.layers
        if isinstance(layer, int) and -len(names) <= layer < len(names):
            return self.features.maps[layer]
        if layer in names:
            return self.features.maps[names.index(str(layer))]
        raise ValueError(
            f"the classifier does not read layer {layer!r}: expected an index or one of {', '.join(names)}; "
            "build the Classifier with the layers that are wanted"
        )


class Begun(NamedTuple):
    """The first parameters, and the constants that go with them: tensors with one row an item.

    A parametrisation with several `copies` has that many rows an image, image by image.
    """

    parameters: Tensor
    fixed: tuple[Tensor, ...] = ()


class Drawn(NamedTuple):
    """Masks of one step: `judged` (items, 1, h, w) by the terms, `shown` (items or draws * items, 1, H, W)."""

    judged: Tensor
    shown: Tensor


class Parametrisation(ABC):
    """theta -> masks. Subclasses are final: vary them by their fields."""

    @property
    def copies(self) -> int:
        """Items of each image; the maps of an image's items are averaged in the end."""
        return 1

    @abstractmethod
    def begin(self, scene: Scene) -> Begun:
        """Return the first parameters and the constants of every item."""

    @abstractmethod
    def draw(
        self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size, draws: int, generator: Generator
    ) -> Drawn:
        """Return the masks of one step, at the pictures' size."""

    def final(self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size) -> Tensor:
        """Return the maps that stand for the parameters once the loop is over."""
        return self.draw(parameters, fixed, size=size, draws=1, generator=Generator()).shown

    def project(self, parameters: Tensor) -> Tensor:
        """Return the nearest admissible parameters; applied after every step."""
        return parameters

    def penalty(self, judged: Tensor, fixed: tuple[Tensor, ...], step: int) -> Tensor | None:
        """Return a constraint's price per item, if the parametrisation has one."""
        return None


def identity(values: Tensor) -> Tensor:
    """Return the values as they are."""
    return values


def enlarge(masks: Tensor, size: Size) -> Tensor:
    """Resize masks bilinearly (align_corners=False); masks that fit already are returned as they are."""
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)


class Link(NamedTuple):
    """Between free parameters and cells in [0, 1]."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


SIGMOID = Link(torch.sigmoid, lambda cells: cells.clamp(0.01, 0.99).logit(), identity)
"""Cells are sigmoids of free parameters; a map to start from is moved off 0 and 1, where the slope vanishes."""

CLAMPED = Link(identity, identity, lambda parameters: parameters.clamp(0, 1))
"""Cells are the parameters, put back on [0, 1] after every step."""


@dataclass(frozen=True)
class Grid(Parametrisation):
    """A coarse grid of cells, enlarged bilinearly: m = up(link(theta)).

    cells: number along the short side of the picture; None: one cell for `stride` pixels (1: per pixel).
    start: the value that all cells begin with, where the scene brings no map of its own.
    judge_cells: terms see the cells instead of the enlarged mask.
    """

    cells: int | None = None
    stride: int = 1
    link: Link = SIGMOID
    start: float = 0.5
    judge_cells: bool = False

    def begin(self, scene: Scene) -> Begun:
        """Return one grid an image."""
        size = size_of(scene.images)
        shape = grid_shape(size, self.cells, self.stride)
        if scene.start is None:
            cells = scene.images.new_full((len(scene.images), 1, *shape), self.start)
        else:
            cells = F.interpolate(scene.start, shape, mode="area")
        return Begun(self.link.inverse(cells))

    def draw(
        self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size, draws: int, generator: Generator
    ) -> Drawn:
        """Return the enlarged grid; there is nothing random in it."""
        cells = self.link.forward(parameters)
        shown = enlarge(cells, size)
        return Drawn(cells if self.judge_cells else shown, shown)

    def project(self, parameters: Tensor) -> Tensor:
        """Return what the link admits."""
        return self.link.project(parameters)


def grid_shape(size: Size, cells: int | None, stride: int) -> Size:
    """Return rows and columns of a grid: `cells` along the short side, or one for `stride` pixels."""
    if cells is not None:
        stride_px = min(size) / cells
        return max(1, round(size[0] / stride_px)), max(1, round(size[1] / stride_px))
    return -(-size[0] // stride), -(-size[1] // stride)


def _by_range(maps: Tensor) -> Tensor:
    return normalise(maps, "minmax")


def _by_maximum(maps: Tensor) -> Tensor:
    return normalise(maps, "max")


MAP_NORMALISERS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"range": _by_range, "max": _by_maximum, "sigmoid": torch.sigmoid}
)
"""Opti-CAM's ways n() of putting a weighted sum of maps on [0, 1]; a constant map gives zeros, not NaN."""


@dataclass(frozen=True)
class MapWeights(Parametrisation):
    """Weights of the feature maps of one layer: s(u) = n(up(h(sum_k softmax(u)_k A_k))) (Zhang et al., 2024).

    layer: index or name among the classifier's layers. start: every u_k at first (softmax does not see it).
    rectify: A_k = rectify(feature map k); identity for layers whose sign matters (transformer tokens).
    activation: h, on the weighted sum. normaliser: n, (items, 1, H, W) -> [0, 1].
    """

    layer: int | str = -1
    normaliser: Callable[[Tensor], Tensor] = _by_range
    rectify: Callable[[Tensor], Tensor] = F.relu
    activation: Callable[[Tensor], Tensor] = identity
    start: float = 0.5

    def begin(self, scene: Scene) -> Begun:
        """Return uniform weights and the maps, which are held constant."""
        maps = self.rectify(scene.maps(self.layer).detach().float())
        return Begun(maps.new_full(maps.shape[:2], self.start), (maps,))

    def draw(
        self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size, draws: int, generator: Generator
    ) -> Drawn:
        """Return the normalised sum of maps."""
        (maps,) = fixed
        weights = parameters.softmax(1)
        summed = torch.einsum("ak,akhw->ahw", weights, maps).unsqueeze(1)
        masks = self.normaliser(enlarge(self.activation(summed), size))
        return Drawn(masks, masks)


@dataclass(frozen=True)
class Bernoulli(Parametrisation):
    """Cells that are kept with probability p = sigmoid(theta), relaxed: z = sigmoid((theta + logit u) / T).

    The relaxation is the binary concrete distribution (Maddison et al., 2017; Jang et al., 2017), one u in (0, 1)
    a cell and draw, the same for all items. Terms judge p, the pictures show z; the final map is up(p).
    """

    cells: int | None = None
    stride: int = 4
    temperature: float = 0.1
    start: float = 0.5

    def begin(self, scene: Scene) -> Begun:
        """Return the logits of p."""
        grid = Grid(cells=self.cells, stride=self.stride, start=self.start)
        return grid.begin(scene)

    def draw(
        self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size, draws: int, generator: Generator
    ) -> Drawn:
        """Return p, and `draws` relaxed samples an item, draw by draw."""
        uniform = torch.rand((draws, 1, *parameters.shape[1:]), generator=generator)
        noise = uniform.clamp(1e-6, 1 - 1e-6).logit().to(parameters)
        samples = ((parameters + noise) / self.temperature).sigmoid().flatten(0, 1)
        return Drawn(parameters.sigmoid(), enlarge(samples, size))

    def final(self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size) -> Tensor:
        """Return the probabilities, enlarged."""
        return enlarge(parameters.sigmoid(), size)
