"""What becomes of a study's jobs when it is interrupted."""

import subprocess
import time
from pathlib import Path

import pytest

from salmask.study import Local
from salmask.study import engine as engines
from salmask.study import work as jobs
from salmask.study.engine import Task


def test_an_interrupted_study_stops_what_runs_and_begins_nothing_more(tmp_path: Path, monkeypatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    own = subprocess.Popen

    def instead(call: list[str], **options: object) -> subprocess.Popen[bytes]:
        begun.append(own(["sleep", "0" if call[3].endswith("first") else "60"], **options))
        return begun[-1]

    monkeypatch.setattr(engines.subprocess, "Popen", instead)
    monkeypatch.setattr(engines, "_GRACE", 0.2)
    tasks = [Task(tmp_path / name, "val", name) for name in ("first", "second", "third", "fourth")]
    for task in tasks:
        task.folder.mkdir()

    def done(task: Task, seconds: float, error: str | None) -> None:
        while len(begun) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        Local(workers=1).run(tasks, done)
    assert time.perf_counter() - start < 20
    assert len(begun) == 2 and begun[1].wait(10) < 0


def test_a_job_that_the_interruption_has_reached_may_keep_its_last_step(tmp_path: Path, monkeypatch) -> None:
    own, kept = subprocess.Popen, tmp_path / "kept"
    tasks = [Task(tmp_path / name, "val", name) for name in ("first", "second")]
    for task in tasks:
        task.folder.mkdir()

    def instead(call: list[str], **options: object) -> subprocess.Popen[bytes]:
        line = "exit 0" if call[3].endswith("first") else f"touch {tmp_path}/begun; sleep 0.5; touch {kept}"
        return own(["sh", "-c", line], **options)

    def done(task: Task, seconds: float, error: str | None) -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(engines.subprocess, "Popen", instead)
    with pytest.raises(KeyboardInterrupt):
        Local(workers=1).run(tasks, done)
    assert kept.exists()


def test_an_interrupted_job_is_no_failed_one(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    def wrong(*arguments: object) -> None:
        raise ValueError("wrong")

    monkeypatch.setattr(jobs, "_work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.work(tmp_path, "val")
    assert not (tmp_path / "failed.txt").exists()
    monkeypatch.setattr(jobs, "_work", wrong)
    with pytest.raises(ValueError, match="wrong"):
        jobs.work(tmp_path, "val")
    assert "wrong" in (tmp_path / "failed.txt").read_text()
