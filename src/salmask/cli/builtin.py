"""The main job, start to end, on built-in data: classifier, maskers, comparison, report.

The pictures' evidence is known to the pixel (`synthetic`), so the report says who points at it. Everything goes
through the same functions as a user's own data.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from salmask.classifier import Classifier
from salmask.cli.photographs import write_photographs
from salmask.data import Labelled, cached, training_batches
from salmask.data.streams import Bar
from salmask.data.synthetic import Synthetic
from salmask.evaluation.evaluate import compare
from salmask.evaluation.explained import Rules
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.files import Facts, read_json, replace_file, writable_folder
from salmask.metrics import METRICS
from salmask.report.page import PHOTOGRAPHS
from salmask.report.training import add_training
from salmask.training.classifier import FitSettings, accuracy, fit_classifier
from salmask.training.log import LOG
from salmask.training.recipes import RECIPES
from salmask.training.run import RUN, Loaded, Sight, load_classifier, load_run, save_classifier
from salmask.training.settings import RECIPE, Settings
from salmask.training.train_run import train_run
from salmask.training.unfinished import discard

__all__ = ["Sizes", "builtin_classifier", "run_demo", "show_photographs"]

NamedBar = Callable[[str], Bar]

_DEMO = "demo.json"
NETWORK = "test_resnet"  # timm's small ResNet: 370,000 parameters, made for quick runs
CONTROLS = ("gradcam", "full", "center", "gaussian", "random", "empty", "ground_truth")
SCORES = ("le", "om", "f1", "f1_mean", "sm", "pxap", "mask_mean")


@dataclass(frozen=True)
class Sizes:
    """How much is made and trained. epochs of the maskers are passes over the training pictures."""

    pictures: int = 4000
    measured: int = 300
    side: int = 64
    classifier_epochs: float = 11.0
    reader_epochs: float = 4.0
    alongside_epochs: float = 1.5


QUICK = Sizes(pictures=120, measured=20, classifier_epochs=0.5, reader_epochs=0.5, alongside_epochs=0.5)


def run_demo(
    out: Path, *, seed: int, quick: bool, say: Callable[[str], None], progress: NamedBar
) -> Mapping[str, Facts]:
    """Explain photographs; then train a classifier and two maskers on built-in pictures, and compare all.

    The maskers are of the default recipe and of CA. Returns the summary.

    One that was interrupted goes on where it was. Errors: FileExistsError where a demo, or another one, ran before,
    before anything is trained.
    """
    if not 0 <= seed < 2**30:
        raise ValueError(f"a seed is a whole number, 0 to {2**30 - 1}, got {seed}")
    _agree(out, {"seed": seed, "quick": quick})
    show_photographs(out / PHOTOGRAPHS, say)
    sizes = QUICK if quick else Sizes()
    train_set = cached(Synthetic(sizes.pictures, seed=2 * seed, size=sizes.side))
    val_set = Synthetic(sizes.measured, seed=2 * seed + 1, size=sizes.side)
    weights = out / "classifier.safetensors"
    if not weights.is_file():
        kept = weights.with_suffix(".unfinished")
        save_classifier(weights, _classifier(train_set, sizes, seed, progress, kept))
        discard(kept)
    loaded = load_classifier(f"timm:{NETWORK}@{weights}")
    say(f"classifier: {accuracy(loaded.classifier, val_set):.3f} of the validation pictures right")
    runs: dict[str, tuple[Explainer, Loaded]] = {}
    for name, epochs in ((RECIPE, sizes.reader_epochs), ("ca", sizes.alongside_epochs)):
        if not (out / name / RUN).is_file():
            _masker(train_set, loaded, epochs, out / name, seed, progress)
        run = load_run(out / name)
        add_training(out, name, out / name / LOG)
        runs[name] = (Learned(run.masker).read_by(run.reader), run.loaded)
    controls = {name: (EXPLAINERS[name](), loaded) for name in CONTROLS}
    return compare(
        runs | controls,
        {name: METRICS[name] for name in SCORES},
        val_set,
        rules=Rules(target="label", scoring=loaded.classifier, seed=seed),
        out=out,
        about={"data": f"built-in pictures, {sizes.side} px", "classifier": NETWORK, "command": "salmask demo"},
        batch_size=50,
        progress=progress("measuring"),
    )


def show_photographs(path: Path, say: Callable[[str], None]) -> None:
    """Write the sheet of explained photographs, or say why there is none."""
    if path.is_file():
        return
    try:
        count = write_photographs(path)
    except ValueError as error:  # the weights of the network are an extra
        say(f"no photographs are shown: {error}")
    else:
        say(f"photographs: {count} explained in {path}")


def _agree(out: Path, asked: Mapping[str, object]) -> None:
    """Write down which demo a folder is for. Errors: FileExistsError for a finished one, or one asked for otherwise."""
    path = out / _DEMO
    earlier = None
    if path.is_file():
        earlier = read_json(path, {"seed": int, "quick": bool}, remedy="delete the folder to start anew")
    there = [name for name in ("classifier.safetensors", RECIPE, "ca", _DEMO) if (out / name).exists()]
    goes_on = earlier == asked and not (out / "index.html").exists()
    if there and not goes_on:
        raise FileExistsError(f"{out} holds an earlier demo ({there[0]}): delete it, or name another folder with --out")
    writable_folder(out)
    replace_file(path, lambda at: at.write_text(json.dumps(asked) + "\n"))


def builtin_classifier(path: Path, *, progress: NamedBar) -> str:
    """Return the SPEC of the classifier of the built-in pictures, trained and written to `path` if it is not there."""
    if not path.is_file():
        writable_folder(path.parent)
        sizes = Sizes()
        pictures = cached(Synthetic(sizes.pictures, seed=0, size=sizes.side))
        kept = path.with_suffix(".unfinished")
        save_classifier(path, _classifier(pictures, sizes, 0, progress, kept))
        discard(kept)
    return f"timm:{NETWORK}@{path}"


def _classifier(train_set: Labelled, sizes: Sizes, seed: int, progress: NamedBar, unfinished: Path) -> Loaded:
    torch.manual_seed(seed)  # timm draws the first weights from torch's global generator
    classifier = Classifier.from_timm(
        NETWORK, pretrained=False, num_classes=len(train_set.classes), image_size=sizes.side
    )
    view = Sight(sizes.side, "squash")
    fit_classifier(
        classifier,
        train_set,
        settings=FitSettings(epochs=sizes.classifier_epochs, lr=0.2, seed=seed, precision="32-true"),
        augment=replace(view.augmentation(), scale=(0.5, 1.0)),
        progress=progress("classifier"),
        unfinished=unfinished,
    )
    return Loaded(classifier, NETWORK, view, tuple(train_set.classes))


def _masker(train_set: Labelled, loaded: Loaded, epochs: float, out: Path, seed: int, progress: NamedBar) -> None:
    # float32, so that the numbers are the same on machines with and without bfloat16
    settings = Settings(
        epochs=epochs, batch_size=50, seed=seed, decay_at=(0.7, 0.9), averaging=0.95, precision="32-true"
    )
    augment = replace(loaded.sight.augmentation(), scale=(0.5, 1.0))
    train_run(
        train_set,
        loaded,
        recipe=RECIPES[out.name],
        settings=settings,
        masker_options={"layers": (1, 2, 3, 4)},
        batches=lambda start: training_batches(train_set, batch_size=50, seed=seed, start=start, augment=augment),
        out=out,
        resume=True,
        facts={"data": "built-in pictures", "command": "salmask demo"},
        progress=progress(f"masker {out.name}"),
    )
