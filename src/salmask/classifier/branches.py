"""A classifier of several inputs taken apart: one input alone, and the layers of each of its parallel networks."""

import copy

import torch
from torch import Tensor, nn

from salmask.classifier.fusion import LateFusion
from salmask.classifier.network import Classifier
from salmask.classifier.wrappers import unwrapped
from salmask.types import Images

__all__ = ["alone", "check_one_branch", "deepest_of_branches"]


class _Held(nn.Module):
    """A network that reads one input, the others standing still: channels `start` on of `whole` (1, C, H, W)."""

    def __init__(self, network: nn.Module, whole: Tensor, start: int) -> None:
        super().__init__()
        self.network = network
        self._whole, self._start = whole, start

    def forward(self, part: Tensor) -> object:
        channels = self._whole.shape[1]
        before = self._whole[:, : self._start].expand(len(part), -1, -1, -1)
        after = self._whole[:, self._start + part.shape[1] :].expand(len(part), -1, -1, -1)
        shown = torch.cat([before.to(part.dtype), part, after.to(part.dtype)], 1)
        assert shown.shape[1] == channels
        return self.network(shown)


def alone(classifier: Classifier, image: Images, name: str) -> Classifier:
    """Return the classifier of one input (1, c, H, W), the others held as they are in an image (1, C, H, W).

    It shares the network. Errors: ValueError for a classifier without that input, and for more than one image.
    """
    inputs = classifier.inputs
    if inputs is None or name not in inputs.names or len(image) != 1:
        raise ValueError(f"expected one image and an input of the classifier, got {len(image)} and {name!r}")
    place = inputs.names.index(name)
    start, count = sum(inputs.channels[:place]), inputs.channels[place]
    channels = slice(start, start + count)
    held = copy.copy(classifier)
    whole = classifier._normalised(image)
    held._modules = {**classifier._modules, "network": _Held(classifier.network, whole, start)}
    buffers = {key: getattr(classifier, key)[:, channels] for key in ("mean", "std")}
    held._buffers = {**classifier._buffers, **buffers}
    held.inputs, held.channels_in = None, count
    return held


def deepest_of_branches(classifier: Classifier, count: int = 1) -> list[int]:
    """Return the indices of the `count` deepest layers that are read of each parallel network, in their order.

    Errors: ValueError for a parallel network none of whose layers is read.
    """
    network, names = unwrapped(classifier.network), classifier.layers
    if not isinstance(network, LateFusion):
        return list(range(len(names)))[-count:]
    found = []
    for branch in network.networks:
        own = [k for k, name in enumerate(names) if f"networks.{branch}." in f"{name}."]
        if not own:
            raise ValueError(f"the classifier reads no layer of the network of {branch!r}: name one in `layers`")
        found += own[-count:]
    return sorted(found)


def check_one_branch(classifier: Classifier) -> None:
    """Raise ValueError where the deepest layer is one of several parallel networks, and sees one input alone."""
    deepest = deepest_of_branches(classifier)
    if len(deepest) > 1:
        names = " and ".join(classifier.layers[k] for k in deepest)
        raise ValueError(
            f"expected one deepest layer, got one of each input's network ({names}), each of which sees that input "
            "alone: take per_input:of=SPEC for a map of each input, or name the layer that is to be read"
        )
