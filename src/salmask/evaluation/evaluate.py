"""The loop of every evaluation: cases of a source are scored, drawn and written, a row an image, explainer and metric.

What is written is never computed again, so a killed run goes on where it stopped, and an explainer may be added to a
folder later. A folder that was made with other settings, data, picture sizes or weights is refused by name.

    evaluate_explainers   explainers at work on batches                    (`explained`)
    compare               the same, each explainer on a classifier of its own, on a data set
    score                 maps that any tool wrote to a file               (`saved`)
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from salmask.audio.listening import Listening
from salmask.audio.sounds import write_sound
from salmask.classifier import Classifier
from salmask.data import Batch, Labelled
from salmask.data.streams import Bar, DataStream
from salmask.evaluation.cases import CaseSource, Failed, Scored, Skip, plain
from salmask.evaluation.explained import COLUMNS, Explained, Rules
from salmask.evaluation.gathered import gathered, help_to_fill
from salmask.evaluation.saved import Saved, Scoring, Work
from salmask.explain.base import Explainer, Explanation
from salmask.explain.controls import BASELINES
from salmask.files import JSON, Facts, replace_file, writable_folder
from salmask.metrics.case import Metric
from salmask.outcome import KEPT, REMOVED
from salmask.report.grid import SOUNDS, sound_name
from salmask.report.page import write_report
from salmask.report.pictures import spread_ids, strip
from salmask.rows.read import ROWS, agree_on_meta, file_name, read_failures
from salmask.rows.write import Failures, Writer
from salmask.training.processes import share_of, within
from salmask.training.run import Loaded, check_classes
from salmask.types import in_colour

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["COLUMNS", "Rules", "Work", "compare", "evaluate_explainers", "score"]

PICTURES = 24
Summaries = dict[str, dict[str, JSON]]
"""{explainer: {metric: {mean, low, high, n}}}"""


def fill(
    source: CaseSource,
    out: Path,
    *,
    drawn: Callable[[str], bool],
    listening: Listening | None = None,
    fabric: "Fabric | None" = None,
) -> Summaries:
    """Score all that a source has, into a folder; drawn: which images get a picture, and with `listening` sounds.

    Of several processes, each scores and draws its share, and the first one writes the rows of all.
    """
    out = writable_folder(out)
    shown = _drawing(source, out, drawn, listening)
    if fabric is not None and not fabric.is_global_zero:
        with within(fabric):
            help_to_fill(shown, fabric)
        return {}
    agree_on_meta(out, _meta(source))
    computes = {name: metric.compute for name, metric in source.metrics.items() if metric.compute is not None}
    columns = [*(name for name in source.metrics if name not in computes), *source.columns]
    failures = Failures(out, source.explainers)
    with within(fabric), Writer(out, columns, computes) as writer:
        for scored in gathered(shown, writer, failures, fabric):
            for i, image in enumerate(scored.ids):
                values = {name: scored.values[name][i].item() for name in columns}
                writer.add(scored.explainer, image, values, {name: scored.values[name][i] for name in computes})
            writer.flush()
    _tell_of_failures(out, source.explainers)
    return write_report(out)


def _tell_of_failures(out: Path, explainers: Iterable[str]) -> None:
    """Warn of explainers that failed on images, which stand in the page. Errors: ValueError where nothing is left."""
    failed: dict[str, list[Facts]] = {}
    for one in read_failures(out):
        failed.setdefault(one["explainer"], []).append(one)
    told = [
        f"{name} failed on {len(own)} image{'s' * (len(own) > 1)}, first on {own[0]['image']} ({own[0]['error']})"
        for name, own in failed.items()
        if name in explainers
    ]
    if told and not (out / ROWS).stat().st_size:
        raise ValueError(f"nothing was measured: {'; '.join(told)}")
    for words in told:
        warnings.warn(words, stacklevel=4)


def _drawing(
    source: CaseSource, out: Path, drawn: Callable[[str], bool], listening: Listening | None
) -> Callable[[Skip, Failed], Iterator[Scored]]:
    """Return a source's cases, each drawn, and made to be heard, as it is scored."""

    def cases(skip: Skip, failed: Failed) -> Iterator[Scored]:
        for scored in source.scored(skip, failed):
            _draw(out / "pictures" / file_name(scored.explainer), scored, drawn, listening)
            if listening is not None:
                _write_sounds(out / SOUNDS, scored, drawn, listening)
            yield replace(scored, panels=None)

    return cases


