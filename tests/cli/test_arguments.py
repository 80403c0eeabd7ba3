"""Arguments that make no sense are refused in one line before anything is made, and an interrupted command goes on."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from salmask.cli import builtin
from salmask.cli.main import main
from salmask.data.synthetic import write_folder
from salmask.training.recipes import RECIPES
from salmask.training.settings import Examples, Settings


def refused(capsys, arguments: list[object], *words: str) -> None:
    assert main([str(argument) for argument in arguments]) == 1
    shown = capsys.readouterr()
    assert re.fullmatch(r"salmask: [^\n]{10,600}\n", shown.err), shown.err
    assert all(word in shown.err for word in words), shown.err


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_folder(root, train=20, val=10, seed=3, size=64)
    return root


@pytest.mark.parametrize("size", ["0", "-64", "100000"])
@pytest.mark.parametrize("command", ["classifier", "explain", "inpainter"])
def test_sizes_out_of_range_are_refused_before_anything_of_that_size_is_made(
    command, size, data, tmp_path, tmp_path_factory, capsys
) -> None:
    file = next(data.rglob("*.png"))
    network = timm.create_model("test_resnet", num_classes=10)
    at = tmp_path_factory.mktemp("weights") / "c.safetensors"
    save_file(network.state_dict(), at)
    weights = f"timm:test_resnet@{at}"
    arguments = {
        "classifier": ["--data", data, "--network", "timm:test_resnet", "--out", tmp_path / "c.safetensors"],
        "explain": [file, "--explainer", "gradcam", "--classifier", weights, "--out", tmp_path / "out"],
        "inpainter": ["--data", data, "--out", tmp_path / "i.safetensors"],
    }[command]
    refused(capsys, [command, *arguments, "--image-size", size], "8 to 4096", size)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", "inf"], "epochs must be positive and finite, got inf"),
        (["--epochs", "nan"], "epochs must be positive and finite, got nan"),
        (["--batch-size", "-1"], "batch_size"),
        (["--seed", "-1"], "seed"),
        (["--setting", "classes=[1]"], "classes is a whole number"),
        (["--setting", "historic=x"], "historic is a number"),
        (["--setting", "colour=3"], "no setting 'colour'"),
        (["--momentum", "nan"], "momentum is a share"),
        (["--weight-decay", "-1"], "weight_decay is a number of at least 0"),
        (["--decay-at", "nan"], "decay_at are shares"),
        (["--areas", "2", "3"], "areas are two shares"),
        (["--sizes", "99999"], "sizes are 8 to 4096 pixels"),
        (["--layers", "0", "0"], "layers are different indices"),
        (["--temperature", "0"], "temperature is a number above 0"),
        (["--tv-border", "nan"], "tv_border is a finite number"),
        (["--area-power", "0"], "area_power is above 0"),
        (["--area-in", "nan"], "the weight of area_if_kept_right is a finite number, got nan"),
        (["--terms", "area", "inf"], "area is a finite number"),
    ],
)
def test_settings_of_a_training_are_refused_in_one_line(more, words, data, tmp_path, capsys) -> None:
    arguments = ["train", "--data", data, "--classifier", "timm:test_resnet@x", "--out", tmp_path / "run"]
    refused(capsys, [*arguments, *more], words)
    assert not (tmp_path / "run").exists()


def test_a_pool_of_none_and_one_class_alone_are_refused() -> None:
    from salmask.data.synthetic import Synthetic
    from salmask.training.variant import chosen_data

    for wrong in ({"pool_size": 0}, {"pool_every": 0}, {"historic": 7.0}):
        with pytest.raises(ValueError, match="got"):
            replace(RECIPES["ca"], **wrong)
    with pytest.raises(ValueError, match="at least two classes"):
        chosen_data(Examples(classes=1), Synthetic(20, seed=0, size=16), 0)


def absent(path: Path) -> int:
    raise ValueError("left out")


def test_a_demo_that_was_interrupted_goes_on_with_the_same_command(tmp_path, monkeypatch, capsys) -> None:
    arguments = ["demo", "--quick", "--out", str(tmp_path / "demo")]
    train, calls = builtin.train_run, []
    monkeypatch.setattr(builtin, "QUICK", replace(builtin.QUICK, pictures=20, measured=10))
    monkeypatch.setattr(builtin, "CONTROLS", ("center",))
    monkeypatch.setattr(builtin, "write_photographs", absent)

    def interrupted(*given, out, **options):
        calls.append(out.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*given, out=out, **options)

    monkeypatch.setattr(builtin, "train_run", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith(f"go on with: salmask {' '.join(arguments)}\n")
    before = (tmp_path / "demo" / calls[0] / "model.safetensors").stat().st_mtime_ns
    refused(capsys, [*arguments, "--seed", 1], "holds an earlier demo")
    assert main(arguments) == 0
    assert calls == [calls[0], calls[1], calls[1]]
    assert (tmp_path / "demo" / calls[0] / "model.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "demo" / "index.html").is_file()
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == {"seed": 0, "quick": True}
    refused(capsys, arguments, "holds an earlier demo")


def test_a_file_names_the_classes_of_a_network_that_does_not(data, tmp_path, capsys) -> None:
    folders = sorted(path.name for path in (data / "val").iterdir())
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=12).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(["one more", *reversed(folders), "another"]) + "\n")
    spec = ["--classifier", f"timm:test_resnet@{tmp_path / 'w.safetensors'}", "--image-size", "64"]
    arguments = ["evaluate", "--data", data, *spec, "--explainer", "center", "--metric", "le", "--limit", "3"]
    refused(capsys, [*arguments, "--out", tmp_path / "out"], "10", "12")
    arguments += ["--class-names", tmp_path / "names.txt", "--out", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 0
    (tmp_path / "names.txt").write_text("one\n")
    refused(capsys, arguments, "lists 1 classes, the network has 12")


def test_a_batch_has_each_picture_once_at_most() -> None:
    settings = Settings(batch_size=100_000, epochs=2).of(20)
    assert settings.batch_size == 20 and settings.steps(20) == 2
    assert Settings(batch_size=20).of(20) == Settings(batch_size=20)
