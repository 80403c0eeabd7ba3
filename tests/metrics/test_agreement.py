"""Our numbers against other libraries' at their settings; each tolerance with the reason for what remains."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from pixel_sums import case_of
from salmask.classifier import Classifier
from salmask.classifier.scores import logit, probability
from salmask.metrics import Case
from salmask.metrics.curves import Curve, Perturbation
from salmask.metrics.faithfulness import FAITHFULNESS, average_drop, average_increase
from salmask.metrics.maps import complexity, sparseness
from salmask.metrics.similarity import ssim

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def network(small_net):
    small_net.head.weight.data *= 30
    return Classifier(small_net.eval(), mean=MEAN, std=STD, layers=("deep",), image_size=32)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    coarse = torch.rand(4, 1, 8, 8, generator=generator)
    maps = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)
    return images, (maps - maps.amin((2, 3), keepdim=True)) / (maps - maps.amin((2, 3), keepdim=True)).amax(
        (2, 3), keepdim=True
    )


def normalised(images):
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


# torch-cam: it takes an extractor, so ours hands it the given maps


class Given:
    """An extractor, as torch-cam's metrics use one, that returns maps made before."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps[:, 0]

    def __call__(self, class_idx=None, scores=None, **kwargs):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    @contextmanager
    def _hooks_off(self):
        yield


def test_drop_and_increase_equal_torchcam(network, batch):
    """The same quantity: it multiplies in normalised space, which is the mean colour. Its divisor is p + 1e-7."""
    theirs = pytest.importorskip("torchcam.metrics")
    images, maps = batch
    metric = theirs.ClassificationMetric(Given(network.network, maps), partial(torch.softmax, dim=-1))
    metric.update(normalised(images), [0, 1, 2, 3])
    case = case_of(network, images, maps, [0, 1, 2, 3])
    said = metric.summary()
    assert FAITHFULNESS["average_drop"](case).mean().item() == pytest.approx(said["avg_drop"], abs=1e-5)
    assert FAITHFULNESS["average_increase"](case).mean().item() == said["conf_increase"]
    assert 0 < said["avg_drop"] < 1


def test_drop_of_logits_is_torchcams_default(network, batch):
    """Without a softmax it divides by the logit, which may be negative: the same only where all logits are positive."""
    theirs = pytest.importorskip("torchcam.metrics")
    network.network.head.bias.data += 100
    images, maps = batch
    metric = theirs.ClassificationMetric(Given(network.network, maps))
    metric.update(normalised(images), [0, 1, 2, 3])
    case = case_of(network, images, maps, [0, 1, 2, 3])
    assert average_drop(case, score=logit).mean().item() == pytest.approx(metric.summary()["avg_drop"], abs=1e-5)
    assert average_increase(case, score=logit).mean().item() == metric.summary()["conf_increase"]


