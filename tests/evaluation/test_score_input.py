"""Bad input of `salmask score`: one line that says what was got and what is needed, and nothing written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from salmask.cli.main import main

IDS = ["a/0.png", "a/1.png", "b/2.png"]
SIZE = 64
HEADER = "image,class,x0,y0,x1,y1"
ROWS = [f"{name},c,2,3,20,24" for name in IDS]


class Files:
    """Maps, boxes, labels, masks and pictures that belong together, for a test to spoil."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.values = np.random.default_rng(0).random((3, SIZE, SIZE)).astype(np.float32)
        self.maps(ids=np.array(IDS), maps=self.values)
        self.boxes(HEADER, *ROWS)

    def maps(self, **arrays: np.ndarray) -> None:
        np.savez(self.root / "maps.npz", **arrays)

    def boxes(self, *lines: str) -> None:
        (self.root / "boxes.csv").write_text("\n".join(lines) + "\n")

    def labels(self, *lines: str) -> None:
        (self.root / "labels.csv").write_text("\n".join(lines) + "\n")

    def masks(self, size: tuple[int, int] = (SIZE, SIZE), value: int = 255) -> None:
        for name in IDS:
            pixels = np.zeros(size, np.uint8)
            pixels[: size[0] // 2] = value
            self.picture(Path("masks") / name, pixels)

    def pictures(self, size: int = SIZE) -> None:
        for name in IDS:
            self.picture(Path("data") / name, np.full((size, size, 3), 99, np.uint8))

    def picture(self, name: Path, pixels: np.ndarray) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / name)

    def command(self, *more: object) -> list[str]:
        given = ["score", self.root / "maps.npz", "--boxes", self.root / "boxes.csv", "--out", self.root / "out"]
        return [str(part) for part in (*given, *more)]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of three classes that has learnt nothing."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return f"timm:test_resnet@{path}"


def refused(capsys: pytest.CaptureFixture[str], files: Files, *more: object) -> str:
    """Run the command, which must fail with one line and leave no folder; return the line."""
    assert main(files.command(*more)) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"salmask: [^\n]{10,400}\n", told.err), told.err
    assert not (files.root / "out").exists()
    return told.err


def _broken_map(value: float) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        files.values[2, 5, 5] = value
        files.maps(ids=np.array(IDS), maps=files.values)

    return spoil


