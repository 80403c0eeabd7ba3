"""Whether a layer lies on the picture as it is read: where the picture's corners move it.

Four pictures differ from a first one in one corner each. D_k (h, w) is how much a map differs, summed over channels;
its centre of mass is (r_k, c_k). A map that lies as the picture does has

    r(top) < r(bottom)   and   c(left) < c(right),    for both corners of each side

and one whose axes are exchanged, or that is mirrored, has them elsewhere. A shape alone does not tell: (8, 8, 32) is 8
channels of 8x32 as well as 8x8 of 32 channels, and 64 tokens of 64 channels are no other than their transpose.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salmask.classifier.tensors import tensor_of
from salmask.classifier.wrappers import named_layers, passed_through

__all__ = [
    "Footprint",
    "corner_pictures",
    "follows_a_vector",
    "footprints",
    "lies_anywhere",
    "lies_clear",
    "lies_elsewhere",
    "lies_level",
    "lies_straight",
    "lies_turned",
    "module_outputs",
]

_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # top left, top right, bottom left, bottom right
_CLEAR = 0.25
"""How far apart, as a share of the side, centres of mass lie where nothing is mixed over the whole picture."""
_MOST = 0.75
"""Share of what a corner moves that shows where it lies."""
_ANYWHERE = (0.35, 0.5)
"""Shares of what a corner moves, in the mean and of any corner, below which its own quarter is one of four."""

Moved = Float[Tensor, "corners height width"]


@dataclass(frozen=True)
class Footprint:
    """How much each corner moves an output (B, a, b, c) or (B, a, b), summed over its last and over its first axis.

    last: (4, a, b) or (4, a), as if channels stood last. first: (4, b, c) or (4, b), as if they stood first.
    """

    last: Tensor
    first: Tensor


def corner_pictures(pictures: Tensor) -> Tensor:
    """Return the last of some normalised pictures, and four that are its negative in one corner: (5, C, H, W)."""
    shown = pictures[-1:].detach().repeat(5, 1, 1, 1)
    heights, widths = (max(2, side // 8) for side in shown.shape[-2:])
    for index, (bottom, right) in enumerate(_CORNERS, 1):
        rows = slice(-heights, None) if bottom else slice(heights)
        columns = slice(-widths, None) if right else slice(widths)
        shown[index, :, rows, columns] *= -1
    return shown


def footprints(network: nn.Module, ask: Callable[[Tensor], object], pictures: Tensor) -> dict[str, Footprint]:
    """Return how the corners move every module's (last) output, by name; five passes of one picture, that fit where
    explaining one picture does.
    """
    first, *others = [module_outputs(network, ask, one) for one in corner_pictures(pictures).split(1)]
    moved: dict[str, Footprint] = {}
    for name, output in first.items():
        if all(name in other and other[name].shape == output.shape for other in others):
            differences = torch.cat([(other[name] - output).abs() for other in others])
            moved[name] = Footprint(differences.sum(-1), differences.sum(1))
    return moved


def module_outputs(network: nn.Module, ask: Callable[[Tensor], object], picture: Tensor) -> dict[str, Tensor]:
    """Return every module's (last) output of one picture that may be a map, by name."""
    outputs: dict[str, Tensor] = {}

    def hear(name: str, tensor: Tensor) -> None:
        if tensor.ndim in (3, 4) and len(tensor) == 1:
            outputs[name] = tensor.detach().float().clone()

    with _listening(network, hear), torch.no_grad():
        ask(picture)
    return outputs


