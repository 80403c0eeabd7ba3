"""From what a user types to objects: classifiers, run folders, data, explainers by name.

SPEC of a classifier: `timm:NAME`, `torchvision:NAME`, `hf:NAME_OR_FOLDER` (pretrained weights), each with `@FILE`
(weights from a file), `module.py:function` or `package.module:function` (one's own), or a run's folder.
A run's folder holds the masker (config.json, model.safetensors), its classifier (classifier.safetensors) and
run.json, which says how pictures get from the disk to the classifier.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from salmask.audio.hearing import Hearing
from salmask.classifier import Classifier
from salmask.data import Labelled, collate
from salmask.data.streams import spread
from salmask.data.unreadable import samples_read
from salmask.explain import EXPLAINERS
from salmask.explain.attention import RawAttention
from salmask.explain.base import Explainer
from salmask.explain.inputs import InputShares, PerInput
from salmask.explain.knobs import Knob, knobs_of, listing
from salmask.explain.learned import Learned
from salmask.explain.optimise.methods import refined
from salmask.files import JSON, Facts
from salmask.masking import Bank, Blur, Colour, MeanColour, Noise, RandomColour, Remasked
from salmask.metrics import METRICS, Metric
from salmask.training.inpainter import load_inpainter
from salmask.training.log import LOG
from salmask.training.pooling import load_pooling
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.run import (
    POOLING,
    RUN,
    Loaded,
    Sight,
    load_checkpoint,
    load_classifier,
    load_run,
    load_shipped,
)
from salmask.training.views import View
from salmask.types import Infill

__all__ = [
    "Chosen",
    "Spec",
    "heard_otherwise",
    "list_explainers",
    "load_bank",
    "load_explainer",
    "load_explainers",
    "load_infill",
    "load_infills",
    "load_metrics",
    "load_recipe",
    "named",
    "parse",
    "titled",
]

REFINED, START = "refined", "start"
SHARES, PER_INPUT, OF = "input_shares", "per_input", "of"
SHIPPED = "imagenet"
"""The masker for photographs that comes with the package."""


@dataclass(frozen=True)
class Spec:
    """What `[TITLE=]NAME[:KEY=VALUE,...]` says. run: NAME is the folder of a run, or a released checkpoint."""

    title: str | None
    name: str
    settings: Mapping[str, str]
    text: str
    run: bool


def parse(text: str) -> Spec:
    """Take a spec apart.

        SPEC     [TITLE=]NAME[:SETTINGS]      TITLE holds no colon, slash or equals sign
        NAME     the longest prefix that names a run, else what stands before the first colon
        SETTINGS KEY=VALUE,KEY=VALUE          a comma within [...] belongs to a list; `start=` and `of=` take the rest

    Errors: ValueError for an empty title, a setting without a value, one that is given twice.
    """
    title, rest = (None, text) if _run_in(text) else titled(text)
    run = _run_in(rest)
    name = run or rest.partition(":")[0]
    if rest == f"{name}:":
        raise ValueError(f"expected settings as key=value,key=value after the colon, got none in {text!r}")
    return Spec(title, name, _settings(rest[len(name) + 1 :]), rest, run is not None)


def titled(text: str) -> tuple[str | None, str]:
    """Split TITLE=SPEC, whatever the SPEC is of; a title holds no colon, slash or equals sign.

    Errors: ValueError for an empty title.
    """
    title, equals, rest = text.partition("=")
    if not equals or set(title) & set(":/\\"):
        return None, text
    if not title.strip():
        raise ValueError(f"expected a title before the equals sign, got {text!r}")
    return title.strip(), rest


def _settings(text: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    parts = text.split(",") if text else []
    while parts:
        key, equals, value = parts.pop(0).partition("=")
        while parts and (key in (START, OF) or value.count("[") > value.count("]")):
            value = f"{value},{parts.pop(0)}"
        if not equals or not key or key in settings:
            raise ValueError(f"expected settings as key=value,key=value after the colon, each once; got {text!r}")
        settings[key] = value
    return settings


def _run_in(text: str) -> str | None:
    """Return the longest prefix of a text, up to its end or a colon, that names a run; None without one."""
    if (on_hub := re.match(r"hf-hub:[^:/\s]+/[^:\s]+", text)) is not None:
        return on_hub[0]
    if (Path(text) / "checkpoint.pt").is_file():
        return text  # of an unfinished one, which is refused with the way to go on
    ends = [len(text), *(index for index in reversed(range(len(text))) if text[index] == ":")]
    return next((text[:end] for end in ends if _is_run(text[:end])), None)


def _is_run(name: str) -> bool:
    path = Path(name)
    return (path / RUN).is_file() or (path / POOLING).is_file() or (path.suffix == ".chk" and path.is_file())


def named(spec: str) -> tuple[str | None, str]:
    """Split TITLE=SPEC into the title that tables show and what it stands for; (None, spec) without a title."""
    parsed = parse(spec)
    return parsed.title, parsed.text


def list_explainers() -> str:
    """Return all explainers with what can be set after the colon: values, and [default]."""
    return listing(
        {
            "RUN (also reads=SPEC)": Learned,
            "RUN of salmask pooling": RawAttention,
            **EXPLAINERS,
            SHARES: InputShares,
            "refined (also start=SPEC, last)": refined,
        }
    )


def load_explainer(
    name: str, *, loaded: Loaded | None, seed: int = 0, bank: Callable[[Loaded], Tensor] | None = None
) -> tuple[str, Explainer, Loaded]:
    """Return the name in tables, the explainer, and the classifier that it explains, of a RUN or a NAME.

    A RUN is a folder, `hf-hub:OWNER/NAME` of one on the hub, or the checkpoint file of a masker that was trained by the
    paper's released code. The settings of a NAME are those of its constructor (`knobs_of`): `rise:masks=500`,
    `extremal:areas=[0.05,0.2]`,
    `occlusion:score=logit`. Those of a run: `RUN:top=0.4` for binary masks of that share, `RUN:area=0.4` for a masker
    that is conditioned on its area, `RUN:reads=SPEC` to read the maps of another classifier than the run's own.
    The NAME `imagenet` is the masker that comes with the package, for photographs and `timm:tf_efficientnet_lite0`.
    The folder of a `salmask pooling` run is the raw attention of its stream, `RUN:stage=2`.
    Of a classifier with several inputs, `input_shares` says what each is worth, and `per_input:of=SPEC` makes another
    explainer's map of each.
    `refined:start=SPEC` improves the maps of a run or of another explainer; `start` comes last, as what follows it
    may have settings of its own: `refined:iterations=50,start=rise:masks=500`.
    seed: of an explainer that draws, unless its settings name one. bank: gives the pictures for `infill=bank`, as
    a classifier sees them.
    """
    spec = parse(name)
    if spec.run or spec.name == SHIPPED:
        return _of_run(spec, loaded)
    if spec.name in (REFINED, PER_INPUT):
        make = _refined if spec.name == REFINED else _per_input
        return make(spec, loaded=loaded, seed=seed, bank=bank)
    table = {**EXPLAINERS, SHARES: InputShares}
    if spec.name not in table:
        raise ValueError(
            f"no explainer {spec.text!r}: expected the folder of a run (or hf-hub:OWNER/NAME), a released "
            f"checkpoint (.chk), or one of {', '.join(sorted([*EXPLAINERS, REFINED, SHIPPED, SHARES, PER_INPUT]))}"
        )
    if loaded is None:
        raise ValueError(f"{spec.name} explains a classifier: name one with --classifier")
    build = table[spec.name]
    return spec.title or spec.text, _built(build, spec.name, spec.settings, loaded, seed=seed, bank=bank), loaded


@dataclass(frozen=True)
class Chosen:
    """Explainers by the name that tables give them, each with the classifier that it explains.

    base: the classifier of all that are named without one of their own. logs: the training logs of the runs among them.
    """

    explainers: Mapping[str, tuple[Explainer, Loaded]]
    base: Loaded
    logs: Mapping[str, Path]


def load_explainers(
    names: Sequence[str],
    *,
    loaded: Loaded | None,
    baselines: Sequence[str] = (),
    sight: Facts = MappingProxyType({}),
    seed: int = 0,
    bank: Callable[[Loaded], Tensor] | None = None,
) -> Chosen:
    """Load several explainers, and those of `baselines` that are not among them.

    loaded: the classifier for names; the first run's own where None, with `sight` as in `Loaded.seen`.
    Errors: ValueError for no name, and for two of one title.
    """
    explainers: dict[str, tuple[Explainer, Loaded]] = {}
    logs: dict[str, Path] = {}
    for name in names:
        title, explainer, own = load_explainer(name, loaded=loaded, seed=seed, bank=bank)
        if isinstance(own.view, Hearing):
            own = heard_otherwise(title, explainer, own, sight)
        if title in explainers:
            raise ValueError(f"two explainers are named {title}: give one another title, TITLE={name}")
        explainers[title] = (explainer, own)
        loaded = loaded or own.seen(**sight)
        if (log := Path(named(name)[1]) / LOG).is_file():
            logs[title] = log
    if loaded is None:
        raise ValueError("name at least one explainer: the folder of a run, or a name such as gradcam")
    plain = {title.partition(":")[0] for title in explainers}
    for name in baselines:
        if name not in plain:
            explainers[name] = load_explainer(name, loaded=loaded, seed=seed)[1:]
    return Chosen(explainers, loaded, logs)


def heard_otherwise(title: str, explainer: Explainer, own: Loaded, sight: Facts) -> Loaded:
    """Return the classifier of sounds of an explainer as `Loaded.seen`; warn where a masker was trained otherwise."""
    seen = own.seen(**sight)
    if isinstance(explainer, Learned) and isinstance(own.view, Hearing) and isinstance(seen.view, Hearing):
        before, after = own.view.domain, seen.view.domain
        if before != after:
            warnings.warn(
                f"{title} was trained on spectrograms of the {before} domain, and its masks are taken for those of the "
                f"{after} domain, which it has never seen: leave --domain out, or train it with --domain {after}",
                stacklevel=3,
            )
    return seen


def _of_run(spec: Spec, given: Loaded | None) -> tuple[str, Explainer, Loaded]:
    if (Path(spec.name) / POOLING).is_file():
        values = _read_settings(f"the raw attention of {spec.name}", spec.settings, knobs_of(RawAttention))
        name = Path(spec.name).resolve().name
        title = spec.title or name + spec.text[len(spec.name) :]
        return title, RawAttention(**values), load_pooling(spec.name).pooled
    if not spec.run:
        run = load_shipped()
    else:
        code = None if given is None else given.classifier.network
        run = load_checkpoint(spec.name) if Path(spec.name).is_file() else load_run(spec.name, code=code)
    settings = dict(spec.settings)
    reads = settings.pop("reads", None)
    values = _read_settings(f"the masker in {spec.name}", settings, knobs_of(Learned), also=("reads",))
    name = Path(spec.name).resolve().name if spec.run else spec.name
    title = spec.title or name + spec.text[len(spec.name) :]
    sight = asdict(run.loaded.view) if isinstance(run.loaded.view, Sight) else {}
    reader = run.reader if reads is None else load_classifier(reads, **sight).classifier
    return title, Learned(run.masker, **values).read_by(reader), run.loaded


def _refined(
    spec: Spec, *, loaded: Loaded | None, seed: int, bank: Callable[[Loaded], Tensor] | None
) -> tuple[str, Explainer, Loaded]:
    settings = dict(spec.settings)
    start = settings.pop(START, None)
    if not start:
        raise ValueError(
            f"refined improves another explainer's maps: name it last, refined:start=SPEC, got {spec.text!r}"
        )
    _, explainer, own = load_explainer(start, loaded=loaded, seed=seed, bank=bank)
    build = partial(refined, explainer)
    return spec.title or spec.text, _built(build, REFINED, settings, own, seed=seed, bank=bank), own


def _per_input(
    spec: Spec, *, loaded: Loaded | None, seed: int, bank: Callable[[Loaded], Tensor] | None
) -> tuple[str, Explainer, Loaded]:
    settings = dict(spec.settings)
    inner = settings.pop(OF, None)
    if not inner or settings:
        raise ValueError(f"per_input makes another explainer's map of each input: per_input:of=SPEC, got {spec.text!r}")
    _, explainer, own = load_explainer(inner, loaded=loaded, seed=seed, bank=bank)
    return spec.title or spec.text, PerInput(explainer), own


def _built(
    build: Callable[..., Explainer],
    name: str,
    settings: Mapping[str, str],
    loaded: Loaded,
    *,
    seed: int,
    bank: Callable[[Loaded], Tensor] | None,
) -> Explainer:
    """Call a constructor with the settings after its name."""
    knobs = knobs_of(build)
    values: JSON = {"seed": seed} if "seed" in knobs else {}
    values |= _read_settings(f"explainer {name}", settings, knobs)
    if "infill" in settings and values["infill"] is not None:
        if values["infill"] == "bank" and bank is None:
            raise ValueError(
                f"{name}:infill=bank fills holes with training pictures, and this command has none: use evaluate"
            )
        pictures = bank(loaded) if values["infill"] == "bank" and bank is not None else None
        options: JSON = {"classifier": loaded.classifier, "generator": Generator().manual_seed(seed), "bank": pictures}
        values["infill"] = load_infill(values["infill"], **options)
    return build(**values)


def _read_settings(
    what: str, settings: Mapping[str, str], knobs: Mapping[str, Knob], *, also: Sequence[str] = ()
) -> JSON:
    """Return the values of settings by name. Errors: ValueError for an unknown one, or a value out of range."""
    for key, text in settings.items():
        if key not in knobs:
            *most, last = sorted([*knobs, *also])
            raise ValueError(
                f"{what} does not take '{key}={text}', only {', '.join(most) + ' and ' if most else ''}{last}"
            )
    try:
        return {key: knobs[key].read(text) for key, text in settings.items()}
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def load_recipe(name: str, *, area_in: float | None = None, area_out: float | None = None) -> Recipe:
    """Return a recipe by name, with other area weights where given."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: expected one of {', '.join(RECIPES)}")
    given = {"area_if_kept_right": area_in, "area_if_removed_wrong": area_out}
    weights = {term: weight for term, weight in given.items() if weight is not None}
    return RECIPES[name].weighted(**weights) if weights else RECIPES[name]


