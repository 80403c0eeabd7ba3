"""Colour, depth, coloured depth, late and early fusion on the built-in scenes, with what each input carries.

    python results/rgbd/measure.py OUT [SEED]

Writes rows of each variant as it is done, and a page: a row a training, values an image.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

import salmask
from salmask import METRICS, Classifier
from salmask.classifier.fusion import LateFusion
from salmask.data.sample import Sample
from salmask.data.scenes import Scenes
from salmask.data.streams import Cached, cached
from salmask.explain import EXPLAINERS
from salmask.explain.inputs import InputShares
from salmask.metrics import Case
from salmask.report.page import write_report
from salmask.rows.read import META, write_json
from salmask.rows.write import Writer
from salmask.training.classifier import FitSettings, fit_classifier

SIZE, SHAPES = 32, ("cross", "disc", "ring", "triangle")
CARRIERS = ("rgb", "depth", "both")
VARIANTS = {
    "late": {"rgb": 3, "depth": 1},
    "late, whole scenes": {"rgb": 3, "depth": 1},
    "early": {"rgb": 3, "depth": 1},
    "RGB": {"rgb": 3},
    "depth": {"depth": 1},
    "coloured depth": {"depth_jet": 3},
    "late, coloured": {"rgb": 3, "depth_jet": 3},
}
COLUMNS = {
    "accuracy": "of the classifier",
    **{f"accuracy_{carrier}": f"of the scenes whose class shows in {carrier}" for carrier in CARRIERS},
    "le": "of Grad-CAM",
    "shares_right": "1 where the largest share is that of the only input that shows the class",
    "shares_right_if_right": "the same, of the scenes that are decided rightly",
    "smaller_share_both": "the smaller share, where both inputs show the class",
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
    augment = None if name.endswith("whole scenes") else Missing([*inputs.values()])
    return fit_classifier(classifier, train, settings=settings, augment=augment)


def of(values: Tensor, which: Tensor) -> Tensor:
    """Return values, NaN where they are not asked for."""
    return torch.where(which, values.float(), torch.nan)


def columns(classifier: Classifier, images: Tensor, val: Scenes, shares: Tensor | None) -> dict[str, Tensor]:
    """Return a value an image of each column: accuracy, LE of Grad-CAM, and how often the shares name the carrier."""
    targets = torch.tensor(val.targets)
    explanation = EXPLAINERS["gradcam"]()(classifier, images, targets)
    right = explanation.logits.argmax(1) == targets
    boxes = [val[k].boxes for k in range(len(val))]
    masks = explanation.normalized("minmax").masks
    case = Case(
        masks=masks, targets=targets, ids=val.ids, boxes=boxes, correct=right, images=images, classifier=classifier
    )
    carriers = torch.tensor([CARRIERS.index(one) for one in val.carriers])
    values = {f"accuracy_{name}": of(right, carriers == k) for k, name in enumerate(CARRIERS)}
    values |= {"accuracy": right.float(), "le": METRICS["le"](case).float()}
    if shares is not None:
        hit, single = shares.argmax(1) == carriers, carriers < 2
        values["shares_right"] = of(hit, single)
        values["shares_right_if_right"] = of(hit, single & right)
        values["smaller_share_both"] = of(shares.amin(1), carriers == 2)
    nothing = torch.full((len(val),), torch.nan)
    return {name: values.get(name, nothing) for name in COLUMNS}


def drawn(classifier: Classifier, images: Tensor, path: Path) -> None:
    """Draw scenes, colour and depth side by side, over the Grad-CAM maps of both."""
    maps = salmask.explain(classifier, images, explainer="per_input:of=gradcam").normalized("minmax").masks
    seen = classifier.inputs.beside(images)
    below = torch.cat(list(maps.split(1, 1)), 3).expand(-1, 3, -1, -1)
    save_image(torch.cat([seen, below], 2).repeat_interleave(2, 2).repeat_interleave(2, 3), path, nrow=6, padding=4)


def main(out: Path, seed: int = 0) -> None:
    """Measure all variants, each into rows as it is done."""
    writer = Writer(out, tuple(COLUMNS))
    about = {"direction": "up", "range": [0, 1], "source": "this study", "needs": [], "set_level": False}
    metrics = {name: {**about, "protocol": {"what": what}} for name, what in COLUMNS.items()}
    metrics["le"]["direction"] = "down"
    meta = {"explainers": {}, "metrics": metrics, "data": "240 built-in scenes", "seed": seed}
    for name, inputs in VARIANTS.items():
        options = {"size": SIZE, "shapes": SHAPES, "inputs": inputs}
        train, val = cached(Scenes(1600, seed=2 * seed, **options)), Scenes(240, seed=2 * seed + 1, **options)
        classifier = trained(name, train, seed)
        images = torch.stack([val[k].image for k in range(len(val))]) / 255
        two = len(inputs) == 2
        targets = torch.tensor(val.targets)
        found = {name: InputShares()(classifier, images, targets).masks.mean((2, 3)) if two else None}
        if name in ("late", "early"):
            masker = salmask.train(classifier, train, per_input=True, steps=150, batch_size=32, recipe="fix")
            found[f"{name}, masker"] = salmask.explain(classifier, images, explainer=masker).masks.mean((2, 3))
        if name == "late":
            drawn(classifier, images[:12], out / "scenes.png")
        for title, shares in found.items():
            values = columns(classifier, images, val, shares)
            for k, image in enumerate(val.ids):
                writer.add(title, image, {column: float(values[column][k]) for column in COLUMNS})
            writer.flush()
            meta["explainers"][title] = {"kind": "shares of the inputs" if title == name else "masks of the inputs"}
        write_json(out / META, meta)
    writer.finish()
    write_report(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
