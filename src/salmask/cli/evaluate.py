"""`salmask evaluate`: explainers against metrics on a split of the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from salmask import __version__
from salmask.cli.console import Command, print_table, progress_bar, say, typed_command
from salmask.cli.options import DataOptions, InferencePrecision, Normalize, ProcessOptions
from salmask.files import JSON, Facts, writable_folder

if TYPE_CHECKING:
    from salmask.audio.listening import Listening
    from salmask.data import Labelled
    from salmask.metrics import Metric
    from salmask.specs import Chosen
    from salmask.training.run import Loaded

__all__ = ["EvaluateCommand"]


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(Command, DataOptions, ProcessOptions):
    """Measure explainers on a split: rows, a table with intervals, pictures, a page."""

    explainer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[TITLE=]RUN|NAME ...")]
    """Folders of runs, released checkpoints (.chk), or names such as gradcam, rise:masks=500; TITLE=... goes by that
    title in all that is shown."""
    out: Path
    """Folder for rows.jsonl, summary.json and index.html; a killed run goes on there."""
    split: str = "val"
    """Which part of the data."""
    classifier: str | None = None
    """The explained classifier, for explainers by name; the first run's own where not given."""
    scoring: str | None = None
    """SPEC of the classifier that scores; the --classifier where given, else each explainer's own."""
    metric: tuple[str, ...] = ("le", "om", "f1", "f1_mean", "sm", "mask_mean", "max_box_acc_v2")
    """Names as in docs/metrics.md; `all` for every one that the data allows."""
    target: Literal["label", "predicted"] = "label"
    """The class that is explained and scored. Of several labels a picture, each is: those of the data, or all that the
    classifier holds likelier than .5."""
    normalize: Normalize | None = None
    """How maps come to [0, 1] where an explainer's do not."""
    baselines: bool = True
    """Measure trivial maps on the same pictures, too: full, empty, center, random."""
    batch_size: int = 32
    """Pictures at once."""
    limit: int | None = None
    """Measure only so many pictures, spread over the split."""
    as_released: bool = False
    """Measure by the released protocols where there are some, such as le:as_released; see docs/as-released.md."""
    seed: int = 0
    """Of scores and explainers that draw."""
    precision: InferencePrecision = "32-true"
    """In which explainers and classifiers compute: 32-true, bf16-mixed, or auto, which takes the latter where the
    hardware is faster at it. Numbers of the two differ by some thousandths."""

    def __call__(self) -> Facts | None:
        """Run the command."""
        from salmask.data.streams import Subset
        from salmask.evaluation.evaluate import compare
        from salmask.evaluation.explained import Rules, decided_label
        from salmask.report.training import add_training
        from salmask.rows.read import ROWS, read_meta
        from salmask.training.precision import chosen_precision
        from salmask.training.processes import move_to

        chosen, judge = self._chosen()
        every = self.target == "predicted" and chosen.base.classifier.multilabel
        dataset, heard = self._data(chosen.base, every=every)
        rules = Rules(
            target=decided_label if every else self.target,
            normalize={} if self.normalize is None else self.normalize,
            scoring=judge.classifier if judge else None,
            seed=self.seed,
        )
        metrics = self._metrics()
        fabric = self.launch(precision=chosen_precision(self.precision, chosen.base.classifier))
        move_to(fabric, chosen.explainers.values(), judge)
        if heard is not None and fabric.is_global_zero:
            self.check_hears(chosen.base, heard.sounds, self.split)
        writable_folder(self.out)  # nothing is written before all that was asked for is known to exist
        for name, log in chosen.logs.items() if fabric.is_global_zero else ():
            add_training(self.out, name, log)
        summary = compare(
            chosen.explainers,
            metrics,
            Subset(dataset, transform=chosen.base.view.transform()),
            rules=rules,
            batch_size=self.batch_size,
            out=self.out,
            about=self._about(heard),
            listening=heard,
            workers=self.workers,
            progress=progress_bar("measuring") if fabric.is_global_zero else iter,
            fabric=fabric,
        )
        if not fabric.is_global_zero:
            return None
        say(f"report: {self.out / 'index.html'}")
        for name, reason in read_meta(self.out)["left_out"].items():
            say(f"{name} is left out: {reason}")
        print_table(summary, tuple(metrics))
        return {"report": self.out / "index.html", "rows": self.out / ROWS, "summary": summary}

    def _chosen(self) -> "tuple[Chosen, Loaded | None]":
        """Return the explainers, and the classifier that scores where it is one for all."""
        from salmask.explain.controls import BASELINES
        from salmask.specs import load_explainers
        from salmask.training.run import load_classifier

        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        chosen = load_explainers(
            self.explainer,
            loaded=base,
            baselines=tuple(BASELINES) if self.baselines else (),
            sight=self.pictures(),
            seed=self.seed,
            bank=self.bank,
        )
        return chosen, load_classifier(self.scoring, **self.pictures()) if self.scoring else base

    def _data(self, base: "Loaded", *, every: bool) -> "tuple[Labelled, Listening | None]":
        """Return what is measured on, a sample for each label that is `decided` if asked, and what plays its sounds."""
        from salmask.audio.listening import Listening
        from salmask.audio.mixtures import Mixed
        from salmask.audio.readers import Sounds
        from salmask.data.streams import spread
        from salmask.evaluation.decisions import decided

        whole = self.mixed(self.read(self.split, base, classes=base.classes))
        dataset = spread(whole, self.limit)
        if every:
            dataset = decided(base.classifier, dataset, base.view, classes=dataset.classes)
        return dataset, Listening(whole) if isinstance(whole, Sounds | Mixed) else None

    def _metrics(self) -> "dict[str, Metric]":
        from salmask.specs import load_metrics
        from salmask.training.released import metric_as_released

        metrics = load_metrics(self.metric)
        return load_metrics([metric_as_released(name) for name in metrics]) if self.as_released else metrics

    def _about(self, heard: "Listening | None") -> JSON:
        """Return what the page's header says."""
        from salmask.specs import named

        return {
            "data": f"{self.data_name()}, {self.split}",
            "classifier": self.classifier or named(self.explainer[0])[1],
            "command": typed_command(),
            "version": __version__,
            **({} if heard is None else _about_sounds(heard, self.mix)),
        }


def _about_sounds(heard: "Listening", mix: tuple[str, ...]) -> JSON:
    from salmask.audio.hearing import SHOWN

    own = heard.sounds.hearing
    words = f"{own.sample_rate} samples a second, {own.seconds:g} seconds, windows of {own.window}, {own.domain} domain"
    return {"heard": words, "shown as": SHOWN, "mixed with": " ".join(mix) or None}
