"""The commands: what a user types becomes objects, and the jobs of the library run on them.

Every command ends with one clear line and a non-zero exit on bad input, and says where its results stand.
"""

import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

__all__ = ["main", "progress_bar"]

T = TypeVar("T")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Normalize = Literal["none", "minmax", "max", "rank"]


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """How pictures get from the disk to the classifier."""

    image_size: int | None = None
    """Side of the square that the classifier sees; its own where not given."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized; as the classifier was trained where not given."""
    fit: Literal["crop", "squash"] | None = None
    """crop (short side, then centre) or squash; as the classifier was trained, or crop, where not given."""
    skip_broken: bool = False
    """Leave out pictures that cannot be decoded, instead of stopping."""

    def pictures(self) -> dict[str, Any]:
        """Return what `load_classifier` is told of pictures."""
        return {"image_size": self.image_size, "interpolation": self.interpolation, "fit": self.fit}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Main job on built-in data: train a classifier and two maskers, explain, compare, report."""

    out: Path = Path("demo")
    """Folder for everything that is made; open index.html in it."""
    seed: int = 0
    """Of the data and of the trainings."""
    quick: bool = False
    """Tiny settings, to see that everything runs; the numbers mean nothing."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.demo import run_demo

        summary = run_demo(self.out, seed=self.seed, quick=self.quick, say=_say, progress=progress_bar)
        _say(f"report: {self.out / 'index.html'}")
        _table(summary, ("le", "f1", "mask_mean", "acc_kept", "acc_removed"))


