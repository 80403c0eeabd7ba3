"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from salmask.data import Labelled, SampleTransform
    from salmask.training.run import Sight

__all__ = ["DataOptions", "Normalize", "PictureOptions", "SightOptions"]

Normalize = Literal["none", "minmax", "max", "rank"]


@dataclass(frozen=True, kw_only=True)
class SightOptions:
    """How the classifier sees a picture."""

    image_size: int | None = None
    """Side of the square that the classifier sees; its own where not given."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized; as the classifier was trained where not given."""
    fit: Literal["crop", "squash"] | None = None
    """crop (short side, then centre) or squash; as the classifier was trained, or crop, where not given."""

    def pictures(self) -> dict[str, Any]:
        """Return what `load_classifier` takes of pictures."""
        return {"image_size": self.image_size, "interpolation": self.interpolation, "fit": self.fit}


@dataclass(frozen=True, kw_only=True)
class PictureOptions(SightOptions):
    """How pictures get from the disk to the classifier."""

    skip_broken: bool = False
    """Leave out pictures that cannot be decoded, instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(PictureOptions):
    """Which pictures, with boxes and pixel masks where there are some."""

    data: str
    """Folder with train/<class>/*, val/<class>/* and, for localization, box tables; or an ILSVRC tree, or pets:DIR
    (docs/data.md)."""
    download: bool = False
    """Fetch Oxford-IIIT Pet into the DIR of pets:DIR, if it is not there."""

    def read(
        self, split: str, *, transform: "SampleTransform | None" = None, classes: "Sequence[str] | None" = None
    ) -> "Labelled":
        """Return a split of the data."""
        from salmask.data import open_data

        return open_data(
            self.data,
            split,
            transform=transform,
            skip_broken=self.skip_broken,
            classes=classes,
            download=self.download,
        )

    def bank(self, view: "Sight") -> "Tensor":
        """Return training pictures that fill holes, for explainers with `infill=bank`."""
        from salmask.specs import load_bank

        return load_bank(self.read("train"), view)

    def data_name(self) -> str:
        """Return what a report calls the data."""
        return Path(self.data).name
