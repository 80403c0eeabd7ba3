"""Any image classifier, as the library sees it: pixels in [0, 1] go in, logits and feature maps come out.

    x -> (x - mean) / std -> network -> logits,   and the outputs of the named layers as maps (B, C, h, w)

All that touches a user's network stands in this folder: normalisation, reading layers, freezing. Layers are read by
forward hooks that live for one call; tokens and channels-last outputs come out as (B, C, h, w). A network
leaves every call as it entered: mode, gradients, hooks and device, also when the call fails. Calls of several threads
on one network wait for each other.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salmask.classifier.arguments import by_channel, check_readable, plain_options
from salmask.classifier.grids import Grid, ToMap
from salmask.classifier.hold import held, out_of_memory, without_checkpoints
from salmask.classifier.inputs import Inputs, check_channels, check_mean, check_pass, check_tensor
from salmask.classifier.layers import Layer, described_layers, pick_layers
from salmask.classifier.named import timm_network
from salmask.classifier.outputs import Outputs
from salmask.classifier.placing import check_field, check_straight, to_map_of
from salmask.classifier.probe import Probe
from salmask.classifier.tensors import tensor_of, with_tensor
from salmask.classifier.weights import fingerprint
from salmask.classifier.wrappers import Network, as_module, bare, find_layers, passed_through
from salmask.files import JSON
from salmask.types import Features, Images, Logits, Targets, size_of

__all__ = ["Classifier"]

Answers = Float[Tensor, "answers classes"]
"""Logits, a row for each image, unless a hook of the caller's has multiplied the batch."""

_SHOWN, _SURE = 2, 4  # pictures with which layers are tried, and outputs
_OF_SIZES = re.compile(r"size|shape|dimension|height|width|divisible|match", re.IGNORECASE)  # what torch and timm say


