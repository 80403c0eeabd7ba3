"""Checks of what is given that no other test makes speak, each with what it says."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.classifier.fusion import timm_name
from salmask.classifier.hold import layers_to_randomise
from salmask.cli.explain_files import pictures_in
from salmask.cli.main import main
from salmask.data.scenes import Scenes
from salmask.training.classifier import FitSettings
from salmask.training.settings import Settings
from salmask.training.unfinished import Descent, Unfinished

REFUSED = {
    "fusion": (partial(timm_name, "resnet18"), "expected INPUTS:NAME of a timm network"),
    "fusion without inputs": (partial(timm_name, ":resnet18"), "expected INPUTS:NAME"),
    "fusion of what timm lacks": (partial(timm_name, "rgb+depth:nothing"), "expected INPUTS:NAME"),
    "scenes": (lambda: Scenes(2, seed=0, inputs={"rgb": 4}), r"expected inputs of .*got \{'rgb': 4\}"),
    "other scenes": (lambda: Scenes(2, seed=0, inputs={"sound": 1}), "expected inputs of"),
    "few scenes": (lambda: Scenes(0, seed=0), "expected n >= 1, size >= 16 and seed >= 0"),
    "weights": (partial(layers_to_randomise, nn.ReLU()), "no parameters to randomise"),
    "pictures": (partial(pictures_in, []), "no picture to explain"),
    "seed": (lambda: Settings(seed=2**31), "a seed is a whole number"),
    "seed of a classifier": (lambda: FitSettings(seed=2**63), "a seed is a whole number"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what) -> None:
    build, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        build()


def test_another_training_is_not_gone_on_with(tmp_path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(SmallNet(3), mean=[0.5] * 3, std=[0.25] * 3, layers=["deep"], image_size=16)
    optimiser = torch.optim.SGD(classifier.network.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    descent, device = Descent(classifier.network, optimiser, schedule), torch.device("cpu")
    Unfinished(tmp_path, {"seed": 1}).save(3, descent)
    assert Unfinished(tmp_path, {"seed": 1}).take_up(descent, device) == 3
    with pytest.raises(ValueError, match="belongs to another training that was interrupted"):
        Unfinished(tmp_path, {"seed": 2}).take_up(descent, device)


def test_explaining_nothing_is_refused_in_one_line(tmp_path, capsys) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert (
        main(["explain", "--explainer", "center", "--classifier", f"timm:test_resnet@{tmp_path / 'w.safetensors'}"])
        == 1
    )
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("explained").exists()
