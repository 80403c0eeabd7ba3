"""Hiding parts of the image at random or in turn, and crediting what was shown.

    rise:       map = sum_n p_y(keep(x, m_n)) * m_n / (N p),   m_n a random mask
    occlusion:  map(i) = mean over the windows that cover i of p_y(x) - p_y(x without the window)

Masked images exist one piece of `max_batch` at a time; random masks are rebuilt from their few cells and never
stored. All images of a batch see the same masks, so that a map does not depend on the batch.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from salmask.classifier.folded import folded
from salmask.classifier.hold import at_once, at_rest, check_limit, pieces
from salmask.classifier.network import Classifier
from salmask.classifier.scores import SCORES, ClassScore, probability
from salmask.explain.base import Explainer, Explanation, Passes, check_targets
from salmask.explain.batching import backdrop, by_pieces, check_batch
from salmask.explain.knobs import BatchSize, Between, Cells, Count, OneOf, Seed
from salmask.masking import keep
from salmask.types import Asked, Images, Infill, Masks, size_of

__all__ = ["Occlusion", "Rise"]


@dataclass(frozen=True)
class Rise(Explainer):
    """Randomised input sampling for explanation (Petsiuk, Das & Saenko, 2018).

    masks: N. cells: side s of the grid of on-off cells that is blown up. chance: p of a cell to be on.
    score: (logits, targets) -> one value an image. infill: None is the classifier's mean colour, which is the
    published multiplication in normalised space. Range [0, 1/p] for a probability.
    Differs from the published code: cells are interpolated with the border repeated where it mirrors the border.
    """

    masks: Count = 4000
    cells: Cells = 7
    chance: Annotated[float, Between(0, 1, above=True)] = 0.5
    score: Annotated[ClassScore, OneOf(SCORES)] = probability
    infill: Infill | None = None
    seed: Seed = 0
    max_batch: BatchSize = 32

    def __post_init__(self) -> None:
        if self.masks < 1 or self.cells < 1 or not 0 < self.chance < 1:
            raise ValueError(
                f"expected masks >= 1, cells >= 1 and 0 < chance < 1, got {self.masks}, {self.cells}, {self.chance}"
            )
        check_limit(self.max_batch)

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: N forward passes."""
        with at_rest(classifier, gradients=False):
            passes = self.masks * len(images)
            explain = partial(self._explain, twin=folded(classifier, images, passes=passes))
            return by_pieces(explain, classifier, images, targets, max_batch=1)

    def _explain(
        self, classifier: Classifier, images: Images, targets: Tensor | None, *, twin: Classifier
    ) -> Explanation:
        logits = classifier.logits(images)
        chosen = check_targets(targets, logits)
        infill = backdrop(self.infill, classifier, images, seed=self.seed)
        drawn = RandomMasks.draw(self, size_of(images), images.device)

        def credit(rows: slice) -> Tensor:
            masks = drawn.build(rows).to(images.dtype)
            masked_logits = twin.logits(keep(images.expand(len(masks), -1, -1, -1), masks, infill))
            scores = self.score(*classifier.question(masked_logits, chosen.expand(len(masks))))
            return torch.einsum("n,nchw->chw", scores, masks.float())

        total = torch.zeros_like(images[:, :1], dtype=torch.float32)
        for part in pieces(credit, self.masks, max_batch=at_once(images, self.max_batch)):
            total += part
        masks = total / (self.masks * self.chance)
        high = 1 / self.chance if self.score is probability else math.inf
        low = 0.0 if self.score is probability else -math.inf
        return Explanation(masks, chosen, logits, Passes(1 + self.masks), range=(low, high))


