"""What a source of cases hands to the loop: the scores of some maps, as rows and counts hold them.

There are two sources: explainers at work on a stream of images (`explained`), and maps in a file (`saved`). Both build
a `Case`, and what is read off it stands here once.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from salmask.files import JSON, Facts
from salmask.metrics.case import Case, Metric
from salmask.types import constant_span

__all__ = [
    "DEGENERATE",
    "CaseSource",
    "Failed",
    "Scored",
    "Skip",
    "StripParts",
    "digest",
    "plain",
    "score_case",
    "usable",
]

Skip = Callable[[str, str], bool]
"""(explainer, image) -> whether its rows are there already."""
Failed = Callable[[str, str, Exception], None]
"""Told of (explainer, image, error) where an explainer failed."""
Picture = Float[Tensor, "3 rows columns"]
StripParts = tuple[Picture, Float[Tensor, "1 rows columns"], Picture, Picture]
"""One image, its mask, its kept and its removed picture, in colour; several inputs lie side by side."""

DEGENERATE: JSON = {
    "direction": "none",
    "range": [0, 1],
    "protocol": {"1": "map is constant, empty or full"},
}


@dataclass(frozen=True)
class Scored:
    """The scores of one explainer's maps of some images: metric -> (B,) values, or (B, ...) counts of the set.

    batch: number of the batch that the images are of, where several processes share the batches.
    """

    explainer: str
    ids: Sequence[str]
    values: Mapping[str, np.ndarray]
    panels: Callable[[int], StripParts] | None = None  # of one of the images; None where no pictures are at hand
    batch: int = 0


@runtime_checkable
class CaseSource(Protocol):
    """Where cases come from."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is scored."""
        ...

    @property
    def columns(self) -> Mapping[str, Facts]:
        """The rows beside the metrics, with what meta.json says of them."""
        ...

    @property
    def explainers(self) -> Mapping[str, Facts]:
        """Their names, with the settings that must not change within a folder."""
        ...

    @property
    def settings(self) -> Facts:
        """What else must not change within a folder, and what the page's header says."""
        ...

    def scored(self, skip: Skip, failed: Failed) -> Iterator[Scored]:
        """Yield the scores of all maps that are not to be skipped."""
        ...


def score_case(case: Case, metrics: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """Return metric -> (B,) values or (B, ...) counts of one case, and "degenerate": which maps are constant.

    Errors: ValueError for a metric that does not give one value an image.
    """
    checked = {name: _checked(name, metric, metric(case), case) for name, metric in metrics.items()}
    values = {name: one.detach().cpu().numpy() for name, one in checked.items()}
    if case.size[0] * case.size[1] < 2**16:  # counts of pixels (int32) then take half the memory and the disk
        values = {key: one.astype(np.uint16) if one.dtype == np.int32 else one for key, one in values.items()}
    return values | {"degenerate": constant_span(case.looked.low, case.looked.high).cpu().numpy().astype(np.float32)}


def _checked(name: str, metric: Metric, values: Tensor, case: Case) -> Tensor:
    if len(values) != len(case.ids) or (not metric.set_level and values.ndim != 1):
        raise ValueError(
            f"metric {name!r} must give one value per image, ({len(case.ids)},), got {tuple(values.shape)}: reduce "
            "nothing over the batch"
        )
    return values


def usable(
    metrics: Mapping[str, Metric], lacking: Mapping[str, str], because: str, *, joined: str = " and no "
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Split metrics into those that can be served and name -> why not.

    lacking: need of a metric -> what it is called, of those that are not there. because: a sentence with {},
    for the names of what is lacking, `joined`.
    """
    left_out = {}
    for name, metric in metrics.items():
        if absent := sorted(lacking[need] for need in metric.needs if need in lacking):
            left_out[name] = because.format(joined.join(absent))
    return {name: metric for name, metric in metrics.items() if name not in left_out}, left_out


def plain(value: object) -> object:
    """Return what JSON can hold: tables and lists entry by entry, other things as their text without addresses."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(one) for one in ordered]
    if is_dataclass(value):
        return repr(value) if " at 0x" not in repr(value) else type(value).__name__
    name = getattr(value, "__qualname__", type(value).__name__)
    text = str(value)
    return name if " at 0x" in text or len(text) > 200 else text


def digest(image: str, values: np.ndarray) -> str:
    """Return 16 hexadecimal digits of an image's id and of some numbers: whether a folder was made with other data."""
    content = hashlib.blake2b(digest_size=8)
    content.update(f"{image}\0{values.shape}\0{values.dtype.str}\0".encode())
    content.update(np.ascontiguousarray(values).tobytes())
    return content.hexdigest()
