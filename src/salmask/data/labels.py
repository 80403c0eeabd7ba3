"""Several labels a picture, from a table beside the pictures: each picture and label is a case of its own.

    root/<split>/**/*.jpg ...                  the pictures, in folders of any name or none
    root/<split>_labels.csv                    image,class     a line a label; or several in one line, `cat|dog`
                                               image,cat,dog   or a column a class, 1 where it is there, 0 where not
    root/<split>_boxes.csv                     image,class,x0,y0,x1,y1[,width,height]
    root/<split>_masks/<class>/<picture>.png   pixel masks of a class; <picture>: its path below <split>, without ending

`image` is the path relative to the root. Boxes and masks are optional; a case has those of its label. A picture without
a label has no case. Of a picture with several labels, the cases are named `val/a.jpg#cat`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from salmask.boxes import boxes_of
from salmask.data.folders import (
    boxes_by_image,
    boxes_in,
    check_frames,
    pin_classes,
    pixels_for,
    read_table,
)
from salmask.data.listed import ListedPictures, ReadImage
from salmask.data.pictures import read_image
from salmask.data.sample import Labelled, Sample, SampleTransform, no_boxes

__all__ = ["LabelCases", "LabelledPictures", "has_labels", "label_table", "labelled_classes", "pictures_of"]

_EMPTY = frozenset({"", "no finding", "none"})  # how tables say that a picture has no label
_SHOWN = {"0": False, "0.0": False, "": False, "1": True, "1.0": True}


def label_table(root: Path, split: str) -> Path:
    """Return where the table of a split's labels is, if there is one."""
    return root / f"{split}_labels.csv"


def has_labels(root: Path, split: str) -> bool:
    """Return whether a split has a table of labels."""
    return label_table(root, split).is_file()


def labelled_classes(root: Path, split: str) -> list[str]:
    """Return the classes that the table of a split names: its columns in their order, or its labels, sorted."""
    return _read_labels(label_table(root, split))[0]