@dataclass(frozen=True, kw_only=True)
class Classifier(_Pictures):
    """Train or fine-tune a classifier on a folder of pictures, for data that has none."""

    data: Path
    """Folder with train/<class>/* and, for its accuracy, val/<class>/*."""
    network: str
    """timm:NAME, or timm:NAME@FILE to go on from weights."""
    out: Path
    """.safetensors file for the weights."""
    pretrained: bool = False
    """Begin with timm's pretrained weights."""
    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 64
    """Pictures a step."""
    lr: float = 0.1
    """Top of the one-cycle learning rate."""
    precision: Precision = "32-true"
    """32-true, bf16-mixed or 16-mixed."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> None:
        """Run the command."""
        import torch

        from salmask.classifier import Classifier
        from salmask.data import ImageFolder
        from salmask.files import writable_folder
        from salmask.fit import FitSettings, accuracy, fit_classifier
        from salmask.specs import Loaded, View, load_classifier, save_classifier

        writable_folder(self.out.parent)
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out names a .safetensors file, came {self.out}")
        folders = ImageFolder(self.data, "train", transform=None, skip_broken=self.skip_broken)
        name = self.network.removeprefix("timm:")
        torch.manual_seed(self.seed)  # timm draws first weights from torch's global generator
        if "@" in name:
            loaded = load_classifier(self.network, **self.pictures())
            if loaded.classifier.num_classes != len(folders.classes):
                raise ValueError(
                    f"{name} tells {loaded.classifier.num_classes} classes apart, {self.data} has "
                    f"{len(folders.classes)}: go on from weights for these classes, or begin anew"
                )
        else:
            built = Classifier.from_timm(
                name, pretrained=self.pretrained, num_classes=len(folders.classes), image_size=self.image_size
            )
            loaded = Loaded(built, name, View(built.image_size, self.fit or "crop", self.interpolation or "bilinear"))
        loaded = replace(loaded, classes=tuple(folders.classes))
        settings = FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            seed=self.seed,
            workers=self.workers,
        )
        fit_classifier(
            loaded.classifier,
            folders,
            settings=settings,
            augment=loaded.view.augmentation(),
            progress=progress_bar("training"),
        )
        save_classifier(self.out, loaded)
        _say(f"classifier: timm:{loaded.network}@{self.out}")
        if (self.data / "val").is_dir():
            val = ImageFolder(
                self.data,
                "val",
                transform=loaded.view.transform(),
                classes=folders.classes,
                skip_broken=self.skip_broken,
            )
            _say(f"accuracy on val: {accuracy(loaded.classifier, val):.3f}")


@dataclass(frozen=True, kw_only=True)
class Train(_Pictures):
    """Train a masker beside a classifier."""

    data: Path
    """Folder with train/<class>/*."""
    classifier: str
    """timm:NAME, timm:NAME@FILE, or the folder of a run."""
    out: Path
    """Folder of the run: masker, classifier, metrics, checkpoint."""
    recipe: str = "auto"
    """auto, auto_ca, fix, ca, casm_f, casm_l, casm_fl, casm_l100, casm_l1000 or dabkowski_gal."""
    area_in: float | None = None
    """Weight of the area on the kept side, for fix and ca."""
    area_out: float | None = None
    """Weight of the area on the removed side, for fix, ca and casm."""
    layers: tuple[int, ...] = (3, 4)
    """Which of the classifier's maps the masker reads, by index."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """From the masker's grid to the picture."""
    per_class: int | None = None
    """Train on so many pictures a class, drawn with the seed."""
    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 72
    """Pictures a step."""
    lr: float = 1e-3
    """Learning rate of the masker."""
    classifier_lr: float = 1e-3
    """Learning rate of a classifier that is trained alongside."""
    precision: Precision = "32-true"
    """32-true, bf16-mixed or 16-mixed."""
    channels_last: bool = True
    """Lay pictures out by pixel, which most convolutions like."""
    workers: int = 0
    """Processes that read pictures."""
    save_every: int = 200
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint in --out."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.data import ImageFolder, subset, training_batches
        from salmask.jobs import train_run
        from salmask.specs import load_classifier, load_recipe
        from salmask.train import Settings

        chosen = load_recipe(self.recipe, area_in=self.area_in, area_out=self.area_out)
        loaded = load_classifier(self.classifier, **self.pictures())
        dataset: Any = ImageFolder(
            self.data, "train", transform=None, classes=loaded.classes, skip_broken=self.skip_broken
        )
        if self.per_class is not None:
            dataset = subset(dataset, per_class=self.per_class, seed=self.seed)
        settings = Settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            classifier_lr=self.classifier_lr,
            precision=self.precision,
            channels_last=self.channels_last,
            save_every=self.save_every,
            seed=self.seed,
        )
        train_run(
            dataset,
            replace(loaded, classes=loaded.classes or tuple(dataset.classes)),
            recipe=chosen,
            settings=settings,
            masker_options={"layers": self.layers, "upsample": self.upsample},
            batches=lambda start: training_batches(
                dataset,
                batch_size=self.batch_size,
                seed=self.seed,
                start=start,
                augment=loaded.view.augmentation(),
                workers=self.workers,
            ),
            out=self.out,
            resume=self.resume,
            facts={"data": str(self.data), "per_class": self.per_class, "command": _command(), "version": _version()},
            progress=progress_bar("training"),
        )
        _say(f"run: {self.out}")


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain pictures: a PNG (picture, mask, kept, removed, probabilities) and the raw map (.npy) of each."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    explainer: str
    """Folder of a run, or a name such as gradcam or rise:masks=500."""
    out: Path
    """Folder for the pictures."""
    classifier: str | None = None
    """timm:NAME, timm:NAME@FILE or a run's folder, for explainers by name."""
    target: str | None = None
    """Class to explain, by name or index; the predicted one where not given."""
    normalize: Normalize | None = None
    """How maps outside [0, 1] are shown."""
    image_size: int | None = None
    """Side of the square that the classifier sees; its own where not given."""
    top: int = 3
    """How many class probabilities are shown."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.jobs import explain_files
        from salmask.specs import load_classifier, load_explainer

        loaded = load_classifier(self.classifier, image_size=self.image_size) if self.classifier else None
        name, method, own = load_explainer(self.explainer, loaded=loaded)
        written = explain_files(
            self.images,
            name,
            method,
            own,
            out=self.out,
            target=self.target,
            normalize=self.normalize,
            top=self.top,
            progress=progress_bar("explaining"),
        )
        for path in written:
            _say(str(path))


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Pictures):
    """Measure explainers on a split: rows, a table with intervals, pictures, a page."""

    data: Path
    """Folder with <split>/<class>/* and, for localization, <split>_boxes.csv."""
    explainer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN|NAME ...")]
    """Folders of runs, or names such as gradcam, center, rise:masks=500."""
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
    batch_size: int = 32
    """Pictures at once."""
    limit: int | None = None
    """Measure only so many pictures, spread over the split."""
    seed: int = 0
    """Of scores and explainers that draw."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.data import ImageFolder
        from salmask.files import writable_folder
        from salmask.jobs import compare, spread
        from salmask.measure import Rules
        from salmask.report import add_training
        from salmask.specs import load_classifier, load_explainer, load_metrics
        from salmask.train import METRICS

        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        loaded = {}
        for spec in self.explainer:
            name, method, own = load_explainer(spec, loaded=base)
            if name in loaded:
                raise ValueError(f"two explainers are named {name}: give their runs' folders different names")
            loaded[name] = (method, own)
            base = base or own
            if (curves := Path(spec) / METRICS).is_file():
                add_training(writable_folder(self.out), name, curves)
        if base is None:
            raise ValueError("name at least one explainer: the folder of a run, or a name such as gradcam")
        judge = (
            load_classifier(self.scoring, **self.pictures()) if self.scoring else (base if self.classifier else None)
        )
        view = base.view
        dataset = ImageFolder(
            self.data, self.split, transform=view.transform(), classes=base.classes, skip_broken=self.skip_broken
        )
        rules = Rules(
            target=self.target,
            normalize={} if self.normalize is None else self.normalize,
            scoring=judge.classifier if judge else None,
            seed=self.seed,
        )
        summary = compare(
            loaded,
            load_metrics(self.metric),
            spread(dataset, self.limit),
            rules=rules,
            batch_size=self.batch_size,
            out=self.out,
            about={
                "data": f"{self.data.name}, {self.split}",
                "classifier": self.classifier or self.explainer[0],
                "command": _command(),
                "version": _version(),
            },
            progress=progress_bar("measuring"),
        )
        _say(f"report: {self.out / 'index.html'}")
        _table(summary, self.metric)


@dataclass(frozen=True, kw_only=True)
class Sanity(_Pictures):
    """Do the maps change when the weights do? Randomise layer after layer: rows, a curve, picture strips."""

    data: Path
    """Folder with <split>/<class>/*."""
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
        from salmask.data import ImageFolder
        from salmask.jobs import check_sanity, spread
        from salmask.specs import load_classifier, load_explainer

        base = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        _, explainer, loaded = load_explainer(self.explainer, loaded=base)
        dataset = ImageFolder(self.data, self.split, transform=loaded.view.transform(), skip_broken=self.skip_broken)
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
            _say(str(path))


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score maps that any other tool made."""

    maps: tyro.conf.Positional[Path]
    """.npz with ids (N,) and maps (N, H, W), or maps.npy with ids.txt or ids.npy beside it."""
    boxes: Path | None = None
    """CSV with image,class,x0,y0,x1,y1, in pixels of the maps unless width,height are given."""
    masks: Path | None = None
    """Folder of pixel truth, one PNG an id."""
    out: Path
    """Folder for rows.jsonl, summary.json and index.html."""
    labels: Path | None = None
    """CSV with image,label for scores that need the class."""
    metric: tuple[str, ...] | None = None
    """Names as in docs/metrics.md; all that the given truth allows where not given."""
    normalize: Normalize = "none"
    """How maps outside [0, 1] come into it."""
    classifier: str | None = None
    """SPEC, for scores that need one."""
    data: Path | None = None
    """Folder of the pictures, for scores that need them."""
    processes: int = 1
    """How many work side by side."""
    seed: int = 0
    """Of scores that draw."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.jobs import scoring_from
        from salmask.score import score
        from salmask.specs import load_classifier

        if (self.classifier is None) != (self.data is None):
            raise ValueError("scores that show pictures to a classifier need both: --classifier and --data")
        scoring = None
        if self.classifier is not None and self.data is not None:
            scoring = scoring_from(load_classifier(self.classifier), self.data)
        summary = score(
            self.maps,
            self.boxes,
            out=self.out,
            masks_dir=self.masks,
            labels=self.labels,
            metrics=self.metric,
            normalize=self.normalize,
            scoring=scoring,
            seed=self.seed,
            processes=self.processes,
            progress=progress_bar("scoring"),
        )
        _say(f"report: {self.out / 'index.html'}")
        _table(summary, tuple(dict.fromkeys(name for row in summary.values() for name in row))[:8])


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rebuild tables, pictures and index.html of an evaluation from its rows alone."""

    folder: tyro.conf.Positional[Path]
    """The --out of evaluate or score."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.report import write_report

        write_report(self.folder)
        _say(f"report: {self.folder / 'index.html'}")


_COMMANDS = (Demo, Classifier, Train, Explain, Evaluate, Score, Sanity, Report)
_ABOUT = "Saliency maps by masking: what a classifier's decision rests on."


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for bad input (one clear line), 130 when interrupted."""
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            {one.__name__.lower(): one for one in _COMMANDS}, args=arguments, prog="salmask", description=_ABOUT
        )
        command()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"salmask: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("salmask: interrupted; what was finished is kept\n")
        return 130
    return 0


def progress_bar(what: str) -> Callable[[Iterable[T]], Iterator[T]]:
    """Return what wraps an iterable in a progress bar with rate and time left; silent where nobody watches."""

    def wrap(items: Iterable[T]) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        total = len(items) if isinstance(items, Sized) else None
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=total, rate="")
            for item in items:
                yield item
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, rate=f"{speed:.2f}/s" if speed else "")

    return wrap


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _table(summary: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> None:
    """Print explainers against a few metrics."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in names if any(name in row for row in summary.values())]
    table = Table("explainer", *shown)
    for explainer, row in summary.items():
        table.add_row(explainer, *(f"{row[name]['mean']:.3f}" if name in row else "" for name in shown))
    Console(width=max(80, 24 + 14 * len(shown))).print(table)


def _command() -> str:
    return "salmask " + " ".join(shlex.quote(part) for part in sys.argv[1:])


def _version() -> str:
    try:
        return importlib.metadata.version("salmask")
    except importlib.metadata.PackageNotFoundError:
        return "unreleased"


if __name__ == "__main__":
    sys.exit(main())
