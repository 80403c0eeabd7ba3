"""Colour, depth, coloured depth, late and early fusion on the built-in scenes, with what each input carries.

python results/rgbd/measure.py OUT [SEED]
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import salmask
from salmask import METRICS, Classifier
from salmask.classifier.fusion import LateFusion
from salmask.data.sample import Sample
from salmask.data.scenes import Scenes
from salmask.data.streams import Cached, cached
from salmask.explain import EXPLAINERS
from salmask.explain.inputs import InputShares
from salmask.metrics import Case
from salmask.training.classifier import FitSettings, fit_classifier

SIZE, SHAPES = 32, ("cross", "disc", "ring", "triangle")
VARIANTS = {
    "late": {"rgb": 3, "depth": 1},
    "early": {"rgb": 3, "depth": 1},
    "RGB": {"rgb": 3},
    "depth": {"depth": 1},
    "coloured depth": {"depth_jet": 3},
    "late, coloured": {"rgb": 3, "depth_jet": 3},
}


class Missing:
    """Training: a random input of a scene is grey in three of ten scenes, so that the network knows it missing."""

    def __init__(self, channels: list[int]) -> None:
        self.channels = channels

    def __call__(self, sample: Sample) -> Sample:
        """Return the scene with an input missing, or as it is."""
        if torch.rand(()) > 0.3 or len(self.channels) < 2:
            return sample
        parts = list(sample.image.split(self.channels))
        place = int(torch.randint(len(parts), ()))
        parts[place] = torch.full_like(parts[place], 128)
        return replace(sample, image=torch.cat(parts))


def body(channels: int, classes: int) -> nn.Module:
    """Return a small network: three stages, average pooling, a linear layer."""
    layers: list[nn.Module] = []
    for width, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def trained(name: str, train: Cached, seed: int) -> Classifier:
    """Train a variant."""
    torch.manual_seed(seed)
    inputs = VARIANTS[name]
    total, classes = sum(inputs.values()), len(SHAPES)
    late = name.startswith("late")
    network = LateFusion({k: body(n, classes) for k, n in inputs.items()}, [*inputs.values()]) if late else None
    layers = [f"networks.{k}.{i}" for k in inputs for i in (8, 14)] if late else ["8", "14"]
    options = {"mean": (0.5,) * total, "std": (0.25,) * total, "image_size": SIZE, "inputs": inputs}
    classifier = Classifier(network or body(total, classes), layers=layers, **options)
    settings = FitSettings(epochs=12, batch_size=64, precision="32-true", seed=seed)
    return fit_classifier(classifier, train, settings=settings, augment=Missing([*inputs.values()]))


def line(name: str, classifier: Classifier, val: Scenes) -> dict[str, object]:
    """Return accuracy, localization of Grad-CAM and how often the shares name the carrier."""
    samples = [val[k] for k in range(len(val))]
    images = torch.stack([sample.image for sample in samples]) / 255
    targets = torch.tensor(val.targets)
    explanation = EXPLAINERS["gradcam"]()(classifier, images, targets)
    right = explanation.logits.argmax(1) == targets
    case = Case(
        masks=explanation.normalized("minmax").masks, targets=targets, ids=val.ids, boxes=[s.boxes for s in samples],
        correct=right, images=images, classifier=classifier,
    )  # fmt: skip
    row: dict[str, object] = {"variant": name, "accuracy": float(right.float().mean())}
    carriers = torch.tensor([("rgb", "depth", "both").index(one) for one in val.carriers])
    for k, carrier in enumerate(("rgb", "depth", "both")):
        row[f"accuracy, {carrier}"] = float(right[carriers == k].float().mean())
    row["le"] = float(METRICS["le"](case).mean())
    if len(VARIANTS[name]) == 2:
        shares = InputShares()(classifier, images, targets).masks.mean((2, 3))
        row |= shares_right(shares, carriers, right)
    return row


def shares_right(shares: Tensor, carriers: Tensor, right: Tensor) -> dict[str, object]:
    """Return how often the largest share is the carrier's, of scenes of one carrier: all, and those decided rightly."""
    single = carriers < 2
    hit = shares.argmax(1) == carriers
    return {
        "shares right": float(hit[single].float().mean()),
        "shares right, decided rightly": float(hit[single & right].float().mean()),
        "n, decided rightly": int((single & right).sum()),
        "smaller share, both": float(shares[carriers == 2].amin(1).mean()),
    }


def main(out: Path, seed: int = 0) -> None:
    """Measure all variants, a line each as it is done."""
    out.mkdir(parents=True, exist_ok=True)
    for name, inputs in VARIANTS.items():
        options = {"size": SIZE, "shapes": SHAPES, "inputs": inputs}
        train, val = cached(Scenes(1600, seed=2 * seed, **options)), Scenes(240, seed=2 * seed + 1, **options)
        classifier = trained(name, train, seed)
        with (out / "rows.txt").open("a") as file:
            file.write(f"{seed} {line(name, classifier, val)}\n")
        if name in ("late", "early"):
            masker = salmask.train(classifier, train, per_input=True, steps=150, batch_size=32, recipe="fix")
            samples = [val[k] for k in range(len(val))]
            images = torch.stack([sample.image for sample in samples]) / 255
            masks = salmask.explain(classifier, images, explainer=masker).masks.mean((2, 3))
            carriers = torch.tensor([("rgb", "depth", "both").index(one) for one in val.carriers])
            with torch.no_grad():
                right = classifier.logits(images).argmax(1) == torch.tensor(val.targets)
            with (out / "rows.txt").open("a") as file:
                file.write(f"{seed} masker, {name}: {shares_right(masks, carriers, right)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
