"""Networks by name, with how they want their pictures: timm, torchvision, Hugging Face and functions of one's own.

| SPEC | network | weights |
|---|---|---|
| `timm:NAME`, `timm:hf-hub:OWNER/NAME` | timm's | pretrained, or those of a file (`@FILE`) |
| `torchvision:NAME` | torchvision's | pretrained, or those of a file (`@FILE`) |
| `early:INPUTS:NAME`, `late:INPUTS:NAME` | timm's, of several inputs (`fusion`) | those of a file (`@FILE`) |
| `hf:NAME_OR_FOLDER` | transformers' image classifier | its own |
| `audio:NAME` | a classifier of sounds (`salmask.audio.network`) | those of a file (`@FILE`) |
| `module.py:function`, `package.module:function` | what the function returns | its own |
"""

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import timm
import torch
import torchvision
from torch import Tensor, nn

from salmask.classifier.fusion import FUSIONS, fused_network
from salmask.classifier.imagenet import packaged_weights
from salmask.classifier.inputs import check_count
from salmask.classifier.reach import bounded, patient
from salmask.classifier.weights import fit_weights, load_weights
from salmask.classifier.wrappers import Network, as_module, unwrapped
from salmask.files import JSON, Facts

__all__ = [
    "Named",
    "full_spec",
    "hugging_face_network",
    "is_known",
    "named_network",
    "own_network",
    "split_spec",
    "timm_network",
    "torchvision_network",
]

_HUB = ("hf-hub:", "hf_hub:", "local-dir:")
_SEEN = ("image_size", "interpolation", "fit", "crop_pct")
_FACTS = (*_SEEN, "classes", "hearing")
_MORE = ("outputs", "output", "prefix", "grid", "inputs")
_OWN = re.compile(r"((?:.+\.py|[A-Za-z_][\w.]*)):([A-Za-z_]\w*)(?:@(.*))?")


@dataclass(frozen=True)
class Named:
    """A network and how it wants its pictures.

    colours: mean and std by name, empty where nobody says them. image_size: side of its square pictures. fit: "crop" or
    "squash". crop_pct: share of the short side that is left after the centre crop. more: options of `Classifier`.
    hearing: of a network of sounds, how it hears: an `audio.Hearing`, or its settings by name.
    """

    network: Network
    colours: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    image_size: int | None = None
    interpolation: str = "bilinear"
    fit: str = "crop"
    crop_pct: float = 1.0
    classes: tuple[str, ...] | None = None
    more: Facts = field(default_factory=dict)
    hearing: object = None

    def options(self, image_size: int | None = None) -> JSON:
        """Return the keyword arguments of `Classifier`: mean, std and image_size, those that are known."""
        size = image_size or self.image_size
        return {**self.colours, **({} if size is None else {"image_size": size})}


def split_spec(spec: str) -> tuple[str, str, str]:
    """Split a SPEC into what builds it (a word, or "" for a function), its name and its file.

    The file of a function's module becomes an absolute path, so that a run is built again from any folder.
    Errors: ValueError for what is no SPEC.
    """
    whole, _, file = spec.partition("@")
    kind, colon, name = whole.partition(":")
    if colon and name and kind in ("timm", "torchvision", "hf", "audio", *FUSIONS):
        return kind, name, file
    if (own := _OWN.fullmatch(spec)) is not None:  # folders may have an @ in their names
        where, function, weights = own.groups()
        return "", f"{Path(where).resolve() if where.endswith('.py') else where}:{function}", weights or ""
    raise ValueError(
        f"{spec!r} is no classifier: expected timm:NAME, torchvision:NAME (either with @FILE for weights of a file), "
        "hf:NAME_OR_FOLDER, early:INPUTS:NAME, late:INPUTS:NAME, module.py:function, package.module:function, "
        "or the folder of a run"
    )


def full_spec(network: str) -> str:
    """Return the SPEC that a run means by its network: a plain name is timm's."""
    plain = network.startswith(_HUB) or ":" not in network
    return f"timm:{network}" if plain else network


def is_known(spec: str) -> bool:
    """Return whether a SPEC names something that can be built: whether timm has it, where it is one of timm's."""
    kind, _, name = spec.partition(":")
    if kind in FUSIONS:
        return timm.is_model(name.rpartition(":")[2])
    return kind != "timm" or timm.is_model(name) or name.startswith(_HUB)


def named_network(
    kind: str, name: str, *, file: str = "", num_classes: int | None = None, network: Network | None = None
) -> Named:
    """Build what a SPEC names (`split_spec`), with the weights of a file where one is given.

    network: stands in for what would be built. Errors: ValueError for what cannot be had or does not fit.
    """
    if network is None and kind in ("timm", "torchvision"):
        build = timm_network if kind == "timm" else torchvision_network
        return build(name, pretrained=not file, num_classes=None if file else num_classes, checkpoint=file or None)
    if network is None and kind in FUSIONS:
        made, inputs = fused_network(kind, name, file=file or None, num_classes=num_classes)
        colours = {"mean": (0.5,) * inputs.total, "std": (0.25,) * inputs.total}
        return Named(made, colours, more={"inputs": inputs.settings()})
    if network is not None:
        named = Named(network)
    else:
        named = hugging_face_network(name) if kind == "hf" else own_network(name)
    if file:
        inner = unwrapped(as_module(named.network))
        fit_weights(inner, load_weights(file), f"{name} from {file}")
    return named


