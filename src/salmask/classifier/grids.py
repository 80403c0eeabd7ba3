"""How a layer's output lies as a map (B, C, h, w): channels first, channels last, or tokens in a row.

A grid is never guessed from a number of tokens, which several grids fit: 36 are 6x6 and 12x3. Asked are, in turn, the
caller (`prefix`, `grid`), the network (timm's `num_prefix_tokens` and patch embedding, Hugging Face's patch size),
the maps (B, C, h, w) that came before in the same pass, and the tokens: which of them change with a corner of the
picture says where the grid begins, ends and breaks its rows. What stays open is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, isqrt, log2
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from salmask.types import FeatureMap

__all__ = [
    "Corners",
    "Grid",
    "Laid",
    "LaysOut",
    "Rolled",
    "ToMap",
    "Tokens",
    "channels_first",
    "channels_last",
    "grid_of",
    "grids_of",
]

ToMap = Callable[[Tensor, tuple[int, int]], FeatureMap]
"""(raw output, size of the pictures) -> (B, C, h, w)."""

Grid = tuple[int, int]


@runtime_checkable
class LaysOut(Protocol):
    """A network that says itself where its layers' outputs lie on the picture, as one whose rows are mel bands must."""

    def lay_out(self, output: Tensor, size: Grid) -> FeatureMap:
        """Return the output (B, C, h, w) of a layer, for pictures of a size, as a map that lies evenly over them.

        It takes any number of channels.
        """
        ...


@dataclass(frozen=True)
class Laid:
    """An output brought to (B, C, h, w), and laid out as the network says."""

    inner: ToMap
    own: LaysOut

    def __call__(self, output: Tensor, size: Grid) -> FeatureMap:
        """Return the map."""
        return self.own.lay_out(self.inner(output, size), size)


Corners = tuple[list[int], list[int], list[int], list[int]]
"""Which tokens change with the picture's corners: top left, top right, bottom left, bottom right."""

_ROUNDED, _MOST_DOUBLINGS = 0.2, 4
_REMEDY = "give prefix= (tokens before those of the picture) and grid=(rows, columns), or name an earlier layer"


def channels_first(output: Tensor, size: Grid) -> FeatureMap:
    """Return (B, C, h, w) as it is."""
    return output


def channels_last(output: Tensor, size: Grid) -> FeatureMap:
    """Return (B, h, w, C) as (B, C, h, w)."""
    return output.permute(0, 3, 1, 2)


def grid_of(shape: Sequence[int], *, last: bool) -> tuple[ToMap, Grid] | None:
    """Return how a 4-dimensional output for square pictures lies, and its square grid; None where it has none.

    last: the network says that it is channels last, which counts where both fit.
    """
    _, one, two, three = shape
    if two == three > 1 and not (last and one == two):
        return channels_first, (two, three)
    if one == two > 1:
        return channels_last, (one, two)
    return None


def grids_of(shape: Sequence[int], size: Grid) -> dict[ToMap, Grid]:
    """Return all ways in which a 4-dimensional output may lie on pictures of a size, also where h != w.

    Strides are whole powers of two of one another, or of a square picture's grid: 8x32 on 64x64, and not 8x20.
    """
    _, one, two, three = shape
    ways: dict[ToMap, Grid] = {channels_first: (two, three), channels_last: (one, two)}
    return {way: grid for way, grid in ways.items() if _may_lie(grid, size)}


def _may_lie(grid: Grid, size: Grid) -> bool:
    if min(grid) < 2 or grid[0] > size[0] or grid[1] > size[1]:
        return False
    doublings = log2(grid[0] * size[1] / (grid[1] * size[0]))
    return abs(doublings - round(doublings)) < _ROUNDED and abs(doublings) <= _MOST_DOUBLINGS


