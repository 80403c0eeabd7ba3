"""A folder of pictures that nobody has labelled: what a classifier decides on each is what is explained."""

from pathlib import Path

from salmask.data.endings import list_pictures
from salmask.data.labels import has_labels
from salmask.data.listed import ListedPictures, ReadImage, warn_of_ignored
from salmask.data.pictures import read_image
from salmask.data.sample import Sample, SampleTransform, no_boxes

__all__ = ["UNLABELLED", "FlatFolder", "is_flat"]

UNLABELLED = -1
"""The target of a picture without a label; no class has this index."""


def is_flat(root: Path) -> bool:
    """Return whether pictures lie in the folder itself, and no split or table of labels beside them."""
    others = any((root / name).is_dir() or has_labels(root, name) for name in ("train", "val"))
    return root.is_dir() and bool(list_pictures(root)) and not others


class FlatFolder(ListedPictures):
    """The pictures in a folder, sorted by name, all with the target `UNLABELLED`, and without classes.

    Errors: ValueError where none of them can be read; a picture that cannot be decoded is named when it is read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        read: ReadImage = read_image,
    ) -> None:
        super().__init__(root, transform=transform, read=read)
        self.ids = list_pictures(self.root)
        warn_of_ignored([self.root], self.root)
        self.targets = [UNLABELLED] * len(self.ids)
        self.settle_depth()
        if skip_broken:
            self.leave_out_broken()

    def sample(self, index: int) -> Sample:
        """Return a picture, of which nothing else is known."""
        return Sample(id=self.ids[index], image=self.picture(index), target=UNLABELLED, boxes=no_boxes())
