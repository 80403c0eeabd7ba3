"""The neck of a network: the one vector a picture, pooled from a map, that all logits read; and another in its place.

    logits = head(v),   v = pool(F)         `find_neck` finds where v enters the head, and the F that it is pooled from
    logits = head(q(F_1 ... F_L))           `Reheaded` gives the same head another vector, made of the maps

Nothing of the network is copied or changed: a hook that lives for one call hands the vector over. So gradients go
from the logits through q to every map, as they do in a network that was built like that.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salmask.classifier.hold import held
from salmask.classifier.network import Classifier
from salmask.classifier.tensors import tensor_of, with_tensor
from salmask.classifier.wrappers import named_layers, passed_through
from salmask.files import JSON
from salmask.types import Logits, size_of

__all__ = ["Neck", "Reheaded", "find_neck", "head_logits", "options_of", "rebuilt"]

Vectors = Float[Tensor, "batch width"]


@dataclass(frozen=True)
class Neck:
    """Where the pooled vector enters the head: the module that takes it first, its length, and the map's layer."""

    name: str
    width: int
    layer: str


@dataclass(frozen=True)
class _Event:
    """A module that takes a vector a picture (`length`), or gives a map or tokens of so many `channels`."""

    name: str
    length: int | None = None
    channels: tuple[int, ...] = ()


def find_neck(classifier: Classifier) -> Neck:
    """Return the first module that takes a vector through which alone the logits see the picture.

    Errors: ValueError for a network without a pooled head: one whose logits do not pass through one vector a picture,
    or whose vector has not one entry for each channel of the last map (as a flattened map has).
    """
    network = classifier.network
    if not classifier.differentiable:
        raise ValueError("pooling by attention is learned by gradients, and none come back from the network")
    with classifier.frozen():
        events = _events(classifier)
        counts = Counter(event.name for event in events if event.length is not None)
        vectors = [k for k, event in enumerate(events) if event.length is not None and counts[event.name] == 1]
        place = None
        for k in reversed(vectors):
            if not _cuts(classifier, events[k].name):
                break
            place = k
    if place is None:
        raise ValueError(
            f"{type(network).__name__} has no pooled head: its logits are not made from one vector a picture that a "
            "module takes; name a network that pools its last map and ends in a linear layer"
        )
    width = events[place].length
    assert width is not None
    map_before = next((event for event in reversed(events[:place]) if event.channels), None)
    if map_before is None or width not in map_before.channels:
        got = "no map" if map_before is None else f"the last map {map_before.name!r} of {map_before.channels[0]}"
        raise ValueError(
            f"{type(network).__name__} has no pooled head: {events[place].name!r} takes {width} numbers a picture, "
            f"expected one a channel of {got} channels; a flattened map cannot be replaced by a query"
        )
    return Neck(events[place].name, width, map_before.name)


def rebuilt(classifier: Classifier, network: nn.Module, layers: Sequence[str]) -> Classifier:
    """Return a classifier that reads a network as another one does its own, but for its layers."""
    return Classifier(network, layers=layers, **options_of(classifier))


def options_of(classifier: Classifier) -> JSON:
    """Return the options that a classifier was built with, but for network and layers."""
    return {
        "mean": classifier.mean.flatten().tolist(),
        "std": classifier.std.flatten().tolist(),
        "image_size": classifier.image_size,
        "image_width": classifier.image_width,
        "outputs": classifier._said,
        "output": classifier.outputs.entry,
        "prefix": classifier._prefix,
        "grid": classifier._grid,
        "inputs": None if classifier.inputs is None else classifier.inputs.settings(),
    }


