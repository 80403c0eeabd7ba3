"""Explain files and write what a person can look at."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Sample, collate, no_boxes, read_image
from salmask.data.streams import Bar
from salmask.explain.base import Explainer, Explanation
from salmask.files import replace_file, writable_folder
from salmask.masking import MeanColour, keep, remove
from salmask.outcome import play_at_rest
from salmask.report.pictures import picture
from salmask.training.run import Loaded

__all__ = ["explain_files"]


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


def _figure(
    classifier: Classifier,
    images: Tensor,
    explanation: Explanation,
    shown: Explanation,
    names: Sequence[str],
    top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, list[tuple[str, float]]]]:
    infill, masks = MeanColour.of(classifier), shown.masks.float()
    outcome = play_at_rest(classifier, images, masks, explanation.targets, infill=infill, clean=explanation.logits)
    sides = {"whole": outcome.clean, "kept": outcome.kept_logits, "removed": outcome.removed_logits}
    said = {side: logits.softmax(1)[0] for side, logits in sides.items()}
    kept, removed = keep(images, masks, infill), remove(images, masks, infill)
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


def _scale(explainer: Explainer, explanation: Explanation, normalize: str | None) -> Explanation:
    if normalize is None:
        inside = explanation.range[0] >= 0 and explanation.range[1] <= 1
        normalize = "none" if inside else "minmax"
    return explanation.normalized(normalize)


def _explained(explanation: Explanation, names: Sequence[str]) -> str:
    if explanation.class_agnostic:
        return "the same for every class"
    return f"class explained: {names[int(explanation.targets[0])]}"


def _save_array(array: Tensor, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array.detach().float().cpu().numpy())
