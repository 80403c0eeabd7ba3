"""Paired folders and the built-in scenes: what is read, what is refused, where the class shows."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.classifier import Classifier
from salmask.classifier.fusion import fused_network
from salmask.classifier.inputs import Inputs
from salmask.cli.main import main
from salmask.data import Reader, has_split, open_data
from salmask.data.pairs import PairedFolder, SceneReader, in_jet
from salmask.data.scenes import CARRIERS, RANGE, Scenes, write_pairs
from salmask.data.sight import Sight
from salmask.explain.inputs import InputShares
from salmask.serve.looks import Looks
from salmask.training.run import Loaded, load_classifier, save_classifier

SHAPES = ("disc", "square", "star")
MILLIMETRES = Reader(4, window=RANGE[1] - RANGE[0], level=sum(RANGE) / 2)
RGBD = {"rgb": 3, "depth": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root, train=6, val=6, seed=0, size=32, shapes=SHAPES)
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    import shutil

    shutil.copytree(written, tmp_path / "DATA")
    return tmp_path / "DATA"


def test_what_is_written_is_read_again(written) -> None:
    made = Scenes(6, seed=1, size=32, shapes=SHAPES)
    read = PairedFolder(written, "val", inputs={**RGBD, "depth_jet": 3}, read=MILLIMETRES)
    assert len(read) == 6 and read.classes == list(SHAPES)
    by_number = {int(Path(name).stem): index for index, name in enumerate(read.ids)}
    for index in range(6):
        sample, own = read[by_number[index]], made[index]
        assert sample.image.shape == (7, 32, 32) and sample.target == own.target
        assert torch.equal(sample.image[:3], own.image[:3])
        assert int((sample.image[3].int() - own.image[3].int()).abs().max()) <= 1
        assert torch.equal(sample.image[4:], in_jet(sample.image[3:4]))
        assert torch.equal(sample.pixels, own.pixels) and torch.equal(sample.boxes, own.boxes)
    with (written / "carriers.csv").open() as file:
        rows = {row["image"]: row["carrier"] for row in csv.DictReader(file)}
    assert len(rows) == 12
    assert [rows[read.ids[by_number[index]]] for index in range(6)] == made.carriers


def test_a_folder_of_rgb_and_depth_is_known_as_pairs(written) -> None:
    assert has_split(str(written), "val") and not has_split(str(written), "test")
    for spec in (str(written), f"pairs:{written}"):
        assert isinstance(open_data(spec, "train"), PairedFolder)


def test_a_missing_partner_is_named_with_what_to_do(root) -> None:
    gone = sorted((root / "depth" / "train").rglob("*.png"))[0]
    gone.unlink()
    with pytest.raises(
        ValueError, match=rf"1 of the pictures in .*rgb have no partner.*{gone.stem}.*add it, or remove"
    ):
        PairedFolder(root, "train", inputs=RGBD)
    lonely = sorted((root / "rgb" / "val").rglob("*.png"))[0]
    (root / "rgb" / "val_boxes.csv").unlink()
    lonely.unlink()
    with pytest.raises(ValueError, match=rf"1 of the pictures in .*depth have no partner.*{lonely.stem}"):
        PairedFolder(root, "val", inputs=RGBD)


def test_partners_that_differ_in_size_are_refused(root) -> None:
    data = PairedFolder(root, "val", inputs=RGBD, read=MILLIMETRES)
    path = root / "depth" / data.ids[0]
    Image.fromarray(np.full((16, 24), 1000, np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"must have one size, got rgb 32x32, depth 24x16"):
        data[0]
    with pytest.warns(UserWarning, match="1 of 6 pictures cannot be read"):
        left = PairedFolder(root, "val", inputs=RGBD, read=MILLIMETRES, skip_broken=True)
    assert len(left) == 5 and data.ids[0] not in left.ids
    assert left[0].image.shape == (4, 32, 32)


def test_sixteen_bits_need_a_range_and_inputs_a_name(written, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"--window .*--level"):
        PairedFolder(written, "val", inputs=RGBD)[0]
    with pytest.raises(ValueError, match="nothing says which are read"):
        PairedFolder(written, "val")[0]
    with pytest.raises(FileNotFoundError, match=r"no folder of the input 'thermal'.*depth, rgb"):
        PairedFolder(written, "val", inputs={"rgb": 3, "thermal": 1})


def test_jet_runs_from_blue_over_green_to_red() -> None:
    colours = in_jet(torch.tensor([[[0, 128, 255]]], dtype=torch.uint8))[:, 0].T.tolist()
    assert colours[0] == [0, 0, 128] and colours[2] == [128, 0, 0]
    assert colours[1][1] == 255 and abs(colours[1][0] - colours[1][2]) < 8


def test_the_class_shows_in_its_carriers_and_nowhere_else() -> None:
    """Where the object lies, depth stands out from its surroundings in scenes of depth and both alone."""
    scenes = Scenes(60, seed=3, size=48)
    assert {name: scenes.carriers.count(name) for name in CARRIERS} == dict.fromkeys(CARRIERS, 20)
    steps = {name: [] for name in CARRIERS}
    vivid = {name: [] for name in CARRIERS}
    for index in range(60):
        colour, depth, cover = scenes.scene(index)
        inside = cover > 0.5
        steps[scenes.carriers[index]].append(np.median(depth[~inside]) - np.median(depth[inside]))
        vivid[scenes.carriers[index]].append(np.median(colour[inside]) - np.median(colour[~inside]))
    assert np.median(steps["rgb"]) < 60 < 300 < min(np.median(steps["depth"]), np.median(steps["both"]))
    assert np.median(vivid["depth"]) < 15 < 40 < min(np.median(vivid["rgb"]), np.median(vivid["both"]))
    assert torch.equal(Scenes(5, seed=3, size=48)[4].image, scenes[4].image)


@pytest.mark.parametrize("wrong", [{"inputs": {"thermal": 1}}, {"shapes": ("blob",)}, {"size": 8}])
def test_scenes_that_there_are_not_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        Scenes(3, **{"seed": 0, **wrong})


def test_classifier_masker_and_scores_by_command(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sight = ["--window", "2000", "--level", "1500"]
    network = "late:rgb+depth:resnet10t"
    fit = ["classifier", "--data", "DATA", "--network", network, "--image-size", "64", "--epochs", "1", *sight]
    assert main([*fit, "--batch-size", "3", "--out", "late.safetensors"]) == 0
    assert f"{network}@late.safetensors" in capsys.readouterr().out
    train = ["train", "--data", "DATA", "--classifier", f"{network}@late.safetensors", "--per-input"]
    assert main([*train, "--epochs", "1", "--batch-size", "3", "--out", "run"]) == 0
    score = ["evaluate", "--data", "DATA", "--explainer", "run", "input_shares", "--no-baselines"]
    assert main([*score, "--metric", "input_top", "average_drop", "--out", "scored"]) == 0
    assert "input_top" in capsys.readouterr().out
    plain = ["train", "--data", "DATA", "--classifier", "early:depth:resnet10t@none.safetensors", "--out", "other"]
    assert main(plain) == 1
    assert "none.safetensors" in capsys.readouterr().err


# Explaining files of scenes


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> str:
    """The SPEC of a late fusion of weights that are drawn."""
    torch.manual_seed(0)
    name, file = "late:rgb+depth:test_resnet", tmp_path_factory.mktemp("late") / "late.safetensors"
    network, inputs = fused_network("late", "rgb+depth:test_resnet", file=None, num_classes=3)
    colours = {"mean": (0.5,) * 4, "std": (0.25,) * 4, "inputs": inputs.settings()}
    sight = Sight(32, "squash", window=RANGE[1] - RANGE[0], level=sum(RANGE) / 2)
    own = Classifier(network, **colours, layers=None, image_size=32)
    save_classifier(file, Loaded(own, name, sight))
    return f"{name}@{file}"


def _explained(root: Path, files: list[str], out: Path, *more: str) -> list[str]:
    """Return the names of what `salmask explain` writes."""
    assert main(["explain", *(str(root / file) for file in files), "--out", str(out), *more]) == 0
    return sorted(path.name for path in out.iterdir())


def test_a_file_of_any_input_names_its_scene(root, late, tmp_path) -> None:
    colour = next((root / "rgb" / "val").glob("*/*"))
    names = [f"{kind}/val/{colour.parent.name}/{colour.stem}.png" for kind in ("rgb", "depth")]
    by = ["--classifier", late, "--explainer", "per_input:of=gradient"]
    both = _explained(root, names, tmp_path / "both", *by)
    assert both == [f"{colour.stem}.npy", f"{colour.stem}.png"]  # one scene, whichever of its files are named
    assert _explained(root, names[1:], tmp_path / "depth", *by) == both
    maps = [np.load(tmp_path / kind / both[0]) for kind in ("both", "depth")]
    assert maps[0].shape == (2, 32, 32) and np.array_equal(*maps)
    assert not np.array_equal(maps[0][0], maps[0][1])


def test_a_scene_is_one_by_paths_of_any_kind(root, late, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(root / "rgb")
    colour = next(Path("val").glob("*/*"))
    files = [colour, root / "rgb" / colour, Path("../depth") / colour]
    by = ["--classifier", late, "--explainer", "input_shares", "--out", str(tmp_path / "out")]
    assert main(["explain", *map(str, files), *by]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{colour.stem}.npy", f"{colour.stem}.png"]


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_two_files_of_one_name_in_one_input_are_refused(root, kind) -> None:
    file = next((root / kind / "val").glob("*/*.png"))
    Image.new("RGB", (32, 32)).save(file.with_suffix(".tif"))
    with pytest.raises(ValueError, match=f"{file.stem}.png and {file.stem}.tif have one name"):
        PairedFolder(root, "val", inputs=RGBD, read=MILLIMETRES)


def test_maps_of_several_inputs_lie_over_the_whole_of_larger_files(root, late, tmp_path) -> None:
    name = next((root / "rgb" / "val").glob("*/*")).relative_to(root / "rgb")
    for path in (root / "rgb" / name, root / "depth" / name):
        with Image.open(path) as picture:
            picture.resize((96, 64)).save(path)
    by = ["--classifier", late, "--explainer", "per_input:of=gradient"]
    assert f"{name.stem}.whole.npy" in _explained(root, [f"rgb/{name}"], tmp_path / "out", *by)
    assert np.load(tmp_path / "out" / f"{name.stem}.whole.npy").shape == (2, 64, 96)
    with Image.open(tmp_path / "out" / f"{name.stem}.whole.png") as drawn:
        assert drawn.size == (2 * 96, 64)


def test_masks_of_paired_data_hold_each_input(root, late, tmp_path) -> None:
    for form in ("png", "array"):
        by = ["--classifier", late, "--explainer", "input_shares", "--form", form]
        _explained(root, [], tmp_path / form, "--data", str(root), *by)
    masks = np.load(tmp_path / "array" / "masks.npy")
    assert masks.shape == (6, 32, 64)
    shares = masks.reshape(6, 32, 2, 32).mean((1, 3)) / 255
    assert np.allclose(shares.sum(1), 1, atol=0.01)  # of both inputs, not of the first alone
    with Image.open(next((tmp_path / "png" / "masks").rglob("*.png"))) as mask:
        assert mask.size == (64, 32)


def test_the_page_refuses_classifiers_of_several_inputs(late) -> None:
    loaded = load_classifier(late)
    with pytest.raises(ValueError, match="several inputs, and the page takes one picture: use `salmask explain FILE`"):
        Looks({"shares": (InputShares(), loaded)}, loaded)


def test_files_without_partners_are_refused_by_name(root, tmp_path, capsys) -> None:
    read = SceneReader(Inputs.of(RGBD), MILLIMETRES)
    alone = root / "elsewhere.png"
    Image.new("RGB", (32, 32)).save(alone)
    with pytest.raises(ValueError, match=r"lies in the folder of none: expected \.\.\./rgb/\.\.\./elsewhere\.\*"):
        read(alone)
    colour = next((root / "rgb" / "val").glob("*/*"))
    partner = root / "depth" / colour.relative_to(root / "rgb")
    partner.rename(partner.with_name("other.png"))
    with pytest.raises(
        ValueError, match=f"needs a partner of its name in .*{colour.parent.name}, which has no picture"
    ):
        read(colour)
    for ending in (".png", ".jpg"):
        Image.new("L", (32, 32)).save(partner.with_suffix(ending))
    with pytest.raises(ValueError, match="which has 2 pictures of it"):
        read(colour)


def test_one_input_alone_is_read_as_in_training(root) -> None:
    colour = next((root / "rgb" / "val").glob("*/*"))
    deep = root / "depth" / colour.relative_to(root / "rgb")
    jet = SceneReader(Inputs.of({"depth_jet": 3}), MILLIMETRES)(deep)
    assert torch.equal(jet, in_jet(SceneReader(Inputs.of({"depth": 1}), MILLIMETRES)(deep)))
    both = SceneReader(Inputs.of({**RGBD, "depth_jet": 3}), MILLIMETRES)(deep)
    assert torch.equal(both[4:], jet) and both.shape[0] == 7
