"""The masker that comes with the package, beside Grad-CAM, on the photographs that scikit-image and scikit-learn ship.

A row is a photograph: what the classifier sees, the mask, the kept and the removed picture, Grad-CAM. Both maps are of
the class that the classifier decides for.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from salmask.data import Sample, collate, no_boxes
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.files import replace_file
from salmask.masking import MeanColour, keep, remove
from salmask.outcome import play_at_rest
from salmask.report.pictures import overlay, to_uint8
from salmask.training.run import Loaded, load_shipped

__all__ = ["write_photographs"]

_COLUMNS = ("what the network sees", "mask", "kept", "removed", "Grad-CAM")
_INCHES = 1.75  # a panel


def write_photographs(path: Path) -> int:
    """Write the sheet as one picture file and return the number of photographs.

    Errors: ValueError where the ImageNet network's weights can be had neither from the extra `imagenet` nor from
    the hub.
    """
    run = load_shipped()
    loaded = run.loaded
    photographs = dict(_photographs())
    transform = loaded.view.transform()
    samples = [
        transform(Sample(id=name, image=image, target=0, boxes=no_boxes(), pixels=None))
        for name, image in photographs.items()
    ]
    rows = list(_rows(Learned(run.masker), loaded, collate(samples).images))
    figure = Figure(figsize=(_INCHES * len(_COLUMNS), (_INCHES + 0.35) * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for row, (captions, panels) in enumerate(rows):
        for column, panel in enumerate(panels):
            axes[row, column].imshow(panel)
            axes[row, column].set_axis_off()
            heading = f"{_COLUMNS[column]}\n" if row == 0 else ""
            axes[row, column].set_title(heading + captions[column], fontsize=7)
    FigureCanvasAgg(figure)
    replace_file(path, partial(figure.savefig, format="jpg", pil_kwargs={"quality": 88}))
    return len(rows)


def _photographs() -> Iterator[tuple[str, Tensor]]:
    from skimage import data

    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        yield name, _as_image(getattr(data, name)())
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:  # two photographs more where the package is there anyway
        return
    sample = load_sample_images()
    for file, picture in zip(sample.filenames, sample.images, strict=True):
        yield Path(file).stem, _as_image(picture)


def _as_image(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


def _rows(explainer: Learned, loaded: Loaded, images: Tensor) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Yield captions and panels of each photograph."""
    classifier, classes = loaded.classifier, loaded.classes
    assert classes is not None  # ImageNet's, which the shipped run names
    explanation = explainer(classifier, images)
    cams = EXPLAINERS["gradcam"]()(classifier, images, explanation.targets).bounded().masks
    masks, infill = explanation.bounded().masks, MeanColour.of(classifier)
    outcome = play_at_rest(classifier, images, masks, explanation.targets, infill=infill, clean=explanation.logits)
    kept, removed = keep(images, masks, infill), remove(images, masks, infill)
    sides = (outcome.clean, outcome.kept_logits, outcome.removed_logits)
    shares = [classifier.probabilities(logits) for logits in sides]
    for i, target in enumerate(explanation.targets.tolist()):
        name = classes[target].split(",")[0]
        whole, of_kept, of_removed = (f"{name} {float(share[i, target]):.2f}" for share in shares)
        captions = [whole, f"mean {masks[i].mean():.2f}", of_kept, of_removed, f"mean {cams[i].mean():.2f}"]
        colours = [to_uint8(picture[i]) for picture in (images, kept, removed)]
        yield captions, [colours[0], overlay(images[i], masks[i]), *colours[1:], overlay(images[i], cams[i])]
