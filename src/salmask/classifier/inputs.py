"""What goes into a classifier: pictures in [0, 1] with as many channels as it has a mean for.

Several images of one scene (colour, depth) are stacked along the channels; `Inputs` says which channels are whose. So
images stay one tensor everywhere, and a mask for each input is spread over that input's channels where it is played.

A look at the values of pictures on an accelerator waits for it. What makes many passes of a batch therefore looks once,
at its entry (`checked`); a pass on its own looks itself. On a CPU, where a look costs little, every pass looks.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf, isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salmask.files import JSON, Within, plain_arguments
from salmask.types import Images, in_colour, size_of

__all__ = [
    "MOST_CHANNELS",
    "Inputs",
    "check_channels",
    "check_count",
    "check_images",
    "check_mean",
    "check_pass",
    "check_tensor",
    "checked",
]

_ROUNDING = 1e-3
_DARK = 1.001 / 255
MOST_CHANNELS = 1024
_ENTERED: ContextVar[bool] = ContextVar("entered", default=False)  # a thread's own, as the passes are


@dataclass(frozen=True)
class Inputs:
    """Several images of one scene, stacked: {"rgb": (B, 3, H, W), "depth": (B, 1, H, W)} <-> (B, 4, H, W).

    names, channels: of each input, in the order in which they are stacked.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]

    @classmethod
    def of(cls, channels: Mapping[str, int]) -> "Inputs":
        """Return the inputs of these names and numbers of channels. Errors: ValueError for none, or no channel."""
        shape = {"inputs": {str: Within(1, MOST_CHANNELS)}}
        named: JSON = plain_arguments("a classifier", shape, inputs=channels)["inputs"]
        if not named or not all(isinstance(name, str) for name in named):
            raise ValueError(f"inputs are names with at least one channel each, got {named}")
        return cls(tuple(named), tuple(named.values()))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def total(self) -> int:
        """Channels of all inputs together."""
        return sum(self.channels)

    def settings(self) -> dict[str, int]:
        """Return name -> channels, as `of` takes it."""
        return dict(zip(self.names, self.channels, strict=True))

    def stack(self, images: Mapping[str, Tensor]) -> Images:
        """Return the images of all inputs as one tensor.

        Errors: ValueError for other names, another number of channels, and sizes or batches that differ.
        """
        if set(images) != set(self.names):
            raise ValueError(
                f"expected images of the inputs {', '.join(self.names)}, got {', '.join(images) or 'none'}"
            )
        first = images[self.names[0]]
        for name, count in self.settings().items():
            own = images[name]
            if own.ndim != 4 or own.shape[1] != count:
                raise ValueError(f"expected images of {name!r} of shape (B, {count}, H, W), got {tuple(own.shape)}")
            if len(own) != len(first) or size_of(own) != size_of(first):
                raise ValueError(
                    f"inputs show one scene at one size: {self.names[0]!r} is {tuple(first.shape)}, {name!r} is "
                    f"{tuple(own.shape)}; resize them to one size first"
                )
        return torch.cat([images[name] for name in self.names], 1)

    def split(self, images: Images) -> dict[str, Tensor]:
        """Return the images of each input by name."""
        return dict(zip(self.names, images.split(list(self.channels), 1), strict=True))

    def spread(self, masks: Tensor) -> Tensor:
        """Return masks that broadcast to the stacked images: one for all inputs (B, 1, H, W), or one an input.

        (B, K, H, W) becomes (B, C, H, W): each mask stands at the channels of its input.
        """
        if masks.shape[1] == 1:
            return masks
        if masks.shape[1] != len(self):
            raise ValueError(
                f"expected one mask for all inputs or one for each of {', '.join(self.names)}, got {masks.shape[1]}"
            )
        counts = torch.tensor(self.channels, device=masks.device)
        return masks.repeat_interleave(counts, 1, output_size=self.total)

    def beside(self, images: Images) -> Float[Tensor, "batch 3 height widths"]:
        """Return the inputs side by side in colour, (B, 3, H, K * W), to look at."""
        return torch.cat([in_colour(own) for own in self.split(images).values()], 3)


