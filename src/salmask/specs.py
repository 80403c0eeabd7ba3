"""From what a user types to objects: classifiers, run folders, data, explainers by name.

SPEC of a classifier: `timm:NAME` (pretrained weights), `timm:NAME@FILE` (weights from a file), or a run's folder.
A run's folder holds the masker (config.json, model.safetensors), its classifier (classifier.safetensors) and
run.json, which says how pictures get from the disk to the classifier.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode

from salmask.classifier import Classifier
from salmask.data import CropFlip, SampleTransform, ShortSide, Squash
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.explain.optimise.methods import refined
from salmask.files import replace_file
from salmask.masker import Masker
from salmask.masking import Bank, Blur, MeanColour, Noise, RandomColour, Remasked
from salmask.metrics import METRICS, Metric
from salmask.training.inpainter import load_inpainter
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.released import load_released
from salmask.training.train import mean_colour
from salmask.types import Infill

__all__ = [
    "Loaded",
    "View",
    "load_checkpoint",
    "load_classifier",
    "load_explainer",
    "load_infill",
    "load_metrics",
    "load_recipe",
    "load_run",
    "named",
    "save_classifier",
    "save_run",
]

RUN, CLASSIFIER, REFINED = "run.json", "classifier.safetensors", "refined"


@dataclass(frozen=True)
class View:
    """How a picture becomes what the classifier sees: size x size pixels, cut or squashed, interpolated so."""

    image_size: int
    fit: str = "crop"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit is 'crop' (short side, then centre) or 'squash', came {self.fit!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is 'bilinear' or 'bicubic', came {self.interpolation!r}")
        if self.image_size < 8:
            raise ValueError(f"an image size of at least 8 is needed, came {self.image_size}")

    def transform(self) -> SampleTransform:
        """Return the transform of evaluation."""
        mode = InterpolationMode(self.interpolation)
        return (ShortSide if self.fit == "crop" else Squash)(self.image_size, interpolation=mode)

    def augmentation(self) -> CropFlip:
        """Return the transform of training: random crop and flip."""
        return CropFlip(self.image_size, interpolation=InterpolationMode(self.interpolation))


@dataclass(frozen=True)
class Loaded:
    """A classifier, the SPEC that names its network, how it wants pictures, and its classes where known."""

    classifier: Classifier
    network: str
    view: View
    classes: tuple[str, ...] | None = None

    def seen(
        self, *, image_size: int | None = None, fit: str | None = None, interpolation: str | None = None
    ) -> "Loaded":
        """Return it with what is given of another way from pictures to pixels."""
        own = self.view
        return replace(
            self, view=View(image_size or own.image_size, fit or own.fit, interpolation or own.interpolation)
        )


def load_classifier(
    spec: str,
    *,
    image_size: int | None = None,
    fit: str | None = None,
    interpolation: str | None = None,
    layers: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Loaded:
    """Build the classifier that a SPEC names; what is not given comes from the file, the run or the network."""
    if not spec.startswith("timm:"):
        if not (Path(spec) / RUN).is_file():
            raise ValueError(f"{spec!r} is no classifier: expected timm:NAME, timm:NAME@FILE or the folder of a run")
        return load_run(spec)[1].seen(image_size=image_size, fit=fit, interpolation=interpolation)
    name, _, file = spec.removeprefix("timm:").partition("@")
    known = _metadata(Path(file)) if file else {}
    if known.get("network", name) != name:
        raise ValueError(f"{file} holds the weights of {known['network']}, asked for is {name}")
    size = image_size or known.get("image_size")
    try:
        classifier = Classifier.from_timm(
            name,
            pretrained=not file,
            checkpoint=file or None,
            layers=layers,
            image_size=size,
            num_classes=num_classes if not file else None,
        )
    except (OSError, RuntimeError) as error:
        if file:
            raise
        raise ValueError(f"the pretrained weights of {name} cannot be had ({error}): give timm:{name}@FILE") from error
    config = timm.data.resolve_model_data_config(classifier.network)
    view = View(
        classifier.image_size,
        fit or known.get("fit", "crop"),
        interpolation or known.get("interpolation") or _interpolation(config["interpolation"]),
    )
    classes = known.get("classes")
    return Loaded(classifier, name, view, tuple(classes) if classes else None)


def save_classifier(path: Path, loaded: Loaded) -> None:
    """Write a classifier's weights with what `load_classifier` needs to build it again."""
    facts = {"network": loaded.network, "classes": loaded.classes, **asdict(loaded.view)}
    weights = {
        name: value.detach().cpu().contiguous() for name, value in loaded.classifier.network.state_dict().items()
    }
    replace_file(path, lambda at: save_file(weights, at, metadata={"format": "pt", "salmask": json.dumps(facts)}))


