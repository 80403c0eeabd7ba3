"""Attribution masks: a slow loop, the label controls, and what freedom from bias means."""

from itertools import pairwise

import pytest
import torch
from torch import Generator, nn

from salmask.classifier import Classifier
from salmask.explain.recursive import (
    SOURCES,
    AttributionMask,
    additive_part,
    gradient_x_input,
    gxsi,
    masked_by,
    masked_input_accuracy,
    recursive_mask,
)

SIZE = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)


def network(*, bias):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, 1, 1, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4, bias=bias),
    )


def wrapped(bias=False):
    return Classifier(network(bias=bias), mean=MEAN, std=STD, layers=("1", "4"), image_size=SIZE)


@pytest.fixture
def images():
    return torch.rand(3, 3, SIZE, SIZE, generator=Generator().manual_seed(7))


TARGETS = torch.tensor([0, 3, 1])


def slow_gxsi(net, z, target):
    z = z.clone().requires_grad_()
    net(z[None])[0, target].backward()
    return z.grad * z.detach().sign()


@pytest.mark.parametrize("steps", [1, 3])
def test_equals_a_slow_loop_in_normalised_space(steps, images):
    classifier = wrapped()
    found = recursive_mask(classifier, images, TARGETS, steps=steps)
    assert len(found) == steps + 1
    for i in range(3):
        z = (images[i] - classifier.mean[0]) / classifier.std[0]
        mask = torch.ones_like(z)
        for t in range(steps):
            a = slow_gxsi(classifier.network, z * mask, TARGETS[i])
            low, high = a.amin((1, 2), keepdim=True), a.amax((1, 2), keepdim=True)
            mask = mask * (a - low) / (high - low)
            torch.testing.assert_close(found[t + 1][i], mask, rtol=1e-3, atol=1e-4)


def test_the_explanation_is_the_mean_over_channels(images):
    classifier = wrapped()
    masks = recursive_mask(classifier, images, TARGETS, steps=2)
    found = AttributionMask(steps=2)(classifier, images, TARGETS)
    torch.testing.assert_close(found.masks, masks[-1].mean(1, keepdim=True))
    assert (found.passes.forward, found.passes.backward) == (3, 2)
    single = AttributionMask(steps=2, per_channel=False)(classifier, images, TARGETS).masks
    assert single.shape == found.masks.shape
    assert not torch.allclose(single, found.masks)
    with pytest.raises(ValueError, match="at least one step"):
        AttributionMask(steps=0)(classifier, images)


def test_masks_fall_and_stay_in_range(images):
    masks = recursive_mask(wrapped(), images, TARGETS, steps=3)
    assert torch.equal(masks[0], torch.ones_like(images))
    for earlier, later in pairwise(masks):
        assert bool((later <= earlier + 1e-6).all())
        assert float(later.min()) >= 0


def test_a_mask_of_zero_is_the_mean_colour(images):
    classifier = wrapped()
    assert torch.equal(masked_by(classifier, images, torch.ones_like(images)), images)
    grey = masked_by(classifier, images, torch.zeros_like(images[:, :1]))
    torch.testing.assert_close(grey, classifier.mean.expand_as(images))


def test_a_network_without_biases_is_the_sum_of_gradient_times_input(images):
    free, bound = wrapped(bias=False), wrapped(bias=True)
    torch.testing.assert_close(additive_part(free, images, TARGETS), torch.zeros(3), rtol=0, atol=1e-5)
    assert float(additive_part(bound, images, TARGETS).abs().min()) > 1e-3
    with torch.no_grad():
        logits = free.logits(images)
    total = gradient_x_input(free, images, TARGETS).sum((1, 2, 3))
    torch.testing.assert_close(total, logits.gather(1, TARGETS[:, None])[:, 0], rtol=1e-4, atol=1e-5)


def test_sign_and_value_agree_where_the_input_is_positive(images):
    classifier = wrapped()
    bright = classifier.mean + (1 - classifier.mean) * images.clamp_min(0.01)
    z = (bright - classifier.mean) / classifier.std
    torch.testing.assert_close(
        gradient_x_input(classifier, bright, TARGETS), gxsi(classifier, bright, TARGETS) * z, rtol=1e-4, atol=1e-6
    )


def test_masked_input_accuracy_has_its_controls(images):
    classifier = wrapped()
    truth = torch.tensor([0, 1, 2])
    found = masked_input_accuracy(classifier, images, truth, steps=2, generator=Generator().manual_seed(0))
    assert set(found) == set(SOURCES)
    plain = classifier.logits(images).argmax(1)
    for source, one in found.items():
        assert one.agrees.shape == one.correct.shape == (3, 3), source
        assert torch.equal(one.correct[0], plain == truth), source
        assert torch.equal(one.agrees[0], plain == one.labels), source
    assert torch.equal(found["true"].labels, truth)
    assert torch.equal(found["true"].agrees, found["true"].correct)
    assert torch.equal(found["predicted"].labels, plain)
    assert bool((found["wrong"].labels != truth).all())
    assert bool(((found["wrong"].labels >= 0) & (found["wrong"].labels < 4)).all())
    again = masked_input_accuracy(classifier, images, truth, steps=2, generator=Generator().manual_seed(0))
    assert all(torch.equal(again[s].agrees, found[s].agrees) for s in SOURCES)
    with pytest.raises(ValueError, match="unknown source 'random'"):
        masked_input_accuracy(classifier, images, truth, sources=("random",), generator=Generator())


def test_the_true_label_leaks_through_its_mask():
    """The pitfall of the published score: masks of any label draw the prediction towards that label."""
    linear = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4, bias=False))
    torch.nn.init.normal_(linear[2].weight, generator=Generator().manual_seed(0))
    classifier = Classifier(linear, mean=MEAN, std=STD, layers=("0",), image_size=SIZE)
    many = torch.rand(40, 3, SIZE, SIZE, generator=Generator().manual_seed(3))
    truth = torch.randint(0, 4, (40,), generator=Generator().manual_seed(4))  # labels that mean nothing
    found = masked_input_accuracy(classifier, many, truth, steps=2, generator=Generator().manual_seed(0))
    plain, leaked = found["true"].correct[0].float().mean(), found["true"].correct[-1].float().mean()
    assert float(plain) < 0.5
    assert float(leaked) == 1.0
    assert float(found["wrong"].agrees[-1].float().mean()) == 1.0  # and so does any other label
