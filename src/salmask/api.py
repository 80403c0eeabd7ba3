"""The three verbs of the front door: train a masker, explain images, measure explainers.

    masker = salmask.train(classifier, pictures)
    explanation = salmask.explain(classifier, images, explainer=masker)
    scores = salmask.evaluate(classifier, {"masker": masker, "gradcam": "gradcam"}, pictures)

They build nothing of their own: each puts together what the commands of the same name put together.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from salmask.audio.front import fronts_of
from salmask.audio.mixtures import Mixed
from salmask.audio.readers import Sounds
from salmask.classifier import Classifier
from salmask.classifier.inputs import check_tensor
from salmask.data import Labelled, Subset, open_data
from salmask.data.flat import UNLABELLED, FlatFolder, is_flat
from salmask.data.labels import LabelCases
from salmask.data.streams import Bar
from salmask.data.tensors import TensorPictures
from salmask.evaluation.decisions import decided
from salmask.evaluation.evaluate import compare
from salmask.evaluation.explained import Rules
from salmask.explain.base import Explainer, Explanation, as_targets, explainer_of
from salmask.explain.learned import Learned
from salmask.files import Facts, Maybe, Within, plain_arguments
from salmask.masker import Masker
from salmask.metrics import Metric
from salmask.rows.read import ROWS, read_lines
from salmask.specs import load_explainer, load_infills, load_metrics
from salmask.training.maskers import new_masker
from salmask.training.recipes import Recipe
from salmask.training.run import Loaded, Sight, check_classes
from salmask.training.settings import RECIPE, Settings
from salmask.training.train import train_masker
from salmask.training.variant import Variant, build_recipe, chosen_data, masker_options, stream_of
from salmask.training.views import View
from salmask.types import Images, Infill, Targets

__all__ = ["Scores", "evaluate", "explain", "train"]

Pictures: TypeAlias = str | Path | Labelled | Tensor
Labels: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | Tensor
Explaining: TypeAlias = Explainer | Callable[..., Explanation] | Masker | str | Path


def train(
    classifier: Classifier,
    pictures: Pictures,
    *,
    targets: Labels | None = None,
    image_size: int | None = None,
    steps: int | None = None,
    recipe: str | Recipe = RECIPE,
    infill: str | Infill = "mean",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Bar = iter,
    **settings: object,
) -> Masker:
    """Train a masker for a classifier and return it.

    pictures: a folder of pictures, or with `train/<class>/*`; a data set of `salmask.data`, or of sounds
        (`salmask.audio`); a tensor (N, C, H, W) in [0, 1].
    targets: the class of each picture that is explained in training; the classifier's own decisions where not given,
        so that no label is needed. Of independent labels, a list for each picture, or (N, K) of 0 and 1: each picture
        and label is a case of its own.
    image_size: side of the training crops; the classifier's own where not given. steps: batches, instead of epochs.
    recipe: by name, or one of your own. infill: what fills the holes, by name or any (images, holes) -> colours.
    out: folder for the masker, its log and its checkpoint; resume: go on from the checkpoint there.
    settings: fields of `Settings` (epochs, batch_size, lr, seed ...) and of `Variant.of` (head, weights, history ...).

    Errors: ValueError for what does not fit, naming what was expected and the remedy.
    """
    if not isinstance(recipe, str | Recipe):
        raise ValueError(f"expected a recipe by name, or a Recipe, got {recipe!r}"[:200])
    if not isinstance(infill, str) and not callable(infill):
        raise ValueError(f"expected an infill by name, or one such as Blur(20), got {infill!r}"[:200])
    plain_arguments("train", {"steps": Maybe(Within(1, 10**9)), "resume": bool}, steps=steps, resume=resume)
    own_recipe = recipe if isinstance(recipe, Recipe) else None
    named = {"infill": infill} if isinstance(infill, str) else {}
    target = {"target": "predicted" if targets is None else "label"}
    name = recipe if isinstance(recipe, str) else RECIPE
    training, variant = _settings({"recipe": name, **named, **target, **settings})
    dataset = _data_set(pictures, "train", classifier)
    if targets is not None:
        dataset = _under(classifier, dataset, targets)
    elif training.target == "label":
        check_classes(dataset, Loaded(classifier, "", Sight(classifier.image_size)))
    dataset = chosen_data(variant.data, dataset, training.seed)
    training = replace(training, batch_size=min(training.batch_size, len(dataset)))
    if steps is not None:
        training = replace(training, epochs=steps * training.batch_size / len(dataset))
    recipe = own_recipe or build_recipe(variant.learns)
    if not recipe.spares_classifier:
        raise ValueError(
            f"recipe {recipe.name} retrains a copy of the classifier, without which its masker cannot be read: use "
            "`salmask train`, whose run keeps both, or the recipe 'reader' or 'fix'"
        )
    loaded = Loaded(classifier, "", _view(pictures, classifier, image_size))
    learns = variant.learns
    infills = load_infills(learns.infills, loaded, dataset, seed=training.seed, remask=learns.remask)
    generator = torch.Generator().manual_seed(training.seed)
    masker = new_masker(classifier, generator=generator, **masker_options(variant.mask, loaded))
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory()) if out is None else out
        train_masker(
            masker,
            classifier,
            stream_of(dataset, training, loaded.view.augmentation()),
            len(dataset),
            recipe=recipe,
            settings=training,
            out=folder,
            infill=infills if isinstance(infill, str) else infill,
            resume=resume,
            progress=progress,
        )
    masker.classifier = classifier.fingerprint()
    if out is not None:
        masker.save_pretrained(out)
    return masker


def explain(
    classifier: Classifier,
    images: Images,
    *,
    explainer: Explaining = "gradcam",
    targets: Targets | Sequence[int] | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain images: one map for each, of the classes in `targets`, or of the classifier's decisions.

    images: (N, C, H, W) in [0, 1]. explainer: a masker, the folder of a run, a name with settings such as
    "rise:masks=500", or any explainer. seed: of an explainer that draws.
    """
    check_tensor(images)
    targets = None if targets is None else as_targets(targets)
    return _explainer(explainer, classifier, seed=seed)(classifier, images.to(classifier.device), targets)


