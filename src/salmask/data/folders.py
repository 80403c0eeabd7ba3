"""Picture files, box tables and pixel masks, and the folder layout that holds all three.

    root/<split>/<class>/*.jpg ...        the pictures, a folder a class
    root/<split>_boxes.csv                image,class,x0,y0,x1,y1[,width,height]; several rows an image
    root/<split>_masks/<class>/<stem>.png pixel masks: 0 background, 255 object, 128 ignored, or a trimap of 1, 2, 3

Boxes and masks are optional. `image` is the path relative to the root. Boxes are half-open, in pixels of
the upright picture or, where `width,height` are given, of a picture of that size.
"""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from salmask.boxes import boxes_of
from salmask.data.endings import list_pictures
from salmask.data.listed import ListedPictures, ReadImage, warn_of_ignored
from salmask.data.pictures import read_image, read_pixels, upright_size
from salmask.data.sample import Sample, SampleTransform, no_boxes
from salmask.files import regular_file
from salmask.types import Boxes, Pixels

__all__ = [
    "BoxRow",
    "ImageFolder",
    "boxes_by_image",
    "boxes_in",
    "check_frames",
    "class_folders",
    "finite_number",
    "labelled_pictures",
    "list_images",
    "pin_classes",
    "pixels_for",
    "read_boxes",
    "read_table",
]

HEADER = ("image", "class", "x0", "y0", "x1", "y1")


class BoxRow(NamedTuple):
    """One line of a box table. `frame` is the (width, height) that the box is in, if the table says so."""

    line: int
    label: str
    box: tuple[float, float, float, float]
    frame: tuple[float, float] | None


def read_boxes(path: Path) -> dict[str, list[BoxRow]]:
    """Read a box table, by image. Header `image,class,x0,y0,x1,y1`, optionally `width,height`; more columns may follow.

    Errors: FileNotFoundError; ValueError naming the line, for a missing column, something that is no
    number, a box of zero area, a box outside of the stated width and height, boxes that are shares of pictures.
    """
    table: dict[str, list[BoxRow]] = {}
    for line, row in read_table(path, HEADER, more="and width,height if wanted"):
        if ("width" in row) != ("height" in row):
            raise ValueError(f"{path}: expected both of the columns width,height or none, got {','.join(row)}")
        table.setdefault(row["image"], []).append(_box_row(row, path=path, line=line))
    _check_pixels([row for rows in table.values() for row in rows], path)
    return table


def _check_pixels(rows: Sequence[BoxRow], path: Path) -> None:
    """Raise ValueError for a table of boxes that are shares of their pictures, as YOLO's are."""
    numbers = [number for row in rows if row.frame is None for number in row.box]
    if numbers and max(numbers) <= 1 and any(number % 1 for number in numbers):
        raise ValueError(
            f"{path}: every box lies between 0 and 1, as shares of a picture do: give pixels, or add the columns "
            "width,height of 1,1"
        )


