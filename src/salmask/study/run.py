"""From a study to its folder: tune, train and measure what is not there yet, gather the rows, write the report."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from salmask.files import JSON, Facts, replace_file, writable_folder
from salmask.report.page import write_report
from salmask.report.training import add_training
from salmask.rows.read import COUNTS, ROWS, file_name, read_lines, read_meta, write_json
from salmask.study.checking import Checked, gather
from salmask.study.engine import Done, Task
from salmask.study.settings import Row, Scale, Study
from salmask.study.work import Source, StudyJob, finished, results
from salmask.training.variant import Variant

__all__ = ["Engine", "StudyResult", "run_study"]

Say = Callable[[str], None]
Meter = Callable[[int, int, float | None], None]
_READ = 0.1  # cost of reading a masker that is trained, beside that of training one


@runtime_checkable
class Engine(Protocol):
    """Whatever carries out tasks."""

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Carry out all tasks."""
        ...


@dataclass(frozen=True)
class StudyResult:
    """The end of a study: its folder, the jobs that failed with their reasons, the rows that are complete."""

    folder: Path
    failed: dict[str, str]
    complete: tuple[str, ...]


def run_study(
    study: Study,
    source: Source,
    scale: Scale,
    *,
    out: Path,
    jobs: Path,
    engine: Engine,
    say: Say,
    meter: Meter = lambda count, total, left: None,
    about: Facts | None = None,
) -> StudyResult:
    """Do what is missing of a study and write its folder; call it again to retry what failed.

    jobs: folder of all jobs; studies that share it share their maskers. out: folder of this study's rows and report.
    meter: is called with jobs done, all jobs, seconds left (None before the first is done).
    Rows whose jobs failed are left out of the tables and named. Errors: ValueError where nothing could be measured.
    """
    writable_folder(out)
    writable_folder(jobs)
    fingerprint = source.fingerprint()
    desk = _Desk(source, scale, jobs, fingerprint, engine, say, meter)
    chosen, tuning, failed = desk.tune(study)
    members = {row.name: desk.members(row, chosen) for row in study.rows if not row.candidates or row.name in chosen}
    failed |= desk.do(_flat(members), later=_checks(study, members))
    complete = [
        row
        for row in study.rows
        if row.name in members and all(_done(task, scale) for task in members[row.name].values())
    ]
    if not complete:
        raise ValueError(
            f"study {study.name}: no row could be measured; first reason: {next(iter(failed.values()), '?')}"
        )
    checks = _checks(study, {row.name: members[row.name] for row in complete})
    failed |= desk.do(checks)
    _gather(study, complete, members, scale, out, {**(about or {}), "fingerprint": fingerprint})
    gather(_checked(checks, scale), {row.name: list(members[row.name]) for row in complete}, study.pairs, out)
    write_json(out / "study.json", _description(study, complete, members, chosen, tuning, scale, failed))
    write_report(out, title=study.title)
    return StudyResult(out, failed, tuple(row.name for row in complete))


