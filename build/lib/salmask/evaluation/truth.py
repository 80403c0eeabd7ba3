"""What saved maps are scored against: boxes of a table, a folder of pixel masks, labels; read, checked, scaled."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from salmask.data.folders import BoxRow, read_boxes, read_table
from salmask.data.layouts import xml_rows
from salmask.data.pictures import read_pixels
from salmask.types import Boxes, Pixels

__all__ = ["Label", "Truth", "read_labels", "read_truth"]

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Label:
    """What is known of an image's class: the explained class and, if given, the explained model's own top-1."""

    target: int
    predicted: int | None = None


@dataclass(frozen=True)
class Truth:
    """Ground truth by image id: boxes as the table has them, the folder of pixel masks, labels.

    table: the file that the boxes come from, for errors. place: id, boxes in pixels of its picture -> of its map, for
    boxes whose table does not say which picture they are in; None where they are in pixels of the maps.
    """

    boxes: Mapping[str, Sequence[BoxRow]] | None = None
    masks: Path | None = None
    labels: Mapping[str, Label] | None = None
    table: Path | None = None
    place: Callable[[str, Boxes], Boxes] | None = None

    def has(self) -> set[str]:
        """Return the fields of Case that can be filled."""
        kinds = {name for name, value in (("boxes", self.boxes), ("pixels", self.masks)) if value is not None}
        has_decisions = self.labels is not None and all(label.predicted is not None for label in self.labels.values())
        return kinds | ({"correct"} if has_decisions else set())

    def only(self, ids: Sequence[str]) -> "Truth":
        """Return the truth of these images alone."""
        return replace(self, boxes=_kept(self.boxes, ids), labels=_kept(self.labels, ids))

    def match(self, ids: Sequence[str]) -> None:
        """Raise ValueError unless every map has its truth, and every row of truth its map."""
        all_ids = set(ids)
        for what, table in (("boxes", self.boxes), ("labels", self.labels)):
            if table is None:
                continue
            without = [name for name in ids if name not in table]
            beyond = [name for name in table if name not in all_ids]
            alone = f"{what} without a map for {_some(beyond)}"
            if without:
                also = f", and {alone}: are the ids written alike? Else" if beyond else ":"
                raise ValueError(f"{_some(without)} without {what}{also} add rows for them or leave these maps out")
            if beyond:
                raise ValueError(
                    f"{alone}: write the ids alike on both sides (a map is named {ids[0]!r}), or say --only-scored "
                    "(Work.only_scored) to leave these rows out"
                )
        if self.masks is None:
            return
        if not self.masks.is_dir():
            raise ValueError(f"no folder of pixel masks {self.masks}: expected files such as {ids[0]}.png in it")
        if without := [name for name in ids if _mask_file(self.masks, name) is None]:
            raise ValueError(
                f"{_some(without)} without a mask in {self.masks}: expected files such as {without[0]}.png"
            )

    def check_labels(self, ids: Sequence[str], classes: int, *, predicted: bool) -> None:
        """Raise ValueError for a label that is none of the classes that the scoring classifier tells apart.

        predicted: look at the predicted class, too.
        """
        for name in ids if self.labels is not None else ():
            label = self.labels[name]  # type: ignore[index]
            for what, value in (("label", label.target), ("predicted class", label.predicted if predicted else None)):
                if value is not None and value >= classes:
                    raise ValueError(
                        f"the {what} of {name!r} must be a class index in [0, {classes - 1}] of the scoring "
                        f"classifier; got {value}"
                    )

    def check(self, ids: Sequence[str], size: tuple[int, int]) -> None:
        """Look at all boxes and masks of maps of a size (H, W), so that a long run does not meet bad ones at its end.

        Masks without an object or of another shape are told in one warning.
        Errors: ValueError for boxes outside of their map, and for broken masks.
        """
        for name in ids:
            self.boxes_on(name, size)
        if self.masks is not None:
            self._check_masks(ids, size)

    def boxes_on(self, name: str, size: tuple[int, int]) -> Boxes | None:
        """Return boxes in pixels of the maps; they may reach over the edge (crops do that), not lie beyond it."""
        if self.boxes is None:
            return None
        height, width = size
        rows = self.boxes[name]
        boxes = np.array([row.box for row in rows], dtype=np.float64)
        if self.place is not None and rows[0].frame is None:
            boxes = self.place(name, torch.from_numpy(boxes.astype(np.float32))).numpy().astype(np.float64)
        else:
            frames = np.array([row.frame or (width, height) for row in rows], dtype=np.float64)
            boxes *= np.tile([width, height] / frames, 2)
        outside = (boxes[:, 0] >= width) | (boxes[:, 1] >= height) | (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
        if outside.any():
            row = rows[int(outside.argmax())]
            raise ValueError(
                f"{self.table} line {row.line}: the box {row.box} of {name!r} lies outside of its map, {width} wide "
                f"and {height} high: give boxes in pixels of the maps (with --data, of the pictures), or the columns "
                "width,height of the picture that they are in"
            )
        return torch.from_numpy(boxes.astype(np.float32))

    def pixels_on(self, name: str, size: tuple[int, int]) -> Pixels | None:
        """Return the pixel mask of an image, brought to the maps' size by nearest neighbour."""
        if self.masks is None:
            return None
        path = _mask_file(self.masks, name)
        assert path is not None  # by match
        pixels = read_pixels(path)
        if tuple(pixels.shape) == size:
            return pixels
        return torch.from_numpy(cv2.resize(pixels.numpy(), size[::-1], interpolation=cv2.INTER_NEAREST))

    def _check_masks(self, ids: Sequence[str], size: tuple[int, int]) -> None:
        """Decode every mask once; warn of those without an object and of those that will be stretched."""
        assert self.masks is not None
        bare, stretched = [], []
        for name in ids:
            path = _mask_file(self.masks, name)
            assert path is not None  # by match
            pixels = read_pixels(path)
            bare += [name] * (not bool((pixels == 1).any()))
            stretched += [name] * (pixels.shape[0] * size[1] != pixels.shape[1] * size[0])
        if bare:
            warnings.warn(f"{_some(bare)} have no object pixel (255) in their mask: no score against it", stacklevel=4)
        if stretched:
            warnings.warn(
                f"the masks of {_some(stretched)} have another shape than the maps, {size[1]} wide and {size[0]} "
                "high, and are stretched onto them",
                stacklevel=4,
            )


