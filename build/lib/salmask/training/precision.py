"""The precision of a training: "auto" is bfloat16 where it is faster, else float32."""

from typing import NamedTuple, get_args

import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.training.settings import Precision

__all__ = ["PRECISIONS", "Automatic", "automatic", "chosen_precision"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def chosen_precision(precision: str, classifier: Classifier, *, device: torch.device | None = None) -> Precision:
    """Return the precision itself, or what "auto" stands for.

    On a GPU bf16-mixed where it computes bfloat16. On a CPU bf16-mixed where it has AMX or AVX-512 BF16 (without them
    bfloat16 is emulated, and 7 to 10 times slower than float32) and the network has no depthwise convolutions, whose
    gradients in bfloat16 are slower than in float32 even there (docs/training.md). Elsewhere 32-true.

    device: the one that a training would choose where not given. Errors: ValueError for an unknown precision.
    """
    named = next((one for one in PRECISIONS if one == precision), None)
    if named is None:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    if named != "auto":
        return named
    if device is None:
        from lightning.fabric import Fabric  # slow to import, and only training needs it

        device = Fabric(accelerator="auto", devices=1).device
    precision = automatic(device).precision
    return "32-true" if device.type == "cpu" and _depthwise(classifier.network) else precision


class Automatic(NamedTuple):
    """What "auto" stands for on a device, and why."""

    precision: Precision
    reason: str


def automatic(device: torch.device) -> Automatic:
    """Return the precision of a device, whatever the network: on a CPU, one with depthwise convolutions has 32-true."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Automatic("bf16-mixed", "the GPU computes bfloat16")
        return Automatic("32-true", "the GPU does not compute bfloat16")
    if device.type != "cpu":
        return Automatic("32-true", f"bfloat16 is not used on {device.type}")
    if _cpu_computes_bfloat16():
        return Automatic("bf16-mixed", "the CPU has AMX or AVX-512 BF16; 32-true for depthwise convolutions")
    return Automatic("32-true", "the CPU has neither AMX nor AVX-512 BF16, and would emulate bfloat16")


def _cpu_computes_bfloat16() -> bool:
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch cannot tell
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def _depthwise(network: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in network.modules())
