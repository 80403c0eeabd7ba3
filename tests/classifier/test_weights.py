"""Weights as trainers leave them: read without running their code, or refused with the reason."""

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.classifier.weights import fit_weights, load_weights, save_tensors


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=6).state_dict()


CONTENTS = {
    "plain": lambda w: w,
    "module.": lambda w: {f"module.{k}": v for k, v in w.items()},
    "_orig_mod.": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "both": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "lightning": lambda w: {"state_dict": {**{f"model.{k}": v for k, v in w.items()}, "loss.weight": torch.ones(6)}},
    "compiled lightning": lambda w: {"state_dict": {f"net._orig_mod.{k}": v for k, v in w.items()}},
    "tutorial": lambda w: {"epoch": 3, "model_state_dict": w, "optimizer_state_dict": {"state": {}}},
    "timm": lambda w: {"epoch": 3, "arch": "resnet", "state_dict": w, "args": argparse.Namespace(lr=0.1)},
    "deep": lambda w: {"checkpoint": 1, "model": {"state_dict": OrderedDict(w)}},
    "path": lambda w: {"model": w, "args": {"data": Path("data")}},
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_weights_of_every_trainer_are_read(kind, weights, tmp_path) -> None:
    torch.save(CONTENTS[kind](weights), tmp_path / "w.pth")
    classifier = Classifier.from_timm("test_resnet", pretrained=False, checkpoint=tmp_path / "w.pth", image_size=64)
    assert classifier.num_classes == 6
    assert all(torch.equal(value, weights[key]) for key, value in classifier.network.state_dict().items())


def test_a_network_that_was_pickled_whole_gives_its_weights(tmp_path) -> None:
    torch.manual_seed(0)
    network = SmallNet()
    torch.save(network, tmp_path / "whole.pth")
    torch.save({"model": nn.DataParallel(network), "epoch": 1}, tmp_path / "wrapped.pth")
    for name in ("whole.pth", "wrapped.pth"):
        other = SmallNet()
        fit_weights(other, load_weights(tmp_path / name), name)
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in other.state_dict().items())


class Trap:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_file_is_run(weights, tmp_path) -> None:
    torch.save({"state_dict": weights, "args": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    read = load_weights(tmp_path / "trap.pth")
    assert read.keys() == weights.keys()
    assert not (tmp_path / "sprung").exists()


def test_weights_that_fit_twice_are_refused(weights) -> None:
    both = {**{f"model.{k}": v for k, v in weights.items()}, **{f"ema.{k}": v for k, v in weights.items()}}
    with pytest.raises(ValueError, match=r"fit this under ema\., model\.: keep one of them"):
        fit_weights(timm.create_model("test_resnet", num_classes=6), both, "this")


def test_a_scripted_network_is_named_as_such(tmp_path) -> None:
    torch.jit.script(SmallNet()).save(str(tmp_path / "scripted.pt"))
    with pytest.raises(ValueError, match=r"holds a scripted network, no weights: load it with torch\.jit\.load"):
        load_weights(tmp_path / "scripted.pt")


def test_what_a_file_holds_instead_is_named(tmp_path) -> None:
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match="holds no state dict: expected names with tensors, got epoch, loss"):
        load_weights(tmp_path / "numbers.pth")


def test_the_same_content_is_the_same_bytes(tmp_path) -> None:
    """The library that writes them draws the order of the metadata anew for each file."""
    tensors = {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.ones(3, dtype=torch.bfloat16)}
    facts = {"format": "pt", "salmask": '{"classes": ["käse", "a\\nb"]}', "more": ""}
    for number in range(12):
        save_tensors(tmp_path / f"{number}.safetensors", tensors, dict(reversed(facts.items())) if number else facts)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    first = tmp_path / "0.safetensors"
    with safe_open(first, framework="pt") as file:
        assert file.metadata() == facts
    got = load_file(first)
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], value) for name, value in tensors.items())


def test_weights_that_a_file_holds_twice_are_said(weights, tmp_path) -> None:
    torch.save({"state_dict_ema": {k: v * 2 for k, v in weights.items()}, "state_dict": weights}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="under state_dict and state_dict_ema: those under state_dict are read"):
        read = load_weights(tmp_path / "w.pth")
    assert all(torch.equal(value, weights[name]) for name, value in read.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_counts_of_batches_may_be_missing_and_statistics_may_not(weights, tmp_path, prefix) -> None:
    torch.save({f"{prefix}{k}": v for k, v in weights.items() if "num_batches" not in k}, tmp_path / "w.pth")
    network = timm.create_model("test_resnet", num_classes=6)
    fit_weights(network, load_weights(tmp_path / "w.pth"), "it")
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items() if "num_batches" not in k)
    without = {f"{prefix}{k}": v for k, v in weights.items() if "running_mean" not in k}
    with pytest.raises(ValueError, match="weights are missing"):
        fit_weights(network, without, "it")