def read_truth(
    boxes: str | Path | None, masks: str | Path | None, labels: str | Path | None, ids: Sequence[str]
) -> Truth:
    """Read what is given; boxes: a table, or a folder of XML files, of which those of the ids are read.

    Errors: FileNotFoundError; ValueError naming file and line.
    """
    table = None if boxes is None else Path(boxes)
    read = None if table is None else (xml_rows(table, ids) if table.is_dir() else read_boxes(table))
    return Truth(
        boxes=read,
        masks=None if masks is None else Path(masks),
        labels=None if labels is None else read_labels(labels),
        table=table,
    )


def _kept(table: Mapping[str, _Row] | None, ids: Sequence[str]) -> dict[str, _Row] | None:
    all_ids = set(ids)
    return None if table is None else {name: row for name, row in table.items() if name in all_ids}


def read_labels(path: str | Path) -> dict[str, Label]:
    """Read image,label[,predicted]: class indices >= 0. Errors: ValueError naming the line."""
    table: dict[str, Label] = {}
    for line, row in read_table(Path(path), ("image", "label"), more="and predicted if wanted"):
        where = f"{path} line {line}"
        if row["image"] in table:
            raise ValueError(f"{where}: the image {row['image']!r} comes twice")
        predicted = _class(row["predicted"], where) if "predicted" in row else None
        table[row["image"]] = Label(_class(row["label"], where), predicted)
    return table


def _class(text: str | None, where: str) -> int:
    if text is None or not text.strip().isdecimal():
        raise ValueError(f"{where}: expected a class index (0, 1, ...), got {text!r}")
    return int(text)


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ids ({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''})"


def _mask_file(folder: Path, name: str) -> Path | None:
    tries = (folder / name, (folder / name).with_suffix(".png"), folder / f"{name}.png")
    return next((path for path in tries if path.suffix.lower() == ".png" and path.is_file()), None)
