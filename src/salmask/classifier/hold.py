"""A network held: at rest, learning, with statistics held, randomised, in pieces; always given back as it was."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from math import sqrt
from threading import Lock, RLock
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from salmask.classifier.wrappers import Called
from salmask.draws import generator_for
from salmask.types import Images

if TYPE_CHECKING:
    from salmask.classifier.network import Classifier

__all__ = [
    "at_once",
    "at_rest",
    "check_limit",
    "fresh_statistics",
    "held",
    "layers_to_randomise",
    "learning",
    "out_of_memory",
    "pieces",
    "randomised",
    "redraw_as_released",
    "remembering",
    "reset",
    "still_statistics",
    "without_checkpoints",
]


_Lock: TypeAlias = AbstractContextManager[object]
_LOCKS: "WeakKeyDictionary[object, _Lock]" = WeakKeyDictionary()  # of each module, and of each function that is called
_OF_NETWORKS: "WeakKeyDictionary[nn.Module, tuple[_Lock, ...]]" = WeakKeyDictionary()
_LOCKS_CHANGE = Lock()


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """Let one thread alone use a network; the same thread may enter again.

    Modes, hooks and gradients belong to modules and not to the call. So networks that have a module in common, as two
    heads on one backbone, or a network and an ensemble with it, share a lock, and so do wrappers of one function.
    """
    with _LOCKS_CHANGE:
        locks = _OF_NETWORKS.get(network)
        if locks is None:
            locks = _OF_NETWORKS[network] = _locks_of(network)
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def _locks_of(network: nn.Module) -> "tuple[_Lock, ...]":
    """Return the locks of all parts, in one order for all threads; those without one get the first there is, or a new.

    What can be neither hashed nor watched, of functions, is told apart by the module around it.
    """
    parts: list[object] = []
    for module in network.modules():
        function = getattr(module.function, "__self__", module.function) if isinstance(module, Called) else module
        try:
            _LOCKS.get(function)
        except TypeError:
            function = module
        parts.append(function)
    there = {id(lock): lock for part in parts if (lock := _LOCKS.get(part)) is not None}
    first = min(there.items())[1] if there else RLock()
    for part in parts:
        _LOCKS.setdefault(part, first)
    return tuple(lock for _, lock in sorted({id(first): first, **there}.items()))


_CACHED = 10 * 224 * 224  # pixels: the widest maps of a resnet50 stay below 32 MiB, which the allocator keeps


def at_once(images: Images, most: int) -> int:
    """Return how many pictures of this size go through a network in one pass: at most `most`.

    On a CPU no more than its caches bear: the feature maps of 32 pictures of 224x224 fall out of them again.
    """
    if images.device.type != "cpu":
        return most
    return min(most, max(1, _CACHED // (images.shape[-2] * images.shape[-1])))


ResetRule = Callable[[nn.Module], None]


def reset(module: nn.Module) -> None:
    """Redraw a module by its own reset_parameters, which for batch norm also forgets the statistics.

    Parameters of modules without one (tokens, positions, scales), and those that a module holds beside children with
    parameters, which its reset might reach too, are permuted: their scale stays.
    """
    inner = any(child is not module for child in module.modules() if [*child.parameters(recurse=False)])
    own = getattr(module, "reset_parameters", None)
    if own is not None and not inner:
        own()
        return
    for parameter in module.parameters(recurse=False):
        _permute(parameter)


def redraw_as_released(module: nn.Module) -> None:
    """Redraw as the paper's released code does (Phang et al., 2020).

    4-D N(0, 2 / (out * in * kw)), one kernel side short of He's; 2-D Kaiming uniform with a = sqrt 5; 1-D, batch
    norm's gains included, U(-1 / sqrt n, 1 / sqrt n). Statistics of batch norm are kept. Parameters of other
    dimensions, which the released code never met, are permuted as `reset` does.
    """
    for parameter in module.parameters(recurse=False):
        if parameter.ndim == 4:
            outs, ins, _, width = parameter.shape
            nn.init.normal_(parameter, 0, sqrt(2 / (outs * ins * width)))
        elif parameter.ndim == 2:
            nn.init.kaiming_uniform_(parameter, a=sqrt(5))
        elif parameter.ndim == 1:
            bound = 1 / sqrt(len(parameter))
            nn.init.uniform_(parameter, -bound, bound)
        else:
            _permute(parameter)


def _permute(parameter: nn.Parameter) -> None:
    flat = parameter.detach().flatten()
    parameter.data.copy_(flat[torch.randperm(len(flat)).to(flat.device)].view_as(parameter))


def layers_to_randomise(network: nn.Module, *, depth: int = 2) -> dict[str, list[nn.Module]]:
    """Group the modules that hold parameters by the first `depth` parts of their name, last to first.

    For a resnet50 and depth 2: fc, layer4.2, layer4.1, ..., layer1.0, bn1, conv1. "Last" is the order in which the
    network registers its modules. Parameters of the network itself stand under "(own)".
    """
    groups: dict[str, list[nn.Module]] = {}
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            groups.setdefault(".".join(name.split(".")[:depth]) or "(own)", []).append(module)
    if not groups:
        raise ValueError("the network has no parameters to randomise")
    return dict(reversed(groups.items()))


@contextmanager
def randomised(network: nn.Module) -> Iterator[Callable[[Sequence[nn.Module], ResetRule, str, int], None]]:
    """Give a function (modules, rule, name, seed) that redraws modules; all weights come back on exit.

    The same seed and name give the same weights, whatever else was redrawn. The global generators stay as they are.
    """
    kept = {name: value.detach().clone() for name, value in _all_values(network)}

    def redraw(modules: Sequence[nn.Module], rule: ResetRule, name: str, seed: int) -> None:
        devices = sorted({p.device.index or 0 for m in modules for p in m.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(generator_for(seed, name, "weights").initial_seed())
            for module in modules:
                rule(module)

    try:
        yield redraw
    finally:
        with torch.no_grad():
            for name, value in _all_values(network):
                value.copy_(kept[name])


def _all_values(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


class _Once:
    """Stands in for the autograd function of reentrant checkpoints: calls what it is given, once."""

    @staticmethod
    def apply(function: Callable[..., object], preserve: bool, *args: object) -> object:
        return function(*args)


def _once(*_: object, **__: object) -> Iterator[None]:
    yield  # before the call; what checkpoints do to be able to call again is left out


_CHECKPOINTS: dict[str, object] = {
    "CheckpointFunction": _Once,
    "_checkpoint_without_reentrant_generator": _once,
    "_checkpoint_without_reentrant_generator_impl": _once,
}
_CHECKPOINTS_OPEN, _CHECKPOINTS_CHANGE = [0], Lock()
_CHECKPOINTS_KEPT: dict[str, object] = {}


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Let gradient checkpoints (torch.utils.checkpoint) run what they hold once, and keep what it remembers.

    They run it again in the backward pass, when the hooks that read layers are gone, and torch refuses what comes of
    that. Values and gradients are the same without them; they save memory alone. Checkpoints are looked up when they
    are called, so that this reaches a network's own `from torch.utils.checkpoint import checkpoint`, timm's
    set_grad_checkpointing and transformers' gradient_checkpointing_enable. Other threads run without them meanwhile.
    """
    names = vars(checkpoint)
    with _CHECKPOINTS_CHANGE:
        if not _CHECKPOINTS_OPEN[0]:
            _CHECKPOINTS_KEPT.update({name: names[name] for name in _CHECKPOINTS if name in names})
            names.update({name: _CHECKPOINTS[name] for name in _CHECKPOINTS_KEPT})
        _CHECKPOINTS_OPEN[0] += 1
    try:
        yield
    finally:
        with _CHECKPOINTS_CHANGE:
            _CHECKPOINTS_OPEN[0] -= 1
            if not _CHECKPOINTS_OPEN[0]:
                names.update(_CHECKPOINTS_KEPT)


