"""A classifier for data that has none: training or fine-tuning a network on a folder of pictures.

SGD with momentum, a one-cycle learning rate (Smith & Topin, 2019), label smoothing, random crops and flips.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.inputs import checked
from salmask.data import Batch, Labelled, SampleTransform, evaluation_batches, training_batches
from salmask.files import JSON
from salmask.training.precision import chosen_precision
from salmask.training.resume import described_data
from salmask.training.settings import Precision, check_epochs, check_kinds
from salmask.training.unfinished import Descent, Unfinished, interruptible

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["FitSettings", "accuracy", "descend", "fit_classifier", "warn_of_chance"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class FitSettings:
    """How a classifier is trained. lr: the top of the one cycle. epochs: full passes over the data."""

    epochs: float = 12.0
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    precision: Precision = "auto"
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("epochs", "batch_size", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        check_epochs(self.epochs)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number of at least 0, got {self.seed}")


def fit_classifier(
    classifier: Classifier,
    dataset: Labelled,
    *,
    settings: FitSettings,
    augment: SampleTransform | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    fabric: "Fabric | None" = None,
    unfinished: Path | None = None,
) -> Classifier:
    """Train the network of a classifier on labelled pictures, in place, and return it in eval mode.

    unfinished: a folder in which one that Ctrl-C interrupts is kept until the next call, which goes on from it. It is
    for the caller to `discard` once the classifier is written.

    Raises ValueError where the labels do not fit the network's classes, or the loss is not a number.
    """
    if max(dataset.targets) >= classifier.num_classes:
        raise ValueError(
            f"the data has {max(dataset.targets) + 1} classes, the network tells {classifier.num_classes} apart"
        )
    if fabric is None:
        from lightning.fabric import Fabric  # slow to import, and only training needs it

        # Any: Fabric asks for one of its literals
        precision: Any = chosen_precision(settings.precision, classifier)
        fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    settings = replace(settings, batch_size=min(settings.batch_size, len(dataset)))  # each picture once at most
    steps = max(1, round(settings.epochs * len(dataset) / settings.batch_size))
    network = classifier.to(fabric.device).network.train()
    optimiser = torch.optim.SGD(
        _groups(network, settings.weight_decay), lr=settings.lr, momentum=settings.momentum, nesterov=True
    )
    planned = max(steps + 1, 5)  # a rise of a quarter of fewer steps would take none, and divide by it
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.lr, total_steps=planned, pct_start=0.25, cycle_momentum=False
    )
    kept = None if unfinished is None else Unfinished(unfinished, _facts(classifier, dataset, settings, augment))

    def batches(start: int) -> Iterator[Batch]:
        return training_batches(
            dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start,
            augment=augment,
            workers=settings.workers,
        )

    def loss_of(batch: Batch) -> Tensor:
        images = batch.images.to(fabric.device).contiguous(memory_format=torch.channels_last)
        with fabric.autocast(), checked(batch.images, classifier.channels_in):
            logits = classifier.logits(images)
        return F.cross_entropy(logits, batch.targets.to(fabric.device), label_smoothing=settings.label_smoothing)

    descent = Descent(network, optimiser, schedule)
    descend(loss_of, batches, steps, descent, fabric=fabric, progress=progress, unfinished=kept)
    network.eval()
    return classifier


def descend(
    loss_of: Callable[[_Item], Tensor],
    batches: Callable[[int], Iterable[_Item]],
    steps: int,
    descent: Descent,
    *,
    fabric: "Fabric",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    unfinished: Unfinished | None = None,
) -> None:
    """Lower a loss by one step a batch. batches: k -> those from number k on.

    With `unfinished`, Ctrl-C waits for the end of a step, which is kept, and so is one every few minutes.
    Errors: ValueError for a loss that is not a number at the end.
    """
    start = 0 if unfinished is None else unfinished.take_up(descent, fabric.device)
    wrapped: Any = fabric.setup_optimizers(descent.optimiser)  # Any: for Fabric, one or several
    loss, kept = torch.zeros(()), time.monotonic()
    with interruptible(alone=unfinished is not None) as stops:
        for step, item in zip(progress(range(start, steps)), islice(batches(start), steps - start), strict=True):
            loss = loss_of(item)
            wrapped.zero_grad()
            fabric.backward(loss)
            wrapped.step()
            descent.schedule.step()
            stopped = stops()
            if unfinished is not None and (stopped or time.monotonic() - kept >= unfinished.every):
                unfinished.save(step + 1, descent)
                kept = time.monotonic()
                if stopped:
                    raise KeyboardInterrupt
    if not bool(loss.isfinite()):
        raise ValueError("the loss is not a number: lower the learning rate (--lr), and look for broken pictures")


@torch.no_grad()
def accuracy(classifier: Classifier, dataset: Labelled, *, batch_size: int = 64) -> float:
    """Return the share of pictures whose most probable class is the label."""
    right = total = 0
    with classifier.frozen():
        for batch in evaluation_batches(dataset, batch_size=batch_size):
            guess = classifier.logits(batch.images).argmax(1).cpu()
            right, total = right + int((guess == batch.targets).sum()), total + len(guess)
    return right / max(1, total)


def warn_of_chance(share: float, targets: Sequence[int], where: str) -> None:
    """Warn of a classifier that is right no more often than one that always names the commonest class.

    share <= c + min(2 sqrt(c (1 - c) / n), (1 - c) / 2),    c: the share of that class among n labels
    """
    count = len(targets)
    chance = max(Counter(targets).values()) / count
    if share <= chance + min(2 * (chance * (1 - chance) / count) ** 0.5, (1 - chance) / 2) and chance < 1:
        warnings.warn(
            f"the classifier is right on {share:.2f} of {count} sounds of {where}, and one that always names the "
            f"commonest class on {chance:.2f}: it cannot be told from chance, and what masks show of it is of little "
            "worth; train it longer (--epochs), or on more and other sounds",
            stacklevel=3,
        )


def _facts(classifier: Classifier, dataset: Labelled, settings: FitSettings, augment: SampleTransform | None) -> JSON:
    return {
        "settings": {**asdict(settings), "workers": None},
        "data": described_data(dataset),
        "network": classifier.fingerprint(),
        "reading": {"image_size": classifier.image_size, **classifier.reading()},
        "augmentation": repr(augment) if is_dataclass(augment) else type(augment).__name__,
    }


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay weights, but not biases and the scales of normalisation."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
