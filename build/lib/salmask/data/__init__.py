"""Everything that reads data, under one name: readers, transforms, batches, subsets.

    dataset = ImageFolder("pictures", "train", transform=Squash(128))
    for batch in training_batches(cached(dataset), batch_size=64, seed=0, augment=CropFlip(128)): ...

The parts: `sample` (a sample, a batch, the transforms), `pictures` (files), `folders`, `flat` and `layouts` (which
files a data set is made of), `streams` (batches and subsets).
"""

from salmask.data.folders import ImageFolder, boxes_in, read_boxes
from salmask.data.labels import LabelledPictures
from salmask.data.layouts import ILSVRC, OxfordPets, absolute, has_split, ilsvrc_boxes, open_data
from salmask.data.pictures import Reader, TooLargeError, read_image, read_pixels
from salmask.data.sample import (
    Batch,
    CropFlip,
    Labelled,
    Pad,
    Sample,
    SampleTransform,
    ShortSide,
    Squash,
    clip_boxes,
    collate,
    move,
    no_boxes,
)
from salmask.data.sight import Sight
from salmask.data.streams import (
    Cached,
    Subset,
    cached,
    evaluation_batches,
    shuffled_labels,
    split_off,
    subset,
    training_batches,
)

__all__ = [
    "ILSVRC",
    "Batch",
    "Cached",
    "CropFlip",
    "ImageFolder",
    "Labelled",
    "LabelledPictures",
    "OxfordPets",
    "Pad",
    "Reader",
    "Sample",
    "SampleTransform",
    "ShortSide",
    "Sight",
    "Squash",
    "Subset",
    "TooLargeError",
    "absolute",
    "boxes_in",
    "cached",
    "clip_boxes",
    "collate",
    "evaluation_batches",
    "has_split",
    "ilsvrc_boxes",
    "move",
    "no_boxes",
    "open_data",
    "read_boxes",
    "read_image",
    "read_pixels",
    "shuffled_labels",
    "split_off",
    "subset",
    "training_batches",
]
