"""Files appear whole or not at all; what a killed process has left is cleaned up; one process at a time in a folder."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from salmask.files import in_use, replace_file, writable_folder


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".txt")
    replace_file(path, lambda at: at.write_text("old"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def fails(at: Path) -> None:
        at.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fails)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_is_cleaned_up_and_nothing_else(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from salmask.files import replace_file\n"
        "replace_file(Path(sys.argv[1]), lambda at: (at.write_text('half'), os._exit(9)))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-") and left.suffix == ".png"
    own = tmp_path / left.name.replace(left.name.split("-")[2], str(os.getpid()))  # of a process that is running
    own.write_text("at work")
    (tmp_path / "photo.png").write_text("a picture")
    (tmp_path / ".writing-elsewhere-1-x.png").write_text("of another machine")
    writable_folder(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [own.name, "photo.png", ".writing-elsewhere-1-x.png"]
    )


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from salmask.files import in_use\n"
        "with in_use(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use by another process"), in_use(tmp_path):
        pass
    other.kill()
    other.communicate()
    with in_use(tmp_path):
        pass
    with in_use(tmp_path):
        pass
