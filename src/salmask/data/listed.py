"""Pictures in files: listed when a data set is opened, decoded when they are read. All readers are of this kind."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from salmask.data.depth import settled
from salmask.data.endings import ignored_files
from salmask.data.rasters import PictureFile
from salmask.data.sample import Sample, SampleTransform
from salmask.data.unreadable import UnreadableError

__all__ = ["ListedPictures", "ReadImage", "warn_of_ignored"]

LOOKED_AT = 10_000
"""Most pictures that are decoded to find the broken ones: of more, those are passed over where they are met."""

ReadImage = Callable[[PictureFile], Tensor]
"""How a file becomes a picture, uint8 (C, H, W): a `Reader`."""


class ListedPictures(Dataset[Sample]):
    """Files below a root, by their paths from there: a reader lists `ids`, `targets` and `classes`, and makes `sample`.

    transform: applied to every sample. read: decodes a file. noun: what warnings call the files.
    """

    def __init__(
        self, root: str | Path, *, transform: SampleTransform | None, read: ReadImage, noun: str = "pictures"
    ) -> None:
        self.root, self.transform, self.read, self.noun = Path(root), transform, read, noun
        self.classes: list[str] = []
        self.targets: list[int] = []
        self.ids: list[str] = []
        self._passes_over = False

    def sample(self, index: int) -> Sample:
        """Return a picture, with what the files beside it say of it."""
        raise NotImplementedError

    def picture(self, index: int) -> Tensor:
        """Return a decoded picture, uint8 (C, H, W)."""
        return self.passed_over_or(partial(self.read, self.root / self.ids[index]))

    def passed_over_or(self, read: Callable[[], Tensor]) -> Tensor:
        """Return what is read. Errors: those of `read`; `UnreadableError` where broken files are passed over."""
        try:
            return read()
        except (ValueError, OSError) as error:
            if self._passes_over:
                raise UnreadableError(str(error)) from error
            raise

    def settle_depth(self) -> None:
        """Let all 16-bit files be read alike (`depth.settled`)."""
        self.read = settled(self.read, [self.root / name for name in self.ids])

    def leave_out_broken(self) -> None:
        """Decode all pictures, and take those that cannot be read off the lists; warn of them, with the first reason.

        Of more than `LOOKED_AT`, none is decoded now: those that cannot be read are passed over when they are met
        (`unreadable`). Errors: ValueError where none is left.
        """
        if len(self.ids) > LOOKED_AT:
            self._passes_over = True
            return
        reasons = {name: reason for name in self.ids if (reason := self._unread(self.root / name)) is not None}
        if reasons:
            names = ", ".join([*reasons][:5]) + (" ..." if len(reasons) > 5 else "")
            first = next(iter(reasons.values()))
            warnings.warn(
                f"{len(reasons)} of {len(self.ids)} {self.noun} cannot be read and are left out: {names} (the first: "
                f"{first})",
                stacklevel=4,
            )
        if len(reasons) == len(self.ids):
            raise ValueError(f"none of the {len(self.ids)} {self.noun} in {self.root} can be decoded")
        kept = [index for index, name in enumerate(self.ids) if name not in reasons]
        self.ids, self.targets = [self.ids[index] for index in kept], [self.targets[index] for index in kept]

    def _unread(self, path: Path) -> str | None:
        """Return why a picture cannot be read, or None where it can. A link that leads nowhere is one more reason."""
        try:
            self.read(path)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        sample = self.sample(index)
        return sample if self.transform is None else self.transform(sample)


def warn_of_ignored(folders: Sequence[Path], where: Path) -> None:
    """Warn, once for all folders, of files and folders in them that are not read."""
    if ignored := ignored_files(folders):
        warnings.warn(f"not read in {where}: {ignored}", stacklevel=4)
