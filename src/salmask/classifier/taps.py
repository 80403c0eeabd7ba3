"""Reading and changing one layer of a classifier, for the length of a call.

    with layer_output(classifier, k, change):   the network goes on with change(output of layer k)

A change sees a layer's raw output; `to_map` turns that, or its gradient, into (B, C, h, w). Gradients start at
a leaf made of the layer's output, so that nothing before the layer is recorded, no parameter need be trainable,
and the network may go on in place: it is given a copy. Of a module that is used several times, the last
call counts, as in `Classifier.features`.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from salmask.classifier.branches import check_one_branch
from salmask.classifier.grids import Rolled, Tokens, channels_last
from salmask.classifier.hold import held
from salmask.classifier.network import Classifier
from salmask.classifier.tensors import tensor_of, with_tensor
from salmask.classifier.wrappers import passed_through
from salmask.types import FeatureMap, Images, Logits, size_of

__all__ = [
    "Tap",
    "channel_axis",
    "count_calls",
    "layer_before",
    "layer_index",
    "layer_output",
    "read_gradients",
    "to_map",
]


def layer_index(classifier: Classifier, layer: int | str) -> int:
    """Return which of `classifier.layers` is meant, by index (-1 is the deepest) or by name.

    Errors: ValueError for a layer that is not read, and for -1 of a classifier of parallel networks.
    """
    layers = classifier.layers
    if not layers:
        raise ValueError(
            "this explainer reads a layer, and the classifier reads none (layers=[]): name layers in "
            "Classifier(..., layers=...), or take one that asks for logits alone, such as rise or occlusion"
        )
    if isinstance(layer, str):
        if layer not in layers:
            near = get_close_matches(layer, layers, 1)
            raise ValueError(
                f"the classifier does not read layer {layer!r}{f' (near: {near[0]})' if near else ''}, it reads "
                f"{', '.join(layers)}: name it in Classifier(..., layers=...)"
            )
        return layers.index(layer)
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer {layer} is outside the {len(layers)} layers of the classifier: {', '.join(layers)}")
    if layer == -1:
        check_one_branch(classifier)
    return layer % len(layers)


@contextmanager
def layer_output(
    classifier: Classifier, index: int, change: Callable[[Tensor], Tensor], *, call: int | None = None
) -> Iterator[None]:
    """Let the network go on with change(output) after a layer.

    call: which of its calls is changed, where a module is used several times; None changes all of them.
    """
    module: nn.Module = classifier.module_read(index)
    calls = itertools.count()

    def hook(module: nn.Module, inputs: object, output: object) -> object:
        if next(calls) != call and call is not None:
            return None
        tensor = tensor_of(output)
        assert tensor is not None  # the classifier has read one there
        return with_tensor(output, change(tensor))

    with held(classifier.network):
        handle = module.register_forward_hook(hook)
        try:
            with passed_through(classifier.network):
                yield
        finally:
            handle.remove()


@contextmanager
def count_calls(classifier: Classifier, index: int) -> Iterator[list[None]]:
    """Collect one entry for each call of a layer."""
    calls: list[None] = []

    def count(output: Tensor) -> Tensor:
        calls.append(None)
        return output

    with layer_output(classifier, index, count):
        yield calls


def layer_before(classifier: Classifier, index: int) -> int | None:
    """Return the layer that is read before another one, passing over further names of the same module."""
    names = classifier.layers
    others = [k for k in range(index) if names[k] != names[index]]
    return others[-1] if others else None


def to_map(classifier: Classifier, index: int, output: Tensor, size: tuple[int, int]) -> FeatureMap:
    """Turn a layer's raw output (or its gradient) for pictures of a size into (B, C, h, w)."""
    return classifier._to_map[index](output, size)


def channel_axis(classifier: Classifier, index: int, output: Tensor) -> int:
    """Return the axis of a layer's raw output along which its channels lie."""
    rule = classifier._to_map[index]
    return output.ndim - 1 if rule is channels_last or isinstance(rule, Tokens | Rolled) else 1


@dataclass(frozen=True)
class Tap:
    """A layer's map A and the gradient d s / d A of the class score, both (B, C, h, w) in float32."""

    index: int
    maps: FeatureMap
    gradients: FeatureMap


def read_gradients(
    classifier: Classifier, images: Images, index: int, score: Callable[[Logits], Tensor], *, instead: int | None = None
) -> tuple[Logits, list[Tap]]:
    """Return the logits and the maps and gradients of a layer, and of another one where it has no gradient.

    score: logits -> one value an image. instead: index of an earlier layer, read as well if any image has no
    gradient at the first (as at the patch tokens after the last block of a transformer that reads its class
    token alone). One forward pass; one backward pass for each layer read.
    Errors: ValueError where the logits do not hang on a layer that is read, so that no gradient arrives.
    """
    taken: dict[int, Tensor] = {}

    def leaf(at: int) -> Callable[[Tensor], Tensor]:
        def change(output: Tensor) -> Tensor:
            taken[at] = output if output.requires_grad else output.detach().requires_grad_()
            return taken[at].clone()

        return change

    wanted = [index] if instead is None else [index, instead]
    with ExitStack() as stack:
        for at in wanted:
            stack.enter_context(layer_output(classifier, at, leaf(at)))
        logits = classifier.logits(images)
    size = size_of(images)
    total = score(logits).sum()
    if not total.requires_grad:
        raise ValueError(_unreached(classifier, wanted))
    taps = []
    for at in wanted:
        (slope,) = torch.autograd.grad(total, taken[at], retain_graph=at != wanted[-1], allow_unused=True)
        if slope is None:
            raise ValueError(_unreached(classifier, [at]))
        maps, slopes = (to_map(classifier, at, value.detach(), size).float() for value in (taken[at], slope))
        taps.append(Tap(at, maps, slopes))
        if bool(slopes.flatten(1).any(1).all()):
            break
    return logits.detach(), taps


def _unreached(classifier: Classifier, indices: list[int]) -> str:
    names = " and ".join(repr(classifier.layers[at]) for at in indices)
    return (
        f"no gradient arrives at layer {names}: the logits do not depend on it, or what the network does after it lets "
        "no gradient through; choose a layer that leads to the logits"
    )
