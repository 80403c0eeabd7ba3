"""Explainers beside the packages that people use for them, in one run, at the same number of passes.

    python benchmarks/explainers.py --out results/benchmarks/explainers.json      (adds a run to the file)

| method | rival | same |
|---|---|---|
| gradcam | pytorch-grad-cam | network, layer, class, batch |
| scorecam | pytorch-grad-cam | all channels of the layer, one image |
| rise | TorchRay `rise` | masks, cells, chance, one image |
| rise (published) | the authors' way: masks blown up one by one, all masked images at once, batches of 100 | as above |
| integrated_gradients | Captum | steps, one image |
| extremal | TorchRay `extremal_perturbation` | iterations, areas, one image |
| extremal (batch) | TorchRay `extremal_perturbation`, image by image: it takes one | iterations, areas, all images |

Floor: the passes of the network alone, as fast as they go here (normalisations folded, channels last, as many
pictures at once), without masks and without setting up. Rival / floor, `most`, is what no method of as many passes
can exceed.

The sides take turns, and a ratio is that of their fastest rounds: rival / ours. Times are this process's own work
(CPU time), so that other work on the machine counts less; the clock's is in the file. Maps are compared by
correlation where both sides compute the same thing. A rival that is not installed is left out and said.
"""

import argparse
import contextlib
import importlib
import io
import json
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.classifier.folded import folded
from salmask.classifier.hold import at_once
from salmask.classifier.network import Classifier
from salmask.data import read_image
from salmask.data.sample import Sample, collate, no_boxes
from salmask.explain import EXPLAINERS
from salmask.training.run import Sight

TARGETS = {
    "gradcam": 1.0,
    "scorecam": 1.5,
    "rise": 1.5,
    "rise (published)": 1.5,
    "extremal": 1.5,
    "extremal (batch)": 1.5,
}


class Seconds(NamedTuple):
    cpu: float
    wall: float


def timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall), found


def quiet(work: Callable[[], Any]) -> Callable[[], Any]:
    """Without progress bars and warnings of the rivals."""

    def run() -> Any:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()

    return run


