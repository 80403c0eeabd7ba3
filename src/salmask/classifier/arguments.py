"""Arguments of a classifier, checked before the network is shown anything."""

from collections.abc import Sequence
from math import prod
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from salmask.classifier.grids import Grid
from salmask.classifier.wrappers import Called
from salmask.files import Maybe, Several, Within, plain_arguments

__all__ = ["by_channel", "check_readable", "plain_options"]

_OPTIONS = {
    "layers": Maybe([str]),
    "image_size": Within(1, 8192),
    "output": Maybe((str, int)),
    "prefix": Maybe(Within(0, 65536)),
    "grid": Maybe(Several(Within(1, 65536), 2, 2)),
}


def plain_options(
    **given: object,
) -> tuple[list[str] | None, int, str | int | None, int | None, Grid | None]:
    """Return layers, image_size, output, prefix and grid, with numbers of arrays as Python's.

    Errors: ValueError for values of other kinds, or out of range.
    """
    plain = plain_arguments("a Classifier", _OPTIONS, **given)
    grid = None if plain["grid"] is None else (plain["grid"][0], plain["grid"][1])
    return plain["layers"], plain["image_size"], plain["output"], plain["prefix"], grid


def by_channel(name: str, values: object) -> list[float]:
    """Return one number a channel: of a sequence, an array, or a tensor such as (C, 1, 1).

    Errors: ValueError for anything else: one number says nothing of how many channels there are.
    """
    listed: object = values
    if isinstance(values, Tensor | np.ndarray):
        along = max((1, *values.shape)) if values.ndim else 0
        listed = values.reshape(-1).tolist() if along == prod(values.shape) else values.tolist()
    numbers = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str | bytes) else None
    if numbers is not None:
        numbers = [one.item() if isinstance(one, Tensor) and one.ndim == 0 else one for one in numbers]
    if numbers is None or not all(isinstance(one, Real) for one in numbers):
        example = float(listed) if isinstance(listed, Real) else 0.5
        raise ValueError(
            f"expected {name} as one number a channel, such as {(example,) * 3} of three channels, got "
            f"{type(values).__name__} {values!r}"[:250]
        )
    return [float(one) for one in numbers]


def check_readable(network: nn.Module, layers: Sequence[str] | None) -> None:
    """Refuse to read layers of what has none: functions, ONNX sessions and scripted networks."""
    if isinstance(network, torch.jit.ScriptModule):
        what = "a scripted network cannot be read inside"
    elif isinstance(network, Called):
        what = "a function has no layers"
    else:
        return
    if layers is None or len(layers):
        raise ValueError(
            f"{what}: give layers=[] for explainers that ask for logits alone, such as rise and occlusion, "
            "or wrap the network itself, a torch.nn.Module, to have its layers read"
        )