@dataclass(frozen=True)
class RandomMasks:
    """N smooth random masks: on-off cells, blown up to one cell more than the image, cut out at a random shift.

    Mask n is R_n G_n C_n^T: its cells between the rows and columns of an interpolation matrix.
    """

    grids: Float[Tensor, "masks cells cells"]
    rows: Float[Tensor, "upright cells"]
    columns: Float[Tensor, "across cells"]
    shifts: Tensor
    size: tuple[int, int]

    @classmethod
    def draw(cls, rise: Rise, size: tuple[int, int], device: torch.device) -> "RandomMasks":
        """Draw cells and shifts by the seed; the draws depend on nothing else."""
        generator = Generator().manual_seed(rise.seed)
        grids = (torch.rand(rise.masks, rise.cells, rise.cells, generator=generator) < rise.chance).float()
        share = torch.rand(rise.masks, 2, generator=generator)
        steps = [math.ceil(side / rise.cells) for side in size]
        shifts = (share * torch.tensor(steps)).long()
        rows, columns = (_interpolation(rise.cells, (rise.cells + 1) * step).to(device) for step in steps)
        return cls(grids.to(device), rows, columns, shifts.to(device), size)

    def build(self, which: slice) -> Masks:
        """Return some of the masks, (n, 1, H, W) in [0, 1]."""
        sides = []
        for axis, matrix in enumerate((self.rows, self.columns)):
            steps = torch.arange(self.size[axis], device=matrix.device)
            sides.append(matrix[self.shifts[which, axis, None] + steps])
        return (sides[0] @ self.grids[which] @ sides[1].transpose(1, 2))[:, None]


@dataclass(frozen=True)
class Occlusion(Explainer):
    """The mean loss of score over the windows that cover a pixel (Zeiler & Fergus, 2014).

    window, stride: pixels of a picture whose short side has 224, scaled with the picture; the last window of a
    row may reach over the border. infill: None is the classifier's mean colour.
    """

    window: Cells = 32
    stride: Cells = 16
    score: Annotated[ClassScore, OneOf(SCORES)] = probability
    infill: Infill | None = None
    max_batch: BatchSize = 32

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"expected 1 <= stride <= window, got stride {self.stride}, window {self.window}")
        check_limit(self.max_batch)

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Explain the given classes, or the predicted ones: one forward pass a window."""
        check_batch(images)
        with at_rest(classifier, gradients=False):
            windows = [len(self._windows(side, min(images.shape[-2:]))) for side in images.shape[-2:]]
            passes = windows[0] * windows[1] * len(images)
            explain = partial(self._explain, twin=folded(classifier, images, passes=passes))
            return by_pieces(explain, classifier, images, targets, max_batch=1)

    def _explain(
        self, classifier: Classifier, images: Images, targets: Tensor | None, *, twin: Classifier
    ) -> Explanation:
        logits = classifier.logits(images)
        chosen = check_targets(targets, logits)
        own = self.score(*classifier.question(logits, chosen))
        infill = backdrop(self.infill, classifier, images)
        size = size_of(images)
        rows, columns = (self._windows(side, min(size)).to(images) for side in size)
        count = len(rows) * len(columns)

        def losses(which: slice) -> Tensor:
            at = torch.arange(which.start, which.stop, device=images.device)
            holes = rows[at // len(columns), :, None] * columns[at % len(columns), None, :]
            masked_logits = twin.logits(keep(images.expand(len(at), -1, -1, -1), 1 - holes[:, None], infill))
            return own - self.score(*classifier.question(masked_logits, chosen.expand(len(at))))

        lost = torch.cat(list(pieces(losses, count, max_batch=at_once(images, self.max_batch)))).view(
            len(rows), len(columns)
        )
        covered = rows.sum(0)[:, None] * columns.sum(0)
        masks = (rows.T.float() @ lost @ columns.float() / covered)[None, None]
        end = 1.0 if self.score is probability else math.inf
        return Explanation(masks, chosen, logits, Passes(1 + count), range=(-end, end))

    def _windows(self, side: int, short: int) -> Float[Tensor, "windows side"]:
        window, stride = (max(1, round(length * short / 224)) for length in (self.window, self.stride))
        starts = torch.arange(0, max(1, side - window + stride), stride)
        at = torch.arange(side)
        return ((at >= starts[:, None]) & (at < starts[:, None] + window)).float()


def _interpolation(cells: int, side: int) -> Float[Tensor, "side cells"]:
    """Return the matrix that blows cells up to a side, linearly."""
    return F.interpolate(torch.eye(cells)[None], side, mode="linear", align_corners=False)[0].T.contiguous()
