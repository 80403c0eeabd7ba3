"""Set-level scores as torchmetrics states: counts that add up over batches, processes and merged copies."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric as State

from salmask.boxes import BoxSets
from salmask.metrics.contours import Picker, all_contours
from salmask.metrics.wsol import (
    DELTAS,
    TAUS,
    PixelSet,
    box_hits,
    max_box_accuracy,
    pixel_histograms,
    pixel_precision,
)
from salmask.types import Masks

__all__ = ["MaxBoxAccuracy", "PixelPrecision"]


class _Counts(State):
    """A sum of integer counts, and the score of the sum."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor

    def __init__(self, shape: tuple[int, ...], score: Callable) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self._score = score

    def compute(self) -> Float[Tensor, ""]:
        """Return the score of all that was counted."""
        return torch.tensor(self._score(self.total.cpu().numpy()[None]), device=self.total.device)


class MaxBoxAccuracy(_Counts):
    """MaxBoxAccV2 of Choe et al. 2020 (`wsol.box_hits`); with `largest_contour` and deltas (.5,), MaxBoxAcc."""

    def __init__(self, *, pick: Picker = all_contours, deltas: Sequence[float] = DELTAS) -> None:
        super().__init__((len(deltas), len(TAUS) + 1), max_box_accuracy)
        self.pick, self.deltas = pick, tuple(deltas)

    def update(self, maps: Masks, truth: BoxSets) -> None:
        """Count the hits of a batch; maps in [0, 1], boxes half-open in their pixels."""
        hits = box_hits(maps, truth, pick=self.pick, deltas=self.deltas)
        self.total += hits.sum(0, dtype=torch.long).to(self.total.device)


class PixelPrecision(_Counts):
    """PxAP of Choe et al. 2020 (`wsol.pixel_histograms`)."""

    def __init__(self) -> None:
        super().__init__((2, len(TAUS) + 2), pixel_precision)

    def update(self, maps: Masks, truth: Sequence[PixelSet | None]) -> None:
        """Count the pixels of a batch by score; truth 0, 1, or 255 = ignored."""
        self.total += pixel_histograms(maps, truth).sum(0, dtype=torch.long).to(self.total.device)
