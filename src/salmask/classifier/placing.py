"""How a layer's output lies on the picture, and what a layer that is read must keep.

Shapes tell where they fit one way alone, and the network's own description where there is one; else what the corners of
the picture move tells, or the layer is refused.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from math import ceil

from torch import Tensor, nn

from salmask.classifier.borders import check_borders, check_frame, enlarged, idle_lines
from salmask.classifier.corners import (
    Moved,
    follows_a_vector,
    lies_anywhere,
    lies_clear,
    lies_elsewhere,
    lies_level,
    lies_straight,
    lies_turned,
    module_outputs,
)
from salmask.classifier.grids import (
    Grid,
    Laid,
    LaysOut,
    Rolled,
    Tokens,
    ToMap,
    channels_first,
    channels_last,
    grid_of,
    grids_of,
)
from salmask.classifier.probe import Probe
from salmask.classifier.wrappers import bare, named_layers, unwrapped
from salmask.types import FeatureMap

__all__ = ["check_field", "check_straight", "lying", "to_map_of"]


def to_map_of(probe: Probe, name: str, output: Tensor, maps: list[Grid]) -> ToMap:
    """Return the function that turns a layer's output into a map. maps: the grids of earlier layers.

    Errors: ValueError for an output without spatial extent.
    """
    shape, count = tuple(output.shape), len(probe.pictures)
    if shape[:1] != (count,):  # tokens within patches, for one
        raise ValueError(f"layer {name!r} mixes pictures: expected {count} maps for {count} pictures, got {shape}")
    inner = bare(probe.network)
    if output.ndim == 4 and (lies := lying(probe, name, shape)) is not None:
        return lies[0]
    if output.ndim == 3 and min(shape[1:]) > 1:
        if (rolled := _rolled(probe.network, name)) is not None:
            return rolled
        if _in_blocks(probe.network):
            raise ValueError(
                f"layer {name!r} gives tokens that lie in blocks of the picture and not row by row: of Hiera, name "
                "whole blocks (timm) or stages (transformers), which it can put in rows, or give layers=[]"
            )
        maps = [*probe.before.get(name, maps), *_described_grid(inner, probe, name)]
        tokens = partial(Tokens.of, shape[1], probe.size, inner, prefix=probe.prefix, grid=probe.grid, maps=maps)
        own = _laying_out(probe.network)
        try:
            rows = tokens()
        except ValueError:
            corners = probe.corners(shape[1])
            try:
                rows = tokens(corners=corners)
            except ValueError as error:
                raise ValueError(f"layer {name!r} has no known grid, got {shape}: {error}") from None
        return rows if own is None else Laid(rows, own)
    raise ValueError(
        f"layer {name!r} has no spatial extent: expected (B, C, h, w), (B, h, w, C) or tokens of a grid, "
        f"got {shape} for a picture of {probe.size[0]}x{probe.size[1]}; name an earlier layer"
    )


def lying(probe: Probe, name: str, shape: tuple[int, ...]) -> tuple[ToMap, Grid] | None:
    """Return how a 4-dimensional output lies, and its grid: where its shape fits several ways, by what corners move."""
    if (own := _laying_out(probe.network)) is not None:
        return _laid(probe, name, shape, own)
    said = getattr(bare(probe.network), "output_fmt", None)  # of timm
    square, ways = grid_of(shape, last=said == "NHWC"), grids_of(shape, probe.size)
    if square is not None and (said is not None or set(ways) <= {square[0]}):
        return square
    moved = probe.footprint(name)
    if moved is None:
        return square
    fitting = [way for way in ways if lies_straight(moved.first if way is channels_first else moved.last)]
    if len(fitting) == 1:
        return fitting[0], ways[fitting[0]]
    if probe.size[0] != probe.size[1] and channels_first in ways and lies_turned(moved.first):
        return channels_first, ways[channels_first]  # which `check_straight` refuses, and says why
    return square if len(set(shape[1:])) > 1 or lies_level(moved.first) else None


def _laying_out(network: nn.Module) -> LaysOut | None:
    return next((module for module in network.modules() if isinstance(module, LaysOut)), None)


def _laid(probe: Probe, name: str, shape: tuple[int, ...], own: LaysOut) -> tuple[ToMap, Grid] | None:
    """Return how a 4-dimensional output lies once it is laid out: channels first, unless corners tell otherwise."""
    first, last = (shape[2], shape[3]), (shape[1], shape[2])
    moved = probe.footprint(name)
    if moved is not None and min(last) > 1 and lies_clear(_laid_out(own, moved.last, probe.size)):
        one = _laid_out(own, moved.first, probe.size)
        if not (lies_straight(one) or lies_turned(one)):
            return Laid(channels_last, own), last
    return (Laid(channels_first, own), first) if max(first) > 1 else None  # one row, over all frequencies, is laid out


def _laid_out(own: LaysOut, moved: Moved, size: Grid) -> Moved:
    return own.lay_out(moved[:, None], size)[:, 0]


def check_straight(probe: Probe, name: str, rule: ToMap) -> None:
    """Raise ValueError where a layer that is read clearly lies otherwise on the picture than its map says.

    Warns where it seems to lie nowhere, which cannot be told for certain: some networks mix maps as much (LeViT).
    """
    moved = None if isinstance(rule, Rolled) or _vouched(probe.network) else probe.footprint(name)
    if moved is None:
        return
    rule, own = (rule.inner, rule.own) if isinstance(rule, Laid) else (rule, None)
    if isinstance(rule, Tokens):
        rows, columns = rule.grid
        cells = [one[:, rule.prefix : rule.prefix + rows * columns] for one in (moved.last, moved.first)]
        maps = [one.reshape(4, rows, columns) for one in cells if one.shape[1] == rows * columns]
        if len(maps) == 2 and lies_straight(maps[1]) and not lies_straight(maps[0]):
            raise ValueError(
                f"layer {name!r} gives its channels before its tokens, (B, C, N): name a layer of (B, N, C) or "
                "(B, C, h, w)"
            )
    elif moved.last.ndim == 3:
        maps = [moved.first if rule is channels_first else moved.last]
    else:
        return
    maps = maps if own is None else [_laid_out(own, one, probe.size) for one in maps]
    if maps and (lies_turned(maps[0]) or lies_elsewhere(maps[0])):
        raise ValueError(
            f"layer {name!r} lies mirrored or with its axes exchanged, or in an order of its own: a corner of the "
            "picture moves it in another quarter, so that maps would point elsewhere; let the network keep rows and "
            "columns as they are in the picture, name another layer, or give layers=[] for explainers that ask for "
            "logits alone"
        )
    if maps and lies_anywhere(maps[0]) and follows_a_vector(probe.network, probe.ask, probe.pictures[-1:], name):
        warnings.warn(
            f"no corner of the picture moves its own part of layer {name!r}, which comes after a vector, as where one "
            "is reshaped to a map: such a map says nothing of places in the picture; read an earlier layer, or give "
            "layers=[] for explainers that ask for logits alone",
            stacklevel=5,
        )


def check_field(probe: Probe, taps: Mapping[str, Tensor], maps: Mapping[str, FeatureMap]) -> None:
    """Raise ValueError where a map that is read belongs to a part of the picture, or to more than the picture.

    Whether a part of a fixed size is cut out shows at larger pictures, where the network takes them.
    taps, maps: raw outputs of the layers and what is made of them, for the probe's pictures.
    """
    if _vouched(probe.network) or _laying_out(probe.network) is not None:
        return
    grids = {name: (one.shape[2], one.shape[3]) for name, one in maps.items()}
    idle = {name: idle_lines(one) for name, one in maps.items()}
    windows = check_borders(probe, grids, idle)
    for name, grid in grids.items():
        check_frame(name, grid, idle[name], windows)
    larger = enlarged(probe)
    outputs = _outputs_if_taken(larger)
    check_borders(
        larger,
        {name: grids[name] for name in taps if name in outputs and outputs[name].shape[1:] == taps[name].shape[1:]},
    )


def _outputs_if_taken(probe: Probe) -> dict[str, Tensor]:
    """Return the outputs of modules for the probe's first picture; none where the network does not take its size."""
    if probe.pictures.is_cuda and any(isinstance(module, nn.Embedding) for module in probe.network.modules()):
        return {}  # a place beyond the last one would end the whole process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module_outputs(probe.network, probe.ask, probe.pictures[:1])
    except Exception:  # whatever a network's code says to a size that it does not take
        return {}


