"""ImageNet networks without a download: weights of an installed package, and the names of the classes."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import timm
import torch

from salmask.classifier import Classifier
from salmask.classifier.imagenet import PACKAGES, class_names, knows_imagenet, packaged_weights, synsets

NAME = "tf_efficientnet_lite0"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that holds these weights, under names of its own."""

    def install(weights):
        (tmp_path / "models").mkdir()
        torch.save({f"_{k}": value for k, value in enumerate(weights.values())}, tmp_path / "models" / "lite0.pth")
        spec = ModuleSpec(PACKAGES[NAME], None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == PACKAGES[NAME] else None)

    return install


def test_weights_of_a_package_go_by_the_names_of_timm(package) -> None:
    torch.manual_seed(3)
    network = timm.create_model(NAME).eval()
    package(network.state_dict())
    classifier = Classifier.from_timm(NAME, pretrained=True, image_size=64)
    assert classifier.num_classes == 1000 and classifier.mean.flatten().tolist() == [0.5] * 3
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(pictures), network((pictures - 0.5) / 0.5))


def test_weights_of_a_package_serve_other_classes_and_channels_too(package) -> None:
    torch.manual_seed(3)
    network = timm.create_model(NAME).eval()
    package(network.state_dict())
    few = Classifier.from_timm(NAME, pretrained=True, num_classes=7, image_size=64)
    assert few.num_classes == 7
    state = few.network.state_dict()
    torch.testing.assert_close(state["blocks.6.0.conv_pw.weight"], network.state_dict()["blocks.6.0.conv_pw.weight"])
    grey = Classifier.from_timm(NAME, pretrained=True, num_classes=7, image_size=64, channels=1, mean=[0.5], std=[0.5])
    expected = network.state_dict()["conv_stem.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.network.state_dict()["conv_stem.weight"], expected)


def test_a_package_of_other_weights_is_refused(package) -> None:
    package({"fc": torch.zeros(3)})
    with pytest.raises(ValueError, match=f"does not hold the weights of {NAME}: install another version"):
        packaged_weights(NAME)


def test_networks_that_no_package_holds_have_none(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert packaged_weights(NAME) is None and packaged_weights("resnet18") is None


def test_classes_have_one_name_each_beside_their_synsets() -> None:
    assert len(set(class_names())) == len(set(synsets())) == 1000
    assert (synsets()[281], class_names()[281]) == ("n02123045", "tabby, tabby cat")
    assert [name for name in class_names() if name.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]


def test_networks_for_imagenet_are_told_from_others() -> None:
    assert knows_imagenet("resnet18", 1000) and not knows_imagenet("resnet18", 10)
    assert not knows_imagenet("test_resnet_of_nobody", 1000)
