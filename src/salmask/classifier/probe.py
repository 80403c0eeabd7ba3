"""A network watched once, to see how it is built: what its modules hand on, and where a picture's corners move it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from salmask.classifier.corners import Footprint, footprints
from salmask.classifier.grids import Corners, Grid
from salmask.classifier.tensors import tensor_of, with_tensor
from salmask.classifier.wrappers import named_layers, passed_through
from salmask.types import Logits

__all__ = ["Probe", "Seen", "watched"]

_FIXED_SIZE = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_PADDING = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)


@dataclass(frozen=True)
class Seen:
    """One call of a module: what it handed on, in the order in which calls end."""

    name: str
    output: Tensor


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Seen]]:
    """Collect the outputs of all modules by name; each of them hands on a copy, which is what is collected.

    Pooling to a fixed size and padding, whose grids are no resolution of the network, are left out.
    """
    calls: list[Seen] = []

    def watch(name: str) -> Callable[..., object]:
        def hook(module: nn.Module, inputs: object, output: object) -> object:
            tensor = tensor_of(output)
            if tensor is None or tensor.ndim not in (3, 4):
                return None
            calls.append(Seen(name, tensor.clone()))
            return with_tensor(output, calls[-1].output)

        return hook

    hooks = []
    try:
        for name, module in named_layers(network).items():
            if name and not isinstance(module, (*_FIXED_SIZE, *_PADDING, torch.jit.ScriptModule)):
                hooks.append(module.register_forward_hook(watch(name)))
        with passed_through(network):
            yield calls
    finally:
        for handle in hooks:
            handle.remove()


@dataclass(frozen=True)
class Probe:
    """What is asked of a network once, to see how it is built.

    ask: normalised pictures -> logits. pictures: a few different ones, square, normalised.
    prefix, grid: what the caller says of tokens.
    """

    network: nn.Module
    ask: Callable[[Tensor], Logits]
    pictures: Tensor
    prefix: int | None = None
    grid: Grid | None = None
    located: dict[int, Corners | None] = field(default_factory=dict)
    before: dict[str, list[Grid]] = field(default_factory=dict)
    """Grids of the maps that came before a layer, where all modules have been watched."""
    moved: dict[str, Footprint] = field(default_factory=dict)

    @property
    def size(self) -> Grid:
        """Height and width of the pictures."""
        return self.pictures.shape[-2], self.pictures.shape[-1]

    def trace(self) -> tuple[Logits, list[Seen]]:
        """Return the logits and every module's output, with the graph that leads from one to the other."""
        with watched(self.network) as calls, torch.enable_grad():
            logits = self.ask(self.pictures.clone().requires_grad_())
        return logits, calls

    def corners(self, count: int) -> Corners | None:
        """Return which of N tokens change with the picture's corners, at the first module that gives N tokens."""
        if count not in self.located:
            self.located[count] = self._locate(count)
        return self.located[count]

    def footprint(self, name: str) -> Footprint | None:
        """Return how the picture's corners move a layer; None for one that is not called, or of another batch."""
        if not self.moved:
            self.moved.update(footprints(self.network, self.ask, self.pictures))
        return self.moved.get(name)

    def _locate(self, count: int) -> Corners | None:
        dark = self.pictures[:1].detach()
        variants = dark.repeat(5, 1, 1, 1)
        for index, (rows, columns) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)), 1):
            at = (slice(-2, None) if rows else slice(2), slice(-2, None) if columns else slice(2))
            variants[index][:, at[0], at[1]] += 3.0
        with watched(self.network) as calls, torch.no_grad():
            self.ask(variants)
        for call in calls:
            if call.output.ndim == 3 and call.output.shape[:2] == (5, count):
                changed = (call.output[1:] != call.output[:1]).flatten(2).any(2)
                first, second, third, fourth = ([int(k) for k in row.nonzero()] for row in changed)
                return first, second, third, fourth
        return None