def read_table(path: Path, header: Sequence[str], *, more: str) -> list[tuple[int, dict[str, str]]]:
    """Read (line, row) of a CSV table that has the columns of `header` at least; `more` names others in errors.

    Errors: FileNotFoundError; ValueError for another header, for what is no text, for a line with too few fields.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a CSV table with the header {','.join(header)}")
    regular_file(path, f"a CSV table with the header {','.join(header)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = tuple(rows.fieldnames or ())
            if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
                raise ValueError(f"{path}: the header names the column {twice[0]!r} {columns.count(twice[0])} times")
            if not set(header) <= set(columns):
                raise ValueError(
                    f"{path}: expected the header {','.join(header)} ({more}), got "
                    f"{','.join(columns)[:100] or 'an empty file'}"
                )
            table = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is no CSV table ({error}): expected text with the header {','.join(header)}"
        ) from error
    for line, row in table:
        if any(value is None for value in row.values()):
            raise ValueError(f"{path} line {line}: expected {len(columns)} fields as in the header, got fewer")
    return table


def boxes_in(rows: Sequence[BoxRow], *, width: int, height: int, source: str) -> Boxes:
    """Return the boxes of one image in pixels of a width x height array; `source` names the table in errors.

    Rows with a frame are scaled from it. Errors: ValueError naming the line of a box outside of the array.
    """
    boxes = []
    for row in rows:
        sx, sy = (1.0, 1.0) if row.frame is None else (width / row.frame[0], height / row.frame[1])
        box = (row.box[0] * sx, row.box[1] * sy, row.box[2] * sx, row.box[3] * sy)
        if row.frame is None:
            _inside(row, width=width, height=height, source=source)
        boxes.append(box)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


class ImageFolder(ListedPictures):
    """Pictures in a folder a class, with boxes and pixel masks where there are any.

    `classes` pins the order (and so the targets) to that of another split; else the sorted folder names.
    Boxes whose class is another than the picture's are left out: they are no evidence for it. Where there
    is a mask but no box table, the box is the tight box of the mask. Everything but the pictures themselves
    is checked here, at once; a picture that cannot be decoded is named when it is read. `skip_broken`
    decodes all of them here and leaves the broken ones out, with one warning. `read` decodes a file. Files that are
    no pictures, or of a kind that cannot be read here, are counted in a warning.

    Errors: FileNotFoundError for a missing folder; ValueError for a class folder without pictures, an
    unknown class, a table that names a missing picture, a box outside of its picture.
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
        labelled = labelled_pictures(self.root, split)
        self.classes = pin_classes([*dict.fromkeys(labelled.values())], classes, where=self.root / split)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.ids, self.targets = list(labelled), [numbers[name] for name in labelled.values()]
        self._table = self.root / f"{split}_boxes.csv"
        self._rows = self._boxes_by_image() if self._table.exists() else {}
        self._masks = self.root / f"{split}_masks"
        self._has_masks = self._masks.is_dir()
        self.settle_depth()
        if skip_broken:
            self.leave_out_broken()
        check_frames(self.root, self._table, {name: self._rows[name] for name in self.ids if name in self._rows})

    def sample(self, index: int) -> Sample:
        """Return a picture with its boxes and its pixel mask."""
        name, image = self.ids[index], self.picture(index)
        height, width = image.shape[-2:]
        rows = self._rows.get(name, [])
        boxes = boxes_in(rows, width=width, height=height, source=str(self._table)) if rows else no_boxes()
        pixels = None
        if self._has_masks:
            mask = (self._masks / Path(name).relative_to(self.split)).with_suffix(".png")
            pixels = pixels_for(mask, (height, width))
        if pixels is not None and not self._table.exists():
            boxes = boxes_of(pixels)
        return Sample(id=name, image=image, target=self.targets[index], boxes=boxes, pixels=pixels)

    def _boxes_by_image(self) -> dict[str, list[BoxRow]]:
        table = boxes_by_image(self._table, self.ids, self.classes)
        labels = dict(zip(self.ids, (self.classes[target] for target in self.targets), strict=True))
        return {name: [row for row in rows if row.label == labels[name]] for name, rows in table.items()}


def boxes_by_image(table: Path, ids: Sequence[str], classes: Sequence[str]) -> dict[str, list[BoxRow]]:
    """Return the boxes of a table by picture. Errors: ValueError for a picture or a class that is not among the given.

    ids: paths of the pictures, relative to the folder of the table.
    """
    rows, there = read_boxes(table), set(ids)
    for name, own in rows.items():
        if name not in there:
            raise ValueError(
                f"{table} line {own[0].line} names {name}, which is not among the {len(ids)} pictures of the split: "
                f"paths are relative to {table.parent}, such as {ids[0]}"
            )
        for row in own:
            if row.label not in classes:
                raise ValueError(
                    f"{table} line {row.line}: unknown class {row.label!r}, expected one of "
                    f"{', '.join(classes[:5])} ... ({len(classes)} in all)"
                )
    return rows


