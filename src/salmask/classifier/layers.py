"""Which layers of a network are read, and how their outputs lie as maps (B, C, h, w)."""

from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from math import isqrt
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from salmask.types import Images

if TYPE_CHECKING:
    from salmask.classifier.network import Classifier

__all__ = ["pick_layers"]


ToMap = Callable[[Tensor, tuple[int, int]], Tensor]


_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


_RESNET = {"maxpool", "layer1", "layer2", "layer3", "layer4"}


_SHOWN = 2  # pictures with which a network is tried


def pick_layers(classifier: "Classifier", picture: Images) -> list[str]:
    """Choose layers of a network that names none: the last module of each of the five deepest resolutions.

    Modules that are used several times are passed over, for only their last call could be read, and so is pooling
    to a fixed size. A network of one resolution (a plain transformer) gives five of its repeated blocks instead.
    """
    if {name for name, _ in classifier.network.named_children()} >= _RESNET:
        return sorted(_RESNET, key=lambda name: (name != "maxpool", name))
    seen: list[tuple[str, tuple[int, ...]]] = []
    hooks = []
    for name, module in classifier.network.named_modules():
        if name.count(".") <= 1 and name and not isinstance(module, _FIXED_SIZE):

            def hook(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim in (3, 4):
                    seen.append((name, tuple(output.shape)))

            hooks.append(module.register_forward_hook(hook))
    try:
        classifier.logits(picture)
    finally:
        for handle in hooks:
            handle.remove()
    last: dict[tuple[int, ...], str] = {}
    calls = Counter(name for name, _ in seen)
    for name, shape in seen:
        grid = _grid_of(shape)
        if grid is not None and max(grid) > 1 and calls[name] == 1:
            last.pop(grid, None)
            last[grid] = name
    names = list(last.values())
    if len(names) < 3:
        names = _repeated(classifier.network) or names
    if not names:
        raise ValueError("no layer of the network has a spatial extent: give `layers` by module name")
    return names[-5:]


def _grid_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) == 3:
        side = isqrt(shape[1])
        return (side, side) if side > 1 else None
    if shape[2] == shape[3]:
        return shape[2:]
    return shape[1:3] if shape[1] == shape[2] else None


def _repeated(network: nn.Module) -> list[str]:
    """Return five of the longest run of blocks, evenly spread, the last one among them."""
    runs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    name, blocks = max(runs, key=lambda run: len(run[1]), default=("", nn.Sequential()))
    count = len(blocks)
    chosen = sorted({max(0, round(count * k / 5) - 1) for k in range(1, 6)}) if count > 2 else []
    children = [child for child, _ in blocks.named_children()]
    return [f"{name}.{children[k]}" if name else children[k] for k in chosen]


def _timm_layers(network: nn.Module) -> list[str] | None:
    """Five taps of a timm network, shallow to deep; None where it does not describe itself."""
    described = getattr(network, "feature_info", None)
    if not described:
        return None
    names = [stage["module"] for stage in described]
    if len({stage["reduction"] for stage in described}) == 1:
        return _repeated(network)
    children = dict(network.named_children())
    if children.keys() >= _RESNET:
        names[0] = "maxpool"  # the paper's layer 0 (Phang et al., 2020), not the activation before it
    if len(names) == 4:
        names = [stem for stem in ("stem", "patch_embed") if stem in children][:1] + names
    return names[-5:]


def _map_rule(name: str, tap: Tensor, network: nn.Module, size: int) -> ToMap:
    """Find out how a layer's output lies, from its shape on a square picture, and return what turns it."""
    shape = tuple(tap.shape)
    if shape[:1] != (_SHOWN,):  # tokens within patches, for one
        raise ValueError(f"layer {name!r} mixes pictures: expected {_SHOWN} maps for {_SHOWN} pictures, came {shape}")
    told_last = getattr(network, "output_fmt", None) == "NHWC" and len({*shape[1:]}) == 1
    if tap.ndim == 4 and shape[2] == shape[3] and shape[2] > 1 and not told_last:
        return lambda tap, at: tap
    if tap.ndim == 4 and shape[1] == shape[2] and shape[1] > 1:
        return lambda tap, at: tap.permute(0, 3, 1, 2)
    if tap.ndim == 3:
        told = getattr(network, "num_prefix_tokens", None)  # which some networks add behind their first blocks only
        for prefix in (shape[1] - isqrt(shape[1]) ** 2,) if told is None else (told, 0):
            side = isqrt(max(0, shape[1] - prefix))
            if side > 1 and side * side + prefix == shape[1]:
                return _token_rule(prefix, size / side)
    raise ValueError(
        f"layer {name!r} has no spatial extent: expected (B, C, h, w), (B, h, w, C) or tokens of a square grid, "
        f"came {shape} for a picture of {size}x{size}; name an earlier layer"
    )


def _token_rule(prefix: int, stride: float) -> ToMap:
    def to_map(tap: Tensor, at: tuple[int, int]) -> Float[Tensor, "batch channels rows columns"]:
        rows, columns = round(at[0] / stride), round(at[1] / stride)
        tokens = tap[:, prefix:]
        if rows * columns != tokens.shape[1]:  # a network with a fixed grid of its own
            rows = columns = isqrt(tokens.shape[1])
        if rows * columns != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens do not tile a picture of {at[0]}x{at[1]}")
        return tokens.transpose(1, 2).reshape(len(tap), -1, rows, columns)

    return to_map


def _find(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or not name:
            near = get_close_matches(name, modules, 3) or [n for n in modules if n and "." not in n][:8]
            raise ValueError(f"the network has no layer {name!r}; near: {', '.join(near)}")
    return [modules[name] for name in names]
