"""Insertion and deletion against the bare cost of their forward passes, in the same run.

    python benchmarks/curves.py --out results/benchmarks/curves.json

Bare: the classifier, frozen and without gradients, is shown as many ready-made pictures, as many at once, as the two
curves show it. The two sides take turns, and the ratio is that of their fastest rounds; the target is 1.1. Time of
the process's own work is given beside the clock's, for machines that do other work at once.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.metrics import Case
from salmask.metrics.curves import Curve
from salmask.metrics.reading import window_blur

TARGET = 1.1


class Seconds(NamedTuple):
    """Time by the clock, and of this process's own work: the second is the one to read on a busy machine."""

    wall: float
    cpu: float


def curves_of(protocol: str, images_per_pass: int) -> tuple[Curve, Curve]:
    """Return insertion and deletion: the library's own (28 steps, mean colour) or RISE's (224 steps, blur)."""
    if protocol == "rise":
        insertion = Curve(insert=True, steps=224, fill=window_blur(11, 5), images_per_pass=images_per_pass)
        return insertion, Curve(insert=False, steps=224, images_per_pass=images_per_pass)
    return (
        Curve(insert=True, images_per_pass=images_per_pass),
        Curve(insert=False, images_per_pass=images_per_pass),
    )


def curves_seconds(classifier: Classifier, images: Tensor, maps: Tensor, protocol: str, at_once: int) -> Seconds:
    """Time both curves from raw maps: sorting, making the pictures, passes, areas."""
    start = now()
    case = Case(
        masks=maps,
        targets=torch.zeros(len(images), dtype=torch.long),
        ids=[str(index) for index in range(len(images))],
        images=images,
        classifier=classifier,
    )
    for curve in curves_of(protocol, at_once):
        curve(case)
    return since(start)


def bare_seconds(classifier: Classifier, pictures: Tensor, passes: list[int]) -> Seconds:
    """Time forward passes of the given sizes, on pictures that are there already."""
    start = now()
    with torch.no_grad(), classifier.frozen():
        for size in passes:
            classifier.logits(pictures[:size])
    return since(start)


def passes_of(images: Tensor, maps: Tensor, protocol: str, at_once: int) -> list[int]:
    """Return the sizes of the passes that the two curves take, whatever the network: a tiny one counts them."""
    tiny = nn.Sequential(nn.Conv2d(3, 2, 1, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(images.device)
    counter = Classifier(tiny, mean=(0.5,) * 3, std=(0.5,) * 3, layers=("0",), image_size=32)
    sizes: list[int] = []
    tiny.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    curves_seconds(counter, images, maps, protocol, at_once)
    return sizes


def now() -> Seconds:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def since(start: Seconds) -> Seconds:
    end = now()
    return Seconds(end.wall - start.wall, end.cpu - start.cpu)


def described(passes: list[int], ours: list[Seconds], floor: list[Seconds], images: int) -> dict[str, object]:
    """Return what is written down: every round, and the ratios of the fastest."""
    ratios = {
        clock: min(getattr(seconds, clock) for seconds in ours) / min(getattr(seconds, clock) for seconds in floor)
        for clock in Seconds._fields
    }
    return {
        "pictures_per_image": sum(passes) / images,
        "passes": len(passes),
        "curves_seconds": [{"wall": round(s.wall, 3), "cpu": round(s.cpu, 3)} for s in ours],
        "bare_seconds": [{"wall": round(s.wall, 3), "cpu": round(s.cpu, 3)} for s in floor],
        "ratio": {clock: round(ratio, 4) for clock, ratio in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--images-per-pass", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--protocols", nargs="+", default=["plain"], choices=["plain", "rise"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    classifier = Classifier.from_timm(args.network, pretrained=False, image_size=args.size).to(args.device)
    images = torch.rand(args.images, 3, args.size, args.size, device=args.device)
    maps = torch.rand(args.images, 1, args.size, args.size, device=args.device)
    pictures = torch.rand(args.images_per_pass, 3, args.size, args.size, device=args.device)
    found = {}
    for protocol in args.protocols:
        passes = passes_of(images, maps, protocol, args.images_per_pass)
        bare_seconds(classifier, pictures, passes[:2])
        ours, floor = [], []
        for _ in range(args.rounds):
            ours.append(curves_seconds(classifier, images, maps, protocol, args.images_per_pass))
            floor.append(bare_seconds(classifier, pictures, passes))
        found[protocol] = described(passes, ours, floor, args.images)
        print(protocol, json.dumps(found[protocol]))
    record = {
        "command": "python benchmarks/curves.py " + " ".join(sys.argv[1:]),
        "setting": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "target_ratio": TARGET,
        "protocols": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
