"""Which layers of a network are read: the last spatial output of each resolution that the logits still hang on.

All modules are watched during one pass, at any depth, also those whose output is a tuple or an object that holds a
tensor. Each of them hands on a copy, so that the gradient of the logits tells which outputs lead to them: what a
network only reports beside its logits is no layer to be read. The network itself decides where it describes its
stages (timm's `feature_info`).
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from salmask.classifier.borders import check_borders
from salmask.classifier.fusion import LateFusion
from salmask.classifier.grids import Grid, Laid, LaysOut, Rolled, Tokens, grid_of
from salmask.classifier.placing import lying, to_map_of
from salmask.classifier.probe import Probe, Seen
from salmask.classifier.wrappers import bare, named_layers
from salmask.types import Logits

__all__ = [
    "Layer",
    "described_layers",
    "pick_layers",
]

_RESNET = ("maxpool", "layer1", "layer2", "layer3", "layer4")
_MOST = 5


class Layer(NamedTuple):
    """A layer as it is read: its name, the shape (C, h, w) of its map, and pixels a cell (downwards, across)."""

    name: str
    shape: tuple[int, int, int]
    stride: tuple[float, float]


def described_layers(network: nn.Module) -> list[str] | None:
    """Return five layers by a timm or torchvision network's own description, shallow to deep; None without one.

    The network may stand in wrappers; names are those in the whole.
    """
    inner = bare(network)
    if isinstance(inner, LateFusion):
        return _of_branches(network, inner)
    described = getattr(inner, "feature_info", None)
    resnet = dict(inner.named_children()).keys() >= set(_RESNET)
    # of branches side by side, as CrossViT's, timm names the same modules twice
    names = list(_RESNET) if resnet else list(dict.fromkeys(stage["module"] for stage in described or ()))
    if described and len({stage["reduction"] for stage in described}) == 1:
        names = _spread(names)
    elif len(names) == _MOST - 1:
        names = [stem for stem in ("stem", "patch_embed") if stem in dict(inner.named_children())][:1] + names
    whole = next(name for name, module in named_layers(network).items() if module is inner)
    return [f"{whole}.{name}" if whole else name for name in names[-_MOST:]] or None


def _of_branches(network: nn.Module, fused: LateFusion) -> list[str] | None:
    """Return the layers of all parallel networks, one network after the other; None where one does not tell them."""
    names: list[str] = []
    for branch, part in fused.networks.items():
        own = described_layers(part)
        if own is None:
            return None
        names += [f"{_branch_name(network, fused, branch)}.{name}" for name in own]
    return names


def _branch_name(network: nn.Module, fused: LateFusion, branch: str) -> str:
    whole = next(name for name, module in named_layers(network).items() if module is fused)
    return f"{whole}.networks.{branch}".lstrip(".")


def pick_layers(probe: Probe) -> list[str]:
    """Choose at most five layers, shallow to deep; of parallel networks (late fusion) at most five of each, in order.

    Of each resolution the last one counts, and what a block works with before it gives another resolution only where
    there is nothing else. Modules that are used several times are passed over, for only their last call could be read;
    so are pooling to a fixed size, attention (rows that sum to 1), values that the next module puts on another grid
    (windows), and what the logits do not hang on. A network of one or two resolutions (a plain transformer) gives five
    of its repeated blocks. Errors: ValueError where there is no spatial output.
    """
    logits, calls = probe.trace()
    reached = _reached(logits, calls)
    counts = Counter(call.name for call in calls)
    spatial: dict[str, Grid] = {}
    seen: list[Grid] = []
    handed_on = [*calls[1:], None][: len(calls)]
    fronts = {name for name, module in named_layers(probe.network).items() if isinstance(module, LaysOut)}
    for call, leads, following in zip(calls, reached, handed_on, strict=True):
        layer = leads and counts[call.name] == 1 and call.name not in fronts
        grid = _grid(probe, call, seen) if layer else None
        if grid is not None and not _only_rearranged(call, grid, following):
            spatial[call.name] = grid
            probe.before[call.name] = list(seen)
            seen += [grid] if call.output.ndim == 4 else []
    names = [name for own in _by_branch(probe.network, spatial) for name in _chosen(probe.network, own)]
    _tell_of_unread(probe.network, calls, reached, names)
    if not names and (several := _several_times(probe, calls, counts)):
        raise ValueError(
            f"every layer that is a map is called several times in a pass, such as {several!r} "
            f"{counts[several]} times, and which call is to be read cannot be told: wrap the network that is called in "
            "a Classifier, or name layers, whose last call is then read"
        )
    if not names and any(call.output.ndim == 4 and len(call.output) != len(probe.pictures) for call in calls):
        raise ValueError(
            "the network shows its layers other batches than the pictures (crops or patches of them): explain the "
            "network that is called inside, or give layers=[] for explainers that ask for logits alone"
        )
    if not names:  # a part of the picture that is not square makes grids that are none, which is then the reason
        check_borders(
            probe, {call.name: (call.output.shape[2], call.output.shape[3]) for call in calls if _is_grid(call)}
        )
        raise ValueError(
            "no layer of the network has a spatial extent: give `layers` by module name, "
            "or layers=[] for explainers that ask for logits alone, such as rise and occlusion"
        )
    return names


def _chosen(network: nn.Module, spatial: Mapping[str, Grid]) -> list[str]:
    """Return at most five of the maps, shallow to deep."""
    names = _last_of_each(spatial, named_layers(network))
    if len(names) < 3:
        names = _repeated(network, spatial) or names
    return names[-_MOST:]


def _by_branch(network: nn.Module, spatial: Mapping[str, Grid]) -> list[Mapping[str, Grid]]:
    """Return the maps of each parallel network, all of them where there is one network.

    Errors: ValueError for a parallel network without a map, whose input a map of the others would leave out.
    """
    fused = bare(network)
    if not isinstance(fused, LateFusion) or not spatial:
        return [spatial]
    ways = {branch: _branch_name(network, fused, branch) for branch in fused.networks}
    found = {
        branch: {name: grid for name, grid in spatial.items() if f"{name}.".startswith(f"{way}.")}
        for branch, way in ways.items()
    }
    if missing := [branch for branch, own in found.items() if not own]:
        raise ValueError(
            f"no layer of the network of {missing[0]!r} has a spatial extent: name one of each network in `layers`, or "
            "give layers=[] for explainers that ask for logits alone, such as rise and occlusion"
        )
    return list(found.values())


def _is_grid(call: Seen) -> bool:
    return call.output.ndim == 4 and min(call.output.shape[2:]) > 1


def _last_of_each(spatial: Mapping[str, Grid], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the last map of each resolution, one within a block that gives another only where there is no other."""
    within = {name: spatial.get(_block_around(name, modules), grid) != grid for name, grid in spatial.items()}
    last: dict[Grid, str] = {}
    for name, grid in spatial.items():
        if grid not in last or not within[name] or within[last[grid]]:
            last.pop(grid, None)
            last[grid] = name
    return list(last.values())


