"""Files appear whole or not at all, one process at a time in a folder; a JSON file that does not fit is named with
its first wrong field. What a killed process has left is cleaned up.
"""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from salmask.files import (
    Maybe,
    Several,
    Within,
    Word,
    check_shape,
    in_use,
    read_json,
    replace_file,
    writable_folder,
)


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


# Shapes of JSON files

SHAPE = {
    "size": Within(8, 64),
    "share?": Within(0, 1, whole=False),
    "fit": Word("crop", "pad"),
    "of?": Several(str, 1, 2),
}
GOOD = {"size": 64, "share": 0.5, "fit": "pad", "of": ["a"]}


def test_a_value_of_the_shape_passes() -> None:
    check_shape("file", GOOD, SHAPE, remedy="write it again")
    check_shape("file", {"size": 8, "fit": "crop"}, SHAPE, remedy="write it again")
    check_shape("file", None, Maybe(SHAPE), remedy="write it again")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("size", 64.5, "size: expected a whole number, 8 to 64, got 64.5"),
        ("size", 10**9, "8 to 64, got 1000000000"),
        ("size", True, "got True"),
        ("size", "64", "got '64'"),
        ("share", float("nan"), "share: expected a number, 0 to 1, got nan"),
        ("share", 2, "0 to 1, got 2"),
        ("fit", ["crop"], r"fit: expected 'crop' or 'pad', got \['crop'\]"),
        ("of", [], "of: expected a list of 1 to 2, got 0"),
        ("of", ["a", 1], r"of\[1\]: expected a text, got 1"),
        ("of", None, "of: expected a list, got None"),
    ],
)
def test_the_field_that_does_not_fit_is_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^file, .*{expected}.*: write it again$"):
        check_shape("file", {**GOOD, field: value}, SHAPE, remedy="write it again")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '{"size": 8', "9" * 5000])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.json: expected a JSON file[^\n]*write it again$"):
        read_json(tmp_path / "a.json", SHAPE, remedy="write it again")


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="at most 67108864 bytes"):
        read_json(tmp_path / "a.json", SHAPE, remedy="write it again")


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        replace_file(tmp_path / "a.txt", write)
    assert not list(tmp_path.iterdir())