def save_run(folder: Path, masker: Masker, loaded: Loaded, facts: dict[str, Any]) -> None:
    """Write masker, classifier and run.json, each file whole or not at all."""
    save_classifier(folder / CLASSIFIER, loaded)
    masker.save_pretrained(folder)
    content = {
        "format": "salmask run 1",
        "network": loaded.network,
        "taps": loaded.classifier.layers,
        "view": asdict(loaded.view),
        "classes": loaded.classes,
        **facts,
    }
    replace_file(folder / RUN, lambda at: at.write_text(json.dumps(content, indent=2) + "\n"))


def load_run(folder: str | Path) -> tuple[Masker, Loaded]:
    """Load a finished run's masker and classifier. Errors: FileNotFoundError, ValueError for something else."""
    folder = Path(folder)
    if not (folder / RUN).is_file():
        unfinished = (folder / "checkpoint.pt").is_file()
        hint = "it is unfinished, go on with `salmask train --resume`" if unfinished else "expected run.json there"
        raise FileNotFoundError(f"no run in {folder}: {hint}")
    try:
        facts = json.loads((folder / RUN).read_text())
        if facts["format"] != "salmask run 1":
            raise KeyError("format")
        network, taps, view = facts["network"], facts["taps"], View(**facts["view"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RUN} does not describe a salmask run ({error!r})") from error
    loaded = load_classifier(f"timm:{network}@{folder / CLASSIFIER}", layers=taps, **asdict(view))
    masker = Masker.from_pretrained(folder)
    masker.fits(loaded.classifier)
    return masker, loaded


def load_checkpoint(path: str | Path) -> tuple[Masker, Loaded]:
    """Load masker and classifier of a checkpoint of the paper's released code. Errors: as `load_released`."""
    masker, classifier, network = load_released(path)
    return masker, Loaded(classifier, network, View(224))


def named(spec: str) -> tuple[str | None, str]:
    """Split TITLE=SPEC into the title that tables show and what it stands for; (None, spec) without a title.

    A title holds no colon, slash or equals sign: `rise:masks=500` and `RUN:reads=SPEC` have none. The folder of a run
    whose own name holds an equals sign is that folder. Errors: ValueError for an empty title.
    """
    found = re.match(r"([^:/\\=]*)=(.+)", spec)
    if found is None or _run(spec)[0] is not None:
        return None, spec
    if not found[1].strip():
        raise ValueError(f"expected a title before the equals sign, came {spec!r}")
    return found[1].strip(), found[2]


def load_explainer(
    name: str, *, loaded: Loaded | None, seed: int = 0, bank: Callable[[View], Tensor] | None = None
) -> tuple[str, Explainer, Loaded]:
    """Return the name in tables, the explainer, and the classifier that it explains, of a RUN or a NAME.

    A RUN is a folder, or the checkpoint file of a masker that was trained by the paper's released code.
    `TITLE=RUN` and `TITLE=NAME` choose the name in tables (`named`).

    A name may carry settings: `rise:masks=500`, `extremal:areas=[0.05,0.2]`; values are read as JSON where they can
    be. So may a run: `RUN:top=0.4` for binary masks of that share, `RUN:area=0.4` for a masker that is told its area,
    `RUN:reads=SPEC` to read the maps of another classifier than the run's own. An explainer that hides parts takes
    `infill` by name or file, as in `load_infill`: `rise:infill=blur`, `bank_masks:infill=bank`.
    `refined:start=SPEC` improves the maps of a run or of another explainer; `start` comes last, as what follows it
    may have settings of its own: `refined:iterations=50,start=rise:masks=500`.
    seed: of an explainer that draws, unless its settings name one. bank: gives the pictures for `infill=bank`, as
    seen through a view.
    """
    title, name = named(name)
    run, options = _run(name)
    if run is not None:
        masker, own = load_checkpoint(run) if Path(run).is_file() else load_run(run)
        given = _options(options)
        if (spec := given.pop("reads", None)) is not None:
            own = _read_by(masker, str(spec), own)
        title = title or Path(run).resolve().name + (f":{options}" if options else "")
        try:
            return title, Learned(masker, **given), own
        except TypeError as error:
            raise ValueError(
                f"the masker in {run} does not take {options!r}, only top, area, max_batch and reads"
            ) from error
    plain, _, options = name.partition(":")
    if plain == REFINED:
        return _refined(title or name, options, loaded=loaded, seed=seed, bank=bank)
    if plain not in EXPLAINERS:
        raise ValueError(
            f"no explainer {name!r}: expected the folder of a run, a released checkpoint (.chk), "
            f"or one of {', '.join(sorted([*EXPLAINERS, REFINED]))}"
        )
    if loaded is None:
        raise ValueError(f"{plain} explains a classifier: name one with --classifier")
    return title or name, _made(EXPLAINERS[plain], plain, options, loaded, seed=seed, bank=bank), loaded


def _refined(
    title: str, options: str, *, loaded: Loaded | None, seed: int, bank: Callable[[View], Tensor] | None
) -> tuple[str, Explainer, Loaded]:
    found = re.search(r"(?:^|,)start=(.+)", options)
    if found is None:
        raise ValueError(f"refined improves another explainer's maps: name it last, refined:start=SPEC, came {title!r}")
    _, explainer, own = load_explainer(found[1], loaded=loaded, seed=seed, bank=bank)
    build = partial(refined, explainer)
    return title, _made(build, REFINED, options[: found.start()], own, seed=seed, bank=bank), own


def _made(
    build: Callable[..., Explainer],
    name: str,
    options: str,
    loaded: Loaded,
    *,
    seed: int,
    bank: Callable[[View], Tensor] | None,
) -> Explainer:
    """Call a constructor with the settings after its name."""
    given = ({"seed": seed} if "seed" in signature(build).parameters else {}) | _options(options)
    if "infill" in given and "infill" in signature(build).parameters:
        if given["infill"] == "bank" and bank is None:
            raise ValueError(
                f"{name}:infill=bank fills holes with training pictures, and this command has none: use evaluate"
            )
        pictures = bank(loaded.view) if given["infill"] == "bank" and bank is not None else None
        generator = Generator().manual_seed(seed)
        given["infill"] = load_infill(
            str(given["infill"]), classifier=loaded.classifier, generator=generator, bank=pictures
        )
    try:
        return build(**given)
    except TypeError as error:
        raise ValueError(f"explainer {name} does not take {options!r}: {error}") from error


def _run(name: str) -> tuple[str | None, str]:
    """Split RUN:OPTIONS, whose options may hold colons; (None, "") where no run is named."""
    if _is_run(name) or (Path(name) / "checkpoint.pt").is_file():
        return name, ""
    for place, letter in enumerate(name):
        if letter == ":" and _is_run(name[:place]):
            return name[:place], name[place + 1 :]
    return None, ""


def _is_run(name: str) -> bool:
    return (Path(name) / RUN).is_file() or (Path(name).suffix == ".chk" and Path(name).is_file())


def _read_by(masker: Masker, spec: str, own: Loaded) -> Loaded:
    """Return the classifier of a SPEC in place of a run's own, with the run's view. Errors: ValueError if unfit."""
    other = load_classifier(spec, **asdict(own.view))
    masker.fits(other.classifier)
    return replace(other, classes=other.classes or own.classes)


def _options(text: str) -> dict[str, Any]:
    options = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", text)):  # a comma within [...] belongs to a list
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"expected settings as key=value,key=value after the colon, came {text!r}")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("salmask", "{}"))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic") else "bilinear"


