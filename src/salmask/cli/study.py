"""`salmask study`: which ingredient of masking matters."""

import importlib.util
import shutil
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from salmask import __version__
from salmask.cli.console import progress_bar, say, typed_command
from salmask.training.settings import Precision

__all__ = ["StudyCommand"]


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Run a study of the paper, or one of your own: train what is missing, measure on val, report."""

    name: tyro.conf.Positional[str]
    """table1, objectives, classifier, layers, masks, infilling, regularisers, few_shot, few_classes, sanity, all, or a
    .py file with a function study(scale)."""
    out: Path
    """Folder for the study's rows and report; `all` makes one folder a study in it."""
    data: str | None = None
    """Folder with train, val and their box tables, an ILSVRC tree, or pets:DIR; built-in pictures where not given."""
    classifier: str | None = None
    """SPEC of the explained classifier; trained on the spot for built-in pictures."""
    jobs: Path = Path("runs/study")
    """Folder of all trained maskers; studies share them, and nothing is trained twice."""
    image_size: int | None = None
    """Side of the square that the classifier sees; its own where not given."""
    interpolation: str | None = None
    """bilinear or bicubic; as the classifier was trained where not given."""
    images: int | None = None
    """Training images shown to a masker (11,000; 3,000 built-in ones)."""
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

    def __call__(self) -> None:
        """Run the command."""
        from salmask.study import STUDIES, run_study
        from salmask.study.studies import few_classes, infilling

        scale = self._scale()
        table = dict(STUDIES)
        if self.inpainter is not None:
            if not self.inpainter.is_file():
                raise ValueError(f"no inpainter at {self.inpainter}: make one with `salmask inpainter`")
            table["infilling"] = partial(infilling, inpainter=str(self.inpainter))
        if self.name.endswith(".py"):
            asked = {Path(self.name).stem: _own(Path(self.name))}
        elif self.name == "all":
            asked = table
        elif self.name in table:
            asked = {self.name: table[self.name]}
        else:
            raise ValueError(f"no study {self.name!r}: expected {', '.join(table)}, all, or a .py file")
        place = self._place()
        if asked.get("few_classes") is few_classes:
            asked["few_classes"] = partial(few_classes, total=place.classes())
        failed: dict[str, str] = {}
        for name, study in asked.items():
            out = self.out / name if len(asked) > 1 else self.out
            outcome = run_study(
                study(scale),
                place,
                scale,
                out=out,
                jobs=self.jobs,
                engine=self._engine(),
                say=say,
                about={
                    "data": "built-in pictures" if self.data is None else Path(self.data).name,
                    "classifier": self.classifier or "trained on built-in pictures",
                    "command": typed_command(),
                    "version": __version__,
                },
            )
            failed |= outcome.failed
            say(f"report: {out / 'index.html'}; table: {out / 'study.md'}")
        if failed:
            name, reason = next(iter(failed.items()))
            raise ValueError(f"{len(failed)} jobs failed, first {name}: {reason}; the same command tries them again")

    def _scale(self) -> Any:
        from salmask.study import Scale

        scale = Scale()
        if self.data is None:
            scale = Scale(images=3000, final=2.0, batch_size=50, seeds=1, measured=300, layers=(1, 2, 3, 4))
        shared = {one.name for one in fields(Scale)} & {one.name for one in fields(self)}
        given = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return replace(scale, **given)

    def _place(self) -> Any:
        from salmask.data import absolute
        from salmask.study import Place

        if self.data is not None:
            if self.classifier is None:
                raise ValueError("a study of your own data needs --classifier: train one with `salmask classifier`")
            return Place(
                data=absolute(self.data),
                classifier=self.classifier,
                image_size=self.image_size,
                interpolation=self.interpolation,
            )
        if self.classifier is not None:
            raise ValueError("--classifier goes with --data: built-in pictures have a classifier of their own")
        from salmask.cli.builtin import builtin_classifier

        return Place(data=None, classifier=builtin_classifier(self.jobs / "builtin.safetensors", progress=progress_bar))

    def _engine(self) -> Any:
        from salmask.study import Local, Slurm

        if self.slurm is None:
            return Local(workers=self.workers, threads=self.threads, devices=self.devices)
        if shutil.which("sbatch") is None:
            raise ValueError("--slurm needs Slurm's sbatch on this machine; leave it out to use local processes")
        options = tuple(tuple(part.split("=", 1)) for part in self.slurm.split(",") if "=" in part)
        return Slurm(self.jobs / "slurm", at_once=self.workers, options=options)  # type: ignore[arg-type]


def _own(path: Path) -> Any:
    """Return the function `study` of a user's file."""
    if not path.is_file():
        raise ValueError(f"no file {path}: expected Python with a function study(scale)")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if not callable(getattr(module, "study", None)):
        raise ValueError(f"{path} has no function study(scale) that returns a salmask.study.Study")
    return module.study
