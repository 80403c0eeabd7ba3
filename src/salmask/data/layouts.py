"""Published layouts: ILSVRC with its XML boxes, and Oxford-IIIT Pet with its trimaps; and which layout lies where.

    DIR          the folders of `folders`, or the table of `labels`, or one of the layouts below, by what lies there
    ilsvrc:DIR   [Data/CLS-LOC/]<split>/<synset>/*.JPEG, and XML in Annotations, below a folder of the split or not
    pairs:DIR    several inputs a scene, rgb/<split>/<class>/* and depth/<split>/<class>/* (`pairs`)
    pets:DIR     oxford-iiit-pet/images and /annotations; `train` and `val` stand for its trainval and test
    wds:PATTERN, hf-dataset:PATH     pictures in few large files (`shards`, `tables`)

`open_data` reads any of them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import torch

from salmask.boxes import boxes_of
from salmask.classifier.inputs import Inputs
from salmask.data.folders import (
    BoxRow,
    ImageFolder,
    class_folders,
    finite_number,
    labelled_pictures,
    list_images,
    pin_classes,
)
from salmask.data.labels import LabelledPictures, has_labels
from salmask.data.listed import ListedPictures, ReadImage
from salmask.data.pairs import PairedFolder, is_paired
from salmask.data.pictures import TRIMAP, Reader, read_image, read_pixels
from salmask.data.remote import is_remote
from salmask.data.sample import Labelled, Sample, SampleTransform, no_boxes
from salmask.data.shards import Shards, shard_files
from salmask.data.streamed import Streamed, open_stream
from salmask.data.tables import Table, class_names_in, columns_of, open_table, table_spec
from salmask.files import JSON
from salmask.types import Boxes

if TYPE_CHECKING:
    from salmask.data.tables import Tables

__all__ = [
    "ILSVRC",
    "LARGE",
    "LAYOUTS",
    "Layout",
    "OxfordPets",
    "XMLBoxes",
    "absolute",
    "has_split",
    "ilsvrc_boxes",
    "label_names",
    "open_data",
    "xml_rows",
]

PETS = "oxford-iiit-pet"
LARGE = ("wds", "hf-dataset")
"""Layouts of data that lie in few large files."""
PETS_SPLITS = {"train": "trainval", "val": "test"}


def open_data(
    spec: str | Path,
    split: str,
    *,
    transform: SampleTransform | None = None,
    skip_broken: bool = False,
    classes: Sequence[str] | None = None,
    download: bool = False,
    read: ReadImage = read_image,
    inputs: Inputs | None = None,
) -> Labelled:
    """Return a split of the data that `spec` names: DIR, ilsvrc:DIR, pets:DIR, pairs:DIR, wds:PATTERN, hf-dataset:PATH.

    A plain DIR is Oxford-IIIT Pet if oxford-iiit-pet lies in it, ILSVRC if Annotations does and no box table, paired
    folders if rgb and depth do, else `LabelledPictures` if there is a table of labels, else `ImageFolder`; folder:DIR
    is one of the last two in any case.
    download: fetch Oxford-IIIT Pet where it is not there. read: decodes a file, see `pictures.Reader`. inputs: of the
    classifier, which are read of paired folders.
    Errors: as the readers; ValueError for another download.
    """
    layout, root = layout_of(spec)
    if download and layout != "pets":
        raise ValueError(f"only pets:DIR can be downloaded, got {spec}: leave --download out")
    given: JSON = {"transform": transform, "skip_broken": skip_broken, "classes": classes, "read": read}
    own: dict[str, JSON] = {"pets": {"download": download}, "pairs": {"inputs": inputs}}
    return LAYOUTS[layout].open(root, split, **given, **own.get(layout, {}))


def has_split(spec: str, split: str) -> bool:
    """Return whether the data that `spec` names has a split."""
    layout, root = layout_of(spec)
    return LAYOUTS[layout].has(root, split)


def absolute(spec: str) -> str:
    """Return a spec that means the same in every working folder."""
    layout, root = layout_of(spec)
    place = Path(table_spec(str(root)).path) if layout == "hf-dataset" else root
    elsewhere = (layout == "hf-dataset" and not place.exists()) or (layout in LARGE and is_remote(str(root)))
    return spec if elsewhere else f"{layout}:{place.resolve()}{str(root)[len(str(place)) :]}"


def layout_of(spec: str | Path) -> tuple[str, Path]:
    """Return the layout of the data that a spec names, a name of `LAYOUTS`, and its folder."""
    layout, colon, path = os.fspath(spec).partition(":")
    if colon and layout in LAYOUTS:
        return layout, Path(path)
    root = Path(spec)
    if is_paired(root):
        return "pairs", root
    if (root / PETS).is_dir():
        return "pets", root
    ilsvrc = (root / "Annotations").is_dir() and not any(root.glob("*_boxes.csv"))
    return ("ilsvrc" if ilsvrc else "folder"), root


def _pictures(root: Path) -> Path:
    """Return the folder of an ILSVRC tree that holds the splits."""
    return inner if (inner := root / "Data" / "CLS-LOC").is_dir() else root


def _boxes(root: Path, split: str) -> Path:
    """Return the folder of an ILSVRC tree that holds the XML files of a split, or may hold them."""
    base = root / "Annotations"
    tries = (base / "CLS-LOC" / split, base / split, base / "CLS-LOC")
    return next((folder for folder in tries if folder.is_dir()), base)


class XMLBoxes(NamedTuple):
    """Boxes in one picture, the class of each, and the picture's size as the file states it."""

    boxes: Boxes
    names: list[str]
    width: int
    height: int


