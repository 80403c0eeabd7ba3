"""How the time of training and explaining grows with size, batch, number of pictures and processes.

    python benchmarks/scaling.py [--quick] [--network resnet18] [--rounds 5]

    size        a training step (FIX) at 64, 96 and 128 pixels, a pixel
    batch       a training step of 4, 8, 16 and 32 pictures, a picture
    pictures    the masks of 32, 128 and 512 pictures (`salmask explain --data`), a picture
    processes   a step of one batch by 1 and by 2 processes (gloo): the processor time of all together, and the time on
                the clock, which says nothing where other programs use the processors

Each is a ratio to the first of its row, timed in turns within this run. What does not grow is below 1. Writes
results/benchmarks/scaling.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.fabric import Fabric
from side_by_side import compare, describe, write

from salmask.classifier import Classifier
from salmask.data import Batch, no_boxes
from salmask.data.tensors import TensorPictures
from salmask.evaluation.masks import explain_data
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.training.processes import launched
from salmask.training.recipes import RECIPES
from salmask.training.settings import Settings
from salmask.training.train import train_masker

SIZES, BATCHES, COUNTS, PROCESSES = (64, 96, 128), (4, 8, 16, 32), (32, 128, 512), (1, 2)
SIDE, BATCH, STEPS = 64, 16, 4


def classifier_of(network: str, side: int) -> Classifier:
    torch.manual_seed(0)
    return Classifier.from_timm(network, pretrained=False, image_size=side, num_classes=20)


def batch_of(count: int, side: int) -> Batch:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Batch([""] * count, images, torch.arange(count) % 20, [no_boxes()] * count, [None] * count)


def train(
    network: str, batch: Batch, whole: int, fabric: Fabric, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> None:
    """Take STEPS steps of FIX on one batch, a share of `whole` pictures."""
    known = classifier_of(network, batch.images.shape[-1])
    masker = Masker.for_classifier(known, generator=torch.Generator().manual_seed(0))
    settings = Settings(epochs=STEPS, batch_size=whole, save_every=10**9, log_every=10**9, precision="32-true")
    with TemporaryDirectory() as out:
        train_masker(
            masker,
            known,
            lambda start: repeat(batch),
            whole,
            recipe=RECIPES["fix"],
            settings=settings,
            out=out,
            fabric=fabric,
            progress=progress,
        )


def trainer(network: str, count: int, side: int) -> Callable[[], list[float]]:
    """Return what takes some steps, and gives the processor time of each but the first and the last."""
    batch, fabric = batch_of(count, side), Fabric(accelerator="cpu", devices=1)
    return lambda: steps_of(lambda progress: train(network, batch, count, fabric, progress), time.process_time)


def steps_of(
    run: Callable[[Callable[[Iterable[int]], Iterable[int]]], None], clock: Callable[[], float]
) -> list[float]:
    ticks: list[float] = []

    def progress(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            ticks.append(clock())
            yield number

    run(progress)
    return [after - before for before, after in pairwise(ticks[1:])]


def steps_in_turns(trainers: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a step by name: the median of each round, trainers in an order that turns."""
    names, seconds = list(trainers), {name: [] for name in trainers}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            seconds[name].append(sorted(trainers[name]())[(STEPS - 2) // 2])
    return seconds


def explaining(network: str, count: int) -> Callable[[], None]:
    known = classifier_of(network, SIDE)
    learned = Learned(Masker.for_classifier(known).eval())
    data = TensorPictures(batch_of(count, SIDE).images)
    fabric = Fabric(accelerator="cpu", devices=1)
    how = {"class": None, "normalize": None}

    def run() -> None:
        with TemporaryDirectory() as out:
            explain_data(
                learned, known, data, out=Path(out), fabric=fabric, form="array", batch_size=BATCH, how=how, about={}
            )

    return run


def apart(network: str, processes: int) -> dict[str, float]:
    """Return the seconds of a step of `processes`, started anew: of all processors together, and on the clock."""
    command = [sys.executable, __file__, "--part", str(processes), "--network", network]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def part(network: str, processes: int) -> None:
    """Take the steps of this process's share, and print the seconds of all."""
    fabric = launched(processes)
    batch = batch_of(BATCH // processes, SIDE)
    clock = steps_of(lambda progress: train(network, batch, BATCH, fabric, progress), time.perf_counter)
    own = steps_of(lambda progress: train(network, batch, BATCH, fabric, progress), time.process_time)
    middle = torch.tensor([sorted(own)[len(own) // 2], sorted(clock)[len(clock) // 2] / processes])
    total = fabric.all_reduce(middle, reduce_op="sum")
    if fabric.is_global_zero:
        print(json.dumps({"processors": float(total[0]), "clock": float(total[1])}))


def each(seconds: dict[str, list[float]], amounts: Iterable[float]) -> dict[str, list[float]]:
    """Return seconds for each pixel, picture, ..."""
    return {name: [one / amount for one in own] for (name, own), amount in zip(seconds.items(), amounts, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part:
        part(given.network, given.part)
        return
    rounds = 1 if given.quick else given.rounds
    rows = {}
    sizes = steps_in_turns({f"{s} pixels": trainer(given.network, 8, s) for s in SIZES}, rounds)
    rows |= describe(each(sizes, [s * s for s in SIZES]), unit=f"{SIZES[0]} pixels")
    batches = steps_in_turns({f"a batch of {b}": trainer(given.network, b, SIDE) for b in BATCHES}, rounds)
    rows |= describe(each(batches, BATCHES), unit=f"a batch of {BATCHES[0]}")
    masks = compare({f"{n} pictures": explaining(given.network, n) for n in COUNTS}, rounds=rounds)
    rows |= describe(each(masks, COUNTS), unit=f"{COUNTS[0]} pictures")
    pairs = [{n: apart(given.network, n) for n in PROCESSES} for _ in range(rounds)]
    for kind in ("processors", "clock"):
        seconds = {f"{n} process{'es' * (n > 1)}, {kind}": [pair[n][kind] for pair in pairs] for n in PROCESSES}
        rows |= describe(seconds, unit=f"1 process, {kind}")
    settings = {**vars(given), "device": "cpu", "side": SIDE, "batch": BATCH}
    write("scaling", settings, rows, {"ratio": rows["2 processes, processors"]["ratio"], "target": 1.25})


if __name__ == "__main__":
    main()
