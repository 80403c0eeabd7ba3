"""The tensor that the output of a module is or holds, whatever kind of object that is."""

from collections.abc import Iterable, Mapping
from copy import copy

from torch import Tensor

__all__ = ["tensor_of", "tensors_in", "with_tensor"]


_HIDDEN = "last_hidden_state"


def tensor_of(output: object) -> Tensor | None:
    """Return the tensor that an output is, or holds: the last hidden state, else the first one; None without any."""
    if isinstance(output, Tensor):
        return output
    key = _key_of(output)
    return None if key is None else tensors_in(output)[key]


def with_tensor(output: object, tensor: Tensor) -> object:
    """Return an output whose tensor (`tensor_of`) is another one, wherever it stands in it."""
    if isinstance(output, Tensor):
        return tensor
    entries, former = tensors_in(output), tensor_of(output)
    places = [key for key, entry in entries.items() if entry is former]
    if isinstance(output, tuple):
        parts = [tensor if place in places else part for place, part in enumerate(output)]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    changed = copy(output)
    for key in places:
        if isinstance(output, list | Mapping):
            changed[key] = tensor  # type: ignore[index]
        else:
            object.__setattr__(changed, str(key), tensor)
    return changed


def _key_of(output: object) -> str | int | None:
    entries = tensors_in(output)
    if _HIDDEN in entries:
        return _HIDDEN
    return next(iter(entries), None)


def tensors_in(output: object) -> dict[str | int, Tensor]:
    """Return the tensors that a mapping, a tuple, a list or an object holds, by key, index or name."""
    if isinstance(output, Mapping):
        pairs: Iterable[tuple[str | int, object]] = output.items()
    elif isinstance(output, tuple | list):
        pairs = enumerate(output)
    else:
        pairs = getattr(output, "__dict__", {}).items()
    return {key: value for key, value in pairs if isinstance(value, Tensor)}
