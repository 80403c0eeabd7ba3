"""The masker: feature maps in, one mask out, in one pass.

    z = conv3x3( concat_k up( relu( bn( conv1x1( F_k )))))      logits on a grid of stride 4
    m = up( head(z) )                                           (B, 1, H, W) in [0, 1]

F_k are the classifier's maps, shallow to deep. Each layer that is read is projected to `width` channels and
enlarged bilinearly to the grid; layer 0 joins raw, unless it is the only one. Source: Phang, Park & Geras
(2020), after Zolna, Geras & Cho (2018). For a resnet50, layers 3 and 4 cost 198,017 parameters.

A head turns logits into masks: `Sigmoid`, or `Concrete` for binary masks (Gumbel-softmax). Conditioning adds
constant channels to every layer that is read: a target area, or an embedding of a class.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.branches import deepest_of_branches
from salmask.classifier.hub import OnHub, saved_at
from salmask.classifier.weights import (
    fingerprint,
    load_module,
    read_config,
)
from salmask.files import JSON, Facts, Maybe, Several, Within, Word, plain_arguments
from salmask.types import FeatureMap, Masks

__all__ = ["HEADS", "Concrete", "Masker", "Sigmoid"]

CLASS_CHANNELS = 64


class Sigmoid(nn.Module):
    """m = 1 / (1 + exp(-z)): soft masks."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return masks for logits of any shape, in float32.

        In bfloat16 a sigmoid is exactly 1, with a gradient of exactly 0, from z = 6.24: a full cell could never
        become empty again.
        """
        return logits.float().sigmoid()

    def settings(self) -> JSON:
        """Return what `config.json` needs to build this head again."""
        return {"head": "sigmoid"}


class Concrete(nn.Module):
    """Binary masks by the concrete relaxation of a Bernoulli variable (Jang et al., 2017; Maddison et al., 2017).

    Training: s = sigmoid((z + log u - log(1 - u)) / t), u ~ U(0, 1) a pixel; `hard` returns 1[s > 1/2] with the
    gradient of s. Evaluation: 1[z > 0].
    temperature: t > 0; `learnable` makes log t a parameter. generator: where u is drawn from in training.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        hard: bool = True,
        learnable: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"expected a temperature > 0, got {temperature}")
        self.hard, self.learnable, self.start, self.generator = hard, learnable, temperature, generator
        log_temperature = torch.tensor(math.log(temperature))
        if learnable:
            self.log_temperature: Tensor = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)

    def forward(self, logits: Tensor) -> Tensor:
        """Return masks for logits of any shape."""
        if not self.training:
            return (logits > 0).to(logits.dtype)
        if self.generator is None:
            raise ValueError("Concrete draws noise in training: give it a torch.Generator (`head.generator = g`)")
        u = torch.rand(logits.shape, generator=self.generator, device=self.generator.device).to(logits.device)
        noisy = logits.float() + torch.log(u + 1e-8) - torch.log1p(1e-8 - u)
        soft = (noisy / self.log_temperature.exp()).sigmoid()
        return soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if self.hard else soft

    def settings(self) -> JSON:
        """Return what `config.json` needs to build this head again."""
        return {"head": "concrete", "temperature": self.start, "hard": self.hard, "learnable": self.learnable}


HEADS: Mapping[str, type[nn.Module]] = MappingProxyType({"sigmoid": Sigmoid, "concrete": Concrete})
"""Heads by the name that `config.json` gives them."""


_SIZE = Within(1, 1_000_000)
_OPTIONS = ("temperature", "hard", "learnable")  # of a head
_CONFIG = {
    "channels": Several(_SIZE, 1, 64),
    "strides": Several(Within(0, 1_000_000), 1, 64),  # 0 of a map that is finer than the picture
    "layers": Several(Within(-64, 63), 1, 64),
    "width": _SIZE,
    "stride": Within(1, 4096),
    "upsample": Word("nearest", "bilinear"),
    "area_condition": bool,
    "classes": Maybe(_SIZE),
    "masks?": Within(1, 64),
    "classifier": Maybe(str),
    "head": Word(*HEADS),
    "temperature?": Within(1e-6, 1e6, whole=False),
    "hard?": bool,
    "learnable?": bool,
}


