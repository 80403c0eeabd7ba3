"""Training an attention pooling beside a frozen network, and the folder of such a run.

Only the stream learns, by cross-entropy on the logits that the frozen head makes of its last query. So the maps of the
network are the same in every pass: `Maps` computes those of whole pictures once, in half precision, and keeps them.
`CroppedPictures` passes random crops and flips through the whole network instead, as the source does.

| recipe | steps | source |
|---|---|---|
| `sgd` | SGD, lr .1, momentum .9, decay 1e-4; lr / 10 after 1/3 and 2/3 | CA-Stream, ResNet |
| `adamw` | AdamW, lr 9e-3, decay .3; cosine after a warm-up of 1/10; labels smoothed by .11 | CA-Stream, ConvNeXt |

Differs from the source: no mixup, cutmix or running mean of the weights in `adamw`. Source: Torres et al. (2024).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from salmask.classifier.hold import at_rest
from salmask.classifier.inputs import checked
from salmask.classifier.named import full_spec, is_known
from salmask.classifier.neck import Neck, head_logits, rebuilt
from salmask.classifier.weights import fingerprint
from salmask.classifier.wrappers import Network
from salmask.data import Batch, Labelled, SampleTransform, training_batches
from salmask.data.sight import Sight
from salmask.data.streams import Bar, DataStream
from salmask.files import JSON, Facts, replace_file, writable_folder
from salmask.pooling import Pooled, QueryStream, read_stream
from salmask.training.classifier import descend
from salmask.training.run import CLASSIFIER, POOLING, Loaded, load_classifier, save_classifier
from salmask.training.schemas import read_run
from salmask.training.settings import check_epochs
from salmask.training.unfinished import Descent, Unfinished
from salmask.types import Logits, Targets

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = [
    "STREAM_RECIPES",
    "CroppedPictures",
    "Maps",
    "PoolingRun",
    "PoolingSettings",
    "StreamRecipe",
    "fit_stream",
    "load_pooling",
    "save_pooling",
]

GIB = 2**30
_PER_PASS = 32


@dataclass(frozen=True)
class StreamRecipe:
    """How a stream descends: its optimiser, the factor (step, steps) of the learning rate, and smoothed labels."""

    lr: float
    weight_decay: float
    optimiser: Callable[..., torch.optim.Optimizer]
    rate: Callable[[int, int], float]
    label_smoothing: float = 0.0


def _sgd(parameters: Iterable[Tensor], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)


def _adamw(parameters: Iterable[Tensor], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def _in_steps(step: int, steps: int) -> float:
    return float(0.1 ** sum(step >= share * steps for share in (1 / 3, 2 / 3)))


def _cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


STREAM_RECIPES: Mapping[str, StreamRecipe] = MappingProxyType(
    {
        "sgd": StreamRecipe(0.1, 1e-4, _sgd, _in_steps),
        "adamw": StreamRecipe(9e-3, 0.3, _adamw, _cosine, label_smoothing=0.11),
    }
)
"""Recipes of the source by name."""


@dataclass(frozen=True)
class PoolingSettings:
    """How a stream is trained. epochs: full passes over the data. lr, weight_decay: the recipe's own where None."""

    recipe: str = "sgd"
    epochs: float = 30.0
    batch_size: int = 64
    lr: float | None = None
    weight_decay: float | None = None
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in STREAM_RECIPES:
            raise ValueError(f"no recipe {self.recipe!r}: expected one of {', '.join(STREAM_RECIPES)}")
        for name in ("epochs", "batch_size", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        check_epochs(self.epochs)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"a seed is a whole number, 0 to {2**31 - 1}, got {self.seed}")

    def steps(self, images: int) -> int:
        """Return the number of batches that `epochs` passes over so many images take, at least one."""
        return max(1, round(self.epochs * images / self.batch_size))


class Answer(NamedTuple):
    """Logits of the stream's queries, and the labels."""

    logits: Logits
    targets: Targets


_Batch = TypeVar("_Batch")


