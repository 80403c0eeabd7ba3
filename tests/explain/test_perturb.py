"""RISE and occlusion: by hand on a classifier that sums pixels, against slow loops and Captum's occlusion."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.scores import logit
from salmask.explain.perturb import Occlusion, RandomMasks, Rise
from salmask.masking import Bank, Blur, MeanColour, keep

SIZE = 24
BLACK = MeanColour((0.0, 0.0, 0.0))

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "layers": ("tap",), "image_size": SIZE, "outputs": "logits"}


class PixelSum(nn.Module):
    """f_0 = sum of weights * red; f_1 = 0."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.tap = nn.Parameter(weights), nn.Identity()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        score = (self.weights * self.tap(x)[:, 0]).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def weights():
    return torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def classifier(weights):
    return Classifier(PixelSum(weights), **PLAIN)


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 0])


def test_random_masks_equal_a_slow_construction():
    rise = Rise(masks=20, cells=5, chance=0.4, seed=3)
    drawn = RandomMasks.draw(rise, (24, 33), torch.device("cpu"))
    masks = drawn.build(slice(0, 20))
    assert masks.shape == (20, 1, 24, 33)
    for n in range(20):
        cell = (math.ceil(24 / 5), math.ceil(33 / 5))
        big = F.interpolate(
            drawn.grids[n][None, None], (6 * cell[0], 6 * cell[1]), mode="bilinear", align_corners=False
        )
        top, left = drawn.shifts[n].tolist()
        assert 0 <= top < cell[0]
        assert 0 <= left < cell[1]
        torch.testing.assert_close(masks[n, 0], big[0, 0, top : top + 24, left : left + 33])
    torch.testing.assert_close(drawn.build(slice(7, 9)), masks[7:9])


def test_random_masks_have_the_published_mean_and_range():
    masks = RandomMasks.draw(Rise(masks=600, cells=7, chance=0.3), (28, 28), torch.device("cpu")).build(slice(0, 600))
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    assert 0 <= float(masks.min()) < 0.01
    assert 0.99 < float(masks.max()) <= 1


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_rise_equals_a_slow_loop(limit, classifier, images, weights):
    rise = Rise(masks=30, cells=4, chance=0.5, score=logit, infill=BLACK, max_batch=limit)
    masks = RandomMasks.draw(rise, (SIZE, SIZE), torch.device("cpu")).build(slice(0, 30))
    wanted = torch.zeros(2, 1, SIZE, SIZE)
    for i in range(2):
        for mask in masks:
            wanted[i] += (weights * images[i, 0] * mask[0]).sum() * mask / (30 * 0.5)
    found = rise(classifier, images, TARGETS)
    torch.testing.assert_close(found.masks, wanted, rtol=1e-4, atol=1e-4)
    assert found.passes.forward == 31
    assert max(classifier.network.seen[1:]) <= max(limit, 2)


def test_rise_finds_the_one_pixel_that_counts(images):
    weights = torch.zeros(SIZE, SIZE)
    weights[5, 17] = 10.0
    classifier = Classifier(PixelSum(weights), **PLAIN)
    found = Rise(masks=1500, cells=6)(classifier, torch.ones_like(images[:1]), torch.tensor([0])).masks[0, 0]
    y, x = divmod(int(found.argmax()), SIZE)
    assert abs(y - 5) <= 2
    assert abs(x - 17) <= 2


def test_rise_of_a_constant_classifier_is_its_masks_mean(images):
    classifier = Classifier(
        PixelSum(torch.zeros(SIZE, SIZE)),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        layers=("tap",),
        image_size=SIZE,
        outputs="logits",
    )
    rise = Rise(masks=64, cells=4, chance=0.25)
    masks = RandomMasks.draw(rise, (SIZE, SIZE), torch.device("cpu")).build(slice(0, 64))
    found = rise(classifier, images[:1], torch.tensor([1]))
    torch.testing.assert_close(found.masks, 0.5 * masks.mean(0, keepdim=True) / 0.25)
    assert found.range == (0.0, 4.0)


@pytest.mark.parametrize("make", [partial(Rise, masks=20, cells=4), partial(Occlusion, window=56, stride=56)])
def test_an_infill_that_draws_starts_from_the_seed_for_every_picture(make, classifier, images):
    bank = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    explainer = make(score=logit, infill=Bank(bank, torch.Generator()))
    both = explainer(classifier, images, TARGETS).masks
    for row in (1, 0):
        torch.testing.assert_close(explainer(classifier, images[row : row + 1], TARGETS[:1]).masks, both[row : row + 1])
    plain = make(score=logit, infill=Bank(bank[:1], torch.Generator()))(classifier, images, TARGETS).masks
    assert not torch.allclose(plain, both)  # several pictures of the bank were drawn


def test_a_blur_is_made_once_a_picture(classifier, images, monkeypatch):
    calls = []
    once = Blur.__call__
    monkeypatch.setattr(Blur, "__call__", lambda self, x, holes: calls.append(len(x)) or once(self, x, holes))
    found = Rise(masks=30, cells=4, score=logit, infill=Blur(), max_batch=7)(classifier, images, TARGETS)
    assert calls == [1, 1]
    masks = RandomMasks.draw(Rise(masks=30, cells=4), (SIZE, SIZE), torch.device("cpu")).build(slice(0, 30))
    shown = keep(images[:1].expand(30, -1, -1, -1), masks, Blur())
    wanted = torch.einsum("n,nchw->chw", classifier.logits(shown)[:, 0].detach(), masks) / 15
    torch.testing.assert_close(found.masks[0], wanted, rtol=1e-4, atol=1e-4)


def test_occlusion_by_hand(classifier, weights):
    found = Occlusion(window=75, stride=75, score=logit, infill=BLACK)(classifier, torch.ones(1, 3, SIZE, SIZE))
    side = round(75 * SIZE / 224)  # 8 pixels: three windows a side, without overlap
    assert side == 8
    wanted = F.avg_pool2d(weights[None, None], 8) * 64
    torch.testing.assert_close(
        found.masks, wanted.repeat_interleave(8, 2).repeat_interleave(8, 3), rtol=1e-3, atol=1e-3
    )
    assert found.passes.forward == 10


def test_overlapping_windows_share_the_credit_as_in_captum(classifier, images):
    attr = pytest.importorskip("captum.attr")
    ours = Occlusion(window=84, stride=47, score=logit, infill=BLACK)
    window, stride = round(84 * SIZE / 224), round(47 * SIZE / 224)
    assert (window, stride) == (9, 5)
    theirs = attr.Occlusion(classifier.logits).attribute(
        images, target=0, sliding_window_shapes=(3, window, window), strides=(3, stride, stride), baselines=0
    )
    found = ours(classifier, images, TARGETS).masks
    torch.testing.assert_close(found[:, 0], theirs[:, 0].detach(), rtol=1e-3, atol=1e-3)


def test_oblong_pictures(classifier):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    oblong = Classifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, layers=("1",), image_size=SIZE)
    picture = torch.rand(1, 3, 20, 36)
    for method in (Rise(masks=4), Occlusion(window=112, stride=56, infill=Blur())):
        assert method(oblong, picture).masks.shape == (1, 1, 20, 36)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rise(masks=0), "masks >= 1"),
        (lambda: Rise(chance=1.0), "chance"),
        (lambda: Rise(cells=0), "cells >= 1"),
        (lambda: Occlusion(window=4, stride=5), "stride <= window"),
        (lambda: Occlusion(max_batch=0), "max_batch"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()