@dataclass(frozen=True)
class Scores(Mapping[str, Mapping[str, Facts]]):
    """What an evaluation has measured: explainer -> metric -> {"mean", "low", "high", "n"}; prints as a table.

    summary: the same as a dictionary. rows: one dictionary an image, explainer and metric. columns: metrics printed.
    """

    summary: Mapping[str, Mapping[str, Facts]]
    rows: Sequence[Facts]
    columns: Sequence[str]

    def __getitem__(self, explainer: str) -> Mapping[str, Facts]:
        return self.summary[explainer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summary)

    def __len__(self) -> int:
        return len(self.summary)

    def __str__(self) -> str:
        metrics = [metric for metric in self.columns if any(metric in row for row in self.summary.values())]
        table = [["explainer", *metrics]]
        for name, row in self.summary.items():
            table.append([name, *(f"{row[metric]['mean']:.3f}" if metric in row else "" for metric in metrics)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)


def evaluate(
    classifier: Classifier,
    explainers: Mapping[str, Explaining] | Sequence[str],
    pictures: Pictures,
    *,
    metrics: Sequence[str | Metric] = ("average_drop", "insertion", "deletion", "mask_mean"),
    targets: Labels | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Bar = iter,
) -> Scores:
    """Measure explainers on pictures and return their scores.

    explainers: name -> explainer, each as in `explain`; or names alone. pictures: as in `train`; of a folder, `val`.
    targets: the class of each picture that is explained and scored, or its labels, as in `train`; the labels of a
        folder or a data set, and the classifier's own decisions for a tensor, where not given: of independent labels
        all that are likelier than .5.
    metrics: names as in docs/metrics.md, or metrics of your own.
    out: folder for rows, tables and the page; nothing is left behind where not given.
    """
    given = plain_arguments("evaluate", _EVALUATED, batch_size=batch_size, seed=seed)
    batch_size, seed = given["batch_size"], given["seed"]
    table = _named(explainers)
    sight = _view(pictures, classifier, image_size)
    dataset = _data_set(pictures, "val", classifier)
    if targets is None and (isinstance(pictures, Tensor) or UNLABELLED in dataset.targets):
        dataset = decided(classifier, dataset, sight, classes=_classes(classifier, dataset))
    else:
        if targets is None:
            check_classes(dataset, Loaded(classifier, "", sight))
        dataset = _under(classifier, dataset, dataset.targets if targets is None else targets)
    loaded = Loaded(classifier, "", sight, tuple(dataset.classes))
    measured: dict[str, Metric] = {}
    for metric in _listed_metrics(metrics):
        measured |= {metric.name: metric} if isinstance(metric, Metric) else load_metrics([metric])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()) if out is None else out)
        summary = compare(
            {name: (_explainer(one, classifier, seed=seed), loaded) for name, one in table.items()},
            measured,
            Subset(dataset, transform=sight.transform()),
            rules=Rules(target="label", scoring=classifier, seed=seed),
            out=folder,
            about={},
            batch_size=batch_size,
            pictures=0 if out is None else 24,
            progress=progress,
        )
        rows = [line for _, _, line in read_lines(folder / ROWS)]
    return Scores(summary, rows, tuple(measured))


