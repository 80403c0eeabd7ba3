"""Gradient baselines: toys by hand, axioms, and Captum's own guided backpropagation where that works."""

import builtins
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.gradient import (
    MAX_MAGNITUDE,
    SUM_OF_MAGNITUDES,
    TOTAL,
    Gradient,
    GradientXInput,
    GuidedBackprop,
    IntegratedGradients,
    SmoothGrad,
)

pytest.importorskip("captum")
SIZE = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)


class Quadratic(nn.Module):
    """f = (sum w z^2 / 2, sum z): the gradient of class 0 is w z, that of class 1 is one."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
        self.tap = nn.Identity()

    def forward(self, x):
        x = self.tap(x)
        return torch.stack([(self.weights * x * x).sum((1, 2, 3)) / 2, x.sum((1, 2, 3))], 1)


def wrapped(network, layers):
    return Classifier(network, mean=MEAN, std=STD, layers=layers, image_size=SIZE)


@pytest.fixture
def quadratic():
    return wrapped(Quadratic(), ("tap",))


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def z_of(classifier, images):
    return (images - classifier.mean) / classifier.std


def test_gradient_by_hand(quadratic, images):
    slopes = quadratic.network.weights.detach() * z_of(quadratic, images)
    targets = torch.tensor([0, 1])
    found = Gradient()(quadratic, images, targets)
    torch.testing.assert_close(found.masks[0, 0], slopes[0].abs().amax(0))
    torch.testing.assert_close(found.masks[1, 0], torch.ones(SIZE, SIZE))
    assert found.range == (0.0, math.inf)
    summed = Gradient(channels=SUM_OF_MAGNITUDES)(quadratic, images, targets).masks
    torch.testing.assert_close(summed[0, 0], slopes[0].abs().sum(0))
    assert (found.passes.forward, found.passes.backward) == (1, 1)


def test_gradient_x_input_by_hand_keeps_its_sign(quadratic, images):
    z = z_of(quadratic, images)
    found = GradientXInput()(quadratic, images, torch.tensor([0, 1]))
    torch.testing.assert_close(found.masks[0, 0], (quadratic.network.weights.detach() * z[0] ** 2).sum(0))
    torch.testing.assert_close(found.masks[1, 0], z[1].sum(0))
    assert float(found.masks.min()) < 0
    assert found.range == (-math.inf, math.inf)


def test_integrated_gradients_are_complete(quadratic, images):
    targets = torch.tensor([0, 1])
    found = IntegratedGradients(steps=8)(quadratic, images, targets)
    with torch.no_grad():
        gain = quadratic.logits(images) - quadratic.logits(quadratic.mean.expand_as(images))
    wanted = gain.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.masks.sum((1, 2, 3)), wanted, rtol=1e-3, atol=1e-2)
    # of a quadratic, half of gradient x input
    half = GradientXInput()(quadratic, images, targets).masks[0] / 2
    torch.testing.assert_close(found.masks[0], half, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_integrated_gradients_do_not_depend_on_the_limit(limit, quadratic, images):
    wanted = IntegratedGradients(steps=6)(quadratic, images).masks
    torch.testing.assert_close(IntegratedGradients(steps=6, max_batch=limit)(quadratic, images).masks, wanted)


def test_smoothgrad_of_a_quadratic_is_the_gradient_at_the_mean_noise(quadratic, images):
    method = SmoothGrad(samples=5, noise=0.3, channels=TOTAL)
    z = z_of(quadratic, images[:1])
    noise = torch.stack([method._draw(k, z) for k in range(5)]).mean(0)
    wanted = quadratic.network.weights.detach() * (z[0] + 0.3 * (z.max() - z.min()) * noise)
    found = method(quadratic, images[:1], torch.tensor([0])).masks
    torch.testing.assert_close(found[0, 0], wanted.sum(0), rtol=1e-4, atol=1e-4)
    other = SmoothGrad(samples=5, noise=0.3, channels=TOTAL, seed=1)(quadratic, images[:1], torch.tensor([0])).masks
    assert not torch.equal(found, other)


def test_smoothgrad_without_noise_is_the_gradient(quadratic, images):
    found = SmoothGrad(samples=2, noise=0.0)(quadratic, images).masks
    torch.testing.assert_close(found, Gradient()(quadratic, images).masks)
    with pytest.raises(ValueError, match="at least one sample"):
        SmoothGrad(samples=0)(quadratic, images)


class Net(nn.Module):
    """Two convolutions whose ReLUs are called as `relu` says."""

    def __init__(self, relu=None):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, 2), nn.Linear(8, 3)
        self.one, self.two = nn.ReLU(), nn.ReLU()
        self.relu = relu

    def forward(self, x):
        one, two = (self.one, self.two) if self.relu is None else (self.relu, self.relu)
        return self.head(two(self.second(one(self.first(x)))).mean((2, 3)))


RELUS = {
    "modules": None,
    "one module, in place, twice": nn.ReLU(inplace=True),
    "torch.relu": torch.relu,
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "torch.relu_": torch.relu_,
}


@pytest.mark.parametrize("kind", RELUS)
def test_guided_backpropagation_meets_every_relu(kind, images):
    from captum.attr import GuidedBackprop as Theirs

    reference = Net().eval()
    classifier = wrapped(reference, ("second",))
    with pytest.warns(UserWarning, match="backward hooks"):
        wanted = Theirs(reference).attribute(z_of(classifier, images).requires_grad_(), target=torch.tensor([0, 2]))
    found = GuidedBackprop()(wrapped(Net(RELUS[kind]), ("second",)), images, torch.tensor([0, 2]))
    torch.testing.assert_close(found.masks, wanted.abs().amax(1, keepdim=True))
    assert found.notes == ()
    plain = Gradient()(classifier, images, torch.tensor([0, 2])).masks
    assert not torch.allclose(found.masks, plain)


def test_guided_backpropagation_without_relus_says_that_it_is_the_gradient(quadratic, images):
    found = GuidedBackprop()(quadratic, images)
    torch.testing.assert_close(found.masks, Gradient()(quadratic, images).masks)
    assert "no ReLU" in found.notes[0]


def test_smoothing_keeps_constants_and_spreads_a_point():
    method = GuidedBackprop(smoothing=0.1)
    torch.testing.assert_close(method._smoothed(torch.full((1, 1, 20, 20), 0.7)), torch.full((1, 1, 20, 20), 0.7))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    spread = method._smoothed(point)
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-3)
    ratio = float(spread[0, 0, 10, 12] / spread[0, 0, 10, 10])  # exp(-2^2 / (2 * 2.1^2))
    assert ratio == pytest.approx(math.exp(-(2**2) / (2 * 2.1**2)), rel=1e-3)


def test_a_missing_captum_names_the_extra(monkeypatch, quadratic, images):
    load = builtins.__import__

    def refuse(name, *args, **more):
        if name.startswith("captum"):
            raise ImportError(name)
        return load(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'salmask\[captum\]'"):
        Gradient()(quadratic, images)


def test_channel_rules():
    a = torch.tensor([1.0, -3.0, 0.5]).view(1, 3, 1, 1)
    assert [float(rule.rule(a)) for rule in (MAX_MAGNITUDE, SUM_OF_MAGNITUDES, TOTAL)] == [3.0, 4.5, -1.5]


# A gradient that does not arrive


class Dead(nn.Module):
    """Logit 0 reads the mean of the picture and is off on bright ones; logit 1 is never off."""

    def __init__(self):
        super().__init__()
        self.way, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

    def forward(self, x):
        first = (1 - 5 * x.mean((1, 2, 3)).abs()).relu()
        return torch.cat([first[:, None], self.head(self.way(x).mean((2, 3)))], 1)


class Cut(Dead):
    def forward(self, x):
        return super().forward(x).detach()


GRADIENTS = ["gradcam", "layercam", "gradient", "smoothgrad", "integrated_gradients", "guided_backprop"]
GRADIENTS += ["gradient_x_input", "attribution_mask", "opticam", "meaningful", "fido"]
FEW = {"opticam", "meaningful", "fido"}


def explain_with(name, network, target):
    classifier = Classifier(network.eval(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=("way",), image_size=16)
    images = 0.8 + 0.2 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    explainer = EXPLAINERS[name](**({"iterations": 2} if name in FEW else {}))
    return explainer(classifier, images, torch.tensor([target, target]))


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_that_does_not_arrive_is_an_error_that_says_where(name):
    if name not in {*FEW, "integrated_gradients"}:  # which darken the picture, so that logit 0 moves again
        with pytest.raises(ValueError, match="the logit of class 0 does not depend on the picture"):
            explain_with(name, Dead(), 0)
    assert explain_with(name, Dead(), 1).masks.isfinite().all()
    with pytest.raises(ValueError, match=r"no gradient (comes back|arrives)|none come back"):
        explain_with(name, Cut(), 1)


@pytest.mark.parametrize("name", ["gradcam", "gradient", "attribution_mask"])
def test_a_picture_that_moves_no_logit_has_an_empty_map_and_no_error(name):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network[0].weight.data.abs_()
    network[0].bias.data.fill_(-0.5)  # black leaves all ReLUs off, white does not
    classifier = Classifier(network.eval(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=("0",), image_size=16)
    found = EXPLAINERS[name]()(classifier, torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))
    assert found.degenerate.all()
