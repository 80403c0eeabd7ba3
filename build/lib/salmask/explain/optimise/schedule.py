"""How long, how fast and with what jitter a mask is optimised: the small values that a method is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

__all__ = ["Adam", "Momentum", "Schedule", "Shift", "View", "constant_rate", "flip_every_other", "linear"]

View = Callable[[Tensor, int, Generator], Tensor]
"""Jitter: pictures, step and generator -> the pictures that the classifier sees."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, 2015)."""

    lr: float = 0.1

    def __call__(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser; each image's parameters are one tensor with a state of its own."""
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum; dampening multiplies what enters the velocity by 1 - dampening."""

    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.0

    def __call__(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, dampening=self.dampening)


def constant_rate(progress: float) -> float:
    """Keep the learning rate."""
    return 1.0


def linear(progress: float) -> float:
    """Let the learning rate fall to zero, linearly; progress runs from 0 to 1."""
    return 1.0 - progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    tolerance: an image is done once its value changes by less than this from one step to the next; 0 never
        stops early (and spares the comparison).
    rate: factor of the learning rate at a progress in [0, 1).
    best: return the parameters with the lowest value seen instead of the last ones.
    """

    iterations: int = 100
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] = field(default_factory=Adam)
    tolerance: float = 0.0
    rate: Callable[[float], float] = constant_rate
    best: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.tolerance < 0:
            raise ValueError(f"expected iterations >= 1 and tolerance >= 0, got {self.iterations} and {self.tolerance}")


@dataclass(frozen=True)
class Shift:
    """Jitter: all pictures of a step are rolled by the same few pixels, up to `pixels` of a side of `at`."""

    pixels: int = 4
    at: int = 224

    def __call__(self, pictures: Tensor, step: int, generator: Generator) -> Tensor:
        """Return the rolled pictures."""
        most = round(self.pixels * min(pictures.shape[-2:]) / self.at)
        down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        return pictures.roll((down, right), (-2, -1))


def flip_every_other(pictures: Tensor, step: int, generator: Generator) -> Tensor:
    """Jitter: mirror the pictures at every second step."""
    return pictures.flip(-1) if step % 2 == 0 else pictures
