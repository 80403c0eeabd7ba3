"""Any image classifier, as the library sees it: pixels in [0, 1] go in, logits and feature maps come out.

    x -> (x - mean) / std -> network -> logits,   and the outputs of the named layers as maps (B, C, h, w)

All that touches a user's network stands here: normalisation, reading layers, freezing. Layers are read by
forward hooks that live for one call; tokens and channels-last outputs come out as (B, C, h, w). A network
leaves every call as it entered: mode, gradients, hooks and device, also when the call fails.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Self

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from salmask.files import fingerprint
from salmask.types import Features, Images, Logits

__all__ = ["Classifier", "at_once", "load_weights", "pick_layers"]

_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_RESNET = {"maxpool", "layer1", "layer2", "layer3", "layer4"}

_SHOWN = 2  # pictures with which a network is tried
_CACHED = 10 * 224 * 224  # pixels: the widest maps of a resnet50 stay below 32 MiB, which the allocator keeps

ToMap = Callable[[Tensor, tuple[int, int]], Tensor]


def at_once(images: Images, most: int) -> int:
    """Return how many pictures of this size go through a network in one pass: at most `most`.

    On a CPU no more than its caches bear: the feature maps of 32 pictures of 224x224 fall out of them again.
    """
    if images.device.type != "cpu":
        return most
    return min(most, max(1, _CACHED // (images.shape[-2] * images.shape[-1])))


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


def pick_layers(classifier: Classifier, picture: Images) -> list[str]:
    """Choose layers of a network that names none: the last module of each of the five deepest resolutions.

    Modules that are used several times are passed over, for only their last call could be read, and so is pooling
    to a fixed size. A network of one resolution (a plain transformer) gives five of its repeated blocks instead.
    """
    if {name for name, _ in classifier.network.named_children()} >= _RESNET:
        return sorted(_RESNET, key=lambda name: (name != "maxpool", name))
    seen: list[tuple[str, tuple[int, ...]]] = []
    hooks = []
    for name, module in classifier.network.named_modules():
        if name.count(".") <= 1 and name and not isinstance(module, _FIXED_SIZE):

            def hook(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim in (3, 4):
                    seen.append((name, tuple(output.shape)))

            hooks.append(module.register_forward_hook(hook))
    try:
        classifier.logits(picture)
    finally:
        for handle in hooks:
            handle.remove()
    last: dict[tuple[int, ...], str] = {}
    calls = Counter(name for name, _ in seen)
    for name, shape in seen:
        grid = _grid_of(shape)
        if grid is not None and max(grid) > 1 and calls[name] == 1:
            last.pop(grid, None)
            last[grid] = name
    names = list(last.values())
    if len(names) < 3:
        names = _repeated(classifier.network) or names
    if not names:
        raise ValueError("no layer of the network has a spatial extent: give `layers` by module name")
    return names[-5:]


def _grid_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) == 3:
        side = isqrt(shape[1])
        return (side, side) if side > 1 else None
    if shape[2] == shape[3]:
        return shape[2:]
    return shape[1:3] if shape[1] == shape[2] else None


def _repeated(network: nn.Module) -> list[str]:
    """Return five of the longest run of blocks, evenly spread, the last one among them."""
    runs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    name, blocks = max(runs, key=lambda run: len(run[1]), default=("", nn.Sequential()))
    count = len(blocks)
    chosen = sorted({max(0, round(count * k / 5) - 1) for k in range(1, 6)}) if count > 2 else []
    children = [child for child, _ in blocks.named_children()]
    return [f"{name}.{children[k]}" if name else children[k] for k in chosen]


def _timm_layers(network: nn.Module) -> list[str] | None:
    """Five taps of a timm network, shallow to deep; None where it does not describe itself."""
    described = getattr(network, "feature_info", None)
    if not described:
        return None
    names = [stage["module"] for stage in described]
    if len({stage["reduction"] for stage in described}) == 1:
        return _repeated(network)
    children = dict(network.named_children())
    if children.keys() >= _RESNET:
        names[0] = "maxpool"  # the paper's layer 0 (Phang et al., 2020), not the activation before it
    if len(names) == 4:
        names = [stem for stem in ("stem", "patch_embed") if stem in children][:1] + names
    return names[-5:]


def _flexible(name: str, **options: Any) -> nn.Module:
    """Build a timm network that takes other image sizes than its own, where its family can."""
    wishes: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
    for extra in wishes:
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError:
            continue
    return timm.create_model(name, **options)


def _classes_in(weights: dict[str, Tensor], name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    head = config.classifier if config is not None else None
    head = head[0] if isinstance(head, tuple) else head
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in weights:
            return weights[key].shape[0]
    raise ValueError(f"the weights hold no {head}.weight, the classifying layer of {name}: is it another network?")


def _find(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or not name:
            near = get_close_matches(name, modules, 3) or [n for n in modules if n and "." not in n][:8]
            raise ValueError(f"the network has no layer {name!r}; near: {', '.join(near)}")
    return [modules[name] for name in names]


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


def _map_rule(name: str, tap: Tensor, network: nn.Module, size: int) -> ToMap:
    """Find out how a layer's output lies, from its shape on a square picture, and return what turns it."""
    shape = tuple(tap.shape)
    if shape[:1] != (_SHOWN,):  # tokens within patches, for one
        raise ValueError(f"layer {name!r} mixes pictures: expected {_SHOWN} maps for {_SHOWN} pictures, came {shape}")
    told_last = getattr(network, "output_fmt", None) == "NHWC" and len({*shape[1:]}) == 1
    if tap.ndim == 4 and shape[2] == shape[3] and shape[2] > 1 and not told_last:
        return lambda tap, at: tap
    if tap.ndim == 4 and shape[1] == shape[2] and shape[1] > 1:
        return lambda tap, at: tap.permute(0, 3, 1, 2)
    if tap.ndim == 3:
        told = getattr(network, "num_prefix_tokens", None)  # which some networks add behind their first blocks only
        for prefix in (shape[1] - isqrt(shape[1]) ** 2,) if told is None else (told, 0):
            side = isqrt(max(0, shape[1] - prefix))
            if side > 1 and side * side + prefix == shape[1]:
                return _token_rule(prefix, size / side)
    raise ValueError(
        f"layer {name!r} has no spatial extent: expected (B, C, h, w), (B, h, w, C) or tokens of a square grid, "
        f"came {shape} for a picture of {size}x{size}; name an earlier layer"
    )


def _token_rule(prefix: int, stride: float) -> ToMap:
    def to_map(tap: Tensor, at: tuple[int, int]) -> Float[Tensor, "batch channels rows columns"]:
        rows, columns = round(at[0] / stride), round(at[1] / stride)
        tokens = tap[:, prefix:]
        if rows * columns != tokens.shape[1]:  # a network with a fixed grid of its own
            rows = columns = isqrt(tokens.shape[1])
        if rows * columns != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens do not tile a picture of {at[0]}x{at[1]}")
        return tokens.transpose(1, 2).reshape(len(tap), -1, rows, columns)

    return to_map