class Classifier(nn.Module):
    """A network with its normalisation and the layers that are read.

    network: any module that maps (B, C, H, W) to (B, K) logits, also in DataParallel, torch.compile or a wrapper of
        one's own; or a function or an ONNX session that does, with layers=[].
    mean, std: the network's normalisation of [0, 1] images, one number a channel; held as buffers.
    layers: names of modules, shallow to deep; None picks the last module of each resolution; [] reads none, for
        explainers that ask for logits alone.
    image_size: side of the square picture with which channels and strides are found out; image_width: its other side,
        where it is not square, as the frames of a spectrogram.
    outputs: what the network returns (`outputs.KINDS`); output: which entry of a tuple or a dictionary.
    inputs: name -> channels, of a network that reads several images of one scene: they are stacked along the channels
        in this order, and may be given as a dictionary of images by these names.
    prefix, grid: for tokens (B, N, C), how many stand before the picture's, and how many (rows, columns) those are;
        None asks the network.

    Publishes `channels`, `strides` (one an entry of `layers`), `num_classes`, `layers`, `channels_in`, and
    `differentiable`: whether gradients reach the pictures. Raises ValueError for unknown layers and for layers
    without spatial extent.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layers: Sequence[str] | None,
        image_size: int = 224,
        image_width: int | None = None,
        outputs: str = "auto",
        output: str | int | None = None,
        prefix: int | None = None,
        grid: Grid | None = None,
        inputs: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = as_module(network)
        layers, image_size, output, prefix, grid = plain_options(
            layers=layers, image_size=image_size, output=output, prefix=prefix, grid=grid
        )
        check_readable(self.network, layers)
        mean, std = by_channel("mean", mean), by_channel("std", std)
        check_mean(mean, std, self.network)
        self.inputs = None if inputs is None else Inputs.of(inputs)
        if self.inputs is not None and self.inputs.total != len(mean):
            raise ValueError(
                f"inputs {self.inputs.settings()} have {self.inputs.total} channels, mean and std are of {len(mean)}"
            )
        like = next(self.network.parameters(), torch.empty(0))
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean, device=like.device).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=like.device).view(shape), persistent=False)
        self.image_size, self.image_width, self.channels_in = image_size, image_width or image_size, len(mean)
        self.outputs, self._said, self._prefix, self._grid = Outputs(outputs, output), outputs, prefix, grid
        with self.frozen(), without_checkpoints():
            self._try_out()
            probe = Probe(self.network, self._asked, self._normalised(self._pictures(_SHOWN)), prefix, grid)
            self._choose(probe, layers)

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
        channels: int | None = None,
        **options: Any,  # those of the constructor, which checks them
    ) -> "Classifier":
        """Build a timm network with its own mean and std; transformers accept other sizes than their own.

        name: of timm, or `hf-hub:OWNER/NAME` of a timm network on the Hub.
        pretrained: timm's weights, from an installed package where one holds them (`imagenet.PACKAGES`), or the hub.
        checkpoint: a .safetensors or state-dict file; the number of classes is read from it where not given.
        layers: None reads five stages, shallow to deep (for a ResNet: maxpool, layer1 ... layer4).
        channels: that it reads; of other than three, `mean` and `std` must be given.
        options: of `Classifier`. Raises ValueError for unknown names and for weights that do not fit.
        """
        named = timm_network(
            name, pretrained=pretrained, num_classes=num_classes, checkpoint=checkpoint, channels=channels
        )
        return cls(named.network, layers=layers, **{**named.options(image_size), **options})

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> Answers:
        """Return the logits."""
        return self.logits(images)

    def logits(self, images: Tensor | Mapping[str, Tensor]) -> Answers:
        """Return the logits (B, K) of images in [0, 1], in float32. Errors: ValueError for values outside."""
        stacked = self.stacked(images)
        check_pass(stacked, self.channels_in)
        with self._of_this_size(stacked):
            return self.unbounded(stacked)

    @contextmanager
    def _of_this_size(self, images: Tensor) -> Iterator[None]:
        """Say what a network means that takes pictures of its own size alone."""
        try:
            yield
        except (RuntimeError, AssertionError) as error:  # of torch, of timm; any other is the network's own business
            same = size_of(images) == (self.image_size, self.image_width)
            if same or not _OF_SIZES.search(str(error)) or (isinstance(error, RuntimeError) and out_of_memory(error)):
                raise
            (rows, columns), first = size_of(images), next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"the network fails on pictures of {rows}x{columns} ({type(error).__name__}: {first}), and takes those "
                f"of {self.image_size}x{self.image_width}: bring them to a size that it takes"
            ) from error

    def stacked(self, images: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return images as one tensor, unchecked: of a dictionary by input, its images along the channels."""
        if not isinstance(images, Mapping):
            check_tensor(images)
            return images
        if self.inputs is None:
            raise ValueError(
                f"this classifier reads one image, got a dictionary of {', '.join(images)}: give the tensor, or say "
                "which channels are whose by Classifier(..., inputs={'rgb': 3, 'depth': 1})"
            )
        return self.inputs.stack(images)

    def spread(self, masks: Tensor) -> Tensor:
        """Return masks that broadcast to this classifier's images; one an input is spread over its channels."""
        if self.inputs is not None:
            return self.inputs.spread(masks)
        if not isinstance(masks, Tensor) or masks.ndim != 4 or masks.shape[1] != 1:
            got = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise ValueError(
                f"expected masks (B, 1, H, W) of a classifier of one image, got {got}: say which "
                "channels are whose by Classifier(..., inputs=...) to hide them apart"
            )
        return masks

    def unbounded(self, images: Tensor) -> Answers:
        """Return the logits of images whose values may leave [0, 1], as those of noisy or bicubic ones do."""
        with held(self.network):
            logits = self._asked(self._normalised(images))
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network tells {logits.shape[1]} classes apart, and did {self.num_classes} when its Classifier "
                "was built: build it again"
            )
        return logits

    def probabilities(self, logits: Logits) -> Tensor:
        """Return the probabilities (..., K) that logits mean: softmax, or the sigmoid of independent labels."""
        return self.outputs.probabilities(logits)

    def question(self, logits: Logits, targets: Targets) -> tuple[Float[Tensor, "batch answers"], Targets]:
        """Return logits and targets of what is asked of each picture: of independent labels, whether y is there."""
        return self.outputs.question(logits, targets)

    @property
    def multilabel(self) -> bool:
        """Whether each class is a label of its own, present or not."""
        return self.outputs.kind == "multilabel"

    def features(self, images: Images | Mapping[str, Tensor]) -> Features:
        """Return logits and one map (B, C, h, w) a layer, from one pass; differentiable, shallow to deep.

        Gradients of the logits with respect to the maps are right also where a network goes on in place.
        """
        images = self.stacked(images)
        logits, taps, _ = self._run(lambda: self.logits(images), clone=True)
        size = size_of(images)
        return Features(logits, [rule(tap, size) for rule, tap in zip(self._to_map, taps, strict=True)])

    @contextmanager
    def frozen(self) -> Iterator["Classifier"]:
        """Hold the network in eval mode with parameters that take no gradients; restore all of it after."""
        with held(self.network):
            modes = [(module, module.training) for module in self.network.modules()]
            wanted = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
            try:
                _to_eval(self.network)
                for parameter, _ in wanted:
                    parameter.requires_grad_(False)
                yield self
            finally:
                for module, mode in modes:
                    module.training = mode
                for parameter, want in wanted:
                    parameter.requires_grad_(want)

    def check_exclusive(self, what: str) -> None:
        """Raise ValueError where what needs one class a picture is asked of independent labels."""
        if self.multilabel:
            raise ValueError(
                f"{what} takes one class a picture, and this classifier's labels are independent: wrap the network so "
                "that it returns one label's logit, and give outputs='binary'"
            )

    @property
    def answers(self) -> int:
        """How many answers there are to what is asked of a picture: K classes, or there and not there."""
        return 2 if self.multilabel else self.num_classes

    def compiled(self) -> "Classifier":
        """Return a twin whose logits come from the compiled network (torch.compile); weights and state are shared.

        What is read inside, as `features` does, is not seen of a compiled network: ask this one for it.
        """
        twin = copy.copy(self)
        twin._modules = {**self._modules, "network": cast("nn.Module", torch.compile(self.network))}
        return twin

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of a hash of all weights and statistics; wrappers change nothing."""
        return fingerprint(bare(self.network))

    def reading(self) -> JSON:
        """Return what changes its answers beside the weights: mean and std, outputs, tokens."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(), **self.options()}

    def describe(self) -> tuple[Layer, ...]:
        """Return what is read: name, shape of the map and stride, at the classifier's own image size."""
        return tuple(
            Layer(name, (channels, *grid), (self.image_size / grid[0], self.image_width / grid[1]))
            for name, channels, grid in zip(self.layers, self.channels, self._grids, strict=True)
        )

    def options(self) -> JSON:
        """Return the options of outputs and tokens, given or detected, that are not the default."""
        usual = self._said == "auto" and self.outputs.kind == "logits"
        kinds: JSON = {"outputs": None if usual else self.outputs.kind, "output": self.outputs.entry}
        kinds |= {"prefix": self._prefix, "grid": self._grid}
        kinds["inputs"] = None if self.inputs is None else self.inputs.settings()
        return {name: value for name, value in kinds.items() if value is not None}

    def module_read(self, index: int) -> nn.Module:
        """Return the module that is read as layer number `index`."""
        return self._read[self.layers[index]]

    @property
    def device(self) -> torch.device:
        """Where the normalisation, and so the network, lives."""
        return self.mean.device

    def _normalised(self, images: Tensor) -> Tensor:
        like = next(self.network.parameters(), self.mean)
        return ((images.to(self.device) - self.mean) / self.std).to(like.dtype)

    def _asked(self, normalised: Tensor) -> Logits:
        return self.outputs.ask(self.network, normalised)

    def _pictures(self, count: int) -> Tensor:
        """Return grey, noise, its negative and a slope, as far as asked for: (count, C, height, width)."""
        shape = (self.channels_in, self.image_size, self.image_width)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        slope = torch.linspace(0, 1, self.image_width).expand(shape)
        return torch.stack([torch.full(shape, 0.5), noise, 1 - noise, slope][:count]).to(self.device)

    def _try_out(self) -> None:
        """Find out what comes out of the network, and whether gradients come back."""
        pictures = self._normalised(self._pictures(_SURE))
        try:
            self.outputs = self.outputs.settled(self.network, pictures.split(_SHOWN))
            with torch.inference_mode(False), torch.enable_grad():
                shown = pictures[:1].clone().requires_grad_()
                logits = self._asked(shown)
                slopes = (
                    torch.autograd.grad(logits.sum(), shown, allow_unused=True) if logits.requires_grad else (None,)
                )
            with torch.no_grad():
                again, beside = self._asked(pictures[:1]), self._asked(pictures[:_SHOWN])[:1]
        except (ValueError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            check_channels(self.network, self.channels_in)
            first = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"the network fails on pictures {tuple(pictures.shape)} ({type(error).__name__}: {first}): if it takes "
                "more than pictures, or other ones, wrap it in a module whose forward(pictures) returns logits (B, K)"
            ) from error
        self.num_classes, self.differentiable = logits.shape[1], slopes[0] is not None
        if not torch.allclose(logits, again, rtol=0.05, atol=1e-3, equal_nan=True):
            warnings.warn(
                "the network gives the same picture different logits each time, also in eval mode (dropout at work?): "
                "so will its maps be; switch off what it draws",
                stacklevel=3,
            )
        elif not _alike(again, beside):
            warnings.warn(
                "the network gives a picture other logits beside others than alone (a normalisation over the batch, "
                "also in eval mode?): so will its maps be; give it statistics of its own, as of BatchNorm2d with "
                "track_running_stats=True",
                stacklevel=3,
            )

    def _choose(self, probe: Probe, layers: Sequence[str] | None) -> None:
        if layers is not None:
            self._read_layers(probe, list(layers))
            return
        if (described := described_layers(self.network)) is not None:
            try:
                self._read_layers(probe, described)
            except ValueError:  # some name modules that they lack or never call
                pass
            else:
                if self._leads(probe):
                    return
        self._read_layers(probe, pick_layers(probe))

    def _leads(self, probe: Probe) -> bool:
        """Return whether the logits hang on the deepest layer that is read, as far as gradients tell."""
        with torch.inference_mode(False), torch.enable_grad():
            shown = probe.pictures[:1].clone().requires_grad_()
            logits, taps, _ = self._run(lambda: self._asked(shown), clone=True)
            if not logits.requires_grad or not taps[-1].requires_grad:
                return True
            weights = torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
            return torch.autograd.grad((logits * weights).sum(), taps[-1], allow_unused=True)[0] is not None

    def _read_layers(self, probe: Probe, names: list[str]) -> None:
        self._read = find_layers(self.network, names)
        self.layers = tuple(self._read)
        self._clone = [False] * len(self.layers)
        with torch.no_grad():
            _, taps, self._clone = self._run(lambda: self._asked(probe.pictures), clone=False)
        maps: list[Tensor] = []
        self._to_map: list[ToMap] = []
        for name, tap in zip(self.layers, taps, strict=True):
            rule = to_map_of(probe, name, tap, [(m.shape[2], m.shape[3]) for m in maps])
            check_straight(probe, name, rule)
            self._to_map.append(rule)
            maps.append(rule(tap, probe.size))
        check_field(probe, *(dict(zip(self.layers, tensors, strict=True)) for tensors in (taps, maps)))
        self.channels = tuple(m.shape[1] for m in maps)
        self._grids = tuple((m.shape[2], m.shape[3]) for m in maps)
        self.strides = tuple(round(self.image_size / m.shape[2]) for m in maps)

    def _run(self, ask: Callable[[], Tensor], *, clone: bool) -> tuple[Tensor, list[Tensor], list[bool]]:
        """Return logits, the raw outputs of the layers, and which of them the network changed in place."""
        taken: dict[str, Tensor] = {}
        versions: dict[str, int] = {}

        def reader(name: str, index: int) -> Callable[..., object]:
            def hook(module: nn.Module, inputs: object, output: object) -> object:
                tap = tensor_of(output)
                if tap is None:
                    raise ValueError(f"layer {name!r} returns no tensor but {type(output).__name__}: name another one")
                taken[name] = tap
                if clone and self._clone[index]:  # the network goes on with a copy, so that the tap stays what it was
                    return with_tensor(output, tap.clone())
                versions[name] = _version(tap)
                return None

            return hook

        hooks = []
        with held(self.network):
            try:
                for index, (name, module) in enumerate(self._read.items()):
                    hooks.append(module.register_forward_hook(reader(name, index)))
                with passed_through(self.network):
                    logits = ask()
            finally:
                for hook in hooks:
                    hook.remove()
        missing = [name for name in self.layers if name not in taken]
        if missing:
            raise ValueError(f"the network's forward pass never calls layer {missing[0]!r}: name another one")
        modified = [not clone and _version(taken[name]) != versions[name] for name in self.layers]
        return logits, [taken[name] for name in self.layers], modified


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two rows of logits are the same but for what other kernels make of the same numbers."""
    scale = float(one.abs().nan_to_num().median())
    return torch.allclose(one, other, rtol=0.05, atol=0.05 * scale + 1e-3, equal_nan=True)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those of inference mode count no changes


def _to_eval(network: nn.Module) -> None:
    try:
        network.eval()
    except NotImplementedError:  # torch.export bakes the mode in, and refuses to be asked
        for module in network.modules():
            module.training = False
