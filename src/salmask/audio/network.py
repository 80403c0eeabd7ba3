"""Classifiers of sounds: a convolutional network of the CNN14 kind, or any vision network of timm, on the mel image.

    picture -> |X| -> log1p(mel bands) -> normalised per band -> blocks -> max + mean over time -> logits

| NAME of `audio:NAME` | network |
|---|---|
| `cnn14`, `cnn14-w16-d4-m40` | `Cnn14` of width 16, 4 blocks, on 40 mel bands; 64, 6 and 80 where not given |
| `timm/resnet18`, `timm/resnet18-m80` | timm's, which reads the mel image as a picture of one channel; of any size |

Source: Kong et al. (2020, PANNs: CNN14); Paissan et al. (2024, L-MAC).
"""

import re
from collections import OrderedDict
from itertools import pairwise

import timm
from torch import Tensor, nn

from salmask.audio.front import MelBands
from salmask.audio.hearing import Hearing

__all__ = ["Cnn14", "SoundNetwork", "sound_network"]

_CNN14 = re.compile(r"cnn14(?:-w(?P<width>\d+))?(?:-d(?P<depth>\d+))?(?:-m(?P<bands>\d+))?")
_TIMM = re.compile(r"timm/(?P<name>[^/-]+)(?:-m(?P<bands>\d+))?")
_BANDS = 80


class Cnn14(nn.Module):
    """CNN14 with its width and depth as settings: mel images (B, 1, M, T) to logits (B, K).

    `depth` blocks of two 3x3 convolutions with batch norm and ReLU, `width` channels in the first and twice as many in
    each that follows; all but the last end in a 2x2 average pooling. Frequencies are averaged, frames joined by maximum
    plus mean, then one linear layer. CNN14 has width 64 and depth 6.
    """

    def __init__(self, bands: int, classes: int, *, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= 8:
            raise ValueError(f"expected a width of at least 1 and 1 to 8 blocks, got {width} and {depth}")
        if bands < 2 ** (depth - 1):
            raise ValueError(f"{depth} blocks halve {bands} bands to nothing: give at least {2 ** (depth - 1)} bands")
        self.normalise = nn.BatchNorm2d(bands)
        channels = [1, *(width * 2**block for block in range(depth))]
        self.blocks = nn.ModuleList(
            _block(before, after, pooled=block < depth - 1) for block, (before, after) in enumerate(pairwise(channels))
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, mels: Tensor) -> Tensor:
        """Return logits of mel images."""
        x = self.normalise(mels.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x.mean(2)
        return self.head(x.amax(2) + x.mean(2))


def _block(before: int, after: int, *, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.AvgPool2d(2)] if pooled else []))


class SoundNetwork(nn.Module):
    """A network that reads mel images, on pictures of a `Hearing`.

    Where its maps lie on a picture, `MelBands` says.
    body: takes (B, 1, bands, T), gives logits. layers: of its modules, those that are read; None: what `Classifier`
    picks.
    """

    def __init__(self, hearing: Hearing, bands: int, body: nn.Module, *, layers: list[str] | None = None) -> None:
        super().__init__()
        self.mel, self.body = MelBands(hearing, bands), body
        self.layers = None if layers is None else [f"body.{layer}" for layer in layers]

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of pictures (B, 1, F, T)."""
        return self.body(self.mel(pictures))


def sound_network(name: str, hearing: Hearing, classes: int, *, pretrained: bool = False) -> SoundNetwork:
    """Build the network that `audio:NAME` names, on pictures of a `Hearing`, in eval mode; first weights are drawn.

    pretrained: timm's weights, for timm's networks. Errors: ValueError for another name or settings.
    """
    if match := _CNN14.fullmatch(name):
        if pretrained:
            raise ValueError("there are no pretrained weights of cnn14 here: train it, or give a file of weights")
        width, depth, bands = (int(match[key] or default) for key, default in _DEFAULTS.items())
        body = Cnn14(bands, classes, width=width, depth=depth)
        return SoundNetwork(hearing, bands, body, layers=[f"blocks.{block}" for block in range(depth)]).eval()
    if not (match := _TIMM.fullmatch(name)) or not timm.is_model(match["name"]):
        raise ValueError(
            f"no classifier of sounds audio:{name}: expected audio:cnn14, audio:cnn14-w16-d4-m40 (width, depth, mel "
            "bands), audio:timm/NAME or audio:timm/NAME-m80 with the name of a network of timm"
        )
    inner = timm.create_model(match["name"], pretrained=pretrained, num_classes=classes, in_chans=1)
    if vars(inner)["pretrained_cfg"].get("fixed_input_size"):
        raise ValueError(
            f"{match['name']} takes pictures of one size alone, and a mel image has as many columns as a sound has "
            "frames: take a convolutional network, such as audio:timm/resnet18"
        )
    stages = [f"network.{stage['module']}" for stage in vars(inner).get("feature_info", ())] or None
    vision = nn.Sequential(OrderedDict(normalise=nn.BatchNorm2d(1), network=inner))
    return SoundNetwork(hearing, int(match["bands"] or _BANDS), vision, layers=stages).eval()


_DEFAULTS = {"width": 64, "depth": 6, "bands": _BANDS}
