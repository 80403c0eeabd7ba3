"""A folder of pictures without labels."""

import numpy as np
import pytest
from PIL import Image

from salmask.data.flat import UNLABELLED, FlatFolder, is_flat


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(np.full((9, 12, 3), ord(name[0]), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_a_flat_folder_has_pictures_in_order_and_no_labels(folder) -> None:
    data = FlatFolder(folder)
    assert (data.ids, data.targets, data.classes) == (["a.png", "b.png", "c.png"], [UNLABELLED] * 3, [])
    assert data[1].image.shape == (3, 9, 12) and int(data[1].image[0, 0, 0]) == ord("b")
    assert data[1].target == UNLABELLED and len(data[1].boxes) == 0


def test_broken_pictures_are_left_out_where_asked(folder) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 of 3 pictures cannot be read and are left out: b\.png"):
        data = FlatFolder(folder, skip_broken=True)
    assert data.ids == ["a.png", "c.png"] and len(data.targets) == len(data) == 2


def test_a_flat_folder_is_told_from_splits(folder) -> None:
    assert is_flat(folder)
    assert not is_flat(folder / "nothing")
    (folder / "train").mkdir()
    assert not is_flat(folder) and not is_flat(folder / "train")