def timm_network(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    channels: int | None = None,
) -> Named:
    """Build a timm network in eval mode. Errors: ValueError for unknown names and weights that do not fit.

    pretrained: with timm's weights, from an installed package where one holds them (`packaged_weights`); a classifying
    layer for other classes begins anew. channels: that it reads; None: as many as the weights of a file read, or three.
    Of others than three the normalisation is not known.
    """
    if not timm.is_model(name) and not name.startswith(_HUB):
        near = get_close_matches(name, timm.list_models(), 3)
        raise ValueError(f"timm has no network {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    if channels is not None:
        check_count(channels)
    weights = None if checkpoint is None else load_weights(checkpoint)
    own = timm.get_pretrained_cfg(name)
    if weights is not None and checkpoint is not None and own is not None and channels is None:
        first = weights.get(f"{own.first_conv}.weight")
        channels = None if first is None or first.ndim != 4 else first.shape[1]
    if weights is not None and num_classes is None:
        head = own.classifier if own is not None else None
        num_classes = _classes_in(weights, head[0] if isinstance(head, tuple) else head, name)
    options: JSON = {} if num_classes is None else {"num_classes": num_classes}
    if channels not in (None, 3):
        options["in_chans"] = channels
    if pretrained and weights is None:
        packaged = packaged_weights(name)  # the hub's, to the bit
        options |= {"pretrained": True} if packaged is None else _given(packaged)
    asks = (options.get("pretrained") and "pretrained_cfg_overlay" not in options) or name.startswith(_HUB[:2])
    with _asking("timm", name) if asks else nullcontext(), bounded() if asks else nullcontext():
        network = _flexible(name, options).eval()
    if weights is not None:
        fit_weights(network, weights, name if checkpoint is None else f"{name} from {checkpoint}")
    config = timm.data.resolve_model_data_config(network)
    return Named(
        network,
        {"mean": tuple(config["mean"]), "std": tuple(config["std"])} if channels in (None, 3) else {},
        config["input_size"][-1],
        config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bilinear",
        "squash" if config.get("crop_mode") == "squash" else "crop",
        float(config["crop_pct"]),
    )


def _given(weights: Mapping[str, Tensor]) -> JSON:
    """Let timm begin with these weights as with its own: other classes and channels are seen to."""
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}


@contextmanager
def _asking(kind: str, name: str) -> Iterator[None]:
    """Say in one line what cannot be had, and the way out, while weights are asked for."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the pretrained weights of {name} cannot be had ({reason}): give {kind}:{name}@FILE"
        ) from error


def _flexible(name: str, options: Facts) -> nn.Module:
    """Build a timm network that takes other image sizes than its own, where its family can."""
    wishes: tuple[Facts, ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
    for extra in wishes:
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError:
            continue
    return timm.create_model(name, **options)


def _classes_in(weights: Mapping[str, Tensor], head: str | None, what: str) -> int:
    """Return how many rows the weights of a network's classifying layer have."""
    for key, value in weights.items():
        if any(key == end or key.endswith(f".{end}") for end in (f"{head}.weight", f"{head}.bias")):
            return value.shape[0]
    raise ValueError(f"the weights hold no {head}.weight, the classifying layer of {what}: is it another network?")


