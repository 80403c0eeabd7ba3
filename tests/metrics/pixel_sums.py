"""Toy classifiers whose scores are known on paper, and one that counts what it is shown."""

import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.metrics import Case


class Share(nn.Module):
    """p(class 0) = the mean of all pixels: the probability is linear in what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        share = self.tap(x).double().mean((1, 2, 3)).clamp(1e-30, 1)
        return torch.stack([share.log(), (1 - share).clamp_min(1e-30).log()], 1)


class Sum(nn.Module):
    """logit(class 0) = the sum of one channel, logit(class 1) = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        total = self.tap(x)[:, 0].sum((1, 2))
        return torch.stack([total, torch.zeros_like(total)], 1)


class Counting(nn.Module):
    """Counts the pictures that its inner network is shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shown, self.passes = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        self.passes += 1
        return self.inner(x)


def classifier_of(network: nn.Module, *, layer: str = "tap", size: int = 4, mean: float = 0.0) -> Classifier:
    """Wrap a toy so that its own colour space is the pixels' (mean 0, std 1)."""
    return Classifier(network, mean=(mean,) * 3, std=(1.0,) * 3, layers=(layer,), image_size=size)


def case_of(classifier: Classifier, images: Tensor, masks: Tensor, targets: list[int] | None = None, **more) -> Case:
    """Return a case about class 0, unless said otherwise."""
    targets = torch.tensor(targets or [0] * len(images))
    ids = more.pop("ids", [f"class/{index}.png" for index in range(len(images))])
    return Case(masks=masks, targets=targets, ids=ids, images=images, classifier=classifier, **more)


def half_picture(size: int = 4) -> Tensor:
    """Return (1, 3, size, size): the left half 1, the right half 0."""
    image = torch.zeros(1, 3, size, size)
    image[..., : size // 2] = 1
    return image
