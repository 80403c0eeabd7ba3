"""What surrounds a network: wrappers that only pass on, functions and ONNX sessions.

    unwrapped(DataParallel(net)) = net        the same function, without what only passes on
    bare(Lightning(net)) = net                the innermost module that holds every parameter

Hooks on the inside of a compiled module are not called, and those inside DataParallel are called on copies. So
`passed_through` lets such wrappers call what they hold, for as long as layers are read.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Called",
    "Network",
    "Session",
    "as_module",
    "bare",
    "find_layers",
    "is_compiled",
    "named_layers",
    "passed_through",
    "unwrapped",
]

_INNER = {nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}
_COMPILER = "torch._dynamo.eval_frame"
_ABSENT = object()


@runtime_checkable
class _Named(Protocol):
    @property
    def name(self) -> str: ...


@runtime_checkable
class Session(Protocol):
    """An ONNX session, as onnxruntime makes one: arrays in, arrays out, each by its name."""

    def get_inputs(self) -> Sequence[_Named]:
        """Return what goes in."""
        ...

    def get_outputs(self) -> Sequence[_Named]:
        """Return what comes out."""
        ...

    def run(self, names: Sequence[str] | None, feed: Mapping[str, object], /) -> Sequence[object]:
        """Return the outputs of these names, all of them for None."""
        ...


Network: TypeAlias = nn.Module | Callable[[Tensor], object] | Session
"""What maps pictures (B, C, H, W) to logits, or to something that holds them."""


class Called(nn.Module):
    """A function from pictures to outputs, or an ONNX session, as a module without parameters or layers."""

    def __init__(self, function: Callable[[Tensor], object] | Session) -> None:
        super().__init__()
        self.function = function

    def forward(self, pictures: Tensor) -> object:
        """Return what the function returns; arrays become tensors."""
        function = self.function
        if not isinstance(function, Session):
            answer = function(pictures)
            return torch.as_tensor(answer).to(pictures.device) if isinstance(answer, np.ndarray) else answer
        name = function.get_inputs()[0].name
        answers = function.run(None, {name: pictures.detach().cpu().numpy()})
        names = [output.name for output in function.get_outputs()]
        tensors = [torch.as_tensor(answer).to(pictures.device) for answer in answers]
        return tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True))


def as_module(network: object) -> nn.Module:
    """Return a module as it is, and a function or a session as one. Errors: TypeError for anything else."""
    if isinstance(network, nn.Module):
        if any(isinstance(value, nn.UninitializedParameter) for value in network.parameters()):
            raise ValueError("the network has lazy layers without weights yet: pass it one batch of pictures first")
        if any(value.is_meta for value in network.parameters()):
            raise ValueError("the network lies on the device 'meta' and holds no numbers: load its weights first")
        if any(value.is_inference() for value in network.parameters()):
            raise ValueError(
                "the network was built under torch.inference_mode, and its weights take part in no gradient: build and "
                "load it outside"
            )
        return network
    if isinstance(network, Session) or callable(network):
        return Called(network)
    raise TypeError(
        f"expected a torch.nn.Module or a function from pictures (B, C, H, W) to logits (B, K), "
        f"got {type(network).__name__}: wrap it as `lambda pictures: ...` and give layers=[]"
    )


def _passes_on(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper holds; None for any other. torch.compile's is slow to import: who has used it has."""
    compiler = sys.modules.get(_COMPILER)
    wrappers = _INNER if compiler is None else {**_INNER, vars(compiler)["OptimizedModule"]: "_orig_mod"}
    for kind, name in wrappers.items():
        if isinstance(module, kind):
            return module.__dict__["_modules"][name]
    return None


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module runs compiled, so that what it calls is not seen."""
    compiler = sys.modules.get(_COMPILER)
    wrapped = compiler is not None and isinstance(module, vars(compiler)["OptimizedModule"])
    return wrapped or module.__dict__.get("_compiled_call_impl") is not None


def unwrapped(network: nn.Module) -> nn.Module:
    """Return what DataParallel, DistributedDataParallel and torch.compile hold: the same function."""
    while (inner := _passes_on(network)) is not None:
        network = inner
    return network


def bare(network: nn.Module) -> nn.Module:
    """Return the innermost module that holds every parameter and has parts of its own.

    Lightning modules, PEFT models and one's own `self.model = ...` hold one such child. What they do around it is
    not part of what is returned: ask it for weights and for what it says of itself, never for logits.
    """
    while True:
        network = unwrapped(network)
        children = [child for child in network.children() if next(child.parameters(), None) is not None]
        if len(children) != 1 or next(network.parameters(recurse=False), None) is not None:
            return network
        if next(unwrapped(children[0]).children(), None) is None:
            return network
        network = children[0]


def named_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by names that leave out what only passes on; the network itself is ""."""
    names: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> None:
        module = unwrapped(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        names[name] = module
        for part, child in module.named_children():
            walk(child, f"{name}.{part}" if name else part)

    walk(network, "")
    return names


def find_layers(network: nn.Module, wanted: list[str]) -> dict[str, nn.Module]:
    """Return modules by the names of `named_layers`.

    A name may also be the full one (`module.layer4` in a DataParallel) or that within the bare network (`layer4`
    where a wrapper holds it as `model.layer4`). Errors: ValueError that names near ones.
    """
    names = named_layers(network)
    own = {id(module): name for name, module in names.items()}
    result = {}
    for name in wanted:
        module = names.get(name) if name else None
        for root in (network, bare(network)):
            if module is None and name:
                module = _submodule(root, name)
        if module is None:
            near = get_close_matches(name, names, 3) or [n for n in names if n and "." not in n][:8]
            raise ValueError(f"the network has no layer {name!r}; near: {', '.join(near)}")
        result[own[id(unwrapped(module))]] = unwrapped(module)
    return result


def _submodule(root: nn.Module, name: str) -> nn.Module | None:
    module: nn.Module | None = root
    for part in name.split("."):
        module = None if module is None else module._modules.get(part)
    return module


@contextmanager
def passed_through(network: nn.Module) -> Iterator[None]:
    """Let compiled modules and DataParallel call what they hold, so that hooks inside are called."""
    changes: list[tuple[dict[str, object], str, object]] = []

    def change(module: nn.Module, name: str, value: object) -> None:
        changes.append((module.__dict__, name, module.__dict__.get(name, _ABSENT)))
        module.__dict__[name] = value

    try:
        for module in network.modules():
            if (inner := _passes_on(module)) is not None:
                change(module, "forward", inner.__call__)
            if module.__dict__.get("_compiled_call_impl") is not None:
                change(module, "_compiled_call_impl", None)
        yield
    finally:
        for attributes, name, value in reversed(changes):
            if value is _ABSENT:
                del attributes[name]
            else:
                attributes[name] = value
