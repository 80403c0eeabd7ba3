"""Maps that look at no picture: what every score must be held against. Light, so that scoring needs no networks."""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

__all__ = ["BASELINES", "center_box", "empty", "full", "noise"]

Size = tuple[int, int]
Map = Float[Tensor, "height width"]


def full(height: int, width: int) -> Map:
    """Return ones: everything is evidence."""
    return torch.ones(height, width)


def empty(height: int, width: int) -> Map:
    """Return zeros: nothing is evidence."""
    return torch.zeros(height, width)


def center_box(height: int, width: int) -> Map:
    """Return the box of rows and columns 33 ... 190 of 224, scaled with the sides: 49.75 % of the area at 224."""
    box = torch.zeros(height, width)
    top, left = round(height * 33 / 224), round(width * 33 / 224)
    box[top : height - top, left : width - left] = 1
    return box


def noise(size: Size, image: str, *, seed: int = 0, cells: int | None = None) -> Map:
    """Return uniform noise in [0, 1], for every pixel or for the cells of a grid, that belongs to (seed, image id)."""
    digest = hashlib.blake2b(f"{seed}:{image}".encode(), digest_size=8).digest()
    generator = Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    grid = size if cells is None else (min(cells, size[0]), min(cells, size[1]))
    return F.interpolate(torch.rand(1, 1, *grid, generator=generator), size, mode="nearest-exact")[0, 0]


BASELINES: Mapping[str, Callable[[Size, str, int], Map]] = MappingProxyType(
    {
        "full": lambda size, image, seed: full(*size),
        "empty": lambda size, image, seed: empty(*size),
        "center": lambda size, image, seed: center_box(*size),
        "random": lambda size, image, seed: noise(size, image, seed=seed),
    }
)
"""The baselines that stand beside every score: (size, image id, seed) -> map."""