@dataclass
class _Desk:
    """Turns rows into tasks and hands them out, each content once; keeps count of the whole study."""

    source: Source
    scale: Scale
    jobs: Path
    fingerprint: JSON
    engine: Engine
    say: Say
    meter: Meter
    job_of: dict[Path, StudyJob] = field(default_factory=dict)
    count: int = 0
    spent: float = 0.0
    start: float = field(default_factory=lambda: time.perf_counter())

    def task(self, on: str, name: str, *, variant: Variant | None, explainer: str | None, seed: int) -> Task:
        job = StudyJob(source=self.source, scale=self.scale, seed=seed, variant=variant, explainer=explainer)
        folder = job.folder(self.jobs, self.fingerprint)
        self.job_of[folder] = job
        if variant is None:
            return Task(folder, on, name, 0.05)
        trained = (folder / "run.json").is_file()
        return Task(folder, on, name, _READ if trained else variant.images, variant.read)

    def members(self, row: Row, chosen: Mapping[str, Variant]) -> dict[str, Task]:
        """Return the tasks of a row by the explainers' names in the tables."""
        variant = chosen.get(row.name, row.variant)
        seeds = 1 if variant is None else row.seeds
        names = [row.name if seeds == 1 else f"{row.name} #{seed}" for seed in range(seeds)]
        return {
            name: self.task("val", name, variant=variant, explainer=row.explainer, seed=seed)
            for seed, name in enumerate(names)
        }

    def tune(self, study: Study) -> tuple[dict[str, Variant], dict[str, list[JSON]], dict[str, str]]:
        """Return the best candidate of every row that has some, what was compared, and what failed.

        Candidates are compared at the study's own length, with seed 0, also where the row trains for longer.
        One candidate alone is taken as it is. A row with a candidate that failed has no best one yet.
        """
        few, rows = self.scale.candidates, study.rows
        chosen = {row.name: row.candidates[0] for row in rows if row.candidates and len(row.candidates[:few]) == 1}
        tried = {
            row.name: [
                (
                    one,
                    self.task(
                        "tuning", f"{row.name}, tuning", variant=replace(one, images=1.0), explainer=None, seed=0
                    ),
                )
                for one in row.candidates[:few]
            ]
            for row in rows
            if row.candidates and row.name not in chosen
        }
        first = {row.name: row.candidates[0] for row in rows if row.candidates}
        expected = {row.name: self.members(row, first) for row in rows}
        later = [*_flat(expected), *_checks(study, expected)]
        failed = self.do([task for candidates in tried.values() for _, task in candidates], later=later)
        compared = {}
        for name, candidates in tried.items():
            scores = [self._le(task) for _, task in candidates]
            variants = [variant for variant, _ in candidates]
            compared[name] = [
                {"variant": variant.settings(), "le": le} for variant, le in zip(variants, scores, strict=True)
            ]
            measured = [score for score in scores if score is not None]
            if len(measured) == len(scores):
                chosen[name] = variants[scores.index(min(measured))]
        return chosen, compared, failed

    def do(self, tasks: Sequence[Task], later: Sequence[Task] = ()) -> dict[str, str]:
        """Carry out what is missing, and say how far the study is; return name -> reason of what failed.

        later: tasks that will be asked for after these, as far as is known.
        """
        missing = self._missing(tasks)
        costs = self._costs(missing | self._missing(later))
        total, whole = self.spent + sum(costs.values()), self.count + len(costs)
        failed: dict[str, str] = {}
        if costs:
            self.meter(self.count, whole, None)

        def done(task: Task, seconds: float, error: str | None) -> None:
            self.spent, self.count = self.spent + costs[_results(task, self.scale)], self.count + 1
            left = (time.perf_counter() - self.start) * (total - self.spent) / max(self.spent, 1e-9)
            end = f"failed: {error}" if error else f"{seconds:.0f} s"
            name = task.name if task.on in ("tuning", "val") else f"{task.name}, {task.on}"
            self.say(f"[{self.count}/{whole}, {left / 60:.0f} min left] {name} ({task.folder.name}): {end}")
            self.meter(self.count, whole, left)
            if error:
                failed[name] = error

        for task in missing.values():
            self.job_of[task.folder].write(task.folder, self.fingerprint)
        if missing:
            self.engine.run(_apart(missing.values()), done)
        return failed

    def _missing(self, tasks: Sequence[Task]) -> dict[Path, Task]:
        return {_results(task, self.scale): task for task in tasks if not _done(task, self.scale)}

    def _costs(self, missing: Mapping[Path, Task]) -> dict[Path, float]:
        """Return what each task costs: the first one in a folder trains the masker, the others read it."""
        costs, trained = {}, set()
        for path, task in missing.items():
            costs[path] = min(task.cost, _READ) if task.folder in trained else task.cost
            trained.add(task.folder)
        return costs

    def _le(self, task: Task) -> float | None:
        path = _results(task, self.scale) / "summary.json"
        if not path.is_file():
            return None
        (row,) = json.loads(path.read_text()).values()
        return float(row[self.scale.metric("le")]["mean"])


def _flat(members: Mapping[str, Mapping[str, Task]]) -> list[Task]:
    return [task for tasks in members.values() for task in tasks.values()]


def _apart(tasks: Iterable[Task]) -> list[Task]:
    """Put tasks on a folder that an earlier one works in last: they would wait for it, and a worker with them."""
    firsts = {task.folder: task for task in reversed([*tasks])}
    return [*reversed(firsts.values()), *(task for task in tasks if firsts[task.folder] is not task)]


