"""From what a user types to objects: classifiers, run folders, data, explainers by name.

SPEC of a classifier: `timm:NAME` (pretrained weights), `timm:NAME@FILE` (weights from a file), or a run's folder.
A run's folder holds the masker (config.json, model.safetensors), its classifier (classifier.safetensors) and
run.json, which says how pictures get from the disk to the classifier.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from salmask.classifier import Classifier
from salmask.data import Labelled, collate
from salmask.data.streams import spread
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.explain.optimise.methods import refined
from salmask.masker import Masker
from salmask.masking import Bank, Blur, MeanColour, Noise, RandomColour, Remasked
from salmask.metrics import METRICS, Metric
from salmask.training.inpainter import load_inpainter
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.run import (
    RUN,
    Loaded,
    Sight,
    load_checkpoint,
    load_classifier,
    load_run,
)
from salmask.types import Infill

__all__ = ["load_bank", "load_explainer", "load_infill", "load_infills", "load_metrics", "load_recipe", "named"]

REFINED = "refined"


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
    name: str, *, loaded: Loaded | None, seed: int = 0, bank: Callable[[Loaded], Tensor] | None = None
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
    a classifier sees them.
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
    title: str, options: str, *, loaded: Loaded | None, seed: int, bank: Callable[[Loaded], Tensor] | None
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
    bank: Callable[[Loaded], Tensor] | None,
) -> Explainer:
    """Call a constructor with the settings after its name."""
    given = ({"seed": seed} if "seed" in signature(build).parameters else {}) | _options(options)
    if "infill" in given and "infill" in signature(build).parameters:
        if given["infill"] == "bank" and bank is None:
            raise ValueError(
                f"{name}:infill=bank fills holes with training pictures, and this command has none: use evaluate"
            )
        pictures = bank(loaded) if given["infill"] == "bank" and bank is not None else None
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
    colour = MeanColour.of(classifier).colour
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


_BANK = 256  # images that fill holes


def load_bank(dataset: Labelled, view: Sight) -> Tensor:
    """Return pictures (N, 3, H, W) that fill holes, spread over a data set, as the classifier sees them."""
    some, transform = spread(dataset, _BANK), view.transform()
    return collate([transform(some[place]) for place in range(len(some))]).images


def load_infills(
    names: Mapping[str, str], loaded: Loaded, dataset: Labelled, *, seed: int, remask: bool = False
) -> dict[str, Infill] | None:
    """Return the infill of each side ("kept", "removed") by name; None where all is the plain mean colour.

    A bank is taken from the data set, spread over it. Both sides of one name draw from one generator.
    """
    if set(names.values()) == {"mean"} and not remask:
        return None
    bank = None
    if "bank" in names.values():
        bank = load_bank(dataset, loaded.view)
    generator = torch.Generator().manual_seed(7_000_003 + seed)
    made = {
        name: load_infill(name, classifier=loaded.classifier, generator=generator, bank=bank, remask=remask)
        for name in dict.fromkeys(names.values())
    }
    return {side: made[name] for side, name in names.items()}
