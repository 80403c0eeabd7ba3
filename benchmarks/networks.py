"""Which networks of timm and torchvision can be read and explained without naming a layer.

    python benchmarks/networks.py --out results/benchmarks/networks.json

Of every family of timm the smallest network below 40 million parameters (--each N: the smallest N), and all such
networks of torchvision, with random weights: layers are found, Grad-CAM and a new masker give finite maps of one
picture, and the deepest layer that is read has the grid of the last stage, as timm's `feature_info` says it. What
fails, and so needs layers by name, is listed.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.masker import Masker

LARGEST, WIDEST = 40e6, 300
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def parameters(make: Callable[[], nn.Module]) -> float:
    """Count without making; infinite where a network cannot be made without numbers."""
    try:
        with torch.device("meta"):
            return sum(value.numel() for value in make().parameters())
    except Exception:
        return float("inf")


def of_timm(each: int, only: str = "") -> Iterator[tuple[str, Callable[[], Classifier]]]:
    families: dict[str, list[tuple[float, str]]] = {}
    for name in timm.list_models():
        config = timm.models.get_pretrained_cfg(name)
        if config is None or config.input_size[-1] > WIDEST or only not in name:
            continue
        size = parameters(lambda name=name: timm.create_model(name))
        if size <= LARGEST:
            families.setdefault(timm.models.model_entrypoint(name).__module__, []).append((size, name))
    for members in families.values():
        for _, name in sorted(members)[:each]:
            yield f"timm {name}", lambda name=name: Classifier.from_timm(name, pretrained=False, num_classes=5)


def of_torchvision() -> Iterator[tuple[str, Callable[[], Classifier]]]:
    def make(name: str) -> nn.Module:
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=5, **more).eval()

    for name in torchvision.models.list_models(module=torchvision.models):
        if parameters(lambda name=name: make(name)) <= LARGEST:
            yield f"torchvision {name}", lambda name=name: Classifier(make(name), layers=None, **IMAGENET)


def misread(classifier: Classifier) -> str | None:
    """Return how the deepest layer that is read differs from the last stage of timm's own description."""
    described = getattr(classifier.network, "feature_info", None)
    if not described:
        return None
    picked = Classifier(classifier.network, layers=None, image_size=classifier.image_size, **IMAGENET)
    wanted = described[-1]["reduction"]
    got = picked.describe()[-1]
    if max(wanted, got.stride[0]) > 1.34 * min(wanted, got.stride[0]):  # grids of odd sizes round
        return f"reads {got.name} at stride {got.stride[0]:g}, the last stage has {wanted}"
    return None


def attempt(make: Callable[[], Classifier]) -> str | None:
    """Return what went wrong."""
    try:
        classifier = make()
        picture = torch.rand(1, 3, classifier.image_size, classifier.image_size)
        if (wrong := misread(classifier)) is not None:
            return wrong
        masker = Masker.for_classifier(classifier)
        for explainer in (EXPLAINERS["gradcam"](), Learned(masker)):
            if not explainer(classifier, picture).masks.isfinite().all():
                return "maps that are not finite"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=1, help="networks a family of timm")
    parser.add_argument("--only", default="", help="names that hold this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tried: dict[str, list[str]] = {"works": [], "fails": []}
    for name, make in [*of_timm(given.each, given.only), *of_torchvision()]:
        if given.only not in name:
            continue
        wrong = attempt(make)
        tried["works" if wrong is None else "fails"].append(name if wrong is None else f"{name}: {wrong}")
        if wrong is not None:
            print(f"{name}: {wrong}", flush=True)
    for library in ("timm", "torchvision"):
        works, fails = (sum(name.startswith(library + " ") for name in tried[key]) for key in ("works", "fails"))
        print(f"{library}: {works} of {works + fails} networks")
    if given.out:
        versions = {"timm": timm.__version__, "torchvision": torchvision.__version__, "torch": torch.__version__}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"settings": {"each": given.each, **versions}, **tried}, indent=1) + "\n")


if __name__ == "__main__":
    main()
