"""Sanity checks of explainers on a data set."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from salmask.classifier.hold import redraw_as_released, reset
from salmask.data import Labelled, collate
from salmask.data.streams import Bar
from salmask.explain.base import Explainer
from salmask.files import JSON, replace_file, writable_folder
from salmask.metrics.sanity import SanityCheck, Step, randomisation
from salmask.metrics.sanity_figures import curve_figure, strip_figure
from salmask.metrics.similarity import Similarity
from salmask.training.run import Loaded

__all__ = ["check_sanity", "randomise"]


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
    network = explainer.masker if masker else None
    if masker and network is None:
        raise ValueError("only a learned masker has weights of its own: name the folder of a run")
    batch = collate([dataset[index] for index in range(len(dataset))])
    options: JSON = {"rule": redraw_as_released if released else reset, "network": network, "seed": seed}
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
    lines = [",".join(("check", *Step._fields))]
    lines += [",".join(map(str, (check.kind, *row))) for check in checks for row in check.rows]
    replace_file(out / "sanity.csv", lambda at: at.write_text("\n".join(lines) + "\n"))
    replace_file(out / "curve.png", curve_figure(checks).savefig)
    strips = [out / f"strip_{check.kind}.png" for check in checks]
    for check, path in zip(checks, strips, strict=True):
        replace_file(path, partial(strip_figure(check).savefig, dpi=150))
    return [out / "sanity.csv", out / "curve.png", *strips]
