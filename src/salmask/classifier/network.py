"""Any image classifier, as the library sees it: pixels in [0, 1] go in, logits and feature maps come out.

    x -> (x - mean) / std -> network -> logits,   and the outputs of the named layers as maps (B, C, h, w)

All that touches a user's network stands here: normalisation, reading layers, freezing. Layers are read by
forward hooks that live for one call; tokens and channels-last outputs come out as (B, C, h, w). A network
leaves every call as it entered: mode, gradients, hooks and device, also when the call fails.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from salmask.classifier.layers import _SHOWN, ToMap, _find, _map_rule, _timm_layers, pick_layers
from salmask.classifier.weights import _classes_in, fingerprint, fit_weights, load_weights
from salmask.types import Features, Images, Logits

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """A network with its normalisation and the layers that are read.

    network: any module that maps (B, 3, H, W) to (B, K) logits; outputs with `.logits`, dicts with a key
        "logits" and tuples (the first entry) are understood.
    mean, std: the network's normalisation of [0, 1] images; held as buffers.
    layers: names of modules, shallow to deep; None picks the last module of each resolution.
    image_size: side of the square picture with which channels and strides are found out.

    Publishes `channels`, `strides` (one an entry of `layers`), `num_classes` and `layers`.
    Raises ValueError for unknown layers and for layers without spatial extent.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layers: Sequence[str] | None,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.network = network
        like = next(network.parameters(), torch.empty(0))
        self.register_buffer("mean", torch.tensor(mean, device=like.device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=like.device).view(1, 3, 1, 1), persistent=False)
        self.image_size = image_size
        picture = torch.full((_SHOWN, 3, image_size, image_size), 0.5, device=like.device)
        picture[1] = torch.rand(3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        with self.frozen(), torch.no_grad():
            if layers is None:
                layers = pick_layers(self, picture)
            self.layers = tuple(layers)
            self._modules_read = _find(network, self.layers)
            logits, taps, modified = self._run(picture, clone=False)
        self.num_classes = _classes_of(logits)
        self._clone = modified
        self._to_map: list[ToMap] = []
        for name, tap in zip(self.layers, taps, strict=True):
            self._to_map.append(_map_rule(name, tap, network, image_size))
        maps = [rule(tap, (image_size, image_size)) for rule, tap in zip(self._to_map, taps, strict=True)]
        self.channels = tuple(m.shape[1] for m in maps)
        self.strides = tuple(round(image_size / m.shape[2]) for m in maps)

    @classmethod
    def from_timm(
        cls,
        name: str,
        *,
        pretrained: bool,
        num_classes: int | None = None,
        checkpoint: str | Path | None = None,
        layers: Sequence[str] | None = None,
        image_size: int | None = None,
    ) -> Self:
        """Build a timm network with its own mean and std; transformers accept other sizes than their own.

        checkpoint: a .safetensors or state-dict file; the number of classes is read from it where not given.
        layers: None reads five stages, shallow to deep (for a ResNet: maxpool, layer1 ... layer4).
        Raises ValueError for unknown names and for weights that do not fit.
        """
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), 3)
            raise ValueError(f"timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
        weights = None if checkpoint is None else load_weights(checkpoint)
        if weights is not None and num_classes is None:
            num_classes = _classes_in(weights, name)
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        network = _flexible(name, pretrained=pretrained and weights is None, **options)
        if weights is not None:
            fit_weights(network, weights, f"{name} from {checkpoint}")
        config = timm.data.resolve_model_data_config(network)
        size = image_size or config["input_size"][-1]
        build = partial(cls, network.eval(), mean=config["mean"], std=config["std"], image_size=size)
        if layers is None and (described := _timm_layers(network)) is not None:
            with suppress(ValueError):  # some are described by names of modules that they lack or never call
                return build(layers=described)
        return build(layers=layers)

    def forward(self, images: Images) -> Logits:
        """Return the logits."""
        return self.logits(images)

    def logits(self, images: Images) -> Logits:
        """Return the logits (B, K) of images in [0, 1], in float32."""
        return _as_logits(self.network(self._normalised(images)))

    def features(self, images: Images) -> Features:
        """Return logits and one map (B, C, h, w) a layer, from one pass; differentiable, shallow to deep.

        Gradients of the logits with respect to the maps are right also where a network goes on in place.
        """
        logits, taps, _ = self._run(images, clone=True)
        size = (images.shape[-2], images.shape[-1])
        return Features(logits, [rule(tap, size) for rule, tap in zip(self._to_map, taps, strict=True)])

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """Hold the network in eval mode with parameters that take no gradients; restore all of it after."""
        modes = [(module, module.training) for module in self.network.modules()]
        wanted = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        try:
            self.network.eval()
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield self
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, want in wanted:
                parameter.requires_grad_(want)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of a hash of all weights and statistics."""
        return fingerprint(self.network)

    @property
    def device(self) -> torch.device:
        """Where the normalisation, and so the network, lives."""
        return self.mean.device

    def _normalised(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), came {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"expected float images in [0, 1], came {images.dtype}: divide 8-bit pictures by 255")
        like = next(self.network.parameters(), self.mean)
        return ((images.to(self.device) - self.mean) / self.std).to(like.dtype)

    def _run(self, images: Tensor, *, clone: bool) -> tuple[Tensor, list[Tensor], list[bool]]:
        """Return logits, the raw outputs of the layers, and which of them the network changed in place."""
        taken: dict[str, Tensor] = {}
        versions: dict[str, int] = {}

        def reader(name: str, index: int) -> Callable[..., Any]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
                tap = output if isinstance(output, Tensor) else output[0]
                taken[name] = tap
                if clone and self._clone[index]:  # the network goes on with a copy, so that the tap stays what it was
                    return tap.clone() if tap is output else type(output)([tap.clone(), *output[1:]])
                versions[name] = 0 if tap.is_inference() else tap._version
                return None

            return hook

        hooks = [
            module.register_forward_hook(reader(name, index))
            for index, (name, module) in enumerate(zip(self.layers, self._modules_read, strict=True))
        ]
        try:
            logits = self.logits(images)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in self.layers if name not in taken]
        if missing:
            raise ValueError(f"the network's forward pass never calls layer {missing[0]!r}: name another one")
        modified = [not clone and taken[name]._version != versions[name] for name in self.layers]
        return logits, [taken[name] for name in self.layers], modified


def _flexible(name: str, **options: Any) -> nn.Module:
    """Build a timm network that takes other image sizes than its own, where its family can."""
    wishes: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
    for extra in wishes:
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError:
            continue
    return timm.create_model(name, **options)


def _as_logits(output: Any) -> Tensor:
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"expected logits (B, K) from the network, came {type(output).__name__}")
    return output.float()


def _classes_of(logits: Tensor) -> int:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"expected logits (B, K) with K >= 2 classes, the network returned {tuple(logits.shape)}; "
            "wrap a network with one logit z so that it returns (0, z)"
        )
    return logits.shape[1]
