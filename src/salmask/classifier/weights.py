"""Reading weights into a network."""

import hashlib
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["fingerprint", "load_weights"]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a .safetensors or a state-dict file; a state dict may stand under "state_dict" or "model".

    Raises FileNotFoundError, and ValueError for a file that holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a .safetensors or a state-dict file")
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        kind = type(error).__name__  # what torch says of it fills a page, and advises to trust the file
        raise ValueError(f"{path} cannot be read as weights ({kind}): is it cut short, or another format?") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict: expected names with tensors")
    return {key.removeprefix("module."): value for key, value in found.items()}


def fit_weights(network: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights that must fit exactly; the error names the first that does not, and nothing is changed."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if not (missing or unknown or wrong):
        network.load_state_dict(weights)
        return
    problems = [f"{len(missing)} weights are missing (first {missing[0]})"] if missing else []
    problems += [f"{len(unknown)} are unknown (first {unknown[0]})"] if unknown else []
    problems += [f"{k} is {tuple(weights[k].shape)}, needed {tuple(own[k].shape)}" for k in sorted(wrong)[:1]]
    raise ValueError(f"the weights do not fit {what}: " + "; ".join(problems) + ": is it another network?")


def _classes_in(weights: dict[str, Tensor], name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    head = config.classifier if config is not None else None
    head = head[0] if isinstance(head, tuple) else head
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in weights:
            return weights[key].shape[0]
    raise ValueError(f"the weights hold no {head}.weight, the classifying layer of {name}: is it another network?")


def fingerprint(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of a hash of all weights and statistics of a network."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