def load_recipe(name: str, *, area_in: float | None = None, area_out: float | None = None) -> Recipe:
    """Return a recipe by name, with other area weights where given."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: expected one of {', '.join(RECIPES)}")
    given = {"area_if_kept_right": area_in, "area_if_removed_wrong": area_out}
    weights = {term: weight for term, weight in given.items() if weight is not None}
    if weights and RECIPES[name].balance is not None:
        raise ValueError(f"recipe {name} finds its area weights itself: leave them out, or use fix or ca")
    return RECIPES[name].weighted(**weights) if weights else RECIPES[name]


INFILLS = ("mean", "blur", "noise", "colour", "bank")


def load_infill(
    name: str, *, classifier: Classifier, generator: Generator, bank: Tensor | None = None, remask: bool = False
) -> Infill:
    """Return an infill by name, or the inpainter in a .safetensors file; remask: as the released infillers do.

    bank: images (N, 3, H, W) in [0, 1], for "bank". Errors: ValueError for another name, or no bank.
    """
    colour = mean_colour(classifier).colour
    if name.endswith(".safetensors"):
        infill: Infill = load_inpainter(Path(name)).to(classifier.device)
    elif name == "bank":
        if bank is None:
            raise ValueError("the infill `bank` needs images to fill with")
        infill = Bank(bank, generator)
    elif name in INFILLS:
        simple: dict[str, Infill] = {
            "mean": MeanColour(colour),
            "blur": Blur(border=colour),
            "noise": Noise(generator),
            "colour": RandomColour(generator),
        }
        infill = simple[name]
    else:
        raise ValueError(f"no infill {name!r}: expected {', '.join(INFILLS)}, or the file of an inpainter")
    return Remasked(infill, colour) if remask else infill


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return metrics by name; "all" stands for every plain name."""
    wanted: dict[str, Metric] = {}
    for name in names:
        if name == "all":
            wanted |= {plain: metric for plain, metric in METRICS.items() if ":" not in plain}
        elif name in METRICS:
            wanted[name] = METRICS[name]
        else:
            near = get_close_matches(name, METRICS, 3) or sorted(plain for plain in METRICS if ":" not in plain)
            raise ValueError(f"no metric {name!r}: expected `all` or names such as {', '.join(near)}")
    return wanted
