"""Training a run: from data and a classifier to the folder that `load_run` reads."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from salmask.data import Labelled
from salmask.data.streams import Bar, Batches
from salmask.files import JSON, Facts, in_use, writable_folder
from salmask.masker import Masker
from salmask.training.joint import STATISTICS_OF
from salmask.training.log import LOG, SPEED, collapse, speed
from salmask.training.maskers import new_masker
from salmask.training.precision import chosen_precision
from salmask.training.recipes import Recipe
from salmask.training.resume import agree_on_training
from salmask.training.run import Loaded, check_classes, check_labels, save_run
from salmask.training.settings import Settings
from salmask.training.views import view_facts
from salmask.types import Infill

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["train_run"]


def train_run(  # noqa: PLR0913  (what is trained, how, and where; each is one thing)
    dataset: Labelled,
    loaded: Loaded,
    *,
    recipe: Recipe,
    settings: Settings,
    batches: Batches,
    out: Path,
    masker_options: Facts,
    facts: Facts,
    infill: Infill | Mapping[str, Infill] | None = None,
    resume: bool = False,
    progress: Bar = iter,
    fabric: "Fabric | None" = None,
) -> Masker:
    """Train a masker and leave a run's folder: what `load_run` reads. The user's classifier stays as it is.

    masker_options: of `new_masker`. infill: of `train_masker`. facts: written to run.json beside recipe and settings.
    fabric: of `launched`; of several processes the first one writes.
    """
    from salmask.training.train import train_masker  # slow to import: explaining needs none of it

    generator = torch.Generator().manual_seed(settings.seed)
    masker = new_masker(loaded.classifier, generator=generator, **masker_options)
    settings = recipe.settled(settings, masker)
    if settings.target == "label":
        check_labels(dataset)
        check_classes(dataset, loaded)
    recipe = recipe.at(loaded.classifier.answers)
    settings = replace(settings, precision=chosen_precision(settings.precision, loaded.classifier))
    learner = loaded.classifier if recipe.spares_classifier else copy.deepcopy(loaded.classifier)
    with ExitStack() as held:
        if fabric is None or fabric.is_global_zero:
            held.enter_context(in_use(writable_folder(out)))
            agree_on_training(out, dataset, seen=_seen(loaded), infill=infill, resume=resume)
        train_masker(
            masker,
            learner,
            batches,
            len(dataset),
            recipe=recipe,
            settings=settings,
            out=out,
            infill=infill,
            resume=resume,
            fabric=fabric,
            progress=progress,
        )
        if fabric is not None and not fabric.is_global_zero:
            return masker
        masker.classifier = learner.fingerprint()  # of the classifier that it reads, as it is after the training
        about = {
            **facts,
            "recipe": recipe.settings(),
            "images": len(dataset),
            "processes": {"count": 1 if fabric is None else fabric.world_size, "batch statistics": STATISTICS_OF},
            "settings": vars(settings),
            "collapsed": collapse(out / LOG),
            "speed": speed(out / SPEED),
        }
        save_run(out, masker, loaded, about, reader=None if learner is loaded.classifier else learner)
    return masker


def _seen(loaded: Loaded) -> JSON:
    """Return, as JSON has it, how files reach the network and how its answers are read."""
    outputs = {"options": options} if (options := loaded.classifier.options()) else {}
    return (
        view_facts(loaded.view)
        | outputs
        | {name: getattr(loaded.classifier, name).flatten().tolist() for name in ("mean", "std")}
    )
