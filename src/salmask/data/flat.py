"""A folder of pictures that nobody has labelled: what a classifier decides on each is what is explained."""

from pathlib import Path

from salmask.data.folders import ReadImage, warn_of_ignored, without_broken
from salmask.data.pictures import list_pictures, read_image
from salmask.data.sample import Sample, SampleTransform, no_boxes

__all__ = ["UNLABELLED", "FlatFolder", "is_flat"]

UNLABELLED = -1
"""The target of a picture without a label; no class has this index."""


def is_flat(root: Path) -> bool:
    """Return whether pictures lie in the folder itself, and no split beside them."""
    return root.is_dir() and bool(list_pictures(root)) and not any((root / name).is_dir() for name in ("train", "val"))


class FlatFolder:
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
        self.root, self.transform, self.read = Path(root), transform, read
        self.classes: list[str] = []
        self.ids: list[str] = list_pictures(self.root)
        warn_of_ignored([self.root], self.root)
        self.targets = [UNLABELLED] * len(self.ids)
        if skip_broken:
            self.ids, self.targets = without_broken(self.root, self.ids, self.targets, read=read)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[index]
        sample = Sample(id=name, image=self.read(self.root / name), target=UNLABELLED, boxes=no_boxes(), pixels=None)
        return sample if self.transform is None else self.transform(sample)
