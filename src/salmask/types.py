"""Names for the tensors that travel through the library: shapes and ranges, said once.

| name | shape | range |
|---|---|---|
| Images | (B, 3, H, W) float | [0, 1], RGB, not normalised |
| Masks | (B, 1, H, W) float | [0, 1], 1 = evidence |
| Targets | (B,) integer | class indices |
| Logits | (B, K) float | unnormalised class scores |
| Values | (B,) float | one value per image |
| Boxes | (N, 4) float | x0, y0, x1, y1, half-open, pixels of the array at hand |
| Pixels | (H, W) integer | ground truth: 0 background, 1 object, 255 ignored |
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int, UInt8
from torch import Tensor

__all__ = [
    "IGNORED",
    "Boxes",
    "FeatureMap",
    "Features",
    "Images",
    "Infill",
    "Logits",
    "Masks",
    "Pixels",
    "Targets",
    "Values",
]

Images = Float[Tensor, "batch 3 height width"]
Masks = Float[Tensor, "batch 1 height width"]
Targets = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch classes"]
Values = Float[Tensor, " batch"]
Boxes = Float[Tensor, "boxes 4"]
Pixels = UInt8[Tensor, "height width"]
FeatureMap = Float[Tensor, "batch channels rows columns"]

IGNORED = 255
"""Value of `Pixels` that no score may count, neither for nor against a map."""


class Features(NamedTuple):
    """What a classifier says of a batch, from one forward pass: logits, and one map per stage."""

    logits: Tensor
    maps: Sequence[Tensor]


@runtime_checkable
class Infill(Protocol):
    """g(x, holes): what stands where pixels are hidden.

    `holes` is 1 where the picture is hidden. An infill never learns whether the kept or the removed
    picture is played. Returns something that broadcasts to the images' shape, in [0, 1].
    """

    def __call__(self, images: Images, holes: Masks) -> Tensor:
        """Return the colours that fill the holes."""
        ...
