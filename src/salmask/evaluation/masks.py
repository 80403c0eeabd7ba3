"""The masks of a whole data set, as files: one pass over any number of pictures, by any number of processes.

    index.jsonl              a line a picture: {"row", "image", "file" (of PNGs), "class", "mean"}
    masks/000/NAME.png       8-bit masks at the size that the classifier sees, 1,000 a folder; or
    masks.npy                all of them as one array (N, H, W) uint8, mapped into memory by numpy.load(..., "r")
                             (maps of several inputs side by side, H x K W)
    meta.json                the explainer, its settings and weights, the data

A mask in [0, 1] is rounded to 255 steps. Each process appends to an index of its own after its masks are written, so a
run that was killed goes on with the pictures that no index has, with any number of processes; the parts become one
index at the end.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.classifier import Classifier
from salmask.classifier.hold import remembering
from salmask.data import Batch, Labelled, Sample, Subset, collate
from salmask.data.streams import Bar, DataStream
from salmask.data.unreadable import first_read
from salmask.evaluation.cases import plain
from salmask.explain.base import Explainer, Explanation
from salmask.files import JSON, Facts, Within, check_shape, regular_file, replace_file, writable_folder
from salmask.rows.read import agree_on_meta, file_name, read_lines
from salmask.rows.write import cut_partial_line
from salmask.training.processes import share_of, within
from salmask.training.settings import FULL

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["INDEX", "Form", "Throughput", "explain_data"]

Form: TypeAlias = Literal["png", "array"]
INDEX, ARRAY, FOLDER = "index.jsonl", "masks.npy", "masks"
_PER_FOLDER = 1000


@dataclass(frozen=True)
class Throughput:
    """What a run has done. seconds: in all; waited: for pictures; before: explained by earlier runs; passed_over: of
    those that cannot be read."""

    pictures: int
    before: int
    passed_over: int
    seconds: float
    waited: float

    def __str__(self) -> str:
        asides = {"were there": self.before, "cannot be read": self.passed_over}
        aside = ", ".join(f"{count} {what}" for what, count in asides.items() if count)
        rate = f"{self.pictures / self.seconds:.1f} pictures/s"
        waiting = f"{self.waited / self.seconds:.0%} of the time waiting for pictures"
        done = f"explained {self.pictures} pictures" + (f" ({aside})" if aside else "")
        return f"{done} in {self.seconds:.1f} s: {rate}, {waiting}"


def explain_data(
    explainer: Explainer,
    classifier: Classifier,
    dataset: Labelled,
    *,
    out: Path,
    fabric: "Fabric",
    form: Form = "png",
    batch_size: int = 64,
    workers: int = 0,
    how: Facts,
    about: Facts,
    progress: Bar = iter,
) -> Throughput:
    """Write a mask for every picture of a data set that has none yet; return what this process has done.

    dataset: as the classifier sees it. how: "class", the number of the class explained, None for the predicted ones;
    "normalize", how maps outside [0, 1] come into it, None for minimum and maximum. A batch that does not fit into
    memory is halved for all that follow, with one warning. about: of the data, for meta.json.
    Errors: ValueError for a folder of other settings, or an explainer that needs the truth.
    """
    if explainer.wants & {"boxes", "pixels"}:
        raise ValueError(f"{explainer.kind} needs boxes or pixel masks: use `salmask evaluate`")
    DataStream(dataset, batch_size, workers=workers)  # for its clear errors, before anything is written
    out, precision = writable_folder(out), fabric.strategy.precision.precision
    computed = {} if precision == FULL else {"precision": precision}
    if fabric.is_global_zero:
        agree_on_meta(out, _described(explainer, classifier, dataset, form, {**about, **computed}, how))
    target, normalize = how["class"], how["normalize"]
    left = _rows_left(out, len(dataset)) if fabric.is_global_zero else []
    if fabric.is_global_zero and form == "array":
        _keep_array(
            out, (len(dataset), *_size(first_read(dataset), explainer, classifier)), empty=len(left) == len(dataset)
        )
    with within(fabric):
        left = fabric.broadcast(left)
    stream = DataStream(Subset(dataset, left), batch_size, workers=workers, share=share_of(fabric))
    start, count, waited = time.perf_counter(), 0, 0.0
    with within(fabric), _writing(out, fabric.global_rank, form) as write, remembering():
        for wait, batch, rows in _in_turn(stream, dataset, left, progress):
            waited, count = waited + wait, count + len(rows)
            if not rows:
                continue
            targets = None if target is None else batch.targets.new_full((len(rows),), target)
            with fabric.autocast():
                explanation = explainer(classifier, batch.images.to(classifier.device), targets)
            write(rows, batch.ids, explanation, _in_bytes(explanation, normalize))
        seconds = time.perf_counter() - start
        done = fabric.all_reduce(torch.tensor([count, waited / fabric.world_size]), reduce_op="sum")
    if fabric.is_global_zero:
        _join(out)
    assert isinstance(done, Tensor)
    return Throughput(int(done[0]), len(dataset) - len(left), len(left) - int(done[0]), seconds, float(done[1]))


class _Timed:
    """Batches, each with the seconds for which it was waited."""

    def __init__(self, stream: DataStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[float, Batch]]:
        batches = iter(self.stream)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            yield time.perf_counter() - start, batch

    def __len__(self) -> int:
        return len(self.stream)


def _size(first: Sample, explainer: Explainer, classifier: Classifier) -> tuple[int, int]:
    """Return height and width of a mask, of several inputs that of their maps side by side."""
    height, width = first.image.shape[-2:]
    if classifier.inputs is None:
        return height, width
    return height, width * explainer(classifier, collate([first]).images.to(classifier.device)).masks.shape[1]


def _in_turn(
    stream: DataStream, dataset: Labelled, left: Sequence[int], progress: Bar
) -> Iterator[tuple[float, Batch, list[int]]]:
    """Yield each batch of a process's share, how long it was waited for, and the rows of its pictures.

    left: the rows that the stream is of. A batch lacks pictures that cannot be read.
    """
    size, share = stream.batch_size, stream.share
    for number, (wait, batch) in enumerate(progress(_Timed(stream))):
        start = (share.rank + number * share.count) * size
        rows = {dataset.ids[row]: row for row in left[start : start + size]}
        yield wait, batch, [rows[name] for name in batch.ids]


def _in_bytes(explanation: Explanation, normalize: str | None) -> np.ndarray:
    """Return masks (B, H, W) uint8; those of several inputs side by side, (B, H, K * W)."""
    scaled = explanation.bounded() if normalize is None else explanation.normalized(normalize)
    masks = torch.cat(list(scaled.masks.detach().float().unbind(1)), 2)
    if not bool(masks.isfinite().all()) or float(masks.min()) < 0 or float(masks.max()) > 1:
        raise ValueError("a map leaves [0, 1], or is not finite: say how maps are normalised (--normalize)")
    return (masks * 255).round().to(torch.uint8).cpu().numpy()


Write: TypeAlias = Callable[[Sequence[int], Sequence[str], Explanation, np.ndarray], None]


@contextmanager
def _writing(out: Path, rank: int, form: Form) -> Iterator[Write]:
    """Yield what writes the masks of a batch, and then its lines of the index."""
    path = out / f"index-{rank}.jsonl"
    path.touch()
    cut_partial_line(path)

    def write(rows: Sequence[int], ids: Sequence[str], explanation: Explanation, masks: np.ndarray) -> None:
        files = [_png(out, row, name, mask) for row, name, mask in zip(rows, ids, masks, strict=True)] if png else []
        if not png:
            _into_array(out / ARRAY, rows, masks)
        lines = []
        for i, (row, name) in enumerate(zip(rows, ids, strict=True)):
            line: JSON = {"row": row, "image": name, "class": int(explanation.targets[i])}
            line |= {"file": files[i]} if png else {}
            lines.append(json.dumps({**line, "mean": round(float(masks[i].mean()) / 255, 4)}, ensure_ascii=False))
        index.write("\n".join(lines) + "\n")
        index.flush()

    png = form == "png"
    with path.open("a", encoding="utf-8") as index:
        yield write


def _png(out: Path, row: int, name: str, mask: np.ndarray) -> str:
    """Write one mask; return its place in the folder."""
    folder = out / FOLDER / f"{row // _PER_FOLDER:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_name(name)}.png"
    replace_file(path, partial(Image.fromarray(mask).save, format="PNG", compress_level=1))
    return path.relative_to(out).as_posix()


def _into_array(path: Path, rows: Sequence[int], masks: np.ndarray) -> None:
    """Write masks at their rows, without mapping the file, whose pages would count as this process's memory."""
    size = masks[0].nbytes
    with path.open("r+b") as file:
        start = _header_bytes(file)
        for row, mask in zip(rows, masks, strict=True):
            file.seek(start + row * size)
            file.write(mask.tobytes())