def read(folder: Path, count: int, size: int) -> Tensor:
    """Return the first pictures of as many subfolders, cut to a square."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [min(path for path in one.iterdir() if path.is_file()) for one in classes[:: len(classes) // count][:count]]
    see = Sight(size, interpolation="bicubic").transform()
    samples = [Sample(id=file.name, image=read_image(file), target=0, boxes=no_boxes(), pixels=None) for file in files]
    return collate([see(sample) for sample in samples]).images


class Bench:
    """One network, its pictures, and the pairs that are held against each other."""

    def __init__(
        self, name: str, size: int, batch: int, passes: int, weights: str | None, pictures: Path | None
    ) -> None:
        torch.manual_seed(0)
        options = {} if weights is None else {"checkpoint": weights}
        classes = {} if weights is not None else {"num_classes": 50}
        self.classifier = Classifier.from_timm(name, pretrained=False, image_size=size, **options, **classes)
        self.network: nn.Module = self.classifier.network.eval()
        self.images = torch.rand(batch, 3, size, size) if pictures is None else read(pictures, batch, size)
        self.one = self.images[:1]
        self.targets = self.classifier.logits(self.images).argmax(1).detach()
        self.layer = self.network.get_submodule(self.classifier.layers[-1])
        self.passes, self.size = passes, size

    def z(self, images: Tensor) -> Tensor:
        return (images - self.classifier.mean) / self.classifier.std

    def ours(self, name: str, images: Tensor, **knobs: Any) -> Callable[[], Tensor]:
        explainer, targets = EXPLAINERS[name](**knobs), self.targets[: len(images)]
        return lambda: explainer(self.classifier, images, targets).masks

    def pytorch_grad_cam(self, kind: str, images: Tensor) -> Callable[[], Tensor]:
        peer = importlib.import_module("pytorch_grad_cam")
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        z, targets = self.z(images), [target(int(k)) for k in self.targets[: len(images)]]

        def run() -> Tensor:
            with getattr(peer, kind)(self.network, [self.layer]) as cam:
                return torch.from_numpy(cam(z, targets))[:, None]

        return run

    def floor(self, passes: int, images: Tensor, *, gradients: bool = False) -> Callable[[], Any]:
        """Return what shows pictures `passes` times, forward, or forward and backward to the pictures."""
        at = at_once(images, len(images))
        with self.classifier.frozen(), torch.set_grad_enabled(gradients):
            twin = folded(self.classifier, images[:1], passes=10**6, gradients=gradients)
        rounds = -(-passes // at)

        def run() -> None:
            with self.classifier.frozen(), torch.set_grad_enabled(gradients):
                for k in range(rounds):
                    shown = images[: min(at, passes - k * at)].detach().requires_grad_(gradients)
                    said = twin.logits(shown)
                    if gradients:
                        said.sum().backward()

        return run

    def gradcam(self) -> tuple[Callable, ...]:
        return self.ours("gradcam", self.images), self.pytorch_grad_cam("GradCAM", self.images)

    def scorecam(self) -> tuple[Callable, ...]:
        return self.ours("scorecam", self.one), self.pytorch_grad_cam("ScoreCAM", self.one)

    def rise(self) -> tuple[Callable, ...]:
        rise_class = importlib.import_module("torchray.attribution.rise").rise_class
        z, target = self.z(self.one), self.targets[:1]
        return (
            self.ours("rise", self.one, masks=self.passes),
            lambda: rise_class(self.network, z, target=target, num_masks=self.passes, num_cells=7, p=0.5),
            self.floor(self.passes, self.one.expand(32, -1, -1, -1)),
        )

    def published_rise(self) -> tuple[Callable, ...]:
        resize = importlib.import_module("skimage.transform").resize
        z, target = self.z(self.one), int(self.targets[0])

        def theirs() -> Tensor:
            cell = int(np.ceil(self.size / 7))
            grids = np.random.default_rng(0).random((self.passes, 7, 7)) < 0.5
            masks = np.empty((self.passes, self.size, self.size), np.float32)
            for n, grid in enumerate(grids.astype("float32")):
                y, x = np.random.default_rng(n).integers(0, cell, 2)
                big = resize(grid, (8 * cell, 8 * cell), order=1, mode="reflect", anti_aliasing=False)
                masks[n] = big[y : y + self.size, x : x + self.size]
            shown = torch.from_numpy(masks)[:, None] * z
            with torch.no_grad():
                said = torch.cat([self.network(part).softmax(1) for part in shown.split(100)])
            return (said[:, target] @ torch.from_numpy(masks).flatten(1)).view_as(self.one[:, :1]) / self.passes / 0.5

        floor = self.floor(self.passes, self.one.expand(32, -1, -1, -1))
        return self.ours("rise", self.one, masks=self.passes), theirs, floor

    def integrated_gradients(self) -> tuple[Callable, ...]:
        attr = importlib.import_module("captum.attr")
        z, target = self.z(self.one), int(self.targets[0])
        method = attr.IntegratedGradients(self.network)
        return (
            self.ours("integrated_gradients", self.one, steps=50),
            lambda: method.attribute(z, target=target, n_steps=50).sum(1, keepdim=True).detach(),
        )

    def extremal(self, count: int = 1) -> tuple[Callable, ...]:
        peer = importlib.import_module("torchray.attribution.extremal_perturbation")
        rounds, images = max(10, self.passes // 8), self.images[:count]

        def theirs() -> Tensor:
            found = [
                peer.extremal_perturbation(
                    self.network, self.z(one), int(target), areas=[0.1], max_iter=rounds, debug=False, jitter=False
                )[0]
                for one, target in zip(images.split(1), self.targets, strict=False)
            ]
            return F.interpolate(torch.cat(found), images.shape[2:], mode="bilinear", align_corners=False)

        floor = self.floor(rounds * count, images, gradients=True)
        return self.ours("extremal", images, iterations=rounds), theirs, floor

    def extremal_batch(self) -> tuple[Callable, ...]:
        return self.extremal(len(self.images))


def correlation(ours: Tensor, theirs: Tensor) -> float:
    """Return the mean over images of the correlation of two maps; 1 where both are constant."""
    values = []
    for one, other in zip(ours.flatten(1).double(), theirs.flatten(1).double(), strict=True):
        both = float(one.std()) == 0 and float(other.std()) == 0
        values.append(1.0 if both else float(torch.corrcoef(torch.stack([one, other]))[0, 1]))
    return sum(values) / len(values)


def held_against(sides: tuple[Callable, ...], rounds: int) -> dict[str, Any]:
    """Time ours, the rival's and, where there is one, the floor in turns."""
    taken: list[list[Seconds]] = [[] for _ in sides]
    found: list[Any] = [None for _ in sides]
    for _ in range(rounds):
        for k, work in enumerate(sides):
            seconds, found[k] = timed(quiet(work))
            taken[k].append(seconds)
    ours, theirs, *floor = (min(side) for side in taken)
    wall = [min(one.wall for one in side) for side in taken]
    least = {"floor_cpu_s": floor[0].cpu, "most": theirs.cpu / floor[0].cpu} if floor else {}
    return {
        "ours_cpu_s": ours.cpu,
        "rival_cpu_s": theirs.cpu,
        "ratio": theirs.cpu / ours.cpu,
        "ours_wall_s": wall[0],
        "rival_wall_s": wall[1],
        "correlation": correlation(found[0], found[1]),
    } | least


