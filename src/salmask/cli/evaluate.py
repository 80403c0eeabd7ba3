"""`salmask evaluate`: explainers against metrics on a split of the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from salmask import __version__
from salmask.cli.console import print_table, progress_bar, say, typed_command
from salmask.cli.options import DataOptions, Normalize, ProcessOptions

__all__ = ["EvaluateCommand"]


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(DataOptions, ProcessOptions):
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

    def __call__(self) -> None:
        """Run the command."""
        from salmask.audio.listening import Listening
        from salmask.audio.mixtures import Mixed
        from salmask.audio.readers import Sounds
        from salmask.data.streams import Subset, spread
        from salmask.evaluation.decisions import decided
        from salmask.evaluation.evaluate import compare
        from salmask.evaluation.explained import Rules, decided_label
        from salmask.explain.controls import BASELINES
        from salmask.files import writable_folder
        from salmask.report.training import add_training
        from salmask.specs import load_explainers, load_metrics, named
        from salmask.training.processes import move_to
        from salmask.training.released import metric_as_released
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
        judge = load_classifier(self.scoring, **self.pictures()) if self.scoring else base
        base = chosen.base
        whole = self.mixed(self.read(self.split, base, classes=base.classes))
        dataset = spread(whole, self.limit)
        every = self.target == "predicted" and base.classifier.multilabel
        if every:
            dataset = decided(base.classifier, dataset, base.view, classes=dataset.classes)
        rules = Rules(
            target=decided_label if every else self.target,
            normalize={} if self.normalize is None else self.normalize,
            scoring=judge.classifier if judge else None,
            seed=self.seed,
        )
        metrics = load_metrics(self.metric)
        if self.as_released:
            metrics = load_metrics([metric_as_released(name) for name in metrics])
        heard = Listening(whole) if isinstance(whole, Sounds | Mixed) else None
        fabric = self.launch()
        move_to(fabric, chosen.explainers.values(), judge)
        writable_folder(self.out)  # nothing is written before all that was asked for is known to exist
        for name, log in chosen.logs.items() if fabric.is_global_zero else ():
            add_training(self.out, name, log)
        summary = compare(
            chosen.explainers,
            metrics,
            Subset(dataset, transform=base.view.transform()),
            rules=rules,
            batch_size=self.batch_size,
            out=self.out,
            about={
                "data": f"{self.data_name()}, {self.split}",
                "classifier": self.classifier or named(self.explainer[0])[1],
                "command": typed_command(),
                "version": __version__,
                **({} if heard is None else {"heard": str(heard.sounds.hearing), "mixed with": self.mix}),
            },
            listening=heard,
            workers=self.workers,
            progress=progress_bar("measuring") if fabric.is_global_zero else iter,
            fabric=fabric,
        )
        if fabric.is_global_zero:
            say(f"report: {self.out / 'index.html'}")
            print_table(summary, tuple(metrics))
