"""The main job on real photographs: maskers at published, tuned and automatic area weights, held against rivals.

    python examples/real_images.py DATA --classifier SPEC --out results/NAME [--seeds 3] [--images 3840]

DATA: a folder with train/, val/ and both box tables. Every step is a folder under --runs and is never done twice,
so the script can be stopped and started again. Steps:

1. Ten training images a class are held out. Candidates of the area weights are trained on the rest and compared
   on the boxes of the held-out images; the boxes of `val` are never looked at.
2. FIX and CA maskers are trained on the rest: published, tuned and `auto` weights, and FIX on ten images a class.
3. Everything is measured once on `val`, beside Grad-CAM and the controls.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from PIL import Image, ImageDraw

from salmask.console import progress_bar
from salmask.data import ImageFolder, Labelled, cached, split_off, subset, training_batches
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.jobs import compare, spread, train_run
from salmask.measure import Rules
from salmask.metrics import METRICS
from salmask.report import add_training, table
from salmask.specs import Loaded, load_classifier, load_recipe, load_run
from salmask.train import Settings

CONTROLS = ("full", "center", "gradcam", "ground_truth")
METRICS_SHOWN = ("le", "om", "f1", "f1_mean", "sm", "pxap:boxes", "mask_mean", "mask_binarized")


Weights = tuple[float, float]
FIX, CA = (1.0, 10.0), (1.0, 15.0)  # the paper's area weights (in, out)


@dataclass(frozen=True)
class Job:
    """One masker to train: a recipe, area weights (in, out) and a number of images a class."""

    recipe: str
    areas: Weights | None = None
    per_class: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        weights = "" if self.areas is None else f"_{self.areas[0]:g}_{self.areas[1]:g}"
        few = "" if self.per_class is None else f"_{self.per_class}a"
        return f"{self.recipe}{weights}{few}_s{self.seed}"


@dataclass(frozen=True)
class Study:
    """Measure maskers on real photographs."""

    data: tyro.conf.Positional[Path]
    """Folder with train, val and their box tables."""
    classifier: str
    """SPEC of the explained classifier."""
    out: Path
    """Folder for the results."""
    runs: Path = Path("runs")
    """Folder for the trained maskers."""
    image_size: int | None = None
    """Side of the square that the classifier sees."""
    interpolation: str | None = None
    """bilinear or bicubic."""
    seeds: int = 3
    """Trainings of every FIX masker."""
    ca_seeds: int = 1
    """Trainings of every CA masker."""
    images: int = 3840
    """Training images shown to each masker."""
    batch_size: int = 24
    """Images a step."""
    lr: float = 3e-3
    """Learning rate of the maskers."""
    published_seeds: int = 3
    """Trainings of the FIX masker at the published weights."""
    few_seeds: int = 1
    """Trainings of the few-shot masker."""
    fix_grid: tuple[Weights, ...] = (FIX, (0.3, 3.0))
    """Candidates of the FIX area weights (in, out)."""
    ca_grid: tuple[Weights, ...] = (CA, (0.3, 3.0))
    """Candidates of the CA area weights."""
    per_class: int = 10
    """Images a class of the few-shot masker."""
    measured: int | None = None
    """Measure on so many val images, spread evenly; on all of them where not given."""

    def load(self) -> Loaded:
        return load_classifier(self.classifier, image_size=self.image_size, interpolation=self.interpolation)


def main(study: Study) -> None:
    loaded = study.load()
    folder = ImageFolder(study.data, "train", transform=None)
    rest, held_out = split_off(folder, per_class=10, seed=0)
    rest = cached(rest)
    say(f"{len(rest)} images to train on, {len(held_out)} held out for tuning")
    fix = tune(study, "fix", study.fix_grid, rest, held_out)
    ca = tune(study, "ca", study.ca_grid, rest, held_out)
    jobs = [Job(recipe, areas, None, seed) for seed in range(study.seeds) for recipe, areas in fixed(fix)]
    jobs += [Job(recipe, areas, None, seed) for seed in range(study.ca_seeds) for recipe, areas in alongside(ca)]
    jobs += [Job("auto", None, study.per_class, seed) for seed in range(study.few_seeds)]
    jobs += [Job("fix", FIX, None, seed) for seed in range(study.published_seeds)]
    jobs = list(dict.fromkeys(jobs))  # where the published weights won, they are the tuned ones
    for job in jobs:
        fit(study, job, rest)
    measure(study, jobs, loaded)


def fixed(tuned: Weights) -> list[tuple[str, Weights | None]]:
    return [("fix", tuned), ("auto", None)]


def alongside(tuned: Weights) -> list[tuple[str, Weights | None]]:
    return [("ca", CA), ("ca", tuned), ("auto_ca", None)]


def fit(study: Study, job: Job, rest: Labelled) -> Path:
    """Train one masker, unless it is there."""
    out = study.runs / job.name
    if (out / "run.json").is_file():
        return out
    loaded = study.load()
    dataset = rest if job.per_class is None else subset(rest, per_class=job.per_class, seed=job.seed)
    areas = {} if job.areas is None else {"area_in": job.areas[0], "area_out": job.areas[1]}
    settings = Settings(
        epochs=study.images / len(dataset),
        batch_size=study.batch_size,
        lr=study.lr,
        seed=job.seed,
        decay_at=(0.7, 0.9),
        save_every=1000,
    )
    start = time.perf_counter()
    train_run(
        dataset,
        replace(loaded, classes=tuple(rest.classes)),
        recipe=load_recipe(job.recipe, **areas),
        settings=settings,
        masker_options={"layers": (3, 4)},
        batches=lambda first: training_batches(
            dataset,
            batch_size=study.batch_size,
            seed=job.seed,
            start=first,
            augment=loaded.view.augmentation(),
        ),
        out=out,
        facts={"data": study.data.name, "per_class": job.per_class, "command": command()},
        resume=(out / "checkpoint.pt").exists(),
        progress=progress_bar(job.name),
    )
    seconds = time.perf_counter() - start
    (out / "seconds.json").write_text(json.dumps(seconds))
    say(f"{job.name}: {seconds:.0f} s")
    return out


def tune(study: Study, recipe: str, grid: tuple[Weights, ...], rest: Labelled, held_out: Labelled) -> Weights:
    """Return the area weights with the lowest LE on the held-out training images, one seed each."""
    path = study.out / f"tuning_{recipe}.json"
    if path.is_file():
        return tuple(json.loads(path.read_text())["best"])
    explainers = {}
    for areas in grid:
        masker, own = load_run(fit(study, Job(recipe, areas), rest))
        explainers[f"{areas[0]:g},{areas[1]:g}"] = (Learned(masker), own)
    loaded = study.load()
    summary = compare(
        explainers,
        {name: METRICS[name] for name in ("le", "mask_mean")},
        transformed(held_out, loaded),
        rules=Rules(target="label", scoring=loaded.classifier),
        out=study.runs / f"tuning_{recipe}",
        about={"data": "held-out training images", "command": command()},
        pictures=0,
    )
    scores = {name: row["le"]["mean"] for name, row in summary.items()}
    best = min(scores, key=lambda name: scores[name])
    study.out.mkdir(parents=True, exist_ok=True)
    content = {"le on held-out training images": scores, "best": [float(w) for w in best.split(",")]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    say(f"tuned {recipe}: {content}")
    return tuple(content["best"])


def measure(study: Study, jobs: list[Job], loaded: Loaded) -> None:
    """Measure all maskers and their rivals once on val."""
    explainers = {}
    for job in jobs:
        masker, own = load_run(study.runs / job.name)
        fixed_one = own.classifier.fingerprint() == loaded.classifier.fingerprint()
        explainers[job.name] = (Learned(masker), loaded if fixed_one else own)  # one object: its passes are shared
    explainers |= {name: (EXPLAINERS[name](), loaded) for name in CONTROLS}
    val = spread(ImageFolder(study.data, "val", transform=loaded.view.transform()), study.measured)
    for job in jobs:
        add_training(study.out, job.name, study.runs / job.name / "metrics.jsonl")
    compare(
        explainers,
        {name: METRICS[name] for name in METRICS_SHOWN if name in METRICS},
        val,
        rules=Rules(target="label", scoring=loaded.classifier),
        out=study.out,
        about={
            "data": f"{study.data.name}, {len(val)} images of val",
            "classifier": named(study.classifier),
            "command": command(),
        },
        batch_size=50,
        progress=progress_bar("measuring"),
    )
    seconds = {job.name: json.loads((study.runs / job.name / "seconds.json").read_text()) for job in jobs}
    (study.out / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n")
    over_seeds(study, jobs)
    contact_sheet(study, ["center", "gradcam", *(job.name for job in jobs if job.seed == 0)])


def over_seeds(study: Study, jobs: list[Job]) -> None:
    """Write seeds.md: every kind of masker as the mean over its trainings, beside its rivals."""
    summary = json.loads((study.out / "summary.json").read_text())
    scores = {name: {metric: one["mean"] for metric, one in row.items()} for name, row in summary.items()}
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(job.name.rpartition("_s")[0], []).append(job.name)
    groups |= {name: [name] for name in CONTROLS}
    columns = ("le", "om", "f1", "sm", "pxap:boxes", "mask_mean", "acc_whole", "acc_kept", "acc_removed")
    rows = table(scores, columns, groups)
    lines = [f"| masker | seeds | {' | '.join(columns)} |", f"|---|---:|{'---:|' * len(columns)}"]
    for group, row in rows.items():
        cells = []
        for column in columns:
            one = row[column]
            spread = f" ± {one.high - one.mean:.3f}" if one.n > 1 else ""
            cells.append(f"{one.mean:.3f}{spread}")
        lines.append(f"| {group} | {len(groups[group])} | {' | '.join(cells)} |")
    (study.out / "seeds.md").write_text("\n".join(lines) + "\n")


def contact_sheet(study: Study, names: list[str], side: int = 72) -> None:
    """Write strip.jpg: for 24 pictures the image and, by explainer, the map over it."""
    files = sorted(path.name for path in (study.out / "pictures" / names[0]).glob("*.png"))[:24]
    sheet = Image.new("RGB", (side * (1 + len(names)), side * len(files) + 16), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(["image", *names]):
        pen.text((column * side + 2, 2), name.removesuffix("_s0"), fill="black")
    for row, file in enumerate(files):
        for column, name in enumerate([names[0], *names]):
            panels = Image.open(study.out / "pictures" / name / file)
            width = panels.width // 4  # image, map, kept, removed
            place = width if column else 0
            panel = panels.crop((place, 0, place + width, panels.height)).resize((side, side))
            sheet.paste(panel, (column * side, row * side + 16))
    sheet.save(study.out / "strip.jpg", quality=88)


class transformed:  # noqa: N801  (a view of a data set)
    """A data set seen through the classifier's transform."""

    def __init__(self, dataset: Labelled, loaded: Loaded) -> None:
        self.dataset, self.transform = dataset, loaded.view.transform()
        self.ids, self.targets, self.classes = dataset.ids, dataset.targets, dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self.transform(self.dataset[index])


def named(spec: str) -> str:
    """Return a SPEC without the folder of its file."""
    network, at, file = spec.partition("@")
    return network + at + Path(file).name


def command() -> str:
    return "python examples/real_images.py " + " ".join(Path(part).name for part in sys.argv[1:])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(tyro.cli(Study))
