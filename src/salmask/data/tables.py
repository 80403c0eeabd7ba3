"""Pictures in Hugging Face data sets: what `save_to_disk` wrote, a folder of parquet files, or a name on the Hub.

    hf-dataset:PATH                         the only column of pictures, and the only one of classes
    hf-dataset:PATH:image=NAME,label=NAME   others
    hf-dataset:PATH:config=NAME             one of several data sets under one name on the Hub
    hf-dataset:PATH:streaming               read from where it lies, see `streamed`

Tables are mapped into memory, not read; a picture's bytes are decoded by the library's own reader. A name on the Hub is
fetched once into the cache of `datasets`. Source: Lhoest et al., 2021 (Datasets).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np

from salmask.classifier.reach import bounded
from salmask.data.flat import UNLABELLED
from salmask.data.listed import ReadImage
from salmask.data.numbered import Numbered
from salmask.data.pictures import read_image
from salmask.data.rasters import Held
from salmask.data.sample import SampleTransform
from salmask.files import Facts

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

    Tables: TypeAlias = Dataset | IterableDataset

__all__ = [
    "Table",
    "TableSpec",
    "class_names_in",
    "columns_of",
    "content_of",
    "cut_files",
    "left_out",
    "load_tables",
    "of_split",
    "open_table",
    "table_spec",
    "whole_numbers",
]

_T = TypeVar("_T")
_RUN = 1000  # rows that count as lying together
_STREAMING = "streaming"
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

        path = table_spec(spec).path
        lost = cut_files(table_spec(spec)) if skip_broken else []
        table = open_table(spec, split, **left_out(lost))
        image, label = columns_of(table.features, spec)
        self.spec, self.split, self.image = path, split, image
        with _without_bars():
            table = table if table._indices is None else table.flatten_indices()
        self.table = table.cast_column(image, Image(decode=False)).with_format(None)
        count = len(table)
        labels = np.full(count, UNLABELLED) if label is None else _numbers(table, label, where=path)
        super().__init__(
            f"the data set {path!r}",
            labels,
            np.array([*range(0, count, _RUN), count]),
            names=class_names_in(table.features, label),
            classes=classes,
            transform=transform,
            read=read,
            skip_broken=skip_broken,
            lost=lost,
        )

    def held(self, row: int) -> Held:
        """Return the bytes of a picture, with its place in words."""
        picture = self.table.data.column(self.image)[row].as_py()  # a tenth of what self.table[row] takes
        where = f"{self.spec}, row {row} of {self.split}"
        content = content_of(picture, lambda path: Path(path).read_bytes())
        if content is None:
            raise ValueError(f"{where} has no picture in its column {self.image!r}")
        return Held(where, content)

    def name(self, row: int) -> str:
        """Return the id of a picture."""
        return f"{self.split}/{row:08d}"


def content_of(picture: Facts | None, read: Callable[[str], bytes]) -> bytes | None:
    """Return the bytes of what a column of pictures holds: its own, or those at its path; None where it has neither."""
    if picture is None or (picture["bytes"] is None and picture["path"] is None):
        return None
    return read(picture["path"]) if picture["bytes"] is None else bytes(picture["bytes"])


class TableSpec(NamedTuple):
    """What a spec names: a place, the columns that are named after it, and whether it is streamed."""

    path: str
    columns: Mapping[str, str]
    config: str | None = None
    streaming: bool = False


def open_table(spec: str, split: str, **options: object) -> "Dataset":
    """Return a split of the data set that a spec names; one that was saved without splits stands for any."""
    found = load_tables(table_spec(spec), **options)
    return of_split(found, split, where=table_spec(spec).path)


def load_tables(spec: TableSpec, **options: object) -> "Tables | dict[str, Tables]":
    """Return what `datasets` finds under a spec. options: of its `load_dataset`.

    Errors: ImportError naming the extra; ValueError for what is no data set, or cannot be read or fetched.
    """
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise ImportError("data sets of Hugging Face need the package: pip install 'salmask[datasets]'") from error
    name, path = spec.path, Path(spec.path)
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        if spec.streaming:
            raise ValueError(f"{name} was saved on this machine and is mapped, not read whole: leave streaming out")
        return _clearly(lambda: load_from_disk(name), f"the data set in {name} cannot be read")
    if path.is_dir() or path.suffix == ".parquet":
        files = {"data_files": name} if path.suffix == ".parquet" else {"data_dir": name}
        if path.is_dir() and not any(path.rglob("*.parquet")):
            raise ValueError(f"{name} is no data set of Hugging Face's: expected what save_to_disk wrote, or *.parquet")
        if (cut := cut_files(spec)) and "on_bad_files" not in options:
            raise ValueError(f"{cut[0]}: fetch it again, or leave such out (skip_broken, --skip-broken)")
        what = f"the parquet files of {name} cannot be read"
        return _clearly(lambda: load_dataset("parquet", **files, **options), what)
    what = (
        f"no data set {name!r}: expected a folder that save_to_disk wrote, a folder of parquet files, or a name on the "
        "Hub that can be fetched"
    )
    with bounded():
        return _clearly(lambda: load_dataset(name, spec.config, **options), what)


def _clearly(load: Callable[[], _T], what: str) -> _T:
    """Return what is loaded; of the Hub, the network, the files, or the name there are many kinds of errors."""
    try:
        with _without_bars():
            return load()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{what} ({type(error).__name__}: {lines[0]})") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the progress of `datasets` itself out of what a command says; as it was, after."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cut_files(spec: TableSpec) -> list[str]:
    """Return which parquet files on this machine are cut, in words."""
    path = Path(spec.path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    return [f"the parquet file {file} is cut or none" for file in files if file.is_file() and not _ends_well(file)]


def left_out(lost: Sequence[str]) -> dict[str, str]:
    """Return the option of `load_tables` that passes cut files over, where there are some."""
    return {"on_bad_files": "skip"} if lost else {}


def _ends_well(file: Path) -> bool:
    with file.open("rb") as opened_file:
        opened_file.seek(max(0, file.stat().st_size - 4))
        return opened_file.read() == b"PAR1"


def of_split(found: "Tables | dict[str, Tables]", split: str, *, where: str) -> "Tables":
    """Return a split of what was opened. Errors: ValueError naming those that there are."""
    if not isinstance(found, dict):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    wanted = next((one for one in _SPLITS.get(split, (split,)) if one in found), None)
    if wanted is None:
        raise ValueError(f"{where} has no split {split!r}: expected one of {', '.join(found)}")
    return found[wanted]


def table_spec(spec: str) -> TableSpec:
    """Return what a spec names. Errors: ValueError for what is no column, config or streaming after the last colon."""
    path, colon, last = spec.rpartition(":")
    pairs = [pair.partition("=") for pair in last.split(",")]
    if not colon or not all(equals or key == _STREAMING for key, equals, _ in pairs):
        return TableSpec(spec, {})
    columns = {key: value for key, _, value in pairs}
    if unknown := columns.keys() - {"image", "label", "config", _STREAMING}:
        raise ValueError(
            f"expected hf-dataset:PATH:image=COLUMN,label=COLUMN,config=NAME,streaming, got {sorted(unknown)[0]!r} in "
            f"{spec!r}"
        )
    config, streaming = columns.pop("config", None), columns.pop(_STREAMING, None) is not None
    return TableSpec(path, columns, config, streaming)


def columns_of(features: "Features", spec: str) -> tuple[str, str | None]:
    """Return the columns of pictures and of classes."""
    from datasets import ClassLabel, Image, Value

    where, columns, *_ = table_spec(spec)
    kinds = {name: type(kind).__name__ for name, kind in features.items()}
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    for name in columns.values():
        if name not in kinds:
            raise ValueError(f"{where} has no column {name!r}: its columns are {listed}")
    pictures = [name for name, kind in features.items() if isinstance(kind, Image)]
    image = columns.get("image", pictures[0] if len(pictures) == 1 else None)
    if image is None or not isinstance(features[image], Image):
        raise ValueError(
            f"{where} has {len(pictures) or 'no'} columns of pictures (Image), expected one: its columns are {listed}; "
            "name one with hf-dataset:PATH:image=COLUMN, after cast_column(COLUMN, Image()) where it holds bytes"
        )
    classes = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    numbers = [
        name
        for name, kind in features.items()
        if name in _LABELS and isinstance(kind, Value) and kind.dtype.startswith(("int", "uint"))
    ]
    found = classes or numbers
    if "label" not in columns and len(found) > 1:
        raise ValueError(f"{where} has several columns of classes, {', '.join(found)}: name one with label=COLUMN")
    label = columns.get("label", found[0] if found else None)
    if label is None and (others := [name for name in features if name in _LABELS]):
        warnings.warn(
            f"{where}: the column {others[0]!r} holds no whole numbers, and the pictures have no class: names become "
            "numbers by class_encode_column",
            stacklevel=2,
        )
    return image, label


def class_names_in(features: "Features", label: str | None) -> list[str] | None:
    """Return the names of a column of classes, in the order of its numbers; None where it has none."""
    from datasets import ClassLabel

    kind = None if label is None else features[label]
    return list(kind.names) if isinstance(kind, ClassLabel) else None


def _numbers(table: "Dataset", label: str, *, where: str) -> np.ndarray:
    """Return the column of classes. Errors: ValueError for what is no whole number."""
    return whole_numbers(table.select_columns([label]).with_format("numpy")[:][label], label, where=where)


def whole_numbers(column: object, label: str, *, where: str) -> np.ndarray:
    """Return a column of classes as an array (N,). Errors: ValueError for what is no whole number."""
    values = np.asarray(column)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: expected whole numbers in the column of classes {label!r}, in every row, got {values.dtype}; "
            "names become numbers by class_encode_column, rows without a class are to be left out by filter"
        )
    return values.astype(np.int64)