def _settings(given: Facts) -> tuple[Settings, Variant]:
    """Split keyword arguments into those of a training and those of a variant."""
    own = {field.name for field in fields(Settings)}
    training = Settings(**{name: value for name, value in given.items() if name in own})
    elsewhere = {"top", "area", "reads", "images"} & given.keys()
    if elsewhere:
        raise ValueError(f"{elsewhere.pop()} is no part of a training")
    return training, Variant.of(**{name: value for name, value in given.items() if name not in own})


_EVALUATED = {"batch_size": Within(1, 65_536), "seed": Within(0, 2**31 - 1)}


def _named(explainers: Mapping[str, Explaining] | Sequence[str]) -> Mapping[str, Explaining]:
    """Return explainers by name. Errors: ValueError for what has no names."""
    names = explainers if isinstance(explainers, Mapping | list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'expected explainers as {{"name": explainer}} or ["gradcam", ...], got {explainers!r}'[:300])
    return explainers if isinstance(explainers, Mapping) else {name: name for name in explainers}


def _listed_metrics(metrics: Sequence[str | Metric]) -> Sequence[str | Metric]:
    """Return metrics as they are. Errors: ValueError for what is neither a name nor a Metric."""
    if not isinstance(metrics, list | tuple) or not all(isinstance(metric, str | Metric) for metric in metrics):
        raise ValueError(f'expected metrics by name, such as ["insertion"], or as Metric, got {metrics!r}'[:300])
    return metrics


def _data_set(pictures: Pictures, split: str, classifier: Classifier) -> Labelled:
    if not isinstance(pictures, Tensor | str | Path | Labelled) or isinstance(pictures, list | tuple):
        raise ValueError(
            f"expected pictures as a tensor (N, C, H, W) in [0, 1], a folder or a data set of salmask.data, got "
            f"{type(pictures).__name__}"
        )
    if isinstance(pictures, Tensor):
        return TensorPictures(pictures)
    if isinstance(pictures, str | Path):
        if is_flat(Path(pictures)):
            return FlatFolder(pictures)
        classes = Loaded(classifier, "", Sight(classifier.image_size)).folders(str(pictures), split)
        return open_data(str(pictures), split, classes=classes)
    return pictures


def _view(pictures: Pictures, classifier: Classifier, image_size: int | None) -> View:
    """Return how pictures reach the classifier: those of sounds as their data set hears them.

    Errors: ValueError for sounds that are heard otherwise than the network was built to hear them.
    """
    if isinstance(pictures, Sounds | Mixed):
        hearing = next((front.hearing for front in fronts_of(classifier.network)), pictures.hearing)
        if hearing != pictures.hearing:
            raise ValueError(
                f"the classifier hears {hearing}, the data set {pictures.hearing}: open it with the "
                "classifier's own hearing, or load the classifier with this one (domain=)"
            )
        return pictures.hearing
    return Sight(classifier.image_size if image_size is None else image_size)