@contextmanager
def _listening(network: nn.Module, hear: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call hear(name, output) after each module that gives a tensor."""

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if (tensor := tensor_of(output)) is not None:
                hear(name, tensor)

        return hook

    hooks = []
    try:
        for name, module in named_layers(network).items():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.append(module.register_forward_hook(listen(name)))
        with passed_through(network):
            yield
    finally:
        for handle in hooks:
            handle.remove()


def follows_a_vector(network: nn.Module, ask: Callable[[Tensor], object], picture: Tensor, name: str) -> bool:
    """Return whether a module has given one vector for the picture, (1, N), before a layer gives its output."""
    vectors: list[str] = []
    follows: list[bool] = []

    def hear(own: str, tensor: Tensor) -> None:
        if own == name:
            follows.append(bool(vectors))
        elif tensor.ndim == 2 and len(tensor) == 1:
            vectors.append(own)

    with _listening(network, hear), torch.no_grad():
        ask(picture)
    return any(follows)


def lies_anywhere(moved: Moved) -> bool:
    """Return whether no corner moves its own quarter of a map much more than the others, nor another one.

    So do vectors that are reshaped to maps, and some maps that are mixed over the whole picture.
    """
    halves = [(slice(0, side // 2), slice(side - side // 2, side)) for side in moved.shape[1:]]
    shares = []
    for k, (bottom, right) in enumerate(_CORNERS):
        quarters = {place: moved[k][halves[0][place[0]], halves[1][place[1]]].sum() for place in _CORNERS}
        shares.append(float(quarters[bottom, right] / torch.stack([*quarters.values()]).sum()))
    return min(moved.shape[1:]) > 1 and max(shares) < _ANYWHERE[1] and sum(shares) / 4 < _ANYWHERE[0]


def lies_level(moved: Moved) -> bool:
    """Return whether corners move a map alike everywhere: one without contrast, which lies as well any way."""
    low, high = moved.amin((1, 2)), moved.amax((1, 2))
    return bool((high - low <= 1e-5 * high).all())


def lies_straight(moved: Moved) -> bool:
    """Return whether upper corners move a map further up than lower ones, and left ones further left."""
    rows, columns = _centres(moved)
    return _gap(rows, across=False) > 0 and _gap(columns, across=True) > 0


def lies_clear(moved: Moved) -> bool:
    """Return whether a map clearly lies as the picture does: centres of mass a quarter of the side apart."""
    rows, columns = _centres(moved)
    return _gap(rows, across=False) > _CLEAR and _gap(columns, across=True) > _CLEAR


def lies_turned(moved: Moved) -> bool:
    """Return whether a map clearly lies mirrored, or with its axes exchanged. Errors: none; what is mixed is neither.

    Clearly: centres of mass are a quarter of the side apart along both axes.
    """
    if lies_clear(moved):
        return False
    rows, columns = _centres(moved)
    along = [
        max(gap for sign in (1, -1) for gap in (_gap(sign * centres, across=False), _gap(sign * centres, across=True)))
        for centres in (rows, columns)
    ]
    return min(along) > _CLEAR


def lies_elsewhere(moved: Moved) -> bool:
    """Return whether a corner moves a map by three quarters in one quarter that is not its own, as in tokens that go
    back and forth or block by block, and in maps that are rolled. What is mixed over the whole picture is not.
    """
    halves = [(slice(0, side // 2), slice(side - side // 2, side)) for side in moved.shape[1:]]
    quarters = {(bottom, right): (halves[0][bottom], halves[1][right]) for bottom, right in _CORNERS}
    return any(
        bool(moved[k][quarters[other]].sum() > _MOST * moved[k].sum())
        for k, corner in enumerate(_CORNERS)
        for other in _CORNERS
        if other != corner
    )


def _centres(moved: Moved) -> tuple[Tensor, Tensor]:
    """Return the centres of mass (4,) along rows and along columns, in [0, 1]; NaN where nothing moved."""
    weights = moved.double()
    total = weights.sum((1, 2))
    rows, columns = ((torch.arange(side, device=moved.device).double() + 0.5) / side for side in moved.shape[1:])
    return weights.sum(2) @ rows / total, weights.sum(1) @ columns / total


def _gap(centres: Tensor, *, across: bool) -> float:
    """Return by how much the centres of right (lower) corners exceed those of left (upper) ones, at least."""
    first, second, third, fourth = centres
    near, far = ((first, third), (second, fourth)) if across else ((first, second), (third, fourth))
    return float(torch.minimum(*far) - torch.maximum(*near))