def _header_bytes(file: IO[bytes]) -> int:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def _blank_array(path: Path, *, shape: tuple[int, ...]) -> None:
    """Make an array of zeros, of which the disk keeps nothing before it is written."""
    with path.open("wb") as file:
        facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, facts)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)))


def _keep_array(out: Path, shape: tuple[int, ...], *, empty: bool) -> None:
    """Make the array where there is none. Errors: ValueError where an index speaks of masks that it does not hold."""
    path, wanted = out / ARRAY, math.prod(shape)
    held = _bytes_held(path) if path.exists() else None
    if held == wanted:
        return
    if not empty:
        raise ValueError(
            f"{path}: expected the {wanted} bytes of masks that the index beside it speaks of, got "
            f"{'no file' if held is None else held}: delete the folder, or choose another --out"
        )
    replace_file(path, partial(_blank_array, shape=shape))


def _bytes_held(path: Path) -> int:
    """Return the size of an array without its header; 0 for what is no array."""
    regular_file(path, "an array of masks")
    with path.open("rb") as file:
        try:
            return path.stat().st_size - _header_bytes(file)
        except ValueError:
            return 0


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob("index*.jsonl"))


def _rows_left(out: Path, count: int) -> list[int]:
    """Return the rows that no index has."""
    done = np.zeros(count, dtype=bool)
    for path in _parts(out):
        regular_file(path, "an index, a JSON object a line")
        cut_partial_line(path)
        for number, _, line in read_lines(path):
            shape = {"row": Within(0, count - 1), "image": str, "class": int, "file?": str, "mean": (int, float)}
            check_shape(f"{path}, line {number}", line, shape, remedy="delete the line, and its mask is made again")
            done[line["row"]] = "file" not in line or (out / line["file"]).is_file()
    return np.flatnonzero(~done).tolist()


def _join(out: Path) -> None:
    """Make one index, by row, of the parts, of which a killed run may have left some that are in it already."""
    parts = _parts(out)
    lines = {line["row"]: line for path in parts for _, _, line in read_lines(path)}
    text = "".join(json.dumps(lines[row], ensure_ascii=False) + "\n" for row in sorted(lines))
    replace_file(out / INDEX, lambda path: path.write_text(text, encoding="utf-8"))
    for path in parts:
        if path.name != INDEX:
            path.unlink()


def _described(
    explainer: Explainer, classifier: Classifier, dataset: Labelled, form: Form, about: Facts, how: Facts
) -> JSON:
    """Return what must be the same in every run that fills a folder."""
    names = dataset.ids
    height, width = first_read(dataset).image.shape[-2:]
    return {
        "explainers": {"masks": {"kind": explainer.kind, "settings": plain(explainer.settings)}},
        "weights": classifier.fingerprint(),
        "reading": classifier.reading(),
        "pictures": f"{len(names)}, {names[0]} to {names[-1]}",
        "size": f"{width}x{height}",
        "form": form,
        **how,
        **about,
    }