def check_frames(root: Path, table: Path, boxes: Mapping[str, Sequence[BoxRow]]) -> None:
    """Raise ValueError for a box that reaches outside of its picture, as far as the heads of the files tell."""
    for name, own in boxes.items():
        rows = [row for row in own if row.frame is None]
        size = upright_size(root / name) if rows else None
        if size is not None:
            boxes_in(rows, width=size[0], height=size[1], source=str(table))


def pixels_for(path: Path, size: tuple[int, int]) -> Pixels | None:
    """Return the pixel mask of a picture of size (height, width), or None without the file. Errors: ValueError."""
    if not path.exists():
        return None
    pixels = read_pixels(path)
    if pixels.shape != size:
        raise ValueError(
            f"the pixel mask {path} must have the size of its upright picture, {size[1]}x{size[0]}; got "
            f"{pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels


def class_folders(root: Path, split: str) -> list[Path]:
    """Return the class folders of a split, sorted. Errors: FileNotFoundError, ValueError for a split without any."""
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}: expected a folder with {split}/<class>/<pictures>")
    folder = root / split
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise FileNotFoundError(
            f"{root} has no split {split!r}: expected {split}/<class>/<pictures>, got the folders "
            f"{', '.join(there) or '(none)'}"
        )
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{folder} has no class folders: expected {split}/<class>/<pictures>")
    return folders


def labelled_pictures(root: Path, split: str) -> dict[str, str]:
    """Return the class of every picture in the class folders of a split, by its path from the root, sorted.

    Warns of files and folders that are not read. Errors: as `class_folders` and `list_images`.
    """
    folders = class_folders(root, split)
    labelled = {f"{split}/{folder.name}/{name}": folder.name for folder in folders for name in list_images(folder)}
    warn_of_ignored(folders, root / split)
    return labelled


def list_images(folder: Path) -> list[str]:
    """Return the names of the pictures in a class folder, sorted. Errors: ValueError if there are none."""
    names = list_pictures(folder)
    if not names:
        inside = Counter(path.suffix or ("folder" if path.is_dir() else "file") for path in folder.iterdir())
        raise ValueError(
            f"the class folder {folder} has no pictures: expected files such as .jpg or .png in it, got "
            f"{dict(inside) or 'nothing'}; add pictures or remove the folder"
        )
    return names


def pin_classes(names: Sequence[str], classes: Sequence[str] | None, *, where: Path) -> list[str]:
    """Return the given classes, or those found where none are. Errors: ValueError for found ones that are not given."""
    if classes is None:
        return list(names)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(
            f"{where} has classes that the given list lacks: {', '.join(unknown[:5])}; expected some of the "
            f"{len(classes)} classes {', '.join(list(classes)[:5])} ..."
        )
    return list(classes)


def finite_number(text: str | None, *, where: str) -> float:
    """Read a finite number. Errors: ValueError saying `where` and what it got."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a number, got {text!r}")
    return number


def _box_row(row: dict[str, str], *, path: Path, line: int) -> BoxRow:
    where = f"{path} line {line}"
    x0, y0, x1, y1 = (finite_number(row[name], where=f"{where}, {name}") for name in HEADER[2:])
    frame = None
    if "width" in row:
        width, height = (finite_number(row[name], where=f"{where}, {name}") for name in ("width", "height"))
        frame = (width, height)
    parsed = BoxRow(line=line, label=row["class"], box=(x0, y0, x1, y1), frame=frame)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{where}: expected x0 < x1 and y0 < y1, got a box of no area, {parsed.box}")
    if frame is not None:
        _inside(parsed, width=frame[0], height=frame[1], source=str(path))
    return parsed


def _inside(row: BoxRow, *, width: int | float, height: int | float, source: str) -> None:
    x0, y0, x1, y1 = row.box
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise ValueError(
            f"{source} line {row.line}: the box {row.box} reaches outside of its picture, {width:g} wide and "
            f"{height:g} high; expected half-open pixels of the upright picture"
        )
