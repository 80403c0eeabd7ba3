"""What an explanation costs on top of the bare network: logits and mask against the logits alone.

    python benchmarks/explain.py [--quick] [--network resnet50] [--size 224] [--batch 16] [--threads 1]

Both are timed in turns within one run, so that whatever else the machine does disturbs them alike; the ratio is
that of the medians. The target is 1.10 for a resnet50 at 224, batch 16. Writes results/benchmarks/explain.json.
"""

import argparse

import torch
from side_by_side import compare, describe, write
from torch import nn

from salmask.classifier import Classifier
from salmask.explain.learned import Learned
from salmask.masker import Masker

TARGET = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a resnet18 at 64, three rounds")
    given = parser.parse_args()
    if given.quick:
        given.network, given.size, given.batch, given.rounds = "resnet18", 64, 4, 3
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    classifier = Classifier.from_timm(given.network, pretrained=False, image_size=given.size).to(given.device)
    network: nn.Module = classifier.network.eval()
    images = torch.rand(given.batch, 3, given.size, given.size, device=given.device)
    explainers = {
        f"layers {layers}": Learned(Masker.for_classifier(classifier, layers=layers).to(given.device))
        for layers in ((3, 4), (0, 1, 2, 3, 4))
    }

    def bare() -> None:
        with torch.no_grad():
            network(images)

    timings = compare(
        {"bare forward": bare, **{name: _call(one, classifier, images) for name, one in explainers.items()}},
        rounds=given.rounds,
        device=given.device,
    )
    rows = describe(timings, unit="bare forward")
    write("explain", vars(given), rows, {"ratio": rows["layers (3, 4)"]["ratio"], "target": TARGET})


def _call(explainer: Learned, classifier: Classifier, images: torch.Tensor):
    return lambda: explainer(classifier, images)


if __name__ == "__main__":
    main()
