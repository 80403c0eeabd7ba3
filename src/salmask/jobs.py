"""What the commands do, as functions: train a run, explain files, compare explainers.

Everything comes as objects; the look-ups by name are in `specs`.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import save_image

from salmask.classifier import Classifier
from salmask.data import (
    CropFlip,
    Labelled,
    Sample,
    ShortSide,
    collate,
    evaluation_batches,
    no_boxes,
    read_image,
    training_batches,
)
from salmask.data import View as Chosen
from salmask.evaluation.evaluate import Rules, evaluate
from salmask.evaluation.score import Scoring
from salmask.explain.base import Explainer, Explanation
from salmask.files import replace_file, writable_folder
from salmask.masker import Masker
from salmask.masking import Blur, MeanColour, keep, remove
from salmask.metrics.sanity import Row, SanityCheck, as_released, randomisation, reset
from salmask.metrics.sanity_figures import curve_figure, strip_figure
from salmask.metrics.similarity import Similarity
from salmask.report.pictures import picture
from salmask.specs import Loaded, View, load_infill, save_run
from salmask.training.inpainter import Inpainter, fit_inpainter, random_holes, save_inpainter
from salmask.training.recipes import Recipe
from salmask.training.train import Batches, Settings, mean_colour, train
from salmask.types import Boxes, Infill

__all__ = [
    "check_sanity",
    "compare",
    "explain_files",
    "load_bank",
    "load_infills",
    "randomise",
    "scoring_from",
    "spread",
    "train_inpainter",
    "train_run",
]

Bar = Callable[[Iterable[Any]], Iterable[Any]]
_BANK = 256  # images that fill holes
_SHOWN = 64  # pictures that an inpainter is tried on


def train_run(
    dataset: Labelled,
    loaded: Loaded,
    *,
    recipe: Recipe,
    settings: Settings,
    batches: Batches,
    out: Path,
    masker_options: Mapping[str, Any],
    facts: Mapping[str, Any],
    infill: Infill | Mapping[str, Infill] | None = None,
    resume: bool = False,
    progress: Bar = iter,
) -> Masker:
    """Train a masker and leave a run's folder: what `load_run` reads.

    masker_options: of `Masker`. infill: of `train`. facts: written to run.json beside the recipe and the settings.
    """
    check_classes(dataset, loaded)
    generator = torch.Generator().manual_seed(settings.seed)
    masker = Masker.for_classifier(loaded.classifier, generator=generator, **masker_options)
    train(
        masker,
        loaded.classifier,
        batches,
        len(dataset),
        recipe=recipe,
        settings=settings,
        out=out,
        infill=infill,
        resume=resume,
        progress=progress,
    )
    masker.classifier = loaded.classifier.fingerprint()  # of the classifier as it came out, where it was trained
    about = {**facts, "recipe": recipe.settings(), "images": len(dataset), "settings": vars(settings)}
    save_run(out, masker, loaded, about)
    return masker


def load_bank(dataset: Labelled, view: View) -> Tensor:
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


def train_inpainter(
    dataset: Labelled,
    *,
    out: Path,
    image_size: int,
    steps: int,
    batch_size: int,
    lr: float,
    precision: str = "32-true",
    workers: int = 0,
    seed: int = 0,
    progress: Bar = iter,
) -> dict[str, float]:
    """Train an inpainter, write it and a picture of what it fills; return errors in the holes of unseen pictures.

    The errors are mean absolute differences in [0, 1] on pictures held out of the training, beside those of the
    mean colour and of blur.
    """
    held = spread(dataset, min(_SHOWN, max(1, len(dataset) // 10)))
    kept_back = set(held.ids)
    rest = Chosen(dataset, [place for place, one in enumerate(dataset.ids) if one not in kept_back])
    torch.manual_seed(seed)
    inpainter = Inpainter()
    crop = CropFlip(image_size, scale=(0.3, 1.0))
    stream = training_batches(rest, batch_size=batch_size, seed=seed, augment=crop, workers=workers)
    images = (batch.images for batch in stream)
    fit_inpainter(inpainter, images, steps=steps, lr=lr, precision=precision, seed=seed, progress=progress)
    see = ShortSide(image_size)
    whole = collate([see(held[place]) for place in range(len(held))]).images
    holes = random_holes(len(whole), (image_size, image_size), torch.Generator().manual_seed(seed + 1)).round()
    fills = {
        "inpainter": inpainter(whole, holes),
        "mean colour": MeanColour()(whole, holes),
        "blur": Blur()(whole, holes),
    }
    save_inpainter(out, inpainter)
    shown = [whole, keep(whole, 1 - holes, MeanColour())] + [
        torch.lerp(whole, g.expand_as(whole), holes) for g in fills.values()
    ]
    replace_file(
        out.with_suffix(".png"),
        lambda at: save_image(torch.cat([one[:12] for one in shown]), at, nrow=min(12, len(whole)), format="png"),
    )
    return {name: float(((g - whole).abs() * holes).sum() / (3 * holes.sum())) for name, g in fills.items()}


def check_classes(dataset: Labelled, loaded: Loaded) -> None:
    """Raise ValueError where the data's classes cannot be those of the classifier.

    Folders are numbered in the order of their names. Where a classifier does not carry the names of its classes, the
    numbers must at least agree: on part of ImageNet, folder k is not class k of a network for all of it.
    """
    classes, known = len(dataset.classes), loaded.classifier.num_classes
    if classes != known:
        raise ValueError(
            f"the data has {classes} classes, the classifier tells {known} apart: "
            "use a classifier for this data (`salmask classifier`)"
        )


def explain_files(
    paths: Sequence[Path],
    name: str,
    explainer: Explainer,
    loaded: Loaded,
    *,
    out: Path,
    target: str | None = None,
    normalize: str | None = None,
    top: int = 3,
    skip_broken: bool = False,
    progress: Bar = iter,
) -> list[Path]:
    """Explain picture files one by one; return the PNGs written. The raw map stands beside each as .npy.

    All files are read before the first is explained, so that a broken one loses no work; skip_broken leaves those
    that cannot be decoded out, with a warning that names them.
    """
    names = loaded.classes or tuple(str(k) for k in range(loaded.classifier.num_classes))
    chosen = None if target is None else torch.tensor([_class_index(target, names)])
    if getattr(explainer, "wants", frozenset()) & {"boxes", "pixels"}:
        raise ValueError(f"{name} needs ground truth, which picture files do not carry: use `salmask evaluate`")
    files = _distinct(paths)
    transform = loaded.view.transform()
    for stem, path in list(files.items()):
        try:
            read_image(path)
        except ValueError as error:
            if not skip_broken:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            del files[stem]
    if not files:
        raise ValueError("none of the pictures can be decoded")
    writable_folder(out)
    written, agnostic = [], False
    for stem, path in progress(list(files.items())):
        sample = transform(Sample(id=path.name, image=read_image(path), target=0, boxes=no_boxes(), pixels=None))
        images = collate([sample]).images.to(loaded.classifier.device)
        explanation = explainer(loaded.classifier, images, chosen)
        figure = _figure(loaded.classifier, images, explanation, _scale(explainer, explanation, normalize), names, top)
        image = picture(*figure, title=f"{path.name}: {name}, {_explained(explanation, names)}")
        replace_file(out / f"{stem}.npy", partial(_save_array, explanation.masks[0, 0]))
        replace_file(out / f"{stem}.png", image.save)
        written.append(out / f"{stem}.png")
        agnostic = agnostic or explanation.class_agnostic
    if agnostic and target is not None:
        warnings.warn(f"{name} is class-agnostic: its maps are the same whatever class is asked for", stacklevel=2)
    return written


def compare(
    explainers: Mapping[str, tuple[Explainer, Loaded]],
    metrics: Mapping[str, Any],
    dataset: Labelled,
    *,
    rules: Rules,
    out: Path,
    about: Mapping[str, object],
    batch_size: int = 32,
    pictures: int | Collection[str] = 24,
    progress: Bar = iter,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure explainers, each on its own classifier, on one data set; return the summary.

    An explainer that `rules` does not say how to normalise is taken as it is if it makes masks in [0, 1], and by
    minimum and maximum if it makes raw maps; meta.json holds which.
    """
    for _, loaded in explainers.values():
        check_classes(dataset, loaded)
    writable_folder(out)
    given = rules.normalize if isinstance(rules.normalize, Mapping) else dict.fromkeys(explainers, rules.normalize)
    known = dict.fromkeys(explainers, "range")
    return evaluate(
        {name: explainer for name, (explainer, _) in explainers.items()},
        metrics,
        _Stream(dataset, batch_size),
        {name: loaded.classifier for name, (_, loaded) in explainers.items()},
        rules=replace(rules, normalize={**known, **given}),
        out=out,
        pictures=pictures,
        about=about,
        progress=progress,
    )


