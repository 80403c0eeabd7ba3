"""Photographs that packages ship, to look at before one has pictures of one's own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["photographs"]


def photographs() -> Iterator[tuple[str, UInt8[Tensor, "3 height width"]]]:
    """Yield name and picture of scikit-image's photographs, and of scikit-learn's where that is installed."""
    from skimage import data

    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        yield name, _as_image(getattr(data, name)())
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:  # two photographs more where the package is there anyway
        return
    sample = load_sample_images()
    for file, picture in zip(sample.filenames, sample.images, strict=True):
        yield Path(file).stem, _as_image(picture)


def _as_image(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)
