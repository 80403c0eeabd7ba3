"""What becomes of a study's jobs when it is interrupted."""

import subprocess
import time
from pathlib import Path

import pytest

from salmask.study import Local
from salmask.study import engine as engines
from salmask.study.engine import Task


def test_an_interrupted_study_stops_what_runs_and_begins_nothing_more(tmp_path: Path, monkeypatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    own = subprocess.Popen

    def instead(call: list[str], **options: object) -> subprocess.Popen[bytes]:
        begun.append(own(["sleep", "0" if call[3].endswith("first") else "60"], **options))
        return begun[-1]

    monkeypatch.setattr(engines.subprocess, "Popen", instead)
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