def _meta(source: CaseSource) -> JSON:
    """Return the settings of a source as JSON can hold them."""
    metrics = {name: plain(metric.describe()) for name, metric in source.metrics.items()}
    return {"explainers": source.explainers, "metrics": {**metrics, **source.columns}, **source.settings}


def _draw(folder: Path, scored: Scored, drawn: Callable[[str], bool], listening: Listening | None) -> None:
    """Write image, overlay, kept and removed picture side by side, for the images that get a picture."""
    for i, image in enumerate(scored.ids):
        if scored.panels is not None and drawn(image):
            folder.mkdir(parents=True, exist_ok=True)
            picture, mask, kept, removed = scored.panels(i)
            whole, kept, removed = (
                in_colour(one[None] if listening is None else listening.shown(one[None]))[0]
                for one in (picture, kept, removed)
            )
            drawing = strip(whole, mask, kept, removed)
            replace_file(folder / f"{file_name(image)}.png", partial(drawing.save, format="PNG", compress_level=1))


def _write_sounds(folder: Path, scored: Scored, drawn: Callable[[str], bool], listening: Listening) -> None:
    """Write the recording, the kept and the removed sound of what gets a picture."""
    own, rate = folder / file_name(scored.explainer), listening.sample_rate
    for i, image in enumerate(scored.ids):
        if scored.panels is not None and drawn(image):
            own.mkdir(parents=True, exist_ok=True)
            _, _, kept, removed = scored.panels(i)
            sounds = listening.heard(image, [kept[:1], removed[:1]])  # grey in colour: one channel, three times
            write_sound(folder / sound_name(image), listening.recording(image), rate)
            for side, sound in zip((KEPT, REMOVED), sounds, strict=True):
                write_sound(own / sound_name(image, side), sound, rate)


def evaluate_explainers(
    explainers: Mapping[str, Explainer | Callable[..., Explanation]],
    metrics: Mapping[str, Metric],
    batches: Iterable[Batch],
    classifier: Classifier | Mapping[str, Classifier],
    *,
    rules: Rules,
    out: Path,
    pictures: int | Collection[str] = PICTURES,
    about: Mapping[str, object] | None = None,
    listening: Listening | None = None,
    progress: Bar = iter,
    fabric: "Fabric | None" = None,
) -> Summaries:
    """Measure explainers and write rows, counts, pictures, failures, summary.json and index.html to `out`.

    explainers: name -> explainer. metrics: name -> Metric. batches: of `data.Batch`, e.g. a DataLoader with
    `collate`. classifier: the explained one, or a mapping explainer name -> classifier (co-trained ones).
    pictures: how many images get a picture, spread over the data where its ids are known, or their ids.
    about: data, classifier, command, version, in words, for the header. listening: of sounds, whose recording, kept and
    removed sound are written beside the pictures. progress: wraps the batches.
    fabric: launched processes, which share the batches of a `DataStream`; all but the first return nothing. They
    compute in its precision, which stands in meta.json where it is not float32.

    Returns the summary {explainer: {metric: {mean, low, high, n}}}.
    Errors: ValueError for rows of other settings or data in `out`, for maps outside [0, 1] without a normaliser, for
    no image, for a folder that cannot be written. A failing explainer is no error: see failures.jsonl.
    """
    source = Explained.of(explainers, classifier, metrics, batches, rules=rules, about=about or {}, progress=progress)
    if fabric is not None:
        source = replace(source, autocast=fabric.autocast, precision=fabric.strategy.precision.precision)
    if fabric is not None and isinstance(batches, DataStream):
        source = replace(source, batches=batches.shared(share_of(fabric)))
    elif fabric is not None and fabric.world_size > 1:
        raise ValueError("several processes share the batches of a data set: give a DataStream, got other batches")
    return fill(source, Path(out), drawn=_drawn(pictures, batches), listening=listening, fabric=fabric)


@runtime_checkable
class _OfData(Protocol):
    """Batches that say which data they are of, such as a `DataStream` or a DataLoader."""

    dataset: object


