"""Colour, depth, coloured depth, late and early fusion on the built-in scenes, with what each input carries.

    python results/rgbd/measure.py OUT [0,1,2]

Writes rows of each variant as it is done (a row a training, values an image), a page, and trainings.md with the means
over trainings. Every training has its own training scenes; the 240 that are measured are the same for all.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from salmask.rows.read import META, read_rows, write_json
from salmask.rows.trainings import compare_rows
from salmask.rows.write import Writer
from salmask.training.classifier import FitSettings, fit_classifier

SIZE, SHAPES = 32, ("cross", "disc", "ring", "triangle")
SCENES, EPOCHS, STEPS = 4800, 8, 600  # of training; steps of a masker, in batches of 32
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
    "le": "of Grad-CAM; of a masker: of the mask of the input with the most mass",
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
    settings = FitSettings(epochs=EPOCHS, batch_size=64, precision="32-true", seed=seed)
    augment = None if name.endswith("whole scenes") else Missing([*inputs.values()])
    return fit_classifier(classifier, train, settings=settings, augment=augment)


def of(values: Tensor, which: Tensor) -> Tensor:
    """Return values, NaN where they are not asked for."""
    return torch.where(which, values.float(), torch.nan)


def columns(classifier: Classifier, images: Tensor, val: Scenes, masks: Tensor | None) -> dict[str, Tensor]:
    """Return a value an image of each column; masks: one an input, whose means are the shares."""
    targets = torch.tensor(val.targets)
    explanation = EXPLAINERS["gradcam"]()(classifier, images, targets)
    right = explanation.logits.argmax(1) == targets
    shares = None if masks is None else masks.mean((2, 3))
    maps = explanation.normalized("minmax").masks
    if masks is not None and shares is not None and bool((masks.amax((2, 3)) > masks.amin((2, 3))).any()):
        maps = masks[torch.arange(len(masks)), shares.argmax(1)][:, None]
    boxes = [val[k].boxes for k in range(len(val))]
    case = Case(
        masks=maps, targets=targets, ids=val.ids, boxes=boxes, correct=right, images=images, classifier=classifier
    )
    carriers = torch.tensor([CARRIERS.index(one) for one in val.carriers])
    values = {f"accuracy_{name}": of(right, carriers == k) for k, name in enumerate(CARRIERS)}
    values |= {"accuracy": right.float(), "le": METRICS["le"](case).float()}
    if shares is not None:
        hit, single = shares.argmax(1) == carriers, carriers < 2
        values["shares_right"] = of(hit, single)
        values["shares_right_if_right"] = of(hit, single & right)
        values["smaller_share_both"] = of(shares.amin(1) / shares.sum(1).clamp_min(1e-6), carriers == 2)
    nothing = torch.full((len(val),), torch.nan)
    return {name: values.get(name, nothing) for name in COLUMNS}


def drawn(classifier: Classifier, images: Tensor, masks: Tensor, path: Path) -> None:
    """Draw scenes, colour and depth side by side, over the Grad-CAM maps of both, over the masker's masks of both."""
    maps = salmask.explain(classifier, images, explainer="per_input:of=gradcam").normalized("minmax").masks
    rows = [torch.cat(list(one.split(1, 1)), 3).expand(-1, 3, -1, -1) for one in (maps, masks)]
    tiles = torch.cat([classifier.inputs.beside(images), *rows], 2)
    save_image(tiles.repeat_interleave(2, 2).repeat_interleave(2, 3), path, nrow=6, padding=4)


def table(out: Path, trainings: dict[str, list[str]]) -> str:
    """Return the means over trainings, with intervals over scenes and trainings."""
    rows = read_rows(out)
    lines = [f"| network | trainings | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, titles in trainings.items():
        cells = [name, str(len(titles))]
        for column in COLUMNS:
            found = compare_rows((name, np.stack([rows.values[one][column] for one in titles], 1))).interval
            cells.append(f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.n else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured(name: str, seed: int, val: Scenes, out: Path) -> dict[str, dict[str, Tensor]]:
    """Train a network and, of fused ones, a masker for it; return their columns by title."""
    train = cached(Scenes(SCENES, seed=2 * seed, size=SIZE, shapes=SHAPES, inputs=VARIANTS[name]))
    classifier = trained(name, train, seed)
    images = torch.stack([val[k].image for k in range(len(val))]) / 255
    shares = InputShares()(classifier, images, torch.tensor(val.targets)).masks if len(VARIANTS[name]) == 2 else None
    found = {name: columns(classifier, images, val, shares)}
    if name.startswith("late"):
        maps = salmask.explain(classifier, images, explainer="per_input:of=gradcam").masks
        found[f"{name}, Grad-CAM of each"] = columns(classifier, images, val, maps)
    if name in ("late", "early"):
        masker = salmask.train(classifier, train, per_input=True, steps=STEPS, batch_size=32, seed=seed)
        masks = salmask.explain(classifier, images, explainer=masker).masks
        found[f"{name}, masker"] = columns(classifier, images, val, masks)
        if (name, seed) == ("late", 0):
            drawn(classifier, images[:12], masks[:12], out / "scenes.png")
    return found


def main(out: Path, seeds: str = "0,1,2") -> None:
    """Measure all variants, each into rows as it is done."""
    writer = Writer(out, tuple(COLUMNS))
    about = {"direction": "up", "range": [0, 1], "source": "this study", "needs": [], "set_level": False}
    metrics = {name: {**about, "protocol": {"what": what}} for name, what in COLUMNS.items()}
    metrics["le"]["direction"] = "down"
    meta = {"explainers": {}, "metrics": metrics, "data": "240 built-in scenes"}
    trainings: dict[str, list[str]] = {}
    for variant, inputs in VARIANTS.items():
        val = Scenes(240, seed=1, size=SIZE, shapes=SHAPES, inputs=inputs)
        for seed in map(int, seeds.split(",")):
            for name, values in measured(variant, seed, val, out).items():
                title = f"{name}; {seed}"
                for k, image in enumerate(val.ids):
                    writer.add(title, image, {column: float(values[column][k]) for column in COLUMNS})
                trainings.setdefault(name, []).append(title)
                kind = "shares of the inputs" if name in VARIANTS else "maps of the inputs"
                meta["explainers"][title] = {"kind": kind}
            writer.flush()
        write_json(out / META, meta)
        (out / "trainings.md").write_text(table(out, trainings))
    writer.finish()
    write_report(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
