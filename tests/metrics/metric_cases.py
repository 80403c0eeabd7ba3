"""Cases that the tests of metrics share: random maps with every kind of truth, and a linear classifier."""

import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.metrics import Case


class MeanTimes(nn.Module):
    """Logits are the mean colour times a matrix: closed form, no normalisation."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        return self.tap(images).mean((2, 3)) @ self.weight + self.bias


def linear(weight: Tensor, bias: Tensor) -> Classifier:
    return Classifier(MeanTimes(weight, bias), mean=(0.0,) * 3, std=(1.0,) * 3, layers=("tap",), image_size=8)


def random_case(count: int = 5, size: int = 32, seed: int = 0) -> Case:
    draw = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 1, size, size, generator=draw)
    for _ in range(2):  # smooth, so that levels have few contours
        masks = torch.nn.functional.avg_pool2d(masks, 7, 1, 3, count_include_pad=False)
    masks = (masks - masks.amin((2, 3), keepdim=True)).clamp(0, 1)
    corners = torch.rand(count, 2, 2, 2, generator=draw).sort(2).values * (size - 2)
    boxes = torch.cat([corners[:, :, 0], corners[:, :, 1] + 2], 2).round()
    pixels = torch.randint(0, 3, (count, size, size), generator=draw).to(torch.uint8)
    pixels[pixels == 2] = 255
    return Case(
        masks=masks,
        targets=torch.arange(count) % 3,
        ids=[f"a/{i}" for i in range(count)],
        boxes=list(boxes),
        pixels=list(pixels),
        images=torch.rand(count, 3, size, size, generator=draw),
        classifier=linear(torch.randn(3, 3, generator=draw), torch.randn(3, generator=draw)),
        correct=torch.arange(count) % 2 == 0,
        gaze=torch.rand(count, 1, size, size, generator=draw) + 0.01,
        centre=torch.rand(1, 1, size, size, generator=draw) + 0.01,
    )


def part(case: Case, index: list[int]) -> Case:
    """Return the case of some of its images."""
    values = {}
    for name in ("masks", "targets", "images", "correct", "gaze"):
        values[name] = getattr(case, name)[index]
    for name in ("ids", "boxes", "pixels"):
        values[name] = [getattr(case, name)[i] for i in index]
    return Case(**values, seed=case.seed, classifier=case.classifier, centre=case.centre)
