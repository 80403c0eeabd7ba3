"""Classifier and masker as one graph: any number and size of pictures, compared with the library; or a layer named."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame, padding
from torch import Tensor, nn

from salmask import Classifier, Masker
from salmask.explain import exported
from salmask.explain.exported import export_pass, same_padding
from salmask.explain.learned import Learned

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Leave the checks of shapes out, for which a size that is free is no number."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def build(network: nn.Module, **options: object) -> tuple[Learned, Classifier]:
    classifier = Classifier(network, mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=32)
    masker = Masker.for_classifier(classifier, generator=torch.Generator().manual_seed(0), **options).eval()
    return Learned(masker), classifier


def test_a_torch_graph_takes_any_number_and_size(small_net: nn.Module, tmp_path: Path) -> None:
    learned, classifier = build(small_net)
    agreed = export_pass(learned, classifier, tmp_path / "x.pt2", image_size=32)
    assert agreed.free and agreed.difference < 1e-5 and "any size" in str(agreed)
    images = torch.rand(5, 3, 48, 40)
    logits, masks = torch.export.load(tmp_path / "x.pt2").module()(images)
    expected = learned(classifier, images)
    assert torch.allclose(masks, expected.masks, atol=1e-5) and torch.allclose(logits, expected.logits, atol=1e-4)


def test_an_onnx_graph_gives_the_same_masks_in_onnxruntime(small_net: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    learned, classifier = build(small_net, classes=4)
    export_pass(learned, classifier, tmp_path / "x.onnx", image_size=32)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    for height, width in ((64, 48), (33, 47)):  # the latter end within a cell
        images = torch.rand(3, 3, height, width)
        logits, masks = session.run(None, {"images": images.numpy()})
        expected = learned(classifier, images)
        assert np.abs(masks - expected.masks.numpy()).max() < 1e-4
        assert np.abs(logits - expected.logits.numpy()).max() < 1e-3


def test_padding_in_few_operations_is_that_of_timm() -> None:
    for x, kernel, stride, dilation in product(range(1, 70), range(1, 8), range(1, 5), (1, 2)):
        assert same_padding(x, kernel, stride, dilation) == padding.get_same_padding(x, kernel, stride, dilation)


def test_networks_that_pad_by_the_size_of_the_picture_take_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(Conv2dSame(own, out, 3, stride=2), nn.ReLU()) for own, out in ((3, 8), (8, 12))]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()
    learned, classifier = build(network)
    timm_own = padding.get_same_padding
    agreed = export_pass(learned, classifier, tmp_path / "x.pt2", image_size=32)
    assert agreed.free and padding.get_same_padding is timm_own
    graph = torch.export.load(tmp_path / "x.pt2").module()
    for size in ((45, 39), (64, 50)):
        images = torch.rand(1, 3, *size)
        _, masks = graph(images)
        assert torch.allclose(masks, learned(classifier, images).masks, atol=1e-5)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.mean()) > 0 else x


def test_a_network_that_cannot_be_exported_is_named(small_net: nn.Module, tmp_path: Path) -> None:
    small_net.middle.add_module("doubt", Deciding())
    learned, classifier = build(small_net)
    with pytest.raises(ValueError, match=r"layer 'middle.doubt' \(Deciding\) is the smallest part that fails"):
        export_pass(learned, classifier, tmp_path / "x.pt2", image_size=32)
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_not_written(small_net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, classifier = build(small_net)
    written = exported._write_torch

    def other(*given: object) -> exported.Run:
        run = written(*given)
        return lambda images: [one + 1 for one in run(images)]

    monkeypatch.setattr(exported, "_write_torch", other)
    with pytest.raises(ValueError, match="the exported masks differ by up to 1"):
        export_pass(learned, classifier, tmp_path / "x.pt2", image_size=32)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"ends in .onnx or .pt2, got x.pb"):
        export_pass(learned, classifier, tmp_path / "x.pb", image_size=32)
