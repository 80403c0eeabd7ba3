"""Whether a layer lies on the whole picture, and not on a part that the network cuts out or on one that it frames.

    S          side of the picture, over which a map of n cells is spread: each is taken for S / n pixels
    unseen     u pixels from an edge on that move nothing in the layer: the map belongs to what is within
    idle       q cells from an edge on that nothing in the picture moves: the picture begins within

A network that cuts its pictures down to a part, or puts a frame around them, gives a map of another field than the one
over which it is spread. Strides lose pixels, too, but less than a cell and at the far edge, for they count from the
near one; kernels without padding lose none. So a layer is refused from

    u >= max(S / 2n, S / 32) at the near edge (top, left),  u >= max(S / n, S / 32) at the far one,
    q >= max(1, n / 32) at either,

half a cell at least: where the map would be moved by less, it is taken as it is. Where both hold at one edge, and are
equally wide (q S / n <= u < (q + 2) S / n), the network looks through a window (it multiplies by a mask, or cuts a part
out and puts a frame of its size around it): the map lies where it should, and is taken as well.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import ceil, floor
from types import EllipsisType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier.corners import module_outputs
from salmask.classifier.grids import Grid
from salmask.classifier.probe import Probe

__all__ = ["check_borders", "check_frame", "enlarged", "idle_lines"]

_LEAST = 32  # of a side: what is smaller is no border
_LARGER = 1.25
_LONG = 4  # cells, of which it is no chance that they are alike
_EDGES = (("top", 0, False), ("bottom", 0, True), ("left", 1, False), ("right", 1, True))
_REMEDY = (
    "cut or resize pictures before the network and not in it, or let it have a method lay_out(output, size) that "
    "returns the layer's map over the whole picture, or give layers=[] for explainers that ask for logits alone"
)

Strip = tuple[EllipsisType | slice, ...]


def check_borders(
    probe: Probe, grids: Mapping[str, Grid], idle: Mapping[str, Mapping[str, int]] | None = None
) -> Mapping[tuple[str, str], int]:
    """Raise ValueError where a border of the picture moves nothing in a layer. grids: of the layers, by name.

    idle: of each layer and edge, how many lines of cells nothing moves: a layer in which they are as wide as the border
    that is not seen looks through a window, and is returned with the edge instead, and with how many pixels it sees
    into. Deeper layers, whose kernels reach into the window from outermost cells, see as far.

    A border is exchanged between two pictures, first of the least width asked for by any layer, then wider for those
    that it does not move: as a rule five passes of one picture.
    """
    windows: dict[tuple[str, str], int] = {}
    if not grids:
        return windows
    one, other = probe.pictures[-1:].detach(), probe.pictures[:1].detach()
    outputs = module_outputs(probe.network, probe.ask, one)
    for edge, axis, far in _EDGES:
        widths = {name: _border(probe.size[axis], grid[axis], far=far) for name, grid in grids.items()}
        still = {name: outputs[name] for name in grids if name in outputs}
        for width in sorted(set(widths.values())):
            strip = _strip(axis, width, far=far)
            still = _unmoved(probe, still, _exchanged(one, other, strip))
            for name in still:
                if widths[name] != width or not _still(probe, name, strip):
                    continue
                finer = max((seen for (_, at), seen in windows.items() if at == edge), default=0)
                lines, cell = 0 if idle is None else idle[name][edge], probe.size[axis] / grids[name][axis]
                under, further = max(1, floor(lines * cell)), max(finer, ceil((lines + 2) * cell))
                begins = _still(probe, name, _strip(axis, under, far=far))
                if not (lines or finer) or not begins or _still(probe, name, _strip(axis, further, far=far)):
                    raise ValueError(
                        f"layer {name!r} does not see the whole picture: nothing in the {width} of "
                        f"{probe.size[axis]} pixels at the {edge} changes it, as where a network cuts its pictures "
                        f"down to a part, and its map would be spread over all of the picture: {_REMEDY}"
                    )
                windows[name, edge] = further
            if not still:
                break
    return windows


def idle_lines(maps: Float[Tensor, "pictures channels height width"]) -> dict[str, int]:
    """Return of each edge how many lines of cells are the same for all pictures, or along themselves.

    A normalisation over the picture (GroupNorm) gives what stands around it other values for each, alike along a line.
    """
    moved = (maps[1:] != maps[:1]).any(0).any(0)
    lines = {edge: moved.any(1 - axis) & ~_plain(maps[-1], axis) for edge, axis, _ in _EDGES}
    # 0 where nothing moves at all
    return {edge: int((lines[edge].flip(0) if far else lines[edge]).int().argmax()) for edge, _, far in _EDGES}


def _plain(one: Float[Tensor, "channels height width"], axis: int) -> Bool[Tensor, " lines"]:
    """Return which lines of a map of noise have one value a channel, other than 0, along their middle half.

    None where all have, or where the half is of fewer than four cells.
    """
    lines = one if axis == 0 else one.transpose(1, 2)
    count = lines.shape[2]
    middle = lines[..., count // 4 : count - count // 4]
    span = (middle.amax(2) - middle.amin(2)).amax(0)
    size = middle.abs().amax((0, 2))
    plain = (span <= 1e-5 * size) & (size > 0)
    return plain if middle.shape[2] >= _LONG and not bool(plain.all()) else torch.zeros_like(plain)


def check_frame(name: str, grid: Grid, idle: Mapping[str, int], windows: Collection[tuple[str, str]]) -> None:
    """Raise ValueError where outer cells of a layer are the same for two different pictures, and inner ones are not.

    windows: layers and edges at which the network does not see the picture's border either.
    """
    for edge, axis, _ in _EDGES:
        if idle[edge] >= max(1, grid[axis] / _LEAST) and (name, edge) not in windows:
            raise ValueError(
                f"layer {name!r} is larger than the picture: {idle[edge]} of {grid[axis]} lines of cells at the {edge} "
                "are the same for every picture, as where a network puts a frame around its pictures, and its map "
                f"would be pressed into the picture: {_REMEDY}"
            )


def enlarged(probe: Probe) -> Probe:
    """Return a probe by the same pictures, a quarter larger: a network may cut out a part of a size of its own."""
    size = [ceil(side * _LARGER) for side in probe.size]
    return replace(probe, pictures=F.interpolate(probe.pictures.detach(), size), located={}, before={}, moved={})


def _border(side: int, cells: int, *, far: bool) -> int:
    """Return from how many pixels on a border that nothing sees is too wide."""
    return max(ceil(side / cells / (1 if far else 2)), ceil(side / _LEAST))


def _strip(axis: int, width: int, *, far: bool) -> Strip:
    along = slice(-width, None) if far else slice(width)
    return (..., along, slice(None)) if axis == 0 else (..., along)


def _exchanged(one: Tensor, other: Tensor, strip: Strip) -> Tensor:
    shown = one.clone()
    shown[strip] = other[strip]
    return shown


def _unmoved(probe: Probe, before: Mapping[str, Tensor], picture: Tensor) -> dict[str, Tensor]:
    """Return those outputs that another picture leaves as they were."""
    after = module_outputs(probe.network, probe.ask, picture)
    return {name: output for name, output in before.items() if name in after and _same(output, after[name])}


def _still(probe: Probe, name: str, strip: Strip) -> bool:
    """Return whether a strip moves a layer neither in the one picture nor in the other, which differ."""
    one, other = probe.pictures[-1:].detach(), probe.pictures[:1].detach()
    before = {name: module_outputs(probe.network, probe.ask, other)[name]}
    return bool(_unmoved(probe, before, _exchanged(other, one, strip))) and not _unmoved(probe, before, one)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are the same, up to what kernels of some devices make of the same numbers."""
    return one.shape == other.shape and bool(((one - other).abs() <= 1e-6 * one.abs().max()).all())
