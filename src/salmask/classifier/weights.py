"""Reading weights into a network.

    {"model_state_dict": {"module._orig_mod.conv1.weight": ...}}  ->  {"conv1.weight": ...}

Files of trainers hold the weights somewhere in them, under names with prefixes; both are found by what fits the
network. No code of a file is run: what is not a tensor, a number or a container is read as an inert lump, also the
modules of a network that was pickled whole, whose weights are then collected from them.
"""

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from salmask.files import JSON, Facts, read_json, replace_file, writable_folder

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "check_numbers",
    "fingerprint",
    "fit_weights",
    "load_module",
    "load_weights",
    "read_config",
    "save_module",
    "save_tensors",
    "saved_in",
    "weights_digest",
]

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
)
_COUNT = "num_batches_tracked"
_PASSED_ON = ("_orig_mod.", "module.")
Module = TypeVar("Module", bound=nn.Module)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a .safetensors file or a checkpoint of a trainer; names are as they stand there.

    Raises FileNotFoundError, and ValueError for a file that holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a .safetensors or a state-dict file")
    content = load_file_of(path)
    weights = _weights_in(content)
    if weights is None:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no state dict: expected names with tensors, got {held}")
    several = [key for key in _CONTAINERS if _holds_weights(content, key)]
    if len(several) > 1:
        warnings.warn(
            f"{path} holds weights under {' and '.join(several)}: those under {several[0]} are read; save the others "
            "alone to have them read",
            stacklevel=2,
        )
    return weights


def _holds_weights(content: object, key: str) -> bool:
    return isinstance(content, Mapping) and key in content and _weights_in(content[key]) is not None


def load_file_of(path: Path) -> object:
    """Return what a file of weights holds, without running any code of it. Errors: ValueError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch says of it fills a page, and advises to trust the file
        if _is_scripted(path):
            raise ValueError(
                f"{path} holds a scripted network, no weights: load it with torch.jit.load and give "
                "Classifier(network, layers=[], ...)"
            ) from error
        kind = type(error).__name__
        try:
            if path.suffix == ".safetensors":
                raise
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert())
        except Exception:
            raise ValueError(
                f"{path} cannot be read as weights ({kind}): is it cut short, or another format?"
            ) from error


def _is_scripted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


class _Lump:
    """What stands for an object of a class that is not read: it takes whatever it is given and does nothing."""

    def __init__(self, *values: object, **named: object) -> None:
        pass

    def __new__(cls, *values: object, **named: object) -> "_Lump":
        return super().__new__(cls)

    def __call__(self, *values: object, **named: object) -> "_Lump":
        return _Lump()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update((str(key), value) for key, value in state.items())

    def append(self, value: object) -> None:
        """Take an entry of a list."""

    def extend(self, values: object) -> None:
        """Take entries of a list."""

    def add(self, value: object) -> None:
        """Take an entry of a set."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


_REAL = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch.nn.parameter", "Parameter"): nn.Parameter,
} | {
    ("torch", name): getattr(torch, name)
    for name in dir(torch)
    if name.endswith("Storage") or isinstance(getattr(torch, name), torch.dtype)
}


class _InertUnpickler(pickle.Unpickler):
    """Reads tensors and containers; everything else becomes a lump, and nothing is imported or called."""

    def find_class(self, module: str, name: str) -> object:
        return _REAL.get((module, name), _Lump)


def _inert() -> SimpleNamespace:
    """Return a stand-in for the module pickle, as `torch.load` wants it."""

    def load(file: BinaryIO, encoding: str = "ASCII") -> object:
        return _InertUnpickler(file, encoding=encoding).load()

    def loads(data: bytes, encoding: str = "ASCII") -> object:
        return load(io.BytesIO(data), encoding)

    return SimpleNamespace(__name__="pickle", Unpickler=_InertUnpickler, load=load, loads=loads)


def _weights_in(content: object) -> dict[str, Tensor] | None:
    """Return the names with tensors that a file's content is, or holds under one of the usual names."""
    if isinstance(content, _Lump):
        return dict(_collected(content, "")) or None
    if not isinstance(content, Mapping):
        return None
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        return tensors
    for key in _CONTAINERS:
        if key in content and (weights := _weights_in(content[key])) is not None:
            return weights
    return tensors if len(tensors) > len(content) / 2 else None