def ilsvrc_boxes(path: Path, synset: str | None = None) -> XMLBoxes:
    """Read the boxes of the objects whose <name> is `synset`; of all where it is None.

    The XML's numbers are taken as half-open, as the published scores do, although the annotators meant the
    maxima inclusive; boxes are not cut at the border. Errors: FileNotFoundError, ValueError naming the
    file.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML file of boxes ({error}): fetch it again or remove it") from error
    width, height = (int(finite_number(tree.findtext(f"size/{key}"), where=f"{path}, {key}")) for key in _SIZE)
    names, boxes = [], []
    for thing in tree.iter("object"):
        name = thing.findtext("name") or ""
        if synset in (None, name):
            x0, y0, x1, y1 = box = [
                finite_number(thing.findtext(f"bndbox/{key}"), where=f"{path}, {key}") for key in _CORNERS
            ]
            if x1 <= x0 or y1 <= y0:
                raise ValueError(f"{path}: expected xmin < xmax and ymin < ymax, got a box of no area, {box}")
            if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
                raise ValueError(f"{path}: the box {box} lies outside of its picture, {width} wide and {height} high")
            boxes.append(box)
            names.append(name)
    return XMLBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), names, width, height)


def xml_rows(folder: Path, ids: Sequence[str]) -> dict[str, list[BoxRow]]:
    """Return the boxes of the pictures that have an XML file in a folder, as `read_boxes` does of a table.

    Of an id such as n01440764/x.JPEG, whose folder is the name of some object in it, those objects count, else all.
    """
    table = {}
    for name in ids:
        if (path := _xml_file(folder, name)) is not None:
            annotation = ilsvrc_boxes(path)
            own = Path(name).parent.name
            table[name] = [
                BoxRow(line=number, label=label, box=tuple(box), frame=(annotation.width, annotation.height))
                for number, (box, label) in enumerate(zip(annotation.boxes.tolist(), annotation.names, strict=True), 1)
                if own not in annotation.names or label == own
            ]
    return {name: rows for name, rows in table.items() if rows}


def _xml_file(folder: Path, name: str) -> Path | None:
    """Return the XML file of a picture, in a folder of its class or not."""
    picture = Path(name)
    file = f"{picture.stem}.xml"
    tries = (folder / picture.parent / file, folder / picture.parent.name / file, folder / file)
    return next((path for path in tries if path.is_file()), None)


class ILSVRC(ListedPictures):
    """Pictures in `root/split/<synset>/*`, boxes in `boxes/<synset>/<stem>.xml` or `boxes/<stem>.xml`.

    A picture without a file of boxes has none. Boxes are scaled from the size that the XML states to that
    of the picture, so resized copies work. Pictures that lie in `root/split` itself, as the validation set comes,
    are of the class that their XML names first; `classes`, else the folders of `root/train`, say its number.
    Errors: as `ImageFolder` and `ilsvrc_boxes`; ValueError for such a picture without boxes.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        boxes: str | Path,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: ReadImage = read_image,
    ) -> None:
        super().__init__(root, transform=transform, read=read)
        self.boxes = Path(boxes)
        if not self.boxes.is_dir():
            raise FileNotFoundError(f"no folder of XML boxes {self.boxes}: expected <synset>/<picture>.xml in it")
        labelled = self._flat(split) if self._is_flat(split) else labelled_pictures(self.root, split)
        if classes is None and self._is_flat(split) and (self.root / "train").is_dir():
            classes = [folder.name for folder in class_folders(self.root, "train")]
        self.classes = pin_classes(sorted(set(labelled.values())), classes, where=self.root / split)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.ids, self.targets = list(labelled), [numbers[synset] for synset in labelled.values()]
        self.settle_depth()
        if skip_broken:
            self.leave_out_broken()

    def sample(self, index: int) -> Sample:
        """Return a picture with its boxes."""
        image = self.picture(index)
        boxes = self._boxes(index, width=image.shape[-1], height=image.shape[-2])
        return Sample(id=self.ids[index], image=image, target=self.targets[index], boxes=boxes)

    def _is_flat(self, split: str) -> bool:
        folder = self.root / split
        return folder.is_dir() and not any(path.is_dir() for path in folder.iterdir())

    def _flat(self, split: str) -> dict[str, str]:
        labelled = {}
        for name in list_images(self.root / split):
            path = _xml_file(self.boxes, name)
            names = [] if path is None else ilsvrc_boxes(path).names
            if not names:
                raise ValueError(
                    f"the class of {self.root / split / name} is not known: expected {Path(name).stem}.xml with an "
                    f"object in {self.boxes}, or the picture in a folder of its class"
                )
            labelled[f"{split}/{name}"] = names[0]
        return labelled

    def _boxes(self, index: int, *, width: int, height: int) -> Boxes:
        synset, name = self.classes[self.targets[index]], self.ids[index]
        path = _xml_file(self.boxes, f"{synset}/{Path(name).name}")
        if path is None:
            return no_boxes()
        annotation = ilsvrc_boxes(path, synset)
        sx, sy = width / annotation.width, height / annotation.height
        return annotation.boxes * torch.tensor([sx, sy, sx, sy])


