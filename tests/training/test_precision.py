"""What "auto" stands for: bfloat16 where it is faster."""

import pytest
import torch
from torch import nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.training.precision import chosen_precision

CPU = torch.device("cpu")


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, mean=(0.5,) * 3, std=(0.5,) * 3, layers=("stem", "deep"), image_size=16)


def depthwise() -> nn.Module:
    net = SmallNet()
    net.middle[0] = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 12, 1))
    return net


@pytest.mark.parametrize(
    ("features", "net", "wanted"),
    [
        ({"amx_bf16": True}, SmallNet, "bf16-mixed"),
        ({"avx512_bf16": True}, SmallNet, "bf16-mixed"),
        ({"avx2": True, "amx_bf16": False}, SmallNet, "32-true"),
        ({}, SmallNet, "32-true"),
        ({"amx_bf16": True}, depthwise, "32-true"),
    ],
)
def test_a_cpu_takes_bfloat16_where_it_computes_it_and_the_network_gains(monkeypatch, features, net, wanted) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert chosen_precision("auto", classifier(net()), device=CPU) == wanted


@pytest.mark.parametrize(("supported", "wanted"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_takes_bfloat16_where_it_computes_it(monkeypatch, supported, wanted) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert chosen_precision("auto", classifier(depthwise()), device=torch.device("cuda")) == wanted


def test_a_precision_that_is_named_is_taken_and_an_unknown_one_refused() -> None:
    for name in ("32-true", "bf16-mixed", "16-mixed"):
        assert chosen_precision(name, classifier(SmallNet()), device=CPU) == name
    with pytest.raises(ValueError, match="precision is one of auto, 32-true, bf16-mixed, 16-mixed, got 'half'"):
        chosen_precision("half", classifier(SmallNet()))
