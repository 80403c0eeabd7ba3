"""What extremal perturbations need beside the loop: masks of a given area, and a pyramid of blurs.

    m(u) = smax_v k(|u - v| / sigma) theta(v),   smax f = sum f e^(f/T) / sum e^(f/T)
    penalty = w * mean_i (sorted(m)_i - 1[i > (1 - a) N])^2

theta lives on a coarse grid v; k is 1 out to half of sigma and falls off like a Gaussian, so that a mask is a
union of smooth bumps. The penalty asks that a share a of the pixels be 1 and the rest 0, without saying which.
The search starts at a full mask that shrinks slowly: what matters least goes first.
Source: Fong, Patrick & Vedaldi, Understanding Deep Networks via Extremal Perturbations and Smooth Masks (2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.autograd.function import BackwardCFunction, Function
from torch.nn import functional as F

from salmask.explain.optimise.masks import Begun, Drawn, Parametrisation, Scene, Size, enlarge

__all__ = ["FixedArea", "smooth_maximum"]


@dataclass(frozen=True)
class FixedArea(Parametrisation):
    """Smooth masks of given areas; one item for every image and area, whose maps are averaged.

    areas: shares of the picture, in (0, 1). step, sigma: distance of grid points and width of the bumps, in
    pixels of a picture whose short side has 224, scaled with the picture. temperature: T.
    weight, growth: the penalty's weight and its factor from step to step.
    tie: values that are closer than this to the one that divides the area from the rest count as tied with it.
        A hard step would rank the ties of a constant mask by their place, not by the picture.
    density: samples of m along a side of a grid cell, never finer than the pixels; the mask is enlarged
    bilinearly from there.
    """

    areas: tuple[float, ...] = (0.1,)
    step: float = 7.0
    sigma: float = 21.0
    temperature: float = 0.05
    weight: float = 300.0
    growth: float = 1.0035
    tie: float = 0.02
    density: int = 2
    start: float = 1.0
    cells: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise ValueError(f"expected areas as shares of the picture, in (0, 1), got {self.areas}")
        object.__setattr__(self, "cells", max(1, round(224 / self.step)))

    @property
    def copies(self) -> int:
        """One item for every area."""
        return len(self.areas)

    def begin(self, scene: Scene) -> Begun:
        """Return a constant grid for every image and area."""
        images = scene.images
        pixels = min(images.shape[-2:]) / self.cells
        shape = [max(1, round(side / pixels)) for side in images.shape[-2:]]
        areas = images.new_tensor(self.areas).repeat(len(images))
        return Begun(images.new_full((len(areas), 1, *shape), self.start), (areas,))

    def draw(
        self, parameters: Tensor, fixed: tuple[Tensor, ...], *, size: Size, draws: int, generator: Generator
    ) -> Drawn:
        """Return the smooth masks."""
        density = max(1, min(self.density, size[0] // parameters.shape[-2]))
        masks = smooth_maximum(parameters, sigma=self.sigma / self.step, density=density, temperature=self.temperature)
        return Drawn(masks, enlarge(masks, size))

    def project(self, parameters: Tensor) -> Tensor:
        """Return the parameters on [0, 1]."""
        return parameters.clamp(0, 1)

    def penalty(self, judged: Tensor, fixed: tuple[Tensor, ...], step: int) -> Tensor:
        """Return the weighted distance of the sorted mask from the step template."""
        (areas,) = fixed
        ordered = judged.flatten(1).sort(1).values
        count = ordered.shape[1]
        rank = ((1 - areas) * count).round().long().clamp(1, count - 1)[:, None]
        edge = (ordered.gather(1, rank - 1) + ordered.gather(1, rank)) / 2
        template = ((ordered - edge) / self.tie).sigmoid().detach()
        return self.weight * self.growth**step * (ordered - template).square().mean(1)


def smooth_maximum(
    grid: Float[Tensor, "items 1 rows columns"], *, sigma: float, density: int, temperature: float
) -> Float[Tensor, "items 1 fine_rows fine_columns"]:
    """Return smax_v k(|u - v| / sigma) theta(v) at `density` points along each side of each cell.

    k(z) = exp(-2 relu(z - 1/2)^2). sigma: in cells. Bumps are cut off at two sigma, where k is .011; beyond
    the border theta is continued, so that a constant grid gives a constant mask.
    """
    reach = max(1, round(2 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=grid.device, dtype=grid.dtype)
    inside = (torch.arange(density, device=grid.device, dtype=grid.dtype) + 0.5) / density - 0.5
    apart = (offsets[None, :] - inside[:, None]) / sigma
    distance = (apart.square()[:, None, :, None] + apart.square()[None, :, None, :]).sqrt().flatten(2).flatten(0, 1)
    disc = distance.amin(0) <= max(2.0, float(distance.amin()))  # without the corners of the square
    kernel = torch.exp(-2 * (distance[:, disc] - 0.5).clamp_min(0).square())
    near = F.unfold(F.pad(grid, [reach] * 4, mode="replicate"), 2 * reach + 1)[:, disc]
    highest: Tensor = _SmoothMaximum.apply(near, kernel, temperature)
    return F.pixel_shuffle(highest.unflatten(2, grid.shape[-2:]), density)


class _SmoothMaximum(Function):
    """smax over v of k(s, v) theta(v): theta (items, v, places), k (s, v) -> (items, s, places).

    With c = k theta / T and e = exp(c - max theta / T):  smax = T sum(c e) / sum(e),  and
    d smax / d theta(v) = k e / sum(e) (1 + c - smax / T).  Written out, since what autograd keeps of it is half of
    the time of a step; one s at a time, so that it stays in the cache.
    """

    @staticmethod
    def forward(ctx: BackwardCFunction, near: Tensor, kernel: Tensor, temperature: float) -> Tensor:
        most = near.amax((1, 2), keepdim=True)
        least = near.amin((1, 2), keepdim=True).clamp_max(0)
        highest, slopes = [], []
        for row in kernel:
            lifted = torch.addcmul(-most / temperature, near, row[:, None] / temperature)
            weights = lifted.exp()
            total = weights.sum(1, keepdim=True)
            mean = lifted.mul_(weights).sum(1, keepdim=True) / total
            highest.append(torch.maximum(most + temperature * mean.clamp_max(0), least))  # rounding stays in range
            # (1 + c - smax / T) e, of c e that is there already
            slopes.append(lifted.addcmul_(weights, 1 - mean).div_(total))
        ctx.save_for_backward(kernel, *slopes)
        return torch.cat(highest, 1)

    @staticmethod
    def backward(ctx: BackwardCFunction, *given: Tensor) -> tuple[Tensor, None, None]:
        saved: Sequence[Tensor] = ctx.saved_tensors
        kernel, *slopes = saved
        total = torch.zeros_like(slopes[0])
        for row, slope, arriving in zip(kernel, slopes, given[0].unbind(1), strict=True):
            total.addcmul_(slope * row[:, None], arriving[:, None])
        return total, None, None
