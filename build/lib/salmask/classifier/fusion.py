"""Networks that read several images of one scene, such as colour and depth.

| SPEC | network |
|---|---|
| `early:rgb+depth:NAME` | one timm network that reads the channels of all inputs |
| `late:rgb+depth:NAME` | one timm network an input; logits = sum_k w_k f_k(x_k), w = softmax(v), v learned |

Inputs are names joined by +: `rgb` and all that end in `_jet` (one channel shown in colours) have three channels,
others one, or as many as `NAME*COUNT` says. One input alone is `early:depth:NAME`. Source of the comparison of early
and late fusion: Kicki et al. (2021).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from salmask.classifier.inputs import Inputs
from salmask.classifier.weights import fit_weights, load_weights

__all__ = [
    "FUSIONS",
    "JET",
    "LateFusion",
    "fused_network",
    "read_inputs",
    "timm_name",
]

JET = "_jet"
"""End of the name of an input that is shown in the colours from blue to red."""


class LateFusion(nn.Module):
    """One network an input; logits = sum_k w_k f_k(x_k), w = softmax(v) with v learned, 0 at first.

    networks: name -> network of that input, which gives logits (B, K). channels: of each input.
    Errors: ValueError where these differ in number, or an answer is no logits.
    """

    def __init__(self, networks: Mapping[str, nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        if len(networks) != len(channels) or not networks:
            raise ValueError(f"expected one network an input, got {len(networks)} for {len(channels)} inputs")
        self.networks, self.channels = nn.ModuleDict(networks), list(channels)
        self.mixing = nn.Parameter(torch.zeros(len(channels)))

    @property
    def weights(self) -> Tensor:
        """What the logits of each input count: positive, and 1 together."""
        return self.mixing.softmax(0)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the weighted logits (B, K) of stacked pictures (B, C, H, W)."""
        parts = pictures.split(self.channels, 1)
        logits = [network(part) for network, part in zip(self.networks.values(), parts, strict=True)]
        return torch.einsum("k,kbc->bc", self.weights.to(logits[0].dtype), torch.stack(logits))


def read_inputs(text: str) -> Inputs:
    """Return the inputs that `rgb+depth` or `rgb+thermal*2` names. Errors: ValueError for anything else."""
    channels: dict[str, int] = {}
    for part in text.split("+"):
        name, times, count = part.partition("*")
        if not name.isidentifier() or name in channels or (times and not count.isdigit()):
            raise ValueError(f"expected inputs as rgb+depth or rgb+thermal*2, each once, got {text!r}")
        channels[name] = int(count) if times else 3 if name == "rgb" or name.endswith(JET) else 1
    return Inputs.of(channels)


def timm_name(name: str) -> str:
    """Return the timm name in INPUTS:NAME. Errors: ValueError for another text, and where timm has no such network."""
    inputs, colon, network = name.partition(":")
    if not colon or not inputs or not timm.is_model(network):
        raise ValueError(f"expected INPUTS:NAME of a timm network, such as rgb+depth:resnet18, got {name!r}")
    return network


def _early(inputs: Inputs, name: str, num_classes: int) -> nn.Module:
    return timm.create_model(name, in_chans=inputs.total, num_classes=num_classes)


def _late(inputs: Inputs, name: str, num_classes: int) -> nn.Module:
    made = {
        one: timm.create_model(name, in_chans=count, num_classes=num_classes)
        for one, count in inputs.settings().items()
    }
    return LateFusion(made, inputs.channels)


FUSIONS = {"early": _early, "late": _late}
"""Ways to join several inputs, by the first word of a SPEC."""


def fused_network(
    kind: str, name: str, *, file: str | Path | None, num_classes: int | None
) -> tuple[nn.Module, Inputs]:
    """Build a network in eval mode of a SPEC's words; the number of classes is read from a file's weights.

    Errors: ValueError for unknown names, for weights that do not fit, and without a file and a number of classes.
    """
    inputs, network = read_inputs(name.partition(":")[0]), timm_name(name)
    weights = None if file is None else load_weights(file)
    if weights is not None:
        head = timm.get_pretrained_cfg(network)
        layer = "fc" if head is None or not isinstance(head.classifier, str) else head.classifier
        rows = [value.shape[0] for key, value in weights.items() if key.endswith(f"{layer}.weight")]
        if not rows:
            raise ValueError(f"{file} holds no {layer}.weight, the classifying layer of {network}: another network?")
        num_classes = rows[0]
    if num_classes is None:
        raise ValueError(
            f"{kind}:{name} has no weights of its own: train one with `salmask classifier`, and name {kind}:{name}@FILE"
        )
    made = FUSIONS[kind](inputs, network, num_classes).eval()
    if weights is not None:
        fit_weights(made, weights, f"{kind}:{name} from {file}")
    return made, inputs
