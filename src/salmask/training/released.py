"""Maskers that were trained by the released code of Phang, Park & Geras (2020) and by its ancestor CASM.

A checkpoint there is a dictionary: `state_dict_classifier` (torchvision's names), `state_dict_masker` (older:
`state_dict_decoder`) and `args`. Its masker has, for each map k that it reads, `conv1x1_k.0` (1x1 convolution) and
`conv1x1_k.1` (batch norm), and `final.0` or `final.conv`, the 3x3 convolution. Map 0 has no convolution of its own
unless it is the only one. The maps are joined from the shallow to the deep.

Nothing in a checkpoint is run: only tensors, plain values and the parsed options are read.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.files import JSON, Facts
from salmask.masker import Concrete, Masker, Sigmoid
from salmask.metrics import METRICS
from salmask.training.recipes import Recipe

__all__ = ["as_released", "load_released", "metric_as_released"]

_BLOCKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


_LMAC_BATCH = 16


def as_released(recipe: Recipe) -> Recipe:
    """Return a recipe as the released code carries it out, where that differs from what is described.

    A stored classifier is drawn and then not used: on those batches the current one meets the masked pictures and
    does not learn from them ("skip_update"); and normalisation statistics are those of all pictures mixed. L-MAC adds
    its area, a mean over the batch, once for each of the 16 sounds of a batch.
    """
    history = "skip_update" if recipe.history == "sample" else recipe.history
    for term in {"area", "area_unless_alike"} & recipe.objective.terms.keys() if recipe.name.startswith("lmac") else ():
        recipe = recipe.weighted(**{term: _LMAC_BATCH * float(recipe.objective.terms[term][0])})
    return replace(recipe, history=history, statistics="all")


def metric_as_released(name: str) -> str:
    """Return the name of a metric's released protocol (le -> le:as_released), or the name as it is without one."""
    released = f"{name}:as_released"
    return released if released in METRICS else name


def load_released(path: str | Path) -> tuple[Masker, Classifier, str]:
    """Return masker and classifier of a released checkpoint, and the name of the classifier's network.

    Errors: FileNotFoundError; ValueError for a file that is no such checkpoint, naming what is missing.
    """
    content = _read(Path(path))
    weights = _plain(content["state_dict_classifier"])
    network = _network(weights, Path(path))
    classifier = Classifier.from_timm(network, pretrained=False, num_classes=len(weights["fc.bias"]), image_size=224)
    _load(classifier.network, weights, f"{path}: state_dict_classifier")
    key = "state_dict_masker" if "state_dict_masker" in content else "state_dict_decoder"
    masker = _masker(_plain(content[key]), classifier, _options(content.get("args")), f"{path}: {key}")
    masker.classifier = classifier.fingerprint()
    return masker.eval(), classifier, network


def _read(path: Path) -> JSON:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has errors of many kinds
        raise ValueError(
            f"{path} is no checkpoint that can be read safely ({type(error).__name__}): is it cut short, or another "
            "format?"
        ) from error
    summary = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    has_masker = isinstance(content, dict) and ({"state_dict_masker", "state_dict_decoder"} & content.keys())
    if not has_masker or "state_dict_classifier" not in content:
        raise ValueError(
            f"{path} is no released checkpoint: expected state_dict_classifier and state_dict_masker "
            f"(or state_dict_decoder), got {summary}"
        )
    return content  # type: ignore[no-any-return]


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the prefix that data-parallel training leaves."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _options(args: argparse.Namespace | Facts | None) -> JSON:
    return vars(args) if isinstance(args, argparse.Namespace) else dict(args or {})


def _network(weights: Mapping[str, Tensor], path: Path) -> str:
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    blocks = tuple(
        len({name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    if (kind, blocks) not in _BLOCKS or "fc.bias" not in weights:
        raise ValueError(f"{path}: its classifier is no ResNet known here, its stages have {blocks} {kind} blocks")
    return _BLOCKS[kind, blocks]


def _masker(weights: Mapping[str, Tensor], classifier: Classifier, options: Facts, where: str) -> Masker:
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        projection = re.fullmatch(r"conv1x1_(\d)\.([01])\.(.+)", name)
        if projection:
            layer, part, rest = projection.groups()
            renamed[f"projections.{layer}.{part}.{rest}"] = value
        elif last := re.fullmatch(r"final\.(?:0|conv)\.(weight|bias)", name):
            renamed[f"final.{last[1]}"] = value
        elif value.ndim == 2 and name.endswith(".weight"):
            renamed["embedding.weight"] = value
    if "final.weight" not in renamed:
        raise ValueError(f"{where}: expected final.0.weight or final.conv.weight, found {', '.join(list(weights)[:6])}")
    layers = sorted({int(name.split(".")[1]) for name in renamed if name.startswith("projections.")})
    surplus = {k: renamed[f"projections.{k}.0.weight"].shape[1] - classifier.channels[k] for k in layers}
    extra = max(surplus.values(), default=0)
    raw = renamed["final.weight"].shape[1] - 64 * len(layers)
    if raw:
        layers = [0, *layers]
    embedding = renamed.get("embedding.weight")
    masker = Masker.for_classifier(
        classifier,
        layers=layers,
        upsample=str(options.get("upsample", "nearest")),
        head=_head(options),
        area_condition=bool(extra % 64),
        classes=None if embedding is None else len(embedding),
    )
    _load(masker, renamed, where)
    return masker


def _head(options: Facts) -> torch.nn.Module:
    """Return the head; a temperature of -1, meant to be learnt, turned the mask around: it is taken as 0.1."""
    if not options.get("apply_gumbel"):
        return Sigmoid()
    temperature = float(options.get("apply_gumbel_tau", 0.1))
    mode = str(options.get("gumbel_output_mode", "hard"))
    return Sigmoid() if mode == "sigmoid" else Concrete(temperature if temperature > 0 else 0.1, hard=mode == "hard")


def _load(module: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    own = module.state_dict()
    missing = [
        name for name in own if name not in weights and not name.endswith(("num_batches_tracked", "temperature"))
    ]
    odd = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or odd:
        shapes = "; ".join(f"{n}: {tuple(weights[n].shape)} for {tuple(own[n].shape)}" for n in odd[:3])
        raise ValueError(
            f"{where} does not fit: {len(missing)} tensors are missing ({', '.join(missing[:3])}), {len(odd)} have "
            f"another shape ({shapes})"
        )
    module.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