@dataclass(frozen=True)
class Rolled:
    """Tokens that lie in blocks of the picture, as Hiera's: the network itself puts those of part `index` in rows.

    reroll: (tokens (B, N, C), index) -> (B, h, w, C).
    """

    reroll: Callable[[Tensor, int], Tensor]
    index: int

    def __call__(self, output: Tensor, size: Grid) -> FeatureMap:
        """Return the map."""
        return self.reroll(output, self.index).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Tokens:
    """Tokens (B, N, C): `prefix` of them, then a grid row by row, then any others.

    size: of the pictures for which the grid is `grid`. asked: grid for other sizes, where the network says it.
    """

    prefix: int
    grid: Grid
    count: int
    size: Grid
    asked: Callable[[Grid], Grid | None]

    def __call__(self, output: Tensor, size: Grid) -> FeatureMap:
        """Return the map. Errors: ValueError where several grids, or none, fit the number of tokens."""
        rows, columns = self._grid(output.shape[1], size)
        tokens = output[:, self.prefix : self.prefix + rows * columns]
        return tokens.transpose(1, 2).reshape(output.shape[0], -1, rows, columns)

    def _grid(self, count: int, size: Grid) -> Grid:
        if size == self.size and count == self.count:
            return self.grid
        cells = count - (self.count - self.grid[0] * self.grid[1])
        answer = self.asked(size)
        if answer is not None and answer[0] * answer[1] == cells:
            return answer
        fitting = {
            (rows, columns)
            for rows, columns in product(*(self._along(axis, size[axis]) for axis in (0, 1)))
            if rows * columns == cells
        }
        if count == self.count:  # a network that brings every picture to one size of its own
            fitting.add(self.grid)
        if len(fitting) != 1:
            sides = " or ".join(f"{rows}x{columns}" for rows, columns in sorted(fitting)) or "no grid"
            raise ValueError(f"{cells} tokens of a picture of {size[0]}x{size[1]} fit {sides}: {_REMEDY}")
        return fitting.pop()

    def _along(self, axis: int, length: int) -> set[int]:
        exact = length * self.grid[axis] / self.size[axis]
        return {floor(exact), ceil(exact), round(exact)}

    @classmethod
    def of(
        cls,
        count: int,
        size: Grid,
        network: nn.Module,
        *,
        prefix: int | None = None,
        grid: Grid | None = None,
        maps: Sequence[Grid] = (),
        corners: Corners | None = None,
    ) -> "Tokens":
        """Find out how N tokens lie. network: the bare one. maps: grids that were seen before in the same pass.

        Errors: ValueError where nothing tells.
        """
        own = _prefix_tokens(network) if prefix is None else prefix
        patches = _patches(network)
        if grid is not None and count < grid[0] * grid[1] + (prefix or 0):
            raise ValueError(f"grid={grid} and prefix={prefix or 0} need more tokens than the {count} that there are")
        for asked in (patches, *(_merged(patches, factor) for factor in (2, 4, 8, 16))):
            for cells in [grid] if grid is not None else [asked(size), *reversed(maps)]:
                rest = -1 if cells is None else count - cells[0] * cells[1]
                if cells is not None and (rest == 0 or (own and (rest == own or (grid is not None and rest > own)))):
                    return cls(own or 0 if rest else 0, cells, count, size, asked)
        if own is not None:
            for before in dict.fromkeys((own, 0) if prefix is None else (own,)):
                side = isqrt(max(0, count - before))
                if side > 1 and side * side + before == count:
                    return cls(before, (side, side), count, size, patches)
        located = None if corners is None else _located(corners, grid)
        if located is not None and (prefix is None or prefix == located[0]):
            return cls(located[0], located[1], count, size, patches)
        raise ValueError(
            f"{count} tokens of a picture of {size[0]}x{size[1]}, and nothing says where they lie: {_REMEDY}"
        )


def _prefix_tokens(network: nn.Module) -> int | None:
    own = getattr(network, "num_prefix_tokens", None)
    return own if isinstance(own, int) else None


def _patches(network: nn.Module) -> Callable[[Grid], Grid | None]:
    """Return the function from a picture's size to its grid, by timm's patch embedding or patch size; None: unknown."""
    embedding: object = getattr(network, "patch_embed", None)
    config = getattr(network, "config", None)
    patch = getattr(config if hasattr(config, "patch_size") else network, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch) if isinstance(patch, tuple | list) else ()

    def asked(size: Grid) -> Grid | None:
        if hasattr(embedding, "dynamic_feat_size"):
            rows, columns = embedding.dynamic_feat_size(size)
            return int(rows), int(columns)
        if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
            return size[0] // sides[0], size[1] // sides[1]
        return None

    return asked


def _merged(patches: Callable[[Grid], Grid | None], factor: int) -> Callable[[Grid], Grid | None]:
    """Return the function from a picture's size to its grid once factor x factor patches have become one token."""

    def asked(size: Grid) -> Grid | None:
        whole = patches(size)
        return None if whole is None else (ceil(whole[0] / factor), ceil(whole[1] / factor))

    return asked


def _located(corners: Corners, grid: Grid | None) -> tuple[int, Grid] | None:
    """Return prefix and grid that the corners' tokens show: exactly one grid whose corners are all among them."""
    if not all(corners):
        return None
    first, last = min(corners[0]), max(corners[3])
    cells = last - first + 1
    shapes = [(cells // columns, columns) for columns in range(2, cells) if cells % columns == 0 and columns < cells]
    fitting = [shape for shape in shapes if grid in (None, shape) and _at_corners(corners, first, shape)]
    return (first, fitting[0]) if len(fitting) == 1 else None


def _at_corners(corners: Corners, first: int, grid: Grid) -> bool:
    """Return whether each corner's tokens are a block at that corner, apart from the opposite corner."""
    for index, tokens in enumerate(corners):
        inside = [divmod(token - first, grid[1]) for token in tokens]
        for axis, far in enumerate((index // 2, index % 2)):
            along = sorted({cell[axis] for cell in inside})
            end = grid[axis] - 1
            unbroken = along == list(range(along[0], along[-1] + 1))
            if not unbroken or along[-1 if far else 0] != (end if far else 0) or len(along) > end:
                return False
    return True