@runtime_checkable
class Lessons(Protocol[_Batch]):
    """What a stream learns from: endless batches of anything, and the logits of a batch."""

    def batches(self, settings: PoolingSettings, start: int = 0) -> Iterator[_Batch]:
        """Return the batches of a training from number `start` on."""
        ...

    def answer(self, pooled: Pooled, batch: _Batch) -> Answer:
        """Return the logits of a batch, with gradients to the stream."""
        ...

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...


@dataclass(frozen=True)
class CroppedPictures:
    """Pictures, augmented anew in every pass, through the whole network: the source's way."""

    dataset: Labelled
    augment: SampleTransform | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, settings: PoolingSettings, start: int = 0) -> Iterator[Batch]:
        """Return batches of pictures."""
        return training_batches(
            self.dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start,
            augment=self.augment,
            workers=settings.workers,
        )

    def answer(self, pooled: Pooled, batch: Batch) -> Answer:
        """Return the logits of pictures."""
        with checked(batch.images, pooled.channels_in):
            logits = pooled.logits(batch.images.to(pooled.device))
        return Answer(logits, batch.targets)


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of whole pictures, computed once and kept in half precision: (N, C, h, w) a stage."""

    maps: tuple[Tensor, ...]
    targets: Tensor

    @classmethod
    def of(
        cls,
        pooled: Pooled,
        dataset: Labelled,
        *,
        limit: float = 8 * GIB,
        progress: Bar = iter,
    ) -> "Maps":
        """Compute the maps of a data set. Errors: ValueError where they would take more than `limit` bytes."""
        reader = rebuilt(pooled.average, pooled.average.network, pooled.stream.layers)
        kept: list[Tensor] = []
        start = 0
        with at_rest(reader, gradients=False):
            for batch in progress(DataStream(dataset, _PER_PASS)):
                maps = reader.features(batch.images.to(reader.device)).maps
                if not kept:
                    _check_memory(maps, len(dataset), limit)
                    kept = [torch.empty(len(dataset), *one.shape[1:], dtype=torch.float16) for one in maps]
                for own, one in zip(kept, maps, strict=True):
                    own[start : start + len(one)] = one.cpu()
                start += len(batch.images)
        if not all(bool(own.isfinite().all()) for own in kept):
            raise ValueError("maps of this network are too large for half precision: train on the pictures (--crops)")
        return cls(tuple(kept), torch.tensor(dataset.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, settings: PoolingSettings, start: int = 0) -> Iterator[Tensor]:
        """Return batches of indices: permutations laid end to end, as of pictures."""
        return islice(self._all_batches(settings), start, None)

    def _all_batches(self, settings: PoolingSettings) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(settings.seed)
        left = torch.empty(0, dtype=torch.int64)
        while True:
            while len(left) < settings.batch_size:
                left = torch.cat([left, torch.randperm(len(self), generator=generator)])
            yield left[: settings.batch_size]
            left = left[settings.batch_size :]

    def answer(self, pooled: Pooled, batch: Tensor) -> Answer:
        """Return the logits of the pictures of these indices: the head alone is asked."""
        return Answer(self.logits(pooled, batch), self.targets[batch])

    def logits(self, pooled: Pooled, chosen: Tensor) -> Logits:
        """Return the logits (n, K) of chosen pictures."""
        query = pooled.stream([own[chosen].to(pooled.device).float() for own in self.maps])
        neck = Neck(pooled.stream.neck, pooled.stream.width, pooled.stream.layers[-1])
        return head_logits(pooled.average, neck, query)


def _check_memory(maps: Sequence[Tensor], count: int, limit: float) -> None:
    needed = 2 * count * sum(one[0].numel() for one in maps)
    if needed > limit:
        raise ValueError(
            f"the maps of {count} pictures would take {needed / GIB:.1f} GiB, at most {limit / GIB:.1f} are kept: name "
            "fewer layers (--layers), raise --memory, or train on the pictures (--crops)"
        )


def fit_stream(
    pooled: Pooled,
    lessons: Lessons[_Batch],
    *,
    settings: PoolingSettings,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    fabric: "Fabric | None" = None,
    unfinished: Path | None = None,
) -> Pooled:
    """Train the stream of a pooled classifier, in place; the network, its statistics and its head stay as they are.

    unfinished: a folder in which one that Ctrl-C interrupts is kept, as in `fit_classifier`.
    Raises ValueError where the loss is not a number.
    """
    pooled.check_exclusive("training a pooling by cross-entropy")
    recipe, stream = STREAM_RECIPES[settings.recipe], pooled.stream
    if fabric is None:
        from lightning.fabric import Fabric  # slow to import, and only training needs it

        fabric = Fabric(accelerator="auto", devices=1, precision="32-true")
    pooled.to(fabric.device)
    pooled.average.to(fabric.device)
    settings = replace(settings, batch_size=min(settings.batch_size, len(lessons)))  # each picture once at most
    steps = settings.steps(len(lessons))
    lr = recipe.lr if settings.lr is None else settings.lr
    decay = recipe.weight_decay if settings.weight_decay is None else settings.weight_decay
    with torch.inference_mode(False), torch.enable_grad(), pooled.frozen():
        stream.requires_grad_(True)
        optimiser = recipe.optimiser(stream.parameters(), lr=lr, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: recipe.rate(step, steps))

        def loss_of(batch: _Batch) -> Tensor:
            made = lessons.answer(pooled, batch)
            return F.cross_entropy(
                made.logits, made.targets.to(made.logits.device), label_smoothing=recipe.label_smoothing
            )

        kept = None if unfinished is None else Unfinished(unfinished, _facts(pooled, lessons, settings))
        descend(
            loss_of,
            lambda start: lessons.batches(settings, start),
            steps,
            Descent(stream, optimiser, schedule),
            fabric=fabric,
            progress=progress,
            unfinished=kept,
        )
    stream.eval()
    return pooled


def _facts(pooled: Pooled, lessons: object, settings: PoolingSettings) -> JSON:
    return {
        "settings": {**asdict(settings), "workers": None},
        "lessons": type(lessons).__name__,
        "network": pooled.average.fingerprint(),
        "stream": fingerprint(pooled.stream),
    }


@dataclass(frozen=True)
class PoolingRun:
    """The classifier as it was, and the same network with the stream before its head."""

    average: Loaded
    pooled: Loaded

    @property
    def stream(self) -> QueryStream:
        """The trained part."""
        assert isinstance(self.pooled.classifier, Pooled)
        return self.pooled.classifier.stream


def save_pooling(folder: Path, pooled: Pooled, loaded: Loaded, facts: Facts) -> None:
    """Write stream, classifier and pooling.json, each file whole or not at all. loaded: the classifier as it was."""
    folder = writable_folder(folder)
    save_classifier(folder / CLASSIFIER, loaded)
    pooled.stream.save_pretrained(folder)
    content = {
        "format": "salmask run 1",
        "network": loaded.network,
        "taps": loaded.classifier.layers,
        "view": asdict(loaded.sight),
        "classes": loaded.classes,
        **facts,
    }
    replace_file(folder / POOLING, lambda at: at.write_text(json.dumps(content, indent=2) + "\n"))


def load_pooling(folder: str | Path, *, network: Network | None = None) -> PoolingRun:
    """Load a run of `salmask pooling`. Errors: FileNotFoundError, ValueError for something else.

    network: one like that of the run, for a network without a SPEC; it takes the run's weights.
    """
    folder = Path(folder)
    for name in (POOLING, CLASSIFIER):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no run of salmask pooling in {folder}: {name} is missing; copy the whole folder")
    facts: JSON = read_run(folder / POOLING)
    spec, view = full_spec(facts["network"]), Sight(**facts["view"])
    if network is None and not is_known(spec):
        raise ValueError(
            f"the run in {folder} is of a network that was made in Python, {facts['network']!r}: load it with "
            "salmask.training.pooling.load_pooling(folder, network=...), and give one that is built alike"
        )
    at = f"{spec}@{folder / CLASSIFIER}"
    average = load_classifier(at, layers=facts["taps"], network=network, **asdict(view))
    return PoolingRun(average, replace(average, classifier=Pooled(average.classifier, read_stream(folder))))
