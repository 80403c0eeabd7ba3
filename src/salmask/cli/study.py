"""`salmask study`: which ingredient of masking matters."""

import math
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from salmask import __version__
from salmask.cli.connectivity import CONNECTIVITY, ConnectivityOptions, connect_checkpoints
from salmask.cli.console import Command, count_bar, progress_bar, say, typed_command
from salmask.cli.options import SightOptions, refuse_unused
from salmask.files import JSON, Facts
from salmask.training.settings import Precision

if TYPE_CHECKING:
    from salmask.study import Engine, Scale, Source

__all__ = ["StudyCommand"]


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Command, ConnectivityOptions, SightOptions):
    """Run a study of the paper, or one of your own: train what is missing, measure on val, report."""

    name: tyro.conf.Positional[str]
    """table1, objectives, classifier, layers, masks, infilling, regularisers, few_shot, few_classes, sanity, all, a .py
    file with a function study(scale), or connectivity, which is of several checkpoints."""
    out: Path
    """Folder for the study's rows and report; `all` makes one folder a study in it."""
    data: str | None = None
    """Folder with train, val and their box tables, an ILSVRC tree, or pets:DIR; built-in pictures where not given."""
    classifier: tuple[str, ...] = ()
    """SPEC of the explained classifier, of connectivity two or more; trained on the spot for built-in pictures."""
    jobs: Path = Path("runs/study")
    """Folder of all trained maskers; studies share them, and nothing is trained twice."""
    images: int | None = None
    """Training images shown to a masker (11,000; 3,000 built-in ones; of connectivity 9,600)."""
    final: float | None = None
    """How many times as many the last rows of table1 are shown (3; 2 on built-in pictures)."""
    seeds: int | None = None
    """Trainings of headline rows (3; 1 on built-in pictures)."""
    other_seeds: int | None = None
    """Trainings of the other rows (1)."""
    candidates: int | None = None
    """Area weights tried a row that is tuned (2); 1 takes the first, and trains once."""
    batch_size: int | None = None
    """Pictures a step."""
    lr: float | None = None
    """Learning rate of the maskers."""
    scale_crop: float | None = None
    """Smallest share of the picture's area that a training crop keeps (0.5)."""
    scale_most: float | None = None
    """Largest share (1)."""
    train_size: int | None = None
    """Side of the pictures in training; the classifier's own where not given."""
    as_released: bool = False
    """Train and measure as the paper's released code does where it differs from its description; see
    docs/as-released.md."""
    precision: Precision | None = None
    """32-true, bf16-mixed or 16-mixed."""
    measured: int | None = None
    """Measure on so many val pictures, spread evenly; on all where not given."""
    inpainter: Path | None = None
    """Of `salmask inpainter`, for the study infilling."""
    workers: int = 1
    """Jobs at once on this machine."""
    devices: tuple[str, ...] = ()
    """CUDA devices that the jobs are dealt out to, such as 0 1."""
    slurm: str | None = None
    """Run on a Slurm cluster: settings of submitit as key=value,..., such as slurm_partition=gpu,timeout_min=120."""
    threads: int | None = None
    """Threads of each job; the cores shared out where not given."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.study import chosen_studies, run_study

        self._check_used()
        if self.name == CONNECTIVITY:
            return {"report": self._connect()}
        scale = self._scale()
        # before the source, which trains a classifier where none is given
        studies = chosen_studies(self.name, inpainter=self.inpainter, classes=lambda: self._source().classes())
        engine = self._engine()
        made = {name: study(scale) for name, study in studies.items()}
        source = self._source()
        failed: dict[str, str] = {}
        reports: dict[str, Path] = {}
        for name, study in made.items():
            out = self.out / name if len(made) > 1 else self.out
            with count_bar(name) as meter:
                result = run_study(
                    study,
                    source,
                    scale,
                    out=out,
                    jobs=self.jobs,
                    engine=engine,
                    say=say,
                    meter=meter,
                    about={
                        "data": "built-in pictures" if self.data is None else Path(self.data).name,
                        "classifier": ", ".join(self.classifier) or "trained on built-in pictures",
                        "command": typed_command(),
                        "version": __version__,
                    },
                )
            failed |= result.failed
            reports[name] = out / "index.html"
            say(f"report: {out / 'index.html'}; table: {out / 'study.md'}")
        if failed:
            name, reason = next(iter(failed.items()))
            raise ValueError(f"{len(failed)} jobs failed, first {name}: {reason}; the same command tries them again")
        return {"reports": reports}

    def _check_used(self) -> None:
        """Raise ValueError for options that the study that is asked for makes no use of."""
        own, seen = ([field.name for field in fields(kind)] for kind in (ConnectivityOptions, SightOptions))
        if self.name == CONNECTIVITY:
            shared = {
                *own,
                *seen,
                *("name", "out", "data", "classifier", "images", "measured", "batch_size", "quiet", "json"),
            }
            others = [field.name for field in fields(self) if field.name not in shared]
            refuse_unused(self, others, f"of no use to the study {CONNECTIVITY}, which trains no table of maskers")
            if self.data is not None:
                refuse_unused(self, ("cue", "networks"), "of built-in pictures, and --data is given")
        else:
            refuse_unused(self, own, f"of the study {CONNECTIVITY} alone, asked for is {self.name}")
        if self.data is None:
            refuse_unused(self, seen, "of pictures of --data; built-in ones are seen as their classifier was trained")
        if self.name not in ("infilling", "all"):
            refuse_unused(self, ("inpainter",), f"for the study infilling, asked for is {self.name}")
        if self.slurm is not None:
            refuse_unused(self, ("devices", "threads"), "of this machine, and --slurm runs the jobs on a cluster")

    def _connect(self) -> Path:
        from salmask.study.connect import Extent

        asked = {"measured": self.measured, "batch_size": self.batch_size}
        extent = {name: value for name, value in asked.items() if value is not None}
        if self.images is not None:
            extent["steps"] = math.ceil(self.images / (self.batch_size or Extent.batch_size))
        sight = self.pictures()
        return connect_checkpoints(self, self.classifier, data=self.data, out=self.out, sight=sight, extent=extent)

    def _scale(self) -> "Scale":
        from salmask.study.settings import SCALE_SETTINGS, Scale

        builtin: JSON = {"images": 3000, "final": 2.0, "batch_size": 50, "seeds": 1, "measured": 300}
        usual: JSON = builtin | {"layers": (1, 2, 3, 4)} if self.data is None else {}
        options = [one.name for one in fields(self) if one.name in SCALE_SETTINGS]
        return Scale.of(**usual | {name: value for name in options if (value := getattr(self, name)) is not None})

    def _source(self) -> "Source":
        from salmask.data import absolute
        from salmask.study import Source

        if self.data is not None:
            if not self.classifier:
                raise ValueError("a study of your own data needs --classifier: train one with `salmask classifier`")
            if len(self.classifier) > 1:
                raise ValueError(f"the study {self.name} is of one classifier, got {len(self.classifier)}: name one")
            return Source(
                data=absolute(self.data),
                classifier=self.classifier[0],
                image_size=self.image_size,
                seen=tuple((name, value) for name, value in self.pictures().items() if name != "image_size"),
            )
        if self.classifier:
            raise ValueError("--classifier goes with --data: built-in pictures have a classifier of their own")
        from salmask.cli.builtin import builtin_classifier

        return Source(
            data=None, classifier=builtin_classifier(self.jobs / "builtin.safetensors", progress=progress_bar)
        )

    def _engine(self) -> "Engine":
        from salmask.study import Local, Slurm

        if self.slurm is None:
            return Local(workers=self.workers, threads=self.threads, devices=self.devices)
        if shutil.which("sbatch") is None:
            raise ValueError("--slurm needs Slurm's sbatch on this machine; leave it out to use local processes")
        options = tuple(tuple(part.split("=", 1)) for part in self.slurm.split(",") if "=" in part)
        return Slurm(self.jobs / "slurm", at_once=self.workers, options=options)  # type: ignore[arg-type]
