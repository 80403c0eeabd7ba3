"""Arguments that would fill the machine, hang, or fail after the work are refused before anything is made."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from salmask.classifier.named import own_network, timm_network
from salmask.cli.main import main
from salmask.data.streams import MOST_PROCESSES, DataStream
from salmask.data.synthetic import Synthetic, write_folder
from salmask.evaluation.saved import Work
from salmask.serve.page import serve
from salmask.study import Local, Scale
from salmask.study.connect import Extent
from salmask.study.studies import chosen_studies
from salmask.training.classifier import FitSettings, fit_classifier
from salmask.training.pooling import PoolingSettings
from salmask.training.processes import launched
from salmask.training.settings import Learns, Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_folder(root, train=20, val=10, seed=3, size=32)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), root / "w.safetensors")
    return root


NEW = ["classifier", "--network", "timm:test_resnet", "--size", "32", "--epochs", "0.1", "--batch-size", "3"]
MASKED = ["explain", "--explainer", "center", "--size", "32"]
LINES = [
    (NEW, ["--workers", "100000"], "are 0 to 256; got 100000"),
    (NEW, ["--channels", "100000000"], "pictures have 1 to 1024 channels"),
    (NEW, ["--channels", "-1"], "pictures have 1 to 1024 channels"),
    (NEW, ["--mean", "nan", "0", "0"], "expected a finite mean"),
    (NEW, ["--epochs", "1e18"], "epochs are at most 1000000"),
    (NEW, ["--seed", "9" * 30], "a seed is a whole number"),
    (NEW, ["--class-names", "names.txt"], "--class-names is for the classes of a network that is there"),
    (["inpainter", "--steps", "2"], ["--seed", "-1"], "a seed is a whole number"),
    (["inpainter", "--steps", "2"], ["--lr", "inf"], "a finite learning rate"),
    (["pooling", "--classifier", "SPEC"], ["--memory", "nan"], "memory is a number of GiB above 0"),
    (["train", "--classifier", "SPEC", "--size", "32"], ["--nodes", "2"], "nothing says where the others are"),
    (["train", "--classifier", "SPEC"], ["--terms", "area", "1", "area", "2"], "a term is named once, got area twice"),
    ([*MASKED, "--classifier", "SPEC"], ["--batch-size", "0"], "at least one picture a batch"),
    ([*MASKED, "--classifier", "SPEC"], ["--workers", "-1"], "are 0 to 256; got -1"),
    (["study", "table1", "--classifier", "SPEC"], ["--final", "inf"], "final must be positive and finite"),
    (["study", "table1", "--classifier", "SPEC"], ["--train-size", "999999"], "train_size is 8 to 4096"),
]


@pytest.mark.parametrize(("command", "more", "words"), LINES, ids=[" ".join([a[0], *b])[:50] for a, b, _ in LINES])
def test_what_would_fill_the_machine_is_refused(command, more, words, data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MASTER_ADDR", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    spec = f"timm:test_resnet@{data / 'w.safetensors'}"
    line = [spec if word == "SPEC" else word for word in (*command, *more)]
    assert main([*line, "--data", str(data), "--out", str(tmp_path / "out.safetensors")]) == 1
    shown = capsys.readouterr().err
    assert re.fullmatch(r"salmask: [^\n]{10,600}\n", shown) and words in shown, shown
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder.safetensors", "n" * 260 + ".safetensors", "plain/c.safetensors", "c.pth"])
@pytest.mark.parametrize("command", ["classifier", "inpainter", "export"])
def test_an_output_that_cannot_be_is_refused_before_the_work(command, name, data, tmp_path, capsys) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "plain").write_text("a file")
    name = name if command != "export" else name.replace(".safetensors", ".pt2")
    arguments = {"classifier": [*NEW, "--data", data], "inpainter": ["inpainter", "--data", data, "--steps", "2"]}
    command = arguments.get(command, ["export"])
    assert main([str(word) for word in (*command, "--out", tmp_path / name)]) == 1
    assert name.split("/")[0][:40] in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.pt2", "folder.safetensors", "plain"]


def test_more_processes_than_anybody_means_are_refused_in_python(monkeypatch) -> None:
    for make in (
        lambda n: DataStream(Synthetic(10, seed=0, size=16), 2, workers=n),
        lambda n: Work(n),
        lambda n: Local(workers=n),
        lambda n: Local(threads=n),
        launched,
    ):
        with pytest.raises(ValueError, match=f"to {MOST_PROCESSES}"):
            make(MOST_PROCESSES + 1)
    for settings in (Settings, FitSettings, PoolingSettings):
        settings(epochs=1e6)
        with pytest.raises(ValueError, match="at most 1000000 passes"):
            settings(epochs=1.1e6)
    for wrong in ({"clusters": 0}, {"points": 1001}):
        with pytest.raises(ValueError, match=r"at least one cluster|at most 1000 points"):
            Extent(**wrong)
    with pytest.raises(ValueError, match="1 to 1024 channels"):
        timm_network("test_resnet", pretrained=False, channels=0)
    with pytest.raises(ValueError, match="named once"):
        Learns(terms=(("area", 1), ("area", 2)))


def test_a_classifier_s_batch_has_each_picture_once_at_most() -> None:
    from salmask.classifier import Classifier

    def fitted(batch_size: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 4, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        classifier = Classifier(network, mean=[0.5] * 3, std=[0.2] * 3, layers=[], image_size=16)
        settings = FitSettings(epochs=1, batch_size=batch_size, precision="32-true")
        return fit_classifier(classifier, Synthetic(10, seed=0, size=16), settings=settings).network.state_dict()

    large, whole = fitted(10**11), fitted(10)
    assert all(torch.equal(large[name], whole[name]) for name in whole)


OWN = """
import sys
from conftest import SmallNet

