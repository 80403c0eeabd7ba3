"""A faster twin of a classifier, for methods that ask it hundreds of times.

In eval mode a batch normalisation is one more linear map, so that it can be folded into the convolution before it:
conv(x) * a + b = conv'(x). The twin then lies in channels-last order, with or without gradients; on a CPU and
without gradients a network that is mostly 1x1 convolutions stays in oneDNN's own layout between its layers instead,
which is faster there but not where convolutions are grouped. The twin is a copy; the user's network is not
touched. Where a network cannot be traced, and is not mostly wide convolutions, for which channels-last order is quicker
by itself, or where the twin does not answer as it does, the classifier itself is used.
The choice is by structure, never by a stop-watch, so that a run can be repeated to the bit.
"""

import copy
import logging
import warnings

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse, optimize_for_inference, use_mkl_length

from salmask.classifier.inputs import check_tensor
from salmask.classifier.network import Classifier
from salmask.classifier.wrappers import unwrapped
from salmask.types import Images

__all__ = ["folded"]

WORTHWHILE = 60
"""Passes from which on a twin, which costs as much as about 10 to 25, pays."""

_log = logging.getLogger(__name__)


def folded(classifier: Classifier, images: Images, *, passes: int, gradients: bool = False) -> Classifier:
    """Return a twin whose `logits` are the classifier's up to rounding, or the classifier itself.

    images: some of those that it will see, with which the twin is tried. gradients: it will be asked for those with
    respect to the pictures. To be called on a frozen classifier; layers are not to be read from a twin.
    """
    network = unwrapped(classifier.network)
    full = {value.dtype for value in network.parameters()} == {torch.float32}
    if passes < WORTHWHILE or not full or _hooked(network) or type(classifier).logits is not Classifier.logits:
        return classifier
    check_tensor(images)
    pictures = torch.cat([images[:1], 1 - images[:1].flip(3)])
    asked = ((pictures, False), (pictures[:1], gradients))  # twice: the network may have a memory
    always = (_in_channels_last, _unfolded)
    for quicken in always if gradients else (_in_onednn_layout, *always):
        try:
            with warnings.catch_warnings():  # torch's own code for oneDNN's layout warns of an old decorator
                warnings.simplefilter("ignore", FutureWarning)
                twin = _with_network(classifier, quicken(network))
            answers = [_answer(twin, shown, gradients=slopes) for shown, slopes in asked]
        except Exception as error:  # whatever a network's code makes of being traced
            _log.info("%s does not work for this network: %s", quicken.__name__, error)
            continue
        wanted = [_answer(classifier, shown, gradients=slopes) for shown, slopes in asked]
        steady = _close((wanted[0][0][:1],), (wanted[1][0],))
        if steady and all(_close(one, other) for one, other in zip(answers, wanted, strict=True)):
            return twin
    return classifier


def _answer(classifier: Classifier, pictures: Tensor, *, gradients: bool) -> tuple[Tensor, ...]:
    """Return logits and, where asked, the gradient of their squares' sum."""
    with torch.set_grad_enabled(gradients):
        shown = pictures.detach().requires_grad_(gradients)
        logits = classifier.logits(shown)
        if not gradients:
            return (logits,)
        return logits.detach(), *torch.autograd.grad(logits.square().sum(), shown)


def _in_onednn_layout(network: nn.Module) -> nn.Module:
    if next(network.parameters(), torch.empty(0)).device.type != "cpu":
        raise ValueError("the layout is the CPU's")
    if _wide(network) or _grouped(network):
        raise ValueError("wide kernels and grouped convolutions are slower in it")
    traced = _without_identities(fx.symbolic_trace(network))
    return optimize_for_inference(traced, {"mkldnn_layout_optimize": {"heuristic": use_mkl_length}})


def _in_channels_last(network: nn.Module) -> nn.Module:
    fused = fuse(copy.deepcopy(network), inplace=True)
    return fused.requires_grad_(False).to(memory_format=torch.channels_last)


def _unfolded(network: nn.Module) -> nn.Module:
    if not _wide(network) or _grouped(network):
        raise ValueError("channels-last order alone gains nothing")
    return copy.deepcopy(network).requires_grad_(False).to(memory_format=torch.channels_last)


def _wide(network: nn.Module) -> bool:
    """Return whether most weights of convolutions are in kernels wider than 1x1."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    points = sum(module.weight.numel() for module in convolutions if module.kernel_size == (1, 1))
    return 2 * points < sum(module.weight.numel() for module in convolutions)


def _grouped(network: nn.Module) -> bool:
    return any(module.groups > 1 for module in network.modules() if isinstance(module, nn.Conv2d))


def _without_identities(traced: fx.GraphModule) -> fx.GraphModule:
    """Take out modules that do nothing: a layer of unknown kind breaks the chain of oneDNN's layout."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) in (nn.Identity, nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _close(answers: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    """Compare logits entry by entry, gradients by their distance: a ReLU at its kink may fall on either side."""
    (logits, *slopes), (expected, *steep) = answers, wanted
    if bool(expected.isnan().any()):
        return False
    loose = 1e-4 * float(expected.abs().max())
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-4, atol=loose):
        return False
    return all(float((one - two).norm()) <= 1e-2 * float(two.norm()) for one, two in zip(slopes, steep, strict=True))


def _with_network(classifier: Classifier, network: nn.Module) -> Classifier:
    twin = copy.copy(classifier)
    twin._modules = {**classifier._modules, "network": network}
    return twin


def _hooked(network: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