def randomise(
    explainer: Explainer,
    loaded: Loaded,
    dataset: Labelled,
    *,
    masker: bool = False,
    released: bool = False,
    seed: int = 0,
    similarities: Mapping[str, Similarity] | None = None,
    progress: Bar = iter,
) -> list[SanityCheck]:
    """Randomise weights, cascading and one module at a time, and compare the maps of all pictures of a data set.

    masker: randomise the learned masker's weights instead of the classifier's. released: draw new weights as the
    paper's released code does, which is no network's own initialisation. similarities: as of `randomisation`.
    Errors: ValueError where `masker` is asked of an explainer that has none.
    """
    network = getattr(explainer, "masker", None) if masker else None
    if masker and network is None:
        raise ValueError("only a learned masker has weights of its own: name the folder of a run")
    batch = collate([dataset[index] for index in range(len(dataset))])
    options: dict[str, Any] = {"rule": as_released if released else reset, "network": network, "seed": seed}
    return [
        randomisation(
            explainer,
            loaded.classifier,
            batch.images.to(loaded.classifier.device),
            ids=batch.ids,
            cascading=kind,
            similarities=similarities,
            **options,
        )
        for kind in progress([True, False])
    ]


def check_sanity(
    explainer: Explainer,
    loaded: Loaded,
    dataset: Labelled,
    *,
    out: Path,
    masker: bool = False,
    released: bool = False,
    seed: int = 0,
    progress: Bar = iter,
) -> list[Path]:
    """Write the rows, curve and picture strips of `randomise` into a folder; return the files."""
    writable_folder(out)
    checks = randomise(explainer, loaded, dataset, masker=masker, released=released, seed=seed, progress=progress)
    lines = [",".join(("check", *Row._fields))]
    lines += [",".join(map(str, (check.kind, *row))) for check in checks for row in check.rows]
    replace_file(out / "sanity.csv", lambda at: at.write_text("\n".join(lines) + "\n"))
    replace_file(out / "curve.png", curve_figure(checks).savefig)
    strips = [out / f"strip_{check.kind}.png" for check in checks]
    for check, path in zip(checks, strips, strict=True):
        replace_file(path, partial(strip_figure(check).savefig, dpi=150))
    return [out / "sanity.csv", out / "curve.png", *strips]


