"""Pictures that are in memory already, as a data set."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from salmask.data.sample import Sample, no_boxes

__all__ = ["TensorPictures"]


class TensorPictures(Dataset[Sample]):
    """Images (N, C, H, W) in [0, 1] as a data set; kept in 8 bits a channel, as pictures of a folder are.

    targets: (N,) class indices, all 0 where not given. classes: their names, the indices where not given.
    Errors: ValueError for another shape, for values outside [0, 1] and for another number of targets.
    """

    def __init__(
        self, images: Tensor, targets: Sequence[int] | Tensor | None = None, *, classes: Sequence[str] | None = None
    ) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"expected float images (N, C, H, W), got {tuple(images.shape)} of {images.dtype}")
        if len(images) == 0:
            raise ValueError("expected at least one image, got none")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}: divide pixels of 0 to 255 by "
                "255, and leave normalisation to the Classifier"
            )
        self.images = (images.detach().cpu() * 255).round().to(torch.uint8)
        self.targets = [0] * len(images) if targets is None else [int(target) for target in targets]
        if len(self.targets) != len(images):
            raise ValueError(f"expected one target an image: {len(images)}, got {len(self.targets)}")
        count = max(self.targets) + 1
        self.classes = [str(index) for index in range(count)] if classes is None else list(classes)
        self.ids = [f"{index:06d}" for index in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(id=self.ids[index], image=self.images[index], target=self.targets[index], boxes=no_boxes())
