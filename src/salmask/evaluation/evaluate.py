"""Explainers x metrics over a stream of images: one row per image, explainer and metric.

One pass over the images serves all explainers. Per batch and explainer: explain (timed), normalise if told
so, play both pictures to the scoring classifier, call every metric on one `Case`, write the block of rows.
What is written is never computed again, so a killed run goes on where it stopped, and an explainer may be
added to a folder later. Where an explainer fails, its batch is repeated image by image; the image that fails
is recorded with its error, the others keep their rows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Batch, Labelled
from salmask.data.streams import Bar, _Stream
from salmask.evaluation.explained import COLUMNS, Block, Job, Rules, measure, take
from salmask.explain.base import Explainer, Explanation, explainer_of
from salmask.files import JSON, Facts, writable_folder
from salmask.metrics import Metric
from salmask.report import write_report
from salmask.report.pictures import spread_ids, strip
from salmask.rows.read import agree_on_meta, file_name
from salmask.rows.write import Failures, Writer
from salmask.training.run import Loaded, check_classes

__all__ = ["COLUMNS", "Rules", "compare", "evaluate"]


def evaluate(
    explainers: Mapping[str, Explainer | Callable[..., Explanation]],
    metrics: Mapping[str, Metric],
    batches: Iterable[Batch],
    classifier: Classifier | Mapping[str, Classifier],
    *,
    rules: Rules,
    out: Path,
    pictures: int | Collection[str] = 24,
    about: Mapping[str, object] | None = None,
    progress: Bar = iter,
) -> dict[str, dict[str, JSON]]:
    """Measure explainers and write rows, counts, pictures, failures, summary.json and index.html to `out`.

    explainers: name -> explainer. metrics: name -> Metric. batches: of `data.Batch`, e.g. a DataLoader with
    `collate`. classifier: the explained one, or a mapping explainer name -> classifier (co-trained ones).
    pictures: how many images get a picture, spread over the data where its ids are known, or their ids.
    about: data, classifier, command, version, in words, for the header. progress: wraps the batches.

    Returns the summary {explainer: {metric: {mean, low, high, n}}}.
    Errors: ValueError for rows of other settings in `out`, for maps outside [0, 1] without a normaliser, for
    no image; OSError where `out` cannot be written. A failing explainer is no error: see failures.jsonl.
    """
    for one in classifier.values() if isinstance(classifier, Mapping) else [classifier]:
        if isinstance(one, Classifier):
            one.check_exclusive("measuring")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    table = {name: explainer_of(explainer) for name, explainer in explainers.items()}
    first, batches = _peek(batches)
    usable, left_out = _usable(metrics, first)
    agree_on_meta(out, _meta(table, usable, left_out, rules, about or {}))
    wanted = _picture_ids(pictures, batches)
    computes = {name: metric.compute for name, metric in usable.items() if metric.compute is not None}
    names = [*(name for name in usable if name not in computes), *COLUMNS]
    failures = Failures(out, table)
    with Writer(out, names, computes) as writer:
        for batch in progress(batches):
            known: dict[
                tuple[int, tuple[str, ...]], Tensor
            ] = {}  # what the classifiers say of the whole pictures: the same for all explainers
            for name, explainer in table.items():
                missing = [i for i, one in enumerate(batch.ids) if not writer.has(name, one)]
                if not missing:
                    continue
                job = Job(name, explainer, _of(classifier, name), usable, rules, known)
                failed = functools.partial(failures.add, name)
                for block in measure(job, take(batch, missing), failed):
                    _draw(out / "pictures" / file_name(name), block, wanted)
                    for image, values, counts in block.rows():
                        writer.add(name, image, values, counts)
                    writer.flush()
    return write_report(out)


def _of(classifier: Classifier | Mapping[str, Classifier], name: str) -> Classifier:
    if not isinstance(classifier, Mapping):
        return classifier
    if name not in classifier:
        raise ValueError(f"no classifier for explainer {name!r}: expected one of {sorted(classifier)}")
    return classifier[name]


def _peek(batches: Iterable[Batch]) -> tuple[Batch, Iterable[Batch]]:
    """Return the first batch and an iterable that still begins with it."""
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("expected at least one batch of images, got none: look at the data's folder and split")
    return first, itertools.chain([first], batches) if isinstance(batches, Iterator) else batches


def _usable(metrics: Mapping[str, Metric], first: Batch) -> tuple[dict[str, Metric], dict[str, str]]:
    """Split metrics into those that the data can serve and {name: why not}."""
    lacking = {"gaze": "human attention"}
    if not any(len(boxes) for boxes in first.boxes):
        lacking["boxes"] = "boxes"
    if all(pixels is None for pixels in first.pixels):
        lacking["pixels"] = "pixel masks"
    left_out = {}
    for name, metric in metrics.items():
        if absent := sorted(lacking[need] for need in metric.needs if need in lacking):
            left_out[name] = f"the data's first batch has no {' and no '.join(absent)}"
    return {name: metric for name, metric in metrics.items() if name not in left_out}, left_out


def _picture_ids(pictures: int | Collection[str], batches: Iterable[Batch]) -> Callable[[str], bool]:
    """Return whether an image gets a picture: the named ones, else ids spread evenly, else the first ones."""
    if not isinstance(pictures, int):
        return set(pictures).__contains__
    ids = getattr(getattr(batches, "dataset", None), "ids", None)
    if ids is not None:
        return set(spread_ids(ids, pictures)).__contains__
    seen: dict[str, None] = {}

    def among_first(image: str) -> bool:
        if len(seen) < pictures:
            seen[image] = None
        return image in seen

    return among_first


def _draw(folder: Path, block: Block, wanted: Callable[[str], bool]) -> None:
    """Write image, overlay, kept and removed picture side by side, for the images that get a picture."""
    for i, image in enumerate(block.batch.ids):
        if wanted(image):
            folder.mkdir(parents=True, exist_ok=True)
            panels = strip(*block.panels(i))
            panels.save(folder / f"{file_name(image)}.png")


def _meta(
    explainers: Facts,
    metrics: Facts,
    left_out: Mapping[str, str],
    rules: Rules,
    about: Mapping[str, object],
) -> JSON:
    """Return the settings of this run as JSON can hold them."""
    table = {name: _describe_metric(metric) for name, metric in metrics.items()} | COLUMNS
    return {
        "explainers": {
            name: _describe_explainer(one) | {"normalize": rules.normalizer(name, one)}
            for name, one in explainers.items()
        },
        "metrics": table,
        "left_out": dict(left_out),
        "target": getattr(rules.target, "__name__", rules.target),
        "seed": rules.seed,
        "infill": "mean colour" if rules.infill is None else repr(rules.infill),
        **{key: _plain(value) for key, value in about.items()},
    }


def _describe_metric(metric: Metric) -> JSON:
    return {
        "protocol": _plain(dict(metric.protocol)),
        "direction": metric.direction,
        "range": _plain(list(metric.range)),
        "source": metric.source,
        "set_level": metric.compute is not None,
    }


def _describe_explainer(explainer: Explainer) -> JSON:
    """Return the settings of an explainer; `truth` marks one that reads boxes or pixels: it is not ranked."""
    truth = bool({"boxes", "pixels"} & explainer.wants)
    return {"kind": explainer.kind, "settings": _plain(explainer.settings), "truth": truth}


def _plain(value: object) -> object:
    """Return what JSON can hold: tables and lists entry by entry, other things as their text without addresses."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [_plain(one) for one in ordered]
    if dataclasses.is_dataclass(value):
        return repr(value) if " at 0x" not in repr(value) else type(value).__name__
    name = getattr(value, "__qualname__", type(value).__name__)
    text = str(value)
    return name if " at 0x" in text or len(text) > 200 else text


def compare(
    explainers: Mapping[str, tuple[Explainer, Loaded]],
    metrics: Facts,
    dataset: Labelled,
    *,
    rules: Rules,
    out: Path,
    about: Mapping[str, object],
    batch_size: int = 32,
    pictures: int | Collection[str] = 24,
    progress: Bar = iter,
) -> dict[str, dict[str, JSON]]:
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
