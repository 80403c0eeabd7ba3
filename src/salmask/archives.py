"""Published layouts: ILSVRC with its XML boxes, and Oxford-IIIT Pet with its trimaps."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from salmask.boxes import boxes_of
from salmask.readers import class_folders, finite_number, list_images, read_image
from salmask.samples import Sample, SampleTransform, no_boxes
from salmask.types import IGNORED, Boxes, Pixels

__all__ = ["ILSVRC", "OxfordPets", "XMLBoxes", "ilsvrc_boxes"]


class XMLBoxes(NamedTuple):
    """Boxes of one class in one picture, and the picture's size as the file states it."""

    boxes: Boxes
    width: int
    height: int


def ilsvrc_boxes(path: Path, synset: str) -> XMLBoxes:
    """Read the boxes of the objects whose <name> is `synset`.

    The XML's numbers are taken as half-open, as the published scores do, although the annotators meant the
    maxima inclusive; boxes are not cut at the border. Errors: FileNotFoundError, ValueError naming the
    file.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML file of boxes ({error}): fetch it again or remove it") from error
    width, height = (int(finite_number(tree.findtext(f"size/{key}"), where=f"{path}, {key}")) for key in _SIZE)
    boxes = []
    for thing in tree.iter("object"):
        if thing.findtext("name") == synset:
            box = [finite_number(thing.findtext(f"bndbox/{key}"), where=f"{path}, {key}") for key in _CORNERS]
            if box[2] <= box[0] or box[3] <= box[1]:
                raise ValueError(f"{path}: expected xmin < xmax and ymin < ymax, came a box of no area, {box}")
            boxes.append(box)
    return XMLBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), width, height)


class ILSVRC(Dataset[Sample]):
    """Pictures in `root/split/<synset>/*`, boxes in `boxes/<synset>/<stem>.xml` or `boxes/<stem>.xml`.

    A picture without a file of boxes has none. Boxes are scaled from the size that the XML states to that
    of the picture, so resized copies work. Errors: as `ImageFolder` and `ilsvrc_boxes`.
    """

    def __init__(
        self, root: str | Path, split: str, *, boxes: str | Path, transform: SampleTransform | None = None
    ) -> None:
        self.root, self.boxes, self.transform = Path(root), Path(boxes), transform
        if not self.boxes.is_dir():
            raise FileNotFoundError(f"no folder of XML boxes {self.boxes}: expected <synset>/<picture>.xml in it")
        folders = class_folders(self.root, split)
        self.classes = [folder.name for folder in folders]
        files = [(target, folder.name, name) for target, folder in enumerate(folders) for name in list_images(folder)]
        self.ids = [f"{split}/{synset}/{name}" for _, synset, name in files]
        self.targets = [target for target, _, _ in files]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = read_image(self.root / self.ids[index])
        boxes = self._boxes(index, width=image.shape[-1], height=image.shape[-2])
        sample = Sample(id=self.ids[index], image=image, target=self.targets[index], boxes=boxes)
        return sample if self.transform is None else self.transform(sample)

    def _boxes(self, index: int, *, width: int, height: int) -> Boxes:
        synset, stem = self.classes[self.targets[index]], Path(self.ids[index]).stem
        for path in (self.boxes / synset / f"{stem}.xml", self.boxes / f"{stem}.xml"):
            if path.exists():
                found = ilsvrc_boxes(path, synset)
                sx, sy = width / found.width, height / found.height
                return found.boxes * torch.tensor([sx, sy, sx, sy])
        return no_boxes()


class OxfordPets(Dataset[Sample]):
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
        download: bool = False,
    ) -> None:
        from torchvision.datasets import OxfordIIITPet

        if split not in ("trainval", "test"):
            raise ValueError(f"expected the split 'trainval' or 'test', came {split!r}")
        try:
            known = OxfordIIITPet(root, split=split, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no Oxford-IIIT Pet in {root}: expected oxford-iiit-pet/images and /annotations, or download=True"
            ) from error
        self.root, self.transform = Path(root) / "oxford-iiit-pet", transform
        self.classes = list(known.classes)
        lines = (self.root / "annotations" / f"{split}.txt").read_text().split("\n")
        fields = [line.split() for line in lines if line.strip()]
        self._names = [field[0] for field in fields]
        self.ids = [f"images/{name}.jpg" for name in self._names]
        self.targets = [int(field[1]) - 1 for field in fields]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        pixels = _trimap(self.root / "annotations" / "trimaps" / f"{self._names[index]}.png")
        image = read_image(self.root / self.ids[index])
        sample = Sample(
            id=self.ids[index],
            image=image,
            target=self.targets[index],
            boxes=boxes_of(pixels),
            pixels=pixels,
        )
        return sample if self.transform is None else self.transform(sample)


def _trimap(path: Path) -> Pixels:
    """Read a trimap: 1 object, 2 background, 3 border."""
    with Image.open(path) as picture:
        array = np.array(picture)
    if array.ndim != 2 or not set(np.unique(array).tolist()) <= {1, 2, 3}:
        raise ValueError(f"the trimap {path} must hold 1 (object), 2 (background), 3 (border) only")
    return torch.from_numpy(np.array([0, 1, 0, IGNORED], np.uint8)[array])


_SIZE = ("width", "height")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
