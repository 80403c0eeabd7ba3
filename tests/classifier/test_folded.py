"""The faster twin: the same answers, the user's network untouched, and the network itself where folding fails."""

import pytest
import timm
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.classifier.folded import WORTHWHILE, folded
from salmask.explain import EXPLAINERS

SIZE = 64


def wrapped(network, layers=None):
    return Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, layers=layers, image_size=SIZE)


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def twin_of(classifier, images, passes=WORTHWHILE):
    with classifier.frozen(), torch.no_grad():
        return folded(classifier, images, passes=passes)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_the_twin_answers_as_the_network_does(name, images):
    torch.manual_seed(0)
    classifier = wrapped(timm.create_model(name, num_classes=5))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    training = [module.training for module in classifier.modules()]
    twin = twin_of(classifier, images)
    assert twin is not classifier
    assert classifier.network is not twin.network
    with classifier.frozen(), torch.no_grad():
        torch.testing.assert_close(twin.logits(images), classifier.logits(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert [module.training for module in classifier.modules()] == training
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in one.network.modules()) for one in (classifier, twin)]
    assert norms[1] < norms[0] or name != "resnet18"  # timm's own kind of normalisation is left as it is


def test_a_hand_written_network(small_net, images):
    classifier = wrapped(small_net, ("stem", "middle", "deep"))
    assert twin_of(classifier, images) is not classifier
    assert twin_of(classifier, images, passes=WORTHWHILE - 1) is classifier


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv3_small_050"])
def test_a_twin_with_gradients(name, images):
    torch.manual_seed(0)
    classifier = wrapped(timm.create_model(name, num_classes=5))
    with classifier.frozen():
        twin = folded(classifier, images, passes=WORTHWHILE, gradients=True)
        assert twin is not classifier
        assert not any(value.requires_grad for value in twin.network.parameters())
        slopes = []
        for one in (classifier, twin):
            shown = images.clone().requires_grad_()
            slopes += torch.autograd.grad(one.logits(shown)[:, 1].sum(), shown)
    assert float((slopes[0] - slopes[1]).norm()) < 1e-2 * float(slopes[0].norm())


@pytest.mark.parametrize("name", ["opticam", "meaningful"])
def test_optimised_maps_are_those_of_the_network_itself(name, small_net, images, monkeypatch):
    classifier = wrapped(small_net, ("middle", "deep"))
    made = []

    def counted(classifier, images, *, passes, gradients):
        made.append(folded(classifier, images, passes=passes, gradients=gradients))
        return made[-1]

    monkeypatch.setattr("salmask.explain.optimise.loop.folded", counted)
    quick = EXPLAINERS[name](iterations=WORTHWHILE)(classifier, images).masks
    assert made[0] is not classifier
    monkeypatch.setattr("salmask.explain.optimise.loop.folded", lambda classifier, images, **knobs: classifier)
    plain = EXPLAINERS[name](iterations=WORTHWHILE)(classifier, images).masks
    assert float((quick - plain).abs().mean()) < 0.01


class Deciding(nn.Module):
    """A network whose way depends on the picture."""

    def __init__(self):
        super().__init__()
        self.tap, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 3)

    def forward(self, x):
        y = self.head(self.tap(x).mean((2, 3)))
        return y if x.mean() > 0 else -y


class Remembering(Deciding):
    """A network whose answers change from call to call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.tap(x).mean((2, 3))) + self.calls


class Pointwise(Deciding):
    """The same with a convolution that gains nothing in another order."""

    def __init__(self):
        super().__init__()
        self.tap = nn.Conv2d(3, 4, 1)


@pytest.mark.parametrize("make", [Pointwise, Remembering])
def test_what_gains_nothing_or_does_not_answer_alike_is_used_as_it_is(make, images):
    classifier = wrapped(make(), ("tap",))
    assert twin_of(classifier, images) is classifier


def test_wide_convolutions_that_cannot_be_traced_are_put_in_channels_last_order(images):
    classifier = wrapped(Deciding(), ("tap",))
    twin = twin_of(classifier, images)
    assert twin is not classifier and type(twin.network) is Deciding
    assert twin.network.tap.weight.is_contiguous(memory_format=torch.channels_last)
    assert not classifier.network.tap.weight.is_contiguous(memory_format=torch.channels_last)
    for shown in (images / 2, (1 + images) / 2):  # both ways through the network
        torch.testing.assert_close(twin.logits(shown), classifier.logits(shown))


def test_hooks_and_half_precision_keep_the_network(small_net, images):
    classifier = wrapped(small_net, ("stem", "middle", "deep"))
    handle = small_net.deep.register_forward_hook(lambda *given: None)
    assert twin_of(classifier, images) is classifier
    handle.remove()
    assert twin_of(classifier, images) is not classifier
    small_net.bfloat16()
    assert twin_of(classifier, images) is classifier


@pytest.mark.parametrize(("name", "more"), [("rise", {"masks": 120}), ("scorecam", {"layer": 1}), ("occlusion", {})])
def test_maps_are_the_same_with_and_without(name, more, small_net, images, monkeypatch):
    classifier = wrapped(small_net, ("middle", "deep"))
    plain = EXPLAINERS[name](**more)(classifier, images).masks
    used = []

    def counted(classifier, images, *, passes):
        used.append(folded(classifier, images, passes=max(passes, WORTHWHILE)))
        return used[-1]

    monkeypatch.setattr("salmask.explain.perturb.folded", counted)
    monkeypatch.setattr("salmask.explain.cam.folded", counted)
    quick = EXPLAINERS[name](**more)(classifier, images).masks
    assert used[0] is not classifier
    torch.testing.assert_close(quick, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