def _last_linear(network: nn.Module) -> str | None:
    """Return the name of the last linear layer, or last convolution of a network without one."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    others = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    return next(reversed(linear or others), None)


def torchvision_network(
    name: str, *, pretrained: bool, num_classes: int | None = None, checkpoint: str | Path | None = None
) -> Named:
    """Build a classifier of torchvision in eval mode, with the pictures of its default weights.

    Errors: ValueError for unknown names and weights that do not fit.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = get_close_matches(name, names, 3)
        raise ValueError(f"torchvision has no classifier {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    default = torchvision.models.get_model_weights(name).DEFAULT
    weights = None if checkpoint is None else load_weights(checkpoint)
    if weights is not None and num_classes is None:
        with torch.device("meta"):
            head = _last_linear(torchvision.models.get_model(name, weights=None))
        num_classes = _classes_in(weights, head, name)
    options: JSON = {} if num_classes is None else {"num_classes": num_classes}
    asked = default if pretrained and weights is None else None
    with nullcontext() if asked is None else _asking("torchvision", name), patient():
        network = torchvision.models.get_model(name, weights=asked, **options).eval()
    if weights is not None:
        fit_weights(network, weights, f"{name} from {checkpoint}")
    seen = default.transforms()
    side = seen.crop_size[0]
    return Named(
        network,
        {"mean": tuple(seen.mean), "std": tuple(seen.std)},
        side,
        seen.interpolation.value if seen.interpolation.value in ("bilinear", "bicubic") else "bilinear",
        crop_pct=min(1.0, side / seen.resize_size[0]),
    )


def hugging_face_network(name: str) -> Named:
    """Build an image classifier of transformers, by its name on the Hub or from a folder, with its own pictures.

    Errors: ImportError without transformers; ValueError for names and folders that hold no such network.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise ImportError("networks of Hugging Face need transformers: pip install transformers") from error
    try:
        with nullcontext() if Path(name).is_dir() else bounded():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            options: JSON = {"config": config, "trust_remote_code": False}  # else one is asked, amid a command
            network = AutoModelForImageClassification.from_pretrained(name, **options).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"no image classifier of Hugging Face can be had from {name!r}: {reason}") from error
    labels = [config.id2label[index] for index in sorted(config.id2label)]
    return _processed(name, config, network, tuple(map(str, labels)))


def _processed(name: str, config: object, network: Network, classes: tuple[str, ...]) -> Named:
    """Read how pictures are prepared from preprocessor_config.json."""
    from transformers.utils import cached_file

    with nullcontext() if Path(name).is_dir() else bounded():
        path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    facts = json.loads(Path(path).read_text()) if path else {}
    colours = {}
    if facts.get("do_normalize", True) and {"image_mean", "image_std"} <= facts.keys():
        colours = {"mean": tuple(facts["image_mean"]), "std": tuple(facts["image_std"])}
    before: int = getattr(config, "image_size", 224)
    before = _side(facts, "size") or before
    cuts = bool(facts.get("do_center_crop"))
    side: int = (_side(facts, "crop_size") if cuts else None) or before
    short = isinstance(facts.get("size"), dict) and "shortest_edge" in facts["size"]
    return Named(
        network,
        colours,
        side,
        "bicubic" if facts.get("resample") == 3 else "bilinear",
        "crop" if cuts or short else "squash",
        float(facts.get("crop_pct") or min(1.0, side / before)) if cuts or short else 1.0,
        classes,
    )


def _side(facts: Facts, name: str) -> int | None:
    """Return the side of a size that is a number, a height with its width, or a short side."""
    size = facts.get(name)
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size


def own_network(spec: str) -> Named:
    """Call the function that `module.py:function` or `package.module:function` names; it takes no arguments.

    A class is called likewise, and a network that stands under the name is taken as it is.

    It returns a network, or a network and a dictionary with any of mean, std, image_size, interpolation, fit, crop_pct,
    classes, outputs, output, prefix, grid and inputs; of sounds, with `hearing` and none of those before classes.
    Errors: ValueError where it cannot be had, or returns something else.
    """
    where, _, name = spec.rpartition(":")
    try:
        module = _module(where)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{where} cannot be imported for the network {spec!r} ({type(error).__name__}: {error})"
        ) from error
    if not callable(build := getattr(module, name, None)):
        near = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{where} has no function {name!r}: it has {', '.join(near[:8]) or 'none'}")
    try:
        answer = build if isinstance(build, nn.Module) else build()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{spec}, called without arguments, ends in {type(error).__name__}: {error}; expected a network"
        ) from error
    network, facts = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, {})
    if not isinstance(network, nn.Module) and not callable(network):
        raise ValueError(f"{spec} is to return a torch.nn.Module, or one and a dictionary, got {type(answer).__name__}")
    if not isinstance(facts, Mapping):
        raise ValueError(f"{spec} returns {type(facts).__name__} beside its network: expected a dictionary")
    facts = dict(facts)
    try:
        colours = {key: tuple(float(value) for value in facts.pop(key)) for key in ("mean", "std") if key in facts}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec} returns a mean or a std that is no row of numbers: {error}") from error
    more = {key: facts.pop(key) for key in _MORE if key in facts}
    if unknown := sorted(facts.keys() - _FACTS):
        expected = ", ".join(("mean", "std", *_FACTS, *_MORE))
        raise ValueError(f"{spec} returns {unknown[0]!r} beside its network: expected any of {expected}")
    if "hearing" in facts and (seen := [name for name in (*_SEEN, *colours) if name in {*facts, *colours}]):
        raise ValueError(
            f"{spec} returns a hearing, of sounds, and {seen[0]!r}, of pictures: leave one out; what is taken off a "
            "spectrogram, and what it is divided by, is part of a network of sounds"
        )
    return Named(network, colours, classes=_names(facts.pop("classes", None), spec), more=more, **facts)


def _names(classes: object, spec: str) -> tuple[str, ...] | None:
    """Return the names of the classes. Errors: ValueError for what are no texts, or not each once."""
    if classes is None:
        return None
    names = tuple(classes) if isinstance(classes, Sequence) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{spec} returns {classes!r} as its classes: expected their names, each once")
    return names


def _module(where: str) -> ModuleType:
    """Import a module by its name, or from a file beside which its own imports are found."""
    if not where.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(where)
    path = Path(where).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"salmask_own_{path.stem}"
    description = importlib.util.spec_from_file_location(name, path)
    assert description is not None and description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module
    description.loader.exec_module(module)
    return module