INFILLS: Mapping[str, Callable[[Colour, Generator], Infill]] = {
    "mean": lambda colour, generator: MeanColour(colour),
    "blur": lambda colour, generator: Blur(border=colour),
    "noise": lambda colour, generator: Noise(generator),
    "colour": lambda colour, generator: RandomColour(generator),
}
"""Infills by name: (mean colour of the classifier, generator) -> infill."""


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
        infill = INFILLS[name](colour, generator)
    else:
        raise ValueError(f"no infill {name!r}: expected {', '.join(INFILLS)}, bank, or the file of an inpainter")
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


def load_bank(dataset: Labelled, view: View) -> Tensor:
    """Return pictures (N, 3, H, W) that fill holes, spread over a data set, as the classifier sees them."""
    some, transform = spread(dataset, _BANK), view.transform()
    return collate([transform(sample) for sample in samples_read(some)]).images


def load_infills(
    names: Mapping[str, str], loaded: Loaded, dataset: Labelled, *, seed: int, remask: bool = False
) -> dict[str, Infill] | None:
    """Return the infill of each side ("kept", "removed") by name; None where all is the plain mean colour.

    A bank is taken from the data set, spread over it. Both sides of one name draw from one generator.
    """
    if set(names.values()) == {"mean"} and not remask:
        return None
    bank = load_bank(dataset, loaded.view) if "bank" in names.values() else None
    generator = torch.Generator().manual_seed(7_000_003 + seed)
    made = {
        name: load_infill(name, classifier=loaded.classifier, generator=generator, bank=bank, remask=remask)
        for name in dict.fromkeys(names.values())
    }
    return {side: made[name] for side, name in names.items()}
