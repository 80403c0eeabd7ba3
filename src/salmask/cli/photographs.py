"""The masker that comes with the package, beside Grad-CAM, on the photographs that scikit-image and scikit-learn ship.

A row is a photograph: what the classifier sees, the mask, the kept and the removed picture, Grad-CAM. Both maps are of
the class that the classifier decides for.
"""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from salmask.data.photographs import photographs
from salmask.evaluation.panels import class_names_of, played_panels, seen
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.files import replace_file
from salmask.outcome import KEPT, REMOVED
from salmask.report.pictures import overlay, to_uint8
from salmask.training.run import Loaded, load_shipped
from salmask.types import Images

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
    explainer = Learned(run.masker)
    rows = [_row(explainer, loaded, seen(loaded, name, image)) for name, image in photographs()]
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


def _row(explainer: Learned, loaded: Loaded, images: Images) -> tuple[list[str], list[np.ndarray]]:
    """Return captions and panels of one photograph."""
    names = class_names_of(loaded)
    explanation = explainer(loaded.classifier, images)
    cams = EXPLAINERS["gradcam"]()(loaded.classifier, images, explanation.targets).bounded().masks
    (panels,) = played_panels(loaded, images, explanation.bounded().masks, explanation, top=1, names=names)
    listed = (panels.probabilities[side][0] for side in ("whole", KEPT, REMOVED))
    whole, kept, removed = (f"{name.split(',')[0]} {share:.2f}" for name, share in listed)
    captions = [whole, f"mean {panels.mask.mean():.2f}", kept, removed, f"mean {cams.mean():.2f}"]
    colours = [to_uint8(one) for one in (panels.whole, panels.kept, panels.removed)]
    return captions, [
        colours[0],
        overlay(panels.whole, panels.mask),
        *colours[1:],
        overlay(panels.whole, cams[0]),
    ]