def exits(): sys.exit(0)
def counts(): return SmallNet(), {"mean": [0] * 3, "std": [1] * 3, "classes": 4}
def twice(): return SmallNet(), {"mean": [0] * 3, "std": [1] * 3, "classes": ["a", "b", "a", "c"]}
"""


def test_code_of_one_s_own_that_ends_the_process_or_returns_something_else_is_named(tmp_path) -> None:
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    for name, words in (("exits", "SystemExit"), ("counts", "returns 4 as its classes"), ("twice", "each once")):
        with pytest.raises(ValueError, match=words):
            own_network(f"{tmp_path / 'own_code.py'}:{name}")
    with pytest.raises(ValueError, match="SystemExit"):
        own_network(f"{tmp_path / 'leaves.py'}:network")
    for text, words in (("def study(scale): return 5", "got int"), ("def study(scale): 1 / 0", "ZeroDivisionError")):
        (tmp_path / "my_study.py").write_text(text)
        (study,) = chosen_studies(str(tmp_path / "my_study.py"), classes=lambda: 2).values()
        with pytest.raises(ValueError, match=words):
            study(Scale())
    with pytest.raises(ValueError, match="SystemExit"):
        chosen_studies(str(tmp_path / "leaves.py"), classes=lambda: 2)


def test_ports_seeds_cards_and_checkpoints_that_cannot_be_are_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.chk").write_bytes(b"")
    out = ["--out", "out"]
    for line, words in (
        (["share", "imagenet", "--pictures", "-3", *out], "expected no picture or more"),
        (["share", "imagenet", "--licence", "", *out], "a licence is named in one line"),
        (["share", "imagenet", "--licence", "mit\nx: y", *out], "a licence is named in one line"),
        (["demo", "--seed", "-1", *out], "a seed is a whole number"),
        (["convert", "empty.chk", *out], "no checkpoint that can be read safely (EOFError)"),
        (["export", "--image-size", "0", "--out", "out.pt2"], "an image size is 8 to 4096"),
    ):
        assert main(line) == 1
        shown = capsys.readouterr().err
        assert words in shown and shown.count("\n") == 1, shown
    for port in (-1, 65_536):
        with pytest.raises(ValueError, match="a port is 0 to 65535"):
            serve(None, port=port)  # before anything is looked at
    assert [path.name for path in tmp_path.iterdir()] == ["empty.chk"]