@pytest.mark.parametrize("steps", [20, 7])
def test_insertion_and_deletion_equal_torchcam(network, batch, steps):
    """Zeros in normalised space, steps of ceil(n / steps) pixels, stable order, trapezoid over true shares."""
    theirs = pytest.importorskip("torchcam.metrics")
    images, maps = batch
    metric = theirs.DeletionInsertionMetric(Given(network.network, maps), partial(torch.softmax, dim=-1), steps=steps)
    metric.update(normalised(images), [0, 1, 2, 3])
    said = metric.summary()
    case = case_of(network, images, maps, [0, 1, 2, 3])
    curve = Curve(insert=True, step_pixels=-(-32 * 32 // steps))
    assert curve(case).mean().item() == pytest.approx(said["insertion_auc"], abs=1e-5)
    assert replace(curve, insert=False)(case).mean().item() == pytest.approx(said["deletion_auc"], abs=1e-5)
    assert curve.points(case)[0].std(1).min() > 1e-3  # not flat: the order matters


# pytorch-grad-cam


def test_drop_and_increase_equal_grad_cam(network, batch):
    """Its drop is absolute, max(0, p - o), not divided by p; its masks multiply in normalised space too."""
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    images, maps = batch
    targets = [ClassifierOutputSoftmaxTarget(index) for index in range(4)]
    given = (normalised(images), maps[:, 0].numpy(), targets, network.network)
    case = case_of(network, images, maps, [0, 1, 2, 3])
    p = network.logits(images).softmax(1).diagonal().detach().double()
    np.testing.assert_allclose((FAITHFULNESS["average_drop"](case) * p).numpy(), DropInConfidence()(*given), atol=1e-5)
    np.testing.assert_array_equal(FAITHFULNESS["average_increase"](case).numpy(), IncreaseInConfidence()(*given))


def test_perturbation_equals_grad_cams_percentiles(network, batch):
    """Mean p over 10 ... 90 % of most salient pixels hidden by the mean colour.

    Theirs cuts at a percentile of the values and ours counts pixels, so that one pixel may differ a step; its
    ready-made imputers (ROAD) draw noise, so a plain one is given here.
    """
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        AveragerAcrossThresholds,
        PerturbationConfidenceMetric,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    images, maps = batch
    targets = [ClassifierOutputSoftmaxTarget(index) for index in range(4)]

    def at(percentile):
        imputer = RemoveMostRelevantFirst(percentile, lambda picture, kept: picture * kept)
        return partial(PerturbationConfidenceMetric(imputer), return_diff=False)

    theirs = AveragerAcrossThresholds(at)(normalised(images), maps[:, 0].numpy(), targets, network.network)
    case = case_of(network, images, maps, [0, 1, 2, 3])
    ours = Perturbation(positive=True, score=probability)(case)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-3)


# Quantus


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus", exc_type=ImportError)


def scored(metric, maps, **more):
    pictures = np.zeros((len(maps), 3, *maps.shape[-2:]), dtype=np.float64)
    return metric(
        model=None,
        x_batch=pictures,
        y_batch=np.zeros(len(maps), dtype=int),
        a_batch=maps.numpy().astype(np.float64),
        **more,
    )


def test_sparseness_equals_quantus(quantus, batch):
    """It adds 1e-7 to every value; its default division by the maximum changes no Gini index."""
    metric = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    np.testing.assert_allclose(sparseness(batch[1]).numpy(), scored(metric, batch[1]), atol=1e-5)


def test_complexity_equals_quantus(quantus, batch):
    """It adds 1e-12 within the logarithm."""
    metric = quantus.Complexity(disable_warnings=True, display_progressbar=False)
    np.testing.assert_allclose(complexity(batch[1]).numpy(), scored(metric, batch[1]), atol=1e-5)


def test_pointing_game_equals_quantus(quantus):
    """Tolerance 0 on pixel masks, a hit when any of several maxima hits."""
    localization = pytest.importorskip("salmask.metrics.localization")
    generator = torch.Generator().manual_seed(3)
    maps = (torch.rand(12, 1, 10, 10, generator=generator) * 20).round() / 20  # with several maxima
    truth = torch.rand(12, 1, 10, 10, generator=generator) > 0.6
    metric = quantus.PointingGame(disable_warnings=True, display_progressbar=False)
    theirs = np.array(scored(metric, maps, s_batch=truth.numpy()), dtype=float)
    case = Case(
        masks=maps,
        targets=torch.zeros(12, dtype=torch.long),
        ids=[str(index) for index in range(12)],
        pixels=[mask[0].to(torch.uint8) for mask in truth],
    )
    ours = localization.LOCALIZATION["pointing_game:quantus"](case)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    assert 0 < theirs.mean() < 1


# torchmetrics


def test_ssim_near_torchmetrics(batch):
    """A flat window of 5. Two differences remain, and without them the two are one.

    Ours, as published, divides covariances by n - 1 = 24 and leaves the border of 2 pixels out; theirs divides by n
    and mirrors the picture at its border.
    """
    functional = pytest.importorskip("torchmetrics.functional.image")
    noise = torch.rand(batch[1].shape, generator=torch.Generator().manual_seed(1))
    first, second = batch[1], (batch[1] + 0.3 * noise).clamp(0, 1)
    options = {"gaussian_kernel": False, "kernel_size": 5, "data_range": 1.0, "reduction": "none"}
    theirs, full = functional.structural_similarity_index_measure(first, second, return_full_image=True, **options)
    ours = ssim(first, second, data_range=1.0)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=0.06)
    inner = full[..., 2:-2, 2:-2].mean((1, 2, 3))
    np.testing.assert_allclose(ours.numpy(), inner.numpy(), atol=0.02)
    for index in range(4):
        pair = first[index, 0].numpy(), second[index, 0].numpy()
        biased = structural_similarity(*pair, win_size=5, data_range=1.0, use_sample_covariance=False)
        assert biased == pytest.approx(inner[index].item(), abs=1e-4)
