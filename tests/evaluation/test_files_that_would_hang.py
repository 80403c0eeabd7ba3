"""Files of maps that would fill the memory, or never end, are refused by their headers."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from salmask.data import read_boxes
from salmask.evaluation.gaze import read_gaze
from salmask.evaluation.maps import open_maps
from salmask.rows.read import read_lines


def npy_header(path: Path, shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return path.read_bytes()


def test_a_map_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "maps.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        np.save(tmp_path / "ids.npy", np.array(["a"]))
        archive.write(tmp_path / "ids.npy", "ids.npy")
        archive.writestr("maps.npy", npy_header(tmp_path / "head.npy", (1, 30000, 30000)) + bytes(1000))
    with pytest.raises(ValueError, match=r"maps\.npz: expected maps of at most .* got 30000x30000"):
        open_maps(tmp_path / "maps.npz")


def test_ids_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "maps.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", npy_header(tmp_path / "head.npy", (10**9,), "<U4000"))
        archive.writestr("maps.npy", npy_header(tmp_path / "head.npy", (1, 4, 4)) + bytes(64))
    with pytest.raises(ValueError, match="expected ids as an array of strings"):
        open_maps(tmp_path / "maps.npz")


def test_a_gaze_map_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(npy_header(tmp_path / "head.npy", (30000, 30000), "|u1"))
        file.truncate(30000 * 30000 + 200)  # a hole, which takes no place on the disk
    (tmp_path / "head.npy").unlink()
    with pytest.raises(ValueError, match=r"a\.npy.*900000000 pixels"):
        read_gaze(tmp_path, ["a"], (8, 8))


@pytest.mark.parametrize("read", [open_maps, read_boxes, lambda path: list(read_lines(path))])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "file.csv")
    with pytest.raises(ValueError, match="no regular file"):
        read(tmp_path / "file.csv")
