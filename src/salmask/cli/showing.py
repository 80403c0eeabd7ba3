"""Commands that show and measure: explain, evaluate, score, sanity, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from salmask.cli.console import print_table, progress_bar, say, typed_command, version
from salmask.cli.options import Data, Normalize, Pictures, Sight

__all__ = ["Evaluate", "Explain", "Report", "Sanity", "Score"]


@dataclass(frozen=True, kw_only=True)
class Explain(Pictures):
    """Explain pictures: a PNG (picture, mask, kept, removed, probabilities) and the raw map (.npy) of each."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    explainer: str
    """Folder of a run, a released checkpoint (.chk), or a name such as gradcam or rise:masks=500."""
    out: Path
    """Folder for the pictures."""
    classifier: str | None = None
    """timm:NAME, timm:NAME@FILE or a run's folder, for explainers by name."""
    target: str | None = None
    """Class to explain, by name or index; the predicted one where not given."""
    normalize: Normalize | None = None
    """How maps outside [0, 1] are shown."""
    top: int = 3
    """How many class probabilities are shown."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.cli.explain_files import explain_files
        from salmask.specs import load_explainer
        from salmask.training.run import load_classifier

        loaded = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        name, method, own = load_explainer(self.explainer, loaded=loaded)
        written = explain_files(
            self.images,
            name,
            method,
            own.seen(**self.pictures()),
            out=self.out,
            target=self.target,
            normalize=self.normalize,
            top=self.top,
            skip_broken=self.skip_broken,
            progress=progress_bar("explaining"),
        )
        for path in written:
            say(str(path))


@dataclass(frozen=True, kw_only=True)
class Evaluate(Data):
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
    """The class that is explained and scored."""
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
        from salmask.data.streams import spread
        from salmask.evaluation.evaluate import compare
        from salmask.evaluation.explained import Rules
        from salmask.explain.controls import BASELINES
        from salmask.files import writable_folder
        from salmask.report import add_training
        from salmask.specs import load_explainer, load_metrics, named
        from salmask.training.released import metric_as_released
        from salmask.training.run import load_classifier
        from salmask.training.train import METRICS

        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        loaded, curves = {}, {}
        for spec in self.explainer:
            name, method, own = load_explainer(spec, loaded=base, seed=self.seed, bank=self.bank)
            if name in loaded:
                raise ValueError(f"two explainers are named {name}: give one another title, TITLE={spec}")
            loaded[name] = (method, own)
            base = base or own.seen(**self.pictures())
            if (lines := Path(named(spec)[1]) / METRICS).is_file():
                curves[name] = lines
        if base is None:
            raise ValueError("name at least one explainer: the folder of a run, or a name such as gradcam")
        given = {name.partition(":")[0] for name in loaded}
        for name in BASELINES if self.baselines else ():
            if name not in given:
                loaded[name] = load_explainer(name, loaded=base, seed=self.seed)[1:]
        judge = (
            load_classifier(self.scoring, **self.pictures()) if self.scoring else (base if self.classifier else None)
        )
        view = base.view
        dataset = self.read(self.split, transform=view.transform(), classes=base.classes)
        rules = Rules(
            target=self.target,
            normalize={} if self.normalize is None else self.normalize,
            scoring=judge.classifier if judge else None,
            seed=self.seed,
        )
        metrics = load_metrics(self.metric)
        if self.as_released:
            metrics = load_metrics([metric_as_released(name) for name in metrics])
        writable_folder(self.out)  # nothing is written before all that was asked for is known to exist
        for name, lines in curves.items():
            add_training(self.out, name, lines)
        summary = compare(
            loaded,
            metrics,
            spread(dataset, self.limit),
            rules=rules,
            batch_size=self.batch_size,
            out=self.out,
            about={
                "data": f"{self.data_name()}, {self.split}",
                "classifier": self.classifier or named(self.explainer[0])[1],
                "command": typed_command(),
                "version": version(),
            },
            progress=progress_bar("measuring"),
        )
        say(f"report: {self.out / 'index.html'}")
        print_table(summary, tuple(metrics))


@dataclass(frozen=True, kw_only=True)
class Score(Sight):
    """Score maps that any other tool made."""

    maps: tyro.conf.Positional[Path]
    """.npz with ids (N,) and maps (N, H, W), or maps.npy with ids.txt or ids.npy beside it."""
    boxes: Path | None = None
    """CSV with image,class,x0,y0,x1,y1, in pixels of the maps unless width,height are given; or a folder of XML files
    such as ILSVRC's."""
    masks: Path | None = None
    """Folder of pixel truth, one PNG an id: 0, 255 (object), 128 (ignored), or trimaps as of Oxford-IIIT Pet."""
    out: Path
    """Folder for rows.jsonl, summary.json and index.html."""
    labels: Path | None = None
    """CSV with image,label[,predicted] for scores that need the class, or whether the model was right."""
    gaze: Path | None = None
    """Folder of gaze maps, one .npy or .png an id, for scores of human attention."""
    target: Literal["label", "predicted"] = "label"
    """The class that the maps explain, a column of --labels."""
    metric: tuple[str, ...] | None = None
    """Names as in docs/metrics.md; all that the given truth allows where not given."""
    normalize: Normalize = "none"
    """How maps outside [0, 1] come into it."""
    classifier: str | None = None
    """SPEC, for scores that need one."""
    data: Path | None = None
    """Folder of the pictures, for scores that need them: an id is the path of a picture below it."""
    baselines: bool = True
    """Score trivial maps on the same pictures, too: full, empty, center, random."""
    only_scored: bool = False
    """Leave out boxes and labels of pictures that have no map, instead of stopping."""
    processes: int = 1
    """How many work side by side."""
    seed: int = 0
    """Of scores and baselines that draw."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.evaluation.score import Work, score, scoring_from
        from salmask.explain.controls import BASELINES
        from salmask.training.run import load_classifier

        if (self.classifier is None) != (self.data is None):
            raise ValueError("scores that show pictures to a classifier need both: --classifier and --data")
        if self.classifier is not None and self.labels is None:
            raise ValueError("which class is scored must be said: give --labels, a CSV with image,label")
        scoring = None
        if self.classifier is not None and self.data is not None:
            loaded = load_classifier(self.classifier, **self.pictures())
            scoring = scoring_from(loaded, self.data, target=self.target)
        about = {"command": typed_command(), "version": version()}
        about |= {"classifier": self.classifier} if self.classifier else {}
        summary = score(
            self.maps,
            self.boxes,
            out=self.out,
            masks_dir=self.masks,
            labels=self.labels,
            gaze=self.gaze,
            metrics=self.metric,
            normalize=self.normalize,
            scoring=scoring,
            baselines=tuple(BASELINES) if self.baselines else (),
            seed=self.seed,
            work=Work(self.processes, progress_bar("scoring"), self.only_scored, about),
        )
        say(f"report: {self.out / 'index.html'}")
        print_table(summary, tuple(dict.fromkeys(name for row in summary.values() for name in row))[:8])


@dataclass(frozen=True, kw_only=True)
class Sanity(Data):
    """Do the maps change when the weights do? Randomise layer after layer: rows, a curve, picture strips."""

    explainer: str
    """Folder of a run, or a name such as gradcam."""
    out: Path
    """Folder for sanity.csv, curve.png and the strips."""
    split: str = "val"
    """Which part of the data."""
    classifier: str | None = None
    """SPEC of the classifier, for an explainer by name."""
    limit: int = 16
    """How many pictures, spread over the split."""
    masker: bool = False
    """Randomise the learned masker's own weights instead of the classifier's."""
    as_released: bool = False
    """Draw new weights as the paper's released code does, not as the layers themselves do."""
    seed: int = 0
    """Of the weights that are drawn."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.data.streams import spread
        from salmask.evaluation.checks import check_sanity
        from salmask.specs import load_explainer
        from salmask.training.run import load_classifier

        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        _, explainer, loaded = load_explainer(self.explainer, loaded=base, seed=self.seed, bank=self.bank)
        dataset = self.read(self.split, transform=loaded.view.transform())
        written = check_sanity(
            explainer,
            loaded,
            spread(dataset, self.limit),
            out=self.out,
            masker=self.masker,
            released=self.as_released,
            seed=self.seed,
            progress=progress_bar("randomising"),
        )
        for path in written:
            say(str(path))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rebuild tables, pictures and index.html of an evaluation from its rows alone."""

    folder: tyro.conf.Positional[Path]
    """The --out of evaluate or score."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.report import write_report

        write_report(self.folder)
        say(f"report: {self.folder / 'index.html'}")
