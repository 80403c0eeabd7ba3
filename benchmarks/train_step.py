"""What a step of FIX, CA and reader costs on top of the passes that it cannot avoid.

    python benchmarks/train_step.py [--quick] [--network resnet18] [--size 128] [--batch 36] [--threads 1]

Unavoidable are

    fix      the clean forward pass without gradients; for the kept and the removed pictures as one batch of 2B, the
             forward pass and the backward pass to the pictures
    ca       in train mode: the clean pictures forward, and backward to the weights; the kept and the removed pictures,
             each forward, backward to the pictures (for the mask), and backward to the weights (for the opponent)
    reader   the same, and the forward pass of the given classifier without gradients

with an opponent that learns in every step (historic 0). The whole step adds the masker forward and backward, the
composition of the pictures, the objective, the optimisers and what is logged. Both are timed in turns within one run;
the ratio is that of the medians. The target is 1.15. Writes results/benchmarks/train_step.json.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from side_by_side import describe, elapsed, now, write
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.data import Batch, no_boxes
from salmask.masker import Masker
from salmask.training.recipes import RECIPES
from salmask.training.settings import Settings
from salmask.training.train import train_masker

TARGET = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=["fix", "ca", "reader"], choices=["fix", "ca", "reader"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="a batch of 4 at 64, three rounds")
    given = parser.parse_args()
    if given.quick:
        given.size, given.batch, given.rounds = 64, 4, 3
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = {}
    for recipe in given.recipes:
        classifier = Classifier.from_timm(given.network, pretrained=False, image_size=given.size).to(given.device)
        layout = torch.channels_last if given.channels_last else torch.contiguous_format
        images = torch.rand(given.batch, 3, given.size, given.size).to(given.device).contiguous(memory_format=layout)
        targets = torch.randint(classifier.num_classes, (given.batch,)).to(given.device)
        batch = Batch([""] * given.batch, images, targets, [no_boxes()] * given.batch, [None] * given.batch)
        with TemporaryDirectory() as out:
            timings = _timed(recipe, classifier, batch, PASSES[recipe](classifier, images), given, Path(out))
        rows |= {f"{recipe}, {name}": row for name, row in describe(timings, unit="unavoidable passes").items()}
    ratios = {recipe: rows[f"{recipe}, step"]["ratio"] for recipe in given.recipes}
    write("train_step", vars(given), rows, {**ratios, "ratio": max(ratios.values()), "target": TARGET})


def _of_fix(classifier: Classifier, images: Tensor) -> Callable[[], None]:
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    both = torch.cat([images, images]).contiguous(memory_format=layout)

    def passes() -> None:
        with classifier.frozen():
            with torch.no_grad():
                classifier.network(images)
            pictures = both.detach().requires_grad_()
            torch.autograd.grad(classifier.network(pictures).sum(), pictures)

    return passes


def _of_ca(classifier: Classifier, images: Tensor) -> Callable[[], None]:
    network: nn.Module = copy.deepcopy(classifier.network).train()
    weights = [*network.parameters()]

    def passes() -> None:
        torch.autograd.grad(network(images).sum(), weights)
        sides = [images.detach().requires_grad_() for _ in range(2)]
        scores = [network(pictures).sum() for pictures in sides]
        torch.autograd.grad(sum(scores), sides, retain_graph=True)
        torch.autograd.grad(sum(scores), weights)

    return passes


def _of_reader(classifier: Classifier, images: Tensor) -> Callable[[], None]:
    alongside = _of_ca(classifier, images)

    def passes() -> None:
        with classifier.frozen(), torch.no_grad():
            classifier.network(images)
        alongside()

    return passes


PASSES = {"fix": _of_fix, "ca": _of_ca, "reader": _of_reader}


def _timed(
    recipe: str, classifier: Classifier, batch: Batch, passes: Callable[[], None], given: argparse.Namespace, out: Path
) -> dict[str, list[float]]:
    """Run `train` and, between its steps, the passes: what a progress bar is given is where a step begins and ends."""
    seconds: dict[str, list[float]] = {"unavoidable passes": [], "step": []}
    warm_up = 2

    def progress(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            alone = elapsed(passes, given.device)
            start = now(given.device)
            yield number
            whole = now(given.device) - start
            if number >= warm_up:
                seconds["unavoidable passes"].append(alone)
                seconds["step"].append(whole)

    settings = Settings(
        epochs=given.rounds + warm_up,
        batch_size=given.batch,
        save_every=10**9,
        log_every=10,
        channels_last=given.channels_last,
        compile=given.compile,
        precision="32-true",
    )
    train_masker(
        Masker.for_classifier(classifier, layers=(3, 4)),
        classifier,
        lambda start: repeat(batch),
        given.batch,
        recipe=RECIPES[recipe] if recipe == "fix" else replace(RECIPES[recipe], historic=0.0),
        settings=settings,
        out=out,
        progress=progress,
    )
    seconds["step"].pop()  # the last one writes the checkpoint
    seconds["unavoidable passes"].pop()
    return seconds


if __name__ == "__main__":
    main()