class OxfordPets(ListedPictures):
    """Oxford-IIIT Pet: 37 breeds, `trainval` or `test`, with trimaps as pixel masks (the border is ignored).

    The box is the tight box of the object's pixels. `download` lets torchvision fetch it into `root`.
    Errors: FileNotFoundError where it is not there. Source: Parkhi et al., 2012.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        download: bool = False,
        read: ReadImage = read_image,
    ) -> None:
        from torchvision.datasets import OxfordIIITPet

        if split not in ("trainval", "test"):
            raise ValueError(f"expected the split 'trainval' or 'test', got {split!r}")
        try:
            pets = OxfordIIITPet(root, split=split, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no Oxford-IIIT Pet in {root}: expected {PETS}/images and {PETS}/annotations there, or download=True "
                "(--download)"
            ) from error
        super().__init__(Path(root) / PETS, transform=transform, read=read)
        self.classes = pin_classes(list(pets.classes), classes, where=self.root)
        lines = (self.root / "annotations" / f"{split}.txt").read_text().split("\n")
        fields = [line.split() for line in lines if line.strip()]
        self.ids = [f"images/{field[0]}.jpg" for field in fields]
        self.targets = [self.classes.index(pets.classes[int(field[1]) - 1]) for field in fields]
        self.settle_depth()
        if skip_broken:
            self.leave_out_broken()

    def sample(self, index: int) -> Sample:
        """Return a picture with its trimap and the box of that."""
        name = self.ids[index]
        pixels = read_pixels(self.root / "annotations" / "trimaps" / f"{Path(name).stem}.png", codes=(TRIMAP,))
        target, boxes = self.targets[index], boxes_of(pixels)
        return Sample(id=name, image=self.picture(index), target=target, boxes=boxes, pixels=pixels)


_SIZE = ("width", "height")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Layout:
    """A way in which data lie on the disk.

    open: (folder, split, transform=, skip_broken=, classes=, read=) -> the split. has: whether there is such a split.
    """

    open: Callable[..., Labelled]
    has: Callable[[Path, str], bool]


def _folder(root: Path, split: str, **given: object) -> Labelled:
    return (LabelledPictures if has_labels(root, split) else ImageFolder)(root, split, **given)  # type: ignore[arg-type]


def _ilsvrc(root: Path, split: str, **given: object) -> Labelled:
    return ILSVRC(_pictures(root), split, boxes=_boxes(root, split), **given)  # type: ignore[arg-type]


def _pets(root: Path, split: str, **given: object) -> Labelled:
    return OxfordPets(root, PETS_SPLITS.get(split, split), **given)  # type: ignore[arg-type]


def _pairs(root: Path, split: str, *, read: ReadImage, **given: object) -> Labelled:
    return PairedFolder(root, split, read=read if isinstance(read, Reader) else None, **given)  # type: ignore[arg-type]


def _shards(root: Path, split: str, **given: object) -> Labelled:
    return Shards(str(root), split, **given)  # type: ignore[arg-type]


def _table(root: Path, split: str, **given: object) -> Labelled:
    kind = Streamed if table_spec(str(root)).streaming else Table
    return kind(str(root), split, **given)  # type: ignore[arg-type]


def label_names(spec: str, split: str) -> list[str] | None:
    """Return the names of a table's classes, in the order of its own numbers; None where it has none."""
    features = _rows(spec, split).features
    return class_names_in(features, columns_of(features, spec)[1])


def _rows(spec: str, split: str) -> "Tables":
    """Return a split of a table, with its `features`."""
    return (open_stream if table_spec(spec).streaming else open_table)(spec, split)


def _is_there(root: Path, split: str) -> bool:
    return (_pictures(root) / split).is_dir() or has_labels(root, split)


def _can(find: Callable[[str, str], object], root: Path, split: str) -> bool:
    """Return whether a split is found, where what finds it raises an error for one that is not there."""
    try:
        find(str(root), split)
    except ValueError:
        return False
    return True


LAYOUTS: Mapping[str, Layout] = {
    "folder": Layout(_folder, _is_there),
    "ilsvrc": Layout(_ilsvrc, _is_there),
    "pets": Layout(_pets, lambda root, split: True),
    "pairs": Layout(_pairs, lambda root, split: any((folder / split).is_dir() for folder in root.glob("*"))),
    "wds": Layout(_shards, partial(_can, shard_files)),
    "hf-dataset": Layout(_table, partial(_can, _rows)),
}
"""Layouts by the prefix of a spec."""
