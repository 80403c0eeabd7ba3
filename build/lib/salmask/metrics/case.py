"""Case, what a metric may read; Metric, a named protocol; the generator that belongs to one image.

A metric is a pure function Case -> (B,) values, one per image. A set-level score returns per-image counts (B, ...)
instead, and a `compute` that adds them up: sums are the same however the images are split into batches or processes.
The name of a metric is the name of a protocol: whatever changes its numbers is said in `protocol`, printed with it.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from salmask.boxes import BoxSets
from salmask.classifier import Classifier
from salmask.classifier.inputs import Inputs
from salmask.metrics.fills import MEAN, Fill
from salmask.outcome import BOTH_SIDES, IMAGES_PER_PASS, KEPT, REMOVED, Outcome, play_at_rest, whole_logits
from salmask.types import Images, Logits, Targets

__all__ = ["Case", "Looked", "Metric", "check_maps"]

T = TypeVar("T")
NEEDS = ("boxes", "pixels", "images", "classifier", "correct", "gaze", "centre", "inputs")


class Looked(NamedTuple):
    """What one look at every map gives, (B,): its least and largest value, NaN if it holds one, and its sum."""

    low: Tensor
    high: Tensor
    mass: Tensor


def check_maps(maps: Tensor, ids: Sequence[str], *, bounded: bool = True) -> Looked:
    """Return the look at every map; raise ValueError naming one that is not finite or, if `bounded`, not in [0, 1].

    maps: (B, ...), one per id.
    """
    looked = _look(maps)
    low, high = looked.low, looked.high
    finite = torch.isfinite(low) & torch.isfinite(high)
    if not bool(finite.all()):
        worst = int((~finite).nonzero()[0])
        raise ValueError(
            f"maps must be finite; the map of {ids[worst]!r} holds NaN or infinite values: "
            "repair or leave out what made it"
        )
    outside = (low < 0) | (high > 1)
    if bounded and bool(outside.any()):
        worst = int(outside.nonzero()[0])
        raise ValueError(
            f"maps must lie in [0, 1]; the map of {ids[worst]!r} spans [{low[worst]:g}, {high[worst]:g}]: "
            'normalise it explicitly, by explanation.normalized("minmax"), ("max") or ("rank"), '
            "or by --normalize minmax|max|rank"
        )
    return looked


def _look(maps: Tensor) -> Looked:
    flat = maps.detach().reshape(len(maps), -1)
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64):
        return Looked(flat.amin(1), flat.amax(1), flat.double().sum(1))
    rows = [_look_at(one) for one in flat.numpy()]
    return Looked(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1))


def _look_at(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Return least, largest and sum of one map. OpenCV is fastest but passes over NaN, which only the sum shows."""
    mass = cv2.sumElems(values)[0]
    if not math.isfinite(mass):
        return float(values.min()), float(values.max()), mass
    low, high, _, _ = cv2.minMaxLoc(values)
    return low, high, mass