def _drawn(pictures: int | Collection[str], batches: Iterable[Batch]) -> Callable[[str], bool]:
    """Return whether an image gets a picture: the named ones, else ids spread evenly, else the first ones."""
    if not isinstance(pictures, int):
        return set(pictures).__contains__
    if isinstance(batches, _OfData) and isinstance(batches.dataset, Labelled):
        return set(spread_ids(batches.dataset.ids, pictures)).__contains__
    seen: dict[str, None] = {}

    def among_first(image: str) -> bool:
        if len(seen) < pictures:
            seen[image] = None
        return image in seen

    return among_first


def compare(  # noqa: PLR0913  (as `evaluate_explainers`)
    explainers: Mapping[str, tuple[Explainer, Loaded]],
    metrics: Mapping[str, Metric],
    dataset: Labelled,
    *,
    rules: Rules,
    out: Path,
    about: Mapping[str, object],
    batch_size: int = 32,
    pictures: int | Collection[str] = PICTURES,
    listening: Listening | None = None,
    workers: int = 0,
    progress: Bar = iter,
    fabric: "Fabric | None" = None,
) -> Summaries:
    """Measure explainers, each on its own classifier, on one data set; return the summary.

    An explainer that `rules` does not say how to normalise is taken as it is if it makes masks in [0, 1], and by
    minimum and maximum if it makes raw maps; meta.json holds which.
    """
    for name, (_, loaded) in explainers.items():
        check_classes(dataset, loaded)
        if listening is not None and loaded.view != listening.sounds.hearing:
            raise ValueError(
                f"{name} hears {loaded.view}, and the sounds are opened as {listening.sounds.hearing}: measure it by "
                "itself, or, of another domain alone, give one for all (--domain)"
            )
    given = rules.normalize if isinstance(rules.normalize, Mapping) else dict.fromkeys(explainers, rules.normalize)
    return evaluate_explainers(
        {name: explainer for name, (explainer, _) in explainers.items()},
        metrics,
        DataStream(dataset, batch_size, workers=workers),
        {name: loaded.classifier for name, (_, loaded) in explainers.items()},
        rules=replace(rules, normalize={**dict.fromkeys(explainers, "range"), **given}),
        out=out,
        pictures=pictures,
        about=about,
        listening=listening,
        progress=progress,
        fabric=fabric,
    )


def score(  # noqa: PLR0913  (every kind of truth is a file of its own)
    maps: str | Path,
    boxes: str | Path | None = None,
    *,
    out: str | Path,
    masks_dir: str | Path | None = None,
    labels: str | Path | None = None,
    gaze: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    normalize: str = "none",
    scoring: Scoring | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    work: Work | None = None,
) -> Summaries:
    """Score saved maps and write rows, counts, meta.json, summary.json, index.html and some pictures to `out`.

    maps: MAPS.npz or MAPS.npy (`maps`). boxes: image,class,x0,y0,x1,y1[,width,height], in pixels of the maps
    (with `scoring` that places them, of the pictures) unless width,height say which picture they are in; or a folder
    of XML files (`data.layouts`). masks_dir: one PNG per id (`read_pixels`), brought to the maps' size by nearest
    neighbour. labels: image,label[,predicted], class indices.
    gaze: folder of gaze maps (`truth`), for scores of human attention; the centre bias is the mean gaze of the others.
    metrics: names of METRICS; None: every plain name that the given truth allows. normalize: how maps come into
    [0, 1]: none, minmax, max or rank. scoring: for metrics that show pictures to a classifier, and for the page to show
    (one process only).
    baselines: trivial maps (`explain.controls`) that are scored on the same images, beside the given ones.

    Returns the summary. Errors: ValueError for ids without truth or truth without ids, maps that are not finite
    or not in [0, 1], class indices out of range, unknown metrics, rows of other settings in `out`.
    """
    source = Saved.of(
        maps,
        boxes,
        masks_dir,
        labels,
        gaze,
        metrics=metrics,
        normalize=normalize,
        scoring=scoring,
        baselines=baselines,
        seed=seed,
        work=work or Work(),
    )
    source.check()
    return fill(source, Path(out), drawn=set(spread_ids(source.maps.ids, PICTURES)).__contains__)