def _under(classifier: Classifier, dataset: Labelled, targets: Labels) -> Labelled:
    """Return a data set under given targets, which are classes of the classifier, one or several a picture."""
    classes, listed = _classes(classifier, dataset), _listed(classifier, targets)
    given = [label for own in listed for label in own]
    if given and not 0 <= min(given) <= max(given) < classifier.num_classes:
        raise ValueError(
            f"expected targets from 0 to {classifier.num_classes - 1}, the classes of the classifier, got "
            f"{min(given)} to {max(given)}"
        )
    if len(listed) != len(dataset):
        raise ValueError(f"expected one target an image: {len(dataset)}, got {len(listed)}")
    if all(len(own) == 1 for own in listed):
        return Subset(dataset, targets=given, classes=classes)
    if not given:
        raise ValueError("none of the pictures has a label: expected at least one to explain")
    return LabelCases(dataset, dict(zip(dataset.ids, listed, strict=True)), classes=classes)


def _listed(classifier: Classifier, targets: Labels) -> list[list[int]]:
    """Return the labels of each picture. Errors: ValueError for several of a classifier of exclusive classes."""
    rows = targets.tolist() if isinstance(targets, np.ndarray | Tensor) else targets
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not all(map(_is_label, rows)):
        raise ValueError(
            "expected a target for each picture, a class index or a list of them, got "
            f"{type(targets).__name__} {targets!r}"[:200]
        )
    if isinstance(targets, Tensor) and targets.ndim == 2:
        if targets.shape[1] != classifier.num_classes or not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError(
                f"expected labels (N, {classifier.num_classes}) of 0 and 1, got {tuple(targets.shape)} from "
                f"{float(targets.min()):g} to {float(targets.max()):g}"
            )
        listed = [row.nonzero().flatten().tolist() for row in targets]
    else:
        listed = [[int(one) for one in own] if isinstance(own, Sequence) else [int(own)] for own in targets]
    if not classifier.multilabel and any(len(own) != 1 for own in listed):
        raise ValueError(
            "expected one target a picture, got several: say that labels are independent with outputs='multilabel'"
        )
    return listed


def _is_label(target: object) -> bool:
    several = target if isinstance(target, list | tuple) else [target]
    return all(isinstance(one, Integral) or (isinstance(one, Tensor) and one.numel() == 1) for one in several)


def _classes(classifier: Classifier, dataset: Labelled) -> list[str]:
    """Return the data's names of the classes, where they are as many as the classifier's, else numbers."""
    if len(dataset.classes) == classifier.num_classes:
        return list(dataset.classes)
    return [str(index) for index in range(classifier.num_classes)]


def _explainer(explainer: Explaining, classifier: Classifier, *, seed: int) -> Explainer:
    if isinstance(explainer, Masker):
        _look_at_weights(explainer, classifier)
        return Learned(explainer)
    if isinstance(explainer, str | Path):
        loaded = Loaded(classifier, "", Sight(classifier.image_size))
        return load_explainer(str(explainer), loaded=loaded, seed=seed)[1]
    return explainer_of(explainer)


_SEEN: "WeakKeyDictionary[Classifier, tuple[object, str]]" = WeakKeyDictionary()


def _look_at_weights(masker: Masker, classifier: Classifier) -> None:
    """Warn where a masker was trained beside other weights than those of the classifier, as far as both say.

    A network in train mode has statistics that move whenever it is called, and is not looked at.
    """
    state = classifier.network.state_dict().values()
    if (
        classifier.network.training
        or masker.classifier is None
        or any(value.is_inference() or _is_rounded(value) for value in state)
    ):
        return
    now = [(value.data_ptr(), value._version) for value in state]
    before, own = _SEEN.get(classifier, (None, ""))
    if before != now:
        own = classifier.fingerprint()
        _SEEN[classifier] = (now, own)
    if own != masker.classifier:
        warnings.warn(
            "the masker was trained beside a network of other weights than this classifier's, and its maps say nothing "
            "for certain here: give the classifier that it was trained beside, or train one for this; a masker that "
            "reads a copy of the network lies in a run, whose folder is the explainer",
            stacklevel=4,
        )


def _is_rounded(value: Tensor) -> bool:
    return value.is_floating_point() and value.element_size() < 4
