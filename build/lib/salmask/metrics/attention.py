"""Does the mask look where people look? Correlation and AUC against gaze maps, less what the centre alone gives.

Bigolin Lanfredi et al. 2021 (arXiv 2112.11716). Gaze gathers at the middle of any picture, so a mask of the middle
correlates with it. The *shuffled* scores take that off by the centre-bias map, the mean gaze of other images:

    sNCC = NCC(gaze, m) - NCC(centre, m)
    sAUC = P( m at a pixel drawn by gaze > m at a pixel drawn by centre ), ties count one half

A gaze map is any density >= 0 of the masks' size: a smoothed fixation count, or durations.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from salmask.draws import generator_for
from salmask.metrics.case import Case, Metric
from salmask.types import Masks, Values

__all__ = ["ATTENTION", "Density", "ncc", "order_auc", "sampled_auc", "sncc"]

Density = Float[Tensor, "#batch 1 height width"]
SAMPLES = 1000


def ncc(first: Density, second: Density) -> Values:
    """Return the Pearson correlation of two maps over their pixels, in [-1, 1]; 0 if one of them is constant."""
    a, b = first.double().flatten(1), second.double().flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = a.norm(dim=1) * b.norm(dim=1)
    constant = (first.flatten(1).amax(1) == first.flatten(1).amin(1)) | (
        second.flatten(1).amax(1) == second.flatten(1).amin(1)
    )
    ratio = ((a * b).sum(1) / torch.where(scale > 0, scale, 1)).clamp(-1, 1)
    return torch.where(constant, 0, ratio).to(first.dtype)


def sncc(masks: Masks, gaze: Density, centre: Density) -> Values:
    """Return NCC(gaze, m) - NCC(centre, m), in [-2, 2]; the centre-bias map itself has at most 1 - 1 = 0."""
    return ncc(masks, gaze) - ncc(masks, centre.expand_as(masks))


def order_auc(masks: Masks, positive: Density, negative: Density, *, ids: Sequence[str] | None = None) -> Values:
    """Return P(m[X] > m[Y]) + P(m[X] = m[Y]) / 2 for pixels X ~ positive, Y ~ negative, in [0, 1]; no sampling.

    The two distribution functions of mask values are compared by one sort per image.
    """
    names = ids or [str(i) for i in range(len(masks))]
    values = []
    for name, mask, p, n in zip(names, masks, positive, negative.expand_as(masks), strict=True):
        levels, bins = mask.flatten().unique(return_inverse=True)
        mass = torch.zeros(2, len(levels), dtype=torch.float64, device=mask.device)
        for row, density in zip(mass, (p, n), strict=True):
            row.index_add_(0, bins, _distribution(density, name))
        below = mass[1].cumsum(0) - mass[1] / 2
        values.append((mass[0] * below).sum().clamp(0, 1))
    return torch.stack(values).to(masks.dtype)


def sampled_auc(
    masks: Masks,
    positive: Density,
    negative: Density,
    *,
    ids: Sequence[str],
    seed: int,
    samples: int = SAMPLES,
    purpose: str = "sauc",
) -> Values:
    """Return the AUC of mask values at `samples` pixels drawn by each density (as published: 1000 and 1000).

    Every image draws from its own generator (seed, id): batch size and order change nothing.
    """
    values = []
    for name, mask, p, n in zip(ids, masks.cpu(), positive.cpu(), negative.cpu().expand_as(masks), strict=True):
        generator = generator_for(seed, name, purpose)
        flat = mask.flatten()
        own, other = (
            flat[torch.multinomial(_distribution(d, name), samples, replacement=True, generator=generator)]
            for d in (p, n)
        )
        ordered = other.sort().values
        below = torch.searchsorted(ordered, own) + torch.searchsorted(ordered, own, right=True)
        values.append(below.double().mean() / (2 * samples))
    return torch.stack(values).to(masks)


def _distribution(density: Tensor, image: str) -> Float[Tensor, " pixels"]:
    flat = density.double().flatten()
    total = flat.sum()
    if not bool(torch.isfinite(total)) or bool((flat < 0).any()) or float(total) <= 0:
        raise ValueError(
            f"a gaze map must be finite, >= 0 and not empty; that of {image!r} sums to {float(total):g}, smallest "
            f"{float(flat.min()):g}: leave the image out or repair its gaze"
        )
    return flat / total


def _maps(case: Case) -> tuple[Density, Density]:
    assert case.gaze is not None  # by Metric.needs
    centre = case.centre if case.centre is not None else torch.ones_like(case.gaze[:1])
    return case.gaze.to(case.masks.device), centre.to(case.masks.device)


def _sampled(uniform: bool) -> Callable[[Case], Values]:
    def function(case: Case) -> Values:
        gaze, centre = _maps(case)
        negative = torch.ones_like(centre) if uniform else centre
        purpose = "gaze_auc" if uniform else "sauc"
        return sampled_auc(case.masks, gaze, negative, ids=case.ids, seed=case.seed, purpose=purpose)

    return function


_SOURCE = "Bigolin Lanfredi et al. 2021"
_GAZE, _BOTH = frozenset({"gaze"}), frozenset({"gaze", "centre"})
_DRAWN = {"samples": SAMPLES, "ties": "one half", "drawn": "by seed and image id"}
ATTENTION: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ncc", lambda c: ncc(c.masks, _maps(c)[0]), {}, "up", (-1, 1), _SOURCE, _GAZE),
        Metric("sncc", lambda c: sncc(c.masks, *_maps(c)), {"bias": "centre map"}, "up", (-2, 2), _SOURCE, _BOTH),
        Metric("gaze_auc", _sampled(uniform=True), _DRAWN | {"negatives": "uniform"}, "up", (0, 1), _SOURCE, _GAZE),
        Metric("sauc", _sampled(uniform=False), _DRAWN | {"negatives": "centre map"}, "up", (0, 1), _SOURCE, _BOTH),
        Metric(
            "sauc:exact",
            lambda c: order_auc(c.masks, *_maps(c), ids=c.ids),
            {"samples": "none: expectation", "ties": "one half", "negatives": "centre map"},
            "up",
            (0, 1),
            _SOURCE,
            _BOTH,
        ),
    )
}