def scoring_from(loaded: Loaded, folder: Path, *, target: str = "label") -> Scoring:
    """Return the classifier that scores saved maps, and where it finds their pictures: id = path below `folder`."""
    transform = loaded.view.transform()

    def seen(one: str, boxes: Boxes) -> Sample:
        return transform(Sample(id=one, image=read_image(folder / one), target=0, boxes=boxes, pixels=None))

    def images(ids: Sequence[str]) -> Tensor:
        return collate([seen(one, no_boxes()) for one in ids]).images

    return Scoring(
        loaded.classifier,
        images,
        lambda ids: [str(folder / one) for one in ids if not (folder / one).exists()],
        target,
        lambda one, boxes: seen(one, boxes).boxes,
    )


def spread(dataset: Labelled, count: int | None) -> Labelled:
    """Return `count` samples of a data set, evenly spread over it; all of them for None."""
    if count is None or count >= len(dataset):
        return dataset
    return Chosen(dataset, [int(place) for place in np.linspace(0, len(dataset) - 1, count)])


class _Stream:
    """A data set in batches, in order; can be read again and again, and knows its length."""

    def __init__(self, dataset: Labelled, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __iter__(self) -> Any:
        return evaluation_batches(self.dataset, batch_size=self.batch_size)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)


def _explained(explanation: Explanation, names: Sequence[str]) -> str:
    if explanation.class_agnostic:
        return "the same for every class"
    return f"class explained: {names[int(explanation.targets[0])]}"


def _scale(explainer: Explainer, explanation: Explanation, normalize: str | None) -> Explanation:
    if normalize is None:
        inside = explanation.range[0] >= 0 and explanation.range[1] <= 1
        normalize = "none" if inside else "minmax"
    return explanation.normalized(normalize)


def _figure(
    classifier: Classifier,
    images: Tensor,
    explanation: Explanation,
    shown: Explanation,
    names: Sequence[str],
    top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, list[tuple[str, float]]]]:
    infill = mean_colour(classifier)
    masks = shown.masks.float()
    with classifier.frozen(), torch.no_grad():
        kept, removed = keep(images, masks, infill), remove(images, masks, infill)
        pictures = {"whole": images, "kept": kept, "removed": removed}
        said = {side: classifier.logits(pictured).softmax(1)[0] for side, pictured in pictures.items()}
    best = said["whole"].topk(min(top, len(names))).indices.tolist()
    if (explained := int(explanation.targets[0])) not in best:
        best.append(explained)
    probabilities = {side: [(names[k], float(p[k])) for k in best] for side, p in said.items()}
    return images[0].cpu(), masks[0].cpu(), kept[0].cpu(), removed[0].cpu(), probabilities


def _class_index(target: str, names: Sequence[str]) -> int:
    if target in names:
        return list(names).index(target)
    if target.isdigit() and int(target) < len(names):
        return int(target)
    raise ValueError(
        f"no class {target!r}: expected an index below {len(names)} or a name such as {', '.join(names[:5])}"
    )


def _distinct(paths: Sequence[Path]) -> dict[str, Path]:
    """Return output name -> file; files of one name in several folders are told apart by their folder."""
    if not paths:
        raise ValueError("no picture to explain: name at least one file")
    stems = [path.stem for path in paths]
    files: dict[str, Path] = {}
    for path in paths:
        stem = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}__{path.stem}{path.suffix}"
        if files.setdefault(stem, path) != path:
            raise ValueError(f"{files[stem]} and {path} would be written to one file: explain them into two folders")
    return files


def _save_array(array: Tensor, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array.detach().float().cpu().numpy())