class Reheaded(nn.Module):
    """A network whose head reads pool(maps) (B, width) in place of the vector at its neck.

    reader: the classifier around the backbone that says how the maps are read; its network is shared, not copied.
    """

    def __init__(self, reader: Classifier, neck: Neck, pool: nn.Module) -> None:
        super().__init__()
        self.backbone, self.pool, self.neck = reader.network, pool, neck
        self._reader = (reader,)  # in a tuple, so that its normalisation is not registered a second time

    def forward(self, pictures: Tensor) -> object:
        """Return what the network returns of normalised pictures, its head reading the other vector."""
        (reader,) = self._reader
        maps: dict[str, Tensor] = {}
        size = size_of(pictures)

        def read(name: str, copies: bool) -> Callable[..., object]:
            def hook(module: nn.Module, inputs: object, output: object) -> object:
                tensor = tensor_of(output)
                assert tensor is not None  # the reader has read one there
                maps[name] = tensor
                return with_tensor(output, tensor.clone()) if copies else None

            return hook

        def query() -> Vectors:
            if missing := [name for name in reader.layers if name not in maps]:
                raise ValueError(f"the network calls its head before layer {missing[0]!r}: name another layer")
            rules = zip(reader.layers, reader._to_map, strict=True)
            return self.pool([rule(maps[name], size) for name, rule in rules])

        with held(self.backbone), ExitStack() as hooks:
            for (name, module), copies in zip(reader._read.items(), reader._clone, strict=True):
                hooks.callback(module.register_forward_hook(read(name, copies)).remove)
            hooks.enter_context(_replaced(self.backbone, self.neck, query))
            return self.backbone(pictures)


def head_logits(classifier: Classifier, neck: Neck, vectors: Vectors) -> Logits:
    """Return the logits (B, K) that the head makes of vectors (B, width), without passing any picture through.

    One picture goes through the network; its vector is replaced by the whole batch.
    """
    shape = (1, classifier.channels_in, classifier.image_size, classifier.image_width)
    grey = torch.full(shape, 0.5, device=classifier.device)
    with held(classifier.network), _replaced(classifier.network, neck, lambda: vectors):
        logits = classifier.logits(grey)
    if len(logits) != len(vectors):
        raise ValueError(
            f"the head gives {len(logits)} rows for {len(vectors)} vectors: its batch is fixed by the pictures, so "
            "that maps cannot be kept; train on the pictures (--crops)"
        )
    return logits


def _replaced(network: nn.Module, neck: Neck, vectors: Callable[[], Vectors]) -> ExitStack:
    """Hand other vectors to the module at the neck, in the shape that it takes, for as long as the stack is open."""

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        own, *others = inputs
        assert isinstance(own, Tensor)
        made = vectors().to(own.dtype)
        return (made.reshape(len(made), *own.shape[1:]), *others)

    stack = ExitStack()
    stack.callback(named_layers(network)[neck.name].register_forward_pre_hook(hook).remove)
    stack.enter_context(passed_through(network))
    return stack


def _events(classifier: Classifier) -> list[_Event]:
    """Return, in order, which modules take a vector a picture and which give a map or tokens."""
    events: list[_Event] = []

    def taken(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
            own = inputs[0] if inputs else None
            if isinstance(own, Tensor) and own.ndim in (2, 4) and own[0].numel() == max(own.shape[1:]) > 1:
                events.append(_Event(name, length=own[0].numel()))

        return hook

    def given(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensor = tensor_of(output)
            if tensor is None or tensor.ndim not in (3, 4) or not len(tensor):
                return
            first, last = tensor.shape[1], tensor.shape[-1]
            channels = (last,) if tensor.ndim == 3 else (first, last)
            if tensor[0].numel() > max(tensor.shape[1:]):  # more than one position
                events.append(_Event(name, channels=channels))

        return hook

    with held(classifier.network), ExitStack() as hooks:
        for name, module in named_layers(classifier.network).items():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_pre_hook(taken(name)).remove)
                hooks.callback(module.register_forward_hook(given(name)).remove)
        hooks.enter_context(passed_through(classifier.network))
        with torch.no_grad():
            classifier.logits(_noise(classifier))
    return events


def _cuts(classifier: Classifier, name: str) -> bool:
    """Return whether no gradient reaches the picture past the vector that a module takes."""

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        own, *others = inputs
        assert isinstance(own, Tensor)
        return own.detach(), *others

    with held(classifier.network), ExitStack() as hooks:
        hooks.callback(named_layers(classifier.network)[name].register_forward_pre_hook(hook).remove)
        hooks.enter_context(passed_through(classifier.network))
        with torch.inference_mode(False), torch.enable_grad():
            logits = classifier.logits(_noise(classifier).requires_grad_())
    return not logits.requires_grad


def _noise(classifier: Classifier) -> Tensor:
    shape = (1, classifier.channels_in, classifier.image_size, classifier.image_width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(classifier.device)
