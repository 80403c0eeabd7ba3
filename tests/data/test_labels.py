"""Tables of several labels a picture: each picture with each of its labels is a case of its own."""

import numpy as np
import pytest
from PIL import Image

from salmask.data import LabelledPictures, Subset, open_data
from salmask.data.flat import is_flat
from salmask.data.labels import LabelCases, pictures_of


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val" / "more").mkdir(parents=True)
    for name in ("val/a.png", "val/b.png", "val/more/c.png"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / name)
    return tmp_path


LONG = "image,class\nval/a.png,dog\nval/a.png,cat\nval/b.png,cat\nval/a.png,dog\n"
PIPED = "image,class\nval/a.png,dog|cat\nval/b.png,cat\n"
WIDE = "image,cat,dog\nval/a.png,1,1\nval/b.png,1,0\nval/more/c.png,0,0\n"


@pytest.mark.parametrize("table", [LONG, PIPED, WIDE])
def test_a_case_is_a_picture_with_one_of_its_labels(root, table) -> None:
    (root / "val_labels.csv").write_text(table)
    if table == WIDE:
        with pytest.warns(UserWarning, match="1 of 3 pictures .* have no label"):
            data = open_data(str(root), "val")
    else:
        data = open_data(str(root), "val")
    assert isinstance(data, LabelledPictures) and data.classes == ["cat", "dog"]
    cases = {(data[i].id, data[i].target) for i in range(len(data))}
    assert cases == {("val/a.png#dog", 1), ("val/a.png#cat", 0), ("val/b.png#cat", 0)}
    assert data.ids == [data[i].id for i in range(len(data))] and not is_flat(root)


def test_pictures_of_one_label_keep_their_names(root) -> None:
    (root / "val_labels.csv").write_text("image,class\nval/a.png,dog\nval/more/c.png,cat\n")
    assert LabelledPictures(root, "val").ids == ["val/a.png", "val/more/c.png"]


def test_boxes_and_pixels_are_those_of_the_label(root) -> None:
    (root / "val_labels.csv").write_text(LONG)
    (root / "val_boxes.csv").write_text(
        "image,class,x0,y0,x1,y1\nval/a.png,dog,0,0,2,2\nval/a.png,cat,4,4,8,8\nval/a.png,cat,1,1,3,3\n"
    )
    (root / "val_masks" / "cat").mkdir(parents=True)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / "val_masks" / "cat" / "a.png")
    data = LabelledPictures(root, "val")
    samples = {sample.id: sample for sample in (data[i] for i in range(len(data)))}
    assert samples["val/a.png#dog"].boxes.tolist() == [[0, 0, 2, 2]] and samples["val/a.png#dog"].pixels is None
    assert samples["val/a.png#cat"].boxes.tolist() == [[4, 4, 8, 8], [1, 1, 3, 3]]
    assert int(samples["val/a.png#cat"].pixels.sum()) == 8
    chosen = LabelCases(data, {"val/a.png": [1], "val/b.png": [0, 1]}, classes=data.classes)
    assert chosen.ids == ["val/a.png#dog", "val/b.png#cat", "val/b.png#dog"] and chosen.targets == [1, 0, 1]
    assert chosen[0].boxes.tolist() == [[0, 0, 2, 2]] and len(chosen[2].boxes) == 0
    assert pictures_of(Subset(data)) == {"val/a.png": {1: 0, 0: 1}, "val/b.png": {0: 2}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image\nval/a.png\n", "a column for each class, got image"),
        ("image,class\nval/z.png,cat\n", r"line 2 names val/z\.png, and there is no such file"),
        ("image,cat\nval/a.png,yes\n", r"line 2, cat: expected 1 .* or 0, got 'yes'"),
        ("image,class\nval/a.png,\n", "gives no picture a label"),
        ("image,class\n", "at least one line below the header"),
        ("image,class\nval/a.png,bird\n", "classes that the given list lacks: bird"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 1 pictures")
def test_tables_that_say_something_else_are_refused(root, table, message) -> None:
    (root / "val_labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        LabelledPictures(root, "val", classes=["cat", "dog"])


def test_broken_pictures_are_left_out_with_their_labels(root) -> None:
    (root / "val_labels.csv").write_text(LONG)
    (root / "val" / "a.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 2 pictures cannot be read"):
        assert LabelledPictures(root, "val", skip_broken=True).ids == ["val/b.png"]


def test_a_path_outside_of_the_data_is_refused(root, tmp_path) -> None:
    for name in ("../val/a.png", str(root / "val" / "a.png")):
        (root / "val_labels.csv").write_text(f"image,class\n{name},cat\n")
        with pytest.raises(ValueError, match="expected a path inside of"):
            LabelledPictures(root, "val")
