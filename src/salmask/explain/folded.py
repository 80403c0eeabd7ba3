"""A faster twin of a classifier, for methods that ask it hundreds of times without gradients.

In eval mode a batch normalisation is one more linear map, so that it can be folded into the convolution before it:
conv(x) * a + b = conv'(x). On a CPU the twin also stays in oneDNN's own layout between its layers, which pays where
no convolution is grouped; elsewhere it lies in channels-last order. The twin is a copy; the user's network is not
touched. Where a network cannot be traced, or the twin does not answer as it does, the classifier itself is used.
The choice is by structure, never by a stop-watch, so that a run can be repeated to the bit.
"""

import copy
import logging
import warnings

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse, optimize_for_inference, use_mkl_length

from salmask.classifier import Classifier
from salmask.types import Images

__all__ = ["folded"]

WORTHWHILE = 200
"""Passes from which on tracing, about half a second, pays."""

_log = logging.getLogger(__name__)


def folded(classifier: Classifier, images: Images, *, passes: int) -> Classifier:
    """Return a twin whose `logits` are the classifier's up to rounding, or the classifier itself.

    images: some of those that it will see, with which the twin is tried. To be called on a frozen classifier
    without gradients; layers are not to be read from a twin.
    """
    network = classifier.network
    full = all(value.dtype == torch.float32 for value in network.parameters())
    if passes < WORTHWHILE or not full or _hooked(network) or type(classifier).logits is not Classifier.logits:
        return classifier
    picture = torch.cat([images[:1], 1 - images[:1].flip(3), images[:1]])
    wanted = [classifier.logits(picture) for _ in range(2)]  # asked twice: it may have a memory
    for quicken in (_in_onednn_layout, _in_channels_last):
        try:
            with warnings.catch_warnings():  # torch's own code for oneDNN's layout warns of an old decorator
                warnings.simplefilter("ignore", FutureWarning)
                twin = _with_network(classifier, quicken(network))
            found = twin.logits(picture)
        except Exception as error:  # whatever a network's code makes of being traced
            _log.info("%s does not work for this network: %s", quicken.__name__, error)
            continue
        if all(_close(found, answer) for answer in wanted):
            return twin
    return classifier


def _in_onednn_layout(network: nn.Module) -> nn.Module:
    traced = _without_identities(fx.symbolic_trace(network))
    if next(network.parameters(), torch.empty(0)).device.type != "cpu":
        raise ValueError("the layout is the CPU's")
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in traced.modules()):
        raise ValueError("grouped convolutions are slower in it")
    return optimize_for_inference(traced, {"mkldnn_layout_optimize": {"heuristic": use_mkl_length}})


def _in_channels_last(network: nn.Module) -> nn.Module:
    return fuse(_without_identities(fx.symbolic_trace(network))).to(memory_format=torch.channels_last)


def _without_identities(traced: fx.GraphModule) -> fx.GraphModule:
    """Take out modules that do nothing: a layer of unknown kind breaks the chain of oneDNN's layout."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) in (nn.Identity, nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _close(found: Tensor, wanted: Tensor) -> bool:
    loose = 1e-4 * float(wanted.abs().max())
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=loose)


def _with_network(classifier: Classifier, network: nn.Module) -> Classifier:
    twin = copy.copy(classifier)
    twin._modules = {**classifier._modules, "network": network}
    return twin


def _hooked(network: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
