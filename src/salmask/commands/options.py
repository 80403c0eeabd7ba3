"""Options that several commands share."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Normalize", "Pictures", "Precision", "Sight"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Normalize = Literal["none", "minmax", "max", "rank"]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How the classifier sees a picture."""

    image_size: int | None = None
    """Side of the square that the classifier sees; its own where not given."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized; as the classifier was trained where not given."""
    fit: Literal["crop", "squash"] | None = None
    """crop (short side, then centre) or squash; as the classifier was trained, or crop, where not given."""

    def pictures(self) -> dict[str, Any]:
        """Return what `load_classifier` is told of pictures."""
        return {"image_size": self.image_size, "interpolation": self.interpolation, "fit": self.fit}


@dataclass(frozen=True, kw_only=True)
class Pictures(Sight):
    """How pictures get from the disk to the classifier."""

    skip_broken: bool = False
    """Leave out pictures that cannot be decoded, instead of stopping."""
