"""Pictures in Hugging Face data sets: what `save_to_disk` wrote, a folder of parquet files, or a name on the Hub.

    hf-dataset:PATH                         the only column of pictures, and the only one of classes
    hf-dataset:PATH:image=NAME,label=NAME   others

Tables are mapped into memory, not read; a picture's bytes are decoded by the library's own reader. A name on the Hub is
fetched once into the cache of `datasets`. Source: Lhoest et al., 2021 (Datasets).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from salmask.data.flat import UNLABELLED
from salmask.data.listed import ReadImage
from salmask.data.numbered import Numbered
from salmask.data.pictures import read_image
from salmask.data.rasters import Held
from salmask.data.sample import SampleTransform

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Table", "label_names", "open_table"]

_RUN = 1000  # rows that count as lying together
_LABELS = ("label", "labels", "cls", "class", "fine_label")
_SPLITS: Mapping[str, Sequence[str]] = {"val": ("val", "validation", "valid", "test"), "train": ("train",)}


class Table(Numbered):
    """The pictures in a data set of Hugging Face's, row by row; ids are SPLIT/ROW.

    Classes go by the names of the column where it has some (`ClassLabel`), else by number; without such a column all
    are `UNLABELLED`. `classes` gives the order of the targets. skip_broken: as of `Shards`.

    Errors: ImportError naming the extra; ValueError for no such data or split, naming those that there are, and for no
    column of pictures, naming the columns.
    """

    def __init__(
        self,
        spec: str,
        split: str,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: ReadImage = read_image,
    ) -> None:
        from datasets import Image

        path, columns = _parts(spec)
        table = open_table(spec, split)
        image, label = _columns(table, columns, where=path)
        self.spec, self.split, self.image = path, split, image
        table = table if table._indices is None else table.flatten_indices()
        self.table = table.cast_column(image, Image(decode=False)).with_format(None)
        count = len(table)
        labels = np.full(count, UNLABELLED) if label is None else _numbers(table, label, where=path)
        super().__init__(
            f"the data set {path!r}",
            labels,
            np.array([*range(0, count, _RUN), count]),
            names=_names(table, label),
            classes=classes,
            transform=transform,
            read=read,
            skip_broken=skip_broken,
        )

    def held(self, row: int) -> Held:
        """Return the bytes of a picture, with its place in words."""
        picture = self.table.data.column(self.image)[row].as_py()  # a tenth of what self.table[row] takes
        where = f"{self.spec}, row {row} of {self.split}"
        if picture is None:
            raise ValueError(f"{where} has no picture in its column {self.image!r}")
        content = picture["bytes"]
        return Held(where, Path(picture["path"]).read_bytes() if content is None else content)

    def name(self, row: int) -> str:
        """Return the id of a picture."""
        return f"{self.split}/{row:08d}"


def open_table(spec: str, split: str) -> "Dataset":
    """Return a split of the data set that a spec names; one that was saved without splits stands for any."""
    try:
        from datasets import DatasetDict, load_dataset, load_from_disk
    except ImportError as error:
        raise ImportError("data sets of Hugging Face need the package: pip install 'salmask[datasets]'") from error
    name = _parts(spec)[0]
    path = Path(name)
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        found = load_from_disk(name)
    elif path.is_dir() or path.suffix == ".parquet":
        files = {"data_files": name} if path.suffix == ".parquet" else {"data_dir": name}
        if path.is_dir() and not any(path.rglob("*.parquet")):
            raise ValueError(f"{name} is no data set of Hugging Face's: expected what save_to_disk wrote, or *.parquet")
        found = load_dataset("parquet", **files)
    else:
        try:
            found = load_dataset(name)
        except Exception as error:  # of the Hub, the network, or the name: many kinds
            first = str(error).partition("\\n")[0]
            raise ValueError(
                f"no data set {name!r}: expected a folder that save_to_disk wrote, a folder of parquet files, or a "
                f"name on the Hub that can be fetched ({type(error).__name__}: {first})"
            ) from error
    if not isinstance(found, DatasetDict):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    wanted = next((one for one in _SPLITS.get(split, (split,)) if one in found), None)
    if wanted is None:
        raise ValueError(f"{name} has no split {split!r}: expected one of {', '.join(found)}")
    return found[wanted]


def label_names(spec: str, split: str) -> list[str] | None:
    """Return the names of a data set's classes, in the order of its own numbers; None where it has none."""
    table = open_table(spec, split)
    path, columns = _parts(spec)
    return _names(table, _columns(table, columns, where=path)[1])


def _parts(spec: str) -> tuple[str, dict[str, str]]:
    """Return the path, and the columns that are named after it."""
    path, colon, last = spec.rpartition(":")
    pairs = [pair.partition("=") for pair in last.split(",")]
    if not colon or not all(equals for _, equals, _ in pairs):
        return spec, {}
    columns = {key: value for key, _, value in pairs}
    if unknown := columns.keys() - {"image", "label"}:
        raise ValueError(f"expected hf-dataset:PATH:image=COLUMN,label=COLUMN, got {sorted(unknown)[0]!r} in {spec!r}")
    return path, columns


def _columns(table: "Dataset", columns: Mapping[str, str], *, where: str) -> tuple[str, str | None]:
    """Return the columns of pictures and of classes."""
    from datasets import ClassLabel, Image, Value

    kinds = {name: type(kind).__name__ for name, kind in table.features.items()}
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    for name in columns.values():
        if name not in kinds:
            raise ValueError(f"{where} has no column {name!r}: its columns are {listed}")
    pictures = [name for name, kind in table.features.items() if isinstance(kind, Image)]
    image = columns.get("image", pictures[0] if len(pictures) == 1 else None)
    if image is None or not isinstance(table.features[image], Image):
        raise ValueError(
            f"{where} has {len(pictures) or 'no'} columns of pictures (Image), expected one: its columns are {listed}; "
            "name one with hf-dataset:PATH:image=COLUMN, after cast_column(COLUMN, Image()) where it holds bytes"
        )
    classes = [name for name, kind in table.features.items() if isinstance(kind, ClassLabel)]
    numbers = [
        name
        for name, kind in table.features.items()
        if name in _LABELS and isinstance(kind, Value) and kind.dtype.startswith(("int", "uint"))
    ]
    found = classes or numbers
    if "label" not in columns and len(found) > 1:
        raise ValueError(f"{where} has several columns of classes, {', '.join(found)}: name one with label=COLUMN")
    return image, columns.get("label", found[0] if found else None)


def _names(table: "Dataset", label: str | None) -> list[str] | None:
    from datasets import ClassLabel

    kind = None if label is None else table.features[label]
    return list(kind.names) if isinstance(kind, ClassLabel) else None


def _numbers(table: "Dataset", label: str, *, where: str) -> np.ndarray:
    """Return the column of classes. Errors: ValueError for what is no whole number."""
    values = np.asarray(table.select_columns([label]).with_format("numpy")[:][label])
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"{where}: expected whole numbers in the column of classes {label!r}, got {values.dtype}")
    return values.astype(np.int64)