MAPS = {
    "nan": (_broken_map(np.nan), ["'b/2.png'", "NaN or infinite", "repair or leave out"]),
    "infinite": (_broken_map(-np.inf), ["'b/2.png'", "NaN or infinite"]),
    "above one": (_broken_map(1.5), ["'b/2.png'", "[0, 1]", "--normalize minmax|max|rank"]),
    "negative": (_broken_map(-0.5), ["'b/2.png'", "-0.5", "--normalize"]),
    "no ids": (lambda files: files.maps(maps=files.values), ["maps.npz", "expected the arrays ids and maps"]),
    "no maps": (lambda files: files.maps(ids=np.array(IDS)), ["maps.npz", "expected the arrays ids and maps"]),
    "pickled ids": (lambda f: f.maps(ids=np.array(IDS, object), maps=f.values), ["maps.npz", "array of strings"]),
    "table of ids": (lambda f: f.maps(ids=np.array(IDS)[:, None], maps=f.values), ["ids as strings (N,)", "(3, 1)"]),
    "none at all": (lambda f: f.maps(ids=np.array([], "U1"), maps=f.values[:0]), ["holds no map"]),
    "text": (lambda f: (f.root / "maps.npz").write_text("hello there"), ["maps.npz", "numpy.savez"]),
    "absent": (lambda f: (f.root / "maps.npz").unlink(), ["maps.npz does not exist", "ids, maps"]),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps_that_cannot_be_are_refused(files: Files, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, words = MAPS[case]
    spoil(files)
    told = refused(capsys, files)
    assert all(word in told for word in words), told


def test_infinite_maps_are_not_normalised_away(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    _broken_map(np.inf)(files)
    assert "'b/2.png' holds NaN or infinite" in refused(capsys, files, "--normalize", "rank")


def test_a_damaged_compressed_file_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.root / "maps.npz"
    np.savez_compressed(path, ids=np.array(IDS), maps=files.values)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(data))
    assert "maps.npz is damaged" in refused(capsys, files)


BOXES = {
    "no header": (ROWS, ["boxes.csv", f"expected the header {HEADER}", "a/0.png"]),
    "an id without boxes": ([HEADER, *ROWS[:2]], ["1 ids ('b/2.png') without boxes", "leave these maps out"]),
    "boxes without an id": ([HEADER, *ROWS, "z.png,c,0,0,4,4"], ["without a map for 1 ids ('z.png')", "'a/0.png'"]),
    "no area": ([HEADER, *ROWS, "a/0.png,c,4,4,4,9"], ["boxes.csv line 5", "no area", "x0 < x1"]),
    "outside": ([HEADER, *ROWS, "a/0.png,c,70,70,80,80"], ["boxes.csv line 5", "outside of its map", "width,height"]),
    "no number": ([HEADER, *ROWS, "a/0.png,c,nan,0,4,4"], ["boxes.csv line 5, x0", "expected a number", "'nan'"]),
    "too few fields": ([HEADER, *ROWS, "a/0.png,c,1,1"], ["boxes.csv line 5", "expected 6 fields"]),
    "half a frame": ([HEADER + ",width", *(row + ",9" for row in ROWS)], ["boxes.csv", "width,height"]),
    "empty": ([], ["boxes.csv", "expected the header", "an empty file"]),
}


@pytest.mark.parametrize("case", BOXES)
def test_boxes_that_cannot_be_are_refused(files: Files, capsys: pytest.CaptureFixture[str], case: str) -> None:
    lines, words = BOXES[case]
    files.boxes(*lines) if lines else (files.root / "boxes.csv").write_text("")
    told = refused(capsys, files)
    assert all(word in told for word in words), told


def test_truth_without_maps_is_left_out_where_told_and_maps_without_truth_never(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.boxes(HEADER, *ROWS[:2], "z.png,c,0,0,4,4")
    told = refused(capsys, files)
    assert "1 ids ('b/2.png') without boxes, and boxes without a map for 1 ids ('z.png')" in told
    assert "without boxes: add rows" in refused(capsys, files, "--only-scored")

    files.boxes(HEADER, *ROWS, "z.png,c,0,0,4,4")
    assert "say --only-scored" in refused(capsys, files)
    files.labels("image,label,predicted", *(f"{name},1,1" for name in IDS), "y.png,1,")
    more = ["--labels", files.root / "labels.csv", "--only-scored", "--no-baselines", "--metric", "le", "om"]
    assert "labels.csv" in refused(capsys, files, *more)  # what is left out is read all the same
    files.labels("image,label,predicted", *(f"{name},1,1" for name in IDS), "y.png,1,0")
    assert main(files.command(*more)) == 0
    summary = json.loads((files.root / "out" / "summary.json").read_text())["maps"]
    assert summary["le"]["n"] == 3 and summary["om"]["mean"] == summary["le"]["mean"]


def test_a_table_that_is_absent_or_no_text_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.root / "boxes.csv").write_bytes((files.root / "maps.npz").read_bytes())
    assert "boxes.csv is no CSV table" in refused(capsys, files)
    (files.root / "boxes.csv").unlink()
    assert f"boxes.csv does not exist: expected a CSV table with the header {HEADER}" in refused(capsys, files)


def test_masks_that_cannot_be_are_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files.root / "masks"
    assert f"no folder of pixel masks {folder}" in refused(capsys, files, "--masks", folder)
    files.masks()
    (folder / IDS[1]).unlink()
    assert f"1 ids ('a/1.png') without a mask in {folder}" in refused(capsys, files, "--masks", folder)
    (folder / IDS[1]).write_bytes(b"no picture")
    assert f"{folder / IDS[1]} cannot be decoded" in refused(capsys, files, "--masks", folder)
    files.masks(value=7)
    assert "0 (background), 255 (object), 128 (ignored)" in refused(capsys, files, "--masks", folder)


@pytest.mark.filterwarnings("default")
def test_masks_without_an_object_or_of_another_shape_are_told_and_have_no_score(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.masks(size=(SIZE, 2 * SIZE))
    files.picture(Path("masks") / IDS[0], np.zeros((SIZE, SIZE), np.uint8))
    names = ("energy_inside:pixels", "pointing_game:pixels", "f1:pixels", "pxap", "le")
    assert main(files.command("--masks", files.root / "masks", "--no-baselines", "--metric", *names)) == 0
    told = capsys.readouterr().err
    assert re.search(r"1 ids \('a/0.png'\) have no object pixel", told)
    assert re.search(r"2 ids .* have another shape than the maps, 64 wide and 64 high", told)
    summary = json.loads((files.root / "out" / "summary.json").read_text())["maps"]
    assert [summary[name]["n"] for name in names] == [2, 2, 2, 3, 3]


def test_constant_maps_are_counted(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.values[0], files.values[1] = 0, 1
    files.maps(ids=np.array(IDS), maps=files.values)
    assert main(files.command("--no-baselines", "--metric", "le", "f1")) == 0
    summary = json.loads((files.root / "out" / "summary.json").read_text())["maps"]
    assert summary["degenerate"]["mean"] == pytest.approx(2 / 3) and summary["le"]["n"] == 3
    assert "2 of 3" in (files.root / "out" / "index.html").read_text()


def test_labels_and_pictures_that_cannot_be_are_refused(
    files: Files, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    shown = ["--classifier", spec, "--data", files.root / "data", "--image-size", SIZE, "--metric", "sm"]
    assert "both: --classifier and --data" in refused(capsys, files, "--classifier", spec)
    assert "--labels" in refused(capsys, files, *shown)
    shown += ["--labels", files.root / "labels.csv"]
    assert "labels.csv does not exist" in refused(capsys, files, *shown)
    files.labels(*(f"{name},1" for name in IDS))
    assert "expected the header image,label" in refused(capsys, files, *shown)
    files.labels("image,label", *(f"{name},-1" for name in IDS))
    assert "labels.csv line 2: expected a class index" in refused(capsys, files, *shown)
    files.labels("image,label", *(f"{name},3" for name in IDS))
    assert "class index in [0, 2] of the scoring classifier; got 3" in refused(capsys, files, *shown)
    files.labels("image,label", *(f"{name},2" for name in IDS))
    assert "no picture for 3 of 3 ids" in refused(capsys, files, *shown)
    files.pictures()
    shown[5] = 96
    assert "96 wide and 96 high, the maps are 64 wide and 64 high: give --image-size 64" in refused(
        capsys, files, *shown
    )
    shown[5] = SIZE
    (files.root / "data" / IDS[2]).write_bytes(b"no picture")
    assert "cannot be decoded" in refused(capsys, files, *shown)
