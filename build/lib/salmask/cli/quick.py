"""A quick start for commands that explain one picture: what is slow to import and not needed stays out."""

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType

__all__ = ["import_networks"]

_DYNAMO, _UTILS = "torch._dynamo", "torch._dynamo.utils"


def import_networks() -> None:
    """Import torchvision and timm without TorchDynamo, which takes two seconds, half of what a command takes.

    They ask for two functions of it when they are imported, both for use while something is compiled: they get
    stand-ins that ask TorchDynamo when they are called. For the start of a command, before there are threads.
    """
    import torch

    if _DYNAMO in sys.modules or "torchvision" in sys.modules:
        return
    stand_in, disable = ModuleType(_UTILS), torch.compiler.disable
    stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules[_UTILS], torch.compiler.disable = stand_in, _disabled_by(disable)
    try:
        import timm  # noqa: F401
        import torchvision.transforms.v2  # noqa: F401
    except ImportError:  # of a version that asks for more: it is imported as it wants to be
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(_UTILS) is stand_in:
            del sys.modules[_UTILS]


def _is_compile_supported(device: str) -> bool:
    supported: bool = importlib.import_module(_UTILS).is_compile_supported(device)
    return supported


def _disabled_by(disable: Callable[..., Callable[..., object]]) -> Callable[..., Callable[..., object]]:
    """Return a decorator that keeps a function out of compilation once there is a compiler."""

    def decorate(function: Callable[..., object], *options: object, **named: object) -> Callable[..., object]:
        @wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            outside = disable(function, *options, **named) if _DYNAMO in sys.modules else function
            return outside(*args, **kwargs)

        return called

    return decorate