_GIVEN = {**_CONFIG, "channels": Several(_SIZE, 0, 64), "strides": [Within(0, 1_000_000)], "masks": _CONFIG["masks?"]}
_GIVEN["layers"] = Maybe(Several(Within(-64, 63), 0, 64))


class Masker(nn.Module, OnHub):
    """A small decoder that reads a classifier's maps and returns masks for the whole batch.

    channels, strides: of every map that will be handed over, as the classifier publishes them.
    layers: which of them are read, by index (negative from the deepest); None: the two deepest, (3, 4) of the paper's
        five. width: channels after projection.
    stride: pixels a cell of the grid on which the mask is made. upsample: "nearest" or "bilinear", grid to picture.
    area_condition: expect a target area per image. classes: number of classes, to expect a class per image.
    masks: how many a picture: one, or one for each input of a classifier that reads several.
    classifier: fingerprint of the classifier that it was trained beside, kept in `config.json`.
    generator: where the initial weights are drawn from (torch's global one if None).
    """

    FORMAT: ClassVar[str] = "salmask masker 1"
    SHAPE: ClassVar[Facts] = MappingProxyType(_CONFIG)

    def __init__(  # noqa: PLR0913  (what config.json holds)
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        width: int = 64,
        stride: int = 4,
        upsample: str = "nearest",
        head: nn.Module | None = None,
        area_condition: bool = False,
        classes: int | None = None,
        masks: int = 1,
        classifier: str | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        named: JSON = {"channels": channels, "strides": strides, "layers": layers, "width": width, "stride": stride}
        named |= {"upsample": upsample, "area_condition": area_condition, "classes": classes, "masks": masks}
        given = plain_arguments("a Masker", {name: _GIVEN[name] for name in named}, **named)
        self.channels, self.strides = tuple(given["channels"]), tuple(given["strides"])
        if len(self.channels) != len(self.strides):
            raise ValueError(f"expected channels and strides of the same maps, got {self.channels} and {self.strides}")
        if head is not None and not isinstance(head, nn.Module):
            raise ValueError(f"expected a head such as Sigmoid() or Concrete(...), got {head!r}")
        self.layers = _resolve(given["layers"], len(self.channels))
        self.masks, classes = given["masks"], given["classes"]
        self.width, self.stride, self.upsample_mode = given["width"], given["stride"], upsample
        self.area_condition, self.classes, self.classifier = area_condition, classes, classifier
        self._build(int(area_condition) + (CLASS_CHANNELS if classes else 0))
        if self.final.out_channels != masks:
            raise ValueError(
                f"this kind of masker makes one mask a picture, asked for are {masks}: take the decoder 'projected'"
            )
        self.embedding = nn.Embedding(classes, CLASS_CHANNELS) if classes else None
        self.head = head if head is not None else Sigmoid()
        self._initialise(generator)

    def _build(self, extra: int) -> None:
        """Make the layers that turn maps into logits; extra: channels of conditions that join each map."""
        raw = 0 if len(self.layers) > 1 else None
        self.projections = nn.ModuleDict(
            {
                str(layer): nn.Sequential(
                    nn.Conv2d(self.channels[layer] + extra, self.width, 1, bias=False),
                    nn.BatchNorm2d(self.width),
                    nn.ReLU(),
                )
                for layer in self.layers
                if layer != raw
            }
        )
        joined = sum(self.width if layer != raw else self.channels[layer] + extra for layer in self.layers)
        self.final: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(joined, self.masks, 3, padding=1)

    @classmethod
    def for_classifier(cls, classifier: Classifier, layers: Sequence[int] | None = None, **options: Any) -> "Masker":
        """Build a masker sized from a classifier's channels and strides; `options` as in the constructor.

        layers: None: the two deepest, of each network where there is one an input.
        """
        if layers is None and len(deepest_of_branches(classifier)) > 1:
            layers = deepest_of_branches(classifier, 2)
        return cls(
            classifier.channels,
            classifier.strides,
            layers=layers,
            classifier=options.pop("fingerprint", None) or classifier.fingerprint(),
            **options,
        )

    def forward(
        self,
        maps: Sequence[FeatureMap],
        size: tuple[int, int],
        *,
        areas: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Masks:
        """Return masks (B, `masks`, *size) in [0, 1] for all of a classifier's maps.

        areas: (B,) target areas, for a masker with `area_condition`; targets: (B,) classes, for one with `classes`.
        """
        return self.enlarge(self.small(maps, size, areas=areas, targets=targets), size)

    def small(
        self,
        maps: Sequence[FeatureMap],
        size: tuple[int, int],
        *,
        areas: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Float[Tensor, "batch masks rows columns"]:
        """Return masks on the masker's own grid, (B, `masks`, ceil(H / stride), ceil(W / stride))."""
        return self.head(self.logits(maps, size, areas=areas, targets=targets))

    def logits(
        self,
        maps: Sequence[FeatureMap],
        size: tuple[int, int],
        *,
        areas: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Float[Tensor, "batch masks rows columns"]:
        """Return the logits z on the masker's own grid, before the head."""
        self._check(maps, areas, targets)
        _check_size(size)
        rest = self.stride - 1  # rounded up without a negative number, whose quotients ONNX rounds the other way
        grid = ((size[0] + rest) // self.stride, (size[1] + rest) // self.stride)
        conditions = self._conditions(areas, targets)
        read = [maps[layer] for layer in self.layers]
        if not torch.is_autocast_enabled(read[0].device.type):  # of networks in half or in double precision
            read = [x.to(self.final.weight.dtype) for x in read]
        if conditions is not None:
            read = [torch.cat([x, conditions.to(x.dtype).expand(-1, -1, *x.shape[-2:])], 1) for x in read]
        return self._decode(read, grid)

    def _decode(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, "batch masks rows columns"]:
        """Return the logits z on a grid, from the maps that are read."""
        joined = []
        for layer, x in zip(self.layers, maps, strict=True):
            own = self.projections[str(layer)](x) if str(layer) in self.projections else x
            joined.append(_resized(own, grid, "bilinear"))
        return self.final(torch.cat(joined, 1))

    def enlarge(self, small: Float[Tensor, "batch masks rows columns"], size: tuple[int, int]) -> Masks:
        """Bring masks from the grid to the picture, by the masker's `upsample`; in float32."""
        return _resized(small.float(), size, self.upsample_mode)

    def zoom(self, size: tuple[int, int]) -> int | None:
        """Pixels a cell where enlarging is plain repetition, so that area and variation are exact on the grid."""
        whole = size[0] % self.stride == 0 and size[1] % self.stride == 0
        return self.stride if whole and self.upsample_mode == "nearest" else None

    def fits(self, classifier: Classifier) -> None:
        """Raise ValueError where a classifier's maps are not those that this masker reads."""
        for what in ("channels", "strides"):
            own, given = getattr(self, what), tuple(getattr(classifier, what))
            if own != given:
                raise ValueError(
                    f"the masker reads maps with {what} {own}, the classifier gives {given}: "
                    "use the classifier that it was trained beside, or train a masker for this one"
                )
        inputs = 1 if classifier.inputs is None else len(classifier.inputs)
        if self.masks not in (1, inputs):
            raise ValueError(
                f"the masker makes {self.masks} masks a picture, the classifier has {inputs} input"
                f"{'s' * (inputs > 1)}: use the classifier that it was trained beside, or train a masker for this one"
            )

    def settings(self) -> JSON:
        """Return the JSON-able settings that `config.json` holds."""
        return {
            "format": self.FORMAT,
            "channels": self.channels,
            "strides": self.strides,
            "layers": self.layers,
            "width": self.width,
            "stride": self.stride,
            "upsample": self.upsample_mode,
            "area_condition": self.area_condition,
            "classes": self.classes,
            **({} if self.masks == 1 else {"masks": self.masks}),
            "classifier": self.classifier,
            **self.head.settings(),  # type: ignore[operator]
        }

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of a hash of all weights and statistics."""
        return fingerprint(self)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, *, revision: str | None = None, **download: object
    ) -> "Masker":
        """Load a masker from a folder or a hub id ("owner/name"), in eval mode.

        download: of `huggingface_hub.hf_hub_download`: token, cache_dir, local_files_only, force_download.
        Raises FileNotFoundError for a folder without its two files, ValueError for files of something else.
        """
        config, weights = saved_at(source, "masker", revision=revision, **download)
        shape = {"format": Word(cls.FORMAT), **cls.SHAPE}
        settings = _with_head(read_config(config, shape, "masker"), config)
        return load_module(lambda: cls(**{**settings, "head": settings["head"]()}), config, weights)

    @torch.no_grad()
    def _initialise(self, generator: Generator | None) -> None:
        if self.final.weight.is_meta:  # built for its shapes alone
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                module.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.weight[0].numel())
                    module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1, generator=generator)

    def _conditions(self, areas: Tensor | None, targets: Tensor | None) -> Tensor | None:
        parts = []
        if areas is not None and self.area_condition:
            parts.append(areas.to(self.final.weight)[:, None])
        if targets is not None and self.embedding is not None:
            parts.append(self.embedding(targets))
        return torch.cat(parts, 1)[:, :, None, None] if parts else None

    def _check(self, maps: Sequence[Tensor], areas: Tensor | None, targets: Tensor | None) -> None:
        given = tuple(m.shape[1] for m in maps)
        if given != self.channels:
            raise ValueError(
                f"the masker reads maps with channels {self.channels}, got {given}: "
                "hand over all maps of the classifier that it was made for"
            )
        if self.area_condition != (areas is not None):
            raise ValueError(
                "this masker is conditioned on an area: give `areas` (B,) in [0, 1]"
                if self.area_condition
                else "this masker is not conditioned on an area: leave `areas` out"
            )
        if self.embedding is not None and targets is None:
            raise ValueError("this masker is conditioned on a class: give `targets` (B,)")


def _resolve(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if not count:
        raise ValueError("a masker reads layers, and the classifier reads none (layers=[]): name layers in Classifier")
    if layers is None:
        return tuple(range(max(0, count - 2), count))
    resolved = tuple(sorted({layer + count if layer < 0 else layer for layer in layers}))
    if not resolved or resolved[0] < 0 or resolved[-1] >= count:
        raise ValueError(f"layers {tuple(layers)} do not exist: the classifier gives maps 0 ... {count - 1}")
    return resolved


def _check_size(size: object) -> None:
    """Raise ValueError for what is no height and width, in whole pixels."""
    if torch.compiler.is_exporting():  # a graph holds for any size
        return
    whole = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Integral) for side in size)
    if not isinstance(size, Sequence) or not whole or min(size) < 1:
        raise ValueError(f"expected the size of the pictures as (height, width) in pixels, got {size!r}")


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if not torch.compiler.is_exporting() and x.shape[-2:] == torch.Size(size):  # a graph holds for any size
        return x
    if mode == "nearest":
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _with_head(settings: JSON, path: Path) -> JSON:
    """Return settings with the head that they name in place of its own, as what builds it."""
    head = HEADS[settings["head"]]
    options = {key: settings[key] for key in _OPTIONS if key in settings}
    if options and head is Sigmoid:
        raise ValueError(f"{path}, {next(iter(options))}: expected it with the head 'concrete' alone")
    return {key: value for key, value in settings.items() if key not in _OPTIONS} | {"head": partial(head, **options)}