class LabelledPictures(ListedPictures):
    """Pictures with the labels of a table: a sample for each picture and label, in the order of the table.

    classes: pins their order, as in `ImageFolder`; other arguments likewise. `several`: whether a picture has several.
    Errors: FileNotFoundError; ValueError for a table that is none, names an absent picture or an unknown class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: ReadImage = read_image,
    ) -> None:
        super().__init__(root, transform=transform, read=read)
        self.split = split
        table = label_table(self.root, split)
        names, labels = _read_labels(table)
        self.classes = pin_classes(names, classes, where=table)
        for name, (line, _) in labels.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{table} line {line} names {name}: expected a path inside of {self.root}")
            if not (self.root / name).is_file():
                raise ValueError(f"{table} line {line} names {name}, and there is no such file in {self.root}")
        self.ids, self.targets = [*labels], [0] * len(labels)
        self.settle_depth()
        if skip_broken:
            self.leave_out_broken()
        labels = {name: labels[name] for name in self.ids}
        if without := sum(not own for _, own in labels.values()):
            warnings.warn(
                f"{without} of {len(labels)} pictures in {table} have no label: nothing is explained there",
                stacklevel=3,
            )
        self.pictures, self.targets, self.ids = _cases(labels, self.classes)
        self.several = len(self.pictures) > len(set(self.pictures))
        if not self.ids:
            raise ValueError(f"{table} gives no picture a label: expected at least one")
        self._table = self.root / f"{split}_boxes.csv"
        self._rows = boxes_by_image(self._table, list(labels), self.classes) if self._table.exists() else {}
        check_frames(self.root, self._table, self._rows)

    def picture(self, index: int) -> Tensor:
        """Return a decoded picture."""
        return self.passed_over_or(partial(self.read, self.root / self.pictures[index]))

    def sample(self, index: int) -> Sample:
        """Return a picture with one of its labels, and the boxes and pixel mask of that."""
        name, label, image = self.pictures[index], self.classes[self.targets[index]], self.picture(index)
        height, width = image.shape[-2:]
        rows = [row for row in self._rows.get(name, []) if row.label == label]
        boxes = boxes_in(rows, width=width, height=height, source=str(self._table))
        inside = Path(name).relative_to(self.split) if Path(name).parts[0] == self.split else Path(name)
        pixels = pixels_for((self.root / f"{self.split}_masks" / label / inside).with_suffix(".png"), (height, width))
        if pixels is not None and not self._table.exists():
            boxes = boxes_of(pixels)
        return Sample(id=self.ids[index], image=image, target=self.targets[index], boxes=boxes, pixels=pixels)


class LabelCases(Dataset[Sample]):
    """The pictures of a data set under labels that somebody else has chosen: a sample for each picture and label.

    chosen: name of a picture (`pictures_of`) -> its labels. A case has boxes and pixels where the data set has a sample
    of that picture with that label, else none.
    """

    def __init__(self, dataset: Labelled, chosen: Mapping[str, Sequence[int]], *, classes: Sequence[str]) -> None:
        self.dataset, self.classes = dataset, list(classes)
        there = {name: {dataset.targets[index]: index} for index, name in enumerate(dataset.ids)} | pictures_of(dataset)
        cases = [(name, label) for name, labels in chosen.items() for label in labels]
        self.ids = [f"{name}#{self.classes[label]}" for name, label in cases]
        self.targets = [label for _, label in cases]
        self._places = [there[name].get(label, next(iter(there[name].values()))) for name, label in cases]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[self._places[index]]
        if sample.target != self.targets[index]:
            sample = replace(sample, boxes=no_boxes(), pixels=None)
        return replace(sample, id=self.ids[index], target=self.targets[index])


def pictures_of(dataset: Labelled) -> dict[str, dict[int, int]]:
    """Return the pictures of a data set by name, each with label -> index of its samples."""
    pictures: dict[str, dict[int, int]] = {}
    for index, (name, target) in enumerate(zip(dataset.ids, dataset.targets, strict=True)):
        label = f"#{dataset.classes[target]}" if 0 <= target < len(dataset.classes) else ""
        pictures.setdefault(name.removesuffix(label), {})[target] = index
    return pictures


def _cases(labels: dict[str, tuple[int, list[str]]], classes: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """Return picture, target and id of each case."""
    pairs = [(name, label) for name, (_, own) in labels.items() for label in own]
    several = any(len(own) > 1 for _, own in labels.values())
    ids = [f"{name}#{label}" if several else name for name, label in pairs]
    return [name for name, _ in pairs], [classes.index(label) for _, label in pairs], ids


def _read_labels(path: Path) -> tuple[list[str], dict[str, tuple[int, list[str]]]]:
    """Return the classes of a table, and of each picture its first line and its labels, each once."""
    table = read_table(path, ("image",), more="and class, or a column for each class")
    if not table:
        raise ValueError(f"{path}: expected at least one line below the header")
    columns = [name for name in table[0][1] if name != "image"]
    if not columns:
        raise ValueError(f"{path}: expected the header image,class or image and a column for each class, got image")
    labels: dict[str, tuple[int, list[str]]] = {}
    for line, row in table:
        if "class" in row:
            own = [part.strip() for part in row["class"].split("|")]
            own = [part for part in own if part.casefold() not in _EMPTY]
        else:
            own = [name for name in columns if _is_there(row[name], f"{path} line {line}, {name}")]
        _, before = labels.setdefault(row["image"], (line, []))
        before += [label for label in dict.fromkeys(own) if label not in before]
    if "class" not in table[0][1]:
        return columns, labels
    return sorted({label for _, own in labels.values() for label in own}), labels


def _is_there(text: str, where: str) -> bool:
    if text.strip() not in _SHOWN:
        raise ValueError(f"{where}: expected 1 (the label is there) or 0, got {text!r}")
    return _SHOWN[text.strip()]
