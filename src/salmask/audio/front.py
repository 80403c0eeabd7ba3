"""How a network begins that hears: what its pictures become first, and where the maps that follow lie on a picture.

    Magnitudes    |X|                              rows are frequencies, lowest first
    MelBands      log1p(B |X|)                     rows are mel bands, lowest first

The rows of a picture are frequencies, highest first. So what a network begins with says itself where a map lies
(`lay_out`): without that, every map of every explainer would be upside down, and of mel bands pressed towards high
frequencies. It also holds the `Hearing` of its pictures, by which the network is known to hear sounds.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from salmask.audio.hearing import Hearing
from salmask.types import FeatureMap, Size

__all__ = ["Front", "Magnitudes", "MelBands", "fronts_of"]


class Front(nn.Module):
    """What a network of sounds begins with. hearing: of the pictures that it takes."""

    def __init__(self, hearing: Hearing) -> None:
        super().__init__()
        self.hearing = hearing

    def lay_out(self, output: Tensor, size: Size) -> FeatureMap:
        """Return a map (B, C, h, w) of a layer behind it as one that lies evenly over pictures of a size."""
        raise NotImplementedError


def fronts_of(network: nn.Module) -> Iterator[Front]:
    """Yield what in a network holds its hearing."""
    return (module for module in network.modules() if isinstance(module, Front))


class Magnitudes(Front):
    """|X| of pictures; differentiable. In: (B, 1, F, T) of a `Hearing`. Out: the same shape, lowest frequency first."""

    def lay_out(self, output: Tensor, size: Size) -> FeatureMap:
        """Return a map with its rows turned round."""
        return output.flip(-2)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the magnitudes of pictures."""
        return self.hearing.magnitudes(pictures)


class MelBands(Front):
    """log1p(B |X|) of pictures: triangular bands, evenly spaced on the mel scale; differentiable.

    In: pictures (B, 1, F, T) of a `Hearing`. Out: (B, 1, bands, T), lowest band first, not bounded.
    mel(f) = 2595 log10(1 + f / 700). Errors: ValueError for bands so narrow that one holds no frequency.
    """

    bank: Tensor

    def __init__(self, hearing: Hearing, bands: int) -> None:
        super().__init__(hearing)
        if not 1 <= bands <= hearing.bins:
            raise ValueError(f"expected 1 to {hearing.bins} bands of {hearing.bins} frequencies, got {bands}")
        self.bands = bands
        half = hearing.sample_rate / 2
        frequencies = torch.linspace(0, half, hearing.bins, dtype=torch.float64)
        mels = torch.linspace(0, 2595 * math.log10(1 + half / 700), bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
        bank = torch.minimum(rising, falling).clamp_min(0)
        if not bool((bank.sum(1) > 0).all()):
            raise ValueError(
                f"{bands} bands are too narrow for {hearing.bins} frequencies: the lowest hold none; give fewer bands "
                "or a larger n_fft"
            )
        self.register_buffer("bank", bank.float(), persistent=False)

    def place(self, hertz: Tensor) -> Tensor:
        """Return which band, between the centres of bands, frequencies lie at; the lowest is band 0."""
        most = 2595 * math.log10(1 + self.hearing.sample_rate / 1400)
        return 2595 * (1 + hertz / 700).log10() * (self.bands + 1) / most - 1

    def lay_out(self, output: Tensor, size: Size) -> FeatureMap:
        """Return a map (B, C, rows of bands, w) with rows of evenly spaced frequencies, highest first.

        As many rows as make the strides downwards and across alike, for a network that pools both alike; linear between
        the centres of bands.
        """
        rows, columns = output.shape[-2:]
        step = _step(self.bands, rows, size[1] / columns)
        count = math.ceil(size[0] / step)
        pixels = (torch.arange(count, dtype=torch.float64) + 0.5) * size[0] / count - 0.5
        hertz = (1 - pixels / (size[0] - 1)) * self.hearing.sample_rate / 2
        places = ((self.place(hertz) + 0.5) / step - 0.5).clamp(0, rows - 1)
        weights = (1 - (places[:, None] - torch.arange(rows)).abs()).clamp_min(0)
        return weights.to(output) @ output

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the bands of pictures."""
        return (self.bank.to(pictures.dtype) @ self.hearing.magnitudes(pictures)).log1p()


def _step(bands: int, rows: int, across: float) -> int:
    """Return how many bands a row of a map covers: the power of two that, rounded either way, gives so many rows.

    Where two do, as for 2 rows of 40 bands, the one that is nearer to the stride across.
    """
    steps = [2**k for k in range(16) if rows in (bands // 2**k, -(-bands // 2**k))] or [max(1, round(bands / rows))]
    return min(steps, key=lambda step: abs(math.log2(step / across)))