def _block_around(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the innermost block that a module lies in, or is: an entry of a list of composite modules; "" for none."""
    while name and not _lists_blocks(modules.get(name.rpartition(".")[0])):
        name = name.rpartition(".")[0]
    return name


def _lists_blocks(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and all([*one.children()] for one in module)


def _tell_of_unread(network: nn.Module, calls: list[Seen], reached: list[bool], names: list[str]) -> None:
    """Warn where blocks come after the deepest layer that is read, whose tokens lie nobody knows how."""
    order = [call.name for call in calls]
    deepest = max((order.index(name) for name in names), default=-1)
    later = {
        call.name: call.output
        for place, (call, leads) in enumerate(zip(calls, reached, strict=True))
        if leads and place > deepest and call.output.ndim == 3 and min(call.output.shape[1:]) > 3
    }
    run = max((_blocks_among(later, name, module) for name, module in named_layers(network).items()), key=len)
    if names and len(run) > 1:
        warnings.warn(
            f"layer {names[-1]!r} is the deepest that is read, and {run[-1]!r} comes after it: nothing says how its "
            f"{later[run[-1]].shape[1]} tokens lie; give prefix= and grid=(rows, columns) to read it",
            stacklevel=5,
        )


def _blocks_among(named: Mapping[str, object], name: str, module: nn.Module) -> list[str]:
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return []
    blocks = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
    return [block for block in blocks if block in named]


def _several_times(probe: Probe, calls: list[Seen], counts: Mapping[str, int]) -> str | None:
    """Return the deepest module that gives a map, and is called several times."""
    names = [call.name for call in calls if counts[call.name] > 1 and _grid(probe, call, []) is not None]
    return next(reversed(names), None)


def _reached(logits: Logits, calls: list[Seen]) -> list[bool]:
    """Tell which outputs the logits hang on; all of them in a network without gradients."""
    outputs = [call.output for call in calls]
    leads = [output.requires_grad for output in outputs]
    if not logits.requires_grad or not any(leads):
        return [True] * len(calls)
    weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
    inputs = [output for output, needed in zip(outputs, leads, strict=True) if needed]
    slopes = iter(torch.autograd.grad((logits * weights).sum(), inputs, allow_unused=True))
    reached = [needed and next(slopes) is not None for needed in leads]
    return reached if any(reached) else [True] * len(calls)  # gradients are lost at the end, as in a quantised head


def _grid(probe: Probe, call: Seen, seen: list[Grid]) -> Grid | None:
    """Return the grid of an output, if it is a map: None for attention, vectors and what lies in an unknown way."""
    output = call.output
    if len(output) != len(probe.pictures):
        return None
    if output.ndim == 4:
        rows = output.detach().float()
        if bool((rows >= 0).all()) and torch.allclose(rows.sum(-1), torch.ones(()).to(rows), atol=1e-2):
            return None
        lies = lying(probe, call.name, tuple(output.shape))
        return None if lies is None else lies[1]
    try:
        tokens = to_map_of(probe, call.name, output, seen)
    except ValueError:
        return None
    tokens = tokens.inner if isinstance(tokens, Laid) else tokens
    if isinstance(tokens, Rolled):
        shape = tokens(output.detach(), probe.size).shape
        return int(shape[2]), int(shape[3])
    return tokens.grid if isinstance(tokens, Tokens) and max(tokens.grid) > 1 else None


def _only_rearranged(call: Seen, grid: Grid, following: Seen | None) -> bool:
    """Return whether the next call hands on the same values, and not on the same grid: then they lie in windows."""
    if following is None or following.output.ndim != 4 or following.output.numel() != call.output.numel():
        return False
    lies = grid_of(following.output.shape, last=False)
    if lies is not None and lies[1] == grid:
        return False
    own, handed_on = (one.output.detach().flatten().sort().values for one in (call, following))
    return torch.equal(own, handed_on)


def _repeated(network: nn.Module, spatial: Mapping[str, Grid]) -> list[str]:
    """Return five of the longest run of blocks that are maps, evenly spread, the last one among them."""
    runs = []
    for name, module in named_layers(network).items():
        runs.append(_blocks_among(spatial, name, module))
    longest = max(runs, key=len, default=[])
    return _spread(longest) if len(longest) > 2 else []


def _spread(names: list[str]) -> list[str]:
    return [names[k] for k in sorted({max(0, round(len(names) * k / _MOST) - 1) for k in range(1, _MOST + 1)})]