_Result = TypeVar("_Result")


@contextmanager
def at_rest(classifier: "Classifier", *, gradients: bool) -> Iterator[None]:
    """Hold the classifier frozen in eval mode, with or without gradients, whatever the caller has switched off.

    Errors: ValueError where gradients are asked for and none come back from the network.
    """
    if gradients and not classifier.differentiable:
        raise ValueError(
            "this explainer needs gradients, and none come back from the network: its output does not hang on its "
            "input (a function without gradients, a quantised or exported network, or a forward under no_grad). "
            "Take one that asks for logits alone, such as rise or occlusion"
        )
    calls_once = without_checkpoints() if gradients else nullcontext()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), classifier.frozen(), calls_once:
        yield


@dataclass
class _Fits:
    """How many rows have fitted into memory at once."""

    rows: int = sys.maxsize
    warned: bool = False


_FITS: ContextVar[_Fits | None] = ContextVar("fits", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Let what did not fit into memory once not be tried again inside, and be said once."""
    token = _FITS.set(_Fits())
    try:
        yield
    finally:
        _FITS.reset(token)


def pieces(function: Callable[[slice], _Result], count: int, *, max_batch: int) -> Iterator[_Result]:
    """Yield function(rows) for the rows 0 ... count - 1 in slices of at most max_batch, in order.

    A slice that runs out of memory is halved, and so are those that follow, within `remembering` those of later calls
    too; the first time is warned of.
    Raises the error of the last try where one row alone does not fit.
    """
    check_limit(max_batch)
    fits = _FITS.get() or _Fits()
    max_batch, start = min(max_batch, fits.rows), 0
    while start < count:
        rows = slice(start, min(start + max_batch, count))
        failure: RuntimeError | None = None
        try:
            result = function(rows)
        except RuntimeError as error:
            if rows.stop - rows.start == 1 or not out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # whose frames would hold on to the memory
        if failure is not None:
            max_batch = fits.rows = (rows.stop - rows.start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not fits.warned:
                count_now = f"{max_batch} image{'' if max_batch == 1 else 's'}"
                warnings.warn(f"out of memory: going on with {count_now} a pass", stacklevel=2)
            fits.warned = True
            continue
        yield result
        start = rows.stop


def check_limit(max_batch: int) -> None:
    """Refuse a limit that is not a positive number."""
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
        raise ValueError(f"max_batch is the number of images in one pass, at least 1, got {max_batch!r}")


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory ran out: the CPU's says so in words alone."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "allocate memory" in text


@contextmanager
def learning(network: nn.Module, *, hold_statistics: bool) -> Iterator[None]:
    """Hold a network in train mode, without gradients of an earlier owner; restore modes and gradients after.

    hold_statistics: its normalisation stays in eval mode, so that it uses the statistics that it has.
    """
    modes = [(module, module.training) for module in network.modules()]
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    try:
        network.train().zero_grad(set_to_none=True)
        for layer in _normalisations(network) if hold_statistics else ():
            layer.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Let normalisation layers in train mode use their batch without remembering it."""
    layers = _normalisations(network)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@torch.no_grad()
def fresh_statistics(classifier: "Classifier", batches: Iterable[Images]) -> None:
    """Replace what batch normalisation remembers by its mean over batches of images in [0, 1], each of equal weight.

    A network that was put together of others' weights has nobody's statistics. Unlike torch's `update_bn`, nothing but
    the normalisation is in train mode meanwhile: dropout is off, as in use. A network without any stays as it is.
    Errors: ValueError for no batch.
    """
    layers = [layer for layer in _normalisations(classifier.network) if layer.track_running_stats]
    if not layers:
        return
    before = [layer.momentum for layer in layers]
    empty = True
    with classifier.frozen():
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.train()
                layer.momentum = None  # the mean of all batches, not of the last ones
            for images in batches:
                empty = False
                classifier.logits(images.to(classifier.device))
        finally:
            for layer, momentum in zip(layers, before, strict=True):
                layer.momentum = momentum
    if empty:
        raise ValueError("expected at least one batch of pictures to take the batch statistics from, got none")


def _normalisations(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
