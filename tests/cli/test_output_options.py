"""What a network returns, said by a command: kept with a run, and never read in another way later."""

import json

import numpy as np
import pytest
from PIL import Image

from salmask.cli.main import main
from salmask.training.run import load_classifier, load_run

OWN = """
import torch
from conftest import SmallNet

class Answers(SmallNet):
    def forward(self, x):
        logits = super().forward(x)
        return {"rest": logits[:, 1:], "score": logits[:, :1]}

class Pair(SmallNet):
    def forward(self, x):
        logits = super().forward(x)
        return 2 * logits, logits

def _built(network):
    return network, {"mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32}

def build(kind=Answers):
    torch.manual_seed(7)
    return _built(kind())

def pair():
    return build(Pair)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.py").write_text(OWN)
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{k}.png")
    return tmp_path


def test_outputs_of_a_command_are_kept_with_the_run_and_hold_when_it_loads_again(own, capsys) -> None:
    binary = ["--outputs", "binary", "--output", "score"]
    train = ["train", "--data", "data", "--classifier", "answers.py:build", "--out", "run", "--epochs", "1"]
    train += ["--batch-size", "2", "--target", "predicted"]
    assert main([*train, *binary]) == 0
    kept = json.loads((own / "run" / "training.json").read_text())["seen"]["options"]
    assert kept == {"outputs": "binary", "output": "score"}
    classifier = load_run(own / "run").loaded.classifier
    assert classifier.num_classes == 2 and classifier.options() == kept
    assert load_classifier("run", outputs="binary", output="score").classifier.num_classes == 2
    explain = ["explain", "data/0.png", "--explainer", "run", "--out", "out"]
    assert main(explain) == 0 and main([*explain, *binary]) == 0
    capsys.readouterr()
    for given, message in (
        (["--outputs", "logits"], "are binary, asked for are logits"),
        (["--output", "rest"], "'score'"),
    ):
        assert main([*explain, *given]) == 1
        assert message in capsys.readouterr().err
    assert main([*train, "--outputs", "logits", "--output", "rest", "--resume"]) == 1
    assert "another run" in capsys.readouterr().err


def test_an_entry_is_chosen_by_key_or_index(own, capsys) -> None:
    layers = ["layers", "answers.py:pair"]
    assert main(layers) == 1
    assert "choose one with output" in capsys.readouterr().err
    assert main([*layers, "--output", "1", "--outputs", "multilabel"]) == 0
    assert "4 labels" in capsys.readouterr().out
    assert load_classifier("answers.py:pair", output=1).classifier.outputs.entry == 1


@pytest.mark.parametrize(
    "command", ["train", "explain", "evaluate", "score", "sanity", "study", "layers", "classifier"]
)
def test_every_command_that_takes_a_classifier_has_them(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "--outputs" in text and "--output " in text


def test_a_label_is_explained_by_its_number(own) -> None:
    network = ["--classifier", "answers.py:pair", "--output", "0", "--outputs", "multilabel"]
    explain = ["explain", "data/0.png", *network, "--target", "2", "--explainer", "gradcam", "--out", "out"]
    assert main(explain) == 0