def _vouched(network: nn.Module) -> bool:
    """Return whether a network is timm's or torchvision's own, whose families have been looked at one by one.

    One that was changed is not: a part of another origin put in, a forward replaced, a hook before it.
    """
    inner = unwrapped(network)
    return _origin(inner) in ("timm", "torchvision") and all(_is_as_published(part) for part in inner.modules())


def _origin(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _is_as_published(part: nn.Module) -> bool:
    """Return whether a part of a network is of torch, timm or torchvision, and does what its class says."""
    cuts = type(part).__module__.startswith("torchvision.transforms")
    own = "forward" not in vars(part) and not part._forward_pre_hooks
    return _origin(part) in ("torch", "timm", "torchvision") and own and not cuts


def _described_grid(inner: nn.Module, probe: Probe, name: str) -> list[Grid]:
    """Return the grid of a stage whose stride timm's description of the network names; none for other layers."""
    strides: dict[str, int] = {
        stage["module"]: stage["reduction"] for stage in getattr(inner, "feature_info", None) or ()
    }
    fitting = [strides[end] for end in strides if name == end or name.endswith(f".{end}")]
    return [(ceil(probe.size[0] / stride), ceil(probe.size[1] / stride)) for stride in fitting[:1]]


_ROLLED = {"Hiera": "blocks", "HieraEncoder": "stages"}  # of timm, and of transformers


def _rolled(network: nn.Module, name: str) -> Rolled | None:
    """Return what puts the tokens of a block (timm) or a stage (transformers) of Hiera in rows; None for others."""
    for outer, module in named_layers(network).items():
        part = _ROLLED.get(type(module).__name__)
        path, _, number = name.rpartition(".")
        if part is not None and path == f"{outer}.{part}".lstrip(".") and number.isdecimal():
            return Rolled(module.reroll, int(number))  # type: ignore[arg-type]  # a module or a method, both callable
    return None


def _in_blocks(network: nn.Module) -> bool:
    """Return whether a network keeps the tokens of a block of patches beside one another."""
    return any(type(module).__name__.startswith("Hiera") for module in network.modules())