def _checks(study: Study, members: Mapping[str, Mapping[str, Task]]) -> list[Task]:
    """Return the tasks that look at the maps of rows: randomised for the first training, compared for two of each."""
    tasks = []
    for row, row_tasks in members.items():
        trainings = list(row_tasks.items())
        if row in study.checks:
            name, task = trainings[0]
            tasks.append(replace(task, on="checks", name=name, cost=0.2, pictures=study.checked))
        if row in study.checks or any(row in pair for pair in study.pairs):
            for name, task in trainings[:2]:
                tasks.append(replace(task, on="maps", name=name, cost=0.05, pictures=study.checked))
    return tasks


def _checked(tasks: Sequence[Task], scale: Scale) -> dict[str, Checked]:
    """Return the files of the maps and checks of each explainer."""
    folders = {(task.name, task.on): _results(task, scale) for task in tasks}
    names = dict.fromkeys(task.name for task in tasks)
    return {name: Checked(folders[name, "maps"], folders.get((name, "checks"))) for name in names}


def _results(task: Task, scale: Scale) -> Path:
    count = scale.measured if task.pictures is None else task.pictures
    return results(task.folder, task.on, count, task.read.word())


def _done(task: Task, scale: Scale) -> bool:
    count = scale.measured if task.pictures is None else task.pictures
    return finished(task.folder, task.on, count, task.read.word()).is_file()


def _gather(
    study: Study,
    rows: Sequence[Row],
    members: Mapping[str, Mapping[str, Task]],
    scale: Scale,
    out: Path,
    about: Facts,
) -> None:
    """Bring the jobs' rows, counts, pictures and training curves together, under the names of the tables."""
    for name in (COUNTS, "pictures", "training"):
        shutil.rmtree(out / name, ignore_errors=True)
    explainers: JSON = {}
    meta: JSON = {}

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                for name, task in members[row.name].items():
                    source = _results(task, scale)
                    for _, _, line in read_lines(source / ROWS):
                        line["explainer"] = name
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")

    replace_file(out / ROWS, write)
    for row in rows:
        for seed, (name, task) in enumerate(members[row.name].items()):
            source = _results(task, scale)
            meta = read_meta(source)
            (settings,) = meta["explainers"].values()
            explainers[name] = settings | {"job": task.folder.name}
            _copy_counts(source, out, name)
            if seed == 0:
                _copy_pictures(source, out, name)
            if (task.folder / "metrics.jsonl").is_file():
                add_training(out, name, task.folder / "metrics.jsonl")
    write_json(out / "meta.json", {**meta, **about, "explainers": explainers})


def _copy_counts(source: Path, out: Path, name: str) -> None:
    """Copy set-level scores without their counts by image, which the report does not read."""
    for path in sorted((source / COUNTS).glob("*/*.npz")):
        with np.load(path, allow_pickle=False) as file:
            kept = {key: file[key] for key in file.files if key not in ("counts", "explainer")}
        target = out / COUNTS / file_name(name) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(target, explainer=np.array(name), **kept)


def _copy_pictures(source: Path, out: Path, name: str) -> None:
    for folder in (source / "pictures").glob("*"):
        shutil.copytree(folder, out / "pictures" / file_name(name), dirs_exist_ok=True)


def _description(
    study: Study,
    rows: Sequence[Row],
    members: Mapping[str, Mapping[str, Task]],
    chosen: Mapping[str, Variant],
    tuning: Facts,
    scale: Scale,
    failed: Mapping[str, str],
) -> JSON:
    """Return the description of a study that the report reads, as JSON has it."""
    names = {row.name for row in rows}
    described = []
    for row in rows:
        variant = chosen.get(row.name, row.variant)
        described.append(
            {
                "name": row.name,
                "members": list(members[row.name]),
                "variant": None if variant is None else variant.settings(),
                "place": row.place,
                "line": row.line,
            }
        )
    return {
        "name": study.name,
        "title": study.title,
        "scale": scale.settings(),
        "rows": described,
        "axis": None if study.axis is None else asdict(study.axis),
        "claims": [
            {**asdict(one), "metric": scale.metric(one.metric)}
            for one in study.claims
            if {one.row, one.against} <= names
        ],
        "tuning": dict(tuning),
        "failed": dict(failed),
    }