def write(given: argparse.Namespace, rows: dict[str, Any]) -> None:
    """Add the rows to the file, after every method: a run that is cut short keeps those that it has."""
    about = {key: value for key, value in vars(given).items() if key != "out"}
    about |= {key: about[key] and Path(about[key]).name for key in ("weights", "pictures")}
    about |= {"command": "python benchmarks/explainers.py " + " ".join(without_folders(part) for part in sys.argv[1:])}
    about |= {"trained": given.weights is not None, "torch": torch.__version__, "timm": timm.__version__}
    about |= {"machine": platform.machine(), "python": platform.python_version()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(given.out.read_text()) if given.out.exists() else {}
    runs[f"{given.network} at {given.image_size}, {given.passes} passes"] = {"settings": about, "methods": rows}
    given.out.write_text(json.dumps(runs, indent=1) + "\n")


def without_folders(part: str) -> str:
    """Return a part of the command with a path's last name alone, quoted where the shell asks for it."""
    return shlex.quote(Path(part).name if part.startswith("/") else part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--weights", help="a trained network's file; random weights without")
    parser.add_argument("--pictures", type=Path, help="folder with a folder of pictures a class; noise without")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--passes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="methods; all without")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given.network, given.image_size, given.batch, given.passes, given.weights, given.pictures)
    methods = {
        "gradcam": (bench.gradcam, 5 * given.rounds),
        "scorecam": (bench.scorecam, given.rounds),
        "rise": (bench.rise, given.rounds),
        "rise (published)": (bench.published_rise, given.rounds),
        "integrated_gradients": (bench.integrated_gradients, given.rounds),
        "extremal": (bench.extremal, given.rounds),
        "extremal (batch)": (bench.extremal_batch, given.rounds),
    }
    rows: dict[str, Any] = {}
    print(f"{'method':22}{'ours s':>10}{'rival s':>10}{'ratio':>8}{'target':>8}{'most':>7}{'same map':>10}")
    for name, (make, rounds) in methods.items():
        if given.only and name not in given.only:
            continue
        try:
            pair = make()
        except ImportError as error:
            rows[name] = {"left_out": str(error)}
            print(f"{name:22}left out: {error}")
            continue
        row = rows[name] = held_against(pair, rounds) | {"target": TARGETS.get(name)}
        wanted = f"{row['target']:.1f}" if row["target"] else "-"
        most = f"{row['most']:.2f}" if "most" in row else "-"
        print(
            f"{name:22}{row['ours_cpu_s']:10.3f}{row['rival_cpu_s']:10.3f}{row['ratio']:8.2f}{wanted:>8}{most:>7}"
            f"{row['correlation']:10.4f}",
            flush=True,
        )
        if given.out:
            write(given, rows)


if __name__ == "__main__":
    main()
