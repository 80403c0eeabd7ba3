"""Networks that are called as others are, and are not built as others are."""

import pytest
import torch
from test_matrix import MEAN, SIZE, STD, Squares, scene
from torch import nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS


def around(network: nn.Module, layers: list[str] | None) -> Classifier:
    return Classifier(network, mean=MEAN, std=STD, layers=layers, image_size=SIZE)


def test_an_exported_network_serves_explainers_of_logits() -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    shown = torch.rand(2, 3, SIZE, SIZE)
    exported = torch.export.export(Squares().eval(), (shown,), dynamic_shapes=({0: batch},)).module()
    modes = [module.training for module in exported.modules()]
    masks = [
        EXPLAINERS["occlusion"](window=112, stride=112)(around(network, []), scene()).masks
        for network in (exported, Squares())
    ]
    torch.testing.assert_close(*masks)
    assert [module.training for module in exported.modules()] == modes


@pytest.mark.parametrize("name", ["gradcam", "gradient", "occlusion", "rise"])
def test_pictures_outside_0_and_1_are_refused_on_any_device(name) -> None:
    classifier = around(Squares(), ["stage2"])
    classifier.logits = classifier.unbounded  # type: ignore[method-assign]  # as elsewhere than on a CPU
    with pytest.raises(ValueError, match="divide by 255"):
        EXPLAINERS[name]()(classifier, 255 * scene())