def _collected(lump: _Lump, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Collect the parameters and buffers of a module that was pickled whole, as its state dict would name them."""
    own = vars(lump)
    left_out = own.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        entries = own.get(kind)
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(value, Tensor) and name not in (left_out if isinstance(left_out, set) else ()):
                yield f"{prefix}{name}", value
    children = own.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, _Lump):
            yield from _collected(child, f"{prefix}{name}.")


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must fit exactly; the error names the first that does not, and nothing is changed.

    Names may have parts that only pass on (`_orig_mod.`, `module.`), and one prefix that all of the network's names
    have there (Lightning's `model.`); what stands beside that prefix, as the weights of a loss, is left out.
    """
    own = network.state_dict()
    weights = _renamed(weights, own.keys(), what)
    # of batches, which nothing reads in eval mode, and which old files lack
    counts = {name: own[name] for name in own if name.endswith(_COUNT) and name not in weights}
    weights = {**counts, **weights}
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if not (missing or unknown or wrong):
        network.load_state_dict(weights)
        return
    problems = [f"{len(missing)} weights are missing (first {missing[0]})"] if missing else []
    problems += [f"{len(unknown)} are unknown (first {unknown[0]})"] if unknown else []
    problems += [f"{k} is {tuple(weights[k].shape)}, needed {tuple(own[k].shape)}" for k in sorted(wrong)[:1]]
    raise ValueError(f"the weights do not fit {what}: " + "; ".join(problems) + ": is it another network?")


def _renamed(weights: Mapping[str, Tensor], own: Set[str], what: str) -> Mapping[str, Tensor]:
    """Return the weights under the network's own names, where taking parts of names off brings all of them there."""
    needed = {name for name in own if not name.endswith(_COUNT)}
    if not needed or needed <= weights.keys():
        return weights
    short = {}
    for key, value in weights.items():
        for part in _PASSED_ON:
            key = key.removeprefix(part).replace(f".{part}", ".")
        short[key] = value
    if needed <= short.keys():
        return short
    first = min(needed)
    prefixes = {key[: -len(first)] for key in short if key.endswith(f".{first}")}
    fitting = [prefix for prefix in prefixes if all(prefix + name in short for name in needed)]
    if len(fitting) > 1:
        raise ValueError(f"the weights fit {what} under {', '.join(sorted(fitting))}: keep one of them in the file")
    return {name: short[fitting[0] + name] for name in own if fitting[0] + name in short} if fitting else short


def fingerprint(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of a hash of all weights and statistics of a network."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of all weights and statistics of a network.

    Numbers are hashed in float32, so that a network has one digest in every precision from which it is filled exactly.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_numbers(module: nn.Module, what: str) -> None:
    """Raise ValueError where a weight or a statistic is not a number: every answer would be none, without a word."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and bool(value.isnan().any()):
            raise ValueError(
                f"{what} holds values that are not numbers (NaN), first in {name}: get it again, or train again"
            )


def save_module(module: nn.Module, settings: JSON, folder: str | Path) -> None:
    """Write settings as config.json and weights as model.safetensors; each file appears whole or not at all."""
    folder = writable_folder(folder)
    content = json.dumps(settings, indent=2) + "\n"
    save_tensors(folder / WEIGHTS, module.state_dict(), {"format": "pt"})
    replace_file(folder / CONFIG, lambda at: at.write_text(content))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, whole or not at all: the same content is the same bytes.

    The library itself writes its table of metadata in an order that is drawn anew each time.
    """
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, dict(metadata))
    begins = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begins])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    table = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    table += b" " * (-len(table) % 8)
    parts = (len(table).to_bytes(8, "little"), table, memoryview(content)[begins:])
    replace_file(path, lambda at: at.write_bytes(b"".join(parts)))


def saved_in(folder: str | Path, what: str) -> tuple[Path, Path]:
    """Return the two files that `save_module` writes. Errors: FileNotFoundError naming what is not there."""
    config, weights = (Path(folder) / name for name in (CONFIG, WEIGHTS))
    if not (config.is_file() and weights.is_file()):
        raise FileNotFoundError(f"no {what} in {folder}: expected {CONFIG} and {WEIGHTS} there")
    return config, weights


def read_config(path: Path, shape: Facts, what: str) -> JSON:
    """Return the settings in a config.json, without its format. Errors: ValueError for others than `shape` has."""
    settings = read_json(path, shape, remedy=f"it is not the configuration of a salmask {what}; save it again")
    if unknown := sorted(settings.keys() - {key.rstrip("?") for key in shape}):
        raise ValueError(f"{path} is not the configuration of a salmask {what}: got the entry {unknown[0]!r}")
    settings.pop("format")
    return settings


def load_module(build: Callable[[], Module], config: Path, weights: Path) -> Module:
    """Return a module as its configuration has it, with its weights, in eval mode.

    Errors: ValueError where the weights are not of the shapes that the configuration means; nothing is allocated then.
    """
    try:
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in build().state_dict().items()}
        with safe_open(weights, framework="pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of settings that contradict each other, of a file that is cut short
        raise ValueError(f"{weights} does not hold the weights that {config} describes: {error}") from error
    for name in shapes.keys() | there.keys():
        if shapes.get(name) != there.get(name):
            raise ValueError(
                f"{weights} does not hold the weights that {config} describes: {name} is {there.get(name, 'missing')}, "
                f"expected {shapes.get(name, 'nothing of that name')}"
            )
    module = build()
    module.load_state_dict(load_file(weights))
    check_numbers(module, str(weights))
    return module.eval()