@contextmanager
def checked(images: Tensor, channels: int) -> Iterator[None]:
    """Check a batch once for all passes inside. Errors: as `check_images`."""
    check_images(images, channels)
    _look_for_dark(images)
    token = _ENTERED.set(True)
    try:
        yield
    finally:
        _ENTERED.reset(token)


def _look_for_dark(images: Tensor) -> None:
    """Warn of pictures that are black to the eye and not quite black, as those that were divided by 255 twice."""
    if not torch.compiler.is_exporting() and 0 < float(images.detach().max()) <= _DARK:
        warnings.warn(
            f"the brightest value of the pictures is {float(images.max()):.2g} of 1, all but black: were they divided "
            "by 255 twice?",
            stacklevel=5,
        )


def check_pass(images: Tensor, channels: int) -> None:
    """Check the pictures of one pass, unless that would make an accelerator wait for what was checked at the entry."""
    if images.ndim != 4 or not _waits(images) or not _ENTERED.get():
        check_images(images, channels)


def _waits(images: Tensor) -> bool:
    return images.device.type != "cpu"


def check_tensor(images: object) -> None:
    """Raise ValueError for what is no tensor, such as an array or a list of pictures."""
    if not isinstance(images, Tensor):
        raise ValueError(f"expected images as a tensor (B, C, H, W) of values in [0, 1], got {type(images).__name__}")
    if images.layout != torch.strided:
        raise ValueError(f"expected images as a dense tensor, got {images.layout}: give images.to_dense()")


def check_images(images: Tensor, channels: int) -> None:
    """Raise ValueError for what is no float batch (B, C, H, W) of values in [0, 1]."""
    check_tensor(images)
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    if not all(images.shape[2:]):
        raise ValueError(f"expected images with pixels, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected float images in [0, 1], got {images.dtype}: divide 8-bit pictures by 255")
    if torch.compiler.is_exporting() or not images.numel():  # a graph has no values yet
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low != low or high != high:
        raise ValueError("expected images in [0, 1], got NaN in them: look at how they are read or scaled")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        remedy = (
            "they seem to be normalised already: leave that to the classifier, which knows mean and std"
            if low < 0
            else "divide by 255"
            if high > 2
            else "clamp or rescale them"
        )
        raise ValueError(f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}: {remedy}")


def check_mean(mean: list[float], std: list[float], network: nn.Module) -> None:
    """Raise ValueError where mean and std are not one number a channel; warn where the network has its own as well."""
    if len(mean) != len(std) or not mean:
        raise ValueError(f"expected mean and std of one number a channel, got {len(mean)} and {len(std)}")
    if not all(map(isfinite, mean)) or not all(0 < value < inf for value in std):
        raise ValueError(
            f"expected a finite mean and a std above 0 for every channel, got {tuple(mean)} and {tuple(std)}"
        )
    own = _normalises(network)
    if own is not None and (any(value != 0 for value in mean) or any(value != 1 for value in std)):
        warnings.warn(
            f"the network holds a mean and a std of its own ({own}): if it normalises pictures itself, give mean "
            f"{(0,) * len(mean)} and std {(1,) * len(std)}, or they are normalised twice",
            stacklevel=4,
        )


def check_count(channels: int) -> None:
    """Raise ValueError for a number of channels that no picture has, before a network of that size is made."""
    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"pictures have 1 to {MOST_CHANNELS} channels, asked for are {channels}")


def check_channels(network: nn.Module, channels: int) -> None:
    """Raise ValueError where a network's first convolution reads another number of channels.

    To be asked of a network that fails: it may repeat or choose channels itself, or register another layer first.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != channels:
        raise ValueError(
            f"mean and std are of {channels} channel{'s' * (channels > 1)}, but the network's first convolution "
            f"reads {first.in_channels}: give mean and std of {first.in_channels}, or wrap the network so that it "
            f"takes {channels}"
        )


def _normalises(network: nn.Module) -> str | None:
    """Return the name of the first part that holds a mean and a std, as a layer that normalises pictures does."""
    for name, module in network.named_modules():
        held = [getattr(module, kind, None) for kind in ("mean", "std")]
        if all(isinstance(value, Tensor | tuple | list) for value in held):
            return name or type(module).__name__
    return None
