"""Human attention beside saved maps: one gaze map an image, and the centre bias, the mean gaze of all other images.

Bigolin Lanfredi et al. 2021 take off what a look at the middle of any picture would score; the mean over *other*
images is what a viewer does who has not seen this one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float

from salmask.data.pictures import MAX_PIXELS, stored_size
from salmask.files import regular_file

__all__ = ["Gaze", "read_gaze"]

Density = Float[torch.Tensor, "height width"]


@dataclass(frozen=True)
class Gaze:
    """A folder of gaze maps brought to maps of `size` (H, W). total: sum of the `count` densities, each of mass 1."""

    folder: Path
    size: tuple[int, int]
    total: Float[np.ndarray, "height width"]
    count: int

    def of(self, name: str) -> Density:
        """Return where people looked, a density of mass 1."""
        return torch.from_numpy(_density(self.folder, name, self.size)).float()

    def centre(self, name: str) -> Density | None:
        """Return the mean density of all other images; None where there is no other one."""
        if self.count < 2:
            return None
        others = self.total - _density(self.folder, name, self.size)
        return torch.from_numpy(others.clip(0) / (self.count - 1)).float()


def read_gaze(folder: str | Path, ids: Sequence[str], size: tuple[int, int]) -> Gaze:
    """Read every gaze map once: ID.npy (H, W) >= 0, or ID.png of one grey channel, as the masks are named.

    Maps of another size are resized, by area where they shrink. Errors: ValueError for an id without one, and for one
    that is negative, empty or not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder of gaze maps {folder}: expected files such as {ids[0]}.npy or .png in it")
    if without := [name for name in ids if _file(folder, name) is None]:
        raise ValueError(
            f"{len(without)} of {len(ids)} ids without a gaze map in {folder}, such as {without[0]!r}: expected "
            f"{without[0]}.npy or .png"
        )
    total = np.zeros(size)
    for name in ids:
        total += _density(folder, name, size)
    return Gaze(folder, size, total, len(ids))


def _file(folder: Path, name: str) -> Path | None:
    stem = (folder / name).with_suffix("")
    tries = [Path(f"{path}{suffix}") for suffix in (".npy", ".png") for path in (stem, folder / name)]
    return next((path for path in tries if path.is_file()), None)


def _density(folder: Path, name: str, size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    path = _file(folder, name)
    assert path is not None  # by read_gaze
    gaze = _read(path)
    if gaze.ndim != 2 or not np.isfinite(gaze).all() or (gaze < 0).any() or gaze.sum() <= 0:
        raise ValueError(
            f"the gaze map {path} must be (H, W), finite, >= 0 and not empty; got shape {gaze.shape}, from "
            f"{gaze.min():g} to {gaze.max():g}: leave the image out or repair it"
        )
    if gaze.shape != size:
        shrinks = gaze.shape[0] > size[0] and gaze.shape[1] > size[1]
        gaze = cv2.resize(gaze, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return gaze / gaze.sum()


def _read(path: Path) -> Float[np.ndarray, "..."]:
    """Return the numbers of a file, double precision. Errors: ValueError for what cannot be read."""
    regular_file(path, "a gaze map, .npy or .png")
    try:
        if path.suffix == ".npy":
            size = int(np.prod(np.load(path, mmap_mode="r", allow_pickle=False).shape))
        else:
            size = math.prod(stored_size(path))
        if size > MAX_PIXELS:
            raise ValueError(f"it has {size} pixels, more than the limit of {MAX_PIXELS}")
        gaze = np.load(path, allow_pickle=False) if path.suffix == ".npy" else cv2.imread(str(path), -1)
        if gaze is None or not gaze.size:
            raise ValueError("nothing could be decoded")
        return np.asarray(gaze, dtype=np.float64)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"the gaze map {path} cannot be read ({error}): repair or remove it") from error
