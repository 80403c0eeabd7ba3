"""L-MAC's masker: transposed convolutions from the deepest map up, with additive skips, to the picture's exact size.

    x = relu(up_L(F_L));   x = relu(up_k(x + skip_k(F_k)))  for the maps below;   z = last(x)     (B, 1, H, W)

up_k enlarges by the ratio of two neighbouring grids, which the classifier's layers have among each other whatever the
size of a picture is; what a rounding of sizes leaves over is cut off, as L-MAC cuts frames. For a CNN14 of width 64,
read at its blocks 3 to 6, these are the maps and skips of the released decoder; kernels and widths are not its own.
Source: Paissan, Ravanelli & Subakan (2024).
"""

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from salmask.files import JSON
from salmask.masker import Masker

__all__ = ["TransposedMasker"]


class TransposedMasker(Masker):
    """A masker that decodes by transposed convolutions; everything but the decoding is `Masker`'s.

    layers: which maps are read; None: the four deepest. width: most channels of a stage. Masks are made at the
    picture's own size, so that there is no grid and nothing to enlarge. Its classifier's maps must lie on grids whose
    strides are the same downwards and across, as all that `Classifier` reads do.
    """

    FORMAT = "salmask transposed masker 1"
    SHAPE = MappingProxyType({key: kind for key, kind in Masker.SHAPE.items() if key not in ("stride", "upsample")})

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        layers: Sequence[int] | None = None,
        width: int = 64,
        head: nn.Module | None = None,
        area_condition: bool = False,
        classes: int | None = None,
        classifier: str | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            channels,
            strides,
            layers=range(max(0, len(channels) - 4), len(channels)) if layers is None else layers,
            width=width,
            stride=1,
            head=head,
            area_condition=area_condition,
            classes=classes,
            classifier=classifier,
            generator=generator,
        )

    def _build(self, extra: int) -> None:
        deepest_first = list(reversed(self.layers))
        widths = [min(self.width, self.channels[layer]) for layer in deepest_first]
        factors = [max(1, round(self.strides[layer] / self.strides[below])) for layer, below in pairwise(deepest_first)]
        self.first = nn.Conv2d(self.channels[deepest_first[0]] + extra, widths[0], 1)
        self.skips = nn.ModuleList(
            nn.Conv2d(self.channels[layer] + extra, width, 1)
            for layer, width in zip(deepest_first[1:], widths[1:], strict=True)
        )
        self.ups = nn.ModuleList(
            _enlarging(before, after, factor) for (before, after), factor in zip(pairwise(widths), factors, strict=True)
        )
        *halvings, rest = _halvings(self.strides[deepest_first[-1]])
        last, width = [], widths[-1]
        for factor in halvings:
            narrower = max(8, width // 2)
            last += [_enlarging(width, narrower, factor), nn.ReLU()]
            width = narrower
        self.last = nn.Sequential(*last)
        self.final = _enlarging(width, 1, rest)

    def _decode(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, "batch 1 rows columns"]:
        deepest, *rest = reversed(maps)
        x = self.first(deepest).relu()
        for up, skip, below in zip(self.ups, self.skips, rest, strict=True):
            x = (_cut(up(x), (below.shape[2], below.shape[3])) + skip(below)).relu()
        return _cut(self.final(self.last(x)), grid)

    @torch.no_grad()
    def _initialise(self, generator: Generator | None) -> None:
        super()._initialise(generator)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                stride, kernel = module.stride[0], module.kernel_size[0]
                fan_in = module.in_channels * max(1, kernel // stride) ** 2
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        self.final.weight.mul_(0.1)  # masks begin near one half

    def settings(self) -> JSON:
        """Return the JSON-able settings that `config.json` holds."""
        settings = super().settings()
        return {key: value for key, value in settings.items() if key not in ("stride", "upsample")}


def _enlarging(before: int, after: int, factor: int) -> nn.ConvTranspose2d:
    """Return a layer n -> at least factor * n: what a grid that was divided by the factor, rounded either way, had."""
    if factor == 1:
        return nn.ConvTranspose2d(before, after, 3, padding=1)
    return nn.ConvTranspose2d(before, after, 2 * factor, factor, factor // 2, output_padding=factor - 1)


def _halvings(stride: int) -> list[int]:
    """Return the factors of an enlargement, by two where that is whole."""
    factors = []
    while stride > 2 and stride % 2 == 0:
        factors.append(2)
        stride //= 2
    return [*factors, stride]


def _cut(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x at a size: cut where it is larger; stretched in the rare case that grids do not divide."""
    x = x[..., : size[0], : size[1]]
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