@dataclass(frozen=True)
class Case:
    """Everything that a metric may read about one batch.

    masks: (B, 1, H, W) in [0, 1], 1 = evidence; finite. Of a classifier with K inputs also (B, K, H, W): then `masks`
        becomes the largest value over the inputs, which boxes, pixels and curves are read from, and `by_input`
        what is kept and removed.
    targets: (B,), the explained class. ids: one string per image. seed: for scores that draw.
    boxes: ground-truth boxes of each image, (n, 4), half-open, pixels of the masks; may lie partly outside.
    pixels: ground-truth pixels of each image (H, W): 0, 1, 255 = ignored; None where unknown.
    images: (B, 3, H, W) in [0, 1]. classifier: the *scoring* classifier.
    correct: (B,) bool, is the explained model's own top-1 the label (overall metric); all True for naive baselines.
    clean: (B, K), the scoring classifier's logits of the whole images, where they are known already.
    gaze: (B, 1, H, W), human attention, at least 0.
    centre: (1, 1, H, W) or (B, 1, H, W), its centre bias: the mean gaze of other images.

    Raises ValueError if lengths, sizes, ranges or class indices do not fit.
    """

    # lengths and sizes are checked by name below, with a remedy; so they are free here
    masks: Float[Tensor, "_ _ _ _"]
    targets: Int[Tensor, " _"]
    ids: Sequence[str]
    seed: int = 0
    boxes: BoxSets | None = None
    pixels: Sequence[UInt8[Tensor, "_ _"] | None] | None = None
    images: Float[Tensor, "_ _ _ _"] | None = None
    classifier: Classifier | None = None
    clean: Float[Tensor, "_ _"] | None = None
    correct: Bool[Tensor, " _"] | None = None
    gaze: Float[Tensor, "_ 1 _ _"] | None = None
    centre: Float[Tensor, "_ 1 _ _"] | None = None
    # Any: `once` returns what `compute` does
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    by_input: Float[Tensor, "_ _ _ _"] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or self.masks.shape[1] not in (1, 1 if self.inputs is None else len(self.inputs)):
            raise ValueError(f"masks must be (B, 1, H, W); got {tuple(self.masks.shape)}")
        if self.masks.shape[1] > 1:
            object.__setattr__(self, "by_input", self.masks)
            object.__setattr__(self, "masks", self.masks.amax(1, keepdim=True))
        self._check_lengths()
        self._check_sizes()
        self.memo["looked"] = check_maps(self.masks, self.ids)
        self._check_targets()

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return compute(), remembered under `key`: what several metrics share is computed once per case."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    def played(self) -> tuple[Classifier, Images, Targets]:
        """Return the scoring classifier, and images and targets where it lives; ValueError if the case has none."""
        if self.images is None or self.classifier is None:
            raise ValueError("this score shows pictures to a classifier: give the case `images` and `classifier`")
        classifier, images, device = self.classifier, self.images, self.classifier.device
        moved = self.once(("played",), lambda: (images.to(device), self.targets.to(device)))
        return classifier, *moved

    def whole(self, *, images_per_pass: int = IMAGES_PER_PASS) -> Logits:
        """Return the logits of the whole images (B, K), which are shown once a case at most."""
        classifier, images, _ = self.played()
        if self.clean is not None:
            return self.clean.to(images.device)
        return self.once(("whole",), lambda: whole_logits(classifier, images, images_per_pass=images_per_pass))

    def outcome(
        self, fill: Fill = MEAN, *, sides: frozenset[str] = BOTH_SIDES, images_per_pass: int = IMAGES_PER_PASS
    ) -> Outcome:
        """Return what the scoring classifier says of the clean, the kept and the removed pictures.

        Each side is shown once a case and fill, however many scores read it; `sides` leaves out one that none reads.
        """
        classifier, images, targets = self.played()
        masks = (self.masks if self.by_input is None else self.by_input).to(images)
        clean = self.whole(images_per_pass=images_per_pass)

        def show(side: str) -> Logits | None:
            if side not in sides:
                return None
            return self.once((side, fill), lambda: getattr(play(frozenset({side})), side))

        def play(side: frozenset[str]) -> Outcome:
            infill = fill.infill(classifier)
            return play_at_rest(
                classifier,
                images,
                masks,
                targets,
                infill=infill,
                clean=clean,
                sides=side,
                images_per_pass=images_per_pass,
            )

        whole, about = classifier.question(clean, targets)
        return Outcome(masks, about, whole, show(KEPT), show(REMOVED))

    @property
    def looked(self) -> Looked:
        """The extremes and the sum of every mask."""
        looked: Looked = self.memo["looked"]
        return looked

    @property
    def inputs(self) -> Inputs | None:
        """The inputs of the scoring classifier, where it has several images of a scene."""
        return None if self.classifier is None else self.classifier.inputs

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the masks."""
        return self.masks.shape[-2], self.masks.shape[-1]

    def _check_lengths(self) -> None:
        count = len(self.masks)
        for name in ("targets", "ids", "boxes", "pixels", "images", "clean", "correct", "gaze"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name} must have one entry per mask: expected {count}, got {len(value)}")

    def _check_sizes(self) -> None:
        for name in ("images", "gaze", "centre"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape[-2:]) != self.size:
                raise ValueError(
                    f"{name} are {tuple(value.shape[-2:])}, masks {self.size} (H, W): resize one to the other"
                )
        for image, pixels in zip(self.ids, self.pixels or (), strict=False):
            if pixels is not None and tuple(pixels.shape) != self.size:
                raise ValueError(
                    f"pixels of {image!r} are {tuple(pixels.shape)}, masks {self.size} (H, W): "
                    "resize the ground truth (nearest) or the masks"
                )

    def _check_targets(self) -> None:
        if self.classifier is None or len(self.targets) == 0:
            return
        classes = self.classifier.num_classes
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"targets must be class indices in [0, {classes - 1}] of the scoring classifier; got {low}..{high}"
            )


@dataclass(frozen=True)
class Metric:
    """A named protocol: the function, all that changes its numbers, and how to read them.

    function: Case -> (B,) values, or (B, ...) integer counts when `compute` is set.
    protocol: every choice that is part of the name, printed with the number.
    direction: "up" (more is better), "down" or "none". range: (low, high) of the reported number.
    source: where it is defined. needs: the optional fields of Case that must be there.
    compute: of set-level scores, per-image counts (N, ...) -> the score of the set; None: mean of the values.

    A value is NaN where an image has no ground truth of the kind that the metric needs.
    """

    name: str
    function: Callable[[Case], Tensor]
    protocol: Mapping[str, object]
    direction: Literal["up", "down", "none"]
    range: tuple[float | int, float | int]
    source: str
    needs: frozenset[str] = frozenset()
    compute: Callable[[np.ndarray], float] | None = None

    def __post_init__(self) -> None:
        unknown = self.needs - set(NEEDS)
        if unknown:
            raise ValueError(f"{self.name}: needs must be among {NEEDS}; got {sorted(unknown)}")

    def __call__(self, case: Case) -> Tensor:
        """Return function(case); ValueError if the case lacks what the metric needs."""
        missing = sorted(need for need in self.needs if getattr(case, need) is None)
        if missing:
            raise ValueError(f"metric {self.name!r} needs {', '.join(missing)}; the case has none: pass them")
        return self.function(case)

    def describe(self) -> dict[str, object]:
        """Return what is printed with its numbers, as JSON can hold it; infinite ends of the range are null."""
        ends = [end if math.isfinite(end) else None for end in self.range]
        return {
            "protocol": dict(self.protocol),
            "direction": self.direction,
            "range": ends,
            "source": self.source,
            "needs": sorted(self.needs),
            "set_level": self.set_level,
        }

    @property
    def set_level(self) -> bool:
        """Whether the score belongs to a set of images, not to one."""
        return self.compute is not None
